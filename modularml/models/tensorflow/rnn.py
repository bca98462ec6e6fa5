"""Recurrent networks of Keras."""

from __future__ import annotations

from typing import Any

from keras import layers

from modularml.models.sequences import RNNArguments
from modularml.models.tensorflow.sequences import SequenceModel

__all__ = ["SequentialRNN"]

_CELLS = {"gru": layers.GRU, "lstm": layers.LSTM}


class SequentialRNN(RNNArguments, SequenceModel):  # noqa: D101 - that of its arguments
    __doc__ = f"""{RNNArguments.__doc__}
    Examples
    --------
    >>> model = SequentialRNN(output_shape=(3,))
    >>> model.build(input_shape=(1, 100))
    >>> model.output_shape
    (3,)
    """

    config_name = "tensorflow.SequentialRNN"

    def make_encoder(self, n_channels: int, n_steps: int) -> list[Any]:
        """Return recurrent layers and dropout; padding comes after real steps."""
        encoder: list[Any] = []
        for _ in range(self.n_layers):
            encoder.append(_CELLS[self.cell](self.hidden_dim, return_sequences=True))
            encoder += [layers.Dropout(self.dropout)] if self.dropout else []
        return encoder
