"""The models of one of several members that are trained as one, and its own step."""

from __future__ import annotations

import copy
import functools
import random
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from modularml._optional import require
from modularml._private.torch import bytes_of, global_hooks, has_weight_hooks, hooks_of, version
from modularml.backends.step_options import NotStackableError, StackMember
from modularml.backends.torch_tracing import Dropouts

torch = require("torch", purpose="to train torch models")


_SKIPPED = {
    *(name for name in vars(torch.nn.Module()) if name != "training"),
    *(name for name in vars(torch.nn.RNN(1, 1, device="meta")) if name.startswith("_flat")),
    *("learned_from", "_init_args"),  # of models of this package; not read by a step
}
_BY_IDENTITY = (
    torch.nn.Module,
    torch.nn.Parameter,
    FunctionType,
    BuiltinFunctionType,
    ModuleType,
    type,
    weakref.ref,
)


@dataclass(frozen=True)
class Buffers:
    """The buffers of a loss, which count as its attributes."""

    module: Any


class Attributes:
    """The attributes of layers and losses as they are now.

    They can be compared with later ones, and restored.

    Parameters
    ----------
    owners : sequence
        Layers, and losses: modules, their `Buffers`, other objects, or functions, whose attributes
        are the variables that they enclose.

    Raises
    ------
    NotStackableError
        If an attribute cannot be compared.
    """

    def __init__(self, owners: Sequence[Any]) -> None:
        self._owners = list(owners)
        self._copies: dict[tuple[int, str], Any] = {}
        self._values: list[dict[str, Any]] = []
        for owner in self._owners:
            values: dict[str, Any] = {}
            for name, value in _attributes(owner).items():
                values[name], copied = _compared(owner, name, value)
                self._copies.setdefault((id(owner), name), copied)
            self._values.append(values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attributes) and self._values == other._values

    __hash__ = None  # type: ignore[assignment]

    def restore(self) -> None:
        """Set attributes back that have changed."""
        for owner, values in zip(self._owners, self._values, strict=True):
            now = _attributes(owner)
            for name, value in values.items():
                try:
                    same = name in now and bool(_compared(owner, name, now[name])[0] == value)
                except NotStackableError:
                    same = False
                if not same:
                    _set(owner, name, self._copies[id(owner), name])
            for name in set(now) - set(values):
                if isinstance(owner, Buffers):
                    setattr(owner.module, name, None)
                else:
                    getattr(_bound(owner), "__dict__", {}).pop(name, None)


class StepState:
    """What a step may change besides torch's random states, so that it can be restored.

    Parameters
    ----------
    models : torch.nn.Module
        All models as one.
    owners : sequence
        See `Attributes`.
    """

    def __init__(self, models: Any, owners: Sequence[Any]) -> None:
        self._owners, self._attributes = owners, Attributes(owners)
        self._parameters = [(p, p.grad, version(p)) for p in models.parameters()]
        self._buffers = [(part, _attributes(Buffers(part))) for part in models.modules()]
        self._values = [(t, t.detach().clone()) for t in (*models.buffers(), *models.parameters())]
        self._random = _drawn_from()

    def change(self) -> str | None:
        """Return what has changed that a trace of the step would not repeat; None if nothing."""
        if any(version(p) != before for p, _, before in self._parameters):
            return "a model changes its weights in the forward pass"
        for part, own in self._buffers:
            now = _attributes(Buffers(part))
            if any(now.get(name) is not tensor for name, tensor in own.items()):
                return (
                    f"a {type(part).__name__} replaces a buffer in the forward pass; write into it "
                    "instead, with copy_()"
                )
        (_, *own_python), (_, *own_numpy) = _drawn_from()
        (_, *python), (_, *numpy) = self._random
        if own_python != python or own_numpy != numpy:
            return "a model or loss draws from Python's or numpy's random generator"
        if self._attributes != Attributes(self._owners):
            return "a model or loss changes its own attributes in each step"
        return None

    def restore(self) -> None:
        """Set all back."""
        (python, *_), (numpy, *_) = self._random
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 - as models may use
        self._attributes.restore()
        for part, own in self._buffers:
            for name, buffer in own.items():
                setattr(part, name, buffer)
        for tensor, before in self._values:
            tensor.data.copy_(before)
        for p, gradient, _ in self._parameters:
            p.grad = gradient


