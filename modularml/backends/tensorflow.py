"""The adapter for TensorFlow, through Keras."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from modularml._optional import require
from modularml._private.keras import all_layers, mask_of, move, remember_trained
from modularml._typing import Array, IntArray, Shape
from modularml.backends import tensorflow_losses, tensorflow_models, tensorflow_optimizers
from modularml.backends.base import (
    Backend,
    BackendAdapter,
    Compute,
    Step,
    check_moments,
    classes_of,
)
from modularml.backends.fingerprint import Identity, checksum
from modularml.backends.layouts import InputShape
from modularml.backends.step_options import PLAIN, StepOptions
from modularml.backends.tensor_operations import PAD_MODES
from modularml.backends.tensorflow_step import (
    ROWS,
    ExtendedStep,
    PlainStep,
    called,
    clipped,
    in_precision,
)
from modularml.errors import (
    BackendNotSupportedError,
    ConfigError,
    DeviceError,
    LossError,
    ShapeError,
)

tf = require("tensorflow", purpose="to train Keras models")
keras = require("keras", purpose="to train Keras models")

if keras.config.backend() != "tensorflow":
    raise BackendNotSupportedError(
        f"the Keras backend must be tensorflow, got {keras.config.backend()}; set the "
        "environment variable KERAS_BACKEND=tensorflow before Keras is imported"
    )


class TensorflowAdapter(BackendAdapter):
    """Operations that a graph needs from TensorFlow.

    Models are instances of `TensorflowBaseModel`: Keras has no settable training mode, so the model
    stores it and passes it to calls.
    """

    backend: ClassVar[Backend] = Backend.TENSORFLOW
    moved: ClassVar[str] = "variables"

    # -- tensors ------------------------------------------------------------------------------

    def from_numpy(self, values: Array, *, dtype: Any = None, device: Any = None) -> Any:
        values = np.asarray(values)
        if values.dtype.kind not in "biufc":
            raise ShapeError(f"values of dtype {values.dtype} cannot be converted to a tensor")
        array = np.array(values, dtype=None if dtype is None else dtype.as_numpy_dtype, order="C")
        with nullcontext() if device is None else tf.device(device):
            return tf.convert_to_tensor(array)

    def to_numpy(self, tensor: Any) -> Array:
        if tensor.dtype is tf.bfloat16:  # numpy has none
            tensor = tf.cast(tensor, tf.float32)
        out: Array = tensor.numpy()
        return out

    def cast(self, tensor: Any, dtype: Any) -> Any:
        return tf.cast(tensor, dtype)

    def zeros(self, shape: Shape, dtype: Any) -> Any:
        return tf.zeros(shape, dtype or tf.float32)

    def sample_mean(self, values: Any) -> Any:
        if not tf.is_tensor(values):
            raise LossError(f"a loss must return a tensor, got a {type(values).__name__}")
        return tf.reduce_mean(values)

    def check_rows(self, values: Any, like: Any, problem: str) -> None:
        rows = [tf.shape(tensor)[0] for tensor in (values, like)]
        tf.debugging.assert_equal(*rows, message=f"{ROWS}{problem}")

    def loss_dtype(self, kind: str, model: Any) -> Any:
        return tf.int64 if kind == "index" else tensorflow_models.float_dtype(model)

    def gather(self, column: Any, rows: IntArray | slice, into: Any = None) -> Any:
        """Return rows of a tensor in the given order; `into` is ignored."""
        if isinstance(rows, slice):
            return column[rows]
        return tf.gather(column, rows)

    def chunks(self, tensor: Any, size: int | list[int]) -> Sequence[Any]:
        if isinstance(size, int):
            n_full, rest = divmod(len(tensor), size)
            size = [size] * n_full + [rest] * bool(rest)
        pieces: Sequence[Any] = tf.split(tensor, size) if size else []
        return pieces

    def row_bytes(self, column: Any) -> int:
        return int(math.prod(column.shape[1:]) * column.dtype.size)

    def reshape(self, tensor: Any, shape: Shape) -> Any:
        return tf.reshape(tensor, (-1, *shape))

    def swap_axes(self, tensor: Any) -> Any:
        return tf.transpose(tensor, (0, 2, 1))

    def concat(self, tensors: Sequence[Any], axis: int) -> Any:
        return tf.concat(list(tensors), axis)

    def mean(self, tensors: Sequence[Any]) -> Any:
        return tf.add_n(list(tensors)) / len(tensors)

    def pad(self, tensor: Any, widths: Sequence[tuple[int, int]], mode: str, value: float) -> Any:
        """Pad each axis at its end; modes except ``constant`` index into the axis."""
        if mode == "constant":
            return tf.pad(tensor, widths, constant_values=tf.cast(value, tensor.dtype))
        for axis, width in enumerate(widths):
            if any(width):
                places = np.pad(np.arange(tensor.shape[axis]), width, mode=PAD_MODES[mode])
                tensor = tf.gather(tensor, places, axis=axis)
        return tensor

    def detach(self, tensor: Any) -> Any:
        return tf.stop_gradient(tensor)

    def to_host(self, tensor: Any) -> Any:
        if tensor.device.endswith("CPU:0"):
            return tensor
        with tf.device("/CPU:0"):
            return tf.identity(tensor)

    # -- models -------------------------------------------------------------------------------

    def parameters(self, model: Any) -> dict[str, Any]:
        frozen = {id(v) for v in model.frozen_variables}
        return {n: v for n, v in model.variables().items() if v.trainable or id(v) in frozen}

    def all_parameters(self, model: Any) -> dict[str, Any]:
        return dict(model.variables())

    def copies(self, tensors: Sequence[Any]) -> list[Any]:
        return [v.numpy().copy() for v in tensors]

    def approach(self, averages: Sequence[Any], tensors: Sequence[Any], weight: float) -> None:
        for average, v in zip(averages, tensors, strict=True):
            np.add(average, average.dtype.type(weight) * (v.numpy() - average), out=average)

    def assign(self, tensors: Sequence[Any], values: Sequence[Any]) -> None:
        for v, value in zip(tensors, values, strict=True):
            v.assign(value)

    def running_statistics(self, model: Any) -> dict[str, Any]:
        named = model.variables().items()
        return {name: v for name, v in named if v.path.rsplit("/", 1)[-1].startswith("moving_")}

    def fixed(self, model: Any) -> dict[str, Any]:
        """Return the weights of layers that are not trainable."""
        layers = [] if model.inner is None else all_layers(model.inner)
        frozen = {id(v) for layer in layers if not layer.trainable for v in layer.weights}
        return {name: v for name, v in model.variables().items() if id(v) in frozen}

    def keep_fixed(self, source: Any, target: Any) -> None:
        variables = target.variables()
        for name, value in self.fixed(source).items():
            if name in variables and tuple(variables[name].shape) == tuple(value.shape):
                variables[name].assign(value)
                variables[name].trainable = False

    def shared(self, models: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
        """Return the nodes that share a whole model, the only sharing Keras restores."""
        first: dict[int, str] = {}
        built = {label: id(m.inner) for label, m in models.items() if m.inner is not None}
        pairs = [(first.setdefault(model_id, label), label) for label, model_id in built.items()]
        return [(source, "", other, "") for source, other in pairs if source != other]

    def tie(self, source: Any, name: str, target: Any, again: str) -> None:
        target.inner = source.inner
        if target.get_init_args().get("model") is not None:
            target._init_args["model"] = source.inner

    def check_ties(self, models: Mapping[str, Any]) -> None:
        first: dict[int, tuple[str, Any]] = {}
        for label, model in models.items():
            for name, v in model.variables().items():
                other, owner = first.setdefault(id(v), (label, model.inner))
                if owner is not model.inner:
                    raise ConfigError(
                        f"models of nodes {[other, label]} share the weight {name!r}, which files "
                        "and folds would duplicate; make the shared part a separate node, or use "
                        "one model for both nodes. save_checkpoint() still stores the values"
                    )

    def signature(self, model: Any) -> Hashable:
        if model.inner is None:
            return ()
        layers = tuple(map(Identity, all_layers(model.inner)))
        weights = model.variables().items()
        return layers, tuple((n, Identity(v), v.shape, v.dtype, v.trainable) for n, v in weights)

    def copied(self, value: Any, memo: dict[int, Any]) -> Any:
        return tensorflow_losses.copied(value, memo)

    def loss_parameters(self, loss: Any) -> dict[str, Any]:
        return {name: v for name, v in tensorflow_losses.variables_of(loss).items() if v.trainable}

    def loss_state(self, loss: Any) -> dict[str, Array]:
        return {name: v.numpy().copy() for name, v in tensorflow_losses.variables_of(loss).items()}

    def load_loss_state(self, loss: Any, state: Mapping[str, Array]) -> None:
        for name, v in tensorflow_losses.variables_of(loss).items():
            v.assign(state[name])

    def weights_version(self, model: Any) -> Hashable:
        return tuple(checksum(v.numpy()) for v in model.variables().values())

    def move(self, model: Any, device: Any) -> None:
        move(model.variables().values(), device)

    @contextmanager
    def modes(self, models: Sequence[tuple[Any, bool]]) -> Iterator[None]:
        before = [(model, model.training) for model, _ in models]
        for model, training in models:
            model.training = training
        try:
            yield
        finally:
            for model, mode in before:
                model.training = mode

    def set_frozen(self, model: Any, frozen: bool) -> None:
        """Freeze or unfreeze a model's variables.

        Variables that the user froze stay frozen when the model is unfrozen.
        """
        if frozen:  # again, if layers were rebuilt
            trainable = [v for v in model.variables().values() if v.trainable]
            model.frozen_variables.extend(trainable)
        else:
            trainable, model.frozen_variables = model.frozen_variables, []
        for v in trainable:
            v.trainable = not frozen

    def input_dtype(
        self, model: Any, shape: Shape | None = None, *, whole: bool = False, category: bool = False
    ) -> Any:
        inner, floating = (
            None if model is None else model.inner,
            tensorflow_models.float_dtype(model),
        )
        if inner is None or shape is None:
            return floating
        if isinstance(inner, keras.Sequential):
            passing = keras.layers.InputLayer, keras.layers.Flatten, keras.layers.Reshape
            first = next((la for la in inner.layers if not isinstance(la, passing)), None)
            if isinstance(first, keras.layers.Embedding):
                return tf.int64  # Keras would truncate fractions
        if declared := getattr(inner, "inputs", None):
            return tf.as_dtype(declared[0].dtype)
        embeds = any(isinstance(it, keras.layers.Embedding) for it in all_layers(inner))
        return tf.int64 if whole and (category or embeds) else floating

    def _dtypes_of_several(
        self, model: Any, shape: InputShape, kinds: Sequence[tuple[bool, bool]]
    ) -> list[Any]:
        inner, floating = model.inner, tensorflow_models.float_dtype(model)
        if (declared := tensorflow_models.declared_inputs(inner)) is not None:
            names = tensorflow_models.check_names(inner, shape)
            return [tf.as_dtype(declared[name].dtype) for name in names]
        embeds = any(isinstance(it, keras.layers.Embedding) for it in all_layers(inner))
        return [
            tf.int64 if whole and (category or embeds) else floating for whole, category in kinds
        ]

    def exact_integers(self, dtype: Any) -> int | None:
        bits = {tf.bfloat16: 8, tf.float16: 11, tf.float32: 24, tf.float64: 53}.get(dtype)
        return None if bits is None else 2**bits

    # -- training -----------------------------------------------------------------------------

    def losses(self) -> Mapping[str, type]:
        """Return loss classes by name: those equivalent to torch's, then those of Keras."""
        return {**classes_of(keras.losses, keras.losses.Loss), **tensorflow_losses.CLASSES}

    def optimizers(self) -> Mapping[str, type]:
        return classes_of(keras.optimizers, keras.optimizers.Optimizer)

    def make_optimizer(self, cls: Any, parameters: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Create an optimizer; arguments may have torch's names, defaults are Keras'."""
        if parameters and isinstance(parameters[0], dict):
            optimizers = {}
            for group in parameters:
                arguments = {**kwargs, **group}
                name, params = arguments.pop("name", "default"), arguments.pop("params")
                optimizers[name] = self.make_optimizer(cls, params, arguments)
            return tensorflow_optimizers.KerasGroups(optimizers)
        chosen = {_SPELLINGS.get(name, name): value for name, value in kwargs.items()}
        if "betas" in chosen:
            chosen["beta_1"], chosen["beta_2"] = chosen.pop("betas")
        return self.adopt_optimizer(cls(**chosen), parameters)

    def adopt_optimizer(self, optimizer: Any, parameters: Sequence[Any]) -> Any:
        if not optimizer.built:
            optimizer.build(list(parameters))
            remember_trained(optimizer, parameters)
        return optimizer

    def optimizer_step(self, optimizer: Any, grads: Any = None, variables: Any = None) -> None:
        """Update variables once with gradients; by default all of the optimizer."""
        if grads is None:
            raise ValueError("a TensorFlow optimizer needs gradients; pass grads=")
        optimizer.apply(list(grads), None if variables is None else list(variables))

    optimizer_state = staticmethod(tensorflow_optimizers.state_of)

    def load_optimizer_state(
        self, optimizer: Any, named: Mapping[str, Any], state: Mapping[str, Any]
    ) -> None:
        check_moments(state, list(named))
        tensorflow_optimizers.load_state(optimizer, named, state)

    def schedules(self) -> Mapping[str, type]:
        module = keras.optimizers.schedules
        return classes_of(module, module.LearningRateSchedule)

    def make_schedule(self, schedule: Any, optimizer: Any, kwargs: Mapping[str, Any]) -> Any:
        """Create a schedule that steps when called."""
        return tensorflow_optimizers.KerasSchedule(optimizer, schedule, kwargs)

    def learning_rates(self, optimizer: Any) -> dict[str, float]:
        """Return the learning rate of each group of variables; ``default`` for the rest."""
        parts = tensorflow_optimizers.parts(optimizer)
        return {name: float(part.learning_rate) for name, part in parts.items()}

    def set_learning_rates(
        self, optimizer: Any, rates: Sequence[float], *, initial: bool = False
    ) -> None:
        for part, rate in zip(tensorflow_optimizers.parts(optimizer).values(), rates, strict=True):
            part.learning_rate.assign(rate)

    def clip_gradients(
        self, optimizer: Any, grads: Any, norm: float | None, value: float | None
    ) -> Any:
        """Return clipped gradients."""
        return clipped(grads or (), norm, value)[0]

    def compile(self, model: Any) -> Any:
        """Return a model compiled by XLA."""
        run = tensorflow_models.compiled(lambda x: (model(x), []))
        return lambda x: run(x)[0]

    check_model = staticmethod(tensorflow_models.check_model)

    def own_losses(self, models: Sequence[Any], *, compiles: bool) -> list[Any]:
        collectors: list[Any] = []
        before: list[Any] = []  # shared weights are regularized once
        for model in models:
            dtypes = self.input_dtypes(model, model.input_shape)
            own = None
            if tensorflow_models.has_own_losses(model, dtypes):
                own = tensorflow_models.OwnLosses(model, before, compiles=compiles)
            collectors.append(own)
            before = before + tensorflow_models.regularized(model)
        return collectors

    def makes_masks(self, model: Any) -> bool:
        layers = [] if model.inner is None else all_layers(model.inner)
        masking = keras.layers.Masking
        return any(isinstance(la, masking) or getattr(la, "mask_zero", False) for la in layers)

    may_mask: ClassVar[bool] = True

    def mask_of(self, tensor: Any) -> Any:
        return mask_of(tensor)

    def loss_values(self, values: Any, args: Sequence[Any]) -> Any:
        masks = [mask for arg in args if (mask := mask_of(arg)) is not None]
        return tensorflow_models.masked(values, masks) if masks else values

    def joint_weights(self, weights: Any, args: Sequence[Any]) -> Any:
        masks = [mask for arg in args if (mask := mask_of(arg)) is not None]
        return tensorflow_models.joint_weights(weights, masks) if masks else weights

    def options_for(self, options: StepOptions) -> StepOptions:
        half = options.precision == "float32" and any(
            map(tensorflow_models.is_half, options.models)
        )
        return replace(options, scale_loss=True) if half else options

    finish_training = staticmethod(tensorflow_optimizers.finish)

    def train_step(
        self, compute: Compute, optimizers: Sequence[Any], options: StepOptions | None = None
    ) -> Step:
        """Return a function that computes the loss of a batch and updates the weights.

        It is one ``tf.function``, traced once for any number of rows.
        """
        options = options or PLAIN
        if options.precision != "float32":
            compute = in_precision(compute, options)
        scale = tensorflow_optimizers.scaling(optimizers)
        if scale is not None:
            options = replace(options, scale_loss=False)
            if not options.is_plain:
                raise BackendNotSupportedError(
                    "an optimizer that scales the loss (loss_scale_factor, LossScaleOptimizer) "
                    "supports only plain steps: clipping, accumulate, precision and on_nonfinite "
                    "would get scaled gradients; use precision='fp16' with another optimizer"
                )
        if options.precision == "fp16" or not replace(options, precision="float32").is_plain:
            return ExtendedStep(compute, optimizers, options)
        return PlainStep(compute, optimizers, scale, compiles=options.compile)

    def eval_step(self, compute: Compute) -> Step:
        """Return a function that computes losses and outputs, as one ``tf.function``."""
        return called(lambda *inputs: compute(inputs)[1:])

    def check_device(self, device: str) -> Any:
        kind, _, index = device.partition(":")
        name = f"/{'CPU' if kind == 'cpu' else 'GPU'}:{index or 0}"
        have = [d.name.removeprefix("/device:") for d in tf.config.list_logical_devices()]
        if name[1:] not in have:
            raise DeviceError(
                f"device {device!r} is not available; this machine has {', '.join(have)}"
            ).with_code("MML-504")
        return name


_SPELLINGS = {"lr": "learning_rate", "eps": "epsilon", "alpha": "rho"}
"""Keras' names of optimizer arguments, by torch's names."""


adapter = TensorflowAdapter()
