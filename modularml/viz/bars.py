"""Bars of one value, or of the mean of several, for each name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from modularml.errors import DataError
from modularml.viz.style import INK, MUTED, PAPER, SERIES, finish, new_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["bars"]


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
    title : str
        Title of the figure.
    path : path-like or None
        Where to save the figure as well: .png, .pdf or .svg.

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
