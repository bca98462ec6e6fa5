"""Lines over epochs, folds or any other axis, learning curves, and bars by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from modularml._optional import require
from modularml._typing import Array
from modularml.errors import ConfigError, DataError, ShapeError
from modularml.viz.style import (
    INK,
    MUTED,
    PAPER,
    SERIES,
    curve_look,
    finish,
    legend,
    new_axes,
    new_panels,
    spans_decades,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Curve: TypeAlias = Sequence[float] | Array | tuple[Sequence[Any] | Array, Sequence[float] | Array]
Curves: TypeAlias = "Mapping[str, Curve] | pd.DataFrame | pd.Series[Any]"

FEW = 30  # points that are marked individually


def loss_curves(
    series: Curves,
    *,
    title: str = "",
    best_epoch: int | None = None,
    log: bool | None = None,
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw losses over epochs.

    Parameters
    ----------
    series : mapping or DataFrame
        Name to values, one per epoch from epoch 0, to ``(epochs, values)``, or to a pandas
        Series over its index. Values that are NaN or infinite leave a gap, are counted in the
        legend and marked by a cross on the axis. Each column of a DataFrame is a series over the
        index.
    title : str
        Title of the figure.
    best_epoch : int or None
        An epoch to mark, 0-based.
    log : bool or None
        Whether the axis of losses is logarithmic. None: if all are positive and the
        largest is at least 100 times the smallest.
    path : path-like or None
        Where to save the figure as well: .png, .pdf or .svg.

    Returns
    -------
    matplotlib.figure.Figure
        Not registered with pyplot, so it need not be closed.

    Raises
    ------
    DataError
        If there is no series, one is empty or not numeric, or ``log`` is True and a
        loss is not positive.
    ShapeError
        If epochs and values of a series differ in number or are not one-dimensional.
    ConfigError
        If ``best_epoch`` is outside the epochs drawn, or ``path`` is not valid.

    Examples
    --------
    >>> figure = loss_curves({"train": [1.0, 0.5, 0.3], "val": [1.1, 0.7, 0.6]}, best_epoch=2)
    >>> len(figure.axes) > 0
    True
    """
    curves = _read(series)
    if log:
        for name, (x, y) in curves.items():
            bad = np.flatnonzero(y <= 0)
            if len(bad):
                raise DataError(
                    f"log=True needs losses above 0, got {y[bad[0]]:g} in series {name!r} at epoch "
                    f"{x[bad[0]]}; omit log"
                )
    if best_epoch is not None:
        epochs = np.unique(np.concatenate([x for x, _ in curves.values()]))
        if epochs.dtype.kind not in "iuf" or not epochs[0] <= best_epoch <= epochs[-1]:
            raise ConfigError(
                f"best_epoch must lie within the epochs drawn, {epochs[0]} to {epochs[-1]}, got "
                f"{best_epoch}"
            )
    figure, axes = new_axes(6.8, 4.0, title=title, x="epoch", y="loss")
    mark = {} if best_epoch is None else {f"best epoch {best_epoch}": best_epoch}
    _fill(axes, curves, log=log, mark=mark)
    return finish(figure, path)


