"""Curves of class scores: ROC, precision over recall, and calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from modularml._optional import require
from modularml._typing import Array
from modularml._warning import warn
from modularml.errors import ConfigError, DataError, ShapeError, UnknownNameError
from modularml.viz.style import MUTED, curve_look, finish, legend, new_axes, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANCE: dict[str, Any] = {"color": MUTED, "linewidth": 1.2, "linestyle": (0, (4, 3)), "zorder": 1}


class _Curve(NamedTuple):
    """Scores of one class against all others, for all rows or for a group."""

    name: str
    is_class: Array
    score: Array
    weight: Array | None

    @property
    def share(self) -> float:
        """Share of the class in the weights."""
        return float(np.average(self.is_class, weights=self.weight))


def roc(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    labels: Sequence[Any] | None = None,
    positive: Any = None,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    title: str = "",
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw the true over the false positive rate for all thresholds of a class score.

    Parameters
    ----------
    y_true : array-like, shape (n_samples,)
        Classes, as numbers or texts.
    y_score : array-like, shape (n_samples,) or (n_samples, n_classes)
        Score of the second of two classes, or of each class in the order of `labels`. Rows with a
        missing class or score are omitted and counted below the axis.
    labels : sequence, optional
        The classes; by default those that occur, sorted.
    positive : object, optional
        The class whose score is drawn against all others; by default the second of two, and each
        of more.
    groups : array-like, shape (n_samples,), optional
        Draws a curve per group, of one class.
    weights : array-like, shape (n_samples,), optional
        Weight of each row, not negative.
    title : str
    path : path-like or None
        Where to save the figure as well: .png, .pdf or .svg.

    Returns
    -------
    matplotlib.figure.Figure
        The legend gives the area under each curve (`sklearn.metrics.roc_auc_score`).

    Raises
    ------
    DataError
        If only one class occurs, or `labels` lacks a class.
    ShapeError
        If shapes do not fit.
    UnknownNameError
        If `positive` is none of the classes.
    ConfigError
        If `groups` of more than two classes lack `positive`.

    Examples
    --------
    >>> figure = roc(["ok", "ok", "worn", "worn"], [0.1, 0.4, 0.35, 0.8])
    >>> figure.legends[0].get_texts()[0].get_text()
    'worn: AUC 0.750'
    """

    def area(curve: _Curve, axes: Any) -> tuple[str, dict[str, Any]]:
        show = require("sklearn.metrics").RocCurveDisplay.from_predictions(
            curve.is_class, curve.score, sample_weight=curve.weight, ax=axes
        )
        return f"AUC {np.ravel(show.roc_auc)[0]:.3f}", {}

    found = _curves(y_true, y_score, labels, positive, groups, weights)
    x, y = "false positive rate", "true positive rate"
    return _drawn(found, area, "chance", x=x, y=y, title=title, path=path)


