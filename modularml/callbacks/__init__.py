"""Callbacks of phases and experiments."""

from modularml.callbacks.attached import Attached
from modularml.callbacks.evaluations import (
    EvalLossMetric,
    Evaluation,
    EvaluationCallbackResult,
    EvaluationMetric,
    ScoreMetric,
)
from modularml.callbacks.learning_rate import LearningRateFinder, LearningRateMonitor, LearningRates
from modularml.callbacks.loggers import CSVLogger, GradientNorms, LivePlot, MetricCallback
from modularml.callbacks.stopping import EarlyStopping, EarlyStoppingResult, MaxTime
from modularml.callbacks.weights import EMA, SWA, ProgressiveUnfreezing
from modularml.engine.callback import (
    ArtifactResult,
    Callback,
    CallbackResult,
    ExperimentCallback,
    MetricResult,
    PayloadResult,
    callback_registry,
)

__all__ = [
    "EMA",
    "SWA",
    "ArtifactResult",
    "Attached",
    "CSVLogger",
    "Callback",
    "CallbackResult",
    "EarlyStopping",
    "EarlyStoppingResult",
    "EvalLossMetric",
    "Evaluation",
    "EvaluationCallbackResult",
    "EvaluationMetric",
    "ExperimentCallback",
    "GradientNorms",
    "LearningRateFinder",
    "LearningRateMonitor",
    "LearningRates",
    "LivePlot",
    "MaxTime",
    "MetricCallback",
    "MetricResult",
    "PayloadResult",
    "ProgressiveUnfreezing",
    "ScoreMetric",
    "callback_registry",
]
