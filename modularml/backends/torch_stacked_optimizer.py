"""Optimizer steps of several members at once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from modularml._optional import require
from modularml._private.torch import for_each, mark_stepped
from modularml.backends.step_options import NotStackableError
from modularml.backends.torch_fused_optimizers import (
    StackedRun,
    direct_step,
    has_states,
    kernel_of_all,
)

torch = require("torch", purpose="to train torch models")

_multiply, _set_to_zero = for_each("mul_"), for_each("zero_")
_with_products, _add_products = for_each("addcmul"), for_each("addcmul_")


def clip_members(grads: Sequence[Any], norm: float | None, value: float | None) -> Any:
    """Clip gradients of shape (members, ...) in place; return each member's norm before.

    As ``torch.nn.utils.clip_grad_value_`` and then ``clip_grad_norm_`` do for one member.
    """
    if value is not None:
        for grad in grads:
            grad.clamp_(-value, value)
    norms = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
    if norm is not None:
        factor = (norm / (norms + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factor.view(-1, *[1] * (grad.ndim - 1)))
    return norms


class StackedOptimizer:
    """The optimizers of several members for the same weights.

    Neighbours with equal settings are updated by one call of torch's fused kernel. Optimizers
    without one step member by member.

    Parameters
    ----------
    optimizers : sequence of torch.optim.Optimizer
        One per member.
    names : sequence of mapping of int to str
        Names of a member's weights by id.
    stacked : mapping of str to tensor
        Weights of shape (members, ...).
    trained : sequence of str
        Names of the weights that get gradients.

    Attributes
    ----------
    names : list of str
        Names of its weights that get gradients.
    """

    def __init__(
        self,
        optimizers: Sequence[Any],
        names: Sequence[Mapping[int, str]],
        stacked: Mapping[str, Any],
        trained: Sequence[str],
    ) -> None:
        self._optimizers, self._n = list(optimizers), len(optimizers)
        self._params = [
            [[p for p in g["params"] if own.get(id(p)) in trained] for g in optimizer.param_groups]
            for optimizer, own in zip(optimizers, names, strict=True)
        ]
        layouts = [
            [[own[id(p)] for p in params] for params in groups]
            for groups, own in zip(self._params, names, strict=True)
        ]
        if any(layout != layouts[0] for layout in layouts):
            raise NotStackableError("their optimizers differ in parameter groups")
        self._layout = layouts[0]
        self.names = [name for group in self._layout for name in group]
        self._stacked = stacked
        self._kernel = kernel_of_all(self._optimizers)
        self._has_states = any(map(has_states, self._optimizers))
        self._steps_alone = [direct_step(optimizer) for optimizer in self._optimizers]
        self._settings = [list(map(dict, o.param_groups)) for o in self._optimizers]
        self._states: list[dict[str, list[Any]]] = []
        self._runs: list[tuple[int, _Run]] = []

    def adopt(self, live: set[int]) -> None:
        """Stack the states of live members and leave views in their place.

        States do not exist before the first step; they are adopted after it.
        """
        self._states, self._runs = [], []
        if self._kernel is None:
            return
        for index, names in enumerate(self._layout):
            states = [
                [o.state.get(p, {}) for p in params[index]]
                for o, params in zip(self._optimizers, self._params, strict=True)
            ]
            stacked = _stacked_states(states, live, len(names))
            if stacked is None or (names and not stacked and self._has_states):
                self._states = []
                return
            self._states.append(stacked)
        self.read_settings(live)

    def release(self, place: int) -> None:
        """Give a member states of its own."""
        self._settings[place] = list(map(dict, self._optimizers[place].param_groups))
        for stacked, params in zip(self._states, self._params[place], strict=False):
            for p in params:
                state = self._optimizers[place].state.get(p, {})
                state.update({k: v.clone() for k, v in state.items() if k in stacked})

    def read_settings(self, live: set[int]) -> None:
        """Find runs of neighbours with equal settings and numbers of steps."""
        self._runs = []
        for place in live:
            self._settings[place] = list(self._optimizers[place].param_groups)
        for index, states in enumerate(self._states):
            settings = [own[index] for own in self._settings]
            steps = [s.tolist() for s in states.get("step", ())]
            counts = list(zip(*steps, strict=True)) if steps else [()] * self._n
            keys = [_key(own, count) for own, count in zip(settings, counts, strict=True)]
            if None in keys:
                self._runs = []
                return
            starts = [i for i in range(self._n) if i == 0 or keys[i] != keys[i - 1]]
            for a, b in zip(starts, [*starts[1:], self._n], strict=True):
                weights = [self._stacked[name][a:b] for name in self._layout[index]]
                views = {k: [whole[a:b] for whole in wholes] for k, wholes in states.items()}
                run = _Run(slice(a, b), settings[a:b], weights, views, self._kernel)
                self._runs.append((index, run))

    def move(self, grads: Mapping[str, Any], live: set[int]) -> None:
        """Update the weights of live members."""
        if not self._runs:
            for place in sorted(live):
                pairs = [
                    (grads[name][place], p)
                    for names, params in zip(self._layout, self._params[place], strict=True)
                    for name, p in zip(names, params, strict=True)
                ]
                for grad, p in pairs:
                    p.grad = grad
                self._steps_alone[place]()
                for _, p in pairs:
                    p.grad = None
            self.adopt(live)
            return
        own = [[grads[name] for name in names] for names in self._layout]
        whole = slice(0, self._n)
        for index, run in self._runs:
            parts = own[index]
            run.move(parts if run.span == whole else [g[run.span] for g in parts])
        for place in live:
            mark_stepped(self._optimizers[place])


def _key(settings: Mapping[str, Any], counts: Sequence[float]) -> Hashable:
    """Return what members updated by one call have in common; None if the kernel does not apply."""
    if not isinstance(settings["lr"], float | int):
        return None
    skipped = {"params", "name", "initial_lr", "max_lr", "min_lr"}
    if not settings.get("maximize"):
        skipped |= {"lr", "weight_decay"}
    return (*((k, v) for k, v in settings.items() if k not in skipped), *counts)


class _Run:
    """Neighbours that one call of the kernel updates.

    An update is proportional to the learning rate. Where rates or weight decays differ, the kernel
    computes it for a rate of 1 and no decay, and it is scaled by each member's own.
    """

    def __init__(
        self,
        span: slice,
        settings: Sequence[Mapping[str, Any]],
        weights: list[Any],
        states: Mapping[str, list[Any]],
        kernel: Any,
    ) -> None:
        self.span, self._kernel, self._weights = span, kernel, weights
        self._is_decoupled = bool(settings[0].get("decoupled_weight_decay"))
        rates, decays = ([s[name] for s in settings] for name in ("lr", "weight_decay"))
        self._is_scaled = len(set(rates)) > 1 or len(set(decays)) > 1
        hyper, params = dict(settings[0]), weights
        if self._is_scaled:
            hyper |= {"lr": 1.0, "weight_decay": 0.0}
            params = [torch.zeros_like(w) for w in weights]
            keeps = [1 - r * d for r, d in zip(rates, decays, strict=True)]
            self._rates, self._decays, self._keeps = (
                [w.new_tensor(values).view(-1, *[1] * (w.ndim - 1)) for w in weights]
                for values in (rates, decays, keeps)
            )
        self._has_decay = any(decays)
        self._updates = params
        self._run = StackedRun(hyper, params, states)

    def move(self, grads: list[Any]) -> None:
        """Update the weights."""
        if not self._is_scaled:
            self._kernel(self._run, grads)
            self._run.count()
            return
        if self._has_decay and self._is_decoupled:
            _multiply(self._weights, self._keeps)
        elif self._has_decay:
            grads = _with_products(grads, self._weights, self._decays)
        _set_to_zero(self._updates)
        self._kernel(self._run, grads)
        self._run.count()
        _add_products(self._weights, self._updates, self._rates)


def _stacked_states(
    states: Sequence[Sequence[dict[str, Any]]], live: set[int], n_weights: int
) -> dict[str, list[Any]] | None:
    """Stack states of shape (members, weights); None if members have different ones."""
    example = states[min(live)]
    keys = {tuple(k for k, v in s.items() if v is not None) for i in live for s in states[i]}
    if len(keys) > 1:
        return None
    stacked: dict[str, list[Any]] = {}
    for key in next(iter(keys), ()):
        stacked[key] = []
        for j in range(n_weights):
            parts = [own[j] if i in live else example[j] for i, own in enumerate(states)]
            whole = torch.stack([torch.as_tensor(part[key]) for part in parts])
            stacked[key].append(whole)
            for i in live:
                states[i][j][key] = whole[i]
    return stacked
