"""Callbacks: what listens to a phase or an experiment."""

from modularml.callbacks.attached import Attached
from modularml.callbacks.early_stopping import EarlyStopping, EarlyStoppingResult
from modularml.callbacks.evaluation import (
    EvalLossMetric,
    Evaluation,
    EvaluationCallbackResult,
    EvaluationMetric,
    MetricCallback,
)
from modularml.callbacks.rates import LearningRateMonitor
from modularml.callbacks.unfreezing import ProgressiveUnfreezing
from modularml.experiment.callback import (
    ArtifactResult,
    Callback,
    CallbackResult,
    ExperimentCallback,
    MetricResult,
    PayloadResult,
    callback_registry,
)

__all__ = [
    "ArtifactResult",
    "Attached",
    "Callback",
    "CallbackResult",
    "EarlyStopping",
    "EarlyStoppingResult",
    "EvalLossMetric",
    "Evaluation",
    "EvaluationCallbackResult",
    "EvaluationMetric",
    "ExperimentCallback",
    "LearningRateMonitor",
    "MetricCallback",
    "MetricResult",
    "PayloadResult",
    "ProgressiveUnfreezing",
    "callback_registry",
]
