"""torch models, and the wrapper of any torch module."""

import lazy_loader

from modularml._optional import require

require("torch", purpose="to build torch models")

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["TorchBaseModel"],
        "networks": [
            "GaussianHead",
            "SequentialCNN",
            "SequentialMLP",
            "SequentialRNN",
            "SequentialTCN",
            "SequentialTransformer",
            "TabularMLP",
        ],
        "wrapper": ["TorchModelWrapper"],
    },
)
