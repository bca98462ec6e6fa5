"""Callbacks of phases and experiments."""

from modularml.callbacks.attached import Attached
from modularml.callbacks.csv_logger import CSVLogger
from modularml.callbacks.early_stopping import EarlyStopping, EarlyStoppingResult
from modularml.callbacks.evaluation import Evaluation, MetricCallback
from modularml.callbacks.evaluation_metrics import (
    EvalLossMetric,
    EvaluationCallbackResult,
    EvaluationMetric,
    ScoreMetric,
)
from modularml.callbacks.gradient_norms import GradientNorms
from modularml.callbacks.learning_rate_finder import LearningRateFinder, LearningRates
from modularml.callbacks.learning_rate_monitor import LearningRateMonitor
from modularml.callbacks.live_plot import LivePlot
from modularml.callbacks.max_time import MaxTime
from modularml.callbacks.unfreezing import ProgressiveUnfreezing
from modularml.callbacks.weight_averaging import EMA, SWA
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
