"""What a Keras model asks for beside being called: losses of its own, masks, training steps."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from modularml.errors import BackendNotSupportedError, LossError

__all__ = [
    "OwnLosses",
    "check_layers",
    "check_model",
    "compiled",
    "has_own_losses",
    "is_half",
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
    """Return a function of a tensor that XLA compiles; masks of its input and output stay.

    `run` returns the output of a model, and a list of other tensors.
    """

    def inside(x: Any, mask: Any) -> Any:
        out, others = run(with_mask(x, mask))
        return out, others, keras_mask(out)

    graph = tf.function(inside, jit_compile=True, autograph=False)

    def call(x: Any) -> tuple[Any, list[Any]]:
        out, others, mask = graph(x, keras_mask(x))
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

    def __call__(self, x: Any) -> Any:
        """Return the outputs of the model."""
        out, added = self.run(x)
        self.added += added
        return out

    def _run(self, x: Any) -> tuple[Any, list[Any]]:
        out, losses = self.module(x), list(self.module.inner.losses)
        return out, losses[: len(losses) - len(regularized(self.module))]

    def total(self) -> Any:
        """Return the sum of what the calls since the last time added."""
        added, self.added = self.added, []
        added += [v.regularizer(v) for v in regularized(self.module) if id(v) not in self.skip]
        return sum((tf.reduce_sum(tf.cast(v, self.dtype)) for v in added), tf.zeros((), self.dtype))


def regularized(module: Any) -> list[Any]:
    """Return the weights that regularizers act on now."""
    return [v for v in module.inner.trainable_weights if v.regularizer is not None]


def has_own_losses(module: Any, dtype: Any) -> bool:
    """Tell whether a model may add to the loss; layers of a user's own class are traced for it."""
    layers = list(module.inner._flatten_layers())
    if regularized(module) or any(getattr(la, "activity_regularizer", None) for la in layers):
        return True
    if all(type(layer).__module__.startswith("keras.") for layer in layers):
        return False
    found: list[Any] = []

    def run(x: Any) -> None:
        for training in (False, True):
            module.inner(x, training=training)
            found.extend(module.inner.losses)

    tf.function(run, autograph=False).get_concrete_function(
        tf.TensorSpec((None, *module.input_shape), dtype)
    )
    return bool(found)


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
        warnings.warn(
            f"node {label!r}: {' and '.join(given)} of the Keras model are not used; training "
            "takes Loss, Optimizer and the metrics of an Evaluation",
            UserWarning,
            stacklevel=2,
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
        if len(values.shape) < len(mask.shape):
            raise LossError(
                f"outputs are masked, shape {tuple(mask.shape)}, and the loss gives values of "
                f"shape {tuple(values.shape)}; do not reduce it (reduction='none')"
            )
        weights = tf.cast(mask, values.dtype)
        share = tf.cast(tf.size(weights), values.dtype) / tf.maximum(tf.reduce_sum(weights), 1)
        weights = weights[(..., *[None] * (len(values.shape) - len(mask.shape)))]
        values = tf.where(weights > 0, values, tf.zeros((), values.dtype)) * weights * share
    return values


def with_mask(tensor: Any, mask: Any) -> Any:
    """Give a tensor a mask, as layers of Keras do."""
    if mask is not None:
        tensor._keras_mask = mask
    return tensor
