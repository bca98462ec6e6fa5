"""Many runs of an experiment: folds, ensembles, sweeps, and their comparison.

Names are loaded when they are first used.
"""

import lazy_loader

_HOMES = {
    "comparison.collection": ["ExperimentCollection"],
    "comparison.learning_curve": ["LearningCurve", "learning_curve"],
    "comparison.permutation_test": ["PermutationTest", "permutation_test_score"],
    "ensembles.ensemble": ["Ensemble"],
    "folds.cross_validation": ["CrossValidation", "FoldFailedWarning", "SelectionWarning"],
    "folds.cv_binding": ["CVBinding"],
    "folds.cv_results": ["CVResults"],
    "sweeps.results": ["BestTrial", "SweepResults"],
    "sweeps.sweep": ["Sweep", "TrialFailedWarning"],
    "sweeps.trials": ["TrialPruning"],
}

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_HOMES)
