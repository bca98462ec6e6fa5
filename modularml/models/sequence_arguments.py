"""Arguments of models of sequences and grids, shared by all frameworks."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from modularml._typing import Array, Shape
from modularml.errors import ConfigError, ShapeError
from modularml.models.layered import LayerArguments, arguments_of

MAX_DILATED = 16
"""Maximum number of layers whose dilation doubles with each."""

Pooling = Literal["last", "mean"]


class SequenceArguments(LayerArguments):
    """Arguments of every model of sequences."""

    takes_mask = True
    pooling: str

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

    cell: str

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
        super().__init__(**arguments_of(locals()))


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

    _counts = (*LayerArguments._counts, "kernel_size")
    kernel_size: int

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
        if n_layers > MAX_DILATED:
            raise ConfigError(
                f"n_layers of a SequentialTCN must be at most {MAX_DILATED}, as the dilation "
                f"doubles with each, got {n_layers:,}"
            )
        super().__init__(**arguments_of(locals()))


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

    _counts = (*LayerArguments._counts, "n_heads")
    n_heads: int

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
        if n_heads > 0 and hidden_dim % n_heads:
            raise ConfigError(
                f"hidden_dim must be a multiple of n_heads, got {hidden_dim} and {n_heads}"
            )
        super().__init__(**arguments_of(locals()))


class CNNArguments(LayerArguments):
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

    _counts = (*LayerArguments._counts, "kernel_size", "stride", "pooling")
    kernel_size: int
    padding: int
    stride: int
    pooling: int
    flatten_output: bool

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
        if padding < 0:
            raise ConfigError(f"padding must be at least 0, got {padding}")
        super().__init__(**arguments_of(locals()))

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
            convolved = (
                (size + 2 * self.padding - self.kernel_size) // self.stride + 1
                for size in sizes[-1]
            )
            sizes.append(tuple(size // self.pooling for size in convolved))
            if min(sizes[-1]) < 1:
                raise ShapeError(
                    f"samples of shape {input_shape} shrink to size 0 after {layer + 1} of "
                    f"{self.n_layers} layers; use fewer layers, less pooling or more padding"
                )
        return sizes[1:]


def positions(n_steps: int, dim: int) -> Array:
    """Return sinusoidal encodings of positions, shape (n_steps, dim), as float32.

    Vaswani et al. 2017, section 3.5; sines and cosines alternate.
    """
    rates = np.exp(-math.log(10_000.0) * np.arange(0, dim, 2) / dim)
    angles = np.arange(n_steps)[:, None] * rates
    both = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(n_steps, -1)
    return both[:, :dim].astype(np.float32)
