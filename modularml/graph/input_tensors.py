"""Tensors of a plan from rows: cached columns, and batches sliced from gathered chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray
from modularml.backends import BackendAdapter, backend_of
from modularml.backends.base import NotFiniteError
from modularml.data.batch import Batch, BatchView, RoleData, SampleData, as_numpy
from modularml.data.collection import SampleCollection, block_rows
from modularml.data.execution_context import ExecutionContext
from modularml.data.ids import as_slice
from modularml.data.lineage import Source
from modularml.data.memory_map import MappedRows, write_rows
from modularml.data.samples import held, step_weights
from modularml.data.view import FeatureSetView
from modularml.errors import DataError, GraphError, NonFiniteLossError
from modularml.graph.calling import check_cast, may_change
from modularml.graph.framework_segment import InputSlot, converted
from modularml.graph.step_plan import StepPlan

CHUNK_BYTES = 4 * 2**20
BLOCK_ROWS = 2**16
"""Rows of columns that are stacked at once."""
LEAST_ROW = 64
"""Minimum bytes counted for a row, which include its index and position in a chunk."""


def column_tensor(
    collection: SampleCollection, slot: InputSlot, *, in_windows: bool = False
) -> Any:
    """Return the stacked columns of a slot for all rows, as one tensor.

    The tensor is cached with the data until these change. Columns in memory-mapped files stay
    there; their rows are read when they are gathered.

    Parameters
    ----------
    collection : SampleCollection
    slot : InputSlot
    in_windows : bool
        Whether the rows gathered one after the other are close in the file. Several mapped columns
        are then written to another temporary file row by row, which is cached too.

    Returns
    -------
    tensor, shape (n_rows, *shape)
    """
    adapter = slot.adapter
    if collection.is_mapped(slot.columns):
        return _row_file(collection, slot) if in_windows else _InFiles(collection, slot)
    key = (adapter.backend, slot.columns, slot.dtype, slot.shape, slot.padding, str(slot.device))
    if key not in collection.tensors:
        n = collection.n_samples
        size = n if slot.dtype is None else BLOCK_ROWS  # without a dtype it depends on all values
        parts = [slice(at, at + size) for at in range(0, n, size)] if n > size else [None]
        tensors = (
            adapter.from_numpy(
                stacked(collection, slot, part), dtype=slot.dtype, device=slot.device
            )
            for part in parts
        )
        collection.tensors[key] = adapter.assemble(n, tensors) if n > size else next(tensors)
    return collection.tensors[key]


def pieces(
    adapter: BackendAdapter,
    column: Any,
    rows: IntArray | slice,
    sizes: list[int],
    memory: list[Any] | None = None,
    subset: IntArray | slice | None = None,
    upload: Callable[[Any], Any] | None = None,
    *,
    whole_epoch: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[Any]:
    """Yield batches of a column.

    Rows are gathered in chunks, by default of megabytes; each batch is a slice of a chunk.

    Parameters
    ----------
    adapter : BackendAdapter
    column : tensor, shape (n_rows, ...)
    rows : ndarray of int64, shape (n,), or slice
        All batches of an epoch, concatenated.
    sizes : list of int
        Rows in each batch.
    memory : list, optional
        Buffer of an earlier call, which is reused; this overwrites the batches of that call.
    subset : ndarray of int64 or slice, optional
        Rows of the column that `rows` are positions in.
    upload : callable, optional
        Copies each chunk to the device of the batches.
    whole_epoch : bool
        Whether all batches of a call stay valid until the next call.
    chunk_bytes : int
        Size of a chunk; it holds at least one batch.
    """
    row_bytes = max(LEAST_ROW, adapter.row_bytes(column[:1]))
    batches = max(1, chunk_bytes // (row_bytes * max(1, max(sizes, default=1))))
    at = 0
    for first in range(0, len(sizes), batches):
        chunk_sizes = sizes[first : first + batches]
        n = sum(chunk_sizes)
        buffer = None if first and whole_epoch else memory
        out = buffer[0][:n] if buffer and len(buffer[0]) >= n else None
        part: Any
        if isinstance(rows, slice):
            part = slice(rows.start + at, rows.start + at + n)
        else:
            part = rows[at : at + n]
        if isinstance(subset, np.ndarray):
            part = subset[part]
        elif subset is not None and (start := subset.start):
            is_slice = isinstance(part, slice)
            part = slice(part.start + start, part.stop + start) if is_slice else part + start
        chunk = _gather(adapter, column, part, out)
        if buffer is not None and out is None:
            buffer[:] = [chunk]
        if upload is not None:
            chunk = upload(chunk)
        even = len({*chunk_sizes[:-1]}) < 2 and chunk_sizes[-1] <= chunk_sizes[0]
        yield from adapter.chunks(chunk, chunk_sizes[0] if even else chunk_sizes)
        at += n


def frozen_outputs(
    plan: StepPlan, slot: InputSlot, views: Mapping[Source, FeatureSetView]
) -> Any | None:
    """Compute the outputs of a frozen node once, for all rows of the views it reads.

    Rows of several views are matched by position.

    Returns
    -------
    tensor, shape (n_rows_of_a_view, ...), or None
        In the framework of the slot. None if the node's output for a row is not reproducible.
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
    outputs = adapter.concat(parts, 0) if len(parts) > 1 else parts[0]
    if adapter is slot.adapter:
        return adapter.to_device(outputs, slot.device)
    return converted(adapter, slot.adapter, slot.dtype, slot.device)(outputs)


