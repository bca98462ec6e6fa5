"""Experiments: phases on a graph, their callbacks and their results."""

from modularml.backends.accelerator import Accelerator
from modularml.engine.batch_schedule import BatchSchedulingPolicy
from modularml.engine.binding import InputBinding
from modularml.engine.checkpointing import Checkpointing
from modularml.experiment.experiment import Experiment, SeedWarning
from modularml.experiment.run import ExperimentRun
from modularml.phases.fit import FitPhase
from modularml.phases.group import PhaseGroup
from modularml.phases.train_eval import EvalPhase, TrainPhase
from modularml.results.eval_results import EvalResults, FitResults
from modularml.results.group_results import PhaseGroupResults
from modularml.results.phase_results import PhaseResults, TrainResults
from modularml.results.recording import ResultRecording, ResultsConfig

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
    "SeedWarning",
    "TrainPhase",
    "TrainResults",
]
