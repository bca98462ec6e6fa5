"""Arguments of sequential models, shared by all frameworks."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from modularml._typing import Shape
from modularml.errors import ConfigError, ShapeError

__all__ = ["CNNArguments", "MLPArguments"]

MAX_LAYERS = 1000


class MLPArguments:
    """Flatten the input, then ``n_layers - 1`` hidden layers and one output layer.

    Parameters
    ----------
    input_shape, output_shape : tuple of int, optional
        Of one sample; by default set by the graph.
    n_layers : int
        Number of linear layers including the output layer; 1 to 1,000.
    hidden_dim : int
        Width of the hidden layers.
    activation : str
        Name of a torch activation, in any case.
    dropout : float
        Fraction of hidden values dropped in training, in ``[0, 1)``.
    """

    def __init__(
        self,
        *,
        input_shape: Shape | None = None,
        output_shape: Shape | None = None,
        n_layers: int = 2,
        hidden_dim: int = 32,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        check_sizes(n_layers=n_layers, hidden_dim=hidden_dim)
        check_depth(n_layers)
        check_dropout(dropout)
        super().__init__(
            input_shape=input_shape,
            output_shape=output_shape,
            n_layers=n_layers,
            hidden_dim=hidden_dim,
            activation=activation,
            dropout=dropout,
        )  # type: ignore[call-arg]
        self.n_layers, self.hidden_dim = n_layers, hidden_dim
        self.activation, self.dropout = activation, dropout

    def check_output(self, output_shape: Shape | None) -> Shape:
        """Return the output shape; ShapeError without one."""
        if output_shape is None:
            raise ShapeError(
                "SequentialMLP needs output_shape unless its node is a tail of the graph; pass "
                "output_shape="
            )
        return output_shape


class CNNArguments:
    """Convolutions, each with activation and pooling, and a final linear layer.

    Parameters
    ----------
    input_shape : tuple of int, optional
        ``(channels, length)``, ``(channels, height, width)`` or ``(channels, d, h, w)``; the
        number of axes decides between 1-D, 2-D and 3-D convolutions.
    output_shape : tuple of int, optional
        If given, or set by the graph, a linear layer maps the flattened features to this shape.
        Otherwise the output is the features themselves.
    n_layers : int
        Number of convolutions; 1 to 1,000.
    hidden_dim : int
        Channels of each convolution.
    kernel_size, padding, stride : int
        Of each convolution.
    activation : str
        Name of a torch activation, in any case.
    dropout : float
        Fraction of values dropped after each convolution in training, in ``[0, 1)``.
    pooling : int
        Width of the max pooling after each convolution; 1 for none.
    flatten_output : bool
        Whether features are flattened to one axis if they are the output.
    """

    def __init__(
        self,
        *,
        input_shape: Shape | None = None,
        output_shape: Shape | None = None,
        n_layers: int = 2,
        hidden_dim: int = 16,
        kernel_size: int = 3,
        padding: int = 1,
        stride: int = 1,
        activation: str = "relu",
        dropout: float = 0.0,
        pooling: int = 1,
        flatten_output: bool = True,
    ) -> None:
        check_sizes(
            n_layers=n_layers,
            hidden_dim=hidden_dim,
            kernel_size=kernel_size,
            stride=stride,
            pooling=pooling,
        )
        check_depth(n_layers)
        check_dropout(dropout)
        if padding < 0:
            raise ConfigError(f"padding must be at least 0, got {padding}")
        super().__init__(
            input_shape=input_shape,
            output_shape=output_shape,
            n_layers=n_layers,
            hidden_dim=hidden_dim,
            kernel_size=kernel_size,
            padding=padding,
            stride=stride,
            activation=activation,
            dropout=dropout,
            pooling=pooling,
            flatten_output=flatten_output,
        )  # type: ignore[call-arg]
        self.n_layers, self.hidden_dim, self.kernel_size = n_layers, hidden_dim, kernel_size
        self.padding, self.stride, self.activation = padding, stride, activation
        self.dropout, self.pooling, self.flatten_output = dropout, pooling, flatten_output

    def spaces(self, input_shape: Shape) -> list[Shape]:
        """Return the spatial sizes after each layer, without channels.

        Raises
        ------
        ShapeError
            If the number of axes is not supported, or a layer has an empty output.
        """
        if len(input_shape) not in (2, 3, 4):
            raise ShapeError(
                "SequentialCNN accepts samples of shape (channels, length), (channels, height, "
                f"width) or (channels, d, h, w), got {input_shape}"
            )
        sizes = [input_shape[1:]]
        for layer in range(self.n_layers):
            sizes.append(tuple(map(self._next_size, sizes[-1])))
            if min(sizes[-1]) < 1:
                raise ShapeError(
                    f"samples of shape {input_shape} shrink to size 0 after {layer + 1} of "
                    f"{self.n_layers} layers; use fewer layers, less pooling or more padding"
                )
        return sizes[1:]

    def _next_size(self, size: int) -> int:
        after = (size + 2 * self.padding - self.kernel_size) // self.stride + 1
        return after // self.pooling


def check_sizes(**sizes: Any) -> None:
    """Refuse sizes that are not positive ints."""
    for name, size in sizes.items():
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            raise ConfigError(f"{name} must be an int of at least 1, got {size!r}")


def check_depth(n_layers: int) -> None:
    """Refuse more than `MAX_LAYERS` layers."""
    if n_layers > MAX_LAYERS:
        raise ConfigError(f"n_layers must be at most {MAX_LAYERS:,}, got {n_layers:,}")


def check_dropout(dropout: float) -> None:
    """Refuse a dropout outside [0, 1)."""
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout must be in [0, 1), got {dropout!r}")
