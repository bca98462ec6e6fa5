"""What a Keras model asks for beside being called: losses of its own, masks, training steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from modularml._warning import warn
from modularml.backends.input_shapes import arranged, shapes_of
from modularml.errors import BackendNotSupportedError, LossError, ShapeError

__all__ = [
    "OwnLosses",
    "call",
    "check_layers",
    "check_model",
    "check_names",
    "compiled",
    "declared_inputs",
    "has_own_losses",
    "is_half",
    "joint_weights",
    "keras_mask",
    "masked",
    "regularized",
    "with_mask",
]

_STEPS = {
    "train_step": "write a Loss and an AppliedLoss, or train it with modularml.runner",
    "test_step": "write a Loss or a metric of an Evaluation",
    "compute_loss": "write a Loss and an AppliedLoss",
    "predict_step": "write what it does as layers of the model",
}
"""Methods that `fit`, `evaluate` and `predict` of Keras call, and what to do instead."""


def compiled(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of a tensor, or of several, that XLA compiles; masks on these stay.

    `run` returns the output of a model, and a list of other tensors.
    """

    def inside(x: Any, mask: Any) -> Any:
        out, others = run(tf.nest.map_structure(with_mask, x, mask))
        return out, others, keras_mask(out)

    graph = tf.function(inside, jit_compile=True, autograph=False)

    def call(x: Any) -> tuple[Any, list[Any]]:
        out, others, mask = graph(x, tf.nest.map_structure(keras_mask, x))
        return with_mask(out, mask), others

    return call


