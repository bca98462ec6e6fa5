"""Optimizers of Keras: groups of parameters, schedules of rates, and state by parameter name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from modularml.errors import BackendNotSupportedError

__all__ = [
    "KerasGroups",
    "KerasSchedule",
    "LossScale",
    "load_state",
    "move",
    "parts",
    "scaling",
    "state_of",
]


class LossScale:
    """What losses in fp16 are multiplied by; kept with an optimizer, as torch's ``GradScaler``."""

    def __init__(self) -> None:
        self.scale, self.n_sound = 2.0**16, 0

    @classmethod
    def of(cls, optimizer: Any) -> LossScale:
        """Return that of an optimizer, made at the first time."""
        return vars(optimizer).setdefault("_modularml_scale", cls())  # type: ignore[no-any-return]

    def update(self, *, sound: bool) -> None:
        """Halve it where gradients were not finite; double it where 2000 in a row were."""
        self.n_sound = self.n_sound + 1 if sound else 0
        if not sound:
            self.scale /= 2
        elif self.n_sound % 2000 == 0:
            self.scale *= 2


class KerasGroups:
    """Built optimizers of Keras, each for a group of parameters by name, that step as one."""

    def __init__(self, optimizers: dict[str, Any]) -> None:
        self.optimizers = optimizers

    @property
    def _trainable_variables(self) -> list[Any]:
        return [v for o in self.optimizers.values() for v in o._trainable_variables]

    def apply(self, grads: Sequence[Any], variables: Sequence[Any] | None = None) -> None:
        """Move variables along gradients; all of them, group by group, where none are named."""
        given = self._trainable_variables if variables is None else variables
        pairs = {id(v): (g, v) for g, v in zip(grads, given, strict=True)}
        for optimizer in self.optimizers.values():
            own = [pairs[id(v)] for v in optimizer._trainable_variables if id(v) in pairs]
            if own:
                optimizer.apply(*map(list, zip(*own, strict=True)))


class KerasSchedule:
    """A schedule of Keras that steps when it is called, and not with every optimizer step.

    It is a class of ``LearningRateSchedule``, which starts from the rate of each group where it is
    given none, or a callable that takes an optimizer and returns one.
    """

    def __init__(self, optimizer: Any, schedule: Any, kwargs: Mapping[str, Any]) -> None:
        self.count = 0
        self.rates = [(o, _rate(o, schedule, kwargs)) for o in parts(optimizer).values()]
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
        for optimizer, rate in self.rates:
            optimizer.learning_rate.assign(rate(self.count))


def _rate(optimizer: Any, schedule: Any, kwargs: Mapping[str, Any]) -> Any:
    if "initial_learning_rate" in inspect.signature(schedule).parameters:
        kwargs = {"initial_learning_rate": float(optimizer.learning_rate), **kwargs}
    return schedule(**kwargs) if inspect.isclass(schedule) else schedule(optimizer, **kwargs)


def scaling(optimizers: Sequence[Any]) -> Any:
    """Return what scales a loss before its gradients, for an optimizer that takes it back.

    Raises
    ------
    BackendNotSupportedError
        If there are several optimizers, of which one does so.
    """
    found = [own for optimizer in optimizers for own in parts(optimizer).values()]
    scaled = [
        own
        for own in found
        if isinstance(own, keras.optimizers.LossScaleOptimizer) or own.loss_scale_factor is not None
    ]
    if scaled and len(found) > 1:
        raise BackendNotSupportedError(
            "an optimizer that scales the loss (loss_scale_factor, LossScaleOptimizer) must be the "
            "only one of a step, without groups of parameters; use precision='fp16' instead"
        )
    return scaled[0].scale_loss if scaled else None


def parts(optimizer: Any) -> dict[str, Any]:
    """Return the optimizers of Keras by the name of their group, or one as ``default``."""
    return optimizer.optimizers if isinstance(optimizer, KerasGroups) else {"default": optimizer}


def state_of(optimizer: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``moments`` by parameter name and ``groups`` of hyperparameters, on the host."""
    moments: dict[str, Any] = {}
    groups: list[dict[str, Any]] = []
    for group, own in parts(optimizer).items():
        slots, others = _slots(own, named)
        moments |= {n: {k: v.numpy().copy() for k, v in kept.items()} for n, kept in slots.items()}
        name = {} if group == "default" else {"name": group}
        groups.append({**name, **{k: v.numpy().tolist() for k, v in others.items()}})
    scale = vars(optimizer).get("_modularml_scale")
    held = {} if scale is None else {"scale": dict(vars(scale))}
    return {"moments": moments, "groups": groups, **held}


def load_state(optimizer: Any, named: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Take over what `state_of` returned."""
    stored = {g.get("name", "default"): g for g in state["groups"]}
    if "scale" in state:
        vars(LossScale.of(optimizer)).update(state["scale"])
    for group, own in parts(optimizer).items():
        slots, others = _slots(own, named)
        held = own._trainable_variables  # known by their memory, which a move makes anew
        own._trainable_variables_indices = {own._var_key(v): i for i, v in enumerate(held)}
        for name in slots.keys() & state["moments"].keys():
            move(slots[name].values(), named[name].value.device)
            for slot, value in state["moments"][name].items():
                slots[name][slot].assign(value)
        for name in others.keys() & stored.get(group, {}).keys():
            others[name].assign(stored[group][name])


def move(variables: Iterable[Any], device: str) -> None:
    """Make the memory of variables anew on a device, where it lies on another."""
    for v in variables:
        if v.value.device.split(":")[-2:] != device.strip("/").split(":")[-2:]:
            with tf.device(device):
                v._value = tf.Variable(v.value, trainable=v.trainable, name=v.name)


def _slots(
    optimizer: Any, named: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return an optimizer's variables: by parameter name and slot, and those of no parameter.

    Keras calls a slot by its parameter's path; among parameters of one path, slots come in their
    order.
    """
    names = {id(p): name for name, p in named.items()}
    held: dict[str, list[str]] = {}
    for i, v in enumerate(optimizer._trainable_variables):
        held.setdefault(v.path.replace("/", "_"), []).append(names.get(id(v), f"unnamed{i}"))
    slots: dict[str, dict[str, Any]] = {name: {} for own in held.values() for name in own}
    others: dict[str, Any] = {}
    for i, v in enumerate(optimizer.variables):
        path = max((p for p in held if v.name.startswith(f"{p}_")), key=len, default=None)
        if path is None:
            others[v.name if i < 2 else f"other_{i}"] = v  # the iteration and the rate come first
            continue
        slot = v.name.removeprefix(f"{path}_")
        name = next(n for n in held[path] if slot not in slots[n])
        slots[name][slot] = v
    return {name: own for name, own in slots.items() if own}, others
