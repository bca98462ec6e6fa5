"""Features of Keras models: losses added by layers, masks and custom steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from modularml._private.keras import all_layers, mask_of, with_mask
from modularml._warning import warn
from modularml.backends.layouts import arranged, shapes_of
from modularml.errors import BackendNotSupportedError, LossError, ShapeError

_STEPS = {
    "train_step": "write a Loss and an AppliedLoss, or train it with modularml.runner",
    "test_step": "write a Loss or a metric of an Evaluation",
    "compute_loss": "write a Loss and an AppliedLoss",
    "predict_step": "write what it does as layers of the model",
}
"""Methods called by Keras' `fit`, `evaluate` and `predict`, and alternatives."""


def compiled(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return an XLA-compiled function of one or several tensors that preserves masks.

    `run` returns the output of a model, and a list of other tensors.
    """

    def inside(x: Any, mask: Any) -> Any:
        out, others = run(tf.nest.map_structure(with_mask, x, mask))
        return out, others, mask_of(out)

    graph = tf.function(inside, jit_compile=True, autograph=False)

    def call(x: Any) -> tuple[Any, list[Any]]:
        out, others, mask = graph(x, tf.nest.map_structure(mask_of, x))
        return with_mask(out, mask), others

    return call


class OwnLosses:
    """Calls a model and collects the losses that it adds in a step.

    These are the values of `add_loss` and activity regularizers in each call, and the regularizers
    of trainable weights once.

    Parameters
    ----------
    module : TensorflowBaseModel
    skip : sequence of variable
        Weights whose regularizers are counted for another model of the step.
    compiles : bool
        Whether XLA compiles the call.
    """

    def __init__(self, module: Any, skip: Sequence[Any], *, compiles: bool) -> None:
        self.module, self.dtype = module, float_dtype(module)
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
        """Return the sum of losses added since the last call of this method."""
        added, self.added = self.added, []
        added += [v.regularizer(v) for v in regularized(self.module) if id(v) not in self.skip]
        return sum((tf.reduce_sum(tf.cast(v, self.dtype)) for v in added), tf.zeros((), self.dtype))


def regularized(module: Any) -> list[Any]:
    """Return the trainable weights with regularizers."""
    return [v for v in module.inner.trainable_weights if v.regularizer is not None]


def has_own_losses(module: Any, dtypes: Sequence[Any]) -> bool:
    """Return whether a model may add losses; custom layers are traced to find out."""
    layers = all_layers(module.inner)
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
    """Return the declared inputs of a functional model, by name; else None."""
    if not hasattr(inner, "operations"):
        return None
    if isinstance(inner.input, dict):
        return dict(inner.input)
    return {tensor.name: tensor for tensor in inner.inputs}


def check_names(inner: Any, inputs: Mapping[str, Any] | Sequence[Any]) -> list[str]:
    """Return the declared name of each input of a functional model.

    Raises
    ------
    ShapeError
        If names or number differ from the declared ones.
    """
    declared = declared_inputs(inner) or {}
    names = list(inputs) if isinstance(inputs, Mapping) else None
    if len(inputs) != len(declared) or (names is not None and set(names) != set(declared)):
        raise ShapeError(
            f"the model declares the inputs {list(declared)}, got {names or len(inputs)}; "
            "pass a reference for each, in this order or by these names: ModelNode(label, model, "
            "{name: reference})"
        )
    return list(declared) if names is None else names


def call(inner: Any, x: Any, **kwargs: Any) -> Any:
    """Call a model with one tensor, a list by position, or a dict by name.

    Inputs of a functional model are reshaped to the declared shape if only axes of length 1 differ.
    """
    if not isinstance(x, list | dict):
        return inner(x, **kwargs)
    if (declared := declared_inputs(inner)) is not None:
        names = check_names(inner, x)
        values = x.values() if isinstance(x, dict) else x
        tensors = {n: _as_declared(v, declared[n]) for n, v in zip(names, values, strict=True)}
        by_name = isinstance(inner.input, dict)
        return inner(tensors if by_name else [tensors[name] for name in declared], **kwargs)
    parameters = [
        n for n in inspect.signature(inner.call).parameters if n not in ("training", "mask")
    ]
    if isinstance(x, list):
        return inner(*x, **kwargs) if len(parameters) >= len(x) else inner(x, **kwargs)
    if set(x) <= set(parameters):
        return inner(**x, **kwargs)
    return inner(x, **kwargs)


def _as_declared(tensor: Any, declared: Any) -> Any:
    shape, declared_shape = tensor.shape[1:], declared.shape[1:]
    same_size = [n for n in shape if n != 1] == [n for n in declared_shape if n != 1]
    if not same_size or None in declared_shape or list(shape) == list(declared_shape):
        return tensor
    if isinstance(tensor, keras.KerasTensor):
        return keras.KerasTensor((None, *declared_shape), tensor.dtype)
    return tf.reshape(tensor, (-1, *declared_shape))


def check_layers(inner: Any) -> None:
    """Refuse stateful layers, as samplers set the order of batches.

    Raises
    ------
    BackendNotSupportedError
        The message names the layer.
    """
    for layer in all_layers(inner):
        if getattr(layer, "stateful", False):
            raise BackendNotSupportedError(
                f"layer {layer.name!r} is stateful, so its state would carry over from one batch "
                "to the next, and from training to evaluation; set stateful=False"
            )


def check_model(model: Any, label: str, *, training: bool, losses: bool) -> None:
    """Refuse custom methods of a model that would not be called, and warn of settings.

    Raises
    ------
    BackendNotSupportedError
        If its class overrides Keras' training, evaluation or prediction step.
    """
    inner = model.inner
    cls = model.get_init_args().get("model_class") if inner is None else type(inner)
    if not inspect.isclass(cls) or not issubclass(cls, keras.Model):
        return
    overridden = [
        *(["train_step"] if training else []),
        *(["test_step", "compute_loss"] if losses else []),
    ]
    for name in overridden or ["predict_step"]:
        if getattr(cls, name) is not getattr(keras.Model, name):
            raise BackendNotSupportedError(
                f"node {label!r}: {cls.__name__} overrides {name}, which is not called here; "
                f"{_STEPS[name]}"
            )
    if not training or inner is None or model.__dict__.get("_told_of_settings"):
        return
    model._told_of_settings = True
    unused = ["the loss, the optimizer and other settings of compile()"] if inner.compiled else []
    names = [m.name for m in inner.metrics if m.name != "loss"]
    if type(inner).compute_metrics is not keras.Model.compute_metrics:
        names.append("compute_metrics")
    unused += [f"the metrics {names}"] if names else []
    if unused:
        warn(
            f"node {label!r}: {' and '.join(unused)} of the Keras model are not used; training "
            "takes Loss, Optimizer and the metrics of an Evaluation"
        )


def is_half(module: Any) -> bool:
    """Return whether a model has the policy mixed_float16, so its loss must be scaled."""
    return any(la.dtype_policy.name == "mixed_float16" for la in all_layers(module.inner))


def float_dtype(model: Any) -> Any:
    """Return the dtype of a model's weights."""
    inner = None if model is None else model.inner
    return tf.as_dtype(keras.config.floatx() if inner is None else inner.variable_dtype)


def masked(values: Any, masks: Sequence[Any]) -> Any:
    """Return values of a loss whose mean ignores masked steps, as in Keras.

    Raises
    ------
    LossError
        If the loss has not one value per step.
    """
    for mask in masks:
        steps = tuple(values.shape)[1 : len(mask.shape)]
        if len(values.shape) < len(mask.shape) or steps != tuple(mask.shape)[1:]:
            raise LossError(
                f"outputs are masked, shape {tuple(mask.shape)}, but the loss returns values of "
                f"shape {tuple(values.shape)}; do not reduce it (reduction='none')"
            )
        weights = tf.cast(mask, values.dtype)
        share = tf.cast(tf.size(weights), values.dtype) / tf.maximum(tf.reduce_sum(weights), 1)
        weights = weights[(..., *[None] * (len(values.shape) - len(mask.shape)))]
        values = tf.where(weights > 0, values, tf.zeros((), values.dtype)) * weights * share
    return values


def joint_weights(weights: Any, masks: Sequence[Any]) -> Any:
    """Return element weights with mean 1 per sample, 0 where a mask is false.

    Raises
    ------
    LossError
        If a mask and the weights differ in steps.
    """
    for mask in masks:
        shape = tuple(mask.shape)[1:]
        if tuple(weights.shape)[1 : len(shape) + 1] != shape:
            raise LossError(
                f"outputs are masked, shape {tuple(mask.shape)}, and targets are padded, shape "
                f"{tuple(weights.shape)}; use the same steps for both"
            )
        mask_weights = tf.cast(mask, weights.dtype)
        weights = weights * mask_weights[(..., *[None] * (len(weights.shape) - len(mask.shape)))]
    sums = tf.reduce_sum(weights, axis=list(range(1, len(weights.shape))), keepdims=True)
    size = tf.cast(tf.size(weights[0]), weights.dtype)
    return weights * size / tf.where(sums > 0, sums, tf.ones((), weights.dtype))
