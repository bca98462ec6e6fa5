"""Comparison of experiments, runs, cross-validations and saved files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from modularml._arguments import Checked
from modularml._optional import require
from modularml.errors import ConfigError, UnknownNameError
from modularml.experiment import TrainResults
from modularml.experiment.run import ExperimentRun
from modularml.results.scores import Meaning, Metrics
from modularml.results.scoring import Reduce, check_reduce
from modularml.strategies.comparison.members import (
    Member,
    check_split,
    evaluated,
    mean_table,
    members_of,
)
from modularml.strategies.comparison.run_facts import (
    Loaded,
    RunFacts,
    comparison_table,
    full_name,
    greater_is_better,
    metric_names,
    warn_of_other_rows,
)
from modularml.strategies.comparison.statistics import test_table
from modularml.strategies.cv_results import CVResults
from modularml.strategies.ensemble import Ensemble
from modularml.viz.curves import bars
from modularml.viz.curves import series as draw_series

if TYPE_CHECKING:
    import pandas as pd


class ExperimentCollection(Checked):
    """Experiments side by side: what differs, which is best, and whether that is certain.

    Parameters
    ----------
    items : list, dict, or one item
        Experiments, `ExperimentRun`, `CVResults`, `Ensemble`, `SweepResults` (its best experiment),
        paths of ``.exp.mml`` files, folders of them, or a dict of these by name. Otherwise they are
        named after their labels, or their files; a name that occurs again gets a number. A damaged
        file is named in a warning and left out.
    recursive : bool
        Whether folders are read with their subfolders. Files are sorted by path.
    custom_objects, allow_import, allow_packaged_code
        Where your own classes are found when a file is loaded; see `Experiment.load`. To compare,
        files are read without loading them, so no class is needed.

    Raises
    ------
    DataError
        If there is no experiment, or a folder has no file of one.
    MMLNotFoundError
        If there is no such file.
    TypeError
        If an item is none of these.

    Examples
    --------
    ``ExperimentCollection({"small": cv_small, "large": cv_large}).test("rmse", baseline="small")``

    Examples
    --------
    >>> from modularml import Experiment, ExperimentCollection
    >>> runs = ExperimentCollection([Experiment("first"), Experiment("second")])
    >>> len(runs)
    2
    """

    def __init__(
        self,
        items: Any,
        *,
        recursive: bool = False,
        custom_objects: Mapping[str, Any] | None = None,
        allow_import: Iterable[str] = (),
        allow_packaged_code: bool | str = False,
    ) -> None:
        options = {
            "custom_objects": custom_objects,
            "allow_import": allow_import,
            "allow_packaged_code": allow_packaged_code,
        }
        self._members: dict[str, Member] = members_of(items, recursive=recursive, options=options)

    @property
    def labels(self) -> list[str]:
        """Names of the members."""
        return list(self._members)

    def items(self) -> Iterator[tuple[str, Loaded]]:
        """Iterate over names and objects; files are loaded."""
        return ((name, member.load()) for name, member in self._members.items())

    # -- tables -------------------------------------------------------------------------------

    def compare(self, *, differences_only: bool = True) -> pd.DataFrame:
        """Return one row per run: config, data, metrics, duration and status.

        Parameters
        ----------
        differences_only : bool
            Whether settings and facts of the data that are equal in all runs are omitted.

        Returns
        -------
        DataFrame
            The index is ``run``: the name of the member, followed by the run's label if an
            experiment has several (its config is the present one). Columns:
            ``config.<path>``, by the paths of a `Sweep`; ``data.<FeatureSet>``, the fingerprint of
            its rows; ``rows.<FeatureSet>.<split>``, their number; metrics as ``<phase>.<metric>``
            of the weights that were kept, for folds and ensembles the mean over their members,
            beside ``<phase>.<metric>_std``; ``n_members``; ``seconds``; ``status``.

        Warns
        -----
        UserWarning
            If a metric was computed on other rows in some runs.
        """
        facts = self._facts()
        warn_of_other_rows(facts)
        return comparison_table(facts, differences_only=differences_only)

    def to_pandas(self) -> pd.DataFrame:
        """Return everything that is known of each run; see `compare`."""
        return self.compare(differences_only=False)

    def best(
        self, metric: str, mode: Literal["min", "max"] | None = None, *, by: str | None = None
    ) -> Any:
        """Return the name of the best run, overall or for each value of a setting.

        Parameters
        ----------
        metric : str
            Such as ``"val.rmse"``, or ``"rmse"`` if one phase logged it. NaN is never best.
        mode : {'min', 'max'}, optional
            Whether smaller or greater is better, if the name of the metric does not tell.
        by : str, optional
            Column of `compare`, or the path of a setting, such as ``"graph.optimizer.lr"``.

        Returns
        -------
        str, or DataFrame
            With `by`, one row per value: ``run`` and the metric.

        Raises
        ------
        UnknownNameError
            If no run has the metric, or the column is unknown.
        ConfigError
            If the direction is unknown, the metric ambiguous, or every value NaN.
        """
        facts = self._facts()
        table = comparison_table(facts, differences_only=False)
        name = str(full_name(metric, metric_names(facts)))
        warn_of_other_rows(facts, [name])
        greater = greater_is_better(metric, mode)
        column = table[name].dropna()
        if column.empty:
            raise ConfigError(f"metric {name!r} is NaN in every run, so none is best")
        ranked = column.sort_values(ascending=not greater, kind="stable")
        if by is None:
            return str(ranked.index[0])
        path = next((c for c in (by, f"config.{by}") if c in table), None)
        if path is None:
            raise UnknownNameError("column", by, table.columns)
        frame = require("pandas").DataFrame(
            {by: table.loc[ranked.index, path], "run": ranked.index, name: ranked.to_numpy()}
        )
        return frame.groupby(by, dropna=False).first()

    # -- statistics ---------------------------------------------------------------------------

    def test(self, metric: str, baseline: str | int = 0, *, level: float = 0.95) -> pd.DataFrame:
        """Test whether cross-validations differ from one of them on the same folds.

        Parameters
        ----------
        metric : str
            One that was logged (``"val.rmse"``), or a name such as ``"rmse"``, which is computed on
            the held-out rows of each fold.
        baseline : str or int
            Name or number of the member that the others are compared with.
        level : float
            Confidence level of the interval, above 0 and below 1.

        Returns
        -------
        DataFrame
            One row per other member: ``mean`` of its folds and of the ``baseline``; ``difference``
            (positive if the member's is greater) with its interval ``low`` to ``high``; ``effect``,
            the difference in standard deviations of the differences; ``t``, ``df``, ``p``
            (two-sided); ``p_holm``, adjusted for the number of rows; ``n_folds``.

        Raises
        ------
        ConfigError
            If a member is no `CVResults`, the folds or the scored rows differ, or a score is not
            finite.

        Warns
        -----
        UserWarning
            If the scores of a member are too optimistic, as its epochs or rates were selected on
            the rows that are scored; or if some folds are left out, as a member has no score.

        Notes
        -----
        This is the corrected resampled t-test of Nadeau & Bengio 2003, *Inference for the
        generalization error*, Machine Learning 52: as folds share training rows, the variance of
        the mean difference is ``s² (1 / n + n_val / n_train)`` instead of ``s² / n``.
        """
        base = self._label(baseline)
        single = [n for n, m in self._members.items() if not isinstance(m.source, CVResults)]
        if single or len(self) < 2:
            raise ConfigError(
                "a test compares at least two CVResults on the same folds, but "
                + (f"{single} are single runs" if single else f"there is only {self.labels}")
                + "; cross-validate them, or select members: collection[['a', 'b']]"
            )
        cvs: dict[str, Any] = dict(self.items())
        return test_table(cvs, metric, base, level=level)

    def evaluate(
        self,
        data: Any,
        *,
        metrics: Metrics | None = None,
        group_by: str | None = None,
        unscale: bool = True,
        outputs: Meaning = "auto",
        per: str | None = None,
        reduce: Reduce = "mean",
    ) -> pd.DataFrame:
        """Score all members on the same rows; see `Experiment.evaluate`.

        Parameters
        ----------
        data : str, FeatureSet, FeatureSetView, DataFrame or dict
            A split by name must hold the same rows in every experiment.
        metrics, group_by, unscale, outputs, per, reduce
            See `Experiment.evaluate`.

        Returns
        -------
        DataFrame
            The rows of `Experiment.evaluate` for each member, after a column ``run``. For a
            `CVResults` the models of all folds are scored: the row holds the mean of their scores,
            beside ``<metric>_std``. An `Ensemble` is scored by its mean prediction.

        Raises
        ------
        ConfigError
            If a member is an `ExperimentRun`, or a split holds other rows in some experiments.
        """
        check_reduce(reduce, per)
        experiments = {name: m.experiments(name) for name, m in self._members.items()}
        if isinstance(data, str):
            check_split(data, experiments)
        options = {"metrics": metrics, "group_by": group_by, "unscale": unscale, "outputs": outputs}
        options |= {"per": per, "reduce": reduce}
        tables = []
        for name, member in self._members.items():
            table = mean_table(evaluated(member, name, data, **options))
            table.insert(0, "run", name)
            tables.append(table)
        frame: pd.DataFrame = require("pandas").concat(tables, ignore_index=True)
        return frame

    # -- pictures -----------------------------------------------------------------------------

    def plot(
        self,
        metric: str | None = None,
        *,
        kind: Literal["bar", "curve"] = "bar",
        path: str | Path | None = None,
    ) -> Any:
        """Plot a metric of all runs, and return the figure.

        Parameters
        ----------
        metric : str, optional
            By default the only metric that all runs have.
        kind : {'bar', 'curve'}
            Bars, with the values of folds and their standard deviation; or the metric of training
            phases over epochs, for folds its mean over the epochs that all of them have.
        path : path-like, optional
            Where to save the figure.
        """
        if kind not in ("bar", "curve"):
            raise ConfigError(f"kind must be 'bar' or 'curve', got {kind!r}")
        facts = self._facts()
        names = metric_names(facts)
        if metric is None:
            common = [n for n in names if all(n in f.metrics for f in facts.values())]
            if len(common) != 1:
                raise ConfigError(
                    f"metric must be given, the runs have {common or names} in common"
                )
            metric = common[0]
        name = str(full_name(metric, names))
        warn_of_other_rows(facts, [name])
        if kind == "curve":
            return draw_series(self._curves(name), x="epoch", y=name, path=path)
        values: dict[str, list[float]] = {}
        for run, f in facts.items():
            source = self._members[run].source if run in self._members else None
            if name in f.metrics and isinstance(source, CVResults | Ensemble):
                values[run] = [float(value) for value in source.to_pandas()[name]]
            elif name in f.metrics:
                values[run] = [f.metrics[name]]
        return bars(values, x=name, path=path)

    def report(self, path: str | Path, **options: Any) -> Path:
        """Write a report as one HTML file; see `modularml.write_report`."""
        written: Path = require("modularml.report").write_report(self, path, **options)
        return written

    # -- container ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Loaded]:
        return (member.load() for member in self._members.values())

    def __contains__(self, name: object) -> bool:
        return name in self._members

    @overload
    def __getitem__(self, key: str | int) -> Loaded: ...

    @overload
    def __getitem__(self, key: slice | list[Any]) -> ExperimentCollection: ...

    def __getitem__(self, key: Any) -> Any:
        """Return a member by name or number; several, by a list or slice, as a collection."""
        if not isinstance(key, slice | list):
            return self._members[self._label(key)].load()
        chosen = self.labels[key] if isinstance(key, slice) else [self._label(k) for k in key]
        if not chosen:
            raise ConfigError(f"{key!r} selects none of the {len(self)} members")
        new = ExperimentCollection.__new__(ExperimentCollection)
        new._members = {name: self._members[name] for name in chosen}
        return new

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.labels[:5])) + (", ..." if len(self) > 5 else "")
        return f"ExperimentCollection({len(self)} members: {shown})"

    def _repr_html_(self) -> str:
        table = comparison_table(self._facts(), differences_only=True)
        return f"<b>{len(self)} members</b>{table.to_html(float_format='{:.5g}'.format)}"

    # -- internals ----------------------------------------------------------------------------

    def _label(self, key: str | int) -> str:
        if isinstance(key, int | np.integer) and -len(self) <= key < len(self):
            return self.labels[key]
        if key not in self._members:
            raise UnknownNameError("member", key, self.labels)
        return str(key)

    def _facts(self) -> dict[str, RunFacts]:
        """Return the facts of each run by name."""
        return {
            f"{name}/{run}" if run else name: facts
            for name, member in self._members.items()
            for run, facts in member.facts().items()
        }

    def _curves(self, metric: str) -> dict[str, Any]:
        """Return epochs and values of a metric of training phases by name of the run."""
        curves: dict[str, Any] = {}
        for name, loaded in self.items():
            if isinstance(loaded, CVResults | Ensemble):
                experiments = [e for e in self._members[name].experiments(name) if e.history]
                folds = [_curve(e.history[-1].results, metric) for e in experiments]
                epochs = sorted(set.intersection(*map(set, folds))) if folds else []
                if epochs:
                    curves[name] = epochs, [np.mean([f[e] for f in folds]) for e in epochs]
                continue
            runs = [loaded] if isinstance(loaded, ExperimentRun) else loaded.history
            for label, run in zip(self._members[name].facts(), runs, strict=False):
                if curve := _curve(run.results, metric):
                    curves[f"{name}/{label}" if label else name] = list(curve), list(curve.values())
        if not curves:
            raise UnknownNameError("metric over epochs", metric, [])
        return curves


def _curve(results: Any, metric: str) -> dict[int, float]:
    """Return a metric of a training phase by epoch; empty if it was not logged."""
    for label, phase in results.flatten().items():
        if isinstance(phase, TrainResults) and metric.startswith(f"{label}."):
            values: dict[int, float] = phase._metrics.epoch_values(metric.removeprefix(f"{label}."))
            return dict(sorted(values.items()))
    return {}
