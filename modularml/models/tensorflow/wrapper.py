"""The wrapper of Keras models, and models as recipes of layers."""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from contextlib import nullcontext
from typing import Any

import keras

from modularml._typing import Shape
from modularml.backends.layouts import InputShape, matching
from modularml.errors import ConfigError
from modularml.models.layered import ModelWrapper
from modularml.models.tensorflow.base import TensorflowBaseModel, by_name

_TENSOR, _TUPLE = (None, "__keras_tensor__"), (None, "__tuple__")
_FUNCTIONAL = ("keras.src.models.functional", "Functional")
_LISTED = {
    "keras": "Sequential DTypePolicy",
    "keras.layers": "InputLayer Dense EinsumDense Embedding Masking Identity Activation ReLU ELU "
    "LeakyReLU PReLU Softmax Conv1D Conv2D Conv3D Conv1DTranspose Conv2DTranspose Conv3DTranspose "
    "SeparableConv1D SeparableConv2D DepthwiseConv1D DepthwiseConv2D MaxPooling1D MaxPooling2D "
    "MaxPooling3D AveragePooling1D AveragePooling2D AveragePooling3D GlobalMaxPooling1D "
    "GlobalMaxPooling2D GlobalMaxPooling3D GlobalAveragePooling1D GlobalAveragePooling2D "
    "GlobalAveragePooling3D LSTM GRU SimpleRNN LSTMCell GRUCell SimpleRNNCell StackedRNNCells RNN "
    "Bidirectional TimeDistributed ConvLSTM1D ConvLSTM2D BatchNormalization LayerNormalization "
    "GroupNormalization UnitNormalization SpectralNormalization RMSNormalization Dropout "
    "SpatialDropout1D SpatialDropout2D SpatialDropout3D AlphaDropout GaussianDropout GaussianNoise "
    "ActivityRegularization MultiHeadAttention GroupQueryAttention Attention AdditiveAttention "
    "Reshape Flatten Permute RepeatVector Cropping1D Cropping2D Cropping3D UpSampling1D "
    "UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D Concatenate Add Subtract "
    "Multiply Average Maximum Minimum Dot Rescaling",
    "keras.initializers": "Zeros Ones Constant Identity GlorotNormal GlorotUniform HeNormal "
    "HeUniform LecunNormal LecunUniform Orthogonal RandomNormal RandomUniform TruncatedNormal "
    "VarianceScaling",
    "keras.regularizers": "L1 L2 L1L2 OrthogonalRegularizer",
    "keras.constraints": "MaxNorm MinMaxNorm NonNeg UnitNorm",
    "keras.src.ops.numpy": "Absolute Add Concatenate Divide Exp Expand ExpandDims GetItem Log "
    "Matmul Max Maximum Mean Min Minimum Multiply Negative Power Prod Reshape Sqrt Square Squeeze "
    "Stack Subtract Sum Tanh Transpose TrueDivide",
    "keras.src.ops.nn": "Elu Gelu LeakyRelu LogSoftmax Relu Sigmoid Silu Softmax Softplus",
}
_ALLOWED: set[tuple[Any, Any]] = {_TENSOR, _TUPLE, _FUNCTIONAL}
_ALLOWED |= {(module, name) for module, names in _LISTED.items() for name in names.split()}
_KEYS = frozenset(
    {"module", "class_name", "config", "registered_name", "build_config", "name"}
    | {"inbound_nodes", "items", "shared_object_id"}
)


def to_recipe(model: Any) -> dict[str, Any]:
    """Return a sequential or functional model as plain data.

    Raises
    ------
    ConfigError
        If it is of another class, or has a layer, function or object not on the list.
    """
    with warnings.catch_warnings(action="ignore"):  # about functions, which are refused below
        tree = keras.saving.serialize_keras_object(model)
    try:
        recipe: dict[str, Any] = json.loads(
            json.dumps(tree),
            object_hook=lambda item: {k: v for k, v in item.items() if k != "compile_config"},
        )
    except TypeError as error:
        raise ConfigError(
            f"the {type(model).__name__} cannot be written as plain data: {error}"
        ) from error
    check_recipe(recipe)
    return recipe


