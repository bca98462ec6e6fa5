"""What a cross-validation leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modularml._optional import require
from modularml.data.batch import as_numpy
from modularml.data.execution import ExecutionContext, LossRecord
from modularml.data.selectors import select_one
from modularml.errors import ConfigError, ExecutionError, UnknownNameError
from modularml.experiment import (
    EvalPhase,
    EvalResults,
    Experiment,
    InputBinding,
    PhaseGroupResults,
    TrainResults,
)
from modularml.experiment.loop import Display, run_phase
from modularml.experiment.results import PhaseResults, by_column
from modularml.experiment.series import AxisSeries
from modularml.graph.node import GraphNode
from modularml.graph.units import to_own_units
from modularml.plotting import series as draw_series
from modularml.splitters.base import key_list
from modularml.strategies.binding import CVBinding
from modularml.strategies.folds import Fold

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CVResults"]


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
    """

    def __init__(
        self,
        label: str,
        bindings: Sequence[CVBinding],
        folds: Sequence[Fold],
        experiments: Mapping[str, Experiment],
        failed_folds: Mapping[str, Exception],
    ) -> None:
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
            ``prediction_0``, ``prediction_1``... where a sample has several values.
        """
        pandas = require("pandas")
        wanted = node.label if isinstance(node, GraphNode) else node
        frames = [self._predicted(label, wanted) for label in self._experiments]
        return pandas.concat(frames)  # type: ignore[no-any-return]

    def to_pandas(self) -> pd.DataFrame:
        """Return one row a fold, one column a score.

        A score is the value of a metric in the last epoch, or a loss over all rows of a phase that
        passes over them once: ``train.train_loss``, ``test.mse``.
        """
        rows = {label: _scores(self.get_fold(label)) for label in self._experiments}
        frame: pd.DataFrame = require("pandas").DataFrame.from_dict(rows, orient="index")
        return frame.rename_axis("fold")

    def summary(self, level: float = 0.95) -> pd.DataFrame:
        """Return mean, deviation and confidence interval of each score (`to_pandas`) over folds.

        Returns
        -------
        DataFrame
            One row a score: ``mean``, ``std`` (n - 1 in the denominator), ``low``, ``high``, ``n``.

        Notes
        -----
        The interval is Student's ``mean ± t(n - 1) * std / sqrt(n)`` (Student 1908, *The probable
        error of a mean*, Biometrika 6). Folds share training rows, so their scores are not
        independent and the interval is rather too narrow (Bengio & Grandvalet 2004, *No unbiased
        estimator of the variance of k-fold cross-validation*, JMLR 5).
        """
        if not 0 < level < 1:
            raise ConfigError(f"level must lie between 0 and 1, got {level!r}")
        scores = self.to_pandas()
        n, mean, std = scores.count(), scores.mean(), scores.std()
        reach = require("scipy.special").stdtrit(n - 1, (1 + level) / 2) * std / np.sqrt(n)
        columns = {"mean": mean, "std": std, "low": mean - reach, "high": mean + reach, "n": n}
        frame: pd.DataFrame = require("pandas").DataFrame(columns)
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
        return f"CVResults({self.label!r}, {self.n_folds} folds{failed})"

    def _repr_html_(self) -> str:
        return f"<b>{self!r}</b>{self.summary().to_html(float_format='{:.5g}'.format)}"

    # -- within -------------------------------------------------------------------------------

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
            ctx = _validated(experiment, fold, node)
        assert ctx.layout is not None
        node_id = next(i for i, name in ctx.layout.labels.items() if node in (i, name))
        output, target = as_numpy(ctx.output(node_id)), ctx.domain(node_id, "targets")
        columns: dict[str, Any] = {"fold": label}
        if len({f.repeat for f in self._folds.values()}) > 1:
            columns["repeat"] = fold.repeat
        columns |= self._group(ctx, node_id)
        columns |= by_column("prediction", to_own_units(ctx, node_id, "outputs", output))
        if target is not None:
            columns |= by_column("target", to_own_units(ctx, node_id, "targets", target))
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


def _validated(experiment: Experiment, fold: Fold, node: str) -> ExecutionContext:
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
    results = run_phase(phase, experiment, EvalResults("out_of_fold"), Display())
    return results.execution_contexts().one()


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


def _scores(results: PhaseGroupResults) -> dict[str, float]:
    """Return the last value of every metric, and losses over all rows."""
    found: dict[str, float] = {}
    for label, phase in results.flatten().items():
        for name in phase.metric_names():
            if values := phase._metrics.epoch_values(name):
                found[f"{label}.{name}"] = values[max(values)]
        if isinstance(phase, TrainResults) or not phase._execution:
            continue
        layout = phase._execution[0].layout
        for _, node_id in layout.losses if layout is not None else ():
            losses = phase.aggregated_losses(node_id)  # type: ignore[attr-defined]
            found |= {f"{label}.{name}": value for name, value in losses.items()}
    return found
