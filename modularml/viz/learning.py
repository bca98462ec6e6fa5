"""Plots of scores over the number of training rows."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from modularml._optional import require
from modularml.errors import DataError, ShapeError
from modularml.viz.style import curve_look, finish, legend, new_axes, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["learning_curve"]


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
    x, y, title : str
        Labels of the axes, with units, and of the figure.
    path : path-like or None
        Where to save the figure as well: .png, .pdf or .svg.

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
