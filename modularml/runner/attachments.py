"""Attachments: groups of callbacks for a runner."""

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
