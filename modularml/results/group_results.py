"""Results of a group of phases, nested as the phases are."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pandas as pd

from modularml.errors import RegistrationError, UnknownNameError
from modularml.results.eval_results import EvalResults, FitResults
from modularml.results.phase_results import PhaseResults, TrainResults
from modularml.viz.curves import series as draw_series

T = TypeVar("T")


@dataclass(eq=False)
class PhaseGroupResults:
    """Results by label, in order of execution.

    Parameters
    ----------
    label : str
        The label of the group.
    """

    label: str
    _results: dict[str, PhaseResults | PhaseGroupResults] = field(default_factory=dict)

    def add_result(self, result: PhaseResults | PhaseGroupResults) -> None:
        """Add the result of a phase or group.

        Raises
        ------
        TypeError
            If it is neither.
        RegistrationError
            If its label is in use.
        """
        if not isinstance(result, PhaseResults | PhaseGroupResults):
            raise TypeError(
                f"result must be PhaseResults or PhaseGroupResults, got a {type(result).__name__}"
            )
        if result.label in self._results:
            raise RegistrationError(f"group {self.label!r} has a result {result.label!r} already")
        self._results[result.label] = result

    @property
    def labels(self) -> list[str]:
        """Labels of this level, in order of execution."""
        return list(self._results)

    @property
    def phase_results(self) -> dict[str, PhaseResults]:
        """Results of the phases of this level."""
        return {k: r for k, r in self._results.items() if isinstance(r, PhaseResults)}

    @property
    def group_results(self) -> dict[str, PhaseGroupResults]:
        """Results of the groups of this level."""
        return {k: r for k, r in self._results.items() if isinstance(r, PhaseGroupResults)}

    def items(self) -> Iterator[tuple[str, PhaseResults | PhaseGroupResults]]:
        """Iterate over label and result, in order of execution."""
        return iter(self._results.items())

    def flatten(self) -> dict[str, PhaseResults]:
        """Return the results of all phases, including those of nested groups.

        Raises
        ------
        RegistrationError
            If two phases have the same label.
        """
        flat: dict[str, PhaseResults] = {}
        for _, phase in self.paths():
            if phase.label in flat:
                raise RegistrationError(
                    f"two phases are labelled {phase.label!r}; get them by group"
                )
            flat[phase.label] = phase
        return flat

    def paths(self) -> Iterator[tuple[str, PhaseResults]]:
        """Iterate over path and result of all phases: label, or ``group/label`` within groups."""
        for label, result in self._results.items():
            if isinstance(result, PhaseResults):
                yield label, result
            else:
                yield from ((f"{label}/{path}", phase) for path, phase in result.paths())

    def get_phase_result(self, label: str) -> PhaseResults:
        """Return the result of a phase.

        Raises
        ------
        UnknownNameError
            If there is none with this label.
        TypeError
            If it is the result of a group.
        """
        return self._get(label, PhaseResults)

    def get_train_result(self, label: str | None = None) -> TrainResults:
        """Return the result of a training phase; without a label, the only one."""
        return self._get(label, TrainResults)

    def get_eval_result(self, label: str | None = None) -> EvalResults:
        """Return the result of an evaluation phase; without a label, the only one."""
        return self._get(label, EvalResults)

    def get_fit_result(self, label: str | None = None) -> FitResults:
        """Return the result of a fit phase; without a label, the only one."""
        return self._get(label, FitResults)

    def get_group_result(self, label: str | None = None) -> PhaseGroupResults:
        """Return the results of a nested group; without a label, the only one."""
        return self._get(label, PhaseGroupResults)

    def to_pandas(self) -> pd.DataFrame:
        """Return epoch metrics: one row per epoch of a phase, one column per metric.

        The first level of the index is the phase's label, ``group/label`` within groups.
        """
        frames = {path: phase._metrics.to_pandas() for path, phase in self.paths()}
        return pd.concat(frames, names=["phase", "epoch"])

    def plot(self, *, path: Any = None) -> Any:
        """Plot epoch metrics of all phases in sequence, and return the figure."""
        frame = self.to_pandas()
        steps = range(len(frame))
        lines = {name: (list(steps), frame[name].to_numpy()) for name in frame.columns}
        return draw_series(lines, title=self.label, x="epoch, all phases", path=path)

    def _get(self, label: str | None, cls: type[T]) -> T:
        if label is None:
            labels = [k for k, r in self._results.items() if isinstance(r, cls)]
            if len(labels) != 1:
                raise UnknownNameError(
                    f"only {cls.__name__} of {self.label!r}", None, labels, "pass a label"
                )
            label = labels[0]
        if label not in self._results:
            raise UnknownNameError(f"result of {self.label!r}", label, self._results)
        result: Any = self._results[label]
        if not isinstance(result, cls):
            raise TypeError(f"{label!r} is a {type(result).__name__}, not a {cls.__name__}")
        return result

    def __getitem__(self, label: str) -> PhaseResults | PhaseGroupResults:
        return self._get(label, object)  # type: ignore[return-value]

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        inner = "\n".join(
            f"  {line}" for r in self._results.values() for line in repr(r).split("\n")
        )
        return f"PhaseGroupResults({self.label!r})" + (f"\n{inner}" if inner else "")

    def _repr_html_(self) -> str:
        inner = "".join(f"<li>{r._repr_html_()}</li>" for r in self._results.values())
        return f"<b>{html.escape(self.label)}</b><ul>{inner}</ul>"
