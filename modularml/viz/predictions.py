"""Plots of predictions against true values, and of residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from modularml._optional import require
from modularml._typing import Array
from modularml.errors import ConfigError, DataError, ShapeError
from modularml.viz.style import (
    FONT,
    INK,
    MUTED,
    PAPER,
    SERIES,
    finish,
    legend,
    new_axes,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SHADES = ("#F5F9FD", "#56B4E9", "#0072B2", "#00304D")
SMALLEST, LARGEST = 2.2, 28.0  # inches of all cells in a row
LONG_NAME = 6  # letters; longer names of columns are rotated
CROWD = 2_000  # number of points above which they are drawn small and pale


def confusion_matrix(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    labels: Sequence[Any] | None = None,
    normalize: bool = False,
    title: str = "",
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw a confusion matrix of counts.

    Parameters
    ----------
    y_true, y_pred : array-like, shape (n_samples,)
        Classes, as numbers or texts.
    labels : sequence or None
        Every class, in the order of rows and columns. None: those that occur, sorted.
    normalize : bool
        Shade by, and write above the counts, the fraction of each row (true class).
    title : str
        Title of the figure.
    path : path-like or None
        Where to save the figure as well: .png, .pdf or .svg.

    Returns
    -------
    matplotlib.figure.Figure
        True classes are rows, predicted ones columns.

    Raises
    ------
    ShapeError
        If the two differ in shape or are not one-dimensional; axes of length 1 are dropped.
    DataError
        If they are empty, hold missing values, mix numbers and texts, or hold a class that
        ``labels`` lacks.

    Examples
    --------
    >>> figure = confusion_matrix(["a", "b", "b"], ["a", "b", "a"])
    >>> len(figure.axes) > 0
    True
    """
    true, pred = _pair(y_true, y_pred, "y_pred")
    both = pd.Series(np.concatenate([true.astype(object), pred.astype(object)]))
    if both.isna().any():
        row = int(np.flatnonzero(both.isna())[0]) % len(true)
        raise DataError(f"classes must not be missing, but are in row {row} of y_true or y_pred")
    try:
        names = sorted(set(both)) if labels is None else list(dict.fromkeys(labels))
    except TypeError:
        kinds = sorted({type(value).__name__ for value in both})
        raise DataError(
            f"classes must be all numbers or all texts, got {' and '.join(kinds)}; convert them, "
            "or pass labels"
        ) from None
    codes = pd.Index(names, dtype=object).get_indexer(both)
    if (codes < 0).any():
        missing = sorted({repr(name) for name in both[codes < 0]})
        raise DataError(f"labels must name every class that occurs, lacks {', '.join(missing)}")
    pairs = codes[: len(true)] * len(names) + codes[len(true) :]
    counts = np.bincount(pairs, minlength=len(names) ** 2).reshape(len(names), len(names))
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    cell = min(max(0.75 if normalize else 0.6, SMALLEST / len(names)), LARGEST / len(names))
    side = 1.6 + cell * len(names)
    below = f"predicted\n{len(true)} samples, {np.trace(counts) / len(true):.1%} correct"
    figure, axes = new_axes(side + 0.4, side, title=title, x=below, y="true")
    shade = shares if normalize else counts / counts.max()
    image = _shade(axes, shade, [str(name) for name in names])
    texts = {at: str(count) for at, count in np.ndenumerate(counts)}
    if normalize:
        parts = {at: f"{shares[at]:.2f}" if totals[at[0]] else "\u2013" for at in texts}
        texts = {at: f"{parts[at]}\n{count}" for at, count in texts.items()}
    # the size in points at which all texts fit a cell, given in inches
    longest = max(len(line) for text in texts.values() for line in text.split("\n"))
    size = min(10.0, 0.8 * 72.0 * cell / (0.64 * longest))
    font = {"fontsize": size, "ha": "center", "va": "center"}
    for (row, column), text in texts.items():
        # dark or white text for the background, by relative luminance (WCAG 2.1)
        cell_colour = image.to_rgba(shade[row, column])[:3]
        red, green, blue = (((c + 0.055) / 1.055) ** 2.4 for c in cell_colour)
        colour = INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.2 else PAPER
        axes.text(column, row, text, color=colour, family=FONT, in_layout=False, **font)
    return finish(figure, path)


