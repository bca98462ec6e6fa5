"""Callback results as columns, for files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from typing import Any

import numpy as np

from modularml.results.metric_store import CallbackResult, MetricStore
from modularml.results.phase_results import PhaseResults
from modularml.results.step_log import StepLog
from modularml.results.stored_steps import (
    Layouts,
    PackedLayout,
    layout_of_steps,
    narrow,
    packed_logs,
    unpacked_logs,
)

__all__ = ["packed_callbacks", "unpacked_callbacks"]

Make = Callable[[str, dict[str, Any]], CallbackResult]
"""Makes a callback result from the name of its class and its fields."""

_INT64 = range(-(2**63), 2**63)


def packed_callbacks(
    results: Sequence[CallbackResult],
    pack: Callable[[CallbackResult], Any],
    name_of: Callable[[PhaseResults], str],
    layout: PackedLayout,
) -> list[Any]:
    """Return callback results as plain data.

    Results of one class whose fields have the same types are one table, with their positions under
    ``at``; others are packed by `pack`. `name_of` returns the class name of results of a phase.
    """
    groups: dict[Any, list[int]] = {}
    for i, result in enumerate(results):
        kind = _kind(result)
        groups.setdefault(i if kind is None else kind, []).append(i)
    packed: list[Any] = []
    for places in groups.values():
        if len(places) == 1:
            packed.append(pack(results[places[0]]))
            continue
        first = results[places[0]]
        columns = {
            field.name: _column([getattr(results[i], field.name) for i in places], name_of, layout)
            for field in fields(first)
        }
        at = narrow(np.array(places))
        packed.append({"class": type(first).__name__, "at": at, "columns": columns})
    return packed


def unpacked_callbacks(
    items: Sequence[Any],
    unpack: Callable[[Any], CallbackResult],
    make: Make,
    phase_classes: Mapping[str, Callable[..., PhaseResults]],
    layouts: Layouts,
) -> list[CallbackResult]:
    """Unpack callback results, in their order; the inverse of `packed_callbacks`."""
    alone, placed = [], dict[int, CallbackResult]()
    for item in items:
        if "columns" not in item:
            alone.append(unpack(item))
            continue
        at = item["at"].tolist()
        columns = {
            name: _values(column, len(at), phase_classes, layouts)
            for name, column in item["columns"].items()
        }
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        if not placed.keys().isdisjoint(at) or len(set(at)) < len(at):
            raise ValueError("two callback results have one position")
        placed |= {i: make(item["class"], row) for i, row in zip(at, rows, strict=True)}
    others = iter(alone)
    n = len(alone) + len(placed)
    return [placed[i] if i in placed else next(others) for i in range(n)]


_SCALARS = {type(None), bool, int, float, str}


def _kind(result: CallbackResult) -> Any:
    """Return what results of one table have in common; None if a result is stored alone."""
    kinds: list[Any] = [type(result)]
    for field in fields(result):
        value = getattr(result, field.name)
        kind: Any = type(value)
        if isinstance(value, PhaseResults):
            layout = layout_of_steps(value._execution)
            if layout is None or value._callbacks or value._metrics._batches:
                return None
            kind = kind, value.label, id(layout), tuple(value._metrics._epochs)
        elif kind not in _SCALARS or (kind is int and value not in _INT64):
            return None
        kinds.append(kind)
    return tuple(kinds)


def _column(
    values: list[Any], name_of: Callable[[PhaseResults], str], layout: PackedLayout
) -> dict[str, Any]:
    first = values[0]
    if type(first) is float:
        return {"numbers": np.array(values)}
    if not isinstance(first, PhaseResults):
        if all(value == first for value in values):
            return {"value": first}
        return {"numbers": narrow(np.array(values))} if type(first) is int else {"values": values}
    epochs = {}
    for name in first._metrics._epochs:
        logged = [phase._metrics._epochs[name] for phase in values]
        rows = [row for rows in logged for row in rows]
        epochs[name] = {
            "epoch": np.array([epoch for epoch, _ in rows], dtype=np.int64),
            "value": np.array([value for _, value in rows], dtype=np.float64),
            "counts": narrow(np.array([len(rows) for rows in logged])),
        }
    logs = packed_logs([phase._execution for phase in values], layout)
    return {"phases": {"class": name_of(first), "label": first.label, "epochs": epochs, **logs}}


def _values(
    column: Mapping[str, Any],
    n: int,
    phase_classes: Mapping[str, Callable[..., PhaseResults]],
    layouts: Layouts,
) -> list[Any]:
    ((kind, data),) = column.items()
    if kind == "value":
        return [data] * n
    if kind != "phases":
        return list(data.tolist() if kind == "numbers" else data)
    cls, logs = phase_classes[data["class"]], unpacked_logs(data, layouts)
    phases = [cls(data["label"], StepLog(steps), [], MetricStore()) for steps in logs]
    for name, logged in data["epochs"].items():
        rows = zip(logged["epoch"].tolist(), logged["value"].tolist(), strict=True)
        for phase, count in zip(phases, logged["counts"].tolist(), strict=True):
            phase._metrics._epochs[name] = list(islice(rows, count))
    return phases
