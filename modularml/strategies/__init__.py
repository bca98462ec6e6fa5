"""Strategies that run an experiment several times, such as cross-validation."""

from modularml.strategies.cross_validation import (
    CrossValidation,
    FoldFailedWarning,
    SelectionWarning,
)
from modularml.strategies.cv_binding import CVBinding
from modularml.strategies.cv_results import CVResults

__all__ = ["CVBinding", "CVResults", "CrossValidation", "FoldFailedWarning", "SelectionWarning"]
