"""Temporal convolutional networks of Keras."""

from __future__ import annotations

from typing import Any

from keras import layers

from modularml.models.sequences import TCNArguments
from modularml.models.tensorflow.base import activation_layer
from modularml.models.tensorflow.sequences import SequenceModel

__all__ = ["SequentialTCN"]


class SequentialTCN(TCNArguments, SequenceModel):  # noqa: D101 - that of its arguments
    __doc__ = f"""{TCNArguments.__doc__}
    Examples
    --------
    >>> model = SequentialTCN(output_shape=(3,))
    >>> model.build(input_shape=(1, 100))
    >>> model.output_shape
    (3,)
    """

    config_name = "tensorflow.SequentialTCN"

    def make_encoder(self, n_channels: int, n_steps: int) -> list[Any]:
        """Return the residual blocks; no step sees a later one."""
        widths = [n_channels, *[self.hidden_dim] * (self.n_layers - 1)]
        return [CausalBlock(self, width, 2**layer) for layer, width in enumerate(widths)]


class CausalBlock(layers.Layer):  # type: ignore[misc]
    """Two causal convolutions beside the identity, or a convolution of width 1."""

    def __init__(self, model: SequentialTCN, width: int, dilation: int) -> None:
        super().__init__()
        hidden, size = model.hidden_dim, model.kernel_size
        self.first, self.second = (
            layers.Conv1D(hidden, size, padding="causal", dilation_rate=dilation) for _ in range(2)
        )
        self.skip = layers.Identity() if width == hidden else layers.Conv1D(hidden, 1)
        self.act = activation_layer(model.activation)
        self.drop, self.drop_again = layers.Dropout(model.dropout), layers.Dropout(model.dropout)

    def call(self, x: Any, training: bool | None = None) -> Any:
        out = self.drop(self.act(self.first(x)), training=training)
        out = self.drop_again(self.act(self.second(out)), training=training)
        return self.act(out + self.skip(x))