def from_recipe(tree: dict[str, Any]) -> keras.Model:
    """Return a new model, with new weights."""
    check_recipe(tree)
    copied = copy.deepcopy(tree)  # Keras modifies it
    model: keras.Model = keras.saving.deserialize_keras_object(copied, safe_mode=True)
    return model


def check_recipe(tree: Any) -> None:
    """Refuse a description with anything outside the list.

    Raises
    ------
    ConfigError
        If it does.
    """
    if not isinstance(tree, dict) or _name(tree) not in (_FUNCTIONAL, ("keras", "Sequential")):
        raise ConfigError("the data does not describe a sequential or functional Keras model")
    stack: list[Any] = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, dict):
            if "class_name" in item and (_name(item) not in _ALLOWED or not item.keys() <= _KEYS):
                raise ConfigError(
                    f"{item['class_name']!r:.60} of {item.get('module')!r:.60} {_CLOSED}"
                )
            if item.get("registered_name") not in (None, item.get("class_name")):
                raise ConfigError(f"{item['registered_name']!r:.60} {_CLOSED}")
            for key in ("activation", "recurrent_activation"):
                value, known = item.get(key), vars(keras.activations)
                is_name = isinstance(value, str) and value.isidentifier()
                is_object = isinstance(value, dict) and "class_name" in value
                if not (value is None or is_object or (is_name and callable(known.get(value)))):
                    raise ConfigError(f"activation {value!r:.60} {_CLOSED}")
            stack.extend(item.values())


_CLOSED = (
    "is not supported in a file; pass a class that builds the model: "
    "TensorflowModelWrapper(model_class=...)"
)


def _name(item: dict[str, Any]) -> tuple[Any, Any]:
    module, name = item.get("module"), item.get("class_name")
    return (module, name) if isinstance(name, str) else (None, None)


class TensorflowModelWrapper(ModelWrapper, TensorflowBaseModel):  # noqa: D101 - that of what it is
    __doc__ = ModelWrapper.__doc__

    kind, kind_name = keras.Layer, "keras.Model"

    @classmethod
    def _to_recipe(cls, model: Any) -> dict[str, Any]:
        kind = type(model)
        of_keras = kind.__module__.startswith("keras.src.")
        if kind is not keras.Sequential and not (kind.__name__ == "Functional" and of_keras):
            raise ConfigError("it is neither sequential nor functional")
        return to_recipe(model)

    @classmethod
    def _from_recipe(cls, recipe: dict[str, Any], *, sketched: bool = False) -> Any:
        check_recipe(recipe)
        with keras.StatelessScope(initialize_variables=False) if sketched else nullcontext():
            return from_recipe(recipe)

    def _sketch(self, shape: InputShape, wanted: Shape | None) -> dict[str, Any] | None:
        if self._recipe is not None:
            return by_name(self.inner)
        return super()._sketch(shape, wanted)

    def _declared_by_layers(self, shape: Shape) -> Shape | None:
        declared = getattr(self.inner, "inputs", None) or []
        return matching(shape, tuple(declared[0].shape[1:])) if len(declared) == 1 else None

    def make_model(self, input_shape: Shape, output_shape: Shape | None) -> keras.Layer:
        """Return a new model of the class, or the model that was passed."""
        return self._instantiated(input_shape, output_shape)

    def _twin(self) -> Any:
        if self._init_args["model_class"] is not None:
            return super()._twin()
        if isinstance(self.inner, keras.Sequential) or hasattr(self.inner, "operations"):
            return keras.models.clone_model(self.inner)
        # of a custom class: rebuilt from the arguments that Keras recorded
        cls = type(self.inner)
        parameters = inspect.signature(cls).parameters
        try:
            config = self.inner.get_config()
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                config = {k: v for k, v in config.items() if k in parameters}
            return cls.from_config(config)
        except (TypeError, ValueError, NotImplementedError) as error:
            name = cls.__name__
            raise ConfigError(
                f"a {name} that was passed as an object cannot be rebuilt ({error}); pass its "
                f"class: TensorflowModelWrapper(model_class={name}, model_kwargs={{...}})"
            ) from error
