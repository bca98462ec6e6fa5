"""An experiment's history as plain data, and back: runs, metrics, what callbacks said, steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from modularml.errors import MMLError
from modularml.experiment.run import ExperimentRun
from modularml.io.values import Packer
from modularml.results.callback_results import CallbackResult, PayloadResult
from modularml.results.group_results import PhaseGroupResults
from modularml.results.metric_store import MetricStore
from modularml.results.steps import StepLog
from modularml.results.stored_steps import (
    Layouts,
    PackedLayout,
    packed_layout,
    packed_steps,
    unpacked_steps,
)
from modularml.results.train_eval import EvalResults, FitResults, PhaseResults, TrainResults

__all__ = [
    "packed_history",
    "packed_metrics",
    "packed_result",
    "packed_run",
    "result_class",
    "unpacked_history",
]

_RESULTS = {cls.__name__: cls for cls in (PhaseResults, TrainResults, EvalResults, FitResults)}


def packed_history(history: Sequence[ExperimentRun], whole: bool = True) -> list[dict[str, Any]]:
    """Return runs as plain data; what cannot be data is replaced by its description.

    Unless they are `whole`, recorded steps, what callbacks returned, metadata and texts of errors
    are omitted.
    """
    return [
        {**packed_run(run, {}, whole), "results": _packed_group(run.results, whole)}
        for run in history
    ]


def packed_run(run: ExperimentRun, results: Any, whole: bool = True) -> dict[str, Any]:
    """Return a run as plain data, with results that have been packed."""
    pack = _plain if whole else _shown
    return {
        "label": run.label,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "status": run.status,
        "results": results,
        "execution_meta": {k: pack(v) for k, v in run.execution_meta.items()},
        "metadata": {k: _plain(v) for k, v in run.metadata.items()} if whole else {},
    }


def unpacked_history(
    data: Sequence[Mapping[str, Any]], layouts: Layouts = ()
) -> list[ExperimentRun]:
    """Return runs again; nodes and FeatureSets are those of the active context, by label."""
    return [ExperimentRun(**{**run, "results": _group(run["results"], layouts)}) for run in data]


def _packed_group(group: PhaseGroupResults, whole: bool) -> dict[str, Any]:
    items = [
        _packed_group(item, whole)
        if isinstance(item, PhaseGroupResults)
        else _packed_phase(item, whole)
        for _, item in group.items()
    ]
    return {"label": group.label, "items": items}


def _group(data: Mapping[str, Any], layouts: Layouts) -> PhaseGroupResults:
    group = PhaseGroupResults(data["label"])
    for item in data["items"]:
        group.add_result((_group if "items" in item else _phase)(item, layouts))
    return group


def _packed_phase(
    results: PhaseResults, whole: bool = True, layout: PackedLayout = packed_layout
) -> dict[str, Any]:
    found = results._callbacks if whole else []
    return {
        "class": result_class(results),
        "label": results.label,
        "metrics": packed_metrics(results._metrics),
        "callbacks": [packed_result(result, layout) for result in found],
        "steps": packed_steps(results._execution, layout) if whole else None,
    }


def result_class(results: PhaseResults) -> str:
    """Return the name of the class that results are stored under."""
    return next(n for n, cls in reversed(_RESULTS.items()) if isinstance(results, cls))


def _phase(data: Mapping[str, Any], layouts: Layouts) -> PhaseResults:
    said = [_said(item, layouts) for item in data["callbacks"]]
    steps = StepLog(unpacked_steps(data["steps"], layouts))
    return _RESULTS[data["class"]](data["label"], steps, said, _metrics(data["metrics"]))


def packed_metrics(
    store: MetricStore, since: Mapping[str, Mapping[str, int]] | None = None
) -> dict[str, Any]:
    """Return metrics as columns by name; those that were logged since there were so many."""
    first = since or {"epochs": {}, "batches": {}}
    epochs = {}
    for name, values in store._epochs.items():
        if rows := values[first["epochs"].get(name, 0) :]:
            epochs[name] = {
                "epoch": np.array([e for e, _ in rows]),
                "value": np.array([v for _, v in rows]),
            }
    batches = {}
    for name in store._batches:
        if blocks := list(store.blocks(name))[first["batches"].get(name, 0) :]:
            batches[name] = {
                "epoch": np.array([e for e, _ in blocks]),
                "size": np.array([len(block) for _, block in blocks]),
                "rows": np.concatenate([block for _, block in blocks]),
            }
    return {"epochs": epochs, "batches": batches}


def _metrics(data: Mapping[str, Any]) -> MetricStore:
    store = MetricStore()
    for name, column in data["epochs"].items():
        pairs = zip(column["epoch"].tolist(), column["value"].tolist(), strict=True)
        store._epochs[name] = list(pairs)
    for name, column in data["batches"].items():
        blocks = np.split(column["rows"], np.cumsum(column["size"])[:-1])
        store._batches[name] = list(zip(column["epoch"].tolist(), blocks, strict=True))
    return store


def packed_result(result: CallbackResult, layout: PackedLayout = packed_layout) -> dict[str, Any]:
    """Return what a callback returned as plain data."""
    found = {field.name: getattr(result, field.name) for field in fields(result)}
    values = {
        name: {"phase": _packed_phase(value, layout=layout)}
        if isinstance(value, PhaseResults)
        else _plain(value)
        for name, value in found.items()
    }
    return {"class": type(result).__name__, "fields": values}


def _said(data: Mapping[str, Any], layouts: Layouts) -> CallbackResult:
    known = {cls.__name__: cls for cls in _subclasses(CallbackResult)}
    values: dict[str, Any] = {
        name: _phase(value["phase"], layouts) if _is_phase(value) else value
        for name, value in data["fields"].items()
    }
    if data["class"] not in known:  # of a class that is not here: what it holds is not lost
        facts = {name: values.pop(name) for name in ("label", "epoch", "batch", "edge")}
        return PayloadResult(payload=values, **facts)
    said: CallbackResult = known[data["class"]](**values)
    return said


def _is_phase(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"phase"}


def _subclasses(cls: type[Any]) -> list[type[Any]]:
    found = [cls]
    for sub in cls.__subclasses__():
        found += _subclasses(sub)
    return found


def _shown(value: Any) -> Any:
    """Return numbers, and of an error its type."""
    if isinstance(value, BaseException):
        return type(value).__name__
    if isinstance(value, dict):
        return {k: _shown(v) for k, v in value.items()}
    return value if isinstance(value, int | float) else None


def _plain(value: Any) -> Any:
    """Return a value that a file can hold: itself, or what it looks like."""
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    try:
        Packer().pack(value)
    except MMLError:
        return f"not stored: {value!r}"[:200]
    return value
