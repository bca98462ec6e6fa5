"""Append-only logs of histories, extended by each checkpoint of a run."""

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
from modularml.results.phase_results import PhaseResults
from modularml.results.step_log import StepLog
from modularml.results.stored_steps import Layouts, packed_layout, packed_steps, unpacked_layout

__all__ = ["HistoryLog", "read_files", "read_history", "read_random_states"]


class HistoryLog:
    """A log of an experiment's history and random states, beside its checkpoints.

    Parameters
    ----------
    folder : Path
    last : Segment, optional
        The last segment of the log of a resumed run; a new log is started otherwise.
    history : sequence of ExperimentRun
        The contents of the log of a resumed run.
    layouts : sequence of Layout
        The layouts in the log of a resumed run.
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
        self._files: dict[int, list[Any]] = {}
        for run in history:
            for results in _phases(run.results):
                self._written[results] = _Written(results)

    @property
    def is_intact(self) -> bool:
        """Whether the file still contains what was written to it."""
        if self.last is None:
            return True
        return self.path.exists() and self.path.stat().st_size >= self.last.at + self.last.size

    def append(
        self,
        history: Sequence[ExperimentRun],
        random: Mapping[str, Any],
        labels: Mapping[str, str],
        files: Sequence[list[Any] | None] = (),
    ) -> Segment:
        """Append what is new, and return its segment.

        Parameters
        ----------
        history : sequence of ExperimentRun
        random : mapping of str to state
            As `random_states` returns it.
        labels : mapping of str to str
            Labels of all nodes, by id.
        files : sequence of (list or None)
            The files of each checkpointing, oldest first.

        Raises
        ------
        MMLError
            If it cannot be written; start another log then.
        """
        n_layouts = len(self._layouts)
        runs = []
        for i, run in enumerate(history):
            head = packed_run(run, {})
            new = self._new_in_group(run.results)
            if new["items"] or self._runs.get(i) != head:
                self._runs[i] = head
                runs.append([i, {**head, "results": new}])
        layouts = [packed_layout(layout) for layout, i in self._layouts.values() if i >= n_layouts]
        new_random = {n: s for n, s in random.items() if not _same(s, self._random.get(n, self))}
        self._random.update(new_random)
        state = {
            "runs": runs,
            "layouts": layouts,
            "random": new_random,
            "files": [[i, *self._new_files(i, own)] for i, own in enumerate(files) if own],
        }
        self.last = append_segment(self.path, state, self.last, labels)
        return self.last

    def _new_files(self, which: int, files: list[Any]) -> tuple[int, list[Any]]:
        """Return how many files of a checkpointing are in the log already, and the others."""
        known = self._files.get(which, [])
        n = len(known) if files[: len(known)] == known else 0
        self._files[which] = list(files)
        return n, files[n:]

    def _layout(self, layout: Layout) -> int:
        """Return the number of a layout in the log."""
        return self._layouts.setdefault(id(layout), (layout, len(self._layouts)))[1]

    def _new_in_group(self, group: PhaseGroupResults) -> dict[str, Any]:
        """Return the new results of a group, at any depth."""
        items = []
        for item in [item for _, item in group.items()]:
            if isinstance(item, PhaseGroupResults):
                new: Any = self._new_in_group(item)
                if new["items"]:
                    items.append(new)
            elif (new := self._new_in_phase(item)) is not None:
                items.append(new)
        return {"label": group.label, "items": items}

    def _new_in_phase(self, results: PhaseResults) -> dict[str, Any] | None:
        """Return the new results of a phase; None if there are none."""
        written, now = self._written.get(results), _Written(results)
        if written == now:
            return None
        written = written or _Written()
        first = written.n_steps if written.steps == now.steps else 0
        steps = packed_steps(_steps_from(results._execution, first), self._layout)
        if steps is None and now.n_steps > first:  # they cannot be stored as data
            first = now.n_steps = 0
        self._written[results] = now
        changed = steps is not None or first == 0
        return {
            "class": result_class(results),
            "label": results.label,
            "metrics": packed_metrics(results._metrics, written.metrics),
            "since": written.n_callbacks,
            "callbacks": [
                packed_result(result, self._layout)
                for result in results._callbacks[written.n_callbacks :]
            ],
            "steps": [[first, steps]] if changed else [],
        }


class _Written:
    """How many results of a phase are in the log."""

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
    """Return the runs, layouts and random states of segments, oldest first."""
    layouts: Layouts = [unpacked_layout(layout) for part in segments for layout in part["layouts"]]
    history = unpacked_history(merged_runs(segments), layouts)
    return history, [layout for layout, _ in layouts], read_random_states(segments)


def read_random_states(segments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the random states that segments hold, the newest of each."""
    return {name: state for part in segments for name, state in part["random"].items()}


def read_files(segments: Sequence[Mapping[str, Any]]) -> dict[int, list[Any]]:
    """Return the files of each checkpointing that segments hold, oldest first."""
    files: dict[int, list[Any]] = {}
    for part in segments:
        for which, first, new in part.get("files", ()):
            files[which] = [*files.get(which, [])[:first], *new]
    return files


def _phases(group: PhaseGroupResults) -> Iterator[PhaseResults]:
    for item in [item for _, item in group.items()]:
        if isinstance(item, PhaseGroupResults):
            yield from _phases(item)
        else:
            yield item


def _steps_from(steps: StepLog, first: int) -> StepLog:
    """Return the steps from an index on, whole epochs unchanged."""
    rest = StepLog()
    for part in steps.parts:
        if first < len(part):
            rest.parts.append(part if first <= 0 else list(part)[first:])
        first -= len(part)
    return rest


def _same(a: Any, b: Any) -> bool:
    """Return whether two states are equal, including arrays."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.array_equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
