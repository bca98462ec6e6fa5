"""Attachments: several callbacks that belong together, attached to a runner at once."""

from modularml.loops.attachments import (
    Attachment,
    EpochTimer,
    LambdaReducer,
    MeanReducer,
    ProgressBar,
    SumReducer,
)

__all__ = [
    "Attachment",
    "EpochTimer",
    "LambdaReducer",
    "MeanReducer",
    "ProgressBar",
    "SumReducer",
]
