"""From rows to the tensors of a plan: whole columns once, batches as slices of gathered chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray
from modularml.backends import BackendAdapter, backend_of
from modularml.data.batch import Batch, BatchView, RoleData, SampleData, as_numpy
from modularml.data.collection import SampleCollection
from modularml.data.execution import ExecutionContext
from modularml.data.lineage import Source
from modularml.data.padding import held, step_weights
from modularml.data.rows import as_slice
from modularml.data.view import FeatureSetView
from modularml.errors import DataError, GraphError
from modularml.graph.casting import check_cast
from modularml.graph.plan import InputSlot, StepPlan
from modularml.graph.program import converted
from modularml.graph.sample_weights import mean_one

__all__ = ["column_tensor", "fill", "frozen_outputs", "not_finite", "pieces", "stacked"]

CHUNK_BYTES = 32 * 2**20
LEAST_ROW = 64
"""Bytes that a row is reckoned with at least: its number and its place in a chunk take some too."""


def column_tensor(collection: SampleCollection, slot: InputSlot) -> Any:
    """Return the stacked columns of a slot for all rows, as one tensor.

    It is made once for each state of the data and kept with it; columns that lie in files stay
    there, and rows of them are read when they are gathered.

    Returns
    -------
    tensor, shape (n_rows, *shape)
    """
    adapter = slot.adapter
    if collection.is_mapped(slot.columns):
        return _InFiles(collection, slot)
    key = (adapter.backend, slot.columns, slot.dtype, slot.shape, slot.padding, str(slot.device))
    if key not in collection.tensors:
        values = stacked(collection, slot)
        collection.tensors[key] = adapter.from_numpy(values, dtype=slot.dtype, device=slot.device)
    return collection.tensors[key]


def pieces(
    adapter: BackendAdapter,
    column: Any,
    rows: IntArray | slice,
    sizes: list[int],
    room: list[Any] | None = None,
    among: IntArray | slice | None = None,
    upload: Callable[[Any], Any] | None = None,
    *,
    whole_epoch: bool = False,
) -> Iterator[Any]:
    """Yield batches of a column.

    Rows are gathered in chunks of tens of megabytes; each batch is a slice of a chunk.

    Parameters
    ----------
    adapter : BackendAdapter
    column : tensor, shape (n_rows, ...)
    rows : ndarray of int64, shape (n,), or slice
        All batches of an epoch behind one another.
    sizes : list of int
        Rows in each batch.
    room : list, optional
        Holds the memory of an earlier call, which is used again: its batches are gone then.
    among : ndarray of int64 or slice, optional
        Rows of the column that `rows` are places in.
    upload : callable, optional
        Copies each chunk to where the batches are wanted.
    whole_epoch : bool
        Whether all batches of one call stay as they are until the next call.
    """
    row_bytes = max(LEAST_ROW, adapter.row_bytes(column[:1]))
    batches = max(1, CHUNK_BYTES // (row_bytes * max(1, max(sizes, default=1))))
    at = 0
    for first in range(0, len(sizes), batches):
        own = sizes[first : first + batches]
        n = sum(own)
        shared = None if first and whole_epoch else room
        into = shared[0][:n] if shared and len(shared[0]) >= n else None
        part = _part(rows, at, n)
        chunk = _gather(adapter, column, _among(among, part), into)
        if shared is not None and into is None:
            shared[:] = [chunk]
        if upload is not None:
            chunk = upload(chunk)
        even = all(size == own[0] for size in own[:-1]) and own[-1] <= own[0]
        yield from adapter.chunks(chunk, own[0] if even else own)
        at += n


def _among(among: IntArray | slice | None, places: IntArray | slice) -> IntArray | slice:
    """Return the rows at some places among others."""
    if among is None or (isinstance(among, slice) and among.start == 0):
        return places
    if not isinstance(among, slice):
        found: IntArray = among[places]
        return found
    if isinstance(places, slice):
        return slice(places.start + among.start, places.stop + among.start)
    shifted: IntArray = places + among.start
    return shifted


def _part(rows: IntArray | slice, at: int, n: int) -> IntArray | slice:
    if isinstance(rows, slice):
        return slice(rows.start + at, rows.start + at + n)
    return rows[at : at + n]


def frozen_outputs(
    plan: StepPlan, slot: InputSlot, views: Mapping[Source, FeatureSetView]
) -> Any | None:
    """Compute the outputs of a frozen node once, for every row of the views that it reads.

    Rows of several views that it reads are side by side.

    Returns
    -------
    tensor, shape (n_rows_of_a_view, ...), or None
        In the framework of the slot. None where the node does not give the same output for the
        same row each time.
    """
    static = plan.static
    if static is None:
        raise GraphError("this plan has no frozen part")
    places = np.arange(len(views[slot.source].valid_indices))
    place = [name for name, _ in static.layout.outputs].index(str(slot.node_id))
    adapter = static.layout.adapters[place]
    read = [(views[s.source], s) for s in static.slots]
    columns = [(s.adapter, column_tensor(v.collection, s), v.valid_indices) for v, s in read]
    width = max(1, sum(reader.row_bytes(column[:1]) for reader, column, _ in columns))
    size = int(np.clip(CHUNK_BYTES // width, 64, 4096))
    step = static.eval_step()

    def run(part: IntArray) -> Any:
        return step([_gather(reader, c, rows[part]) for reader, c, rows in columns])[1][place]

    with static.modes():
        if not _repeatable(adapter, run, places[:64]):
            return None
        parts = [run(places[at : at + size]) for at in range(0, len(places), size)]
    whole = adapter.concat(parts, 0) if len(parts) > 1 else parts[0]
    if adapter is slot.adapter:
        return adapter.to_device(whole, slot.device)
    return converted(adapter, slot.adapter, slot.dtype, slot.device)(whole)


def fill(plan: StepPlan, ctx: ExecutionContext) -> list[Any]:
    """Make the tensors of a plan from the batches that a step was given by hand.

    Raises
    ------
    GraphError
        If an input is missing or of a kind that cannot be read.
    """
    return [_from_given(plan, ctx, slot) for slot in plan.slots]


def _from_given(plan: StepPlan, ctx: ExecutionContext, slot: InputSlot) -> Any:
    source = slot.source
    if slot.weight_source is not None:
        weights = ctx.sample_weights(slot.weight_source)
        weights = mean_one(weights, (0, len(weights))) if slot.normalized else weights
        return slot.adapter.from_numpy(weights, dtype=slot.dtype)
    given = ctx.inputs.get((source.node_id, source.ref))
    if given is None:
        labels = plan.layout.labels
        raise GraphError(
            f"there is no input for node {labels.get(source.node_id, source.node_id)!r} from "
            f"{source.ref.node_label!r}; inputs are keyed by (node_id, reference)"
        )
    if isinstance(given, BatchView):
        rows = np.maximum(given.role_indices[slot.role], 0)
        column = column_tensor(given.source.collection, slot)
        return _gather(slot.adapter, column, np.ascontiguousarray(rows))
    if isinstance(given, Batch):
        given = given.role_data
    if isinstance(given, RoleData):
        given = given[slot.role]
    return _from_samples(slot, given)


def _from_samples(slot: InputSlot, given: Any) -> Any:
    if slot.padding != "kept":
        raise GraphError(
            f"columns {list(slot.columns)} are padded, and samples given by hand do not say which "
            "steps are data; give a BatchView, or the loss the mask as one of its inputs"
        )
    if isinstance(given, SampleData):
        domain = slot.columns[0].split(".")[0]
        given = given.get(domain)
    if isinstance(given, np.ndarray):
        values = given if slot.shape is None else given.reshape(len(given), *slot.shape)
        check_cast(slot.adapter, slot.dtype, values, " and ".join(slot.columns))
        return slot.adapter.from_numpy(values, dtype=slot.dtype, device=slot.device)
    if not hasattr(given, "shape"):
        raise GraphError(
            f"an input must be a batch, samples or a tensor, got a {type(given).__name__}"
        )
    if slot.dtype is None or given.dtype == slot.dtype or not hasattr(given, "numpy"):
        return given
    values = as_numpy(given)
    check_cast(slot.adapter, slot.dtype, values, " and ".join(slot.columns))
    if backend_of(given) is slot.adapter.backend:
        return slot.adapter.cast(given, slot.dtype)
    return slot.adapter.from_numpy(values, dtype=slot.dtype, device=slot.device)


@dataclass(frozen=True)
class _InFiles:
    """The stacked columns of a slot, as `column_tensor` gives them, where they lie in files."""

    collection: SampleCollection
    slot: InputSlot

    def __len__(self) -> int:
        return self.collection.n_samples

    def __getitem__(self, rows: slice) -> Any:
        return self.gather(np.arange(len(self))[rows])

    def gather(self, rows: IntArray) -> Any:
        values = stacked(self.collection, self.slot, rows)
        slot = self.slot
        return slot.adapter.from_numpy(values, dtype=slot.dtype, device=slot.device)


def _gather(adapter: BackendAdapter, column: Any, rows: Any, into: Any = None) -> Any:
    if isinstance(column, _InFiles):
        return column[rows] if isinstance(rows, slice) else column.gather(rows)
    return adapter.gather(column, as_slice(rows), into)


def stacked(collection: SampleCollection, slot: InputSlot, rows: IntArray | None = None) -> Array:
    """Return the columns of a slot, of all rows or some, shape (n, *shape).

    Raises
    ------
    DataError
        If the dtype of the slot does not hold their values.
    """
    for name in slot.columns if slot.columns[0].startswith("features.") else ():
        column = collection.numpy(name)
        check_cast(slot.adapter, slot.dtype, column if rows is None else column[rows], name)
    values = collection.gather(slot.columns, rows)
    if slot.padding != "kept" and (holds := held(collection, slot.columns, rows)) is not None:
        blank = np.where(holds, values, np.zeros((), values.dtype))
        values = step_weights(holds) if slot.padding == "weights" else blank
    if values.dtype.kind not in "biuf" and (slot.adapter.gradients or slot.dtype is not None):
        raise DataError(f"columns {list(slot.columns)} hold {values.dtype}; a model takes numbers")
    return values if slot.shape is None else values.reshape(len(values), *slot.shape)


def _repeatable(adapter: BackendAdapter, run: Any, rows: IntArray) -> bool:
    """Tell whether outputs depend on nothing but the row."""
    first, again = adapter.to_numpy(run(rows)), adapter.to_numpy(run(rows))
    half = adapter.to_numpy(run(rows[: max(1, len(rows) // 2)]))
    same = np.array_equal(first, again, equal_nan=True)
    return same and np.allclose(first[: len(half)], half, rtol=1e-4, atol=1e-5, equal_nan=True)


def not_finite(plan: StepPlan, ctx: ExecutionContext, batch: int) -> dict[str, list[Any]]:
    """Return columns that a plan reads and that are not finite, and where in a batch they are.

    Returns
    -------
    dict
        ``columns`` that hold NaN or infinity in some row, and of these the ``rows`` of this batch
        that do, as far as the step was given rows by number.
    """
    columns: dict[str, None] = {}
    rows = set[int]()
    for slot in plan.slots if plan.static is None else [*plan.slots, *plan.static.slots]:
        for name in slot.columns:
            values = slot.source.ref.resolve().collection.numpy(name)
            if values.dtype.kind != "f" or (fine := np.isfinite(values)).all():
                continue
            columns[name] = None
            bad = ~fine.reshape(len(values), -1).all(axis=1)
            read = ctx.rows_of(slot.source, batch).get(slot.role, np.empty(0, np.int64))
            rows.update(read[(read >= 0) & bad[read]].tolist())
    return {"columns": list(columns), "rows": sorted(rows)}
