"""Shared colours, and matplotlib figures without pyplot or a display."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1B1F24"
PAPER = "#FFFFFF"
MUTED = "#757A82"  # readable on light and dark backgrounds
STOP = "#D55E00"
# Most hues after Okabe & Ito 2008, "Color Universal Design", jfly.uni-koeln.de/color
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4B5563")

SUFFIXES = (".png", ".pdf", ".svg")
FONT = ["DejaVu Sans"]  # comes with matplotlib
GRID = "#E3E5E9"
MANY = 7  # legend entries that still fit inside
MOST_PIXELS = 30_000.0
LOG_FROM = 100.0  # ratio of largest to smallest value above which a scale is logarithmic
HEADING: dict[str, Any] = {"color": INK, "fontsize": 12, "fontweight": "bold", "family": FONT}


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """Create an empty matplotlib figure without global state.

    Parameters
    ----------
    width, height : float
        In inches.
    **options
        Passed to ``matplotlib.figure.Figure``.

    Returns
    -------
    matplotlib.figure.Figure
        White, whatever the user's style.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    module = require("matplotlib.figure", purpose="to draw figures")
    figure: Figure = module.Figure((width, height), facecolor=PAPER, **options)
    return figure


def checked_path(path: str | PathLike[str], allowed: Collection[str]) -> Path:
    """Validate a path to write to.

    Parameters
    ----------
    path : path-like
        ``~`` stands for the home folder.
    allowed : collection of str
        Suffixes with a dot, in lower case. The case in ``path`` is ignored.

    Returns
    -------
    Path
        The path; nothing is written or created.

    Raises
    ------
    ConfigError
        If the suffix is not allowed or the folder does not exist.
    """
    target = Path(path).expanduser()
    if target.suffix.lower() not in allowed:
        raise ConfigError(
            f"path must end in one of {', '.join(allowed)}, got {str(path)!r}; the suffix sets "
            "the format"
        )
    if not target.parent.is_dir():
        raise ConfigError(
            f"folder {str(target.parent)!r} does not exist; create it first, or choose another"
        )
    return target


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, with a lower resolution if it would be too large."""
    options: dict[str, Any] = {"dpi": min(200.0, MOST_PIXELS / max(figure.get_size_inches()))}
    dated = {".pdf": "CreationDate", ".svg": "Date"}.get(path.suffix.lower())
    if dated:
        options["metadata"] = {dated: None}
    figure.savefig(path, facecolor=PAPER, **options)


def new_axes(width: float, height: float, *, title: str, x: str, y: str) -> tuple[Figure, Any]:
    """Create a figure with one styled set of axes.

    Parameters
    ----------
    width, height : float
        In inches.
    title, x, y : str
        Title and axis labels; may be empty.

    Returns
    -------
    tuple of (Figure, Axes)
        Without global state, and styled independently of the user's settings.
    """
    figure, (axes,) = new_panels(1, 1, width=width, height=height)
    axes.set_title(title, loc="left", pad=10, **HEADING)
    style_axes(axes, x=x, y=y)
    return figure, axes


def new_panels(
    n: int,
    n_columns: int,
    *,
    width: float,
    height: float,
    title: str = "",
    ratios: Sequence[float] | None = None,
) -> tuple[Figure, list[Any]]:
    """Create a figure with several axes, row by row, which are not styled yet.

    Parameters
    ----------
    n, n_columns : int
        Number of axes, and of those in a row.
    width, height : float
        Of the figure, in inches.
    title : str
    ratios : sequence of float, optional
        Relative heights of the rows.
    """
    engine = require("matplotlib.layout_engine").ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09)
    figure = new_figure(width, height, layout=engine, dpi=110)
    if title:
        figure.suptitle(title, x=0.01, ha="left", **HEADING)
    grid = figure.add_gridspec(-(-n // n_columns), n_columns, height_ratios=ratios)
    places = [grid[divmod(i, n_columns)] for i in range(n)]
    return figure, [figure.add_subplot(place, facecolor=PAPER) for place in places]


def plain(text: str) -> str:
    """Return a name of data so that matplotlib draws it as it is, not as mathematics."""
    return text.replace("$", r"\$")


def spans_decades(values: Array) -> bool:
    """Return whether values are positive and span enough for a log scale."""
    good = values[np.isfinite(values)]
    return bool(len(good) and good.min() > 0 and good.max() >= LOG_FROM * good.min())


def style_axes(axes: Any, *, x: str, y: str) -> None:
    """Label axes and style them independently of the user's settings."""
    axes.set_xlabel(x, color=INK, fontsize=10, family=FONT)
    axes.set_ylabel(y, color=INK, fontsize=10, family=FONT)
    axes.tick_params(which="both", colors=MUTED, labelcolor=INK, labelsize=9, labelfontfamily=FONT)
    axes.grid(visible=True, color=GRID, linewidth=0.8, linestyle="-")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=MUTED, linewidth=0.8, visible=True)


def curve_look(i: int) -> dict[str, Any]:
    """Return colour and line style of the i-th of several curves; 28 are distinct."""
    style = ("-", "--", ":", "-.")[i // len(SERIES) % 4]
    return {"color": SERIES[i % len(SERIES)], "linestyle": style, "linewidth": 1.6}


def legend(axes: Any, entries: list[tuple[Any, str]], place: str = "") -> None:
    """Draw a legend, inside the axes unless it is long or a place is given."""
    options: dict[str, Any] = {"loc": place or "best", "frameon": False}
    if not place and len(entries) > MANY:
        options["loc"] = "outside right upper"
        if len(axes.figure.axes) > 1:
            options |= {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    owner = axes.figure if options["loc"].startswith("outside") else axes
    handles, labels = zip(*entries, strict=True)
    # Texts are set afterwards: names of data may start with "_" or hold "$".
    box = owner.legend(handles, [str(i) for i in range(len(labels))], **options)
    for text, label in zip(box.get_texts(), labels, strict=True):
        text.set(text=label, parse_math=False, color=INK, fontsize=9, family=FONT)


def finish(figure: Figure, path: str | PathLike[str] | None) -> Figure:
    """Make a figure display in notebooks, and save it if a path is given.

    Raises
    ------
    ConfigError
        If ``path`` does not end in .png, .pdf or .svg, or its folder does not exist.
    """
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    if path is not None:
        save_figure(figure, checked_path(path, SUFFIXES))
    return figure


def _png(figure: Figure) -> bytes:
    """Draw a figure as PNG: without pyplot, notebooks would show its repr only."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", facecolor=PAPER)
    return buffer.getvalue()
