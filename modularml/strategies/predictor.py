"""Predictions of several trained experiments as tables, their intervals and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from modularml._optional import require
from modularml._typing import Array
from modularml._warning import warn
from modularml.data.formats import ARRAY_FORMATS, convert_array
from modularml.errors import ConfigError
from modularml.experiment.conformal import (
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
from modularml.results.prediction_intervals import (
    Bounds,
    Method,
    check_level,
    cv_plus,
    in_columns,
    quantile_bounds,
    quantile_conformal,
    residuals_of,
)
from modularml.results.result_tables import ComparedRows, ScoreTable
from modularml.results.scores import Meaning, Metrics, find_scores
from modularml.results.scoring import Reduce, check_reduce
from modularml.strategies.member_predictions import HeldOut, Members, NodePredictions

if TYPE_CHECKING:
    import pandas as pd


class Predictor:
    """Predicts with several trained experiments, and computes intervals and scores.

    Parameters
    ----------
    members : Members
    """

    def __init__(self, members: Members) -> None:
        self._trained = members

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
        """Return mean and spread of the members' predictions, in the targets' own units.

        Parameters
        ----------
        data, node, batch_size, tags
            See `ModelGraph.predict`. Several tables are passed as there.
        fmt : str
            In formats with named columns, a target ``y`` has the columns ``y``, the mean, and
            ``y_std``, the standard deviation over members (denominator n - 1). Class scores have,
            for each class ``c``, ``c``, the mean probability, ``c_std``, and ``c_votes``, the share
            of members for which it is the most likely class. Array formats return the mean alone.
        decode : bool
            Whether classifiers return the class with the highest mean probability, and
            ``y_votes``, the share of members that predict it. Classifiers whose outputs are labels
            always return this, with the most frequent label.
        members : bool
            Whether the prediction of each member is returned too: ``y_member_0``... In array
            formats, these alone, shape (n_members, n, ...).
        outputs : {'auto', 'values', 'logits', 'probabilities'}
            What outputs of classifiers are. Logits are converted to probabilities before they are
            averaged; ``values`` are averaged as they are. ``auto``: probabilities if each row sums
            to 1, else logits, of outputs that are compared with classes.
        interval : float, optional
            Share of targets that lie between two further columns, ``y_low`` and ``y_high``, such as
            0.9. For several targets, it holds for each.
        method : {'auto', 'split', 'cv+', 'quantiles'}
            ``split``: by residuals of the mean on calibration rows. ``cv+``: by residuals of rows
            that members have not learned from; with ``bootstrap``, this is the
            jackknife+-after-bootstrap. ``quantiles``: the range of members, which ignores the noise
            of targets unless it is adjusted to calibration rows. By default ``cv+``, or ``split``
            for ``vary='seed'`` and if calibration rows are given. See `modularml.results`.
        calibration : str, FeatureSetView, DataFrame or other rows, optional
            Rows with targets that no member has learned from, or the name of their split; by
            default ``"calibration"``.
        group_by : str, optional
            Column of `data` and of calibration rows: each group has separate bounds.

        Raises
        ------
        NotFittedError
            If no member is trained.
        ConfigError
            If there are too few calibration rows or members for the level, the outputs are classes
            or ambiguous, or arguments do not fit together.
        DataError
            If a member has learned from calibration rows, or rows lack columns.

        Warns
        -----
        UserWarning
            If all members predict the same.
        """
        form, trained = format_of(fmt, tags=tags, interval=interval), self._trained
        method = _method(trained, interval, method, calibration, group_by)
        if interval is not None and decode:
            raise ConfigError("interval is for numbers, decode for classes; omit one of them")
        options = {"node": node, "batch_size": batch_size, "outputs": outputs}
        predicted = trained.predict(data, allow_missing=True, **options)
        for p in predicted:
            n = len(p.stacked)
            if n > 1 and p.stacked.size and (p.stacked == p.stacked[0]).all():
                warn(
                    f"all {n} members predict the same with node {p.rows.label!r}, so their spread "
                    "says nothing; models without randomness, or with a fixed random_state, need "
                    "vary='bootstrap' or 'folds'"
                )
        tables, bounds = {}, dict[str, Bounds]()
        with trained.first.ctx.activate():
            if interval is not None:
                bounds = _bounds(
                    trained, predicted, interval, method, calibration, group_by, options
                )
            for p in predicted:
                if form not in ARRAY_FORMATS:
                    columns = _columns(p, decode, members, bounds.get(p.rows.label))
                    tables[p.rows.label] = p.rows.table(columns, form, tags=tags)
                    continue
                if decode:
                    array = p.member_labels() if members else p.decoded()[0]
                else:
                    array = p.stacked if members else p.mean
                tables[p.rows.label] = convert_array(array, form)
        return next(iter(tables.values())) if len(tables) == 1 else tables

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
    ) -> ScoreTable:
        """Score the mean prediction on rows with targets, in the targets' own units.

        Parameters
        ----------
        data, metrics, group_by, node, batch_size, per, reduce
            See `Experiment.evaluate`. Replicates are reduced after the mean over members.
        outputs
            See `predict`.

        Returns
        -------
        ScoreTable
            As `Experiment.evaluate` returns it, with its ``plot``.
        """
        check_reduce(reduce, per)
        if metrics is not None:
            find_scores(metrics)  # unknown names are refused before anything runs
        rows, trained = data, self._trained
        if isinstance(data, str):
            rows = calibration_rows(data, trained.originals, trained.graph, evaluates=True)
        options = {"node": node, "batch_size": batch_size, "outputs": outputs}
        predicted = trained.predict(rows, audit=False, **options)
        by_label = {p.rows.label: p for p in predicted}
        parts: Any = [(m.model_graph, trained.rows_of(m, rows)) for m in trained.of.values()]
        asked: dict[str, Any] = {"metrics": metrics, "group_by": group_by}
        asked |= {"per": per, "reduce": reduce, "unscale": True}
        with trained.first.ctx.activate():
            scored = scored_predictions([p.rows for p in predicted])
            if trained.audit != "off":
                report_learned_rows(parts, scored, trained.audit)
            tables, drawn = [], dict[str, ComparedRows]()
            for prediction in scored:
                p = by_label[prediction.label]
                meaning: Meaning = "probabilities" if p.kind == "probabilities" else "auto"
                table = score_table([prediction.replaced(p.mean)], outputs=meaning, **asked)
                if len(scored) > 1:
                    table.insert(0, "node", prediction.label)
                tables.append(table)
                drawn |= table._rows
        frame: pd.DataFrame = require("pandas").concat(tables, ignore_index=True)
        return ScoreTable.of(frame, drawn, per=per, reduce=reduce)


def _method(
    members: Members, interval: float | None, method: Method, calibration: Any, group_by: str | None
) -> Method:
    """Return the method of an interval; refuse what does not fit together."""
    if method not in get_args(Method):
        raise ConfigError(f"method must be one of {get_args(Method)}, got {method!r}")
    if interval is None:
        if calibration is not None or group_by is not None or method != "auto":
            raise ConfigError("method, calibration and group_by are for interval=; pass it too")
        return "auto"
    check_level(interval)
    holds_out = members.variants is not None or members.known is not None
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
    members: Members,
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
        held_out = members.held_out(options["node"], group_by)
        return {p.rows.label: _cv_bounds(p, held_out, level, group_by) for p in predicted}
    if method == "quantiles" and calibration is None:
        return {
            p.rows.label: p.bounds(lambda *_, p=p: quantile_bounds(p.flat, level), None, {})
            for p in predicted
        }
    # no member may have learned from calibration rows
    rows = calibration_rows(calibration, members.originals, members.graph)
    parts: list[tuple[Any, Any]] = []
    for experiment in members.of.values():
        parts.append((experiment.model_graph, members.rows_of(experiment, rows)))
        check_unseen(*parts[-1])
    with experiment.ctx.activate():
        warn_if_selected(experiment.execution_plan.flatten(), *parts[-1])
    known = members.predict(rows, **options)
    check_unseen_table(parts, [p.rows for p in known])
    pairs = list(zip(predicted, known, strict=True))
    if method == "quantiles":
        return {p.rows.label: _quantile_bounds(p, k, level, group_by) for p, k in pairs}
    return {
        p.rows.label: calibrated_bounds(p.rows, p.mean, k.rows, k.mean, level, group_by)
        for p, k in pairs
    }


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

    return p.bounds(
        bounds_of, group_by, {group_by: known.rows.by_row(group_by)} if group_by else {}
    )


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

    return p.bounds(bounds_of, group_by, known.groups)


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
