"""Options of training steps."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from modularml.errors import ConfigError


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


PRECISIONS = ("float32", "bf16", "fp16")
ON_NONFINITE = ("raise", "skip", "stop")


class GradientSquares:
    """Squared norms of the gradients of the last update, by id of the parameter."""

    def __init__(self) -> None:
        self._values: dict[int, float] = {}

    def record(self, parameters: Sequence[Any], squares: Sequence[float]) -> None:
        """Add parameters of an update, before gradients are clipped."""
        self._values |= {id(p): s for p, s in zip(parameters, squares, strict=True)}

    def take(self) -> dict[int, float]:
        """Return the values, and forget them."""
        values, self._values = self._values, {}
        return values


@dataclass(frozen=True)
class StepOptions:
    """How a step trains; resolved once, before the first batch.

    Parameters
    ----------
    accumulate, precision, compile, on_nonfinite
        As of `TrainPhase`.
    parallel : bool
        Whether gradients of `models` are averaged over processes.
    clips : tuple of (float or None, float or None)
        For each optimizer: the maximum norm of its gradients, and the maximum absolute value of
        each element.
    schedules, models : tuple
        Schedules that step after each update; all models that run.
    scale_loss : bool
        Whether the loss is scaled as in fp16 whatever the `precision`.
    squares : GradientSquares, optional
        Receives the squared norms of gradients.
    losses : tuple
        Functions and objects that compute the losses.

    Raises
    ------
    ConfigError
        If an argument is not valid.
    """

    accumulate: int = 1
    precision: str = "float32"
    compile: bool = False
    on_nonfinite: str = "raise"
    parallel: bool = False
    clips: tuple[tuple[float | None, float | None], ...] = ()
    schedules: tuple[Any, ...] = ()
    models: tuple[Any, ...] = ()
    scale_loss: bool = False
    squares: GradientSquares | None = None
    losses: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        n = self.accumulate
        if not isinstance(n, Integral) or isinstance(n, bool) or n < 1:
            raise ConfigError(f"accumulate must be an int of at least 1, got {n!r}")
        for name, allowed in (("precision", PRECISIONS), ("on_nonfinite", ON_NONFINITE)):
            if (value := getattr(self, name)) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if not isinstance(self.compile, bool | np.bool_):
            raise ConfigError(f"compile must be True or False, got {self.compile!r}")
        if self.parallel and self.on_nonfinite != "raise":
            raise ConfigError(
                f"on_nonfinite={self.on_nonfinite!r} is not supported with data_parallel=True: "
                "each process has its own losses, and the others would wait for it; use 'raise'"
            )

    @property
    def is_plain(self) -> bool:
        """Whether a step is only forward, backward and update."""
        extended = any(any(clip) for clip in self.clips) or bool(self.schedules) or self.parallel
        extended = extended or self.scale_loss or self.squares is not None
        defaults = (self.accumulate, self.precision, self.on_nonfinite) == (1, "float32", "raise")
        return defaults and not extended


PLAIN = StepOptions()
"""Nothing beside."""
