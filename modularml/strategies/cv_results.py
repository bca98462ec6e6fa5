"""Results of a cross-validation."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modularml._optional import require
from modularml._warning import warn
from modularml.data.execution_context import LossRecord
from modularml.errors import ConfigError, ExecutionError, UnknownNameError
from modularml.experiment import (
    Experiment,
    PhaseGroupResults,
    TrainResults,
)
from modularml.graph.node import GraphNode
from modularml.results.phase_results import PhaseResults
from modularml.results.result_tables import ComparedRows, plot_rows
from modularml.results.scores import Score, default_score
from modularml.results.scoring import Reduce
from modularml.results.series import AxisSeries
from modularml.splitters.base import key_list
from modularml.strategies.folds import CVBinding
from modularml.strategies.held_out_checks import (
    At,
    compared_rows,
    held_out_scores,
    logged_figures,
    predicted_rows,
)
from modularml.strategies.member_predictions import Members
from modularml.strategies.predictor import Predictor
from modularml.strategies.variants.variant import Sides, Variant
from modularml.viz.curves import series as draw_series

if TYPE_CHECKING:
    import pandas as pd


class CVResults:
    """Results of all folds, and the errors of failed ones (`failed_folds`).

    Parameters
    ----------
    label : str
        The label of the cross-validation.
    bindings : sequence of CVBinding
    folds : sequence of Variant
    experiments, failed_folds : mapping of str to Experiment, and to Exception
        By fold label.
    selected_on_scored_rows : bool
        Whether an epoch or a learning rate was selected on the rows that scores are computed on, so
        that the scores are too optimistic.

    Examples
    --------
    >>> import numpy as np
    >>> import modularml as mml
    >>> from modularml.models.torch import SequentialMLP
    >>> experiment = mml.Experiment("demo", seed=0)
    >>> a, b, noise = np.random.default_rng(0).normal(size=(3, 60)).astype("float32")
    >>> rows = {"a": a, "b": b, "y": a + b + noise}
    >>> fs = mml.FeatureSet.from_dict("rows", rows, ["a", "b"], "y")
    >>> fs.split_random({"train": 0.8, "test": 0.2})
    >>> net = mml.ModelNode("net", SequentialMLP(), fs)
    >>> graph = mml.ModelGraph([net], mml.Optimizer("adam"))
    >>> mse = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
    >>> phase = mml.TrainPhase.from_split(
    ...     "train", split="train", sampler=mml.SimpleSampler(batch_size=16), losses=[mse]
    ... )
    >>> cv = mml.CrossValidation(
    ...     bindings=mml.CVBinding("rows", "train"), n_folds=2, phase=phase, experiment=experiment
    ... )
    >>> results = cv.run(show_fold_progress=False, show_training_progress=False)
    >>> results.fold_labels
    ['fold_0', 'fold_1']
    """

    def __init__(
        self,
        label: str,
        bindings: Sequence[CVBinding],
        folds: Sequence[Variant],
        experiments: Mapping[str, Experiment],
        failed_folds: Mapping[str, Exception],
        *,
        selected_on_scored_rows: bool = False,
    ) -> None:
        self.selected_on_scored_rows = selected_on_scored_rows
        self.label, self.failed_folds = label, dict(failed_folds)
        self._bindings = {binding.featureset.label: binding for binding in bindings}
        self._folds = {fold.label: fold for fold in folds}
        self._experiments = {k: experiments[k] for k in self._folds if k in experiments}

    @property
    def n_folds(self) -> int:
        """Number of folds in all repeats, including failed ones."""
        return len(self._folds)

    @property
    def fold_labels(self) -> list[str]:
        """Labels of all folds: ``fold_0``, ``fold_1``..."""
        return list(self._folds)

    @property
    def held_out(self) -> dict[str, list[tuple[str, str | None]]]:
        """FeatureSets and splits that are held out, by the name of the split."""
        names: dict[str, list[tuple[str, str | None]]] = {}
        for label, side in next(iter(self._folds.values())).sides.items():
            names.setdefault(side.val_name, []).append((label, side.val_name))
        return names

    def sides(self, fold: str) -> dict[str, Sides]:
        """Return the rows of a fold by FeatureSet label."""
        return dict(self._folds[fold].sides)

    def get_fold(self, fold: int | str) -> PhaseGroupResults:
        """Return the results of a fold, by number or label; see `get_experiment`."""
        return self.get_experiment(fold).history[-1].results

    def get_experiment(self, fold: int | str) -> Experiment:
        """Return the experiment of a fold: its graph, FeatureSets and history.

        Raises
        ------
        UnknownNameError
            If there is no such fold.
        ExecutionError
            If the fold failed; the error is its cause.
        """
        labels = self.fold_labels
        label = labels[fold] if isinstance(fold, int) and -1 < fold < len(labels) else str(fold)
        if label in self.failed_folds:
            raise ExecutionError(f"{label} failed") from self.failed_folds[label]
        if label not in self._experiments:
            raise UnknownNameError("fold", fold, labels)
        return self._experiments[label]

    def collect(self, fn: Callable[[PhaseGroupResults], Any]) -> AxisSeries[Any]:
        """Apply a function to the results of each fold; return a series over (fold)."""
        data = {}
        for label, experiment in self._experiments.items():
            with experiment.ctx.activate():
                data[(label,)] = fn(self.get_fold(label))
        return AxisSeries(("fold",), data, "values")

    def losses(self, node: str | GraphNode, *, phase: str | None = None) -> AxisSeries[LossRecord]:
        """Return the losses applied on a node over (fold, epoch, batch, label).

        Without `phase`, those of the only phase, or of the only training phase.
        """
        return self._joined(
            ("epoch", "batch", "label"), "losses", lambda r: _phase(r, phase).losses(node)
        )

    def metrics(self, *, phase: str | None = None) -> AxisSeries[float]:
        """Return the metrics of a phase over (fold, name, epoch, batch); see `losses`."""
        return self._joined(
            ("name", "epoch", "batch"), "metrics", lambda r: _phase(r, phase).metrics()
        )

    def out_of_fold(self, node: str | GraphNode) -> pd.DataFrame:
        """Predict the held-out rows of each fold with its trained graph.

        Returns
        -------
        DataFrame
            One row per sample and repeat, with its id as index: ``fold``; ``repeat``, if there
            are several; ``group``, if the rows were grouped (a tuple for several columns);
            ``prediction`` and ``target`` in the target's original units, or ``prediction_0``,
            ``prediction_1``... if a sample has several values. Padding of targets, and predictions
            for it, are NaN.
        """
        pandas = require("pandas")
        label_or_id = node.label if isinstance(node, GraphNode) else node
        repeats = len({fold.repeat for fold in self._folds.values()}) > 1
        frames = [
            predicted_rows(experiment, self._folds[k], label_or_id, self._bindings, repeats=repeats)
            for k, experiment in self._experiments.items()
        ]
        return pandas.concat(frames)  # type: ignore[no-any-return]

    def predict(self, data: Any, **options: Any) -> Any:
        """Predict rows with all fold models; return the mean and spread.

        Parameters
        ----------
        data
            See `ModelGraph.predict`.
        **options
            Those of `Ensemble.predict`. With ``interval=0.9``, bounds are CV+, from the residuals
            of held-out rows.
        """
        sets = next(iter(self._bindings.values())).featureset.context.available_featuresets
        members = Members(self._experiments, list(sets.values()), self._folds)
        return Predictor(members).predict(data, **options)

    def to_pandas(
        self,
        at: At = "kept",
        *,
        metrics: Sequence[str] | Mapping[str, Score] | None = None,
        per: str | None = None,
        reduce: Reduce = "mean",
    ) -> pd.DataFrame:
        """Return one row per fold, one column per score.

        A score is the value of a metric in one epoch, or a loss over all rows of an evaluation or
        fit phase: ``train.train_loss``, ``test.mse``. Metrics of single groups are in `by_group`.

        Parameters
        ----------
        at : {'kept', 'last', 'best'}
            The epoch whose weights the fold kept, its last one, or the best one; see
            `TrainResults.figures`. A metric that was not logged in it is NaN, with a warning.
        metrics : sequence of str, or mapping of str to function, optional
            Computed in addition, on the held-out rows of each fold with its final weights:
            ``val.r2``; see `EvalResults.scores`. If nothing was logged and none are given,
            scikit-learn estimators get their default score: ``r2`` or ``accuracy``.
        per, reduce : str, optional
            Column of replicates that `metrics` reduce to one row; see `EvalResults.scores`.
        """
        return self._tables(at, metrics, per=per, reduce=reduce)[0]

    def by_group(
        self,
        at: At = "kept",
        *,
        metrics: Sequence[str] | Mapping[str, Score] | None = None,
        group_by: str | None = None,
    ) -> pd.DataFrame:
        """Return mean and standard deviation over folds of scores of single groups.

        Parameters
        ----------
        at, metrics
            See `to_pandas`.
        group_by : str, optional
            Column whose values define the groups; by default that of the binding.

        Returns
        -------
        DataFrame
            One row per score and group: ``mean``, ``std`` (NaN for one fold), ``n`` folds.
        """
        if metrics is not None and group_by is None:
            keys = [k for b in self._bindings.values() for k in key_list(b.group_by)]
            if len(set(keys)) != 1:
                raise ConfigError(
                    f"group_by must name one column, the bindings have {keys}; pass group_by="
                )
            group_by = keys[0]
        frame = self._tables(at, metrics, group_by)[1]
        statistics: pd.DataFrame = frame.groupby(["score", "group"], sort=False)["value"].agg(
            ["mean", "std", "count"]
        )
        return statistics.rename(columns={"count": "n"})

    def summary(
        self,
        level: float = 0.95,
        *,
        at: At = "kept",
        metrics: Sequence[str] | Mapping[str, Score] | None = None,
        per: str | None = None,
        reduce: Reduce = "mean",
    ) -> pd.DataFrame:
        """Return mean, standard deviation and confidence interval of each score.

        Parameters
        ----------
        level : float
            Confidence level, above 0 and below 1.
        at, metrics, per, reduce
            Which scores; see `to_pandas`.

        Returns
        -------
        DataFrame
            One row per score: ``mean``, ``std`` (denominator n - 1), ``low``, ``high``, ``n``.

        Notes
        -----
        The interval is Student's ``mean ± t(n - 1) * std / sqrt(n)`` (Student 1908, *The probable
        error of a mean*, Biometrika 6). Folds share training rows, so their scores are not
        independent and the interval tends to be too narrow (Bengio & Grandvalet 2004, *No unbiased
        estimator of the variance of k-fold cross-validation*, JMLR 5). With repeats, ``1 / n``
        is replaced by ``1 / n + n_val / n_train``, as more repeats add no new rows (Nadeau & Bengio
        2003, *Inference for the generalization error*, Machine Learning 52).
        """
        if not 0 < level < 1:
            raise ConfigError(f"level must be between 0 and 1, exclusive, got {level!r}")
        scores = self.to_pandas(at, metrics=metrics, per=per, reduce=reduce)
        n, mean, std = scores.count(), scores.mean(), scores.std()
        share = 1 / n
        if len({fold.repeat for fold in self._folds.values()}) > 1:
            sides = [side for fold in self._folds.values() for side in fold.sides.values()]
            share += np.mean([len(s.val) / len(s.train) for s in sides])
        width = require("scipy.special").stdtrit(n - 1, (1 + level) / 2) * std * np.sqrt(share)
        columns = {"mean": mean, "std": std, "low": mean - width, "high": mean + width, "n": n}
        frame: pd.DataFrame = require("pandas").DataFrame(columns)
        frame.attrs |= scores.attrs
        return frame

    def plot(
        self,
        metric: str | None = None,
        *,
        phase: str | None = None,
        kind: str | None = None,
        node: str | GraphNode | None = None,
        path: Any = None,
        **options: Any,
    ) -> Any:
        """Plot a metric over epochs, or the predictions of held-out rows; return the figure.

        Parameters
        ----------
        metric : str, optional
            Drawn over epochs, one line per fold. By default ``val_loss`` if it is logged, else
            ``train_loss``; without training phases, the scores by fold.
        phase : str, optional
            Of the metric; see `losses`.
        kind : str, optional
            Draws the held-out rows of all folds together, each predicted by its own fold, instead
            of a metric; see `EvalResults.plot`. The column ``fold`` holds the fold's label:
            ``plot(kind="roc", group_by="fold")`` draws a curve per fold. With repeats, a row is
            drawn once for each.
        node : GraphNode or str, optional
            For `kind`; by default the only tail node of the graph.
        path : path-like, optional
            Where to save the figure.
        **options
            For `kind`; see `EvalResults.plot`.
        """
        if kind is not None:
            if metric is not None or phase is not None:
                raise ConfigError(
                    "kind draws predictions, not a metric of a phase; omit one of them"
                )
            rows = ComparedRows.joined(self.compared_rows(node))
            return plot_rows(rows, kind, path=path, **{"title": self.label, **options})
        if node is not None or options:
            raise ConfigError(f"{['node', *options][node is None]} is for kind=; pass it too")
        first = self.get_fold(next(iter(self._experiments))).flatten()
        if metric is phase is None and not any(isinstance(r, TrainResults) for r in first.values()):
            return draw_series(self.to_pandas(), x="fold", title=self.label, path=path)
        series = self.metrics(phase=phase).where(batch=None)
        names = series.axis_values("name")
        metric = metric or ("val_loss" if "val_loss" in names else "train_loss")
        if metric not in names:
            raise UnknownNameError("metric", metric, names)
        data = {(f, e): v for (f, name, e, _), v in series.items() if name == metric}
        title = f"{self.label}: {metric}"
        return AxisSeries(("fold", "epoch"), data, metric).plot(x="epoch", title=title, path=path)

    def report(self, path: str | Path, **options: Any) -> Path:
        """Write a report as one HTML file; see `modularml.write_report`."""
        written: Path = require("modularml.report").write_report(self, path, **options)
        return written

    def compared_rows(self, node: str | GraphNode | None = None) -> dict[str, ComparedRows]:
        """Return held-out targets and outputs by fold, for plots."""
        return compared_rows(self._experiments, self._folds, node)

    def __repr__(self) -> str:
        failed = f", {len(self.failed_folds)} failed" if self.failed_folds else ""
        chosen = ", selected on scored rows" if self.selected_on_scored_rows else ""
        return f"CVResults({self.label!r}, {self.n_folds} folds{failed}{chosen})"

    def _repr_html_(self) -> str:
        table = self.summary().to_html(float_format="{:.5g}".format)
        return f"<b>{html.escape(repr(self))}</b>{table}"

    # -- internals ----------------------------------------------------------------------------

    def _tables(
        self, at: At, metrics: Any = None, group_by: str | None = None, **how: Any
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return scores by fold, and of single groups: fold, score, group, value."""
        pandas = require("pandas")
        frame, groups, unlogged = logged_figures(
            {k: self.get_fold(k) for k in self._experiments}, at
        )
        if metrics is None and how.get("per") is not None:
            raise ConfigError(f"per={how['per']!r} applies to metrics, such as metrics=['rmse']")
        if metrics is None and not frame and not groups:
            graph = next(iter(self._experiments.values())).model_graph
            tails = [] if graph is None else [graph.get_node(node) for node in graph.tail_nodes]
            names = {default_score(getattr(node, "model", None)) for node in tails}
            if len(names) == 1 and None not in names:
                metrics = list(names)
            else:
                warn(
                    f"the folds of {self.label!r} logged no scores: pass losses to the EvalPhase, "
                    "add an Evaluation to the training phase, or pass metrics, such as ['rmse'], "
                    "to summary()"
                )
        if metrics is not None:
            for label, experiment in self._experiments.items():
                fold = self._folds[label]
                for name, group, value in held_out_scores(experiment, fold, metrics, group_by, how):
                    if group is None:
                        frame.setdefault(label, {})[name] = value
                    else:
                        groups.append((label, name, group, value))
        if unlogged:
            warn(
                f"{', '.join(sorted(unlogged))} were not logged in the {at} epoch of every "
                "fold and are NaN there; evaluate with every_n_epochs=1, or pass metrics=, "
                "which are computed with the final weights"
            )
        scores = pandas.DataFrame.from_dict(frame, orient="index").reindex(list(self._experiments))
        scores.attrs["selected_on_scored_rows"] = self.selected_on_scored_rows
        columns = ["fold", "score", "group", "value"]
        return scores.rename_axis("fold"), pandas.DataFrame(groups, columns=columns)

    def _joined(
        self, axes: Sequence[str], kind: str, read: Callable[[PhaseGroupResults], AxisSeries[Any]]
    ) -> AxisSeries[Any]:
        by_fold = self.collect(read).items()
        data = {
            (label, *key): value for (label,), series in by_fold for key, value in series.items()
        }
        short = by_fold[0][1].short_names if by_fold else {}
        return AxisSeries(("fold", *axes), data, kind).known_as(short)


def _phase(results: PhaseGroupResults, label: str | None) -> PhaseResults:
    phases = results.flatten()
    if label is None:
        trainings = {k: r for k, r in phases.items() if isinstance(r, TrainResults)}
        candidates = phases if len(phases) == 1 else trainings
        if len(candidates) == 1:
            return next(iter(candidates.values()))
    if label not in phases:
        raise UnknownNameError("phase", label, phases, "Pass phase=")
    return phases[label]
