"""Training steps of torch that clip, accumulate, scale or skip; made only where one is asked for.

The plain step stands in `modularml.backends.torch` and knows nothing of all this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from modularml._optional import require
from modularml.backends.base import Compute, NotFiniteError
from modularml.backends.options import StepOptions
from modularml.backends.torch_kernels import direct_step
from modularml.backends.torch_parallel import Averaged

torch = require("torch", purpose="to train torch models")

__all__ = ["ExtendedStep", "clip", "scaler_of"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def clip(params: Sequence[Any], norm: float | None, value: float | None) -> Any:
    """Limit the elements, then the norm, of gradients; the norm before that is returned."""
    params = [_dense(p) if p.grad is not None and p.grad.is_sparse else p for p in params]
    if value is not None:
        torch.nn.utils.clip_grad_value_(params, value)
    return torch.nn.utils.clip_grad_norm_(params, math.inf if norm is None else norm)


def _dense(param: Any) -> Any:
    """Return a stand-in whose gradient is the values of a sparse one, in the same memory."""
    param.grad = param.grad.coalesce()
    values = param.grad._values()
    found = torch.empty_like(values)
    found.grad = values
    return found


def scaler_of(optimizer: Any) -> Any:
    """Return what scales gradients in fp16; it is kept with an optimizer, and so is its state."""
    device = optimizer.param_groups[0]["params"][0].device.type
    if getattr(optimizer, "scales_on", None) != device:
        optimizer.scaler, optimizer.scales_on = torch.amp.GradScaler(device), device
    return optimizer.scaler


class ExtendedStep:
    """A step that does what `StepOptions` ask for.

    Parameters
    ----------
    compute : Compute
    optimizers : sequence of torch.optim.Optimizer
    options : StepOptions

    Attributes
    ----------
    closing : bool
        Set by who feeds the step, before the last batch of an epoch: weights move then, however
        few batches have been put together.
    sizes : (float, float) or None
        Set likewise where processes train together: rows of this batch that count, and of the
        batches of all processes on average.
    """

    closing = False
    sizes: tuple[float, float] | None = None

    def __init__(self, compute: Compute, optimizers: Sequence[Any], options: StepOptions) -> None:
        self.compute, self.options = compute, options
        self.together: Any = None
        self.optimizers = list(optimizers)
        self.owned = [[p for g in o.param_groups for p in g["params"]] for o in optimizers]
        self.params = [p for owned in self.owned for p in owned]
        device = self.params[0].device.type
        self.on_host = device == "cpu"
        dtype = _DTYPES.get(options.precision)
        self.forward = nullcontext() if dtype is None else torch.autocast(device, dtype)
        self.scaler = scaler_of(self.optimizers[0]) if options.precision == "fp16" else None
        self.moves: list[Callable[[], Any]] = [direct_step(o) for o in optimizers]
        if self.scaler is not None:
            self.moves = [partial(self.scaler.step, o) for o in optimizers]
        clips = options.clips or [(None, None)] * len(self.optimizers)
        watched = options.on_nonfinite != "raise" and self.scaler is None
        self.clips = [c if any(c) or watched else None for c in clips]
        self._forget()

    def begin(self) -> None:
        """Begin an epoch: forget gradients that have not moved weights, average from now on."""
        self._forget()
        if self.options.parallel:
            self.together = Averaged.wrapped(self.compute, self.options.models)

    def end(self) -> None:
        """End an epoch; no other step's gradients are averaged by this one from now on."""
        self.together = None

    def _forget(self) -> None:
        self.n_batches, self.first, self.rows = 0, 1.0, 0.0

    def __call__(self, inputs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Compute the losses of a batch, and move weights where it is time to."""
        with self.forward:
            total, losses, outputs = self._compute(inputs)
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

    def _compute(self, inputs: Sequence[Any]) -> tuple[Any, Sequence[Any], Sequence[Any]]:
        if self.together is None:
            return self.compute(inputs)
        last = self.closing or self.n_batches + 1 == self.options.accumulate
        self.together.require_backward_grad_sync = last  # as no_sync() does, for two blocks
        return self.together(inputs), *self.together.module.rest

    def _backward(self, total: Any, n: int) -> None:
        rows, each = self.sizes or (n, n)
        if not self.n_batches:
            self.first = each or 1.0
            for p in self.params:
                p.grad = None
        weight = rows / self.first  # 1 where all batches are of one size
        total = total if weight == 1.0 else total * weight
        self.n_batches, self.rows = self.n_batches + 1, self.rows + each
        (total if self.scaler is None else self.scaler.scale(total)).backward()

    def _move(self) -> None:
        weight = self.rows / self.first
        self._forget()
        if weight not in (0.0, 1.0):
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
