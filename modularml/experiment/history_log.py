"""Histories in append-only logs: each checkpoint of a run adds what is new since the last one."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modularml.data.execution import Layout
from modularml.experiment.history import (
    packed_metrics,
    packed_result,
    packed_run,
    result_class,
    unpacked_history,
)
from modularml.experiment.run import ExperimentRun
from modularml.io.log import Segment, append_segment, merged_runs, new_log
from modularml.results.group_results import PhaseGroupResults
from modularml.results.steps import StepLog
from modularml.results.stored_steps import Layouts, packed_layout, packed_steps, unpacked_layout
from modularml.results.train_eval import PhaseResults

__all__ = ["HistoryLog", "read_history", "read_random_states"]


class HistoryLog:
    """A log of an experiment's history and random states, beside its checkpoints.

    Parameters
    ----------
    folder : Path
    last : Segment, optional
        Where the log ends of a run that is resumed; a new one is begun otherwise.
    history : sequence of ExperimentRun
        What the log holds, where a run is resumed.
    layouts : sequence of Layout
        Those that the log holds, where a run is resumed.
    """

    def __init__(
        self,
        folder: Path,
        last: Segment | None = None,
        history: Sequence[ExperimentRun] = (),
        layouts: Iterable[Layout] = (),
    ) -> None:
        self.last = last
        self.path = folder / (new_log(folder) if last is None else last.file)
        self._runs: dict[int, Any] = {}
        self._written = weakref.WeakKeyDictionary[PhaseResults, _Written]()
        self._layouts = {id(layout): (layout, i) for i, layout in enumerate(layouts)}
        self._random: dict[str, Any] = {}
        for run in history:
            for results in _phases(run.results):
                self._written[results] = _Written(results)

    @property
    def is_there(self) -> bool:
        """Whether the file still holds what was written to it."""
        if self.last is None:
            return True
        return self.path.exists() and self.path.stat().st_size >= self.last.at + self.last.size

    def append(
        self,
        history: Sequence[ExperimentRun],
        random: Mapping[str, Any],
        labels: Mapping[str, str],
    ) -> Segment:
        """Add what is new and return where it lies.

        Parameters
        ----------
        history : sequence of ExperimentRun
        random : mapping of str to state
            As `random_states` returns it.
        labels : mapping of str to str
            Of all nodes, by id.

        Raises
        ------
        MMLError
            If it cannot be written; use another log then.
        """
        before = len(self._layouts)
        runs = []
        for i, run in enumerate(history):
            head = packed_run(run, {})
            new = self._new_of_group(run.results)
            if new["items"] or self._runs.get(i) != head:
                self._runs[i] = head
                runs.append([i, {**head, "results": new}])
        layouts = [packed_layout(layout) for layout, i in self._layouts.values() if i >= before]
        drawn = {n: s for n, s in random.items() if not _same(s, self._random.get(n, self))}
        self._random.update(drawn)
        state = {"runs": runs, "layouts": layouts, "random": drawn}
        self.last = append_segment(self.path, state, self.last, labels)
        return self.last

    def _layout(self, layout: Layout) -> int:
        """Return the number of a layout in the log."""
        return self._layouts.setdefault(id(layout), (layout, len(self._layouts)))[1]

    def _new_of_group(self, group: PhaseGroupResults) -> dict[str, Any]:
        """Return what is new of the results of a group, at any depth."""
        items = []
        for item in [item for _, item in group.items()]:
            if isinstance(item, PhaseGroupResults):
                new: Any = self._new_of_group(item)
                if new["items"]:
                    items.append(new)
            elif (new := self._new_of(item)) is not None:
                items.append(new)
        return {"label": group.label, "items": items}

    def _new_of(self, results: PhaseResults) -> dict[str, Any] | None:
        """Return what is new of the results of a phase; None where nothing is."""
        known, now = self._written.get(results), _Written(results)
        if known == now:
            return None
        known = known or _Written()
        first = known.n_steps if known.steps == now.steps else 0
        steps = packed_steps(_from(results._execution, first), self._layout)
        if steps is None and now.n_steps > first:  # they cannot be data: none is stored
            first = now.n_steps = 0
        self._written[results] = now
        changed = steps is not None or first == 0
        return {
            "class": result_class(results),
            "label": results.label,
            "metrics": packed_metrics(results._metrics, known.metrics),
            "since": known.n_callbacks,
            "callbacks": [
                packed_result(found, self._layout)
                for found in results._callbacks[known.n_callbacks :]
            ],
            "steps": [[first, steps]] if changed else [],
        }


class _Written:
    """How much of the results of a phase a log holds."""

    def __init__(self, results: PhaseResults | None = None) -> None:
        self.n_callbacks = self.n_steps = 0
        self.metrics: dict[str, dict[str, int]] = {"epochs": {}, "batches": {}}
        self.steps: weakref.ref[StepLog] | None = None
        if results is not None:
            store = results._metrics
            self.n_callbacks, self.n_steps = len(results._callbacks), len(results._execution)
            self.metrics = {
                "epochs": {name: len(rows) for name, rows in store._epochs.items()},
                "batches": {name: len(blocks) for name, blocks in store._batches.items()},
            }
            self.steps = weakref.ref(results._execution)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Written) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def read_history(
    segments: Sequence[Mapping[str, Any]],
) -> tuple[list[ExperimentRun], list[Layout], dict[str, Any]]:
    """Return the runs, the layouts and the random states that segments hold, oldest first."""
    layouts: Layouts = [unpacked_layout(own) for part in segments for own in part["layouts"]]
    history = unpacked_history(merged_runs(segments), layouts)
    return history, [layout for layout, _ in layouts], read_random_states(segments)


def read_random_states(segments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the random states that segments hold, the newest of each."""
    return {name: state for part in segments for name, state in part["random"].items()}


def _phases(group: PhaseGroupResults) -> Iterator[PhaseResults]:
    for item in [item for _, item in group.items()]:
        if isinstance(item, PhaseGroupResults):
            yield from _phases(item)
        else:
            yield item


def _from(steps: StepLog, first: int) -> StepLog:
    """Return the steps from a number on; whole epochs stay as they are."""
    rest = StepLog()
    for part in steps.parts:
        if first < len(part):
            rest.parts.append(part if first <= 0 else list(part)[first:])
        first -= len(part)
    return rest


def _same(a: Any, b: Any) -> bool:
    """Tell whether two states are equal, arrays included."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.array_equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
