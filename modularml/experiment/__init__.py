"""Experiments: phases on a graph, what listens to them and what they leave behind."""

from modularml.backends.accelerator import Accelerator
from modularml.experiment.binding import InputBinding
from modularml.experiment.checkpointing import Checkpointing
from modularml.experiment.experiment import Experiment
from modularml.experiment.fit_phase import FitPhase
from modularml.experiment.group import PhaseGroup
from modularml.experiment.group_results import PhaseGroupResults
from modularml.experiment.phases import EvalPhase, TrainPhase
from modularml.experiment.recording import ResultRecording
from modularml.experiment.results import EvalResults, FitResults, PhaseResults, TrainResults
from modularml.experiment.results_room import ResultsConfig
from modularml.experiment.run import ExperimentRun
from modularml.experiment.schedule import BatchSchedulingPolicy

__all__ = [
    "Accelerator",
    "BatchSchedulingPolicy",
    "Checkpointing",
    "EvalPhase",
    "EvalResults",
    "Experiment",
    "ExperimentRun",
    "FitPhase",
    "FitResults",
    "InputBinding",
    "PhaseGroup",
    "PhaseGroupResults",
    "PhaseResults",
    "ResultRecording",
    "ResultsConfig",
    "TrainPhase",
    "TrainResults",
]
