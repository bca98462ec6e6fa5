"""Many runs of an experiment: folds, ensembles, sweeps, and their comparison.

Names are loaded when they are first used.
"""

import lazy_loader

_HOMES = {
    "comparison.collection": ["ExperimentCollection"],
    "comparison.reruns": [
        "LearningCurve",
        "PermutationTest",
        "learning_curve",
        "permutation_test_score",
    ],
    "ensemble": ["Ensemble"],
    "cross_validation": ["CrossValidation", "FoldFailedWarning", "SelectionWarning"],
    "cv_results": ["CVResults"],
    "folds": ["CVBinding"],
    "sweeps.results": ["BestTrial", "SweepResults"],
    "sweeps.sweep": ["Sweep", "TrialFailedWarning"],
    "sweeps.trials": ["TrialPruning"],
}

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_HOMES)
