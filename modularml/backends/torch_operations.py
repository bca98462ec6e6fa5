"""Operations on tensors and models of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import product
from typing import Any, ClassVar

import numpy as np

from modularml._optional import require
from modularml._private.torch import bytes_of, for_each, version
from modularml._typing import Array, IntArray, Shape
from modularml.backends.fingerprint import Identity, checksum
from modularml.backends.layouts import InputShape, arranged, is_several, shapes_of
from modularml.backends.tensor_operations import PAD_MODES, ModelOperations, Processes
from modularml.backends.torch_fused_optimizers import direct_forward
from modularml.backends.torch_step import processes
from modularml.errors import LossError, ShapeError

torch = require("torch", purpose="to train torch models")


class TorchOperations(ModelOperations):
    """Operations on tensors and models of torch."""

    # -- tensors ------------------------------------------------------------------------------

    def from_numpy(self, values: Array, *, dtype: Any = None, device: Any = None) -> Any:
        values = np.asarray(values)
        if values.dtype.kind not in "biufc":
            raise ShapeError(
                f"values of dtype {values.dtype} cannot be converted to a torch tensor"
            )
        if values.dtype.kind == "u" and values.dtype.itemsize > 1:
            top = int(values.max(initial=0))
            if top < 2**63:  # torch computes with int64, but only stores uint64
                values = values.astype(np.int64)
        return torch.tensor(np.asarray(values, order="C"), dtype=dtype, device=device)

    def assemble(self, n: int, parts: Iterable[Any]) -> Any:
        whole, at = None, 0
        for part in parts:
            if whole is None:
                whole = part.new_empty((n, *part.shape[1:]))
            whole[at : at + len(part)] = part
            at += len(part)
        return whole

    def to_numpy(self, tensor: Any) -> Array:
        tensor = tensor.detach()
        if tensor.dtype is torch.bfloat16:  # numpy has none
            tensor = tensor.float()
        return tensor.cpu().numpy()  # type: ignore[no-any-return]

    def cast(self, tensor: Any, dtype: Any) -> Any:
        return tensor.to(dtype)

    def zeros(self, shape: Shape, dtype: Any) -> Any:
        return torch.zeros(shape, dtype=dtype)

    def sample_mean(self, values: Any) -> Any:
        if not isinstance(values, torch.Tensor):
            raise LossError(f"a loss must return a tensor, got a {type(values).__name__}")
        return values if values.ndim == 0 else values.mean()

    def loss_dtype(self, kind: str, model: Any) -> Any:
        return torch.int64 if kind == "index" else _float_dtype(model)

    def gather(self, column: Any, rows: IntArray | slice, into: Any = None) -> Any:
        if isinstance(rows, slice):  # copied, as a model may write to its input
            return column[rows].clone() if into is None else into.copy_(column[rows])
        index = torch.from_numpy(rows if rows.flags.writeable else rows.copy())
        return torch.index_select(column, 0, index.to(column.device), out=into)

    def take(self, values: Array, rows: IntArray | slice, into: Any = None) -> Any:
        if isinstance(rows, slice):
            tensor = torch.from_numpy(values[rows].copy())
            return tensor if into is None else into.copy_(tensor)
        if into is None:
            into = torch.from_numpy(np.empty((len(rows), *values.shape[1:]), values.dtype))
        np.take(values, rows, axis=0, out=into.numpy(), mode="clip")  # "raise" would copy
        return into

    def chunks(self, tensor: Any, size: int | list[int]) -> Sequence[Any]:
        pieces: Sequence[Any] = tensor.split(size)
        return pieces

    def row_bytes(self, column: Any) -> int:
        return int(math.prod(column.shape[1:]) * column.itemsize)

    def reshape(self, tensor: Any, shape: Shape) -> Any:
        return tensor.reshape(len(tensor), *shape)

    def swap_axes(self, tensor: Any) -> Any:
        return tensor.transpose(1, 2)

    def concat(self, tensors: Sequence[Any], axis: int) -> Any:
        return torch.cat(tuple(tensors), dim=axis)

    def mean(self, tensors: Sequence[Any]) -> Any:
        return torch.stack(tuple(tensors)).mean(dim=0)

    def pad(self, tensor: Any, widths: Sequence[tuple[int, int]], mode: str, value: float) -> Any:
        """Pad each axis at its end; modes index into the axis, so gradients pass."""
        for axis, (before, after) in enumerate(widths):
            if not before and not after:
                continue
            n = tensor.shape[axis]
            if mode == "constant":
                shape = list(tensor.shape)
                shape[axis] = after
                tensor = torch.cat((tensor, tensor.new_full(shape, value)), dim=axis)
                continue
            places = np.pad(np.arange(n), (before, after), mode=PAD_MODES[mode])
            tensor = tensor.index_select(axis, torch.from_numpy(places).to(tensor.device))
        return tensor

    def detach(self, tensor: Any) -> Any:
        return tensor.detach()

    def to_host(self, tensor: Any) -> Any:
        detached = tensor.detach() if tensor.requires_grad else tensor
        return detached if detached.is_cpu else detached.cpu()

    def floats(self, scalars: Sequence[Any]) -> list[float]:
        if not scalars or not isinstance(scalars[0], torch.Tensor):
            return [float(s) for s in scalars]
        with torch.no_grad():
            values: list[float] = torch.stack(tuple(scalars)).tolist()
        return values

    # -- models -------------------------------------------------------------------------------

    def parameters(self, model: Any) -> dict[str, Any]:
        frozen = {id(p) for p in model.__dict__.get("_modularml_trainable", [])}
        named = model.named_parameters()
        return {name: p for name, p in named if p.requires_grad or id(p) in frozen}

    def all_parameters(self, model: Any) -> dict[str, Any]:
        return dict(model.named_parameters())

    def copies(self, tensors: Sequence[Any]) -> list[Any]:
        return [t.detach().clone() for t in tensors]

    def like(self, tensors: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        values = self.copies(tensors)
        self.assign(values, arrays)
        return values

    estimates_statistics: ClassVar[bool] = True

    def approach(self, averages: Sequence[Any], tensors: Sequence[Any], weight: float) -> None:
        if tensors:
            _lerp(list(averages), [t.detach() for t in tensors], weight)

    def assign(self, tensors: Sequence[Any], values: Sequence[Any]) -> None:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(torch.as_tensor(value))

    def running_statistics(self, model: Any) -> dict[str, Any]:
        return {
            f"{name}.{buffer}": tensor
            for name, layer in model.named_modules()
            if isinstance(layer, _BATCH_NORMS) and layer.running_mean is not None
            for buffer, tensor in layer.named_buffers(recurse=False)
        }

    @contextmanager
    def estimating(self, models: Sequence[Any]) -> Iterator[None]:
        """As `torch.optim.swa_utils.update_bn`: each batch counts equally."""
        layers = [la for m in models for la in m.modules() if isinstance(la, _BATCH_NORMS)]
        momenta = {layer: layer.momentum for layer in layers}
        for layer in momenta:
            layer.reset_running_stats()
            layer.momentum = None
        try:
            yield
        finally:
            for layer, momentum in momenta.items():
                layer.momentum = momentum

    def fixed(self, model: Any) -> dict[str, Any]:
        """Return frozen weights, and buffers of layers whose parameters are all frozen."""
        movable = {id(p) for p in self.parameters(model).values()}
        fixed: dict[str, Any] = {}
        for path, module in model.named_modules():
            parameters = dict(module.named_parameters(recurse=False, remove_duplicate=False))
            frozen = {k: p for k, p in parameters.items() if id(p) not in movable}
            if parameters and len(frozen) == len(parameters):
                frozen |= dict(module.named_buffers(recurse=False, remove_duplicate=False))
            fixed |= {f"{path}.{key}".lstrip("."): t for key, t in frozen.items()}
        return fixed

    def keep_fixed(self, source: Any, target: Any) -> None:
        tensors = {**dict(target.named_parameters()), **dict(target.named_buffers())}
        with torch.no_grad():
            for name, value in self.fixed(source).items():
                if name in tensors and tensors[name].shape == value.shape:
                    tensors[name].copy_(value)
                    tensors[name].requires_grad_(False)

    def shared(self, models: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
        first: dict[int, tuple[str, str]] = {}
        pairs = []
        for label, model in models.items():
            for name, t in (*model.named_parameters(), *model.named_buffers()):
                if (source := first.setdefault(id(t), (label, name)))[0] != label:
                    pairs.append((*source, label, name))
        return pairs

    def tie(self, source: Any, name: str, target: Any, again: str) -> None:
        *path, key = again.split(".")
        owner, weight = target.get_submodule(".".join(path)), source
        for part in name.split("."):
            weight = getattr(weight, part)
        setattr(owner, key, weight)

    def signature(self, model: Any) -> Hashable:
        objects: list[Any] = []
        facts: list[Hashable] = []
        for module in model.modules():
            objects.append(module)
            for named in (module.named_parameters, module.named_buffers):
                for name, t in named(recurse=False, remove_duplicate=False):
                    objects.append(t)
                    facts.append((name, t.shape, t.dtype, t.device, t.requires_grad))
        return Identity(*objects), tuple(facts)

    def weights_version(self, model: Any) -> Hashable:
        """Return checksums of the values, which also detect changes through ``.data``."""
        return tuple(checksum(bytes_of(t)) for t in (*model.parameters(), *model.buffers()))

    def loss_parameters(self, loss: Any) -> dict[str, Any]:
        if not isinstance(loss, torch.nn.Module):
            return {}
        return {name: p for name, p in loss.named_parameters() if p.requires_grad}

    def loss_state(self, loss: Any) -> dict[str, Array]:
        state = loss.state_dict() if isinstance(loss, torch.nn.Module) else {}
        return {name: self.to_numpy(t).copy() for name, t in state.items()}

    def load_loss_state(self, loss: Any, state: Mapping[str, Array]) -> None:
        loss.load_state_dict({name: self.from_numpy(value) for name, value in state.items()})

    def writes_input(self, model: Any) -> bool:
        return _makes_new_tensor(model) is False

    def needs_several_rows(self, model: Any, shape: InputShape) -> bool:
        """Return whether training needs several rows, from shapes alone."""
        if not any(isinstance(module, _BATCH_NORMS) for module in model.modules()):
            return False
        tensors = (*model.named_parameters(), *model.named_buffers())
        meta = {name: torch.empty_like(t, device="meta") for name, t in tensors}
        dtype = self.input_dtype(model)
        single_rows = [torch.empty((1, *s), dtype=dtype, device="meta") for s in shapes_of(shape)]
        by_name = isinstance(shape, Mapping)
        args, kwargs = ((), arranged(single_rows, shape)) if by_name else (tuple(single_rows), {})
        with torch.no_grad(), torch.random.fork_rng(devices=[]), self.modes([(model, True)]):
            try:
                torch.func.functional_call(model, meta, args, kwargs)
            except ValueError as error:
                return "more than 1 value per channel" in str(error)
            except Exception:  # noqa: BLE001 - value errors appear in the step
                return False
        return False

    def versions(self, tensors: Sequence[Any]) -> Any:
        return list(map(version, tensors))

    def count_parameters(self, model: Any) -> tuple[int, int]:
        lazy = torch.nn.parameter.UninitializedParameter
        if any(isinstance(p, lazy) for p in model.parameters()):
            return 0, 0
        return sum(p.numel() for p in model.parameters()), super().count_parameters(model)[1]

    def move(self, model: Any, device: Any) -> None:
        model.to(device)

    def device_of(self, model: Any) -> Any:
        """Return the device of a model's weights; None without weights."""
        return next((p.device for p in model.parameters()), None)

    def to_device(self, tensor: Any, device: Any) -> Any:
        return tensor.to(device, non_blocking=torch.device(device).type == "cuda")

    def upload(self, tensor: Any, device: Any) -> Any:
        return tensor.pin_memory().to(device, non_blocking=True)

    def processes(self, device: Any) -> Processes:
        return processes(device)

    @contextmanager
    def modes(self, models: Sequence[tuple[Any, bool]]) -> Iterator[None]:
        parts = [list(model.modules()) for model, _ in models]
        before = [(part, part.training) for modules in parts for part in modules]
        try:
            for (model, training), modules in zip(models, parts, strict=True):
                if all(map(_is_plain, modules)):
                    _set_modes((part, training) for part in modules)
                else:
                    model.train(training)
            yield
        finally:
            _set_modes(before)

    def set_frozen(self, model: Any, frozen: bool) -> None:
        """Freeze or unfreeze a model's parameters.

        Parameters that the user froze stay frozen when the model is unfrozen.
        """
        if frozen:  # again, if layers were rebuilt
            trainable = [p for p in model.parameters() if p.requires_grad]
            model.__dict__.setdefault("_modularml_trainable", []).extend(trainable)
        else:
            trainable = model.__dict__.pop("_modularml_trainable", [])
        for p in trainable:
            p.requires_grad_(not frozen)
            if frozen:
                p.grad = None

    def input_dtype(
        self, model: Any, shape: Shape | None = None, *, whole: bool = False, category: bool = False
    ) -> Any:
        if model is None or shape is None:
            return _float_dtype(model)
        return self._dtypes_of_several(model, shape, [(whole, category)])[0]

    def _dtypes_of_several(
        self, model: Any, shape: InputShape, kinds: Sequence[tuple[bool, bool]]
    ) -> list[Any]:
        floating, lookups = _float_dtype(model), (torch.nn.Embedding, torch.nn.EmbeddingBag)
        looks_up = any(isinstance(m, lookups) for m in model.modules())
        choices = []
        for whole, category in kinds:
            preferred = (torch.int64, floating) if whole else (floating, torch.int64)
            choices.append(preferred if looks_up or category else (floating,))
        tries = list(product(*choices))
        accepted = (t for t in tries if len(tries) == 1 or self._accepts(model, shape, t))
        return list(next(accepted, tries[0]))

    def call_blank(self, model: Any, shape: InputShape, dtypes: Sequence[Any]) -> Any:
        """Return the outputs of a model for two samples of zeros."""
        device, shapes = self.device_of(model), shapes_of(shape)
        zeros = [
            torch.zeros((2, *shape_of_input), dtype=dtype, device=device)
            for shape_of_input, dtype in zip(shapes, dtypes, strict=True)
        ]
        mask: dict[str, Any] = {}
        if hasattr(model, "example_mask"):
            mask = model.example_mask(partial(torch.ones, dtype=torch.bool, device=device))
        call = partial(torch.nn.Module.__call__, model, **mask)
        with torch.no_grad(), self.modes([(model, False)]):
            if not is_several(shape):
                return call(*zeros)
            return self.spread(call, list(shape) if isinstance(shape, Mapping) else None)(zeros)

    def exact_integers(self, dtype: Any) -> int | None:
        return round(2 / torch.finfo(dtype).eps) if dtype.is_floating_point else None

    def _accepts(self, model: Any, shape: InputShape, dtypes: Sequence[Any]) -> bool:
        """Return whether a model accepts inputs of these dtypes."""
        try:
            self.call_blank(model, shape, dtypes)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return False
        return True

    def no_grad(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = torch.no_grad()
        return context

    def spread(
        self, call: Callable[..., Any], names: Sequence[str] | None
    ) -> Callable[[Sequence[Any]], Any]:
        if names is None:
            return lambda values: call(*values)
        return lambda values: call(**dict(zip(names, values, strict=True)))

    def direct(self, model: Any) -> Callable[[Any], Any]:
        return direct_forward(model)

    def compile(self, model: Any) -> Any:
        """Return a compiled model; on the CPU, where whole steps are compiled, the plain one."""
        device = next((p.device.type for p in model.parameters()), "cpu")
        return self.direct(model) if device == "cpu" else torch.compile(model)


def _is_plain(module: Any) -> bool:
    """Return whether `train` only sets an attribute."""
    cls = type(module)
    overrides = cls.train is not _Module.train or "train" in vars(module)
    return not overrides and cls.__setattr__ is _Module.__setattr__


def _makes_new_tensor(module: Any) -> bool | None:
    """Return whether a module computes a new tensor before any in-place write.

    False for in-place layers and for modules of unknown classes, which may write in place; None for
    those that may return their input.
    """
    cls = type(module)
    if cls is torch.nn.Sequential or getattr(cls.forward, "calls_its_layers", False):
        results = (_makes_new_tensor(layer) for layer in module.children())
        return next((new for new in results if new is not None), None)
    if not cls.__module__.startswith("torch.nn.modules.") or getattr(module, "inplace", False):
        return False
    return None if isinstance(module, _PASS_ON) else True


_PASS_ON = (
    torch.nn.Identity,
    torch.nn.Flatten,
    torch.nn.Unflatten,
    *(torch.nn.Dropout, torch.nn.Dropout1d, torch.nn.Dropout2d, torch.nn.Dropout3d),
    *(torch.nn.AlphaDropout, torch.nn.FeatureAlphaDropout),
)


def _set_modes(modes: Iterable[tuple[Any, bool]]) -> None:
    for module, training in modes:
        if module.training is not training:
            if _is_plain(module):  # skips the slow checks of Module.__setattr__
                object.__setattr__(module, "training", training)
            else:
                module.training = training


_Module = torch.nn.Module
_BATCH_NORMS = (
    *(torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm),
    *(torch.nn.LazyBatchNorm1d, torch.nn.LazyBatchNorm2d, torch.nn.LazyBatchNorm3d),
)
_lerp = for_each("lerp_")


def _float_dtype(model: Any) -> Any:
    """Return the float dtype of a model."""
    for p in [] if model is None else model.parameters():
        if p.is_floating_point():
            return p.dtype
    return torch.get_default_dtype()
