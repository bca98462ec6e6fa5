"""Keras optimizers: parameter groups, schedules, and state by parameter name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from modularml._private.keras import move, reindex, trained_variables
from modularml.errors import BackendNotSupportedError


class LossScale:
    """Loss scale for fp16, stored with an optimizer, as torch's ``GradScaler``."""

    def __init__(self) -> None:
        self.scale, self.n_sound = 2.0**16, 0

    @classmethod
    def of(cls, optimizer: Any) -> LossScale:
        """Return the loss scale of an optimizer, created on first use."""
        return vars(optimizer).setdefault("_modularml_scale", cls())  # type: ignore[no-any-return]

    def update(self, *, sound: bool) -> None:
        """Halve it if gradients were not finite; double it after 2000 finite steps."""
        self.n_sound = self.n_sound + 1 if sound else 0
        if not sound:
            self.scale /= 2
        elif self.n_sound % 2000 == 0:
            self.scale *= 2


class KerasGroups:
    """Built Keras optimizers, one per named parameter group, that step together."""

    def __init__(self, optimizers: dict[str, Any]) -> None:
        self.optimizers = optimizers

    def apply(self, grads: Sequence[Any], variables: Sequence[Any] | None = None) -> None:
        """Update variables with gradients; by default all of them, group by group."""
        all_variables = trained(self) if variables is None else variables
        pairs = {id(v): (g, v) for g, v in zip(grads, all_variables, strict=True)}
        for optimizer in self.optimizers.values():
            pairs_of_group = [pairs[id(v)] for v in trained_variables(optimizer) if id(v) in pairs]
            if pairs_of_group:
                optimizer.apply(*map(list, zip(*pairs_of_group, strict=True)))


class KerasSchedule:
    """A Keras schedule that steps when called, not with every optimizer step.

    It is a class of ``LearningRateSchedule``, which by default starts from the rate of each group,
    or a callable that takes an optimizer and returns a schedule.
    """

    def __init__(self, optimizer: Any, schedule: Any, kwargs: Mapping[str, Any]) -> None:
        self.count, self.rates = 0, list[tuple[Any, Any]]()
        takes_rate = "initial_learning_rate" in inspect.signature(schedule).parameters
        for part in parts(optimizer).values():
            rate = {"initial_learning_rate": float(part.learning_rate)} if takes_rate else {}
            own = () if inspect.isclass(schedule) else (part,)
            self.rates.append((part, schedule(*own, **{**rate, **kwargs})))
        self._set()

    def step(self) -> None:
        """Step by one epoch or batch."""
        self.count += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps."""
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the number of steps."""
        self.count = state["count"]
        self._set()

    def _set(self) -> None:
        for optimizer, rate in self.rates:
            optimizer.learning_rate.assign(rate(self.count))


def scaling(optimizers: Sequence[Any]) -> Any:
    """Return the loss scaling of an optimizer that unscales gradients itself.

    Raises
    ------
    BackendNotSupportedError
        If there are several optimizers, one of them with loss scaling.
    """
    optimizers_of_groups = [
        optimizer_of_group
        for optimizer in optimizers
        for optimizer_of_group in parts(optimizer).values()
    ]
    scaled = [
        optimizer_of_group
        for optimizer_of_group in optimizers_of_groups
        if isinstance(optimizer_of_group, keras.optimizers.LossScaleOptimizer)
        or optimizer_of_group.loss_scale_factor is not None
    ]
    if scaled and len(optimizers_of_groups) > 1:
        raise BackendNotSupportedError(
            "an optimizer that scales the loss (loss_scale_factor, LossScaleOptimizer) must be the "
            "only one of a step, without groups of parameters; use precision='fp16' instead"
        )
    return scaled[0].scale_loss if scaled else None


def parts(optimizer: Any) -> dict[str, Any]:
    """Return the Keras optimizers by group name, or one as ``default``."""
    return optimizer.optimizers if isinstance(optimizer, KerasGroups) else {"default": optimizer}


def trained(optimizer: Any) -> list[Any]:
    """Return the variables that an optimizer updates."""
    return [v for part in parts(optimizer).values() for v in trained_variables(part)]


def state_of(optimizer: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``moments`` by parameter name and ``groups`` of hyperparameters, on the host."""
    moments: dict[str, Any] = {}
    groups: list[dict[str, Any]] = []
    for group, part in parts(optimizer).items():
        slots, others = _slots(part, named)
        moments |= {
            n: {k: v.numpy().copy() for k, v in slot_values.items()}
            for n, slot_values in slots.items()
        }
        name = {} if group == "default" else {"name": group}
        groups.append({**name, **{k: v.numpy().tolist() for k, v in others.items()}})
    scale = vars(optimizer).get("_modularml_scale")
    scale_state = {} if scale is None else {"scale": dict(vars(scale))}
    return {"moments": moments, "groups": groups, **scale_state}


def load_state(optimizer: Any, named: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Restore what `state_of` returned."""
    stored = {g.get("name", "default"): g for g in state["groups"]}
    if "scale" in state:
        vars(LossScale.of(optimizer)).update(state["scale"])
    for group, part in parts(optimizer).items():
        slots, others = _slots(part, named)
        reindex(part)  # by memory, which moving reallocates
        for name in slots.keys() & state["moments"].keys():
            move(slots[name].values(), named[name].value.device)
            for slot, value in state["moments"][name].items():
                slots[name][slot].assign(value)
        for name in others.keys() & stored.get(group, {}).keys():
            others[name].assign(stored[group][name])


def finish(optimizer: Any) -> None:
    """Run an optimizer's final update, such as applying weight averages."""
    for part in parts(optimizer).values():
        fixed = [(v, v.numpy()) for v in trained(part) if not v.trainable]
        part.finalize_variable_values(trained(part))
        for variable, value in fixed:
            variable.assign(value)


def _slots(
    optimizer: Any, named: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return an optimizer's variables by parameter name and slot, and all others.

    Keras names a slot after its parameter's path; slots of parameters with equal paths are in the
    order of these.
    """
    names = {id(p): name for name, p in named.items()}
    names_by_path: dict[str, list[str]] = {}
    for i, v in enumerate(trained_variables(optimizer)):
        names_by_path.setdefault(v.path.replace("/", "_"), []).append(
            names.get(id(v), f"unnamed{i}")
        )
    slots: dict[str, dict[str, Any]] = {
        name: {} for values in names_by_path.values() for name in values
    }
    others: dict[str, Any] = {}
    for i, v in enumerate(optimizer.variables):
        path = max((p for p in names_by_path if v.name.startswith(f"{p}_")), key=len, default=None)
        if path is None:
            others[v.name if i < 2 else f"other_{i}"] = v  # the iteration and the rate come first
            continue
        slot = v.name.removeprefix(f"{path}_")
        name = next(n for n in names_by_path[path] if slot not in slots[n])
        slots[name][slot] = v
    return {name: values for name, values in slots.items() if values}, others