def fill(plan: StepPlan, ctx: ExecutionContext) -> list[Any]:
    """Return the tensors of a plan from batches passed to a step directly.

    Raises
    ------
    GraphError
        If an input is missing or of an unsupported kind.
    """
    views = {} if ctx.layout is None else dict(ctx.layout.views)
    for key, value in ctx.inputs.items():
        if isinstance(value, BatchView):
            views[Source(*key)] = value.source
    ctx.layout = replace(plan.layout, views=views)
    return [_input_tensor(plan, ctx, slot) for slot in plan.slots]


def _input_tensor(plan: StepPlan, ctx: ExecutionContext, slot: InputSlot) -> Any:
    source = slot.source
    if slot.weight_source is not None:
        weights = ctx.sample_weights(slot.weight_source)
        weights = mean_one(weights, (0, len(weights))) if slot.normalized else weights
        return slot.adapter.from_numpy(weights, dtype=slot.dtype)
    value = ctx.inputs.get((source.node_id, source.ref))
    if value is None:
        labels = plan.layout.labels
        raise GraphError(
            f"there is no input for node {labels.get(source.node_id, source.node_id)!r} from "
            f"{source.ref.node_label!r}; inputs are keyed by (node_id, reference)"
        )
    if isinstance(value, BatchView):
        rows = np.maximum(value.role_indices[slot.role], 0)
        column = column_tensor(value.source.collection, slot)
        return _gather(slot.adapter, column, np.ascontiguousarray(rows))
    if isinstance(value, Batch):
        value = value.role_data
    if isinstance(value, RoleData):
        value = value[slot.role]
    if slot.padding != "kept":
        raise GraphError(
            f"columns {list(slot.columns)} are padded, and samples passed directly have no mask; "
            "pass a BatchView, or add the mask to the inputs of the loss"
        )
    if isinstance(value, SampleData):
        domain = slot.columns[0].split(".")[0]
        value = value.get(domain)
    if isinstance(value, np.ndarray):
        values = value if slot.shape is None else value.reshape(len(value), *slot.shape)
        check_cast(slot.adapter, slot.dtype, values, " and ".join(slot.columns))
        return slot.adapter.from_numpy(values, dtype=slot.dtype, device=slot.device)
    if not hasattr(value, "shape"):
        raise GraphError(
            f"an input must be a batch, samples or a tensor, got a {type(value).__name__}"
        )
    if slot.dtype is None or value.dtype == slot.dtype or not hasattr(value, "numpy"):
        return value
    values = as_numpy(value)
    check_cast(slot.adapter, slot.dtype, values, " and ".join(slot.columns))
    if backend_of(value) is slot.adapter.backend:
        return slot.adapter.cast(value, slot.dtype)
    return slot.adapter.from_numpy(values, dtype=slot.dtype, device=slot.device)


