"""Rendering of scenes as self-contained SVG or as matplotlib figures."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

from modularml._optional import require
from modularml.viz.layout import Point
from modularml.viz.scene import Arrow, Bar, Panel, Scene, Shape, Words
from modularml.viz.style import FONT, MUTED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["page", "to_figure", "to_svg"]

FONTS = "system-ui,-apple-system,'Segoe UI','DejaVu Sans',Helvetica,Arial,sans-serif"
PIXELS = 100.0  # an inch
POINT = 72.0 / PIXELS


def to_svg(scene: Scene) -> str:
    """Write a scene as one SVG element, for light and dark backgrounds."""
    x, y, width, height = map(_num, scene.sheet)
    parts = []
    for group in scene.groups:
        shapes = "\n".join(map(_element, group.shapes))
        parts.append(f'<g class="{group.role}">{_tip(group.tip)}\n{shapes}\n</g>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="{x} {y} {width} {height}" role="img" aria-label="{escape(scene.title)}" '
        f'font-family="{FONTS}">\n{body}\n</svg>\n'
    )


def page(scene: Scene) -> str:
    """Write a scene as an HTML page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(scene.title) or 'Diagram'}</title>\n</head>\n"
        f'<body style="margin:1rem">\n{to_svg(scene)}</body>\n</html>\n'
    )


def _element(shape: Shape) -> str:
    dash = ' stroke-dasharray="5 4"' if getattr(shape, "dashed", False) else ""
    match shape:
        case Panel(box, radius, fill, line, _, opacity):
            x, y, width, height = map(_num, box)
            return (
                f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{_num(radius)}" '
                f'fill="{fill}" fill-opacity="{_num(opacity)}" stroke="{line}" '
                f'stroke-width="1.25"{dash}/>'
            )
        case Arrow(curve, head):
            return (
                f'<path d="M{_points(curve[:1])} C{_points(curve[1:])}" fill="none" '
                f'stroke="{MUTED}" stroke-width="1.5"{dash}/>'
                f'<polygon points="{_points(head)}" fill="{MUTED}"/>'
            )
        case Bar(start, end, colour, tip):
            return (
                f'<path d="M{_points([start])} L{_points([end])}" stroke="{colour}" '
                f'stroke-width="3" stroke-linecap="round">{_tip(tip)}</path>'
            )
        case Words(at, text, size, colour, bold):
            weight = ' font-weight="600"' if bold else ""
            return (
                f'<text x="{_num(at.x)}" y="{_num(at.y)}" font-size="{_num(size)}" '
                f'fill="{colour}"{weight}>{escape(text)}</text>'
            )


def _tip(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _points(points: Iterable[Point]) -> str:
    return " ".join(f"{_num(x)},{_num(y)}" for x, y in points)


def _num(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def to_figure(scene: Scene) -> Figure:
    """Draw a scene as a figure of the same size, with 100 pixels per inch."""
    x, y, width, height = scene.sheet
    figure = new_figure(width / PIXELS, height / PIXELS, dpi=PIXELS)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(x, x + width), ylim=(y + height, y))
    axes.axis("off")
    for group in scene.groups:
        for shape in group.shapes:
            _draw(shape, axes, require("matplotlib.patches"))
    return figure


def _draw(shape: Shape, axes: Any, patches: Any) -> None:
    dash: Any = (0, (4, 3)) if getattr(shape, "dashed", False) else "solid"
    match shape:
        case Panel(box, radius, fill, line, _, opacity):
            look = {"boxstyle": f"round,pad=0,rounding_size={radius}", "linewidth": 1.25 * POINT}
            look |= {"facecolor": (fill, opacity), "edgecolor": line, "linestyle": dash}
            axes.add_patch(patches.FancyBboxPatch(box[:2], *box[2:], **look))
        case Arrow(curve, head):
            path = require("matplotlib.path").Path
            path = path(curve, [path.MOVETO] + [path.CURVE4] * (len(curve) - 1))
            look = {"facecolor": "none", "edgecolor": MUTED, "linewidth": 1.5 * POINT}
            axes.add_patch(patches.PathPatch(path, linestyle=dash, capstyle="butt", **look))
            axes.add_patch(patches.Polygon(head, facecolor=MUTED, edgecolor="none"))
        case Bar(start, end, colour):
            x, y = zip(start, end, strict=True)
            axes.plot(x, y, color=colour, linewidth=3 * POINT, solid_capstyle="round")
        case Words(at, text, size, colour, bold):
            font = {"fontsize": size * POINT, "fontweight": "bold" if bold else "normal"}
            axes.text(*at, text, color=colour, family=FONT, parse_math=False, **font)
