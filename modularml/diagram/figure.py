"""A scene as a matplotlib figure, and figures as files; no display and no pyplot."""

from __future__ import annotations

from collections.abc import Collection
from functools import singledispatch
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modularml._optional import require
from modularml.diagram.palette import MUTED, PAPER
from modularml.diagram.scene import Arrow, Bar, Panel, Scene, Words
from modularml.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["checked_path", "draw", "new_figure", "save_figure"]

FONT = "DejaVu Sans"  # comes with matplotlib
PIXELS = 100.0  # an inch
POINT = 72.0 / PIXELS
MOST_PIXELS = 30_000.0


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """Make an empty matplotlib figure that no global state knows of.

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
    """Return a path that can be written to, or say what is wrong with it.

    Parameters
    ----------
    path : path-like
        ``~`` stands for the home folder.
    allowed : collection of str
        Suffixes with their dot, in small letters. Capitals in ``path`` are fine.

    Returns
    -------
    Path
        The path; nothing is written or made.

    Raises
    ------
    ConfigError
        If the suffix is not allowed or the folder does not exist.
    """
    target = Path(path).expanduser()
    if target.suffix.lower() not in allowed:
        raise ConfigError(
            f"path must end in one of {', '.join(allowed)}, got {str(path)!r}; "
            "the ending decides the format"
        )
    if not target.parent.is_dir():
        raise ConfigError(
            f"folder {str(target.parent)!r} does not exist; make it first, or save elsewhere"
        )
    return target


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; a picture that would be too large for a file is made coarser."""
    options: dict[str, Any] = {"dpi": min(200.0, MOST_PIXELS / max(figure.get_size_inches()))}
    dated = {".pdf": "CreationDate", ".svg": "Date"}.get(path.suffix.lower())
    if dated:
        options["metadata"] = {dated: None}
    figure.savefig(path, facecolor=PAPER, **options)


def draw(scene: Scene) -> Figure:
    """Draw a scene as a figure of the same size, 100 pixels an inch."""
    x, y, width, height = scene.sheet
    figure = new_figure(width / PIXELS, height / PIXELS, dpi=PIXELS)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(x, x + width), ylim=(y + height, y))
    axes.axis("off")
    for group in scene.groups:
        for shape in group.shapes:
            _shape(shape, axes)
    return figure


@singledispatch
def _shape(shape: object, axes: Any) -> None:
    """Draw one shape; each kind of shape registers its own way."""
    raise TypeError(f"cannot draw {type(shape).__name__}")


@_shape.register
def _panel(shape: Panel, axes: Any) -> None:
    patches = require("matplotlib.patches")
    box, style = shape.box, f"round,pad=0,rounding_size={shape.radius}"
    look = {"facecolor": (shape.fill, shape.opacity), "edgecolor": shape.line}
    line = {"linewidth": 1.25 * POINT, "linestyle": _dash(shape.dashed)}
    patch = patches.FancyBboxPatch(box[:2], *box[2:], boxstyle=style, **look, **line)
    axes.add_patch(patch)


@_shape.register
def _arrow(shape: Arrow, axes: Any) -> None:
    patches, path = require("matplotlib.patches"), require("matplotlib.path").Path
    curve = path(shape.curve, [path.MOVETO] + [path.CURVE4] * (len(shape.curve) - 1))
    line = {"linewidth": 1.5 * POINT, "linestyle": _dash(shape.dashed), "capstyle": "butt"}
    axes.add_patch(patches.PathPatch(curve, facecolor="none", edgecolor=MUTED, **line))
    axes.add_patch(patches.Polygon(shape.head, facecolor=MUTED, edgecolor="none"))


@_shape.register
def _bar(shape: Bar, axes: Any) -> None:
    x, y = zip(shape.start, shape.end, strict=True)
    axes.plot(x, y, color=shape.colour, linewidth=3 * POINT, solid_capstyle="round")


@_shape.register
def _words(shape: Words, axes: Any) -> None:
    font = {"fontsize": shape.size * POINT, "fontweight": "bold" if shape.bold else "normal"}
    axes.text(*shape.at, shape.text, color=shape.colour, family=FONT, parse_math=False, **font)


def _dash(dashed: bool) -> Any:
    return (0, (4, 3)) if dashed else "solid"
