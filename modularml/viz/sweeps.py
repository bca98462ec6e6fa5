"""Plots of many trials: values over trials, importances, settings against values."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from modularml._optional import require
from modularml._typing import Array
from modularml.errors import DataError
from modularml.viz.curves import bars
from modularml.viz.style import (
    FONT,
    INK,
    MUTED,
    PAPER,
    SERIES,
    finish,
    legend,
    new_axes,
    new_panels,
    spans_decades,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHADES = ("#0072B2", "#56B4E9", "#D9DDE3")  # best to worst
IN_A_ROW = 4


def history(
    trials: pd.DataFrame,
    *,
    name: str = "value",
    is_greater_better: bool = False,
    title: str = "",
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw the value of each trial, and the best so far.

    Parameters
    ----------
    trials : DataFrame
        One row per trial, with its number as index: a column ``value`` and one per setting.
    name : str
        Name of the objective, for the axis.
    is_greater_better : bool
    title : str
    path : path-like or None
        Where to save the figure as well: .png, .pdf or .svg.

    Raises
    ------
    DataError
        If there is no trial.
    """
    values = _values(trials)
    figure, axes = new_axes(6.8, 4.0, title=title, x="trial", y=name)
    best = values.cummax() if is_greater_better else values.cummin()
    dots = axes.scatter(values.index, values, s=18, color=SERIES[0], alpha=0.7, linewidths=0)
    (line,) = axes.step(best.index, best, where="post", color=SERIES[1], linewidth=1.6)
    if spans_decades(values.to_numpy()):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(require("matplotlib.ticker").MaxNLocator(integer=True))
    legend(axes, [(dots, "trial"), (line, "best so far")])
    return finish(figure, path)


def importance(
    shares: Mapping[str, float],
    *,
    title: str = "",
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw the share of each setting in the variance of the objective, largest on top."""
    if not shares:
        raise DataError("there is nothing to draw: no setting varies")
    largest = sorted(shares, key=lambda n: -shares[n])
    values = {f"{n}  {shares[n]:.2f}": [shares[n]] for n in largest}
    return bars(values, x="importance", title=title, path=path)


def parallel_coordinates(
    trials: pd.DataFrame,
    *,
    name: str = "value",
    is_greater_better: bool = False,
    title: str = "",
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw one line per trial across its settings, the best in the darkest shade; see `history`.

    Settings that a trial lacks leave a gap.
    """
    values = _values(trials)
    columns = [c for c in trials.columns if c != "value"]
    figure, axes = new_axes(max(6.8, 1.9 * (len(columns) + 1)), 4.4, title=title, x="", y="")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
    scales = [_scale(trials[column]) for column in columns] + [_scale(values)]
    heights = np.array([heights for heights, _ in scales])
    order = values.rank(ascending=is_greater_better, method="first").to_numpy().astype(int) - 1
    shades = _shades(len(values))
    for position in np.argsort(order):
        worse = len(values) - 1 - order[position]
        axes.plot(heights[:, position], color=shades[worse], linewidth=1.3, alpha=0.85)
    for x, (_, ticks) in enumerate(scales):
        axes.axvline(x, color=MUTED, linewidth=0.8)
        for height, text in ticks:
            axes.text(
                x + 0.02, height, text, fontsize=8, color=INK, family=FONT, parse_math=False,
                va="center", bbox={"facecolor": PAPER, "alpha": 0.7, "linewidth": 0, "pad": 0.8},
            )  # fmt: skip
    axes.set_xticks(range(len(scales)), [_short(c) for c in columns] + [name], parse_math=False)
    axes.set_xlim(-0.1, len(scales) - 0.6)
    return finish(figure, path)


def slices(
    trials: pd.DataFrame,
    *,
    name: str = "value",
    is_greater_better: bool = False,
    title: str = "",
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw the value against each setting, later trials darker; see `history`."""
    values = _values(trials)
    columns = [c for c in trials.columns if c != "value"]
    n_columns = min(IN_A_ROW, len(columns))
    width, height = max(4.2, 2.9 * n_columns), 3.2 * -(-len(columns) // IN_A_ROW) + 0.3
    figure, panels = new_panels(len(columns), n_columns, title=title, width=width, height=height)
    is_log, shades = spans_decades(values.to_numpy()), np.array(_shades(len(values))[::-1], object)
    for i, (column, axes) in enumerate(zip(columns, panels, strict=True)):
        style_axes(axes, x=_short(column), y=name if i % n_columns == 0 else "")
        has = trials[column].notna().to_numpy()
        x = _numbers(trials[column][has])
        if x is None:
            x, names = pd.factorize(trials[column][has].map(str))
            axes.set_xticks(range(len(names)), list(names), parse_math=False)
        elif spans_decades(x):
            axes.set_xscale("log")
        axes.scatter(x, values[has], s=16, c=list(shades[has]), linewidths=0)
        if is_log:
            axes.set_yscale("log")
    return finish(figure, path)


def _values(trials: pd.DataFrame) -> pd.Series[float]:
    if not len(trials) or len(trials.columns) < 2:
        raise DataError("there is nothing to draw: no trial is complete")
    values: pd.Series[float] = trials["value"].astype(float)
    return values


def _numbers(setting: pd.Series[Any]) -> Array | None:
    """Return a setting as numbers; None if it holds other values."""
    held = setting.dropna()
    if not all(isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in held):
        return None
    return setting.to_numpy(dtype=float, na_value=np.nan)


def _scale(setting: pd.Series[Any]) -> tuple[Array, list[tuple[float, str]]]:
    """Return heights from 0 to 1, NaN for missing values, and ticks with their texts."""
    numbers = _numbers(setting)
    if numbers is None:
        names = sorted(set(map(str, setting.dropna())))
        spots = {n: (i + 0.5) / len(names) for i, n in enumerate(names)}
        heights = np.array([np.nan if pd.isna(v) else spots[str(v)] for v in setting])
        return heights, [(height, n) for n, height in spots.items()]
    is_log = spans_decades(numbers)
    scaled = np.log10(numbers) if is_log else numbers
    low, high = np.nanmin(scaled), np.nanmax(scaled)
    if low == high:
        return np.where(np.isfinite(scaled), 0.5, np.nan), [(0.5, f"{numbers[0]:.4g}")]
    ticks = np.linspace(low, high, 5)
    texts = [f"{10**t if is_log else t:.3g}" for t in ticks]
    return (scaled - low) / (high - low), list(zip(np.linspace(0, 1, 5), texts, strict=True))


def _shades(n: int) -> list[Any]:
    """Return colours from best to worst."""
    colours = require("matplotlib.colors")
    ramp = colours.LinearSegmentedColormap.from_list("trials", SHADES)
    return [ramp(i / max(1, n - 1)) for i in range(n)]


def _short(path: str) -> str:
    """Break a long path before its last name."""
    above, dot, last = str(path).rpartition(".")
    return f"{above}{dot}\n{last}" if len(str(path)) > 14 and dot else str(path)
