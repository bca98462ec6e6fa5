"""Keras models, and the wrapper of any Keras model."""

import lazy_loader

from modularml._optional import require

require("modularml.backends.tensorflow")

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["TensorflowBaseModel"],
        "networks": [
            "GaussianHead",
            "SequentialCNN",
            "SequentialMLP",
            "SequentialRNN",
            "SequentialTCN",
            "SequentialTransformer",
            "TabularMLP",
        ],
        "wrapper": ["TensorflowModelWrapper"],
    },
)
