"""Base classes of torch models."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import Any

import torch

from modularml._private.torch import RESETS
from modularml._registry import Registry
from modularml._typing import Array, Shape
from modularml.backends.layouts import InputShape
from modularml.backends.torch import adapter
from modularml.errors import ConfigError
from modularml.models.base import check_weights
from modularml.models.layered import LayerArguments, LayeredModel


class TorchBaseModel(LayeredModel, torch.nn.Module, ABC):
    """A torch module whose layers are built once its shapes are known.

    A subclass passes its constructor's arguments to ``super().__init__`` and builds its layers in
    `make_layers`; ``forward`` is torch's own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        torch.nn.Module.__init__(self)
        LayeredModel.__init__(self, "torch", **kwargs)
        if isinstance(self, LayerArguments) and "activation" in kwargs:
            activation_layer(kwargs["activation"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copy weights out of memory that torch shares with the sending process."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.device.type == "cpu" and tensor.is_shared():  # type: ignore[no-untyped-call]
                tensor.data = tensor.data.clone()

    def get_weights(self) -> dict[str, Array]:
        """Return weights and buffers by name, as copies.

        Raises
        ------
        ConfigError
            If the state has values other than tensors, as from ``get_extra_state``.
        """
        state = self.state_dict()
        for name, value in state.items():
            if not isinstance(value, torch.Tensor):
                raise ConfigError(
                    f"the state of {self.shown_name} holds {name!r}, a {type(value).__name__}, "
                    "but a state may hold only tensors; make it a buffer (register_buffer), or "
                    "return a tensor from get_extra_state"
                )
        return {name: t.detach().cpu().numpy().copy() for name, t in state.items()}

    def set_weights(self, weights: dict[str, Any]) -> None:
        """Restore weights produced by `get_weights`."""
        state = self.state_dict()
        check_weights(state, weights)
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(adapter.from_numpy(weights[name]))

    def reset_weights(self, seed: int | None = None) -> None:
        """Reinitialize weights in place, layer by layer, as torch does initially.

        Weights with ``requires_grad_(False)`` are unchanged.

        Raises
        ------
        ConfigError
            If a layer with weights has no ``reset_parameters``; nothing is changed then.
        """
        resets: list[Callable[[], Any]] = []  # of each layer, without its sublayers
        for name, module in self.named_modules():
            methods = (getattr(module, m, None) for m in RESETS)
            if (reset := next(filter(callable, methods), None)) is not None:
                resets.append(reset)
            elif weights := [own for own, _ in module.named_parameters(recurse=False)]:
                raise ConfigError(
                    f"layer {name or type(module).__name__!r} has the weights {weights} and no "
                    "method that reinitializes them; define reset_parameters()"
                )
        fixed = [(t, t.clone()) for t in adapter.fixed(self).values()]
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            for reset in resets:
                reset()
        with torch.no_grad():
            for tensor, value in fixed:
                tensor.copy_(value)

    def _probe(self, shape: InputShape) -> Shape:
        """Return the output shape by running two samples of zeros."""
        try:
            out = adapter.call_blank(self, shape, adapter.input_dtypes(self, shape))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise self._misfit(shape, error) from error
        return self._one_row_each(out, is_tensor=isinstance(out, torch.Tensor))

    def _called(self) -> Any:
        return self.module.forward

    def _sketch(self, shape: InputShape, wanted: Shape | None) -> dict[str, Any] | None:
        try:
            with torch.device("meta"):
                twin = self._unbuilt()
                twin._make_untried(shape, wanted)
        except (ConfigError, NotImplementedError, RuntimeError, TypeError):
            return None  # passed as an object, or needs values to be built
        return dict(twin.state_dict())

    __repr__ = torch.nn.Module.__repr__
    __hash__ = torch.nn.Module.__hash__
    __eq__ = object.__eq__


class SequentialModel(TorchBaseModel, ABC):
    """A torch model that is one sequence of layers."""

    layers: torch.nn.Sequential
    reads_several = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(n, *output_shape)`` for ``(n, *input_shape)``."""
        try:
            layers = self.layers
        except AttributeError:
            raise self._no_layers() from None
        out: torch.Tensor = layers(x)
        return out

    forward.calls_its_layers = True  # type: ignore[attr-defined]


def activation_layer(name: str) -> torch.nn.Module:
    """Return an activation by the name of its torch class, in any case.

    Raises
    ------
    UnknownNameError
        If torch has no such activation.
    """
    known = torch.nn.modules.activation
    classes = {n: vars(known)[n] for n in known.__all__ if n in vars(known)}
    kinds = Registry("activation", {**classes, "linear": torch.nn.Identity})
    layer: torch.nn.Module = kinds[name]()
    return layer