def series(
    data: Curves,
    *,
    x: str = "",
    y: str = "",
    title: str = "",
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw one line per series of numbers.

    Parameters
    ----------
    data : mapping, DataFrame or Series
        As for `loss_curves`. Positions may be numbers, times or texts, which are
        placed in the order of first occurrence.
    x, y : str
        Labels of the axes, with units.
    title, path
        See `loss_curves`.

    Returns
    -------
    matplotlib.figure.Figure
        Not registered with pyplot, so it need not be closed.

    Raises
    ------
    DataError
        If there is no series, or one is empty or not numeric.
    ShapeError
        If positions and values of a series differ in number or are not one-dimensional.
    ConfigError
        If ``path`` is not valid.

    Examples
    --------
    >>> figure = series({"voltage": [3.1, 3.3, 3.6]}, x="step", y="V")
    >>> len(figure.axes) > 0
    True
    """
    curves = _read(data)
    figure, axes = new_axes(6.8, 4.0, title=title, x=x, y=y)
    _fill(axes, curves, log=False)
    return finish(figure, path)


def panels(
    data: Mapping[str, Curves],
    *,
    x: str = "",
    title: str = "",
    mark: Mapping[str, float] | None = None,
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw several sets of series below one another, each on a vertical axis of its own.

    Parameters
    ----------
    data : mapping of str to series
        By label of the vertical axis, with its unit; see `series`. An axis is logarithmic if its
        values are positive and the largest is at least 100 times the smallest.
    x, title, path
        See `series`; the horizontal axis is shared.
    mark : mapping of str to float, optional
        Positions to mark on the horizontal axis, by name.

    Raises
    ------
    DataError
        If there is nothing to draw.

    Examples
    --------
    >>> figure = panels({"loss": {"train": [1.0, 0.5]}, "rate": {"lr": [0.1, 0.01]}}, x="epoch")
    >>> len(figure.axes) > 0
    True
    """
    if not data:
        raise DataError("there is nothing to draw; pass at least one series")
    curves = {label: _read(part) for label, part in data.items()}
    least = 3.3 if len(data) == 1 else 2.4
    heights = [max(least, 0.8 + 0.19 * (len(c) + len(mark or ()))) for c in curves.values()]
    size = {"width": 6.8, "height": 0.7 + sum(heights)}
    figure, axes = new_panels(len(data), 1, title=title, ratios=heights, **size)
    for i, (label, part) in enumerate(curves.items()):
        style_axes(axes[i], x=x if i == len(axes) - 1 else "", y=label)
        _fill(axes[i], part, log=None, mark=mark)
        axes[i].sharex(axes[0])
    return finish(figure, path)


def _fill(
    axes: Any,
    curves: Mapping[str, tuple[Array, Array]],
    *,
    log: bool | None,
    mark: Mapping[str, float] | None = None,
) -> None:
    """Draw series, marks and a legend on styled axes; `log` None decides by the values."""
    if log or (log is None and spans_decades(np.concatenate([y for _, y in curves.values()]))):
        axes.set_yscale("log")
    texts = [str(place) for x, _ in curves.values() if x.dtype.kind in "OUS" for place in x]
    spots = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    if spots:
        axes.set_xticks(range(len(spots)), list(spots), parse_math=False)
    elif all(x.dtype.kind in "iu" for x, _ in curves.values()):
        ticker = require("matplotlib.ticker")
        axes.xaxis.set_major_locator(
            ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
        )
    entries = []
    for i, (name, (x, y)) in enumerate(curves.items()):
        at = np.array([spots[str(place)] for place in x]) if spots else x
        look, good = curve_look(i), np.isfinite(y)
        padded = np.concatenate([[False], good, [False]])
        alone = good & ~padded[:-2] & ~padded[2:]
        marked = np.flatnonzero(good if len(y) <= FEW else alone)
        dots = {"marker": "o", "markersize": 3.5, "markevery": list(marked)} if len(marked) else {}
        (line,) = axes.plot(at, np.where(good, y, np.nan), **dots, **look)
        if not good.all():  # a gap, and crosses below it
            cross = {"markersize": 6, "clip_on": False, "transform": axes.get_xaxis_transform()}
            zeros = np.zeros((~good).sum())
            axes.plot(at[~good], zeros, "x", color=look["color"], **cross)
        entries.append((line, name if good.all() else f"{name} ({(~good).sum()} not finite)"))
    for name, position in (mark or {}).items():
        line = axes.axvline(position, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
        entries.append((line, name))
    legend(axes, entries)


def _read(data: Curves) -> dict[str, tuple[Array, Array]]:
    """Return positions and values of each series by name."""
    if isinstance(data, pd.Series):
        data = data.to_frame(data.name if data.name is not None else "value")
    if isinstance(data, pd.DataFrame):
        pairs: list[tuple[Any, Any]] = [(name, data.iloc[:, i]) for i, name in enumerate(data)]
    elif isinstance(data, Mapping):
        pairs = list(data.items())
    else:
        raise DataError(
            f"data must be a mapping of names to values or a frame, got {type(data).__name__}"
        )
    if not pairs:
        raise DataError("there is nothing to draw; pass at least one series")
    return {_name(name): _points(_name(name), values) for name, values in pairs}


def _name(label: object) -> str:
    """Return a name, or its levels, as text."""
    return " / ".join(map(str, label)) if isinstance(label, tuple) else str(label)


def _points(name: str, curve: Any) -> tuple[Array, Array]:
    """Validate and return positions and values of one series."""
    places, values = None, curve
    if isinstance(curve, tuple) and len(curve) == 2 and all(np.ndim(part) for part in curve):
        places, values = curve
    elif isinstance(curve, pd.Series):
        index = curve.index
        places = [_name(place) for place in index] if index.nlevels > 1 else index
    try:
        y = np.asarray(values, dtype=float)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"series {name!r} must hold numbers: {error}") from error
    x = np.arange(len(y)) if places is None and y.ndim else np.asarray(places)
    if y.ndim != 1 or x.shape != y.shape:
        raise ShapeError(
            f"series {name!r} must have one value per position: positions have shape {x.shape}, "
            f"values {y.shape}"
        )
    if not len(y):
        raise DataError(f"series {name!r} is empty; omit it")
    return x, y


def bars(
    values: Mapping[str, Sequence[float]],
    *,
    x: str = "",
    title: str = "",
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw a horizontal bar for each name, with the spread of its values.

    Parameters
    ----------
    values : mapping of str to sequence of float
        One value per name, or several, such as scores of folds: the bar is their mean, the line
        one standard deviation to each side, and the dots are the values. Values that are NaN or
        infinite are omitted and counted.
    x : str
        Label of the axis, with units.
    title, path
        See `loss_curves`.

    Returns
    -------
    matplotlib.figure.Figure
        Not registered with pyplot, so it need not be closed.

    Raises
    ------
    DataError
        If there is no finite value.
    ConfigError
        If ``path`` is not valid.

    Examples
    --------
    >>> figure = bars({"linear": [0.41, 0.39], "network": [0.28, 0.31]}, x="rmse")
    >>> len(figure.axes) > 0
    True
    """
    given = {name: np.asarray(numbers, dtype=float).ravel() for name, numbers in values.items()}
    finite = {name: numbers[np.isfinite(numbers)] for name, numbers in given.items()}
    if not any(map(len, finite.values())):
        raise DataError("there is no finite value to draw; pass at least one")
    figure, axes = new_axes(6.8, 1.2 + 0.42 * len(finite), title=title, x=x, y="")
    labels = []
    for at, (name, numbers) in enumerate(finite.items()):
        n_omitted = len(given[name]) - len(numbers)
        labels.append(name + (f" ({n_omitted} not finite)" if n_omitted else ""))
        if not len(numbers):
            continue
        axes.barh(at, numbers.mean(), height=0.62, color=SERIES[0], alpha=0.85, linewidth=0)
        if len(numbers) > 1:
            look = {"fmt": "none", "ecolor": INK, "elinewidth": 1.3, "capsize": 4}
            axes.errorbar(numbers.mean(), at, xerr=numbers.std(ddof=1), **look)
            dots = {"markersize": 4, "markeredgecolor": INK, "markeredgewidth": 0.8}
            axes.plot(numbers, np.full(len(numbers), at), "o", color=PAPER, **dots)
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color=MUTED, linewidth=0.8)
    return finish(figure, path)


def learning_curve(
    sizes: ArrayLike,
    train_scores: ArrayLike,
    test_scores: ArrayLike,
    *,
    x: str = "training rows",
    y: str = "score",
    title: str = "",
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw scores on trained and on held-out rows over the number of training rows.

    Parameters
    ----------
    sizes : array-like, shape (n_sizes,)
        Ascending. The axis is logarithmic if they are far apart (`sklearn.model_selection`).
    train_scores, test_scores : array-like, shape (n_sizes, n_folds)
        Lines are means over folds, bands one standard deviation (denominator n) to each side.
    x, y : str
        Labels of the axes, with units.
    title, path
        See `loss_curves`.

    Returns
    -------
    matplotlib.figure.Figure
        Not registered with pyplot, so it need not be closed.

    Raises
    ------
    ShapeError
        If shapes do not fit.
    DataError
        If there are fewer than two sizes, or a score is not finite.

    Examples
    --------
    >>> figure = learning_curve([10, 20], [[0.9, 0.8], [0.9, 0.9]], [[0.5, 0.6], [0.7, 0.7]])
    >>> len(figure.axes) > 0
    True
    """
    at = np.asarray(sizes)
    parts = {
        "training": np.asarray(train_scores, float),
        "held out": np.asarray(test_scores, float),
    }
    if at.ndim != 1 or any(part.ndim != 2 or len(part) != len(at) for part in parts.values()):
        raise ShapeError(
            "sizes must be numbers and scores a row for each of them, got shapes "
            f"{at.shape}, {[part.shape for part in parts.values()]}"
        )
    if len(at) < 2 or not all(np.isfinite(part).all() for part in parts.values()):
        raise DataError("a learning curve needs two sizes or more, and finite scores")
    figure, axes = new_axes(6.8, 4.2, title=title, x="", y="")
    train, test = parts.values()
    show = require("sklearn.model_selection").LearningCurveDisplay(
        train_sizes=at, train_scores=train, test_scores=test, score_name=y
    )
    show.plot(ax=axes, line_kw={"marker": "o", "markersize": 5}, fill_between_kw={"alpha": 0.2})
    for i, (line, band) in enumerate(zip(show.lines_, show.fill_between_, strict=True)):
        line.set(**curve_look(i))
        band.set(facecolor=curve_look(i)["color"], edgecolor="none", linewidth=0)
    style_axes(axes, x=x, y=y)
    axes.set_xticks(at, [f"{round(size)}" for size in at.tolist()], minor=False)
    axes.minorticks_off()
    legend(axes, list(zip(show.lines_, parts, strict=True)))
    return finish(figure, path)