@dataclass(frozen=True)
class _InFiles:
    """The stacked columns of a slot in memory-mapped files; see `column_tensor`."""

    collection: SampleCollection
    slot: InputSlot

    def __len__(self) -> int:
        return self.collection.n_samples

    def __getitem__(self, rows: slice) -> Any:
        return self.gather(rows)

    def gather(self, rows: IntArray | slice, into: Any = None) -> Any:
        values = stacked(self.collection, self.slot, rows)
        slot = self.slot
        return slot.adapter.from_numpy(values, dtype=slot.dtype, device=slot.device)


@dataclass(frozen=True)
class _RowFile:
    """The stacked columns of a slot in one memory-mapped file, row by row; see `column_tensor`."""

    rows: MappedRows
    slot: InputSlot

    def __getitem__(self, rows: slice) -> Any:
        return self.gather(rows)

    def gather(self, rows: IntArray | slice, into: Any = None) -> Any:
        adapter, slot, values = self.slot.adapter, self.slot, self.rows.values
        self.rows.prefetch(rows)
        if adapter.from_numpy(values[:0]).dtype == slot.dtype:
            on_host = slot.device is None or str(slot.device) == "cpu"
            tensor = adapter.take(values, rows, into if on_host else None)
            tensor = tensor if on_host else adapter.to_device(tensor, slot.device)
        else:
            taken = np.take(values, rows, axis=0) if isinstance(rows, np.ndarray) else values[rows]
            if _is_checked(slot):
                check_cast(adapter, slot.dtype, taken, slot.columns[0])
            tensor = adapter.from_numpy(taken, dtype=slot.dtype, device=slot.device)
        self.rows.release()
        return tensor


def _row_file(collection: SampleCollection, slot: InputSlot) -> _RowFile:
    """Return a mapped column as it is, or write several to a file row by row."""
    if len(slot.columns) == 1 and slot.padding == "kept":
        (name,) = slot.columns
        values = collection.numpy(name)[:, None]
        values = values if slot.shape is None else values.reshape(len(values), *slot.shape)
        return _RowFile(MappedRows(values, collection.maps[name]), slot)
    key = ("rows", slot.adapter.backend, slot.columns, slot.dtype, slot.shape, slot.padding)
    if key not in collection.tensors:
        names = collection.schema.with_masks(slot.columns)
        size = block_rows({name: collection.numpy(name) for name in names})
        blocks = (
            stacked(collection, slot, slice(at, at + size))
            for at in range(0, collection.n_samples, size)
        )
        if slot.dtype is not None:  # in it, or in a dtype of numpy that holds all values of it
            to_numpy, from_numpy = slot.adapter.to_numpy, slot.adapter.from_numpy
            blocks = (to_numpy(from_numpy(block, dtype=slot.dtype)) for block in blocks)
        collection.tensors[key] = write_rows(blocks, collection.n_samples)
    return _RowFile(collection.tensors[key], slot)


def _gather(adapter: BackendAdapter, column: Any, rows: Any, into: Any = None) -> Any:
    if isinstance(column, _RowFile | _InFiles):
        return column.gather(as_slice(rows), into)
    return adapter.gather(column, as_slice(rows), into)


