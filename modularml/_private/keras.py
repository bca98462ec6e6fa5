"""What Keras and TensorFlow do not make public, and the public ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modularml._optional import require
from modularml._private import PUBLIC_ONLY
from modularml.errors import BackendNotSupportedError

tf = require("tensorflow", purpose="to train Keras models")
keras = require("keras", purpose="to train Keras models")


# -- layers -----------------------------------------------------------------------------------


def all_layers(layer: Any) -> list[Any]:
    """Return a layer and all layers within it, each before those within it."""
    if not PUBLIC_ONLY:
        return list(layer._flatten_layers())
    found, pending = [], [layer]
    known = {id(layer)}
    while pending:
        value = pending.pop()
        if isinstance(value, keras.Layer):
            found.append(value)
            value = list(vars(value).values())
        parts = value.values() if isinstance(value, dict) else value
        for part in [p for p in parts if isinstance(p, keras.Layer | list | tuple | dict)][::-1]:
            if id(part) not in known:
                known.add(id(part))
                pending.append(part)
    return found


def own_weights(layer: Any) -> list[Any]:
    """Return the weights of a layer itself, without those of layers within it."""
    if not PUBLIC_ONLY:
        return [*layer._trainable_variables, *layer._non_trainable_variables]
    others = {id(v) for part in all_layers(layer)[1:] for v in part.weights}
    return [v for v in layer.weights if id(v) not in others]


# -- masks ------------------------------------------------------------------------------------


def mask_of(tensor: Any) -> Any:
    """Return the mask that layers attached to a tensor, shape (n, ...), or None."""
    if not PUBLIC_ONLY:
        return getattr(tensor, "_keras_mask", None)
    seen: list[Any] = []

    class Reader(keras.Layer):  # type: ignore[misc, name-defined]
        supports_masking = True

        def call(self, x: Any, mask: Any = None) -> Any:
            seen.append(mask)
            return x

    if tf.is_tensor(tensor) or isinstance(tensor, keras.KerasTensor):
        Reader(autocast=False)(tensor)
    return seen[0] if seen else None


def with_mask(tensor: Any, mask: Any) -> Any:
    """Attach a mask to a tensor, as Keras layers do."""
    if mask is None:
        return tensor
    if not PUBLIC_ONLY:
        tensor._keras_mask = mask
        return tensor

    class Attached(keras.Layer):  # type: ignore[misc, name-defined]
        supports_masking = True

        def call(self, x: Any) -> Any:
            return tf.identity(x)

        def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
            return mask

    return Attached(autocast=False)(tensor)


# -- optimizers -------------------------------------------------------------------------------


def remember_trained(optimizer: Any, variables: Sequence[Any]) -> None:
    """Note the variables that an optimizer is built for."""
    vars(optimizer)["_modularml_trained"] = list(variables)


def trained_variables(optimizer: Any) -> list[Any]:
    """Return the variables that an optimizer was built for."""
    if not PUBLIC_ONLY:
        return list(optimizer._trainable_variables)
    return list(vars(optimizer)["_modularml_trained"])


def move(variables: Iterable[Any], device: str) -> None:
    """Move variables to a device by reallocating those on another.

    Raises
    ------
    BackendNotSupportedError
        If a variable is elsewhere, as nothing public moves one.
    """
    for v in variables:
        if v.value.device.split(":")[-2:] != device.strip("/").split(":")[-2:]:
            if PUBLIC_ONLY:
                raise BackendNotSupportedError(
                    f"moving the variable {v.path!r} to {device} needs more of Keras than is "
                    "public; unset MODULARML_PUBLIC_ONLY, or build the model on that device"
                )
            with tf.device(device):
                v._value = tf.Variable(v.value, trainable=v.trainable, name=v.name)


def reindex(optimizer: Any) -> None:
    """Let an optimizer find its variables, which it knows by memory, where they are now."""
    if not PUBLIC_ONLY:
        places = {optimizer._var_key(v): i for i, v in enumerate(optimizer._trainable_variables)}
        optimizer._trainable_variables_indices = places


# -- random numbers ---------------------------------------------------------------------------

_SEEDS = ("global_random_seed", "global_seed_generator")


def random_state() -> dict[str, Any] | None:
    """Return the random states of TensorFlow and Keras; None, as nothing public tells them."""
    if PUBLIC_ONLY:
        return None
    context, held = _random_parts()
    seed, drawn = map(held.get_global_attribute, _SEEDS)
    return {
        "seed": context._seed,
        "rng": None if context._seed is None else context._rng.getstate(),
        "keras_seed": seed,
        "keras": None if drawn is None else drawn.state.numpy(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what `random_state` returned."""
    if PUBLIC_ONLY:
        return
    context, held = _random_parts()
    rng = state["rng"]
    if context._seed != state["seed"] or (rng is not None and context._rng.getstate() != rng):
        context._set_global_seed(state["seed"])
        if rng is not None:
            context._rng.setstate(rng)
    drawn = None
    if state["keras"] is not None:
        drawn = keras.random.SeedGenerator(0)
        drawn.state.assign(state["keras"])
    for name, value in zip(_SEEDS, (state["keras_seed"], drawn), strict=True):
        held.set_global_attribute(name, value)


def _random_parts() -> tuple[Any, Any]:
    context = require("tensorflow.python.eager.context").context()
    return context, require("keras.src.backend.common.global_state")
