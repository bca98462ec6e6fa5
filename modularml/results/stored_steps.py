"""Packing of recorded steps as arrays, and unpacking."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray
from modularml.backends import adapter_for
from modularml.context import ExperimentContext
from modularml.data.execution import ExecutionContext, Layout
from modularml.data.lineage import ColumnLineage, MergedColumns, Source, SourceColumns
from modularml.data.view import FeatureSetView
from modularml.errors import ConfigError
from modularml.results.step_log import EpochSteps, StepLog

__all__ = [
    "Layouts",
    "PackedLayout",
    "packed_layout",
    "packed_steps",
    "unpacked_layout",
    "unpacked_steps",
]

PackedLayout = Callable[[Layout], Any]
"""Maps a layout to plain data, or to the index under which it is stored."""

Layouts = Sequence[tuple[Layout, list[Source]]]
"""Layouts by index, with their sources in order."""


def packed_layout(layout: Layout) -> dict[str, Any]:
    """Return a layout as plain data."""
    sources, named = list(layout.views), layout.labels
    lineages = [[named[n], d, _packed_lineage(f, sources)] for (n, d), f in layout.lineages.items()]
    return {
        "outputs": [[named[node_id], role] for node_id, role in layout.outputs],
        "losses": [[label, named[node_id]] for label, node_id in layout.losses],
        "flows": lineages,
        "sources": [[named[s.node_id], s.ref, _packed_view(layout.views[s])] for s in sources],
        "nodes": list(named.values()),
        "backends": [adapter.backend.value for adapter in layout.adapters],
        "training": layout.training,
    }


def packed_steps(steps: Sequence[ExecutionContext], layout: PackedLayout = packed_layout) -> Any:
    """Return the steps of one phase as plain data; None if there are none.

    Outputs of all steps are concatenated. Targets, tags and ids are not stored, but the rows they
    belong to are. If a node was frozen in between, the result is a list of runs of steps.
    """
    parts = steps.parts if isinstance(steps, StepLog) else [steps]
    pieces = [piece for part in parts if len(part) for piece in _pieces(part)]
    if not pieces or any(layout_of is None for layout_of, _ in pieces):
        return None
    by_layout = groupby(pieces, key=lambda piece: id(piece[0]))
    runs = [
        _packed_run(layout(run[0][0]), [p for _, p in run])
        for run in (list(group) for _, group in by_layout)
    ]
    return runs[0] if len(runs) == 1 else runs


def _pieces(part: Sequence[ExecutionContext]) -> list[tuple[Any, dict[str, Any]]]:
    """Return the steps of a part with one layout each, packed."""
    if isinstance(part, EpochSteps):
        return [(part.layout, _packed_epoch(part))]
    if any(step.layout is None for step in part):
        return [(None, {})]
    runs = (list(run) for _, run in groupby(part, key=lambda step: id(step.layout)))
    return [(run[0].layout, {**_common_fields(run), "outputs": _outputs(run)}) for run in runs]


def _packed_epoch(part: EpochSteps) -> dict[str, Any]:
    if part._files or not part._whole:  # in files, or not complete
        steps = list(part)
        return {**_common_fields(steps), "outputs": _outputs(steps)}
    bounds = [part_bounds.astype(np.int64) for _, part_bounds in part._whole]
    pairs = zip(part._arrays(), bounds, strict=True)
    fields = _epoch_fields(part) if hasattr(part.rows, "joined") else _common_fields(list(part))
    return {**fields, "outputs": [{"values": v, "bounds": b} for v, b in pairs]}


def _epoch_fields(part: EpochSteps) -> dict[str, Any]:
    """Return what `_common_fields` does, without making each step."""
    n, rows = len(part), []
    for source in part.layout.views:
        values, bounds = part.rows.joined(source, part.first, n)  # type: ignore[union-attr]
        rows.append({r: {"values": _narrow(v), "bounds": bounds} for r, v in values.items()})
    return {
        "phase": part.phase,
        "epoch": np.full(n, part.epoch, dtype=np.int64),
        "batch": np.arange(part.first, part.first + n, dtype=np.int64),
        "losses": np.array(part.losses, dtype=np.float64),
        "rows": rows,
        "totals": part.totals(),
    }


def _common_fields(steps: Sequence[ExecutionContext]) -> dict[str, Any]:
    layout = steps[0]._layout()
    losses = [[record.value for record in step.losses] for step in steps]
    return {
        "phase": steps[0].phase_label,
        "epoch": np.array([s.epoch_idx for s in steps], dtype=np.int64),
        "batch": np.array([s.batch_idx for s in steps], dtype=np.int64),
        "losses": np.array(losses, dtype=np.float64).reshape(len(steps), len(layout.losses)),
        "rows": [_rows(steps, source) for source in layout.views],
        "totals": np.array([s.loss_totals() for s in steps], dtype=np.float64),
    }


def _outputs(steps: Sequence[ExecutionContext]) -> list[dict[str, Array]]:
    adapters = steps[0]._layout().adapters
    return [_joined([a.to_numpy(s.outs[i]) for s in steps]) for i, a in enumerate(adapters)]


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
    steps: list[ExecutionContext] = []
    if data is None or isinstance(data, list):
        for part in data or ():
            first, run = part if isinstance(part, list) else (len(steps), part)
            steps[first:] = unpacked_steps(run, layouts)
        return steps
    stored = data["layout"]
    layout, sources = layouts[stored] if isinstance(stored, int) else unpacked_layout(stored)
    rows = _StoredRows(sources, data["rows"], data["epoch"], data["batch"])
    outs = zip(layout.adapters, data["outputs"], strict=True)
    whole = [adapter.from_numpy(out["values"]) for adapter, out in outs]  # a copy, for all steps
    for i, (epoch, batch) in enumerate(zip(data["epoch"], data["batch"], strict=True)):
        step = ExecutionContext(data["phase"], int(epoch), int(batch))
        step.layout, step.values = layout, [float(v) for v in data["losses"][i]]
        step.totals = [float(t) for t in data["totals"][i]] if "totals" in data else None
        bounds = (out["bounds"] for out in data["outputs"])
        step.outs = [v[b[i] : b[i + 1]] for v, b in zip(whole, bounds, strict=True)]
        step.rows = partial(rows, int(epoch))
        steps.append(step)
    return steps


class _StoredRows:
    """Stored row numbers of each source, by step and role."""

    def __init__(
        self, sources: Sequence[Source], rows: Sequence[Any], epochs: IntArray, batches: IntArray
    ) -> None:
        self.places = {key: i for i, key in enumerate(zip(map(int, epochs), map(int, batches)))}  # noqa: B905
        self.rows = dict(zip(sources, rows, strict=True))

    def __call__(self, epoch: int, source: Source, batch: int) -> Mapping[str, IntArray]:
        step = self.places[(epoch, batch)]
        parts = {role: _part(joined, step) for role, joined in self.rows[source].items()}
        return {role: rows.astype(np.int64) for role, rows in parts.items()}


def _rows(steps: Sequence[ExecutionContext], source: Source) -> dict[str, Any]:
    row_numbers = [step.indices(source) for step in steps]
    joined = {role: _joined([rows[role] for rows in row_numbers]) for role in row_numbers[0]}
    return {role: {**part, "values": _narrow(part["values"])} for role, part in joined.items()}


def _narrow(rows: IntArray) -> IntArray:
    """Return row numbers in the smallest integer dtype."""
    ends = [rows.min(initial=0), rows.max(initial=0)]
    return rows.astype(np.result_type(*map(np.min_scalar_type, ends)))


def _joined(parts: Sequence[Array]) -> dict[str, Array]:
    bounds = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
    return {"values": np.concatenate(parts), "bounds": bounds}


def _chained(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    sizes = np.concatenate([np.diff(part["bounds"]) for part in parts])
    values = np.concatenate([part["values"] for part in parts])
    return {"values": values, "bounds": np.cumsum([0, *sizes], dtype=np.int64)}


def _part(joined: Mapping[str, Array], i: int) -> Array:
    bounds = joined["bounds"]
    return joined["values"][bounds[i] : bounds[i + 1]]


def unpacked_layout(data: Mapping[str, Any]) -> tuple[Layout, list[Source]]:
    """Unpack a layout, with its sources in order."""
    ctx = ExperimentContext.get_active()
    ids = {label: ctx.get_node(label=label).node_id for label in data["nodes"]}
    sources = [Source(ids[label], ref) for label, ref, _ in data["sources"]]
    views = [_unpacked_view(view) for *_, view in data["sources"]]
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


def _packed_view(view: FeatureSetView) -> dict[str, Any]:
    fields = {"columns": list(view.columns), "label": view.label}
    return {"set": view.source.label, "rows": _narrow(np.array(view.indices)), **fields}


def _unpacked_view(data: Mapping[str, Any]) -> FeatureSetView:
    fs: Any = ExperimentContext.get_active().get_node(label=data["set"])
    return FeatureSetView(fs, data["rows"].astype(np.int64), data["columns"], data["label"])


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
