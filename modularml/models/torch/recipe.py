"""A torch module as data: layers by name from a closed list, and nothing that could run code."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch

from modularml._typing import Shape
from modularml.errors import ConfigError

__all__ = ["check_size", "from_recipe", "sketched", "to_recipe"]

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
    """Return a layer, or a sequence of layers, as plain data; weights are no part of it.

    Raises
    ------
    ConfigError
        If it has a layer that is not on the list, that stands in it twice or that somebody has
        changed.
    """
    if len(list(module.named_modules(remove_duplicate=False))) > len(list(module.modules())):
        raise ConfigError("a layer stands in it twice, and a file would make two of it")
    if any(p.dtype.is_floating_point and p.dtype != torch.float32 for p in module.parameters()):
        raise ConfigError("its weights are no float32 numbers")
    recipe = _described(module)
    still = [name for name, p in module.named_parameters() if not p.requires_grad]
    twin = sketched(recipe)
    for (name, mine), theirs in zip(module.named_modules(), twin.modules(), strict=True):
        alike = vars(mine).keys() == vars(theirs).keys() and repr(mine) == repr(theirs)
        if not alike or _is_heard(mine):
            raise ConfigError(f"its layer {name!r} is not as torch makes it")
    return {**recipe, "without_gradient": still} if still else recipe


def from_recipe(recipe: Any) -> torch.nn.Module:
    """Return a new module, with new weights; ConfigError where it is not described as above."""
    if not isinstance(recipe, dict):
        raise ConfigError(f"a dict must describe a torch module, got a {type(recipe).__name__}")
    still = recipe.get("without_gradient", [])
    count = [0]
    module = _made({k: v for k, v in recipe.items() if k != "without_gradient"}, count)
    parameters = dict(module.named_parameters())
    for name in still if isinstance(still, list) else [still]:
        if not isinstance(name, str) or name not in parameters:
            raise ConfigError("without_gradient must name parameters of the module")
        parameters[name].requires_grad_(False)
    return module


def sketched(recipe: Any) -> torch.nn.Module:
    """Return a module that has shapes and no memory, and took no random numbers."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return from_recipe(recipe)


def _described(module: Any) -> dict[str, Any]:
    name = type(module).__name__
    if type(module) is torch.nn.Sequential:
        layers = [[key, _described(layer)] for key, layer in module._modules.items()]
        return {"class_name": name, "layers": layers}
    if name not in _LISTED or type(module) is not getattr(torch.nn, name):
        raise ConfigError(f"its layer of class {name} is not one that a file may describe")
    given = {key: getattr(module, key) for key in _arguments(name)}
    if "bias" in given:
        given["bias"] = given["bias"] is not None and given["bias"] is not False
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}
    return {"class_name": name, "params": plain}


def _made(recipe: Any, count: list[int]) -> torch.nn.Module:
    count[0] += 1
    if not isinstance(recipe, dict) or count[0] > MAX_LAYERS:
        raise ConfigError(f"layers must be at most {MAX_LAYERS} dicts")
    name, keys = recipe.get("class_name"), recipe.keys()
    if name == "Sequential" and keys == {"class_name", "layers"}:
        return _sequence(recipe["layers"], count)
    if not isinstance(name, str) or name not in _LISTED or keys != {"class_name", "params"}:
        raise ConfigError(f"{name!r:.60} is not a layer that a file may describe")
    params = recipe["params"]
    if not isinstance(params, dict) or params.keys() != set(_arguments(name)):
        raise ConfigError(f"params of {name} must hold {list(_arguments(name))}")
    given = {key: _value(value) for key, value in params.items()}
    try:
        made: torch.nn.Module = getattr(torch.nn, name)(**given)
    except Exception as error:
        raise ConfigError(f"a {name} cannot be made from {params!r:.200}: {error}") from error
    return made


def _sequence(layers: Any, count: list[int]) -> torch.nn.Sequential:
    module = torch.nn.Sequential()
    for item in layers if isinstance(layers, list) else [None]:
        key, layer = item if isinstance(item, list) and len(item) == 2 else (None, None)
        named = isinstance(key, str) and (key.isidentifier() or key.isdigit())
        if not named or hasattr(module, str(key)):
            raise ConfigError("layers of a Sequential must be pairs of a new name and a layer")
        module.add_module(str(key), _made(layer, count))
    return module


def check_size(recipe: dict[str, Any], shape: Shape, dtype: Any) -> None:
    """Refuse a module that no sample of a shape fits, or that makes too many numbers of one.

    Raises
    ------
    ConfigError
        If it does. Nothing is computed, and no memory is taken.
    """

    def look(layer: Any, inputs: Any, out: Any) -> None:
        if out.numel() > MAX_OUTPUT:
            raise ConfigError(f"{layer} makes {out.numel():,} numbers of one sample")

    module = sketched(recipe).eval()
    with torch.device("meta"), torch.no_grad():
        for layer in module.modules():
            layer.register_forward_hook(look)
        try:
            module(torch.zeros((1, *shape), dtype=dtype))
        except Exception as error:
            raise ConfigError(f"no sample of shape {shape} fits {module}: {error}") from error


@cache
def _arguments(name: str) -> tuple[str, ...]:
    """Return the arguments of a layer's constructor that it keeps under their own names."""
    inner = {"self", "device", "dtype", "args", "kwargs", "_weight", "_freeze", "init"}
    inner |= {"min_value", "max_value"}  # old names
    found = inspect.signature(getattr(torch.nn, name).__init__).parameters
    return tuple(key for key in found if key not in inner)


def _value(value: Any) -> Any:
    """Return an argument, lists as tuples; anything but small plain data is refused."""
    if isinstance(value, list) and len(value) <= 16:
        return tuple(_value(item) for item in value)
    if value is None or (isinstance(value, str) and value.isidentifier()):
        return value
    if isinstance(value, bool | int | float) and abs(value) < MAX_NUMBER:
        return value
    raise ConfigError(f"an argument of a layer must be a number, name or list, got {value!r:.60}")


def _is_heard(module: Any) -> bool:
    """Tell whether somebody listens to a module, which no file can tell of."""
    return any(vars(module)[key] for key in vars(module) if key.endswith("_hooks"))
