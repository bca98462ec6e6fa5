"""Plots of residuals: over predictions, over another column, and by group."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from modularml._optional import require
from modularml._typing import Array
from modularml.errors import ConfigError, DataError, ShapeError
from modularml.viz.predictions import CROWD, finite_rows
from modularml.viz.style import INK, MUTED, PAPER, SERIES, finish, new_axes, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["residuals"]

LINE: dict[str, Any] = {"color": MUTED, "linewidth": 1.2, "linestyle": (0, (4, 3))}


def residuals(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    over: ArrayLike | None = None,
    x: str = "",
    target: str = "",
    unit: str = "",
    title: str = "",
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw true minus predicted values over the predictions, another column, or by group.

    Parameters
    ----------
    y_true, y_pred : array-like, shape (n_samples,)
        True and predicted values, both in ``unit``. Rows where either is NaN or infinite are
        omitted and counted below the axis.
    groups : array-like, shape (n_samples,), optional
        Draws a box per group: quartiles, median, whiskers to the last row within 1.5 times the
        range between the quartiles, and the rows beyond.
    over : array-like of numbers or times, shape (n_samples,), optional
        Drawn over these values, such as a temperature; by default over the predictions. Rows
        without a value are omitted and counted.
    x : str
        Name of `groups` or `over`, with its unit.
    target, unit, title : str
        See `parity`.
    path : path-like or None
        Where to save the figure as well: .png, .pdf or .svg.

    Returns
    -------
    matplotlib.figure.Figure
        Not registered with pyplot, so it need not be closed.

    Raises
    ------
    ShapeError
        If shapes differ.
    DataError
        If there are no finite rows, or `over` is neither numbers nor times.
    ConfigError
        If both `groups` and `over` are given.

    Examples
    --------
    >>> figure = residuals([1.0, 2.0, 3.0], [1.1, 1.8, 3.0], unit="Ah")
    >>> figure.axes[0].get_ylabel()
    'true − predicted (Ah)'
    """
    if groups is not None and over is not None:
        raise ConfigError("residuals are drawn by groups or over a column, not both; omit one")
    true, pred, good = finite_rows(y_true, y_pred, "y_pred")
    places = None if over is None else _column(over, good, "over")
    if places is not None:
        has_place = ~np.asarray(require("pandas").isna(places))
        if not has_place.any():
            raise DataError("no row has a value to draw residuals over")
        true, pred, places = true[has_place], pred[has_place], places[has_place]
    n_omitted = len(good) - len(true)
    note = f"\n{n_omitted} rows not finite" if n_omitted else ""
    of = f"{target and ' ' + target}{unit and f' ({unit})'}"
    error = f"true \N{MINUS SIGN} predicted{of}"
    if groups is not None:
        names, parts = _by_group(true - pred, _column(groups, good, "groups"))
        figure, axes = new_axes(6.8, 1.2 + 0.42 * len(names), title=title, x=error + note, y=x)
        _boxes(axes, names, parts)
        return finish(figure, path)
    figure, axes = new_axes(6.8, 4.2, title=title, x="", y="")
    crowd = len(true) > CROWD
    look: dict[str, Any] = {"color": SERIES[0], "linewidths": 0, "rasterized": crowd}
    look |= {"s": 6, "alpha": 0.25} if crowd else {"s": 20, "alpha": 0.75}
    if places is None:
        show = require("sklearn.metrics").PredictionErrorDisplay(y_true=true, y_pred=pred)
        show.plot(ax=axes, scatter_kwargs=look, line_kwargs={**LINE, "alpha": 1.0})
    else:
        axes.scatter(_positions(axes, places), true - pred, **look)
        axes.axhline(0.0, **LINE)
    below = x if over is not None else f"predicted{of}"
    style_axes(axes, x=below + note, y=error)
    return finish(figure, path)


def _column(values: ArrayLike, good: Array, name: str) -> Array:
    """Return the values of the rows that are drawn."""
    column = np.asarray(values)
    if column.shape != good.shape:
        raise ShapeError(
            f"{name} must have one value for each of the {len(good)} rows, got shape {column.shape}"
        )
    return np.asarray(column[good])


def _positions(axes: Any, values: Array) -> Array:
    """Return numbers or times to draw over, and prepare the axis of times."""
    if values.dtype.kind == "O":
        values = np.asarray(require("pandas").Series(values).infer_objects())
    if values.dtype.kind == "M":
        dates = require("matplotlib.dates")
        locator = dates.AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    elif values.dtype.kind not in "biuf":
        raise DataError(
            f"residuals are drawn over numbers or times, got {values.dtype} such as "
            f"{values[0]!r}; draw them by groups instead"
        )
    return values if values.dtype.kind != "b" else values.astype(np.int64)


def _by_group(errors: Array, groups: Array) -> tuple[list[str], list[Array]]:
    """Return the names of groups, with their numbers of rows, and the errors of each."""
    codes, labels = require("pandas").factorize(groups, sort=True, use_na_sentinel=False)
    parts = [errors[codes == i] for i in range(len(labels))]
    return [f"{k} (n={len(part)})" for k, part in zip(labels, parts, strict=True)], parts


def _boxes(axes: Any, names: list[str], parts: list[Array]) -> None:
    """Draw a horizontal box for each group, the first on top."""
    ink = {"color": INK, "linewidth": 1.0, "linestyle": "-"}
    axes.boxplot(
        parts,
        positions=range(len(parts)),
        orientation="horizontal",
        widths=0.6,
        whis=1.5,
        notch=False,
        patch_artist=True,
        showmeans=False,
        manage_ticks=False,
        boxprops={"facecolor": SERIES[5], "edgecolor": INK, "linewidth": 1.0},
        medianprops={**ink, "linewidth": 1.6},
        whiskerprops=ink,
        capprops=ink,
        flierprops={"marker": "o", "markersize": 3.5, "markerfacecolor": PAPER,
                    "markeredgecolor": INK, "markeredgewidth": 0.8, "linestyle": ""},
    )  # fmt: skip
    axes.axvline(0.0, zorder=0.5, **LINE)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
