"""What a framework needs to train several small models of one architecture as one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modularml.backends.options import StepOptions

__all__ = ["NotStackableError", "Stack", "StackMember"]


class NotStackableError(Exception):
    """Members cannot be trained as one; the message says why."""

    @classmethod
    def of(cls, error: Exception) -> NotStackableError:
        """Return an error of a framework, or of a user's code, as a reason."""
        if isinstance(error, cls):
            return error
        return cls(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


@dataclass(frozen=True)
class StackMember:
    """The training step of one member.

    Parameters
    ----------
    compute : Compute
    models : sequence
        Models that `compute` calls.
    optimizers : sequence
    options : StepOptions
    loss_weights : tuple of float
        Weights of the losses within `compute`.
    kind : hashable
        Classes of the models' parts and shapes of their weights.
    plan : object
        What `compute` was made from; another one replaces it when a loss or an optimizer changes.
    losses : sequence
        Functions and objects that `compute` calls for losses.
    """

    compute: Any
    models: Sequence[Any]
    optimizers: Sequence[Any]
    options: StepOptions
    loss_weights: tuple[float, ...]
    kind: Hashable = None
    plan: Any = None
    losses: Sequence[Any] = ()


class Stack(ABC):
    """The training steps of several members as one.

    While attached, the weights and optimizer states of a member are views of those of the stack, so
    that they are current after each step.
    """

    members: Sequence[StackMember]

    @abstractmethod
    def fits(self, inputs: Sequence[Sequence[Any]]) -> bool:
        """Return whether batches have the shapes that the step was made for."""

    @abstractmethod
    def is_current(self, place: int, inputs: Sequence[Any], state: Mapping[str, Any]) -> bool:
        """Return whether models and losses still compute what the step was made for.

        Attributes of all members are compared, and what one member's own step computes.

        Parameters
        ----------
        place : int
            Of that member.
        inputs : sequence of tensor
            Its next batch.
        state : mapping
            Its random states.
        """

    @abstractmethod
    def attach(self, random_states: Sequence[Mapping[str, Any]], places: Sequence[int]) -> None:
        """Copy weights, optimizer states and random states of some members into the stack.

        Places of others stay vacant.
        """

    @abstractmethod
    def detach(self, places: Sequence[int] | None = None) -> None:
        """Give members, by default all, memory of their own; they take no part in later steps."""

    @abstractmethod
    def step(
        self, inputs: Sequence[Sequence[Any]]
    ) -> tuple[Sequence[Sequence[float]], Sequence[Sequence[Any]], Mapping[int, Exception]]:
        """Compute the losses of a batch of each member, and update the weights.

        A member with a loss or gradient that is not finite is detached with unchanged weights, and
        one whose schedule fails with changed ones.

        Parameters
        ----------
        inputs : sequence of sequence of tensor
            By member; those of detached members are not used.

        Returns
        -------
        losses : sequence of sequence of float
            By member.
        outputs : sequence of sequence of tensor
            By member.
        errors : mapping of int to Exception
            By member.

        Raises
        ------
        NotStackableError
            If an operation fails; nothing has changed then.
        """

    @abstractmethod
    def update_random_states(self, random_states: Sequence[dict[str, Any]]) -> None:
        """Write the random states that members have after the steps so far."""

    @abstractmethod
    def settings_changed(self) -> None:
        """Read learning rates and other settings of optimizers again."""