def stacked(
    collection: SampleCollection, slot: InputSlot, rows: IntArray | slice | None = None
) -> Array:
    """Return the stacked columns of a slot, shape (n, *shape), of all or some rows.

    Raises
    ------
    DataError
        If the dtype of the slot cannot represent their values.
    """
    adapter, dtype, schema = slot.adapter, slot.dtype, collection.schema
    names = slot.columns if _is_checked(slot) else ()
    checked = [name for name in names if may_change(adapter, dtype, schema[name].dtype)]
    in_order = np.sort(rows) if checked and isinstance(rows, np.ndarray) else rows
    for name in checked:
        check_cast(adapter, dtype, collection.gather((name,), in_order)[:, 0], name)
    values = collection.gather(slot.columns, rows)
    if slot.padding != "kept" and (mask := held(collection, slot.columns, rows)) is not None:
        blank = np.where(mask, values, np.zeros((), values.dtype))
        values = step_weights(mask) if slot.padding == "weights" else blank
    if values.dtype.kind not in "biuf" and (slot.adapter.gradients or slot.dtype is not None):
        raise DataError(f"columns {list(slot.columns)} hold {values.dtype}; a model takes numbers")
    return values if slot.shape is None else values.reshape(len(values), *slot.shape)


def _is_checked(slot: InputSlot) -> bool:
    """Return whether casts to the dtype of a slot are checked: those of features are."""
    return slot.columns[0].startswith("features.")


def _repeatable(adapter: BackendAdapter, run: Any, rows: IntArray) -> bool:
    """Return whether outputs depend only on the row."""
    first, again = adapter.to_numpy(run(rows)), adapter.to_numpy(run(rows))
    half = adapter.to_numpy(run(rows[: max(1, len(rows) // 2)]))
    same = np.array_equal(first, again, equal_nan=True)
    return same and np.allclose(first[: len(half)], half, rtol=1e-4, atol=1e-5, equal_nan=True)


def mean_one(values: Array, bounds: Sequence[int] | Array) -> Array:
    """Return weights scaled to mean 1 in each batch; all-zero batches stay 0."""
    starts = np.asarray(bounds[:-1])
    sizes, sums = np.diff(bounds), np.add.reduceat(values, starts)
    factors = np.divide(sizes, sums, out=np.zeros(len(sums)), where=sums > 0)
    scaled: Array = values * np.repeat(factors, sizes)
    return scaled


def not_finite(plan: StepPlan, ctx: ExecutionContext, batch: int) -> dict[str, list[Any]]:
    """Return the columns and rows of a batch with values that are not finite.

    Returns
    -------
    dict
        ``columns`` of the plan that hold NaN or infinity in any row, and the ``rows`` of this batch
        that do, if the step got rows by number.
    """
    columns: dict[str, None] = {}
    rows = set[int]()
    for slot in plan.slots if plan.static is None else [*plan.slots, *plan.static.slots]:
        for name in slot.columns:
            values = slot.source.ref.resolve().collection.numpy(name)
            if values.dtype.kind != "f" or (finite := np.isfinite(values)).all():
                continue
            columns[name] = None
            bad = ~finite.reshape(len(values), -1).all(axis=1)
            rows_read = ctx.rows_of(slot.source, batch).get(slot.role, np.empty(0, np.int64))
            rows.update(rows_read[(rows_read >= 0) & bad[rows_read]].tolist())
    return {"columns": list(columns), "rows": sorted(rows)}


def run_step(
    ctx: ExecutionContext, plan: StepPlan, step: Callable[..., Any], tensors: Any = None
) -> None:
    """Run a step on tensors, by default its own, and write the results to its context.

    Raises
    ------
    NonFiniteLossError
        If a loss is NaN or infinite, with its position in the phase.
    """
    try:
        ctx.values, ctx.outs = step(ctx.tensors if tensors is None else tensors)
    except NotFiniteError as error:
        label, node_id = plan.layout.losses[error.place]
        raise NonFiniteLossError(
            phase=ctx.phase_label,
            epoch=ctx.epoch_idx,
            batch=ctx.batch_idx,
            node=plan.layout.labels[node_id],
            loss=label if error.of == "loss" else f"{label} ({error.of})",
            value=error.value,
            **not_finite(plan, ctx, ctx.batch_idx),
        ) from None
    except Exception as error:
        error.add_note(f"(phase {ctx.phase_label!r}, epoch {ctx.epoch_idx}, batch {ctx.batch_idx})")
        raise
    ctx.layout = ctx.layout or plan.layout
