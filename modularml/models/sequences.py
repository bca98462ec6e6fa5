"""Arguments of models of sequences, shared by all frameworks."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from modularml._typing import Array, Shape
from modularml.errors import ConfigError, ShapeError
from modularml.models.sequential import check_depth, check_dropout, check_sizes

__all__ = [
    "RNNArguments",
    "SequenceArguments",
    "TCNArguments",
    "TransformerArguments",
    "positions",
]

MAX_DILATED = 16
"""Maximum number of layers whose dilation doubles with each."""

Pooling = Literal["last", "mean"]


class SequenceArguments:
    """Arguments of every model of sequences."""

    takes_mask = True
    pooling: str

    def __init__(
        self, *, n_layers: int, hidden_dim: int, dropout: float, pooling: str, **kwargs: Any
    ) -> None:
        check_sizes(n_layers=n_layers, hidden_dim=hidden_dim)
        check_depth(n_layers)
        check_dropout(dropout)
        super().__init__(
            n_layers=n_layers, hidden_dim=hidden_dim, dropout=dropout, pooling=pooling, **kwargs
        )  # type: ignore[call-arg]
        self.n_layers, self.hidden_dim = n_layers, hidden_dim
        self.dropout, self.pooling = dropout, pooling

    def sizes(self, input_shape: Shape) -> tuple[int, int]:
        """Return the numbers of channels and of steps.

        Raises
        ------
        ShapeError
            If samples are no sequences.
        """
        if len(input_shape) == 2:
            return input_shape[0], input_shape[1]
        if len(input_shape) == 3 and input_shape[0] == 1:
            return input_shape[2], input_shape[1]
        raise ShapeError(
            f"{type(self).__name__} accepts samples of shape (channels, time), or (1, time, "
            f"channels) for one column of steps, got {input_shape}; ModelNode(..., "
            "input_layout='channels_first') makes (1, time) of (time,)"
        )

    def check_mask(self, mask: Any, steps: Any) -> None:
        """Refuse a mask whose shape is not ``(n, time)``."""
        if len(mask.shape) != 2 or mask.shape[1] != steps.shape[1]:
            raise ShapeError(
                f"mask of {type(self).__name__} must have shape (n, {steps.shape[1]}), one value "
                f"for each step, got {tuple(mask.shape)}"
            )


class RNNArguments(SequenceArguments):
    """Recurrent layers over a sequence, and a linear layer on their pooled outputs.

    Parameters
    ----------
    input_shape : tuple of int, optional
        ``(channels, time)``, or ``(1, time, channels)`` for one column of steps; by default set by
        the graph.
    output_shape : tuple of int, optional
        If given, or set by the graph, a linear layer maps the pooled features to this shape.
        Otherwise the output is the pooled features, shape ``(hidden_dim,)``.
    cell : {'gru', 'lstm'}
        Kind of the recurrent layers.
    n_layers : int
        Number of recurrent layers; 1 to 1,000.
    hidden_dim : int
        Width of each layer.
    dropout : float
        Fraction of values dropped after each layer in training, in ``[0, 1)``.
    pooling : {'last', 'mean'}
        Whether the features are those of the last real step, or the mean of real steps.

    Notes
    -----
    With a mask (``ModelNode(..., mask_as="mask")``), padded sequences have the same outputs as each
    sequence alone. A sequence without any real step has the output NaN. Sources: Cho et al. 2014
    (arXiv:1406.1078) for GRU, Hochreiter & Schmidhuber 1997 for LSTM. An LSTM of torch has two bias
    vectors for each layer, that of Keras has their sum.
    """

    def __init__(
        self,
        *,
        input_shape: Shape | None = None,
        output_shape: Shape | None = None,
        cell: Literal["gru", "lstm"] = "gru",
        n_layers: int = 1,
        hidden_dim: int = 32,
        dropout: float = 0.0,
        pooling: Pooling = "last",
    ) -> None:
        super().__init__(
            input_shape=input_shape,
            output_shape=output_shape,
            cell=cell,
            n_layers=n_layers,
            hidden_dim=hidden_dim,
            dropout=dropout,
            pooling=pooling,
        )
        self.cell = cell


class TCNArguments(SequenceArguments):
    """Causal convolutions with growing dilation, and a linear layer on their pooled outputs.

    Each layer is a residual block of two convolutions with dilation ``2**layer``.

    Parameters
    ----------
    input_shape : tuple of int, optional
        ``(channels, time)``, or ``(1, time, channels)`` for one column of steps; by default set by
        the graph.
    output_shape : tuple of int, optional
        If given, or set by the graph, a linear layer maps the pooled features to this shape.
        Otherwise the output is the pooled features, shape ``(hidden_dim,)``.
    n_layers : int
        Number of residual blocks; 1 to 16. A step sees ``1 + 2 * (kernel_size - 1) *
        (2**n_layers - 1)`` steps.
    hidden_dim : int
        Channels of each convolution.
    kernel_size : int
        Of each convolution, in steps.
    activation : str
        Name of a torch activation, in any case.
    dropout : float
        Fraction of values dropped after each convolution in training, in ``[0, 1)``.
    pooling : {'last', 'mean'}
        Whether the features are those of the last real step, or the mean of real steps.

    Notes
    -----
    With a mask (``ModelNode(..., mask_as="mask")``), padded sequences have the same outputs as each
    sequence alone. A sequence without any real step has the output NaN. Source: Bai, Kolter &
    Koltun 2018 (arXiv:1803.01271), without their weight normalization.
    """

    def __init__(
        self,
        *,
        input_shape: Shape | None = None,
        output_shape: Shape | None = None,
        n_layers: int = 3,
        hidden_dim: int = 32,
        kernel_size: int = 3,
        activation: str = "relu",
        dropout: float = 0.0,
        pooling: Pooling = "last",
    ) -> None:
        check_sizes(n_layers=n_layers, kernel_size=kernel_size)
        if n_layers > MAX_DILATED:
            raise ConfigError(
                f"n_layers of a SequentialTCN must be at most {MAX_DILATED}, as the dilation "
                f"doubles with each, got {n_layers:,}"
            )
        super().__init__(
            input_shape=input_shape,
            output_shape=output_shape,
            n_layers=n_layers,
            hidden_dim=hidden_dim,
            kernel_size=kernel_size,
            activation=activation,
            dropout=dropout,
            pooling=pooling,
        )
        self.kernel_size, self.activation = kernel_size, activation


class TransformerArguments(SequenceArguments):
    """A transformer encoder, and a linear layer on its pooled outputs.

    Steps are mapped to `hidden_dim` values, sinusoidal positions are added, and each layer is
    self-attention and a feed-forward part of width ``4 * hidden_dim``, both after a layer
    normalization.

    Parameters
    ----------
    input_shape : tuple of int, optional
        ``(channels, time)``, or ``(1, time, channels)`` for one column of steps; by default set by
        the graph.
    output_shape : tuple of int, optional
        If given, or set by the graph, a linear layer maps the pooled features to this shape.
        Otherwise the output is the pooled features, shape ``(hidden_dim,)``.
    n_layers : int
        Number of encoder layers; 1 to 1,000.
    hidden_dim : int
        Width of each step; a multiple of `n_heads`.
    n_heads : int
        Number of attention heads.
    activation : str
        Name of a torch activation, in any case.
    dropout : float
        Fraction of values dropped after positions, attention and feed-forward parts in training, in
        ``[0, 1)``.
    pooling : {'last', 'mean'}
        Whether the features are those of the last real step, or the mean of real steps.

    Notes
    -----
    With a mask (``ModelNode(..., mask_as="mask")``), padded sequences have the same outputs as each
    sequence alone: padding is no key of attention, and positions count real steps. A sequence
    without any real step has the output NaN. Sources: Vaswani et al. 2017 (arXiv:1706.03762);
    normalization before each part, Xiong et al. 2020 (arXiv:2002.04745).
    """

    def __init__(
        self,
        *,
        input_shape: Shape | None = None,
        output_shape: Shape | None = None,
        n_layers: int = 2,
        hidden_dim: int = 32,
        n_heads: int = 4,
        activation: str = "relu",
        dropout: float = 0.0,
        pooling: Pooling = "mean",
    ) -> None:
        check_sizes(n_heads=n_heads, hidden_dim=hidden_dim)
        if hidden_dim % n_heads:
            raise ConfigError(
                f"hidden_dim must be a multiple of n_heads, got {hidden_dim} and {n_heads}"
            )
        super().__init__(
            input_shape=input_shape,
            output_shape=output_shape,
            n_layers=n_layers,
            hidden_dim=hidden_dim,
            n_heads=n_heads,
            activation=activation,
            dropout=dropout,
            pooling=pooling,
        )
        self.n_heads, self.activation = n_heads, activation


def positions(n_steps: int, dim: int) -> Array:
    """Return sinusoidal encodings of positions, shape (n_steps, dim), as float32.

    Vaswani et al. 2017, section 3.5; sines and cosines alternate.
    """
    rates = np.exp(-math.log(10_000.0) * np.arange(0, dim, 2) / dim)
    angles = np.arange(n_steps)[:, None] * rates
    both = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(n_steps, -1)
    return both[:, :dim].astype(np.float32)
