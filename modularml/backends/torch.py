"""The adapter for torch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from modularml._optional import require
from modularml._private.torch import import_dynamo_late, mark_stepped
from modularml.backends.base import (
    Backend,
    BackendAdapter,
    Compute,
    NotFiniteError,
    Step,
    check_moments,
    classes_of,
)
from modularml.backends.distribution_outputs import QUANTILES, check_quantiles
from modularml.backends.step_options import StackMember, StepOptions
from modularml.backends.torch_fused_optimizers import direct_step
from modularml.backends.torch_operations import TorchOperations
from modularml.backends.torch_step import ExtendedStep, clip, scaler_of
from modularml.errors import BackendNotSupportedError, DeviceError

torch = require("torch", purpose="to train torch models")


class GaussianNLLLoss(torch.nn.GaussianNLLLoss):  # type: ignore[misc, name-defined]
    """Gaussian negative log-likelihood; without `var`, outputs are means, then variances."""

    def forward(self, input: Any, target: Any, var: Any = None) -> Any:
        if var is not None:
            return super().forward(input, target, var)
        mean, var = input.flatten(1).chunk(2, dim=1)
        safe = torch.where(var < 0, torch.nan, var.clamp(min=self.eps))
        values = 0.5 * (torch.log(safe) + (mean - target) ** 2 / safe)
        if self.full:
            values = values + 0.5 * math.log(2 * math.pi)
        return _reduced(values, self.reduction)


class PinballLoss(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Pinball loss of quantiles; outputs are a block of all targets for each quantile."""

    def __init__(self, quantiles: Any = QUANTILES, reduction: str = "mean") -> None:
        super().__init__()
        self.quantiles, self.reduction = check_quantiles(quantiles), reduction

    def forward(self, input: Any, target: Any) -> Any:
        blocks = input.flatten(1).chunk(len(self.quantiles), dim=1)
        parts = []
        for level, block in zip(self.quantiles, blocks, strict=True):
            above = target - block
            parts.append(torch.maximum(level * above, (level - 1.0) * above))
        return _reduced(torch.cat(parts, dim=1), self.reduction)


def _reduced(values: Any, reduction: str) -> Any:
    return {"none": lambda v: v, "mean": torch.mean, "sum": torch.sum}[reduction](values)


CLASSES = {"GaussianNLLLoss": GaussianNLLLoss, "PinballLoss": PinballLoss}


