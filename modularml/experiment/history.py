"""Packing of an experiment's history as plain data, and unpacking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from modularml.errors import MMLError
from modularml.experiment.run import ExperimentRun
from modularml.io.values import Packer
from modularml.results.callback_results import CallbackResult, PayloadResult
from modularml.results.callback_table import packed_callbacks, unpacked_callbacks
from modularml.results.eval_results import EvalResults, FitResults
from modularml.results.group_results import PhaseGroupResults
from modularml.results.metric_store import MetricStore
from modularml.results.phase_results import PhaseResults, TrainResults
from modularml.results.step_log import StepLog
from modularml.results.stored_steps import (
    Layouts,
    PackedLayout,
    narrow,
    packed_layout,
    packed_steps,
    unpacked_steps,
)

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
    """Return runs as plain data; other values are replaced by a description.

    Unless `whole`, recorded steps, callback results, metadata and error messages are omitted.
    """
    return [
        {**packed_run(run, {}, whole), "results": _packed_group(run.results, whole)}
        for run in history
    ]


def packed_run(run: ExperimentRun, results: Any, whole: bool = True) -> dict[str, Any]:
    """Return a run as plain data, given its packed results."""
    pack = _plain if whole else _without_rows
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
    """Unpack runs; nodes and FeatureSets of the active context match by label."""
    return [
        ExperimentRun(**{**run, "results": _unpacked_group(run["results"], layouts)})
        for run in data
    ]


def _packed_group(group: PhaseGroupResults, whole: bool) -> dict[str, Any]:
    items = [
        _packed_group(item, whole)
        if isinstance(item, PhaseGroupResults)
        else _packed_phase(item, whole)
        for _, item in group.items()
    ]
    return {"label": group.label, "items": items}


def _unpacked_group(data: Mapping[str, Any], layouts: Layouts) -> PhaseGroupResults:
    group = PhaseGroupResults(data["label"])
    for item in data["items"]:
        group.add_result((_unpacked_group if "items" in item else _unpacked_phase)(item, layouts))
    return group


def _packed_phase(
    results: PhaseResults, whole: bool = True, layout: PackedLayout = packed_layout
) -> dict[str, Any]:
    callbacks = results._callbacks if whole else []
    return {
        "class": result_class(results),
        "label": results.label,
        "metrics": packed_metrics(results._metrics),
        "callbacks": packed_callbacks(
            callbacks, partial(packed_result, layout=layout), result_class, layout
        ),
        "steps": packed_steps(results._execution, layout) if whole else None,
    }


def result_class(results: PhaseResults) -> str:
    """Return the class name under which results are stored."""
    return next(n for n, cls in reversed(_RESULTS.items()) if isinstance(results, cls))


def _unpacked_phase(data: Mapping[str, Any], layouts: Layouts) -> PhaseResults:
    callbacks = unpacked_callbacks(
        data["callbacks"],
        partial(_unpacked_result, layouts=layouts),
        _made_result,
        _RESULTS,
        layouts,
    )
    steps = StepLog(unpacked_steps(data["steps"], layouts))
    return _RESULTS[data["class"]](
        data["label"], steps, callbacks, _unpacked_metrics(data["metrics"])
    )


def packed_metrics(
    store: MetricStore, since: Mapping[str, Mapping[str, int]] | None = None
) -> dict[str, Any]:
    """Return metrics as columns by name; only those logged since these counts."""
    first = since or {"epochs": {}, "batches": {}}
    epochs = {}
    for name, values in store._epochs.items():
        if rows := values[first["epochs"].get(name, 0) :]:
            epochs[name] = {
                "epoch": narrow(np.array([e for e, _ in rows])),
                "value": np.array([v for _, v in rows]),
            }
    batches = {}
    for name in store._batches:
        blocks = store._batches[name]
        if since is not None or any(block.ndim == 2 for _, block in blocks):
            blocks = list(store.blocks(name))[first["batches"].get(name, 0) :]
        if blocks:
            batches[name] = {
                "epoch": narrow(np.array([e for e, _ in blocks])),
                "size": narrow(np.array([len(block) for _, block in blocks])),
                "rows": np.concatenate([block for _, block in blocks]),
            }
    return {"epochs": epochs, "batches": batches}


def _unpacked_metrics(data: Mapping[str, Any]) -> MetricStore:
    store = MetricStore()
    for name, column in data["epochs"].items():
        pairs = zip(column["epoch"].tolist(), column["value"].tolist(), strict=True)
        store._epochs[name] = list(pairs)
    for name, column in data["batches"].items():
        blocks = np.split(column["rows"], np.cumsum(column["size"])[:-1])
        store._batches[name] = list(zip(column["epoch"].tolist(), blocks, strict=True))
    return store


def packed_result(result: CallbackResult, layout: PackedLayout = packed_layout) -> dict[str, Any]:
    """Return a callback result as plain data."""
    values = {field.name: getattr(result, field.name) for field in fields(result)}
    packed = {
        name: {"phase": _packed_phase(value, layout=layout)}
        if isinstance(value, PhaseResults)
        else _plain(value)
        for name, value in values.items()
    }
    return {"class": type(result).__name__, "fields": packed}


def _unpacked_result(data: Mapping[str, Any], layouts: Layouts) -> CallbackResult:
    values: dict[str, Any] = {
        name: _unpacked_phase(value["phase"], layouts)
        if isinstance(value, dict) and value.keys() == {"phase"}
        else value
        for name, value in data["fields"].items()
    }
    return _made_result(data["class"], values)


def _made_result(name: str, values: dict[str, Any]) -> CallbackResult:
    """Return a callback result; one of a missing class keeps its values as payload."""
    classes = {cls.__name__: cls for cls in _subclasses(CallbackResult)}
    if name not in classes:
        common = {field: values.pop(field) for field in ("label", "epoch", "batch", "edge")}
        return PayloadResult(payload=values, **common)
    result: CallbackResult = classes[name](**values)
    return result


def _subclasses(cls: type[Any]) -> list[type[Any]]:
    classes = [cls]
    for sub in cls.__subclasses__():
        classes += _subclasses(sub)
    return classes


def _without_rows(value: Any) -> Any:
    """Return numbers, and the type of an error; None for other values."""
    if isinstance(value, BaseException):
        return type(value).__name__
    if isinstance(value, dict):
        return {k: _without_rows(v) for k, v in value.items()}
    return value if isinstance(value, int | float) else None


def _plain(value: Any) -> Any:
    """Return a value if a file can store it, else its repr."""
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    try:
        Packer().pack(value)
    except MMLError:
        return f"not stored: {value!r}"[:200]
    return value
