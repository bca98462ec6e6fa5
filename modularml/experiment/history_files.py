"""Packing of an experiment's history as plain data, and unpacking."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modularml._arguments import same
from modularml.data.execution_context import Layout
from modularml.errors import MMLError
from modularml.experiment.run import ExperimentRun
from modularml.io.append_log import Segment, append_segment, merged_runs, new_log
from modularml.io.values import Packer
from modularml.results.eval_results import EvalResults, FitResults
from modularml.results.group_results import PhaseGroupResults
from modularml.results.metric_store import CallbackResult, MetricStore, PayloadResult
from modularml.results.packed_results import (
    Layouts,
    PackedLayout,
    narrow,
    packed_callbacks,
    packed_layout,
    packed_steps,
    unpacked_callbacks,
    unpacked_layout,
    unpacked_steps,
)
from modularml.results.phase_results import PhaseResults, TrainResults
from modularml.results.step_log import StepLog

_RESULTS = {cls.__name__: cls for cls in (PhaseResults, TrainResults, EvalResults, FitResults)}


def packed_history(history: Sequence[ExperimentRun], whole: bool = True) -> list[dict[str, Any]]:
    """Return runs as plain data; other values are replaced by a description.

    Unless `whole`, recorded steps, callback results, metadata and error messages are omitted.
    """
    return [
        packed_run(run, _packed_group(run.results, partial(_packed_phase, whole=whole)), whole)
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


def _packed_group(
    group: PhaseGroupResults, pack: Callable[[PhaseResults], Any], *, only_new: bool = False
) -> dict[str, Any]:
    """Return a group with packed phases; if `only_new`, without those that are None."""
    items = []
    for item in [item for _, item in group.items()]:
        if isinstance(item, PhaseGroupResults):
            inner = _packed_group(item, pack, only_new=only_new)
            items += [inner] if inner["items"] or not only_new else []
        elif (packed := pack(item)) is not None or not only_new:
            items.append(packed)
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
    steps, metrics = StepLog(unpacked_steps(data["steps"], layouts)), MetricStore()
    for name, column in data["metrics"]["epochs"].items():
        pairs = zip(column["epoch"].tolist(), column["value"].tolist(), strict=True)
        metrics._epochs[name] = list(pairs)
    for name, column in data["metrics"]["batches"].items():
        blocks = np.split(column["rows"], np.cumsum(column["size"])[:-1])
        metrics._batches[name] = list(zip(column["epoch"].tolist(), blocks, strict=True))
    return _RESULTS[data["class"]](data["label"], steps, callbacks, metrics)


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
            new = _packed_group(run.results, self._new_in_phase, only_new=True)
            if new["items"] or self._runs.get(i) != head:
                self._runs[i] = head
                runs.append([i, {**head, "results": new}])
        layouts = [packed_layout(layout) for layout, i in self._layouts.values() if i >= n_layouts]
        new_random = {n: s for n, s in random.items() if not same(s, self._random.get(n, self))}
        self._random.update(new_random)
        new_files = []  # how many are in the log already, and the others, of each checkpointing
        for i, own in enumerate(files):
            known = self._files.get(i, [])
            n = len(known) if own and own[: len(known)] == known else 0
            if own:
                self._files[i] = list(own)
                new_files.append([i, n, own[n:]])
        state = {
            "runs": runs,
            "layouts": layouts,
            "random": new_random,
            "files": new_files,
        }
        self.last = append_segment(self.path, state, self.last, labels)
        return self.last

    def _layout(self, layout: Layout) -> int:
        """Return the number of a layout in the log."""
        return self._layouts.setdefault(id(layout), (layout, len(self._layouts)))[1]

    def _new_in_phase(self, results: PhaseResults) -> dict[str, Any] | None:
        """Return the new results of a phase; None if there are none."""
        written, now = self._written.get(results), _Written(results)
        if written == now:
            return None
        written = written or _Written()
        first = written.n_steps if written.steps == now.steps else 0
        rest, skipped = StepLog(), first  # steps from an index on, whole epochs unchanged
        for part in results._execution.parts:
            if skipped < len(part):
                rest.parts.append(part if skipped <= 0 else list(part)[skipped:])
            skipped -= len(part)
        steps = packed_steps(rest, self._layout)
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
