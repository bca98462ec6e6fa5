"""Split-conformal intervals from calibration rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modularml._typing import Array
from modularml._warning import warn
from modularml.data.featureset import FeatureSet
from modularml.data.ids import id_texts
from modularml.data.view import FeatureSetView
from modularml.engine.monitoring import loggers_of, monitors_of
from modularml.errors import ConfigError, DataError
from modularml.experiment.evaluating import (
    check_units,
    learned_messages,
    scored_predictions,
)
from modularml.graph.model_graph import ModelGraph
from modularml.graph.predict import Prediction
from modularml.results.prediction_intervals import (
    Bounds,
    in_columns,
    per_group,
    residuals_of,
    split_conformal,
)

CALIBRATION = "calibration"
"""Split that is used if no calibration rows are given."""


def check_names(names: list[str], label: str) -> None:
    """Refuse names of columns that occur twice."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"two columns of the predictions of node {label!r} would be called {twice[0]!r}; "
            "rename the target or the class"
        )


def calibrated_bounds(
    rows: Prediction,
    center: Array,
    known_rows: Prediction,
    known_center: Array,
    level: float,
    group_by: str | None,
) -> Bounds:
    """Return split-conformal bounds in the shape of `center`, by group if asked."""
    if rows.labels:
        raise ConfigError(
            f"interval needs one prediction for each target, and node {rows.label!r} predicts "
            f"{list(rows.labels)}; omit interval, as these give bounds of their own"
        )
    residuals = residuals_of(known_targets(known_rows), known_center, rows.label)
    residuals, flat = in_columns(residuals), in_columns(center)
    if group_by is None:
        low, high = split_conformal(flat, residuals, level)
    else:
        low, high = per_group(
            rows.by_row(group_by),
            known_rows.by_row(group_by),
            lambda these, those: split_conformal(flat[these], residuals[those], level),
            flat.shape,
        )
    return low.reshape(center.shape), high.reshape(center.shape)


def known_targets(rows: Prediction) -> Array:
    """Return targets in their original units; DataError if there are none, or they are padded."""
    (rows,) = scored_predictions([rows])
    check_units(rows)
    if rows.compared_mask() is not None:
        raise DataError(
            f"targets of node {rows.label!r} are padded, and there are no intervals for padded "
            "sequences; omit interval"
        )
    return rows.compared_values(raw=True)


def calibration_rows(
    calibration: Any, sets: Iterable[FeatureSet], graph: ModelGraph, *, evaluates: bool = False
) -> Any:
    """Return calibration rows, or those to evaluate: the rows of a split, or as given.

    The rows of a split are those of the FeatureSet that has it and is read by the graph; by label,
    if several have.
    """
    name = CALIBRATION if calibration is None else calibration
    if not isinstance(name, str):
        return calibration
    read = {ref.node_label for node in graph.nodes.values() for ref in node.feature_refs}
    sets = [fs for fs in sets if fs.label in read]
    views = {str(fs.label): fs.get_split(name) for fs in sets if name in fs.available_splits}
    if views:
        return next(iter(views.values())) if len(views) == 1 else views
    known = {str(fs.label): list(fs.available_splits) for fs in sets}
    there = f"no FeatureSet has a split {name!r}, there are {known}"
    if not any(known.values()):
        there = f"there are no rows here with a split {name!r}, as of a model loaded from a file"
    if evaluates:
        raise ConfigError(f"{there}; pass a split, a view or a frame with targets")
    raise ConfigError(
        f"{there}; pass calibration= a split, a view or a frame with targets, of rows that the "
        "model has not learned from"
    )


def check_unseen(graph: ModelGraph, rows: Any) -> None:
    """Refuse calibration rows that the graph or its scalers have learned from."""
    for part in rows.values() if isinstance(rows, Mapping) else [rows]:
        if not isinstance(part, FeatureSet | FeatureSetView):
            continue
        view = part.to_view()
        known = graph.learned_from.known(view)
        if len(known):
            first = id_texts(view.collection.ids[known[:1]])[0]
            raise DataError(
                f"{len(known)} of {len(view)} calibration rows of {view.source.label!r} are among "
                f"those that the model or its scalers learned from (first: {first}), so intervals "
                "would be too narrow; pass rows that were held out"
            )


def check_unseen_table(
    graphs: Sequence[tuple[ModelGraph, Any]], known_rows: Sequence[Prediction]
) -> None:
    """Refuse a table of calibration rows some of which one of the graphs has learned from.

    Each graph comes with the rows that it predicted; those of FeatureSets are left to
    `check_unseen`.
    """
    tables = []
    for graph, rows in graphs:
        parts = rows.values() if isinstance(rows, Mapping) else [rows]
        if not any(isinstance(part, FeatureSet | FeatureSetView) for part in parts):
            tables.append((graph, rows))
    scored = scored_predictions(known_rows) if tables else []
    if message := next(learned_messages(tables, scored), ""):
        found = message.partition(", so ")[0]
        raise DataError(
            f"calibration: {found}, so intervals would be too narrow; pass rows that were held out"
        )


def warn_if_selected(phases: Iterable[Any], graph: ModelGraph, rows: Any) -> None:
    """Warn if a phase selects an epoch or a learning rate by calibration rows."""
    parts = rows.values() if isinstance(rows, Mapping) else [rows]
    views = {p.to_view() for p in parts if isinstance(p, FeatureSet | FeatureSetView)}
    for phase in phases:
        for monitor, names in monitors_of(phase, graph).items():
            for logger in loggers_of(monitor, phase.callbacks):
                evaluation: Any = getattr(logger, "eval_phase", None)
                if evaluation is not None and _reads(evaluation, views):
                    warn(
                        f"{' and '.join(names)} of phase {phase.label!r} select by {monitor!r}, "
                        "which is computed on calibration rows, so intervals may be too narrow; "
                        "calibrate on other rows"
                    )
                    return


def _reads(evaluation: Any, views: Iterable[FeatureSetView]) -> bool:
    """Return whether an evaluation reads any of these rows."""
    for source in evaluation.input_sources:
        label, split = source.upstream_ref.node_label, source.split
        for view in views:
            fs = view.source
            read = fs.to_view() if split is None else fs.splits.get(split)
            if fs.label == label and read is not None and not read.is_disjoint_with(view):
                return True
    return False
