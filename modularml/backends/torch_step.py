"""Training steps of torch that clip, accumulate, scale or skip; made only where one is asked for.

The plain step stands in `modularml.backends.torch` and knows nothing of all this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from modularml._optional import require
from modularml.backends.base import Compute, NotFiniteError
from modularml.backends.options import StepOptions
from modularml.backends.torch_kernels import direct_step

torch = require("torch", purpose="to train torch models")

__all__ = ["ExtendedStep", "clip"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def clip(params: Sequence[Any], norm: float | None, value: float | None) -> Any:
    """Limit the elements, then the norm, of gradients; the norm before that is returned."""
    if value is not None:
        torch.nn.utils.clip_grad_value_(params, value)
    return torch.nn.utils.clip_grad_norm_(params, math.inf if norm is None else norm)


class ExtendedStep:
    """A step that does what `StepOptions` ask for.

    Parameters
    ----------
    compute : Compute
    optimizers : sequence of torch.optim.Optimizer
    options : StepOptions
    synced : callable
        Whether a backward pass averages gradients over processes: a context for those that do not.

    Attributes
    ----------
    closing : bool
        Set by who feeds the step, before the last batch of an epoch: weights move then, however
        few batches have been put together.
    share : float
        Weight of this batch among those of all processes.
    """

    closing = False
    share = 1.0

    def __init__(
        self,
        compute: Compute,
        optimizers: Sequence[Any],
        options: StepOptions,
        unsynced: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.compute, self.options, self.unsynced = compute, options, unsynced
        self.optimizers = list(optimizers)
        self.owned = [[p for g in o.param_groups for p in g["params"]] for o in optimizers]
        self.params = [p for owned in self.owned for p in owned]
        device = self.params[0].device.type
        self.on_host = device == "cpu"
        dtype = _DTYPES.get(options.precision)
        self.forward = nullcontext() if dtype is None else torch.autocast(device, dtype)
        self.scaler = torch.amp.GradScaler(device) if options.precision == "fp16" else None
        self.moves: list[Callable[[], Any]] = [direct_step(o) for o in optimizers]
        if self.scaler is not None:
            self.moves = [partial(self.scaler.step, o) for o in optimizers]
        clips = options.clips or [(None, None)] * len(self.optimizers)
        watched = options.on_nonfinite != "raise" and self.scaler is None
        self.clips = [c if any(c) or watched else None for c in clips]
        self.begin()

    def begin(self) -> None:
        """Forget gradients that have not moved weights yet."""
        self.n_batches, self.first, self.rows = 0, 1, 0

    def __call__(self, inputs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Compute the losses of a batch, and move weights where it is time to."""
        with self.forward:
            total, losses, outputs = self.compute(inputs)
        if self.on_host or self.options.on_nonfinite != "raise":
            losses = [loss.item() for loss in losses]
        wrong = next((i for i, v in enumerate(losses) if not _is_finite(v)), None)
        if wrong is None:
            self._backward(total, len(inputs[0]))
        elif self.options.on_nonfinite != "skip":
            raise NotFiniteError(wrong, losses[wrong])
        if self.n_batches and (self.closing or self.n_batches == self.options.accumulate):
            self._move()
        return losses, outputs

    def _backward(self, total: Any, rows: int) -> None:
        if not self.n_batches:
            self.first = rows
            for p in self.params:
                p.grad = None
        weight = self.share * rows / self.first  # 1 where all batches are of one size
        total = total if weight == 1.0 else total * weight
        self.n_batches, self.rows = self.n_batches + 1, self.rows + rows
        last = self.closing or self.n_batches == self.options.accumulate
        with nullcontext() if last else self.unsynced():
            (total if self.scaler is None else self.scaler.scale(total)).backward()

    def _move(self) -> None:
        weight = self.rows / self.first
        self.begin()
        if weight != 1.0:
            torch._foreach_div_([p.grad for p in self.params if p.grad is not None], weight)
        if self._clipped():
            for move in self.moves:
                move()
        if self.scaler is not None:
            self.scaler.update()
        for schedule in self.options.schedules:
            schedule.step()

    def _clipped(self) -> bool:
        """Clip gradients and tell whether weights may move along them."""
        for optimizer, params, limits in zip(self.optimizers, self.owned, self.clips, strict=True):
            if limits is None:
                continue
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            norm = float(clip(params, *limits))
            if self.scaler is None and not math.isfinite(norm):  # a scaler skips by itself
                if self.options.on_nonfinite != "skip":
                    raise NotFiniteError(0, norm, "gradient")
                return False
        return True


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
