"""Training steps of TensorFlow that clip, accumulate or skip, and schedules of learning rates.

The plain step stands in `modularml.backends.tensorflow` and knows nothing of all this.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from modularml.backends.base import Compute, NotFiniteError
from modularml.backends.options import StepOptions

__all__ = ["ExtendedStep", "KerasSchedule", "clipped"]


def clipped(grads: Sequence[Any], norm: float | None, value: float | None) -> tuple[list[Any], Any]:
    """Return gradients with their elements, then their norm, limited, and the norm before."""
    if value is not None:
        grads = [tf.clip_by_value(g, -value, value) for g in grads]
    total = tf.linalg.global_norm(list(grads))
    if norm is not None:
        grads = tf.clip_by_global_norm(list(grads), norm, use_norm=total)[0]
    return list(grads), total


class KerasSchedule:
    """A schedule of Keras that goes on when it is told to, and not with every step.

    Parameters
    ----------
    optimizer : keras.optimizers.Optimizer
    schedule : type or callable
        A class of ``LearningRateSchedule``, which starts from the optimizer's rate where it is
        given none, or a callable that takes the optimizer and returns one.
    kwargs : mapping
    """

    def __init__(self, optimizer: Any, schedule: Any, kwargs: Mapping[str, Any]) -> None:
        takes = inspect.signature(schedule).parameters
        if "initial_learning_rate" in takes:
            rate = float(optimizer.learning_rate)
            kwargs = {"initial_learning_rate": rate, **kwargs}
        of_keras = inspect.isclass(schedule)
        self.optimizer, self.count = optimizer, 0
        self.rate = schedule(**kwargs) if of_keras else schedule(optimizer, **kwargs)
        self._set()

    def step(self) -> None:
        """Go on by one epoch or batch."""
        self.count += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        """Return how far it has gone."""
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where another was."""
        self.count = state["count"]
        self._set()

    def _set(self) -> None:
        self.optimizer.learning_rate.assign(self.rate(self.count))


class ExtendedStep:
    """A step that does what `StepOptions` ask for; gradients are one graph, moving another.

    See `modularml.backends.torch_step.ExtendedStep` for `closing` and `sizes`.
    """

    closing = False
    sizes: tuple[float, float] | None = None

    def __init__(self, compute: Compute, optimizers: Sequence[Any], options: StepOptions) -> None:
        self.options, self.optimizers = options, list(optimizers)
        self.owned = [[v for v in o._trainable_variables if v.trainable] for o in optimizers]
        self.clips = options.clips or [(None, None)] * len(self.optimizers)
        watched = [v.value for own in self.owned for v in own]

        def gradients(weight: Any, *inputs: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(watched)
                total, losses, outputs = compute(inputs)
            grads = tape.gradient(total, watched)
            scaled = [None if g is None else g * tf.cast(weight, g.dtype) for g in grads]
            return losses, outputs, scaled

        self.gradients = tf.function(gradients, autograph=False)
        self.begin()

    def begin(self) -> None:
        """Begin an epoch: forget gradients that have not moved weights."""
        self.held: list[Any] | None = None
        self.n_batches, self.first, self.rows = 0, 1.0, 0.0

    def end(self) -> None:
        """End an epoch."""

    def __call__(self, inputs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Compute the losses of a batch, and move weights where it is time to."""
        n = self.sizes[0] if self.sizes is not None else len(inputs[0])
        if not self.n_batches:
            self.first = n or 1.0
        weight = n / self.first
        losses, outputs, grads = self.gradients(tf.constant(weight), *inputs)
        values = [float(loss) for loss in losses]
        wrong = next((i for i, v in enumerate(values) if not math.isfinite(v)), None)
        if wrong is None:
            self._hold(grads, n)
        elif self.options.on_nonfinite != "skip":
            raise NotFiniteError(wrong, values[wrong])
        if self.n_batches and (self.closing or self.n_batches == self.options.accumulate):
            self._move()
        return losses, outputs

    def _hold(self, grads: Sequence[Any], n: float) -> None:
        before = self.held or [None] * len(grads)
        self.held = [_sum(a, b) for a, b in zip(before, grads, strict=True)]
        self.n_batches, self.rows = self.n_batches + 1, self.rows + n

    def _move(self) -> None:
        weight, grads = self.rows / self.first or 1.0, iter(self.held or ())
        self.begin()
        moves = []
        for optimizer, own, limits in zip(self.optimizers, self.owned, self.clips, strict=True):
            pairs = [(g / weight, v) for v in own if (g := next(grads)) is not None]
            found, norm = clipped([g for g, _ in pairs], *limits)
            watched = any(limits) or self.options.on_nonfinite != "raise"
            if watched and not math.isfinite(float(norm)):
                if self.options.on_nonfinite != "skip":
                    raise NotFiniteError(0, float(norm), "gradient")
                return
            moves.append((optimizer, found, [v for _, v in pairs]))
        for optimizer, found, variables in moves:
            if variables:
                optimizer.apply(found, variables)
        for schedule in self.options.schedules:
            schedule.step()


def _sum(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b
