"""What a cross-validation leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from modularml._optional import require
from modularml._warning import warn
from modularml.data.batch import as_numpy
from modularml.data.execution import ExecutionContext, LossRecord
from modularml.data.selectors import select_one
from modularml.engine.loop import Display, run_phase
from modularml.errors import ConfigError, ExecutionError, UnknownNameError
from modularml.experiment import (
    EvalPhase,
    EvalResults,
    Experiment,
    InputBinding,
    PhaseGroupResults,
    TrainResults,
)
from modularml.graph.inverse_scaling import to_own_units
from modularml.graph.node import GraphNode
from modularml.results.real_steps import blanked, target_steps
from modularml.results.scores import Score, default_score, find_scores
from modularml.results.series import AxisSeries
from modularml.results.train_eval import PhaseResults, by_column
from modularml.splitters.base import key_list
from modularml.strategies.binding import CVBinding
from modularml.strategies.folds import Fold
from modularml.viz.curves import series as draw_series

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CVResults"]

At: TypeAlias = Literal["kept", "last", "best"]


class CVResults:
    """Results of all folds: those that succeeded, and why the others did not (`failed_folds`).

    Parameters
    ----------
    label : str
        Of the cross-validation.
    bindings : sequence of CVBinding
    folds : sequence of Fold
    experiments, failed_folds : mapping of str to Experiment, and to Exception
        By label of the fold.
    selected_on_scored_rows : bool
        Whether an epoch or a learning rate was chosen by the rows that scores are taken on, so that
        they are better than honest ones.
    """

    def __init__(
        self,
        label: str,
        bindings: Sequence[CVBinding],
        folds: Sequence[Fold],
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
        """Number of folds, of all repeats, those that failed among them."""
        return len(self._folds)

    @property
    def fold_labels(self) -> list[str]:
        """Labels of all folds: ``fold_0``, ``fold_1``..."""
        return list(self._folds)

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
        """Return what a function makes of the results of each fold, over (fold)."""
        data = {}
        for label, experiment in self._experiments.items():
            with experiment.ctx.activate():
                data[(label,)] = fn(self.get_fold(label))
        return AxisSeries(("fold",), data, "values")

    def losses(self, node: str | GraphNode, *, phase: str | None = None) -> AxisSeries[LossRecord]:
        """Return the losses applied on a node over (fold, epoch, batch, label).

        Those of the only phase, or of the only training, where no label of a phase is given.
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
        """Predict, in each fold, the rows that it did not learn from, with what it has learned.

        Returns
        -------
        DataFrame
            One row a sample (a row a repeat), with its id as index: ``fold``; ``repeat``, where
            there are several; ``group``, where the rows were grouped (a tuple of several
            columns); ``prediction`` and ``target`` in the target's own units, or
            ``prediction_0``, ``prediction_1``... where a sample has several values. Padding of
            targets, and what is predicted for it, is NaN.
        """
        pandas = require("pandas")
        wanted = node.label if isinstance(node, GraphNode) else node
        frames = [self._predicted(label, wanted) for label in self._experiments]
        return pandas.concat(frames)  # type: ignore[no-any-return]

    def to_pandas(
        self, at: At = "kept", *, metrics: Sequence[str] | Mapping[str, Score] | None = None
    ) -> pd.DataFrame:
        """Return one row a fold, one column a score.

        A score is the value of a metric in one epoch, or a loss over all rows of a phase that
        passes over them once: ``train.train_loss``, ``test.mse``. Metrics of single groups are in
        `by_group`.

        Parameters
        ----------
        at : {'kept', 'last', 'best'}
            The epoch whose weights the fold kept, its last one, or the best one; see
            `TrainResults.figures`. A metric that was not measured in it is NaN, with a warning.
        metrics : sequence of str, or mapping of str to function, optional
            Computed besides, of the rows that each fold held out, with the weights that it kept:
            ``val.r2``; see `EvalResults.scores`. Where nothing was measured and none are given,
            estimators of scikit-learn are scored as they score themselves: ``r2``, ``accuracy``.
        """
        return self._tables(at, metrics)[0]

    def by_group(
        self,
        at: At = "kept",
        *,
        metrics: Sequence[str] | Mapping[str, Score] | None = None,
        group_by: str | None = None,
    ) -> pd.DataFrame:
        """Return mean and deviation over folds of the scores of single groups.

        Parameters
        ----------
        at, metrics
            As of `to_pandas`.
        group_by : str, optional
            Column by whose values `metrics` are computed; that of the binding where there is one.

        Returns
        -------
        DataFrame
            One row a score and group: ``mean``, ``std`` (NaN for one fold), ``n`` folds.
        """
        if metrics is not None and group_by is None:
            keys = [k for b in self._bindings.values() for k in key_list(b.group_by)]
            if len(set(keys)) != 1:
                raise ConfigError(f"name one column of groups with group_by=, there are {keys}")
            group_by = keys[0]
        frame = self._tables(at, metrics, group_by)[1]
        found: pd.DataFrame = frame.groupby(["score", "group"], sort=False)["value"].agg(
            ["mean", "std", "count"]
        )
        return found.rename(columns={"count": "n"})

    def summary(
        self,
        level: float = 0.95,
        *,
        at: At = "kept",
        metrics: Sequence[str] | Mapping[str, Score] | None = None,
    ) -> pd.DataFrame:
        """Return mean, deviation and confidence interval of each score over folds.

        Parameters
        ----------
        level : float
            Of the interval, above 0 and below 1.
        at, metrics
            Which scores; see `to_pandas`.

        Returns
        -------
        DataFrame
            One row a score: ``mean``, ``std`` (n - 1 in the denominator), ``low``, ``high``, ``n``.

        Notes
        -----
        The interval is Student's ``mean ± t(n - 1) * std / sqrt(n)`` (Student 1908, *The probable
        error of a mean*, Biometrika 6). Folds share training rows, so their scores are not
        independent and the interval is rather too narrow (Bengio & Grandvalet 2004, *No unbiased
        estimator of the variance of k-fold cross-validation*, JMLR 5). Of repeated folds, ``1 / n``
        is replaced by ``1 / n + n_val / n_train``, as more repeats bring no more rows (Nadeau &
        Bengio 2003, *Inference for the generalization error*, Machine Learning 52).
        """
        if not 0 < level < 1:
            raise ConfigError(f"level must lie between 0 and 1, got {level!r}")
        scores = self.to_pandas(at, metrics=metrics)
        n, mean, std = scores.count(), scores.mean(), scores.std()
        share = 1 / n
        if len({fold.repeat for fold in self._folds.values()}) > 1:
            sides = [side for fold in self._folds.values() for side in fold.sides.values()]
            share += np.mean([len(s.val) / len(s.train) for s in sides])
        reach = require("scipy.special").stdtrit(n - 1, (1 + level) / 2) * std * np.sqrt(share)
        columns = {"mean": mean, "std": std, "low": mean - reach, "high": mean + reach, "n": n}
        frame: pd.DataFrame = require("pandas").DataFrame(columns)
        frame.attrs |= scores.attrs
        return frame

    def plot(self, metric: str | None = None, *, phase: str | None = None, path: Any = None) -> Any:
        """Draw a metric over epochs, one line a fold, and return the figure.

        ``val_loss`` where it is logged, else ``train_loss``. Without trainings, scores by fold.
        """
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

    def __repr__(self) -> str:
        failed = f", {len(self.failed_folds)} failed" if self.failed_folds else ""
        chosen = ", selected on scored rows" if self.selected_on_scored_rows else ""
        return f"CVResults({self.label!r}, {self.n_folds} folds{failed}{chosen})"

    def _repr_html_(self) -> str:
        return f"<b>{self!r}</b>{self.summary().to_html(float_format='{:.5g}'.format)}"

    # -- within -------------------------------------------------------------------------------

    def _tables(
        self, at: At, metrics: Any = None, group_by: str | None = None
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return scores by fold, and those of single groups: fold, score, group, value."""
        pandas = require("pandas")
        frame, groups, unmeasured = _logged({k: self.get_fold(k) for k in self._experiments}, at)
        if metrics is None and not frame and not groups:
            metrics = self._own_metrics()
        if metrics is not None:
            for label, experiment in self._experiments.items():
                found = _held_out_scores(experiment, self._folds[label], metrics, group_by)
                for name, group, value in found:
                    if group is None:
                        frame.setdefault(label, {})[name] = value
                    else:
                        groups.append((label, name, group, value))
        if unmeasured:
            warn(
                f"{', '.join(sorted(unmeasured))} were not measured in the {at} epoch of every "
                "fold and are NaN there; evaluate with every_n_epochs=1, or pass metrics=, "
                "which are computed with the weights that were kept",
                UserWarning,
            )
        scores = pandas.DataFrame.from_dict(frame, orient="index").reindex(list(self._experiments))
        scores.attrs["selected_on_scored_rows"] = self.selected_on_scored_rows
        columns = ["fold", "score", "group", "value"]
        return scores.rename_axis("fold"), pandas.DataFrame(groups, columns=columns)

    def _own_metrics(self) -> list[str] | None:
        """Return the score that estimators of scikit-learn have, or say how to get any."""
        first = next(iter(self._experiments.values()))
        graph = first.model_graph
        tails = [] if graph is None else [graph.get_node(node) for node in graph.tail_nodes]
        found = {default_score(getattr(node, "model", None)) for node in tails}
        if len(found) == 1 and None not in found:
            return [str(found.pop())]
        warn(
            f"nothing was measured in the folds of {self.label!r}: give the EvalPhase losses, "
            "watch the training with an Evaluation, or pass metrics=['rmse'], say, to summary()",
            UserWarning,
        )
        return None

    def _joined(
        self, axes: Sequence[str], kind: str, read: Callable[[PhaseGroupResults], AxisSeries[Any]]
    ) -> AxisSeries[Any]:
        data = {
            (label, *key): value
            for (label,), series in self.collect(read).items()
            for key, value in series.items()
        }
        return AxisSeries(("fold", *axes), data, kind)

    def _predicted(self, label: str, node: str) -> pd.DataFrame:
        experiment, fold = self._experiments[label], self._folds[label]
        with experiment.ctx.activate():
            ctx = _validated(experiment, fold, node).execution_contexts().one()
        assert ctx.layout is not None
        node_id = next(i for i, name in ctx.layout.labels.items() if node in (i, name))
        output, target = as_numpy(ctx.output(node_id)), ctx.domain(node_id, "targets")
        columns: dict[str, Any] = {"fold": label}
        if len({f.repeat for f in self._folds.values()}) > 1:
            columns["repeat"] = fold.repeat
        columns |= self._group(ctx, node_id)
        holds = target_steps([ctx], node_id)
        found = to_own_units(ctx, node_id, "outputs", output)
        columns |= by_column("prediction", blanked(found, holds))
        if target is not None:
            true = to_own_units(ctx, node_id, "targets", target)
            columns |= by_column("target", blanked(true, holds))
        pandas = require("pandas")
        index = pandas.Index(ctx.sample_uuids(node_id), name="sample_uuid")
        return pandas.DataFrame(columns, index=index)  # type: ignore[no-any-return]

    def _group(self, ctx: ExecutionContext, node_id: str) -> dict[str, Any]:
        bound = [s for s in ctx.sources(node_id) if s.ref.node_label in self._bindings]
        if not bound:
            return {}
        source, binding = bound[0], self._bindings[bound[0].ref.node_label]
        keys = key_list(binding.group_by)
        schema = binding.featureset.collection.schema
        rows = ctx.indices(source)["default"]
        values = [
            binding.featureset.collection.numpy(select_one(schema, k))[rows].tolist() for k in keys
        ]
        return (
            {"group": values[0] if len(keys) == 1 else list(zip(*values, strict=True))}
            if keys
            else {}
        )


def _validated(experiment: Experiment, fold: Fold, node: str) -> EvalResults:
    """Send the rows that a fold held out through its graph, in one step."""
    graph = experiment.model_graph
    if graph is None:
        raise ConfigError(f"experiment {experiment.label!r} has no graph that could predict")
    graph.get_node(node)
    sources = []
    for head in graph._running([node]):
        for ref in head.feature_refs:
            if ref.node_label not in fold.sides:
                raise ConfigError(f"{ref.node_label!r} has no CVBinding, so it holds no rows out")
            split = fold.sides[ref.node_label].val_name
            sources.append(InputBinding(head.node_id, ref, split))
    phase = EvalPhase("out_of_fold", input_sources=sources, active_nodes=[node])
    results = EvalResults("out_of_fold")
    run_phase(phase, experiment, results, Display())
    return results


def _phase(results: PhaseGroupResults, label: str | None) -> PhaseResults:
    found = results.flatten()
    if label is None:
        trainings = {k: r for k, r in found.items() if isinstance(r, TrainResults)}
        few = found if len(found) == 1 else trainings
        if len(few) == 1:
            return next(iter(few.values()))
    if label not in found:
        raise UnknownNameError("phase", label, found, "Pass phase=")
    return found[label]


def _logged(
    folds: Mapping[str, PhaseGroupResults], at: At
) -> tuple[dict[str, dict[str, float]], list[tuple[str, str, str, float]], set[str]]:
    """Return metrics of one epoch, and losses over all rows: by fold, by group, and what lacks."""
    frame: dict[str, dict[str, float]] = {}
    groups, unmeasured = [], set()
    for fold, results in folds.items():
        for label, phase in results.flatten().items():
            figures = phase.figures(at) if isinstance(phase, TrainResults) else _losses(phase)
            for name in phase.metric_names():
                logged = phase._metrics.epoch_values(name)
                if not logged:
                    continue
                if not isinstance(phase, TrainResults):
                    figures.setdefault(name, logged[max(logged)])
                base, bracket, group = name.partition("[")
                score = f"{label}.{base if bracket else name}"
                if bracket and name in figures:
                    groups.append((fold, score, group.removesuffix("]"), figures.pop(name)))
                elif name not in figures and not bracket:
                    figures[name] = float("nan")
                    unmeasured.add(score)
            if figures:
                row = {f"{label}.{name}": value for name, value in figures.items()}
                frame[fold] = frame.get(fold, {}) | row
    return frame, groups, unmeasured


def _losses(phase: Any) -> dict[str, float]:
    """Return the losses over all rows of a phase that passes over them once."""
    if not phase._execution:
        return {}
    layout = phase._execution[0].layout
    found: dict[str, float] = {}
    for _, node_id in layout.losses if layout is not None else ():
        found |= phase.aggregated_losses(node_id)
    return found


def _held_out_scores(
    experiment: Experiment, fold: Fold, metrics: Any, group_by: str | None
) -> list[tuple[str, Any, float]]:
    """Return name, group and value of metrics of the rows that a fold held out."""
    graph = experiment.model_graph
    if graph is None:
        raise ConfigError(f"experiment {experiment.label!r} has no graph that could be scored")
    split = next(iter(fold.sides.values())).val_name
    found = []
    with experiment.ctx.activate():
        tails = [graph.get_node(node) for node in graph.tail_nodes]
        for node in tails:
            results = _validated(experiment, fold, node.label)
            own = f"{split}." if len(tails) == 1 else f"{split}.{node.label}."
            scores = find_scores(metrics)
            rows = results.scored(scores, node, group_by=group_by)
            found += [(own + score, group, value) for score, _, group, value, _ in rows]
    return found