def _drawn_from() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return states of the generators of Python and numpy, each also as it can be compared."""
    python = random.getstate()
    numpy: Any = np.random.get_state()  # noqa: NPY002 - as models may use
    return (python, python), (numpy, numpy[1].tobytes(), numpy[2:])


def differences(one: Sequence[Any], other: Sequence[Any]) -> list[tuple[str, Any, Any]]:
    """Return name and both values of attributes in which two members differ.

    Layers, functions and classes count as equal if they have the same name.
    """
    found = []
    for a, b in zip(one, other, strict=True):
        values, others = _attributes(a), _attributes(b)
        for name in sorted(set(values) | set(others)):
            x, y = (
                _compared(owner, name, v, by_name=True)[0]
                for owner, v in ((a, values.get(name)), (b, others.get(name)))
            )
            if x != y:
                found.append((f"{type(a).__name__}.{name}", values.get(name), others.get(name)))
    return found


def _is_plain(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _attributes(owner: Any) -> dict[str, Any]:
    """Return attributes of an object, variables that a function encloses, or buffers."""
    if isinstance(owner, Buffers):
        return dict(owner.module.named_buffers(recurse=False, remove_duplicate=False))
    if isinstance(owner, torch.nn.Module):
        return {k: v for k, v in vars(owner).items() if k not in _SKIPPED}
    if isinstance(owner, functools.partial):
        return {"args": owner.args, "keywords": owner.keywords, **_attributes(owner.func)}
    if isinstance(owner, MethodType):
        return _attributes(owner.__self__)
    if isinstance(owner, FunctionType):
        names = owner.__code__.co_freevars
        cells = zip(names, owner.__closure__ or (), strict=True)
        return {name: cell.cell_contents for name, cell in cells}
    return dict(getattr(owner, "__dict__", ()))


def _bound(owner: Any) -> Any:
    while isinstance(owner, MethodType | functools.partial):
        owner = owner.__self__ if isinstance(owner, MethodType) else owner.func
    return owner


def _set(owner: Any, name: str, value: Any) -> None:
    own = _bound(owner)
    if isinstance(own, FunctionType):
        if name in own.__code__.co_freevars:
            cell = (own.__closure__ or ())[own.__code__.co_freevars.index(name)]
            cell.cell_contents = value
    elif isinstance(own, Buffers):
        setattr(own.module, name, value)
    else:
        getattr(own, "__dict__", {})[name] = value


def _compared(owner: Any, name: str, value: Any, by_name: bool = False) -> tuple[Any, Any]:
    """Return what an attribute is compared by, and a copy of it."""
    if _is_plain(value):
        return value, value
    memo: dict[int, Any] = {}
    try:
        return _contents(value, memo, by_name), copy.deepcopy(value, memo)
    except Exception as error:
        raise NotStackableError(
            f"attribute {name!r} of a {type(owner).__name__} cannot be compared between steps"
        ) from error


def _contents(value: Any, memo: dict[int, Any], by_name: bool) -> Any:
    """Return a value as tuples of numbers and texts: tensors by contents, layers by identity.

    `memo` is that of `copy.deepcopy`: layers and functions are shared, tensors are copied.
    """
    if _is_plain(value):
        return value
    if id(value) in memo:  # seen before, perhaps within itself
        return "again", type(value).__qualname__
    if isinstance(value, _BY_IDENTITY):
        memo[id(value)] = value
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return "object", name if by_name else id(value)
    if isinstance(value, torch.Tensor):
        memo[id(value)] = value.detach().clone()
        facts = str(value.dtype), tuple(value.shape), str(value.device)
        return "tensor", *facts, bytes_of(value).tobytes()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return "array", str(value.dtype), value.shape, value.tobytes()
    return _parts(value, memo, by_name)


def _parts(value: Any, memo: dict[int, Any], by_name: bool) -> Any:
    """Return the contents of a container or of another object."""
    kind = type(value).__qualname__
    if isinstance(value, dict):
        items = (
            (_contents(k, memo, by_name), _contents(v, memo, by_name)) for k, v in value.items()
        )
        return kind, *items, *_attributes_of(value, memo, by_name)
    if isinstance(value, list | tuple | deque | np.ndarray):
        return kind, *(_contents(v, memo, by_name) for v in value)
    if isinstance(value, set | frozenset):
        return kind, *sorted(map(repr, value))
    if isinstance(value, np.random.Generator):
        return kind, _contents(value.bit_generator.state, memo, by_name)
    if isinstance(value, torch.Generator):
        return kind, value.get_state().numpy().tobytes()
    if isinstance(value, _VALUES):
        return kind, repr(value)
    if not hasattr(value, "__dict__"):
        raise TypeError(f"a {kind} has contents that are not known")
    return kind, *_attributes_of(value, memo, by_name)


def _attributes_of(value: Any, memo: dict[int, Any], by_name: bool) -> list[Any]:
    return [(k, _contents(v, memo, by_name)) for k, v in getattr(value, "__dict__", {}).items()]


_VALUES = (
    *(bytes, complex, range, slice, np.generic, np.dtype, Enum, PurePath),
    *(torch.dtype, torch.device, torch.Size),
)
"""Classes whose objects are compared by what they print."""


class MemberModels(torch.nn.Module):  # type: ignore[misc, name-defined]
    """All models of a member as one module that computes its losses."""

    def __init__(self, member: StackMember) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(member.models)
        self.member = member

    def forward(self, inputs: Sequence[Any]) -> Any:
        """Return the total loss, each loss and each output."""
        return self.member.compute(inputs)

    def tensors(self) -> dict[str, Any]:
        """Return parameters and buffers, each once."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def owners(self) -> list[Any]:
        """Return layers and losses, whose attributes a trace fixes."""
        held = [*self.parts.modules()]
        for loss in self.member.losses:
            layers = [*loss.modules()] if isinstance(loss, torch.nn.Module) else []
            held += [*layers, *map(Buffers, layers)] or [loss]
        return held

    def attributes(self) -> Attributes:
        """Return what a trace fixes, as it is now."""
        self.check()
        return Attributes(self.owners())

    def check(self) -> None:
        """Refuse models that do more in a step than a trace repeats."""
        if any(global_hooks()):
            raise NotStackableError("all modules of torch have hooks")
        modules = (owner for owner in self.owners() if isinstance(owner, torch.nn.Module))
        for part in modules:
            if any(hooks_of(part)):
                raise NotStackableError(f"a {type(part).__name__} has hooks")
        if any(map(has_weight_hooks, self.parameters())):
            raise NotStackableError("a weight has hooks")

    def losses_and_gradients(self, inputs: Sequence[Any], state: Mapping[str, Any]) -> OwnStep:
        """Compute a batch as an ordinary step does; weights and statistics stay."""
        parameters = dict(self.named_parameters())
        device = inputs[0].device
        with self.unchanged(), torch.random.fork_rng([] if device.type == "cpu" else [device]):
            generator = torch.default_generator
            if device.type != "cpu":
                generator = torch.cuda.default_generators[device.index or 0]
            generator.set_state(state_for(generator, state))
            for p in parameters.values():
                p.grad = None
            with torch.enable_grad(), Dropouts() as dropouts:
                total, losses, _ = self(inputs)
            total.backward()
            found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        moved_by = [g for o in self.member.optimizers for g in o.param_groups]
        owned = {id(p) for group in moved_by for p in group["params"] if p.requires_grad}
        if owned - {id(p) for p in parameters.values()}:
            raise NotStackableError("a loss has weights, or a node is trained but does not run")
        moved = {name: g for name, g in found.items() if id(parameters[name]) in owned}
        return OwnStep([loss.item() for loss in losses], moved, dropouts.seen)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Restore all that a step may change after a block; refuse what a trace cannot repeat."""
        self.check()
        before = StepState(self.parts, self.owners())
        try:
            yield
            reason = before.change()
        finally:
            before.restore()
        if reason is not None:
            raise NotStackableError(reason)


class OwnStep:
    """Losses and gradients of a member's own step, and its dropouts: shape and rate."""

    def __init__(
        self, losses: list[float], gradients: dict[str, Any], dropouts: list[tuple[Any, float]]
    ) -> None:
        self.losses, self.gradients, self.dropouts = losses, gradients, dropouts
        if any(g.is_sparse for g in gradients.values()):
            raise NotStackableError("gradients are sparse")


def state_for(generator: Any, state: Mapping[str, Any]) -> Any:
    """Return the part of random states that is for a generator's device."""
    states = state["torch"]
    device = generator.device
    kept = states["cpu"] if device.type == "cpu" else states["cuda"][device.index or 0]
    return torch.from_numpy(kept)


def agree(own: Sequence[Any], wanted: Sequence[Any], *, together: bool = False) -> bool:
    """Return whether tensors are equal to rounding, that of each or of the largest of all."""
    scales = list(map(_scale, wanted))
    largest = max(scales, default=0.0)
    for a, b, scale in zip(own, wanted, scales, strict=True):
        limit = 1e-3 * scale + 2e-6 * largest if together else 1e-4 * scale
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if not torch.allclose(a, b, rtol=0.0, atol=limit + 1e-7, equal_nan=True):
            return False
    return True


def _scale(tensor: Any) -> float:
    """Return the largest magnitude among the values that are finite."""
    finite = tensor[torch.isfinite(tensor)]
    return float(finite.to(torch.float64).abs().max()) if finite.numel() else 0.0
