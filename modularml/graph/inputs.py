"""From rows to the tensors of a plan: whole columns once, batches as slices of gathered chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray
from modularml.backends import BackendAdapter
from modularml.data.batch import Batch, BatchView, RoleData, SampleData
from modularml.data.collection import SampleCollection
from modularml.data.execution import ExecutionContext
from modularml.data.formats import stack
from modularml.data.view import FeatureSetView
from modularml.errors import DataError, GraphError
from modularml.graph.plan import InputSlot, StepPlan

__all__ = ["column_tensor", "fill", "frozen_outputs", "pieces"]

CHUNK_BYTES = 32 * 2**20


def column_tensor(
    adapter: BackendAdapter, collection: SampleCollection, slot: InputSlot, device: Any = None
) -> Any:
    """Return the stacked columns of a slot for all rows, as one tensor.

    It is made once for each state of the data and kept with it.

    Returns
    -------
    tensor, shape (n_rows, *shape)
    """
    key = (adapter.backend, slot.columns, slot.dtype, slot.shape, str(device))
    if key not in collection.tensors:
        values = _stacked(collection, slot)
        collection.tensors[key] = adapter.from_numpy(values, dtype=slot.dtype, device=device)
    return collection.tensors[key]


def pieces(
    adapter: BackendAdapter,
    column: Any,
    rows: IntArray,
    sizes: list[int],
    room: list[Any] | None = None,
    *,
    whole_epoch: bool = False,
) -> Iterator[Any]:
    """Yield batches of a column.

    Rows are gathered in chunks of tens of megabytes; each batch is a slice of a chunk.

    Parameters
    ----------
    adapter : BackendAdapter
    column : tensor, shape (n_rows, ...)
    rows : ndarray of int64, shape (n,)
        All batches of an epoch behind one another.
    sizes : list of int
        Rows in each batch.
    room : list, optional
        Holds the memory of an earlier call, which is used again: its batches are gone then.
    whole_epoch : bool
        Whether all batches of one call stay as they are until the next call.
    """
    row_bytes = max(1, int(column[:1].nbytes if len(column) else 1))
    batches = max(1, CHUNK_BYTES // (row_bytes * max(1, max(sizes, default=1))))
    at = 0
    for first in range(0, len(sizes), batches):
        own = sizes[first : first + batches]
        n = sum(own)
        shared = None if first and whole_epoch else room
        into = shared[0][:n] if shared and len(shared[0]) >= n else None
        chunk = adapter.gather(column, rows[at : at + n], into)
        if shared is not None and into is None:
            shared[:] = [chunk]
        even = all(size == own[0] for size in own[:-1]) and own[-1] <= own[0]
        yield from adapter.chunks(chunk, own[0] if even else own)
        at += n


def frozen_outputs(
    plan: StepPlan, node_id: str, view: FeatureSetView, device: Any = None
) -> Any | None:
    """Compute the outputs of a frozen node once, for every row of a view.

    Returns
    -------
    tensor, shape (n_rows_of_view, ...), or None
        None where the node does not give the same output for the same row each time.
    """
    static = plan.static
    if static is None:
        raise GraphError("this plan has no frozen part")
    adapter, rows = plan.adapter, view.valid_indices
    place = [name for name, _ in static.layout.outputs].index(node_id)
    columns = [column_tensor(adapter, view.collection, slot, device) for slot in static.slots]
    width = max(1, sum(int(c[:1].nbytes) for c in columns))
    size = int(np.clip(CHUNK_BYTES // width, 64, 4096))
    step = static.eval_step()

    def run(part: IntArray) -> Any:
        return step([adapter.gather(c, part) for c in columns])[1][place]

    with adapter.modes(static.modes):
        if not _repeatable(adapter, run, rows[:64]):
            return None
        parts = [run(rows[at : at + size]) for at in range(0, len(rows), size)]
    return adapter.concat(parts, 0) if len(parts) > 1 else parts[0]


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
    given = ctx.inputs.get((source.node_id, source.ref))
    if given is None:
        labels = plan.layout.labels
        raise GraphError(
            f"there is no input for node {labels.get(source.node_id, source.node_id)!r} from "
            f"{source.ref.node_label!r}; inputs are keyed by (node_id, reference)"
        )
    if isinstance(given, BatchView):
        rows = given.role_indices[slot.role]
        column = column_tensor(plan.adapter, given.source.collection, slot)
        return plan.adapter.gather(column, np.ascontiguousarray(rows))
    if isinstance(given, Batch):
        given = given.role_data
    if isinstance(given, RoleData):
        given = given[slot.role]
    return _from_samples(plan, slot, given)


def _from_samples(plan: StepPlan, slot: InputSlot, given: Any) -> Any:
    if isinstance(given, SampleData):
        domain = slot.columns[0].split(".")[0]
        given = given.get(domain)
    if isinstance(given, np.ndarray):
        values = given if slot.shape is None else given.reshape(len(given), *slot.shape)
        return plan.adapter.from_numpy(values, dtype=slot.dtype)
    if not hasattr(given, "shape"):
        raise GraphError(
            f"an input must be a batch, samples or a tensor, got a {type(given).__name__}"
        )
    return given


def _stacked(collection: SampleCollection, slot: InputSlot) -> Array:
    values = stack({name: collection.numpy(name) for name in slot.columns})
    if values.dtype.kind not in "biuf":
        raise DataError(f"columns {list(slot.columns)} hold {values.dtype}; a model takes numbers")
    return values if slot.shape is None else values.reshape(len(values), *slot.shape)


def _repeatable(adapter: BackendAdapter, run: Any, rows: IntArray) -> bool:
    """Tell whether outputs depend on nothing but the row."""
    first, again = adapter.to_numpy(run(rows)), adapter.to_numpy(run(rows))
    half = adapter.to_numpy(run(rows[: max(1, len(rows) // 2)]))
    same = np.array_equal(first, again, equal_nan=True)
    return same and np.allclose(first[: len(half)], half, rtol=1e-4, atol=1e-5, equal_nan=True)
