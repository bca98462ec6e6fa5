"""TensorFlow losses equivalent to torch's of the same names.

They are called with outputs and targets, in this order, and return one value per element or
sample unless ``reduction`` is set.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

from modularml._optional import require
from modularml._private.keras import all_layers
from modularml.backends.distribution_outputs import QUANTILES, check_quantiles
from modularml.errors import LossError

tf = require("tensorflow", purpose="to train Keras models")
keras = require("keras", purpose="to train Keras models")

__all__ = ["CLASSES", "copied", "variables_of"]


@dataclass
class _Loss:
    reduction: str = "none"

    def __call__(self, input: Any, target: Any) -> Any:
        wide = target.dtype if target.dtype.is_floating else input.dtype  # if precision is mixed
        return self._reduced(self.values(tf.cast(input, wide), target))

    def values(self, input: Any, target: Any) -> Any:
        raise NotImplementedError

    def _reduced(self, values: Any) -> Any:
        reduce = {"none": tf.identity, "mean": tf.reduce_mean, "sum": tf.reduce_sum}
        return reduce[self.reduction](values)


@dataclass
class MSELoss(_Loss):
    """Squared difference."""

    def values(self, input: Any, target: Any) -> Any:
        return tf.math.squared_difference(input, target)


@dataclass
class L1Loss(_Loss):
    """Absolute difference."""

    def values(self, input: Any, target: Any) -> Any:
        return tf.abs(input - target)


@dataclass
class HuberLoss(_Loss):
    """Half the squared difference, linear beyond `delta`."""

    delta: float = 1.0

    def values(self, input: Any, target: Any) -> Any:
        far = tf.abs(input - target)
        return tf.where(far < self.delta, 0.5 * far**2, self.delta * (far - 0.5 * self.delta))


@dataclass
class SmoothL1Loss(_Loss):
    """`HuberLoss`, divided by its `beta`."""

    beta: float = 1.0

    def values(self, input: Any, target: Any) -> Any:
        return HuberLoss(delta=self.beta).values(input, target) / self.beta


@dataclass
class BCELoss(_Loss):
    """Binary cross-entropy of probabilities; logarithms are at least -100."""

    def values(self, input: Any, target: Any) -> Any:
        return -(target * _log(input) + (1.0 - target) * _log(1.0 - input))


def _log(p: Any) -> Any:
    """Return a logarithm of at least -100; the inner `where` keeps NaN out of the gradient."""
    is_positive = p > 0.0
    return tf.where(
        is_positive, tf.maximum(tf.math.log(tf.where(is_positive, p, 1.0)), -100.0), -100.0
    )


@dataclass
class BCEWithLogitsLoss(_Loss):
    """Binary cross-entropy of logits."""

    pos_weight: Any = None

    def values(self, input: Any, target: Any) -> Any:
        weight = 1.0 if self.pos_weight is None else self.pos_weight
        return tf.nn.weighted_cross_entropy_with_logits(target, input, weight)


@dataclass
class CrossEntropyLoss(_Loss):
    """Cross-entropy of logits, classes on axis 1, with class numbers or probabilities."""

    weight: Any = None
    ignore_index: int = -100
    label_smoothing: float = 0.0

    def values(self, input: Any, target: Any) -> Any:
        return self._of(tf.nn.log_softmax(input, axis=1), target)

    def _of(self, logp: Any, target: Any) -> Any:
        n_classes, not_ignored = logp.shape[1], 1.0
        if target.dtype.is_integer:
            not_ignored = tf.cast(target != self.ignore_index, logp.dtype)
            target = tf.one_hot(target, n_classes, axis=1, dtype=logp.dtype)
        if self.label_smoothing:
            target = target * (1.0 - self.label_smoothing) + self.label_smoothing / n_classes
        if self.weight is not None:
            weight = tf.cast(self.weight, logp.dtype)
            target = target * tf.reshape(weight, (-1, *[1] * (logp.ndim - 2)))
        return -tf.reduce_sum(target * logp, axis=1) * not_ignored


@dataclass
class NLLLoss(CrossEntropyLoss):
    """`CrossEntropyLoss` of log-probabilities."""

    def values(self, input: Any, target: Any) -> Any:
        return self._of(input, target)


@dataclass
class KLDivLoss(_Loss):
    """Elementwise Kullback-Leibler divergence of log-probabilities from probabilities."""

    log_target: bool = False

    def values(self, input: Any, target: Any) -> Any:
        if self.log_target:
            return tf.exp(target) * (target - input)
        return tf.math.xlogy(target, target) - target * input


@dataclass
class PoissonNLLLoss(_Loss):
    """Poisson negative log-likelihood of counts, given the logarithm of their rate."""

    log_input: bool = True
    eps: float = 1e-8

    def values(self, input: Any, target: Any) -> Any:
        if self.log_input:
            return tf.exp(input) - target * input
        return input - target * tf.math.log(input + self.eps)


@dataclass
class SoftMarginLoss(_Loss):
    """Logistic loss of targets -1 and 1."""

    def values(self, input: Any, target: Any) -> Any:
        return tf.math.softplus(-target * input)


@dataclass
class TripletMarginLoss(_Loss):
    """Triplet loss: distance of the positive minus that of the negative, plus `margin`."""

    margin: float = 1.0
    p: float = 2.0
    eps: float = 1e-6

    def __call__(self, anchor: Any, positive: Any, negative: Any) -> Any:  # type: ignore[override]
        near, far = (
            tf.norm(anchor - other + self.eps, ord=self.p, axis=-1)
            for other in (positive, negative)
        )
        return self._reduced(tf.maximum(near - far + self.margin, 0.0))


@dataclass
class CosineEmbeddingLoss(_Loss):
    """1 - cosine for target 1, and the excess of the cosine over `margin` for -1."""

    margin: float = 0.0

    def __call__(self, input1: Any, input2: Any, target: Any) -> Any:  # type: ignore[override]
        cosine = tf.reduce_sum(
            tf.math.l2_normalize(input1, -1) * tf.math.l2_normalize(input2, -1), -1
        )
        apart = tf.maximum(cosine - self.margin, 0.0)
        return self._reduced(tf.where(target > 0, 1.0 - cosine, apart))


@dataclass
class GaussianNLLLoss(_Loss):
    """Gaussian negative log-likelihood; without `var`, outputs are means, then variances."""

    full: bool = False
    eps: float = 1e-6

    def __call__(self, input: Any, target: Any, var: Any = None) -> Any:
        mean = input
        if var is None:
            flat = tf.reshape(input, (tf.shape(input)[0], math.prod(input.shape[1:])))
            mean, var = tf.split(flat, 2, axis=1)
        safe = tf.where(var < 0, tf.constant(math.nan, var.dtype), tf.maximum(var, self.eps))
        values = 0.5 * (tf.math.log(safe) + tf.math.squared_difference(mean, target) / safe)
        return self._reduced(values + 0.5 * math.log(2 * math.pi) if self.full else values)


@dataclass
class PinballLoss(_Loss):
    """Pinball loss of quantiles; outputs are a block of all targets for each quantile."""

    quantiles: Any = QUANTILES

    def __post_init__(self) -> None:
        self.quantiles = check_quantiles(self.quantiles)

    def values(self, input: Any, target: Any) -> Any:
        flat = tf.reshape(input, (tf.shape(input)[0], math.prod(input.shape[1:])))
        parts = []
        blocks = tf.split(flat, len(self.quantiles), axis=1)
        for level, block in zip(self.quantiles, blocks, strict=True):
            above = target - block
            parts.append(tf.maximum(level * above, (level - 1.0) * above))
        return tf.concat(parts, axis=1)


def variables_of(loss: Any) -> dict[str, Any]:
    """Return the variables of a loss, or of a layer used as one, by name.

    Raises
    ------
    LossError
        If there are variables that Keras optimizers cannot update, or that the first call creates.
    """
    variables: dict[str, Any] = {}
    root = loss if isinstance(loss, keras.Layer) else _attributes(loss)
    pending = [("", root)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, keras.Variable):
            n = sum(other.split("#")[0] == name for other in variables)
            variables[f"{name}#{n}" if n else name] = value
        elif isinstance(value, tf.Variable):
            raise LossError(
                f"{_named(loss)} holds the tf.Variable {name!r}, which Keras optimizers cannot "
                "update; use a keras.Variable, or a tensor if it is not trainable"
            )
        elif isinstance(value, keras.Layer):
            for part in all_layers(value):
                if not part.built and type(part).build is not keras.Layer.build:
                    raise LossError(
                        f"{_named(loss)} has the layer {part.name!r}, whose weights are created by "
                        "its first call, too late for the optimizer; build it first: "
                        "layer.build(input_shape)"
                    )
            pending += [(f"{name}.{v.path}".strip("."), v) for v in value.variables]
        elif isinstance(value, list | tuple | dict):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            pending += [(f"{name}.{key}".strip("."), item) for key, item in pairs]
    return dict(sorted(variables.items()))


def copied(value: Any, memo: dict[int, Any]) -> Any:
    """Return a deep copy of a model, layer or loss, with custom classes registered.

    Losses are copied attribute by attribute, as the config recorded by Keras may lack arguments of
    classes without ``get_config``.
    """
    parts = [value, *(_attributes(value).values() if isinstance(value, keras.losses.Loss) else ())]
    layers = [part for v in parts if isinstance(v, keras.Layer) for part in all_layers(v)]
    custom = [type(v) for v in layers if not type(v).__module__.startswith("keras.")]
    with keras.saving.custom_object_scope({cls.__name__: cls for cls in custom}):
        if not isinstance(value, keras.losses.Loss):
            return copy.deepcopy(value, memo)
        copy_of_value = memo[id(value)] = object.__new__(type(value))
        vars(copy_of_value).update(copy.deepcopy(vars(value), memo))
        return copy_of_value


def _attributes(loss: Any) -> dict[str, Any]:
    return {} if isinstance(loss, type) else dict(getattr(loss, "__dict__", {}))


def _named(loss: Any) -> str:
    return f"loss {getattr(loss, 'name', type(loss).__name__)!r}"


CLASSES = {n: c for n, c in globals().items() if n.endswith("Loss") and n[0] != "_"}
