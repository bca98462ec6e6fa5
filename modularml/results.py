"""Results, under one name: what phases, groups and runs leave behind."""

from modularml.data.execution import LossRecord
from modularml.experiment.callback import ArtifactResult as ArtifactEntry
from modularml.experiment.group_results import PhaseGroupResults
from modularml.experiment.metrics import MetricEntry, MetricStore
from modularml.experiment.results import EvalResults, FitResults, PhaseResults, TrainResults
from modularml.experiment.run import ExperimentRun
from modularml.experiment.series import AxisSeries
from modularml.strategies.cv_results import CVResults

__all__ = [
    "ArtifactEntry",
    "AxisSeries",
    "CVResults",
    "EvalResults",
    "ExperimentRun",
    "FitResults",
    "LossRecord",
    "MetricEntry",
    "MetricStore",
    "PhaseGroupResults",
    "PhaseResults",
    "TrainResults",
]
