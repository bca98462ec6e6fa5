"""Predictions of an ensemble or of fold models, as tables, and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from modularml._optional import require
from modularml._typing import Array
from modularml.data import FeatureSet
from modularml.data.formats import ARRAY_FORMATS, convert_array
from modularml.errors import ConfigError, DataError
from modularml.experiment import Experiment
from modularml.experiment.calibration import (
    calibrated_bounds,
    calibration_rows,
    check_names,
    check_unseen,
    check_unseen_table,
    known_targets,
    warn_if_selected,
)
from modularml.experiment.evaluating import (
    report_learned_rows,
    score_table,
    scored_predictions,
)
from modularml.graph.predict import format_of
from modularml.results.intervals import (
    Bounds,
    Method,
    check_level,
    cv_plus,
    in_columns,
    per_group,
    quantile_bounds,
    quantile_conformal,
    residuals_of,
)
from modularml.results.plots import ComparedRows, ScoreTable
from modularml.results.scores import Meaning, Metrics, find_scores
from modularml.results.scoring import Reduce, check_reduce
from modularml.strategies.predictors.member_predictions import (
    HeldOut,
    NodePredictions,
    held_out_residuals,
    of_member,
    predict_members,
    warn_if_equal,
)
from modularml.strategies.variants.variant import Variant

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Predictor"]


class Predictor:
    """Predicts with all members, and computes intervals and scores.

    Parameters
    ----------
    members : mapping of str to Experiment
        By label, at least one.
    originals : sequence of FeatureSet
        FeatureSets that those of the members are copies of.
    variants : mapping of str to Variant, optional
        By the same labels, if each member has rows that it has not learned from.
    known : mapping of str to HeldOut, optional
        Residuals of these rows by node label, if the rows are not here.
    """

    def __init__(
        self,
        members: Mapping[str, Experiment],
        originals: Sequence[FeatureSet] = (),
        variants: Mapping[str, Variant] | None = None,
        known: Mapping[str, HeldOut] | None = None,
    ) -> None:
        self.members, self.originals, self.known = dict(members), list(originals), known
        self.variants = None if variants is None else {k: variants[k] for k in members}
        self._residuals: dict[Any, dict[str, HeldOut]] = {}

    @property
    def _first(self) -> Experiment:
        return next(iter(self.members.values()))

    @property
    def _graph(self) -> Any:
        return self._first.model_graph

    # -- predictions --------------------------------------------------------------------------

    def predict(
        self,
        data: Any,
        *,
        node: Any = None,
        batch_size: int | None = None,
        fmt: str = "pandas",
        tags: bool = False,
        decode: bool = False,
        members: bool = False,
        outputs: Meaning = "auto",
        interval: float | None = None,
        method: Method = "auto",
        calibration: Any = None,
        group_by: str | None = None,
    ) -> Any:
        """Return mean, spread and each member's predictions; see `Ensemble.predict`."""
        form = format_of(fmt, tags=tags, interval=interval)
        method = self._method(interval, method, calibration, group_by)
        if interval is not None and decode:
            raise ConfigError("interval is for numbers, decode for classes; omit one of them")
        options = {"node": node, "batch_size": batch_size, "outputs": outputs}
        predicted = predict_members(
            self.members, data, self.originals, allow_missing=True, **options
        )
        for p in predicted:
            warn_if_equal(p)
        bounds: dict[str, Bounds] = {}
        if interval is not None:
            with self._first.ctx.activate():
                bounds = self._bounds(predicted, interval, method, calibration, group_by, options)
        tables = {}
        with self._first.ctx.activate():
            for p in predicted:
                if form in ARRAY_FORMATS:
                    tables[p.rows.label] = convert_array(_array(p, decode, members), form)
                    continue
                columns = _columns(p, decode, members, bounds.get(p.rows.label))
                tables[p.rows.label] = p.rows.table(columns, form, tags=tags)
        return next(iter(tables.values())) if len(tables) == 1 else tables

    # -- intervals ----------------------------------------------------------------------------

    def _method(
        self, interval: float | None, method: Method, calibration: Any, group_by: str | None
    ) -> Method:
        """Return the method of an interval; refuse what does not fit together."""
        if method not in get_args(Method):
            raise ConfigError(f"method must be one of {get_args(Method)}, got {method!r}")
        if interval is None:
            if calibration is not None or group_by is not None or method != "auto":
                raise ConfigError("method, calibration and group_by are for interval=; pass it too")
            return "auto"
        check_level(interval)
        holds_out = self.variants is not None or self.known is not None
        if method == "auto":
            method = "cv+" if holds_out and calibration is None else "split"
        if method == "cv+" and not holds_out:
            raise ConfigError(
                "method='cv+' needs rows that members have not learned from; use vary='folds' or "
                "'bootstrap', or pass calibration="
            )
        if method == "cv+" and calibration is not None:
            raise ConfigError("method='cv+' uses no calibration rows; omit calibration")
        if method == "quantiles" and calibration is None and group_by is not None:
            raise ConfigError("group_by needs method='split' or 'cv+', or calibration=")
        return method

    def _bounds(
        self,
        predicted: Sequence[NodePredictions],
        level: float,
        method: Method,
        calibration: Any,
        group_by: str | None,
        options: Mapping[str, Any],
    ) -> dict[str, Bounds]:
        """Return bounds by node label, each in the shape of the mean."""
        for p in predicted:
            if p.kind != "values":
                raise ConfigError(
                    f"interval needs numeric targets, and node {p.rows.label!r} predicts classes; "
                    "omit interval"
                )
        if method == "cv+":
            held_out = self.held_out(options["node"], group_by)
            return {p.rows.label: _cv_bounds(p, held_out, level, group_by) for p in predicted}
        if method == "quantiles" and calibration is None:
            return {p.rows.label: _shaped(p, quantile_bounds(p.flat, level)) for p in predicted}
        known = self._calibrated(calibration, options)
        bounds_of = _quantile_bounds if method == "quantiles" else _split_bounds
        pairs = zip(predicted, known, strict=True)
        return {p.rows.label: bounds_of(p, k, level, group_by) for p, k in pairs}

    def _calibrated(self, calibration: Any, options: Mapping[str, Any]) -> list[NodePredictions]:
        """Predict calibration rows, which no member may have learned from."""
        rows = calibration_rows(calibration, self.originals, self._graph)
        parts: list[tuple[Any, Any]] = []
        for experiment in self.members.values():
            graph: Any = experiment.model_graph
            own_rows = of_member(rows, experiment, self.originals)
            check_unseen(graph, own_rows)
            parts.append((graph, own_rows))
        with experiment.ctx.activate():
            warn_if_selected(experiment.execution_plan.flatten(), graph, own_rows)
        known = predict_members(self.members, rows, self.originals, **options)
        check_unseen_table(parts, [p.rows for p in known])
        return known

    def held_out(self, node: Any = None, group_by: str | None = None) -> dict[str, HeldOut]:
        """Return residuals of rows that some members have not learned from, by node label."""
        if self.known is not None:
            for label, known in self.known.items():
                if group_by is not None and group_by not in known.groups:
                    raise ConfigError(
                        f"the file holds residuals of node {label!r} without {group_by!r}; save it "
                        f"with group_by={group_by!r}, or omit group_by"
                    )
            return dict(self.known)
        assert self.variants is not None
        key = getattr(node, "label", node), group_by
        if key not in self._residuals:
            self._residuals[key] = held_out_residuals(
                self.members, self.variants, node=node, group_by=group_by
            )
        return self._residuals[key]

    def known_residuals(self, group_by: str | None) -> dict[str, HeldOut]:
        """Return residuals for a file; none if the members predict no numbers."""
        try:
            return self.held_out(group_by=group_by)
        except DataError:
            if group_by is not None:
                raise
            return {}

    # -- scores -------------------------------------------------------------------------------

    def evaluate(
        self,
        data: Any,
        *,
        metrics: Metrics | None = None,
        group_by: str | None = None,
        node: Any = None,
        batch_size: int | None = None,
        outputs: Meaning = "auto",
        per: str | None = None,
        reduce: Reduce = "mean",
        audit: str = "warn",
    ) -> ScoreTable:
        """Return scores of the mean over members; see `Ensemble.evaluate`."""
        check_reduce(reduce, per)
        if metrics is not None:
            find_scores(metrics)  # unknown names are refused before anything runs
        rows = data
        if isinstance(data, str):
            rows = calibration_rows(data, self.originals, self._graph, evaluates=True)
        options = {"node": node, "batch_size": batch_size, "outputs": outputs}
        predicted = predict_members(self.members, rows, self.originals, audit=False, **options)
        by_label = {p.rows.label: p for p in predicted}
        members = self.members.values()
        parts = [(m.model_graph, of_member(rows, m, self.originals)) for m in members]
        with self._first.ctx.activate():
            scored = scored_predictions([p.rows for p in predicted])
            if audit != "off":
                report_learned_rows(parts, scored, audit)  # type: ignore[arg-type]
            tables, drawn = [], dict[str, ComparedRows]()
            for prediction in scored:
                p = by_label[prediction.label]
                meaning: Meaning = "probabilities" if p.kind == "probabilities" else "auto"
                mean = [prediction.replaced(p.mean)]
                asked: dict[str, Any] = {"metrics": metrics, "group_by": group_by}
                asked |= {"per": per, "reduce": reduce}
                table = score_table(mean, unscale=True, outputs=meaning, **asked)
                if len(scored) > 1:
                    table.insert(0, "node", prediction.label)
                tables.append(table)
                drawn |= table._rows
        frame: pd.DataFrame = require("pandas").concat(tables, ignore_index=True)
        return ScoreTable.of(frame, drawn, per=per, reduce=reduce)


