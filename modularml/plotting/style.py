"""How every plot of the library looks, and what each does when it is done."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from os import PathLike
from typing import TYPE_CHECKING, Any

from modularml._optional import require
from modularml.diagram.figure import checked_path, new_figure, save_figure
from modularml.diagram.palette import INK, MUTED, PAPER, SERIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FONT", "curve_look", "finish", "legend", "new_axes"]

SUFFIXES = (".png", ".pdf", ".svg")
FONT = ["DejaVu Sans"]
GRID = "#E3E5E9"
MANY = 7  # legend entries that still fit inside


def new_axes(width: float, height: float, *, title: str, x: str, y: str) -> tuple[Figure, Any]:
    """Make a figure with one styled set of axes.

    Parameters
    ----------
    width, height : float
        In inches.
    title, x, y : str
        Texts above, below and beside the axes; may be empty.

    Returns
    -------
    tuple of (Figure, Axes)
        Known to no global state, and styled whatever the user's settings are.
    """
    engine = require("matplotlib.layout_engine").ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09)
    figure = new_figure(width, height, layout=engine, dpi=110)
    axes = figure.add_subplot(facecolor=PAPER)
    axes.set_title(
        title, loc="left", color=INK, fontsize=12, fontweight="bold", family=FONT, pad=10
    )
    axes.set_xlabel(x, color=INK, fontsize=10, family=FONT)
    axes.set_ylabel(y, color=INK, fontsize=10, family=FONT)
    axes.tick_params(which="both", colors=MUTED, labelcolor=INK, labelsize=9, labelfontfamily=FONT)
    axes.grid(visible=True, color=GRID, linewidth=0.8, linestyle="-")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=MUTED, linewidth=0.8, visible=True)
    return figure, axes


def curve_look(i: int) -> dict[str, Any]:
    """Return colour and line style of the i-th of several curves; 28 can be told apart."""
    style = ("-", "--", ":", "-.")[i // len(SERIES) % 4]
    return {"color": SERIES[i % len(SERIES)], "linestyle": style, "linewidth": 1.6}


def legend(axes: Any, entries: list[tuple[Any, str]], place: str = "") -> None:
    """Explain what is drawn, inside the axes unless there is much or a place is given."""
    place = place or ("outside right upper" if len(entries) > MANY else "best")
    owner = axes.figure if place.startswith("outside") else axes
    handles, labels = zip(*entries, strict=True)
    # Texts are set afterwards: names of data may start with "_" or hold "$".
    box = owner.legend(handles, [str(i) for i in range(len(labels))], frameon=False, loc=place)
    for text, label in zip(box.get_texts(), labels, strict=True):
        text.set(text=label, parse_math=False, color=INK, fontsize=9, family=FONT)


def finish(figure: Figure, path: str | PathLike[str] | None) -> Figure:
    """Make a figure show itself in notebooks, and save it if a path is given.

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