class TorchAdapter(TorchOperations, BackendAdapter):
    """Operations that a graph needs from torch."""

    backend: ClassVar[Backend] = Backend.TORCH
    may_reuse_outputs = True
    stacks: ClassVar[bool] = True
    compiles_masks: ClassVar[bool] = True

    def losses(self) -> Mapping[str, type]:
        namespace = vars(torch.nn.modules.loss)
        names = [n for n in namespace if n.endswith("Loss") and not n.startswith("_")]
        return {**{n: namespace[n] for n in names}, **CLASSES}

    def optimizers(self) -> Mapping[str, type]:
        return classes_of(torch.optim, torch.optim.Optimizer)

    def make_optimizer(self, cls: Any, parameters: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Create an optimizer, with the fused kernel by default if torch has one.

        Except for SGD, whose fused form fails if a parameter gets its first gradient late or a
        sparse one; `direct_step` uses the kernel where it is safe.
        """
        _check_closure(cls)
        import_dynamo_late()
        arguments = dict(kwargs)
        parameters_of_class = inspect.signature(cls).parameters
        decided = {"fused", "foreach", "capturable", "differentiable"} & set(arguments)
        free = (
            "fused" in parameters_of_class and not decided and not issubclass(cls, torch.optim.SGD)
        )
        flat = [p for g in parameters for p in (g["params"] if isinstance(g, dict) else [g])]
        if free and all(p.is_floating_point() and not p.is_sparse for p in flat):
            try:
                return cls(list(parameters), **arguments, fused=True)
            except RuntimeError:  # this device or dtype has no fused kernel
                pass
        return cls(list(parameters), **arguments)

    def schedules(self) -> Mapping[str, type]:
        return classes_of(torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler)

    def make_schedule(self, schedule: Any, optimizer: Any, kwargs: Mapping[str, Any]) -> Any:
        return schedule(optimizer, **kwargs)

    def learning_rates(self, optimizer: Any) -> dict[str, float]:
        """Return the learning rate of each group; ``default`` is the first unnamed one."""
        groups = enumerate(optimizer.param_groups)
        names = {i: g.get("name", f"group{i}" if i else "default") for i, g in groups}
        return {names[i]: float(g["lr"]) for i, g in enumerate(optimizer.param_groups)}

    def set_learning_rates(
        self, optimizer: Any, rates: Sequence[float], *, initial: bool = False
    ) -> None:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
            if initial:
                group.pop("initial_lr", None)

    def clip_gradients(
        self, optimizer: Any, grads: Any, norm: float | None, value: float | None
    ) -> Any:
        """Clip the gradients of parameters in place, and return `grads`."""
        clip([p for g in optimizer.param_groups for p in g["params"]], norm, value)
        return grads

    def adopt_optimizer(self, optimizer: Any, parameters: Sequence[Any]) -> Any:
        """Return an optimizer from a factory; torch's already have their parameters."""
        _check_closure(type(optimizer))
        return optimizer

    def optimizer_step(self, optimizer: Any, grads: Any = None, variables: Any = None) -> None:
        """Update parameters once with their gradients."""
        if grads is not None or variables is not None:
            raise BackendNotSupportedError("grads and variables are for TensorFlow optimizers")
        optimizer.step()

    def optimizer_state(self, optimizer: Any, named: Mapping[str, Any]) -> dict[str, Any]:
        raw, names = optimizer.state_dict(), _packed_names(optimizer, named)
        moments = {
            names[i]: {k: self._to_host_value(v) for k, v in values.items()}
            for i, values in raw["state"].items()
        }
        groups = [
            {k: self._to_host_value(v) for k, v in group.items() if k != "params"}
            for group in raw["param_groups"]
        ]
        scaler = getattr(optimizer, "scaler", None)  # of gradients in fp16
        scale = {} if scaler is None else {"scale": scaler.state_dict()}
        return {"moments": moments, "groups": groups, **scale}

    def load_optimizer_state(
        self, optimizer: Any, named: Mapping[str, Any], state: Mapping[str, Any]
    ) -> None:
        raw, names = optimizer.state_dict(), _packed_names(optimizer, named)
        check_moments(state, names)
        raw["state"] = {
            names.index(name): {
                k: self.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in m.items()
            }
            for name, m in state["moments"].items()
        }
        stored = {g.get("name", i): g for i, g in enumerate(state["groups"])}
        for i, group in enumerate(raw["param_groups"]):
            group.update(stored.get(group.get("name", i), {}))
        optimizer.load_state_dict(raw)
        if "scale" in state:
            scaler_of(optimizer).load_state_dict(state["scale"])
        mark_stepped(optimizer)

    def _to_host_value(self, value: Any) -> Any:
        """Return tensors as array copies, and containers unchanged."""
        return self.to_numpy(value).copy() if isinstance(value, torch.Tensor) else value

    def train_step(
        self, compute: Compute, optimizers: Sequence[Any], options: StepOptions | None = None
    ) -> Step:
        if options is not None and options.compile:
            from modularml.backends.torch_compiled import CompiledGradients  # noqa: PLC0415 - rare

            compiled = CompiledGradients(compute, optimizers, options)
            plain = self.train_step(compiled, optimizers, replace(options, compile=False))
            plain.compiled = compiled  # type: ignore[attr-defined]
            return plain
        if options is not None and not options.is_plain:
            return ExtendedStep(compute, optimizers, options)
        params = [p for o in optimizers for g in o.param_groups for p in g["params"]]
        on_host = all(p.device.type == "cpu" for p in params)
        moves = [direct_step(optimizer) for optimizer in optimizers]
        isfinite = math.isfinite

        def step(inputs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
            total, losses, outputs = compute(inputs)
            if on_host:
                losses = [loss.item() for loss in losses]
                for place, value in enumerate(losses):
                    if not isfinite(value):
                        raise NotFiniteError(place, value)
            for p in params:
                p.grad = None
            total.backward()
            for move in moves:
                move()
            return losses, outputs

        return step

    def eval_step(self, compute: Compute) -> Step:

        def step(inputs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
            before = torch.is_grad_enabled()
            torch.set_grad_enabled(False)  # as no_grad(), which costs three times as much
            try:
                _, losses, outputs = compute(inputs)
            finally:
                torch.set_grad_enabled(before)
            return losses, outputs

        return step

    def kind_of(self, models: Sequence[Any]) -> Hashable:
        # parametrized layers have classes of their own
        class_of = torch.nn.utils.parametrize.type_before_parametrizations
        parts = tuple(class_of(part) for model in models for part in model.modules())
        tensors = (t for model in models for t in (*model.parameters(), *model.buffers()))
        return parts, tuple((t.shape, t.dtype, t.device, t.requires_grad) for t in tensors)

    def stack(
        self,
        members: Sequence[StackMember],
        inputs: Sequence[Sequence[Any]],
        random_states: Sequence[Mapping[str, Any]],
    ) -> Any:
        from modularml.backends.torch_stacked import TorchStack  # noqa: PLC0415 - rarely needed

        return TorchStack(members, inputs, random_states)

    def check_device(self, device: str) -> Any:
        name = {"gpu": "cuda"}.get(device.split(":")[0], device.split(":")[0])
        index = device.partition(":")[2]
        have = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        have += ["mps"] if torch.backends.mps.is_available() else []
        if (f"{name}:{index or 0}" if name == "cuda" else name) not in have:
            raise DeviceError(
                f"device {device!r} is not available; this machine has {', '.join(have)}"
            ).with_code("MML-504")
        return torch.device(f"{name}:{index}" if index else name)


def _check_closure(cls: type) -> None:
    closure = inspect.signature(cls.step).parameters.get("closure")  # type: ignore[attr-defined]
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise BackendNotSupportedError(
            f"{cls.__name__} computes the loss several times per step, which is not supported; "
            "use another optimizer"
        )


def _packed_names(optimizer: Any, named: Mapping[str, Any]) -> list[str]:
    """Return parameter names in the order of an optimizer's indices."""
    names = {id(p): name for name, p in named.items()}
    packed = [p for group in optimizer.param_groups for p in group["params"]]
    return [names.get(id(p), f"unnamed{i}") for i, p in enumerate(packed)]


adapter = TorchAdapter()
