"""The wrapper of torch modules, and modules as recipes of layers."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch

from modularml._optional import loaded
from modularml._private.torch import layers_of
from modularml._typing import Shape
from modularml.backends.layouts import InputShape, is_several, matching
from modularml.backends.torch import adapter
from modularml.errors import ConfigError
from modularml.models.layered import ModelWrapper
from modularml.models.torch.base import TorchBaseModel

_NAMES = (
    "Identity Flatten Unflatten Linear Bilinear Embedding Conv1d Conv2d Conv3d ConvTranspose1d "
    "ConvTranspose2d ConvTranspose3d MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d "
    "LPPool1d LPPool2d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d AdaptiveAvgPool1d "
    "AdaptiveAvgPool2d AdaptiveAvgPool3d BatchNorm1d BatchNorm2d BatchNorm3d InstanceNorm1d "
    "InstanceNorm2d InstanceNorm3d GroupNorm LayerNorm RMSNorm LocalResponseNorm Dropout Dropout1d "
    "Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout ELU Hardshrink Hardsigmoid Hardtanh "
    "Hardswish LeakyReLU LogSigmoid PReLU ReLU ReLU6 RReLU SELU CELU GELU Sigmoid SiLU Mish "
    "Softplus Softshrink Softsign Tanh Tanhshrink Threshold GLU Softmin Softmax Softmax2d "
    "LogSoftmax PixelShuffle PixelUnshuffle ChannelShuffle ZeroPad1d ZeroPad2d ZeroPad3d "
    "ConstantPad1d ConstantPad2d ConstantPad3d ReflectionPad1d ReflectionPad2d ReplicationPad1d "
    "ReplicationPad2d Upsample"
)
_LISTED = frozenset(_NAMES.split())
MAX_LAYERS, MAX_NUMBER, MAX_OUTPUT = 4096, 2**24, 2**28


def to_recipe(module: Any) -> dict[str, Any]:
    """Return a layer, or a sequence of layers, as plain data without weights.

    Raises
    ------
    ConfigError
        If it has a layer that is not on the list, occurs twice or was modified.
    """
    if len(list(module.named_modules(remove_duplicate=False))) > len(list(module.modules())):
        raise ConfigError("a layer occurs in it twice, which a file would load as two layers")
    if any(p.dtype.is_floating_point and p.dtype != torch.float32 for p in module.parameters()):
        raise ConfigError("its weights are not float32")
    recipe = _described(module)
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    twin = on_meta_device(recipe)
    for (name, layer), fresh in zip(module.named_modules(), twin.modules(), strict=True):
        alike = vars(layer).keys() == vars(fresh).keys() and repr(layer) == repr(fresh)
        hooks = (value for key, value in vars(layer).items() if key.endswith("_hooks"))
        if not alike or any(hooks):  # which a file cannot store
            raise ConfigError(f"its layer {name!r} was modified after construction")
    return {**recipe, "without_gradient": frozen} if frozen else recipe


def from_recipe(recipe: Any) -> torch.nn.Module:
    """Return a new module with new weights; ConfigError for an invalid description."""
    if not isinstance(recipe, dict):
        raise ConfigError(
            f"a torch module must be described by a dict, got a {type(recipe).__name__}"
        )
    frozen = recipe.get("without_gradient", [])
    count = [0]
    module = _built({k: v for k, v in recipe.items() if k != "without_gradient"}, count)
    parameters = dict(module.named_parameters())
    for name in frozen if isinstance(frozen, list) else [frozen]:
        if not isinstance(name, str) or name not in parameters:
            raise ConfigError("without_gradient must name parameters of the module")
        parameters[name].requires_grad_(False)
    return module


def on_meta_device(recipe: Any) -> torch.nn.Module:
    """Return a module on the meta device, without drawing random numbers."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return from_recipe(recipe)


def _described(module: Any) -> dict[str, Any]:
    name = type(module).__name__
    if type(module) is torch.nn.Sequential:
        layers = [[key, _described(layer)] for key, layer in layers_of(module).items()]
        return {"class_name": name, "layers": layers}
    if name not in _LISTED or type(module) is not getattr(torch.nn, name):
        raise ConfigError(f"its layer of class {name} is not supported in a file")
    arguments = {key: getattr(module, key) for key in _arguments(name)}
    if "bias" in arguments:
        arguments["bias"] = arguments["bias"] is not None and arguments["bias"] is not False
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}
    return {"class_name": name, "params": plain}


def _built(recipe: Any, count: list[int]) -> torch.nn.Module:
    count[0] += 1
    if not isinstance(recipe, dict) or count[0] > MAX_LAYERS:
        raise ConfigError(f"layers must be at most {MAX_LAYERS} dicts")
    name, keys = recipe.get("class_name"), recipe.keys()
    if name == "Sequential" and keys == {"class_name", "layers"}:
        sequence, layers = torch.nn.Sequential(), recipe["layers"]
        for item in layers if isinstance(layers, list) else [None]:
            key, layer = item if isinstance(item, list) and len(item) == 2 else (None, None)
            has_name = isinstance(key, str) and (key.isidentifier() or key.isdigit())
            if not has_name or hasattr(sequence, str(key)):
                raise ConfigError("layers of a Sequential must be pairs of a new name and a layer")
            sequence.add_module(str(key), _built(layer, count))
        return sequence
    if not isinstance(name, str) or name not in _LISTED or keys != {"class_name", "params"}:
        raise ConfigError(f"{name!r:.60} is not a layer supported in a file")
    params = recipe["params"]
    if not isinstance(params, dict) or params.keys() != set(_arguments(name)):
        raise ConfigError(f"params of {name} must hold {list(_arguments(name))}")
    arguments = {key: _value(value) for key, value in params.items()}
    try:
        module: torch.nn.Module = getattr(torch.nn, name)(**arguments)
    except Exception as error:
        raise ConfigError(f"a {name} cannot be built from {params!r:.200}: {error}") from error
    return module


