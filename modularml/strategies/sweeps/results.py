"""Results of a sweep."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modularml._optional import require
from modularml.errors import ConfigError, ExecutionError, UnknownNameError
from modularml.experiment import Experiment
from modularml.strategies.sweeps.studies import ERROR, importances, seconds_of
from modularml.strategies.sweeps.trials import BuiltTrials, SpaceTrials
from modularml.viz.sweeps import history, importance, parallel_coordinates, slices

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["history", "importance", "parallel", "slice"]


@dataclass(frozen=True)
class BestTrial:
    """The best of all complete trials.

    Parameters
    ----------
    number : int
        0-based, as in the study.
    value : float
        Of the objective.
    params : dict of str to object
        Settings by path, or the values that a function has suggested.
    """

    number: int
    value: float
    params: dict[str, Any]


class SweepResults:
    """Trials of a sweep: settings, values, plots, and the best experiment.

    Parameters
    ----------
    trials : SpaceTrials or BuiltTrials
        With the objective and the study; trains again with the settings of a trial.
    best : tuple of (int, Experiment), optional
        Number and experiment of a trial that this process has run.
    """

    def __init__(
        self, trials: SpaceTrials | BuiltTrials, best: tuple[int, Experiment] | None = None
    ) -> None:
        setup = trials.setup
        self.label, self._objective, self._queue = setup.label, setup.objective, setup.queue
        self._trials, self._best = trials, best

    @property
    def study(self) -> Any:
        """Optuna's own study."""
        return self._queue.study

    @property
    def best(self) -> BestTrial:
        """Number, value and settings of the best trial; NaN and pruned trials do not count.

        Raises
        ------
        ExecutionError
            If no trial is complete.
        """
        if not any(trial.state.name == "COMPLETE" for trial in self._queue.done()):
            raise ExecutionError(f"no trial of {self.label!r} is complete; see to_pandas()")
        trial = self.study.best_trial
        return BestTrial(trial.number, trial.value, self._queue.settings(trial))

    def best_experiment(self) -> Experiment:
        """Return the experiment of the best trial, trained.

        If this process has not run it, it is trained again with the same seed, which gives the same
        values bit for bit on the CPU with the same versions and number of threads, and up to
        rounding if trials were trained as one. Trials in folds are trained on the splits of the
        original experiment.
        """
        return self.get_experiment(self.best.number)

    def get_experiment(self, number: int) -> Experiment:
        """Return the experiment of a trial, trained to the end; see `best_experiment`.

        Raises
        ------
        UnknownNameError
            If there is no such trial.
        """
        if self._best is not None and self._best[0] == number:
            return self._best[1]
        trials = {trial.number: trial for trial in self._queue.done()}
        if number not in trials:
            raise UnknownNameError("trial", number, map(str, trials))
        experiment: Experiment = self._trials.retrained(trials[number])
        if self._best is None:
            self._best = number, experiment
        return experiment

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per trial that has ended.

        Returns
        -------
        DataFrame
            With the number of the trial as index: ``value`` (NaN for failed trials, the last value
            reported for pruned ones), ``state`` (``complete``, ``pruned`` or ``failed``), a column
            for each setting, ``seconds``, and ``error`` of failed trials.
        """
        rows = []
        for trial in self._queue.done():
            value = float("nan") if trial.value is None else trial.value
            state = trial.state.name.lower().replace("fail", "failed")
            facts = {"trial": trial.number, "value": value, "state": state}
            ends = {"seconds": seconds_of(trial), "error": trial.user_attrs.get(ERROR, "")}
            settings = self._queue.settings(trial).items()
            taken = facts.keys() | ends.keys()
            named = {f"params.{k}" if k in taken else k: value for k, value in settings}
            rows.append({**facts, **named, **ends})
        names = list(dict.fromkeys(name for row in rows for name in row))
        last = ["seconds", "error"]
        columns = [name for name in names if name not in last] + last
        frame: pd.DataFrame = require("pandas").DataFrame(rows, columns=columns)
        return frame.set_index("trial")

    def importances(self) -> dict[str, float]:
        """Return the share of each setting in the variance of the objective, largest first.

        Raises
        ------
        ConfigError
            If fewer than two trials are complete, or all have the same value.

        Notes
        -----
        Functional ANOVA of a random forest (Hutter, Hoos & Leyton-Brown 2014, *An efficient
        approach for assessing hyperparameter importance*, ICML), over settings that all complete
        trials have.
        """
        return importances(self.study, self._queue.seed)

    def plot(self, kind: Kind = "history", *, path: Any = None) -> Any:
        """Plot the trials and return the figure.

        Parameters
        ----------
        kind : {'history', 'importance', 'parallel', 'slice'}
            Values over trials with the best so far; importances of settings; one line per trial
            across its settings; or value against each setting.
        path : path-like, optional
            Where to save the figure as well: .png, .pdf or .svg.
        """
        name = self._objective.name
        if kind == "importance":
            return importance(self.importances(), title=f"{self.label}: {name}", path=path)
        drawings = {"history": history, "parallel": parallel_coordinates, "slice": slices}
        if kind not in drawings:
            raise ConfigError(
                f"kind must be 'history', 'importance', 'parallel' or 'slice', got {kind!r}"
            )
        frame = self.to_pandas()
        frame = frame[(frame["state"] == "complete") & frame["value"].notna()]
        return drawings[kind](
            frame.drop(columns=["state", "seconds", "error"]),
            name=name,
            is_greater_better=self._objective.is_greater_better,
            title=self.label,
            path=path,
        )

    def report(self, path: str | Path, **options: Any) -> Path:
        """Write a report as one HTML file; see `modularml.write_report`."""
        written: Path = require("modularml.report").write_report(self, path, **options)
        return written

    def __len__(self) -> int:
        return len(self._queue.done())

    def __repr__(self) -> str:
        states = [trial.state.name for trial in self._queue.done()]
        counts = {"pruned": states.count("PRUNED"), "failed": states.count("FAIL")}
        more = "".join(f", {n} {what}" for what, n in counts.items() if n)
        best = f", best {self.best.value:.6g}" if "COMPLETE" in states else ""
        return f"SweepResults({self.label!r}, {len(states)} trials{more}{best})"

    def _repr_html_(self) -> str:
        ascending = not self._objective.is_greater_better
        frame = self.to_pandas().sort_values("value", ascending=ascending).head(10)
        return f"<b>{html.escape(repr(self))}</b>{frame.to_html(float_format='{:.5g}'.format)}"
