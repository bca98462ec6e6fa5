"""Strategies that run an experiment several times, such as cross-validation."""

from modularml.strategies.collection import ExperimentCollection
from modularml.strategies.cross_validation import (
    CrossValidation,
    FoldFailedWarning,
    SelectionWarning,
)
from modularml.strategies.cv_binding import CVBinding
from modularml.strategies.cv_results import CVResults
from modularml.strategies.ensemble import Ensemble
from modularml.strategies.permutation_test import PermutationTest, permutation_test_score
from modularml.strategies.pruning import TrialPruning
from modularml.strategies.sweep import Sweep, TrialFailedWarning
from modularml.strategies.sweep_results import BestTrial, SweepResults

__all__ = [
    "BestTrial",
    "CVBinding",
    "CVResults",
    "CrossValidation",
    "Ensemble",
    "ExperimentCollection",
    "FoldFailedWarning",
    "PermutationTest",
    "SelectionWarning",
    "Sweep",
    "SweepResults",
    "TrialFailedWarning",
    "TrialPruning",
    "permutation_test_score",
]
