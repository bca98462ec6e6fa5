"""Experiments as scikit-learn estimators."""

from modularml.sklearn.default_build import tabular_mlp
from modularml.sklearn.estimators import ExperimentClassifier, ExperimentRegressor

__all__ = ["ExperimentClassifier", "ExperimentRegressor", "tabular_mlp"]
