"""What an attachment is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from modularml.runner.events import Listeners

__all__ = ["FIRST", "LAST", "Attachment"]

FIRST, LAST = -1, 1  # ranks before and after the callbacks of the user


class Attachment(ABC):
    """Something that listens to several events of a runner."""

    @abstractmethod
    def attach_on(self, runner: Listeners) -> None:
        """Attach to a runner.

        Parameters
        ----------
        runner : Runner
        """