def precision_recall(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    labels: Sequence[Any] | None = None,
    positive: Any = None,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    title: str = "",
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw precision over recall for all thresholds of a class score.

    Arguments and errors are those of `roc`. The legend gives each average precision
    (`sklearn.metrics.average_precision_score`) and the share of the class, which is the precision
    of chance.

    Examples
    --------
    >>> figure = precision_recall(["ok", "ok", "worn", "worn"], [0.1, 0.4, 0.35, 0.8])
    >>> figure.legends[0].get_texts()[0].get_text()
    'worn: AP 0.833, share 0.500'
    """

    def area(curve: _Curve, axes: Any) -> tuple[str, dict[str, Any]]:
        show = require("sklearn.metrics").PrecisionRecallDisplay.from_predictions(
            curve.is_class, curve.score, sample_weight=curve.weight, drop_intermediate=True, ax=axes
        )
        ap, share = np.ravel(show.average_precision)[0], curve.share
        return f"AP {ap:.3f}, share {share:.3f}", {"drawstyle": "steps-post"}

    found = _curves(y_true, y_score, labels, positive, groups, weights)
    shares = [curve.share for curve in found[0]]
    chance = (shares[0], shares[0]) if len(shares) == 1 else None
    labels_of = {"x": "recall", "y": "precision"}
    return _drawn(found, area, "chance", chance, **labels_of, title=title, path=path)


def calibration(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    labels: Sequence[Any] | None = None,
    positive: Any = None,
    groups: ArrayLike | None = None,
    n_bins: int = 10,
    strategy: str = "quantile",
    title: str = "",
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw the share of rows of a class over its predicted probability, in bins.

    Parameters
    ----------
    y_true, labels, positive, groups, title, path
        See `roc`.
    y_score : array-like, shape (n_samples,) or (n_samples, n_classes)
        Probabilities, 0 to 1; see `roc`.
    n_bins : int
        At least 1.
    strategy : {'quantile', 'uniform'}
        Bins of equal numbers of rows, or of equal width; see `sklearn.calibration`.

    Returns
    -------
    matplotlib.figure.Figure
        The legend gives each Brier score (`sklearn.metrics.brier_score_loss`).

    Raises
    ------
    DataError
        If `y_score` is not between 0 and 1; see also `roc`.
    ConfigError
        If `n_bins` or `strategy` is not as described.

    Examples
    --------
    >>> import numpy as np
    >>> figure = calibration(np.arange(40) % 2, np.linspace(0, 1, 40), n_bins=4)
    >>> len(figure.axes) > 0
    True
    """
    if not isinstance(n_bins, int) or n_bins < 1:
        raise ConfigError(f"n_bins must be an int of at least 1, got {n_bins!r}")
    if strategy not in ("quantile", "uniform"):
        raise ConfigError(f"strategy must be 'quantile' or 'uniform', got {strategy!r}")

    def score(curve: _Curve, axes: Any) -> tuple[str, dict[str, Any]]:
        if curve.score.min() < 0 or curve.score.max() > 1:
            raise DataError(
                f"calibration needs probabilities from 0 to 1, got {curve.score.min():g} to "
                f"{curve.score.max():g}; convert logits first"
            )
        require("sklearn.calibration").CalibrationDisplay.from_predictions(
            curve.is_class, curve.score, n_bins=n_bins, strategy=strategy, ax=axes, ref_line=False
        )
        brier = require("sklearn.metrics").brier_score_loss(curve.is_class, curve.score)
        return f"Brier score {brier:.3f}", {"marker": "o", "markersize": 5}

    found = _curves(y_true, y_score, labels, positive, groups, None)
    x, y = "mean predicted probability", "share of the class"
    return _drawn(found, score, "calibrated", x=x, y=y, title=title, path=path)


def _drawn(
    found: tuple[list[_Curve], str],
    draw: Callable[[_Curve, Any], tuple[str, dict[str, Any]]],
    name: str,
    line: tuple[float, float] | None = (0, 1),
    *,
    x: str,
    y: str,
    title: str,
    path: str | PathLike[str] | None,
) -> Figure:
    """Draw curves with a score and a look each, and a line with a name to compare them with."""
    curves, note = found
    figure, axes = new_axes(5.4, 6.15 + 0.2 * len(curves), title=title, x="", y="")
    entries = []
    for i, curve in enumerate(curves):
        text, look = draw(curve, axes)
        if (box := axes.get_legend()) is not None:
            box.remove()
        plain = {"marker": "None", "alpha": 1.0, "drawstyle": "default", **curve_look(i)}
        axes.lines[-1].set(**{**plain, **look})  # independently of the user's settings
        entries.append((axes.lines[-1], f"{curve.name}: {text}"))
    if line is not None:
        entries.append((axes.plot([0, 1], line, **CHANCE)[0], name))
    style_axes(axes, x=f"{x}{note}", y=y)
    # the figure is high enough to be square; an equal aspect would cut its title off
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="auto")
    legend(axes, entries, "outside lower left")
    return finish(figure, path)


