"""What commands give back, and how it is shown."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from modularml.progress import leave_stdout

__all__ = [
    "INTERRUPTED",
    "USAGE",
    "Command",
    "Reply",
    "leave_stdout",
    "plain",
    "ready_streams",
    "show",
]

USAGE, INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Reply:
    """The result of a command.

    Parameters
    ----------
    text : str
        For a person; empty for none.
    data : object
        The same for ``--json``.
    status : int
        Exit status.
    """

    text: str = ""
    data: Any = None
    status: int = 0


@dataclass(frozen=True)
class Command:
    """A command: its options, the function that runs it, and examples."""

    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Reply]
    examples: str = ""


def show(reply: Reply, *, as_json: bool) -> None:
    """Print a reply; a reader that has left, such as ``head``, is no error."""
    text = json.dumps(plain(reply.data), indent=2) if as_json else reply.text
    try:
        if text:
            print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        leave_stdout()


def ready_streams() -> None:
    """Let streams replace characters that they cannot encode."""
    streams: tuple[TextIO, TextIO] = sys.stdout, sys.stderr
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers that are not finite are null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    value = value.item() if hasattr(value, "item") and not hasattr(value, "columns") else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
