"""torch training steps with clipping, accumulation, scaling or skipping.

The plain step is in `modularml.backends.torch`.
"""

from __future__ import annotations

import atexit
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from math import isfinite
from typing import Any

from modularml._optional import require
from modularml._private.torch import for_each, multiply_by_one
from modularml.backends.base import Compute, NotFiniteError
from modularml.backends.step_options import StepOptions
from modularml.backends.tensor_operations import Processes
from modularml.backends.torch_fused_optimizers import direct_step

torch = require("torch", purpose="to train torch models")


def processes(device: Any) -> Processes:
    """Return the process group, initialized if needed."""
    dist = torch.distributed
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)

    def gather(value: Any) -> list[Any]:
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return values

    return Processes(dist.get_rank(), dist.get_world_size(), gather)


class Averaged(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Models and their loss as one module for ``DistributedDataParallel``.

    Only the loss is returned through the wrapper, which waits for gradients of everything it
    depends on.
    """

    def __init__(self, compute: Compute, models: Sequence[Any]) -> None:
        super().__init__()
        self.models, self.compute = torch.nn.ModuleList(models), compute
        self.rest: tuple[Any, Any] = ((), ())

    def forward(self, inputs: Sequence[Any]) -> Any:
        """Return the total loss, and store each loss and output."""
        total, *rest = self.compute(inputs)
        self.rest = (rest[0], rest[1])
        return total

    @classmethod
    def wrapped(cls, compute: Compute, models: Sequence[Any]) -> Any:
        """Wrap the models; all processes start from the weights of the first."""
        ddp = torch.nn.parallel.DistributedDataParallel
        return ddp(cls(compute, models), find_unused_parameters=True)


_norms, _divide = for_each("norm"), for_each("div_")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def clip(params: Sequence[Any], norm: float | None, value: float | None) -> Any:
    """Clip gradients by value, then by norm; return the norm before."""
    params = [_dense(p) if p.grad is not None and p.grad.is_sparse else p for p in params]
    if value is not None:
        torch.nn.utils.clip_grad_value_(params, value)
    return torch.nn.utils.clip_grad_norm_(params, math.inf if norm is None else norm)


def _norm(params: Sequence[Any]) -> Any:
    """Return the norm of gradients as `clip` does without limits, with fewer calls."""
    grads = [p.grad for p in params if p.grad is not None]
    kinds = {(g.dtype, g.device, g.is_sparse) for g in grads}
    if len(kinds) != 1 or grads[0].is_sparse:
        return clip(params, None, None)
    return torch.linalg.vector_norm(torch.stack(_norms(grads)))


def _dense(param: Any) -> Any:
    """Return a placeholder whose gradient shares the values of a sparse gradient."""
    param.grad = param.grad.coalesce()
    values = param.grad.values()
    placeholder = torch.empty_like(values)
    placeholder.grad = values
    return placeholder


def scaler_of(optimizer: Any) -> Any:
    """Return the fp16 gradient scaler, which is stored with the optimizer."""
    device = optimizer.param_groups[0]["params"][0].device.type
    if getattr(optimizer, "scales_on", None) != device:
        optimizer.scaler, optimizer.scales_on = torch.amp.GradScaler(device), device
    return optimizer.scaler


class ExtendedStep:
    """A training step with `StepOptions`.

    Parameters
    ----------
    compute : Compute
    optimizers : sequence of torch.optim.Optimizer
    options : StepOptions

    Attributes
    ----------
    closing : bool
        Set by the caller before the last batch of an epoch: weights are then updated, however few
        batches were accumulated.
    sizes : (float, float) or None
        Set by the caller in data-parallel training: rows of this batch that count, and the average
        over the batches of all processes.
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
        self.squares = options.squares
        self._reset()

    def begin(self) -> None:
        """Begin an epoch: discard gradients that were not applied, and start averaging."""
        self._reset()
        if self.options.parallel:
            self.together = Averaged.wrapped(self.compute, self.options.models)

    def end(self) -> None:
        """End an epoch, and stop averaging gradients."""
        self.together = None

    def _reset(self) -> None:
        self.n_batches, self.first, self.rows = 0, 1.0, 0.0

    def __call__(self, inputs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Compute the losses of a batch, and update the weights if due."""
        with self.forward:
            if self.together is None:
                total, losses, outputs = self.compute(inputs)
            else:  # as no_sync() does, across two blocks
                last = self.closing or self.n_batches + 1 == self.options.accumulate
                self.together.require_backward_grad_sync = last
                total = self.together(inputs)
                losses, outputs = self.together.module.rest
        if self.on_host or self.options.on_nonfinite != "raise":
            losses = [loss.item() for loss in losses]
        wrong = [i for i, v in enumerate(losses) if isinstance(v, float) and not isfinite(v)]
        if not wrong:
            self._backward(total, len(inputs[0]))
        elif self.options.on_nonfinite != "skip":
            raise NotFiniteError(wrong[0], losses[wrong[0]])
        if self.n_batches and (self.closing or self.n_batches == self.options.accumulate):
            self._move()
        return losses, outputs

    def _backward(self, total: Any, n: int) -> None:
        rows, each = self.sizes or (n, n)
        if not self.n_batches:
            self.first = each or 1.0
            for p in self.params:
                p.grad = None
        weight = rows / self.first  # 1 if all batches have one size
        total = total if weight == 1.0 else total * weight
        self.n_batches, self.rows = self.n_batches + 1, self.rows + each
        (total if self.scaler is None else self.scaler.scale(total)).backward()

    def _move(self) -> None:
        weight = self.rows / self.first
        self._reset()
        if weight not in (0.0, 1.0):
            _divide([p.grad for p in self.params if p.grad is not None], weight)
        if self._clipped():
            for move in self.moves:
                move()
        if self.scaler is not None:
            self.scaler.update()
        for schedule in self.options.schedules:
            schedule.step()

    def _clipped(self) -> bool:
        """Clip gradients and return whether they may be applied."""
        for optimizer, params, limits in zip(self.optimizers, self.owned, self.clips, strict=True):
            if limits is None and self.squares is None:
                continue
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            if self.squares is not None:
                own = [p for p in params if p.grad is not None]
                grads = [p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in own]
                if grads:
                    norms = torch.stack([n.double() for n in _norms(grads)])
                    self.squares.record(own, (norms**2).tolist())
            if limits is None:
                continue
            if not any(limits) and _are_finite(params):
                continue
            norm = float(clip(params, *limits) if any(limits) else _norm(params))
            if self.scaler is None and not isfinite(norm):  # a scaler skips the step itself
                if self.options.on_nonfinite != "skip":
                    raise NotFiniteError(0, norm, "gradient")
                return False
        return True


def _are_finite(params: Sequence[Any]) -> bool:
    """Return whether gradients are known to be finite, by one call of torch.

    It is that of `torch.amp.GradScaler`: here gradients are multiplied by 1, which changes none.
    """
    grads = []
    for p in params:
        grad = p.grad
        if grad is not None:
            if grad.dtype is not torch.float32 or grad.is_sparse or not grad.is_cpu:
                return False
            grads.append(grad)
    if multiply_by_one is None or not grads:
        return False
    found = torch.zeros(())
    multiply_by_one(grads, found, _ONE)
    return not found.item()


_ONE = torch.ones(())
