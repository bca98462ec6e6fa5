"""Predictions, scores, exports and reports of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from modularml._arguments import at_least
from modularml._optional import require
from modularml._typing import Array, Columns
from modularml.context import ExperimentContext
from modularml.data.featureset import FeatureSet
from modularml.data.schema import RAW
from modularml.data.view import FeatureSetView
from modularml.errors import ConfigError, DataError
from modularml.experiment.conformal import (
    calibrated_bounds,
    calibration_rows,
    check_names,
    check_unseen,
    check_unseen_table,
    warn_if_selected,
)
from modularml.experiment.evaluating import evaluate, permuted_parts, split_rows
from modularml.experiment.run_audit import RunAudit
from modularml.graph.predict import format_of, predictions
from modularml.phases.group import PhaseGroup
from modularml.phases.phase import active_graph
from modularml.results.prediction_intervals import check_level
from modularml.results.result_tables import ImportanceTable, ScoreTable
from modularml.results.scores import Meaning, Metrics, axis_of_score, name_of_score
from modularml.results.scores import greater_is_better as direction_of
from modularml.results.scoring import Reduce


class TrainedGraph:
    """What is done with the trained graph of an experiment; nothing is trained or changed."""

    _audit: RunAudit
    _ctx: ExperimentContext
    _plan: PhaseGroup

    def predict(
        self,
        data: Any,
        *,
        node: Any | None = None,
        batch_size: int | None = None,
        unscale: bool = True,
        fmt: str = "numpy",
        decode: bool = False,
        tags: bool = False,
        interval: float | None = None,
        calibration: Any | None = None,
        group_by: str | None = None,
    ) -> Any:
        """Return the graph's outputs for new or known rows; see `ModelGraph.predict`.

        Parameters
        ----------
        data, node, batch_size, unscale, fmt, decode, tags
            See `ModelGraph.predict`.
        interval : float, optional
            Share of targets that lie between two further columns, ``y_low`` and ``y_high`` for a
            target ``y``, such as 0.9. It needs a format with named columns. For several targets it
            holds for each. Bounds are split-conformal; see `modularml.results.split_conformal`.
        calibration : str, FeatureSetView, DataFrame or other rows, optional
            Rows with targets that nothing was learned from, or the name of their split; by default
            ``"calibration"``.
        group_by : str, optional
            Column of `data` and of the calibration rows: each group has separate bounds.

        Raises
        ------
        ConfigError
            If there are too few calibration rows for the level, or the outputs are classes.
        DataError
            If the model has learned from calibration rows, or they lack targets.
        """
        with self._ctx.activate():
            graph = active_graph("predict")
            if interval is None:
                if calibration is not None or group_by is not None:
                    raise ConfigError("calibration and group_by are for interval=; pass it too")
                options: dict[str, Any] = {"unscale": unscale, "decode": decode, "fmt": fmt}
                return graph.predict(data, node=node, batch_size=batch_size, tags=tags, **options)
            if decode or not unscale:
                raise ConfigError(
                    "interval is for numbers in their original units; omit decode and unscale"
                )
            check_level(interval)
            form, sets = format_of(fmt, interval=interval), self._ctx.available_featuresets
            rows = calibration_rows(calibration, sets.values(), graph)
            check_unseen(graph, rows)
            warn_if_selected(self._plan.flatten(), graph, rows)
            graph._warn_of_learned_rows(data)
            known = predictions(graph, rows, node=node, batch_size=batch_size)
            check_unseen_table([(graph, rows)], known)
            tables = {}
            found = predictions(graph, data, allow_missing=True, node=node, batch_size=batch_size)
            for of_data, of_rows in zip(found, known, strict=True):
                label = of_data.label
                if of_data.is_scores or of_data.gives_labels:
                    raise ConfigError(
                        f"interval needs numeric targets, and node {label!r} predicts classes; "
                        "omit interval"
                    )
                center = of_data.values()
                bounds = calibrated_bounds(
                    of_data, center, of_rows, of_rows.values(), interval, group_by
                )
                parts = {"": center, "_low": bounds[0], "_high": bounds[1]}
                named = [(end, of_data.named(values)) for end, values in parts.items()]
                columns = [(key + end, values[key]) for key in named[0][1] for end, values in named]
                check_names([name for name, _ in columns], label)
                tables[label] = of_data.table(dict(columns), form, tags=tags)
            return next(iter(tables.values())) if len(tables) == 1 else tables

    def export(
        self,
        path: str | Path,
        format: str = "onnx",
        *,
        data: Any = None,
        node: Any | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the graph to an ONNX or ``.pt2`` file; see `ModelGraph.export`."""
        with self._ctx.activate():
            graph = active_graph("export")
            written: Path = graph.export(path, format, data=data, node=node, overwrite=overwrite)
        return written

    def evaluate(
        self,
        data: Any,
        *,
        metrics: Metrics | None = None,
        group_by: str | None = None,
        node: Any | None = None,
        batch_size: int | None = None,
        unscale: bool = True,
        outputs: Meaning = "auto",
        per: str | None = None,
        reduce: Reduce = "mean",
    ) -> ScoreTable:
        """Score the trained graph on any rows with targets, in the target's original units.

        Nothing is trained, changed or added to the history.

        Parameters
        ----------
        data : str, FeatureSet, FeatureSetView, DataFrame or dict
            The name of a split; rows; or tables by label, as `ModelGraph.predict` takes them.
        metrics : str, callable, list of these, or dict of str to callable, optional
            Names from scikit-learn or torchmetrics, or functions of targets and outputs; see
            `EvalResults.scores`. By default ``accuracy`` for class scores and classifiers, else
            ``rmse``, ``mae`` and ``r2``.
        group_by : str, optional
            Column of the rows, such as a patient: each of its values gets a row. A score that is
            undefined for a group is NaN, with a warning.
        node : GraphNode or str, optional
            By default every tail node with targets.
        batch_size : int, optional
            Rows in one forward pass.
        unscale : bool
            Whether outputs and targets are compared in the target's original units.
        outputs : {'auto', 'values', 'logits', 'probabilities'}
            What the outputs are; see `EvalResults.scores`.
        per, reduce : str, optional
            Column whose equal values are replicates of one sample, and how these are reduced to
            one row before scoring; see `EvalResults.scores`.

        Returns
        -------
        ScoreTable
            A DataFrame: all rows first, then one row per group. Columns: ``node``, if several are
            scored; ``group``, if `group_by` is given (missing for all rows); one per metric; ``n``,
            the rows scored; ``n_missing``, the rows left out because a target is missing. Its
            method ``plot(kind)`` draws outputs against targets of these rows, as
            `EvalResults.plot` does.

        Raises
        ------
        DataError
            If `data` has no rows or no target column, or every target is missing.
        UnknownNameError
            If there is no such split, metric, node or column of groups.
        AuditError
            If the graph learned from some of the rows and the experiment has ``audit='error'``;
            by default that is a warning, and it is none for a split named for training. Rows of a
            frame are recognised if it has all features and targets of the FeatureSet.

        Examples
        --------
        ``experiment.evaluate("test", metrics=["rmse", "r2"], group_by="cell")``, and
        ``experiment.evaluate("test").plot("residuals", group_by="cell")``
        """
        with self._ctx.activate():
            return evaluate(
                active_graph("evaluate"),
                data,
                metrics=metrics,
                group_by=group_by,
                node=node,
                batch_size=batch_size,
                unscale=unscale,
                outputs=outputs,
                audit=self._audit.mode,
                per=per,
                reduce=reduce,
            )

    def importances(
        self,
        data: Any,
        metric: str | Callable[..., float],
        *,
        columns: Columns | Mapping[str, Columns] = None,
        by: Literal["column", "element"] = "column",
        n_repeats: int = 5,
        seed: int = 0,
        greater_is_better: bool | None = None,
        node: Any | None = None,
        unscale: bool = True,
        outputs: Meaning = "auto",
    ) -> ImportanceTable:
        """Return how much worse a score becomes when a feature is permuted between rows.

        Nothing is trained, changed or added to the history.

        Parameters
        ----------
        data : str, FeatureSet or FeatureSetView
            Rows with targets, such as the name of a split that was not trained on.
        metric : str or callable
            A score; see `evaluate`.
        columns : str, list of str, or dict of these, optional
            By default every feature that the graph reads. The columns of each entry of a dict are
            permuted together, by its name: ``{"weather": ["temperature", "humidity"]}``.
        by : {'column', 'element'}
            Whether array columns are permuted as a whole, or each element alone, by the name that
            `element_names` gave it.
        n_repeats : int
            Permutations of each.
        seed : int
        greater_is_better : bool, optional
            Direction of a user-defined metric.
        node, unscale, outputs
            See `evaluate`.

        Returns
        -------
        ImportanceTable
            A DataFrame with one row per column, group or element: ``column``, ``element`` (missing
            for a whole column), ``mean`` and ``std`` (denominator n) of the loss of quality,
            positive if the feature matters, and its ``values``; ``attrs["score"]`` is the score
            without permutation. Its method ``plot()`` draws them as bars.

        Notes
        -----
        Breiman 2001, *Random forests*, Machine Learning 45; the permutations are those of
        `sklearn.inspection.permutation_importance` for the same seed. Features that say the same
        hide each other.
        """
        at_least(1, n_repeats=n_repeats)
        if by not in ("column", "element"):
            raise ConfigError(f"by must be 'column' or 'element', got {by!r}")
        known = direction_of(metric) if greater_is_better is None else greater_is_better
        if known is None:
            raise ConfigError(
                f"it is unknown whether greater values of {name_of_score(metric)!r} are better; "
                "pass greater_is_better="
            )
        with self._ctx.activate():
            graph = active_graph("importances")
            rows = split_rows(graph, data) if isinstance(data, str) else data
            if not isinstance(rows, FeatureSet | FeatureSetView):
                raise DataError("data must be rows of one FeatureSet: a split, a view or a set")
            view = rows.to_view()
            schema = view.collection.schema
            raw = {s.key: view.column(s.name) for s in schema.columns.values() if s.rep == RAW}

            def scored(values: Mapping[str, Array]) -> ScoreTable:
                how: dict[str, Any] = {"node": node, "unscale": unscale, "outputs": outputs}
                how |= {"group_by": None, "batch_size": None, "audit": "off"}
                table = evaluate(graph, values, metrics=[metric], **how)
                if len(table) != 1:
                    nodes = table["node"].tolist()
                    raise ConfigError(f"one node must be scored, got {nodes}; pass node=")
                return table

            name = name_of_score(metric)
            random = np.random.RandomState(seed)
            start, table = random.randint(np.iinfo(np.int32).max + 1), []
            first = scored(raw)
            before = float(first[name][0])
            for column, element, parts in permuted_parts(graph, view, columns, by):
                shuffle, order = np.random.RandomState(start), np.arange(len(view))
                drops, values = [], {key: raw[key].copy() for key in parts}
                for _ in range(n_repeats):
                    shuffle.shuffle(order)
                    for key, place in parts.items():
                        values[key][place] = values[key][order][place]
                    after = float(scored({**raw, **values})[name][0])
                    drops.append(before - after if known else after - before)
                table.append((column, element, np.mean(drops), np.std(drops), drops))
            frame = ImportanceTable(table, columns=["column", "element", "mean", "std", "values"])
            axis = axis_of_score(name, first._unit).partition(" (")
            change = "decrease" if known else "increase"
            label = f"{change} of {name}{''.join(axis[1:])} when permuted"
            frame.attrs |= {"score": before, "label": label}
            return frame

    def report(self, path: str | Path, **options: Any) -> Path:
        """Write a report as one HTML file; see `modularml.write_report`."""
        written: Path = require("modularml.report").write_report(self, path, **options)
        return written

    def model_card(self, path: str | Path, **options: Any) -> Path:
        """Write a model card in Markdown; see `modularml.write_model_card`."""
        written: Path = require("modularml.report").write_model_card(self, path, **options)
        return written