def check_size(recipe: dict[str, Any], shape: Shape, dtype: Any) -> None:
    """Refuse a module that rejects samples of a shape, or has outputs too large.

    Raises
    ------
    ConfigError
        If so. Nothing is computed and no memory is allocated.
    """

    def check_output(layer: Any, inputs: Any, out: Any) -> None:
        if out.numel() > MAX_OUTPUT:
            raise ConfigError(
                f"{layer} returns {out.numel():,} values for one sample; a model from a file may "
                f"return at most {MAX_OUTPUT:,}"
            )

    module = on_meta_device(recipe).eval()
    with torch.device("meta"), torch.no_grad():
        for layer in module.modules():
            layer.register_forward_hook(check_output)
        try:
            module(torch.zeros((1, *shape), dtype=dtype))
        except Exception as error:
            raise ConfigError(
                f"{module} does not accept samples of shape {shape}: {error}"
            ) from error


@cache
def _arguments(name: str) -> tuple[str, ...]:
    """Return the constructor arguments that a layer stores under the same names."""
    excluded = {"self", "device", "dtype", "args", "kwargs", "_weight", "_freeze", "init"}
    excluded |= {"min_value", "max_value"}  # old names
    parameters = inspect.signature(getattr(torch.nn, name).__init__).parameters
    return tuple(key for key in parameters if key not in excluded)


def _value(value: Any) -> Any:
    """Return an argument, with lists as tuples; refuse anything but small plain data."""
    if isinstance(value, list) and len(value) <= 16:
        return tuple(_value(item) for item in value)
    if value is None or (isinstance(value, str) and value.isidentifier()):
        return value
    if isinstance(value, bool | int | float) and abs(value) < MAX_NUMBER:
        return value
    raise ConfigError(f"an argument of a layer must be a number, name or list, got {value!r:.60}")


def declared_shape(module: Any, shape: Shape) -> Shape | None:
    """Return the shape in which the first layer of a chain reads samples of `shape`.

    Returns
    -------
    tuple of int or None
        None if the module is no chain of layers, or its first layer allows several shapes.
    """
    layers = torch.nn
    while type(module) is layers.Sequential and len(module):
        module = module[0]
    if type(module) is layers.Linear:
        return matching(shape, (module.in_features,))
    for rank, kind in enumerate((layers.Conv1d, layers.Conv2d, layers.Conv3d), 1):
        if type(module) is kind:
            return matching(shape, (module.in_channels, *[None] * rank))
    if type(module) is layers.TransformerEncoder and len(module.layers):
        module = module.layers[0]
    if type(module) is layers.TransformerEncoderLayer and module.self_attn.batch_first:
        return _steps(shape, module.self_attn.embed_dim)
    if isinstance(module, layers.RNNBase) and module.batch_first:
        return _steps(shape, module.input_size)
    return None


def _steps(shape: Shape, width: int) -> Shape | None:
    """Return the shape (time, width) of steps; None if samples have none of this width."""
    if len(shape) == 2 and shape[1] != width and shape[0] == width:
        return shape[::-1]
    return matching(shape, (None, width))


class TorchModelWrapper(ModelWrapper, TorchBaseModel):  # noqa: D101 - that of what it is
    __doc__ = f"""{ModelWrapper.__doc__}
    Examples
    --------
    >>> wrapped = TorchModelWrapper(model=torch.nn.Linear(4, 2))
    >>> wrapped.build(input_shape=(4,))
    >>> wrapped.output_shape
    (2,)
    """

    kind, kind_name = torch.nn.Module, "torch.nn.Module"

    @classmethod
    def _to_recipe(cls, model: Any) -> dict[str, Any]:
        return to_recipe(model)

    @classmethod
    def _from_recipe(cls, recipe: dict[str, Any], *, sketched: bool = False) -> Any:
        return on_meta_device(recipe) if sketched else from_recipe(recipe)

    def _sketch(self, shape: InputShape, wanted: Shape | None) -> dict[str, Any] | None:
        if self._recipe is not None:
            if is_several(shape):
                raise ConfigError(
                    f"samples of several inputs {shape} are not supported for a model described "
                    "by its layers; pass its class (model_class=)"
                )
            check_size(self._recipe, shape, adapter.input_dtype(self, shape))
        return super()._sketch(shape, wanted)

    def _declared_by_layers(self, shape: Shape) -> Shape | None:
        return None if self.inner is None else declared_shape(self.inner, shape)

    @property
    def module(self) -> Any:
        """The wrapped module, which is called directly unless one of its outputs is picked."""
        own = self.inner is None or _is_keras(self.inner) or self._init_args["output"] is not None
        return self if own else self.inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapped module; Keras on torch does not see torch's mode, so it is passed."""
        if _is_keras(self.inner):
            kwargs.setdefault("training", self.training)
        return self._picked(self.inner(*args, **kwargs))


def _is_keras(model: Any) -> bool:
    keras = loaded("keras")
    return keras is not None and isinstance(model, keras.Layer)
