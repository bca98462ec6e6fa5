"""Results of phases, groups and runs.

Names are loaded when they are first used.
"""

from importlib import import_module
from typing import Any

_PLACES = {
    "ArtifactEntry": "modularml.results.metric_store:ArtifactResult",
    "AxisSeries": "modularml.results.series:AxisSeries",
    "CVResults": "modularml.strategies.cv_results:CVResults",
    "EvalResults": "modularml.results.eval_results:EvalResults",
    "ExperimentRun": "modularml.experiment.run:ExperimentRun",
    "FitResults": "modularml.results.eval_results:FitResults",
    "ImportanceTable": "modularml.results.result_tables:ImportanceTable",
    "LossRecord": "modularml.data.execution_context:LossRecord",
    "MetricEntry": "modularml.results.metric_store:MetricEntry",
    "MetricStore": "modularml.results.metric_store:MetricStore",
    "PhaseGroupResults": "modularml.results.group_results:PhaseGroupResults",
    "PhaseResults": "modularml.results.phase_results:PhaseResults",
    "ScoreTable": "modularml.results.result_tables:ScoreTable",
    "TrainResults": "modularml.results.phase_results:TrainResults",
    "cv_plus": "modularml.results.prediction_intervals:cv_plus",
    "quantile_bounds": "modularml.results.prediction_intervals:quantile_bounds",
    "quantile_conformal": "modularml.results.prediction_intervals:quantile_conformal",
    "split_conformal": "modularml.results.prediction_intervals:split_conformal",
}
__all__ = [*_PLACES]  # noqa: PLE0604 - names, in alphabetical order


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return [*_PLACES]