class OwnLosses:
    """Calls a model and collects what it adds to the loss in a step.

    That is what `add_loss` and activity regularizers gave in each call, and the regularizers of
    trainable weights once.

    Parameters
    ----------
    module : TensorflowBaseModel
    dtype : tf.DType
        Of the total.
    skip : sequence of variable
        Weights whose regularizers another model of the step counts.
    compiles : bool
        Whether XLA compiles the call.
    """

    def __init__(self, module: Any, dtype: Any, skip: Sequence[Any], *, compiles: bool) -> None:
        self.module, self.dtype = module, dtype
        self.skip = {id(v) for v in skip}
        self.added: list[Any] = []
        self.run = compiled(self._run) if compiles else self._run

    def __call__(self, x: Any, **kwargs: Any) -> Any:
        """Return the outputs of the model."""
        out, added = self.run(x, **kwargs)
        self.added += added
        return out

    def _run(self, x: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        out, losses = self.module(x, **kwargs), list(self.module.inner.losses)
        return out, losses[: len(losses) - len(regularized(self.module))]

    def total(self) -> Any:
        """Return the sum of what the calls since the last time added."""
        added, self.added = self.added, []
        added += [v.regularizer(v) for v in regularized(self.module) if id(v) not in self.skip]
        return sum((tf.reduce_sum(tf.cast(v, self.dtype)) for v in added), tf.zeros((), self.dtype))


def regularized(module: Any) -> list[Any]:
    """Return the weights that regularizers act on now."""
    return [v for v in module.inner.trainable_weights if v.regularizer is not None]


def has_own_losses(module: Any, dtypes: Sequence[Any]) -> bool:
    """Tell whether a model may add to the loss; layers of a user's own class are traced for it."""
    layers = list(module.inner._flatten_layers())
    if regularized(module) or any(getattr(la, "activity_regularizer", None) for la in layers):
        return True
    if all(type(layer).__module__.startswith("keras.") for layer in layers):
        return False
    found: list[Any] = []

    def run(x: Any) -> None:
        n = tf.shape(tf.nest.flatten(x)[0])[0]
        mask = module.example_mask(lambda shape: tf.ones((n, *shape[1:]), tf.bool))
        for training in (False, True):
            call(module.inner, x, training=training, **mask)
            found.extend(module.inner.losses)

    shape = module.input_shape
    specs = [tf.TensorSpec((None, *s), d) for s, d in zip(shapes_of(shape), dtypes, strict=True)]
    tf.function(run, autograph=False).get_concrete_function(arranged(specs, shape))
    return bool(found)


def declared_inputs(inner: Any) -> dict[str, Any] | None:
    """Return the inputs that a functional model declares, by name; None for other models."""
    struct = getattr(inner, "_inputs_struct", None)
    if struct is None:
        return None
    if isinstance(struct, dict):
        return struct
    return {tensor.name: tensor for tensor in inner.inputs}


def check_names(inner: Any, given: Mapping[str, Any] | Sequence[Any]) -> list[str]:
    """Return the name that a functional model declares for each of several inputs.

    Raises
    ------
    ShapeError
        If it declares others, or another number of them.
    """
    declared = declared_inputs(inner) or {}
    names = list(given) if isinstance(given, Mapping) else None
    if len(given) != len(declared) or (names is not None and set(names) != set(declared)):
        raise ShapeError(
            f"the model declares the inputs {list(declared)}, got {names or len(given)}; "
            "give a reference for each, in this order or by these names: ModelNode(label, model, "
            "{name: reference})"
        )
    return list(declared) if names is None else names


def call(inner: Any, x: Any, **kwargs: Any) -> Any:
    """Call a model with one tensor, a list of several in their order, or a dict by name.

    Inputs of a functional model get the shapes that it declares where axes of length 1 differ.
    """
    if not isinstance(x, list | dict):
        return inner(x, **kwargs)
    if (declared := declared_inputs(inner)) is not None:
        names = check_names(inner, x)
        values = x.values() if isinstance(x, dict) else x
        own = {n: _as_declared(v, declared[n]) for n, v in zip(names, values, strict=True)}
        by_name = isinstance(inner._inputs_struct, dict)
        return inner(own if by_name else [own[name] for name in declared], **kwargs)
    takes = [n for n in inspect.signature(inner.call).parameters if n not in ("training", "mask")]
    if isinstance(x, list):
        return inner(*x, **kwargs) if len(takes) >= len(x) else inner(x, **kwargs)
    if set(x) <= set(takes):
        return inner(**x, **kwargs)
    return inner(x, **kwargs)


def _as_declared(tensor: Any, declared: Any) -> Any:
    shape, wanted = tensor.shape[1:], declared.shape[1:]
    alike = [n for n in shape if n != 1] == [n for n in wanted if n != 1]
    if not alike or None in wanted or list(shape) == list(wanted):
        return tensor
    if isinstance(tensor, keras.KerasTensor):
        return keras.KerasTensor((None, *wanted), tensor.dtype)
    return tf.reshape(tensor, (-1, *wanted))


def check_layers(inner: Any) -> None:
    """Refuse layers that remember one batch in the next: batches come in an order of samplers.

    Raises
    ------
    BackendNotSupportedError
        The layer is named.
    """
    for layer in inner._flatten_layers():
        if getattr(layer, "stateful", False):
            raise BackendNotSupportedError(
                f"layer {layer.name!r} is stateful, and its state would pass from the rows of one "
                "batch to those of the next, from training to evaluation; make it with "
                "stateful=False"
            )


def check_model(module: Any, label: str, *, training: bool, losses: bool) -> None:
    """Refuse methods of a model that would be passed over, and tell of settings that are.

    Raises
    ------
    BackendNotSupportedError
        If its class overrides what Keras trains, evaluates or predicts with.
    """
    inner = module.inner
    cls = module.get_init_args().get("model_class") if inner is None else type(inner)
    if not inspect.isclass(cls) or not issubclass(cls, keras.Model):
        return
    asked = [
        *(["train_step"] if training else []),
        *(["test_step", "compute_loss"] if losses else []),
    ]
    for name in asked or ["predict_step"]:
        if getattr(cls, name) is not getattr(keras.Model, name):
            raise BackendNotSupportedError(
                f"node {label!r}: {cls.__name__} has a {name} of its own, which is not "
                f"called here; {_STEPS[name]}"
            )
    if not training or inner is None or module.__dict__.get("_told_of_settings"):
        return
    module._told_of_settings = True
    given = ["the loss, the optimizer and other settings of compile()"] if inner.compiled else []
    names = [m.name for m in inner.metrics if m.name != "loss"]
    if type(inner).compute_metrics is not keras.Model.compute_metrics:
        names.append("compute_metrics")
    given += [f"the metrics {names}"] if names else []
    if given:
        warn(
            f"node {label!r}: {' and '.join(given)} of the Keras model are not used; training "
            "takes Loss, Optimizer and the metrics of an Evaluation"
        )


def is_half(module: Any) -> bool:
    """Tell whether a model computes in float16 by its own policy, so that Keras scales its loss."""
    return any(la.dtype_policy.name == "mixed_float16" for la in module.inner._flatten_layers())


def keras_mask(tensor: Any) -> Any:
    """Return the mask that the layers of a model gave a tensor, shape (n, ...); None for none."""
    return getattr(tensor, "_keras_mask", None)


def masked(values: Any, masks: Sequence[Any]) -> Any:
    """Return values of a loss whose mean is over what masks leave of it, as Keras reduces it.

    Raises
    ------
    LossError
        If the loss has no value for each step.
    """
    for mask in masks:
        steps = tuple(values.shape)[1 : len(mask.shape)]
        if len(values.shape) < len(mask.shape) or steps != tuple(mask.shape)[1:]:
            raise LossError(
                f"outputs are masked, shape {tuple(mask.shape)}, and the loss gives values of "
                f"shape {tuple(values.shape)}; do not reduce it (reduction='none')"
            )
        weights = tf.cast(mask, values.dtype)
        share = tf.cast(tf.size(weights), values.dtype) / tf.maximum(tf.reduce_sum(weights), 1)
        weights = weights[(..., *[None] * (len(values.shape) - len(mask.shape)))]
        values = tf.where(weights > 0, values, tf.zeros((), values.dtype)) * weights * share
    return values


def joint_weights(weights: Any, masks: Sequence[Any]) -> Any:
    """Return weights of elements, of mean 1 in each sample, that are 0 where a mask is false too.

    Raises
    ------
    LossError
        If a mask has other steps than the weights.
    """
    for mask in masks:
        shape = tuple(mask.shape)[1:]
        if tuple(weights.shape)[1 : len(shape) + 1] != shape:
            raise LossError(
                f"outputs are masked, shape {tuple(mask.shape)}, and targets are padded, shape "
                f"{tuple(weights.shape)}; give both the same steps"
            )
        own = tf.cast(mask, weights.dtype)
        weights = weights * own[(..., *[None] * (len(weights.shape) - len(mask.shape)))]
    sums = tf.reduce_sum(weights, axis=list(range(1, len(weights.shape))), keepdims=True)
    size = tf.cast(tf.size(weights[0]), weights.dtype)
    return weights * size / tf.where(sums > 0, sums, tf.ones((), weights.dtype))


def with_mask(tensor: Any, mask: Any) -> Any:
    """Give a tensor a mask, as layers of Keras do."""
    if mask is not None:
        tensor._keras_mask = mask
    return tensor