def parity(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    target: str = "",
    unit: str = "",
    title: str = "",
    name: str = "prediction",
    other: Mapping[str, ArrayLike] | None = None,
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw predictions over true values, with the line on which they would be equal.

    Parameters
    ----------
    y_true, y_pred : array-like, shape (n_samples,)
        True and predicted values, both in ``unit``. Rows where either is NaN or infinite
        are omitted and counted in the legend.
    target, unit : str
        Name of the values, such as ``"capacity"``, and their unit, which are shown on the axes;
        the unit after the error too.
    title : str
        Title of the figure.
    name : str
        Name of ``y_pred`` in the legend.
    other : mapping of str to array-like, shape (n_samples,), or None
        Further predictions of the same ``y_true``, such as a baseline's.
    path : path-like or None
        Where to save the figure as well: .png, .pdf or .svg.

    Returns
    -------
    matplotlib.figure.Figure
        The legend gives each root mean squared error and coefficient of determination;
        the latter is omitted if all true values are equal.

    Raises
    ------
    ShapeError
        If shapes differ or are not one-dimensional; axes of length 1 are dropped.
    DataError
        If there are no rows, or no finite ones.

    Examples
    --------
    >>> figure = parity([1.0, 2.0, 3.0], [1.1, 1.9, 3.2], target="capacity", unit="Ah")
    >>> len(figure.axes) > 0
    True
    """
    both = f"{target and ' ' + target}{unit and f' ({unit})'}"
    # wider than its square of points, as the layout would else cut the title off
    size = 5.6, 5.6 + 0.17 * len(other or ())
    figure, axes = new_axes(*size, title=title, x=f"true{both}", y=f"predicted{both}")
    entries, ends = [], []
    for i, (label, values) in enumerate({name: y_pred, **(other or {})}.items()):
        true, pred, _ = finite_rows(y_true, values, label)
        # one scatter, small and pale if large, and its legend handle
        look = {"linestyle": "", "markeredgewidth": 0, "markersize": 5.0, "zorder": 3 - i / 100}
        look |= {"color": SERIES[i % len(SERIES)], "marker": "osD^v"[i % 5]}
        (handle,) = axes.plot([], [], **look)
        crowd = len(true) > CROWD
        look |= {"markersize": 2.5, "alpha": 0.25} if crowd else {"alpha": 0.75}
        axes.plot(true, pred, rasterized=crowd, **look)
        entries.append((handle, f"{label}: {_errors(true, pred, unit, np.size(y_true))}"))
        ends += [true.min(), true.max(), pred.min(), pred.max()]
    low, high = min(ends), max(ends)
    edge = 0.04 * (high - low) or 0.5
    span = (low - edge, high + edge)
    (line,) = axes.plot(span, span, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    axes.set(xlim=span, ylim=span, aspect="equal")
    legend(axes, [*entries, (line, "equal")], "outside lower left")
    return finish(figure, path)


def _pair(y_true: ArrayLike, y_pred: ArrayLike, name: str) -> tuple[Array, Array]:
    """Return two columns of equal length."""
    true, pred = np.asarray(y_true), np.asarray(y_pred)
    flat = [a.reshape(-1) if a.size == max(a.shape, default=1) else a for a in (true, pred)]
    if flat[0].shape != flat[1].shape or flat[0].ndim != 1:
        raise ShapeError(
            f"y_true and {name} must be columns of equal length, got shapes {true.shape} and "
            f"{pred.shape}; draw one target at a time"
        )
    if not flat[0].size:
        raise DataError(f"y_true and {name} are empty; there is nothing to draw")
    return flat[0], flat[1]


def finite_rows(y_true: ArrayLike, y_pred: ArrayLike, name: str) -> tuple[Array, Array, Array]:
    """Return the rows of two columns where both are finite numbers, and which rows these are."""
    true, pred = _pair(y_true, y_pred, name)
    try:
        true, pred = true.astype(float), pred.astype(float)
    except (TypeError, ValueError) as error:
        raise DataError(f"y_true and {name} must hold numbers: {error}") from error
    good = np.isfinite(true) & np.isfinite(pred)
    if not good.any():
        raise DataError(f"no row of y_true and {name} is finite in both; there is nothing to draw")
    return true[good], pred[good], good


def _errors(true: Array, pred: Array, unit: str, n_rows: int) -> str:
    """Return root mean squared error, R² and the number of omitted rows as text."""
    squares = ((true - pred) ** 2).sum()
    spread = ((true - true.mean()) ** 2).sum()
    rmse = f"{np.sqrt(squares / len(true)):#.3g}".rstrip(".")
    facts = [f"RMSE {rmse}{unit and ' ' + unit}"]
    if spread > 0:
        facts.append(f"R² {1 - squares / spread:.3f}")
    if len(true) < n_rows:
        facts.append(f"{n_rows - len(true)} rows not finite")
    return ", ".join(facts)


def _shade(axes: Any, shade: Array, names: Sequence[str]) -> Any:
    """Draw the cells with class names; return the image, which maps to colours."""
    colours = require("matplotlib.colors").LinearSegmentedColormap.from_list("shades", SHADES)
    axes.grid(visible=False)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    ticks = range(len(names))
    turned = 90 if max(map(len, names)) > LONG_NAME else 0
    axes.set_xticks(ticks, names, parse_math=False, rotation=turned)
    axes.set_yticks(ticks, names, parse_math=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color=PAPER, linewidth=2.0, linestyle="-")
    return axes.imshow(shade, cmap=colours, vmin=0.0, vmax=1.0)


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
    target, unit, title, path
        See `parity`.

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
        kinds = _column(groups, good, "groups")
        codes, kinds = require("pandas").factorize(kinds, sort=True, use_na_sentinel=False)
        parts = [(true - pred)[codes == i] for i in range(len(kinds))]
        names = [f"{kind} (n={len(part)})" for kind, part in zip(kinds, parts, strict=True)]
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
