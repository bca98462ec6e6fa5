"""Logs of recorded steps, with concatenated outputs and a table of losses."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, repeat
from operator import is_
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import safetensors

from modularml._typing import Array, IntArray
from modularml.backends import BackendAdapter
from modularml.data.execution_context import ExecutionContext, Layout, LossRecord
from modularml.graph.step_plan import OutputMemory, StepPlan
from modularml.io.tensors import dump_table, dump_tensors, storable
from modularml.results.metric_store import compact
from modularml.results.series import AxisSeries, Values


class _Steps(Sequence[ExecutionContext]):
    """Steps by position."""

    def take(self, places: IntArray) -> Iterator[ExecutionContext]:
        """Iterate over the steps at some positions, in this order."""
        raise NotImplementedError

    @overload
    def __getitem__(self, place: int) -> ExecutionContext: ...
    @overload
    def __getitem__(self, place: slice) -> list[ExecutionContext]: ...
    def __getitem__(self, place: int | slice) -> ExecutionContext | list[ExecutionContext]:
        if isinstance(place, slice):
            return list(self.take(np.arange(len(self))[place]))
        return next(self.take(np.array([range(len(self))[place]])))

    def __iter__(self) -> Iterator[ExecutionContext]:
        return self.take(np.arange(len(self)))


class EpochSteps(_Steps):
    """The recorded steps of one epoch.

    Parameters
    ----------
    first : ExecutionContext
        The first step, after it has run.
    """

    def __init__(self, first: ExecutionContext) -> None:
        assert first.layout is not None
        self.layout: Layout = first.layout
        self.phase, self.epoch, self.rows = first.phase_label, first.epoch_idx, first.rows
        self.first = first.batch_idx
        self._adapters = self.layout.adapters
        self._plan: StepPlan | None = None if first.plan is None else first.plan[0]
        self._memory = OutputMemory() if self._plan is None else self._plan.memory
        self._tensors = first.tensors
        self._outs: list[Sequence[Any]] = []
        self._groups: list[list[tuple[Any, list[int]]]] = []
        self._values: list[Sequence[Any]] = []
        self._on_host: bool | None = None
        self._n = 0
        self._table: Array | None = None
        self._whole: list[tuple[Any, Array]] = []
        self._bounds: dict[tuple[int, ...], Array] = {}
        self._files: tuple[Path, Path] | None = None
        self.nbytes = 0

    def add(self, ctx: ExecutionContext) -> None:
        """Add the outputs of a step, detached and on the host."""
        outs = ctx.outs
        if self._on_host is not True:
            outs = [adapter.to_host(o) for adapter, o in zip(self._adapters, outs, strict=True)]
            if self._on_host is None:  # whether the first were already
                self._on_host = all(map(is_, outs, ctx.outs))
        if self._memory.is_shared is not False:
            outs = self._memory.own(self._adapters, outs)
        self._outs.append(outs)
        self._values.append(ctx.values)
        self._n += 1
        if len(self._outs) < _GROUP or self._n != _GROUP * (len(self._groups) + 1):
            return
        # one by one, small outputs between the tensors of steps would leave holes in memory
        parts = list(zip(*self._outs, strict=True))
        if self._have_one_dtype(parts):
            self._groups.append(
                [
                    (adapter.to_host(adapter.concat(part, 0)), [out.shape[0] for out in part])
                    for adapter, part in zip(self._adapters, parts, strict=True)
                ]
            )
            self._outs = []

    def _have_one_dtype(self, parts: Sequence[Sequence[Any]]) -> bool:
        """Return whether outputs, and those in groups, are of one dtype each."""
        known = [[joined] for joined, _ in self._groups[0]] if self._groups else [[]] * len(parts)
        pairs = zip(parts, known, strict=False)
        return all(len({out.dtype for out in [*part, *one]}) == 1 for part, one in pairs)

    def close(self, table: Array | None, previous: EpochSteps | None) -> None:
        """Concatenate the outputs when the epoch is complete.

        Parameters
        ----------
        table : ndarray, optional
            The losses, if known.
        previous : EpochSteps, optional
            An earlier epoch, whose bounds are reused if they are equal.
        """
        self._table = compact(self.losses if table is None else table)
        self._values = []
        if not self._have_one_dtype(list(zip(*self._outs, strict=True))):
            pairs = list(enumerate(self._adapters))
            self._outs = [
                [adapter.concat([self.output(i, place)], 0) for i, adapter in pairs]
                for place in range(self._n)
            ]
            self._groups, self._plan, self._tensors = [], None, None
            return
        cached = {} if previous is None else previous._bounds
        if previous is not None:
            previous._bounds = {}
        for which, adapter in enumerate(self._adapters):
            last = [outs[which] for outs in self._outs]
            groups = [group[which] for group in self._groups]
            part = [*(joined for joined, _ in groups), *last]
            sizes = tuple([n for _, own in groups for n in own] + [out.shape[0] for out in last])
            if sizes not in self._bounds:
                bounds = (
                    cached[sizes] if sizes in cached else np.cumsum([0, *sizes], dtype=np.int32)
                )
                self._bounds[sizes] = bounds
            if len(part) == 1 and not self._may_share_inputs(adapter, part[0]):
                whole = part[0]
            else:
                whole = adapter.to_host(adapter.concat(part, 0))
            self._whole.append((whole, self._bounds[sizes]))
        self._outs, self._groups, self._plan, self._tensors = [], [], None, None
        self.nbytes = sum(array.nbytes for array in self._arrays())

    def _may_share_inputs(self, adapter: BackendAdapter, out: Any) -> bool:
        """Return whether an output may share memory with inputs, which are reused."""
        tensors = self._tensors or ()
        slots = () if self._plan is None else self._plan.slots
        if not tensors or len(tensors) != len(slots) or isinstance(tensors[0], int):
            return True
        inputs = zip((slot.adapter for slot in slots), tensors, strict=True)
        host_inputs = [
            input_adapter.to_numpy(t)
            for input_adapter, t in inputs
            if input_adapter.to_host(t) is t
        ]
        return any(np.may_share_memory(adapter.to_numpy(out), t) for t in host_inputs)

    def _arrays(self) -> list[Array]:
        pairs = zip(self._adapters, self._whole, strict=False)
        return [adapter.to_numpy(whole) for adapter, (whole, _) in pairs]

    @property
    def losses(self) -> Array:
        """Each loss of each batch, shape (n_batches, n_losses)."""
        if self._table is not None:
            return self._table
        if self._files is not None:
            with pa.memory_map(str(self._files[1])) as file:
                columns = pa.ipc.open_file(file).read_all().columns
                return np.array([np.asarray(c) for c in columns]).reshape(-1, self._n).T
        flat = self.layout.adapter.floats([v for values in self._values for v in values])
        return np.array(flat, dtype=np.float64).reshape(self._n, len(self.layout.losses))

    def totals(self) -> Array:
        """Return the count each loss is a mean over, shape (n_batches, n_losses)."""
        if any(w is not None for w in self.layout.weight_sources) or any(self.layout.over_batch):
            return np.array([step.loss_totals() for step in self], dtype=np.float64)
        nodes, sizes = [node for node, _ in self.layout.outputs], list[Any]()
        for _, node in self.layout.losses:
            which = nodes.index(node)
            if self._whole:
                sizes.append(np.diff(self._whole[which][1]))
            else:
                sizes.append([len(self.output(which, place)) for place in range(self._n)])
        return np.array(sizes, dtype=np.float64).reshape(-1, self._n).T

    def spill(self, folder: Path, owner: object) -> None:
        """Move outputs and losses to files, from which they are read on access.

        The folder exists as long as its owner. Outputs of a dtype that safetensors does not support
        for numpy stay in memory.
        """
        arrays = [storable(array) for array in self._arrays()]
        if not arrays or any(array is None for array in arrays):
            return
        stem = folder / f"epoch_{self.epoch:05d}_{uuid.uuid4().hex[:8]}"
        self._files = stem.with_suffix(".safetensors"), stem.with_suffix(".arrow")
        outputs = {str(i): array for i, array in enumerate(arrays) if array is not None}
        self._files[0].write_bytes(b"".join(dump_tensors(outputs)))
        names = [f"{i}.{label}" for i, (label, _) in enumerate(self.layout.losses)]
        table = pa.table(list(self.losses.T), names=names)
        self._files[1].write_bytes(b"".join(dump_table(table)))
        self._dtypes = [whole.dtype for whole, _ in self._whole]
        self._whole = [(None, bounds) for _, bounds in self._whole]
        self._table, self.nbytes, self._owner = None, 0, owner

    def output(self, which: int, place: int) -> Any:
        """Return one output of one batch."""
        if not self._whole:
            group, within = divmod(place, _GROUP)
            if group >= len(self._groups):
                return self._outs[place - _GROUP * len(self._groups)][which]
            joined, sizes = self._groups[group][which]
            start = sum(sizes[:within])
            return joined[start : start + sizes[within]]
        whole, bounds = self._whole[which]
        start, stop = bounds[place : place + 2].tolist()
        if self._files is None:
            return whole[start:stop]
        with safetensors.safe_open(self._files[0], framework="numpy") as file:
            values = file.get_slice(str(which))[start:stop]
        return self._adapters[which].from_numpy(values, dtype=self._dtypes[which])

    def __getstate__(self) -> dict[str, Any]:
        """Convert outputs to arrays, also those in files; omit the compiled step."""
        state = {**vars(self), "_plan": None, "_tensors": None, "_memory": OutputMemory()}
        if self._files is None:
            arrays, dtypes = self._arrays(), [whole.dtype for whole, _ in self._whole]
        else:
            dtypes = state.pop("_dtypes")
            del state["_owner"]
            with safetensors.safe_open(self._files[0], framework="numpy") as file:
                arrays = [file.get_tensor(str(i)) for i in range(len(dtypes))]
        bounds = [part for _, part in self._whole]
        whole = list(zip(arrays, dtypes, bounds, strict=True))
        return {**state, "_files": None, "_table": self.losses, "_whole": whole}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Convert arrays back to tensors."""
        pairs = zip(state["_adapters"], state["_whole"], strict=False)
        whole = [(a.from_numpy(array, dtype=dtype), bounds) for a, (array, dtype, bounds) in pairs]
        vars(self).update(state, _whole=whole)

    def take(self, places: IntArray) -> Iterator[ExecutionContext]:
        """Iterate over the steps at some positions, in this order."""
        losses = None if self._values else self.losses
        for place in places.tolist():
            step = ExecutionContext(self.phase, self.epoch, self.first + place)
            step.layout, step.rows, step.outs = self.layout, self.rows, _Outputs(self, place)
            step.values = self._values[place] if losses is None else losses[place].tolist()
            yield step

    def __len__(self) -> int:
        return self._n


