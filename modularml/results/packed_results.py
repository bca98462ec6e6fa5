"""Packing of recorded steps and callback results as arrays, and unpacking."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import groupby, islice
from typing import Any

import numpy as np

from modularml._arguments import same
from modularml._typing import Array, IntArray
from modularml.backends import adapter_for
from modularml.context import ExperimentContext
from modularml.data.execution_context import ExecutionContext, Layout
from modularml.data.lineage import ColumnLineage, MergedColumns, Source, SourceColumns
from modularml.data.view import FeatureSetView
from modularml.errors import ConfigError
from modularml.results.metric_store import CallbackResult, MetricStore
from modularml.results.phase_results import PhaseResults
from modularml.results.step_log import EpochSteps, StepLog, numbers_of

PackedLayout = Callable[[Layout], Any]
"""Maps a layout to plain data, or to the index under which it is stored."""

Layouts = Sequence[tuple[Layout, list[Source]]]
"""Layouts by index, with their sources in order."""


def packed_layout(layout: Layout) -> dict[str, Any]:
    """Return a layout as plain data."""
    sources, named = list(layout.views), layout.labels
    views = [
        {
            "set": view.source.label,
            "rows": narrow(np.array(view.indices)),
            "columns": list(view.columns),
            "label": view.label,
        }
        for view in layout.views.values()
    ]
    lineages = [[named[n], d, _packed_lineage(f, sources)] for (n, d), f in layout.lineages.items()]
    return {
        "outputs": [[named[node_id], role] for node_id, role in layout.outputs],
        "losses": [[label, named[node_id]] for label, node_id in layout.losses],
        "flows": lineages,
        "sources": [[named[s.node_id], s.ref, v] for s, v in zip(sources, views, strict=True)],
        "nodes": list(named.values()),
        "backends": [adapter.backend.value for adapter in layout.adapters],
        "training": layout.training,
    }


def packed_steps(steps: Sequence[ExecutionContext], layout: PackedLayout = packed_layout) -> Any:
    """Return the steps of one phase as plain data; None if there are none.

    Outputs of all steps are concatenated. Targets, tags and ids are not stored, but the rows they
    belong to are. If a node was frozen in between, the result is a list of runs of steps.
    """
    runs = list((steps if isinstance(steps, StepLog) else StepLog(steps)).runs())
    if not runs or any(layout_of is None for layout_of, _ in runs):
        return None
    packed = []
    for _, pieces in groupby(runs, key=lambda run: id(run[0])):
        of_layout: list[Any] = list(pieces)
        stored = layout(of_layout[0][0])
        packed.append(_packed_run(stored, [_packed_part(run, of, {}) for of, run in of_layout]))
    return packed[0] if len(packed) == 1 else packed


def _packed_part(
    part: Sequence[ExecutionContext], layout: Layout, known: dict[Any, Any]
) -> dict[str, Any]:
    """Return steps of one layout as plain data; `known` holds what was packed of their rows."""
    epoch = part if isinstance(part, EpochSteps) else None
    places, losses, totals = numbers_of(part)
    rows_of: Any = None if epoch is None else epoch.rows
    key = None
    if hasattr(rows_of, "joined"):  # row numbers without making each step
        key = rows_of.batches_key, places[0, 1], len(part)
    if key not in known:
        rows = []
        for source in layout.views:
            if key is not None:
                values, bounds = rows_of.joined(source, *key[1:])
                joined = {role: {"values": v, "bounds": bounds} for role, v in values.items()}
            else:
                numbers = [step.indices(source) for step in part]
                joined = {role: _joined([of[role] for of in numbers]) for role in numbers[0]}
            rows.append({r: {**of, "values": narrow(of["values"])} for r, of in joined.items()})
        known[key] = {"epoch": places[:, 0], "batch": places[:, 1], "rows": rows, "totals": totals}
    if epoch is not None and epoch._whole and not epoch._files:
        pairs = zip(epoch._arrays(), epoch._whole, strict=True)
        outputs = [{"values": v, "bounds": b.astype(np.int64)} for v, (_, b) in pairs]
    else:  # in files, or not complete
        steps, adapters = list(part), enumerate(layout.adapters)
        outputs = [_joined([a.to_numpy(step.outs[i]) for step in steps]) for i, a in adapters]
    fields = known[key] if key is not None else known.pop(None)
    losses = losses.astype(np.float64)
    return {"phase": part[0].phase_label, **fields, "losses": losses, "outputs": outputs}


def _packed_run(layout: Any, pieces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def whole(name: str) -> Array:
        return np.concatenate([piece[name] for piece in pieces])

    def each(name: str) -> Iterator[tuple[Any, ...]]:
        return zip(*(piece[name] for piece in pieces), strict=True)

    rows = [
        {role: _chained([r[role] for r in parts]) for role in parts[0]} for parts in each("rows")
    ]
    return {
        "phase": pieces[0]["phase"],
        "epoch": whole("epoch"),
        "batch": whole("batch"),
        "layout": layout,
        "outputs": [_chained(parts) for parts in each("outputs")],
        "losses": whole("losses"),
        "rows": rows,
        "totals": whole("totals"),
    }


def unpacked_steps(data: Any, layouts: Layouts = ()) -> list[ExecutionContext]:
    """Unpack steps; nodes and FeatureSets of the active context match by label.

    Parameters
    ----------
    data : object
        A result of `packed_steps`, or a list of parts: the number of steps before it, and such a
        result.
    layouts : sequence of (Layout, list of Source)
        Layouts that are stored by index.
    """
    if data is None or isinstance(data, list):
        steps: list[ExecutionContext] = []
        for part in data or ():
            first, run = part if isinstance(part, list) else (len(steps), part)
            steps[first:] = unpacked_steps(run, layouts)
        return steps
    return _unpacked_run(data, [len(data["epoch"])], layouts)[0]


def layout_of_steps(steps: StepLog) -> Layout | None:
    """Return the one layout of steps; None if they have several, or there are none."""
    layouts = {id(layout): layout for layout, _ in steps.runs()}
    return next(iter(layouts.values())) if len(layouts) == 1 else None


def packed_logs(logs: Sequence[StepLog], layout: PackedLayout) -> dict[str, Any]:
    """Return steps of several phases with one layout as plain data, concatenated.

    If they all read the same rows in the same batches, these are stored once.
    """
    known: dict[Any, Any] = {}
    layout_of: Any = layout_of_steps(logs[0])
    pieces = [[_packed_part(run, layout_of, known) for _, run in log.runs()] for log in logs]
    stored = layout(layout_of)
    run = _packed_run(stored, [piece for some in pieces for piece in some])
    once = _packed_run(stored, pieces[0])
    is_same = all(
        len(some) == len(pieces[0])
        and all(same(a[n], b[n]) for a, b in zip(some, pieces[0], strict=True) for n in _OF_ROWS)
        for some in pieces
    )
    shared = {name: once[name] for name in _OF_ROWS} if is_same else {}
    return {"steps": {**run, **shared}, "counts": narrow(np.array([len(log) for log in logs]))}


def unpacked_logs(data: Mapping[str, Any], layouts: Layouts) -> list[list[ExecutionContext]]:
    """Unpack steps of several phases; the inverse of `packed_logs`."""
    return _unpacked_run(data["steps"], data["counts"].tolist(), layouts)


_OF_ROWS = ("epoch", "batch", "rows", "totals")
"""Fields of packed steps that depend on the rows that were read, and not on the outputs."""


def _unpacked_run(
    data: Mapping[str, Any], counts: Sequence[int], layouts: Layouts
) -> list[list[ExecutionContext]]:
    """Unpack a run of steps, which are those of several phases, one after another."""
    stored = data["layout"]
    layout, sources = layouts[stored] if isinstance(stored, int) else unpacked_layout(stored)
    outs = zip(layout.adapters, data["outputs"], strict=True)
    whole = [adapter.from_numpy(out["values"]) for adapter, out in outs]  # a copy, for all steps
    bounds = [out["bounds"].tolist() for out in data["outputs"]]
    values = np.asarray(data["losses"], dtype=np.float64).tolist()
    epochs, batches = data["epoch"].tolist(), data["batch"].tolist()
    totals = np.asarray(data["totals"], dtype=np.float64).tolist() if "totals" in data else None
    is_shared = len(epochs) < len(values)  # rows that all phases read
    if (
        min(counts) < 0
        or sum(counts) != len(values)
        or (is_shared and set(counts) != {len(epochs)})
    ):
        raise ValueError(f"{len(values)} steps are not those of phases of {counts[:8]} steps")
    logs: list[list[ExecutionContext]] = []
    first = 0
    for n in counts:
        at = 0 if is_shared else first
        if not (is_shared and logs):
            places = {p: at + i for i, p in enumerate(zip(epochs[at:][:n], batches[at:][:n]))}  # noqa: B905
            rows = dict(zip(sources, data["rows"], strict=True))
        log = []
        for i in range(n):
            step = ExecutionContext(data["phase"], epochs[at + i], batches[at + i])
            step.layout, step.values = layout, values[first + i]
            step.totals = None if totals is None else totals[at + i]
            step.outs = [
                v[b[first + i] : b[first + i + 1]] for v, b in zip(whole, bounds, strict=True)
            ]
            step.rows = partial(_stored_rows, rows, places, epochs[at + i])
            log.append(step)
        logs.append(log)
        first += n
    return logs


def _stored_rows(
    rows: Mapping[Source, Any],
    places: Mapping[tuple[int, int], int],
    epoch: int,
    source: Source,
    batch: int,
) -> Mapping[str, IntArray]:
    """Return the stored row numbers of a source in one step, by role."""
    step, numbers = places[(epoch, batch)], {}
    for role, joined in rows[source].items():
        start, stop = joined["bounds"][step : step + 2]
        numbers[role] = joined["values"][start:stop].astype(np.int64)
    return numbers


def narrow(rows: IntArray) -> IntArray:
    """Return integers in the smallest dtype."""
    ends = [rows.min(initial=0), rows.max(initial=0)]
    return rows.astype(np.result_type(*map(np.min_scalar_type, ends)))


def _joined(parts: Sequence[Array]) -> dict[str, Array]:
    bounds = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
    return {"values": np.concatenate(parts), "bounds": bounds}


def _chained(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    sizes = np.concatenate([np.diff(part["bounds"]) for part in parts])
    values = np.concatenate([part["values"] for part in parts])
    return {"values": values, "bounds": narrow(np.cumsum([0, *sizes], dtype=np.int64))}


def unpacked_layout(data: Mapping[str, Any]) -> tuple[Layout, list[Source]]:
    """Unpack a layout, with its sources in order."""
    ctx = ExperimentContext.get_active()
    ids = {label: ctx.get_node(label=label).node_id for label in data["nodes"]}
    sources = [Source(ids[label], ref) for label, ref, _ in data["sources"]]
    views = []
    for *_, view in data["sources"]:
        fs: Any = ctx.get_node(label=view["set"])
        rows = view["rows"].astype(np.int64)
        views.append(FeatureSetView(fs, rows, view["columns"], view["label"]))
    backends = data.get("backends") or [data["backend"]] * len(data["outputs"])
    layout = Layout(
        outputs=tuple((ids[label], role) for label, role in data["outputs"]),
        losses=tuple((label, ids[node]) for label, node in data["losses"]),
        lineages={(ids[n], d): _unpacked_lineage(f, sources) for n, d, f in data["flows"]},
        adapters=tuple(map(adapter_for, backends)),
        labels={node_id: label for label, node_id in ids.items()},
        views=dict(zip(sources, views, strict=True)),
        training=data["training"],
        weight_sources=(None,) * len(data["losses"]),
        over_batch=(False,) * len(data["losses"]),
    )
    return layout, sources


def _packed_lineage(lineage: ColumnLineage, sources: list[Source]) -> Any:
    if lineage is None:
        return None
    if isinstance(lineage, SourceColumns):
        return {"source": sources.index(lineage.source), "columns": list(lineage.columns)}
    merge: Any = lineage.merge
    if not isinstance(merge, partial) or set(merge.keywords) != {"domain"}:
        raise ConfigError(
            "a merge of targets or tags outside a node cannot be stored; merge them in a node"
        )
    parts = [_packed_lineage(part, sources) for part in lineage.parts]
    node = merge.func.__self__.label  # type: ignore[attr-defined]
    return {"parts": parts, "node": node, "domain": merge.keywords["domain"]}


def _unpacked_lineage(data: Any, sources: list[Source]) -> ColumnLineage:
    if data is None:
        return None
    if "source" in data:
        return SourceColumns(sources[data["source"]], tuple(data["columns"]))
    node: Any = ExperimentContext.get_active().get_node(label=data["node"])
    parts = tuple(_unpacked_lineage(part, sources) for part in data["parts"])
    return MergedColumns(parts, partial(node.apply_merge, domain=data["domain"]))


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
    make: Callable[[str, dict[str, Any]], CallbackResult],
    phase_classes: Mapping[str, Callable[..., PhaseResults]],
    layouts: Layouts,
) -> list[CallbackResult]:
    """Unpack callback results, in their order; the inverse of `packed_callbacks`.

    `make` takes the name of a class and its fields.
    """
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
        elif kind not in _SCALARS or (kind is int and not -(2**63) <= value < 2**63):
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