def _array(p: NodePredictions, decode: bool, members: bool) -> Array:
    if decode:
        return p.member_labels() if members else p.decoded()[0]
    return p.stacked if members else p.mean


def _columns(
    p: NodePredictions, decode: bool, members: bool, bounds: Bounds | None
) -> dict[str, Array]:
    """Return the columns of a table: for each output its mean, spread, bounds and members."""
    of_labels = decode or p.kind == "labels"
    named = partial(p.rows.named, decode=of_labels)
    if of_labels:
        label, share = p.decoded()
        parts = [("", named(label)), ("_votes", named(share))]
        values = dict(zip(p.members, p.member_labels(), strict=True))
    else:
        parts, values = [("", named(p.mean)), ("_std", named(p.std))], p.members
        if p.kind == "probabilities":
            parts.append(("_votes", named(p.vote_shares())))
        if bounds is not None:
            parts += [("_low", named(bounds[0])), ("_high", named(bounds[1]))]
    if members:
        parts += [(f"_{name}", named(v)) for name, v in values.items()]
    columns = [(key + end, of[key]) for key in parts[0][1] for end, of in parts]
    check_names([name for name, _ in columns], p.rows.label)
    return dict(columns)


def _shaped(p: NodePredictions, bounds: Bounds) -> Bounds:
    shape = p.stacked.shape[1:]
    return bounds[0].reshape(shape), bounds[1].reshape(shape)


