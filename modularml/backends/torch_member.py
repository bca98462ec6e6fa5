"""The models of one of several members that are trained as one, and its own step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from modularml._optional import require
from modularml._private.torch import global_hooks, has_weight_hooks, hooks_of
from modularml.backends.stacking import NotStackableError, StackMember
from modularml.backends.torch_attributes import Attributes, Buffers, StepState
from modularml.backends.torch_tracing import Dropouts

torch = require("torch", purpose="to train torch models")

__all__ = ["MemberModels", "OwnStep", "state_for"]


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
