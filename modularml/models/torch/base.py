"""Base of torch models: shapes first, layers when they are known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from modularml._registry import Registry
from modularml._typing import Array, Shape
from modularml.backends.torch import adapter
from modularml.errors import ConfigError, ShapeError
from modularml.models.base import BaseModel, check_shape, check_weights

__all__ = ["TorchBaseModel", "activation_layer"]


class TorchBaseModel(BaseModel, torch.nn.Module, ABC):
    """A torch module whose layers are made once its shapes are known.

    A subclass gives its constructor's arguments to ``super().__init__`` and makes its layers in
    `make_layers`; ``forward`` is torch's own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        torch.nn.Module.__init__(self)
        BaseModel.__init__(self, "torch", **kwargs)
        self._input_shape = _optional_shape("input_shape", kwargs.get("input_shape"))
        self._output_shape = _optional_shape("output_shape", kwargs.get("output_shape"))
        self._explicit_output = self._output_shape is not None

    @abstractmethod
    def make_layers(self, input_shape: Shape, output_shape: Shape | None) -> None:
        """Make the layers as attributes of this module."""

    @property
    def input_shape(self) -> Shape | None:
        """Shape of one sample going in; None while it is not known."""
        return self._input_shape

    @property
    def output_shape(self) -> Shape | None:
        """Shape of one sample coming out; None while it is not known."""
        return self._output_shape

    def build(
        self,
        input_shape: Shape | None = None,
        output_shape: Shape | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Make the layers; see `BaseModel.build`."""
        if self._built and not force:
            self._check_fits(input_shape)
            return
        given = self._init_args.get("input_shape")
        shape = input_shape if input_shape is not None else given or self._input_shape
        if shape is None:
            raise ShapeError(f"{type(self).__name__} needs input_shape to be built")
        shape = check_shape("input_shape", shape)
        if given is not None and check_shape("input_shape", given) != shape:
            raise ShapeError(
                f"{type(self).__name__} was made for input_shape {tuple(given)}, got {shape}"
            )
        wanted = self._output_shape if self._explicit_output else output_shape
        wanted = _optional_shape("output_shape", wanted)
        self.make_layers(shape, wanted)
        self._input_shape, self._output_shape = shape, self._probe(shape)
        self._built = True

    def get_weights(self) -> dict[str, Array]:
        """Return weights and buffers by name, as arrays of their own."""
        return {name: t.detach().cpu().numpy().copy() for name, t in self.state_dict().items()}

    def set_weights(self, weights: dict[str, Any]) -> None:
        """Restore weights produced by `get_weights`."""
        mine = self.state_dict()
        check_weights(mine, weights)
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(adapter.from_numpy(weights[name]))

    def reset_weights(self, seed: int | None = None) -> None:
        """Draw new weights in place, layer by layer, as torch first draws them.

        Raises
        ------
        ConfigError
            If a layer has weights and no ``reset_parameters``; nothing is changed then.
        """
        resets = [_reset_of(name, module) for name, module in self.named_modules()]
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            for reset in resets:
                reset()

    def _check_fits(self, input_shape: Shape | None) -> None:
        if input_shape is not None and tuple(input_shape) != self._input_shape:
            raise ShapeError(
                f"{type(self).__name__} was built for input shape {self._input_shape}, got "
                f"{tuple(input_shape)}; build with force=True to make it anew"
            )

    @property
    def _shown(self) -> str:
        """Name of the model in messages."""
        return type(self).__name__

    def _probe(self, shape: Shape) -> Shape:
        """Send one sample of zeros through, to learn the output's shape."""
        device = next((p.device for p in self.parameters()), None)
        zeros = torch.zeros((2, *shape), dtype=adapter.input_dtype(self), device=device)
        try:
            with torch.no_grad(), adapter.modes([(self, False)]):
                out: Any = torch.nn.Module.__call__(self, zeros)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ShapeError(
                f"{self._shown} cannot take samples of shape {shape}: {error}"
            ) from error
        if not isinstance(out, torch.Tensor) or out.ndim < 1 or out.shape[0] != 2:
            raise ShapeError(
                f"{self._shown} must return one tensor with one row a sample, got "
                f"{tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__} "
                "for 2 samples"
            )
        return tuple(out.shape[1:])

    def _params(self) -> dict[str, Any]:
        return self.get_init_args()

    __repr__ = torch.nn.Module.__repr__
    __hash__ = torch.nn.Module.__hash__
    __eq__ = object.__eq__


def activation_layer(name: str) -> torch.nn.Module:
    """Return an activation by the name of its torch class, in any case.

    Raises
    ------
    UnknownNameError
        If torch has no such activation.
    """
    made: torch.nn.Module = _activations()[name]()
    return made


def _reset_of(name: str, module: torch.nn.Module) -> Callable[[], Any]:
    """Return what draws new weights for a layer, not for those within it."""
    for method in ("reset_parameters", "_reset_parameters"):
        reset: Callable[[], Any] | None = getattr(module, method, None)
        if callable(reset):
            return reset
    if own := [name for name, _ in module.named_parameters(recurse=False)]:
        raise ConfigError(
            f"layer {name or type(module).__name__!r} has the weights {own} and no way to draw new "
            "ones; give it a method reset_parameters()"
        )
    return lambda: None


def _activations() -> Any:
    from_torch = vars(torch.nn.modules.activation)
    found = {n: from_torch[n] for n in torch.nn.modules.activation.__all__ if n in from_torch}
    return Registry("activation", {**found, "linear": torch.nn.Identity})


def _optional_shape(name: str, shape: Any) -> Shape | None:
    return None if shape is None else check_shape(name, shape)