_GROUP = 32
"""Batches whose outputs are concatenated at once."""


class _Outputs(Sequence[Any]):
    """Outputs of one batch, read on access."""

    def __init__(self, steps: EpochSteps, place: int) -> None:
        self.steps, self.place = steps, place

    def __getitem__(self, which: Any) -> Any:
        return self.steps.output(range(len(self))[which], self.place)

    def __len__(self) -> int:
        return len(self.steps.layout.outputs)


class StepLog(_Steps):
    """All recorded steps of a phase, in order.

    Parameters
    ----------
    steps : iterable of ExecutionContext
        Steps that were run by hand.
    """

    def __init__(self, steps: Iterable[ExecutionContext] = ()) -> None:
        self.parts: list[EpochSteps | list[ExecutionContext]] = []
        for step in steps:
            self.append(step)

    def append(self, step: ExecutionContext) -> None:
        """Append a single step."""
        if not self.parts or not isinstance(self.parts[-1], list):
            self.parts.append([])
        self.parts[-1].append(step)  # type: ignore[union-attr]

    def view(self) -> StepLog:
        """Return the steps recorded so far; steps recorded later are not in it."""
        now = StepLog()
        now.parts = [part if isinstance(part, EpochSteps) else list(part) for part in self.parts]
        return now

    def places(self) -> Mapping[str, IntArray]:
        """Return the epochs and batches of all steps."""
        epoch, batch = np.concatenate([np.zeros((0, 2), np.int64), *map(_places, self.parts)]).T
        return {"epoch": epoch, "batch": batch}

    def take(self, places: IntArray) -> Iterator[ExecutionContext]:
        """Iterate over the steps at some positions, in this order."""
        starts = np.cumsum([0, *map(len, self.parts)])
        which = np.searchsorted(starts, places, side="right") - 1
        within = places - starts[which]
        for run in np.split(np.arange(len(places)), np.flatnonzero(np.diff(which)) + 1):
            if len(run):
                part, inner = self.parts[which[run[0]]], within[run]
                is_epoch = isinstance(part, EpochSteps)
                yield from part.take(inner) if is_epoch else map(part.__getitem__, inner)

    def losses(self, node_id: str) -> AxisSeries[LossRecord]:
        """Return the losses applied on a node over (epoch, batch, label)."""
        places, values = [np.zeros((0, 2), dtype=np.int64)], [np.zeros(0)]
        labels: list[str] = []
        short: dict[str, str] = {}
        trained: list[bool] = []
        for layout, steps, table, _ in self.tables():
            on_node = [i for i, (_, on) in enumerate(layout.losses) if on == node_id]
            places.append(np.repeat(steps, len(on_node), axis=0))
            values.append(table[:, on_node].ravel())
            own = [layout.losses[i][0] for i in on_node]
            short |= {label.removesuffix(f"_{layout.labels.get(node_id)}"): label for label in own}
            labels += own * len(steps)
            trained += [layout.training] * (len(on_node) * len(steps))
        epoch, batch = np.concatenate(places).T
        label, numbers = np.array(labels, dtype=object), np.concatenate(values).astype(np.float64)
        parts = np.where(trained, numbers, 0.0), np.where(trained, 0.0, numbers)

        def records(rows: IntArray) -> list[LossRecord]:
            name, trainable, auxiliary = (column[rows].tolist() for column in (label, *parts))
            fields = zip(name, repeat(node_id), trainable, auxiliary, strict=False)
            return list(map(partial(tuple.__new__, LossRecord), fields))

        named = dict(zip(("trainable", "auxiliary"), parts, strict=True))
        loss_records = Values(records, np.arange(len(numbers)), numbers, named)
        columns = {"epoch": epoch, "batch": batch, "label": label}
        return AxisSeries.from_columns(columns, loss_records, "losses").known_as({"label": short})

    def tables(self) -> Iterator[tuple[Layout, IntArray, Array, Array]]:
        """Iterate over runs of steps.

        Yields
        ------
        Layout, ndarray (n_steps, 2), and two ndarray (n_steps, n_losses)
            The layout of the losses, (epoch, batch) of each step, its losses, and the counts that
            they are means over.
        """
        for _, run in self.runs():
            yield run[0]._layout(), *numbers_of(run)

    def runs(self) -> Iterator[tuple[Layout | None, Sequence[ExecutionContext]]]:
        """Iterate over runs of steps of one layout, which is None of steps that have not run."""
        for part in filter(len, self.parts):
            if isinstance(part, EpochSteps):
                yield part.layout, part
                continue
            for _, steps in groupby(part, key=lambda step: id(step.layout)):
                run = list(steps)
                yield run[0].layout, run

    def __len__(self) -> int:
        return sum(map(len, self.parts))


def numbers_of(part: Sequence[ExecutionContext]) -> tuple[IntArray, Array, Array]:
    """Return (epoch, batch) of steps of one layout, losses, and the counts they are means over."""
    if isinstance(part, EpochSteps):
        return _places(part), part.losses, part.totals()
    floats = part[0]._layout().adapter.floats
    losses, totals = [floats(s.values) for s in part], [s.loss_totals() for s in part]
    return _places(part), np.array(losses, dtype=np.float64), np.array(totals, dtype=np.float64)


def _places(part: Sequence[ExecutionContext]) -> IntArray:
    if isinstance(part, EpochSteps):
        return np.column_stack([np.full(len(part), part.epoch), part.first + np.arange(len(part))])
    places = [(s.epoch_idx, s.batch_idx) for s in part]
    return np.array(places, dtype=np.int64).reshape(-1, 2)
