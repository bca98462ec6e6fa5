"""Strategies: how often, and on which rows, an experiment is run."""

from modularml.strategies.binding import CVBinding
from modularml.strategies.cross_validation import (
    CrossValidation,
    FoldFailedWarning,
    SelectionWarning,
)
from modularml.strategies.cv_results import CVResults

__all__ = ["CVBinding", "CVResults", "CrossValidation", "FoldFailedWarning", "SelectionWarning"]