def _curves(
    y_true: ArrayLike,
    y_score: ArrayLike,
    labels: Sequence[Any] | None,
    positive: Any,
    groups: ArrayLike | None,
    weights: ArrayLike | None,
) -> tuple[list[_Curve], str]:
    """Return the curves to draw, and a note on what is omitted."""
    true, scores, good = _checked(y_true, y_score)
    names = sorted(set(true[good].tolist())) if labels is None else list(labels)
    if unknown := sorted({repr(v) for v in true[good].tolist() if v not in names}):
        raise DataError(f"labels must name every class that occurs, lacks {', '.join(unknown)}")
    if (scores.ndim == 2 and scores.shape[1] != len(names)) or (
        scores.ndim == 1 and len(names) > 2
    ):
        raise ShapeError(
            f"y_score must hold a column for each class {names}, or the score of the second of two "
            f"classes, got shape {scores.shape}"
        )
    if scores.ndim == 1:  # that of the first of two falls as the other rises
        scores = np.stack([1 - scores, scores], axis=1)
    if positive is not None and positive not in names:
        raise UnknownNameError("positive class", positive, names)
    several = names if len(names) > 2 else names[-1:]
    chosen = several if positive is None else [positive]
    if groups is not None and len(chosen) > 1:
        raise ConfigError(f"a curve per group is of one class of {names}; pass positive=")
    codes, group_names = np.zeros(len(good), dtype=np.int64), [None]
    if groups is not None:
        factorize = require("pandas").factorize
        of_rows = _per_row(groups, good, "groups")
        codes, group_names = factorize(of_rows, sort=True, use_na_sentinel=False)
    weight = None
    if weights is not None:
        weight = _per_row(weights, good, "weights").astype(np.float64)
        if not (np.isfinite(weight[good]) & (weight[good] >= 0)).all():
            raise DataError("weights must be finite and not negative")
    curves, single = [], []
    for code, group in enumerate(group_names):
        rows = good & (codes == code)
        for label in chosen:
            is_class = true[rows] == label
            name = str(label) if groups is None else str(group)
            if is_class.all() or not is_class.any():
                single.append(name)
                continue
            score = scores[rows, names.index(label) - len(names)]
            w = None if weight is None else weight[rows]
            curves.append(_Curve(name, is_class.astype(np.int64), score, w))
    _check_drawn(curves, single, true[good])
    of = f"; class {chosen[0]} against the others" if groups is not None else ""
    n_omitted = int((~good).sum())
    missing = f", {n_omitted} without class or score" if n_omitted else ""
    return curves, f"\n{int(good.sum())} rows{of}{missing}"


def _checked(y_true: ArrayLike, y_score: ArrayLike) -> tuple[Array, Array, Array]:
    """Return classes, scores and which rows have both."""
    true, scores = np.asarray(y_true), np.asarray(y_score)
    true = true.reshape(-1) if true.size == max(true.shape, default=1) else true
    if scores.ndim == 2 and scores.shape[1] == 1:
        scores = scores[:, 0]
    if true.ndim != 1 or scores.ndim not in (1, 2) or len(scores) != len(true):
        raise ShapeError(
            "y_true must be one class per row and y_score a score per row, or per row and class, "
            f"got shapes {np.shape(y_true)} and {np.shape(y_score)}"
        )
    try:
        scores = scores.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"y_score must hold numbers: {error}") from error
    has_score = np.isfinite(scores).reshape(len(scores), -1).all(axis=1)
    good = has_score & ~np.asarray(require("pandas").isna(true))
    if not good.any():
        raise DataError("no row has a class and a score; there is nothing to draw")
    return true, scores, good


def _per_row(values: ArrayLike, good: Array, name: str) -> Array:
    found = np.asarray(values)
    if found.shape != good.shape:
        raise ShapeError(f"{name} must have one value per row, got shape {found.shape}")
    return found


def _check_drawn(curves: list[_Curve], single: list[str], true: Array) -> None:
    """Refuse to draw nothing, and warn of curves that cannot be drawn."""
    if not curves:
        classes = sorted({str(v) for v in true.tolist()})
        raise DataError(
            f"a curve needs rows of a class and rows of others, and all {len(true)} rows are of "
            f"{classes[0]!r}; pass more rows"
            if len(classes) == 1
            else f"none of {single} has rows of the class and rows of others; draw fewer groups"
        )
    if single:
        warn(f"no curve is drawn for {single}, which lack rows of the class or rows of others")