def _split_bounds(
    p: NodePredictions, known: NodePredictions, level: float, group_by: str | None
) -> Bounds:
    return calibrated_bounds(p.rows, p.mean, known.rows, known.mean, level, group_by)


def _quantile_bounds(
    p: NodePredictions, known: NodePredictions, level: float, group_by: str | None
) -> Bounds:
    """Return quantiles of members, widened to hold the level on calibration rows."""
    inner, outer = quantile_bounds(p.flat, level), quantile_bounds(known.flat, level)
    targets = known_targets(known.rows)
    residuals_of(targets, known.mean, p.rows.label)  # checks them
    targets = in_columns(targets)

    def bounds_of(these: Any, those: Any) -> Bounds:
        low, high = inner[0][these], inner[1][these]
        return quantile_conformal(
            (low, high), targets[those], (outer[0][those], outer[1][those]), level
        )

    if group_by is None:
        return _shaped(p, bounds_of(slice(None), slice(None)))
    groups = p.rows.by_row(group_by), known.rows.by_row(group_by)
    return _shaped(p, per_group(*groups, bounds_of, inner[0].shape))


def _cv_bounds(
    p: NodePredictions, held_out: Mapping[str, HeldOut], level: float, group_by: str | None
) -> Bounds:
    if p.rows.label not in held_out:
        raise ConfigError(
            f"there are residuals of {list(held_out)}, not of node {p.rows.label!r}; omit node="
        )
    known, flat = held_out[p.rows.label], p.flat

    def bounds_of(these: Any, those: Any) -> Bounds:
        return cv_plus(flat[:, these], known.residuals[those], known.held_out[those], level)

    if group_by is None:
        return _shaped(p, bounds_of(slice(None), slice(None)))
    groups = p.rows.by_row(group_by), known.groups[group_by]
    return _shaped(p, per_group(*groups, bounds_of, flat.shape[1:]))
