"""Kinds of losses of the frameworks, by the names of their classes."""

from __future__ import annotations

ALIASES = {
    "mae": "l1",
    "meanabsoluteerror": "l1",
    "meansquarederror": "mse",
    "categoricalcrossentropy": "crossentropy",
    "sparsecategoricalcrossentropy": "crossentropy",
    "quantile": "pinball",
    "gaussiannegativeloglikelihood": "gaussiannll",
    "ce": "crossentropy",
    "binarycrossentropy": "bce",
    "binarycrossentropywithlogits": "bcewithlogits",
    "negativeloglikelihood": "nll",
    "kl": "kldiv",
    "kldivergence": "kldiv",
    "triplet": "tripletmargin",
    "cosine": "cosineembedding",
}
"""Common aliases, lower-case, without underscores and ``loss``."""

CLASS_INDEX = frozenset(
    {"CrossEntropyLoss", "NLLLoss", "MultiMarginLoss", "SparseCategoricalCrossentropy"}
)
"""Losses whose targets are class numbers."""

TAKES_SHARES = frozenset({"CrossEntropyLoss"})
"""Losses with class-number targets that also accept class probabilities."""

SHARES = frozenset(
    {"BCELoss", "BCEWithLogitsLoss", "BinaryCrossentropy", "BinaryFocalCrossentropy"}
)
"""Losses whose targets are probabilities."""

MARGINS = frozenset(
    {
        "SoftMarginLoss",
        "HingeEmbeddingLoss",
        "MultiLabelSoftMarginLoss",
        "Hinge",
        "SquaredHinge",
        "CategoricalHinge",
        "CategoricalCrossentropy",
        "CategoricalFocalCrossentropy",
    }
)
"""Other losses whose outputs are scores of classes, in no units of their targets."""

CLASS_LAST = frozenset({"SparseCategoricalCrossentropy"})
"""Losses whose classes are the last axis of the output; for others it is the first."""

CLASS_SET = frozenset({"MultiLabelMarginLoss"})
"""Losses whose targets are class numbers in the shape of the output."""

ONE_A_SAMPLE = frozenset({"CosineEmbeddingLoss"})
"""Losses whose target is one number per sample, whatever the shape of the output."""

LAST_AXIS_MEANS = frozenset(
    {
        "MeanSquaredError",
        "MeanAbsoluteError",
        "MeanAbsolutePercentageError",
        "MeanSquaredLogarithmicError",
        "Huber",
        "LogCosh",
        "Poisson",
        "BinaryCrossentropy",
        "BinaryFocalCrossentropy",
    }
)
"""Keras losses that average over the last axis."""

ELEMENTWISE = LAST_AXIS_MEANS | {
    "MSELoss",
    "L1Loss",
    "HuberLoss",
    "SmoothL1Loss",
    "BCELoss",
    "BCEWithLogitsLoss",
    "SoftMarginLoss",
    "PoissonNLLLoss",
    "KLDivLoss",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "KLDivergence",
}
"""Losses that compare output and target elementwise."""

OVER_BATCH = frozenset({"Dice", "Tversky"})
"""Keras losses that are ratios of sums over the whole batch."""

FRAMEWORKS = ("torch.nn.", "keras.")
"""Modules of losses whose meaning is known by their names."""

NAMES = CLASS_INDEX | SHARES | MARGINS | CLASS_SET | ONE_A_SAMPLE | ELEMENTWISE | OVER_BATCH
"""All of them."""
