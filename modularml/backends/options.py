"""What a training step may do beside forward, backward and move."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from modularml.errors import ConfigError

__all__ = ["PLAIN", "StepOptions"]

PRECISIONS = ("float32", "bf16", "fp16")
ON_NONFINITE = ("raise", "skip", "stop")


@dataclass(frozen=True)
class StepOptions:
    """How a step trains; resolved once, before the first batch.

    Parameters
    ----------
    accumulate, precision, compile, on_nonfinite
        As of `TrainPhase`.
    parallel : bool
        Whether gradients of `models` are averaged over the processes that train together.
    clips : tuple of (float or None, float or None)
        For each optimizer: the largest norm of its gradients, and of each of their elements.
    schedules, models : tuple
        What sets learning rates after each step; all models that run.
    scale_loss : bool
        Whether the loss is scaled as in fp16 although `precision` does not say so.

    Raises
    ------
    ConfigError
        If an argument is none of these.
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
                "each process sees losses of its own, and the others would wait for it; use 'raise'"
            )

    @property
    def is_plain(self) -> bool:
        """Whether a step is forward, backward and move, and nothing else."""
        asked = any(any(clip) for clip in self.clips) or bool(self.schedules) or self.parallel
        asked = asked or self.scale_loss
        plain = (self.accumulate, self.precision, self.on_nonfinite) == (1, "float32", "raise")
        return plain and not asked


PLAIN = StepOptions()
"""Nothing beside."""
