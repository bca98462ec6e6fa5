"""A scene as SVG text that stands alone: no scripts, links, ids or fonts of its own."""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch
from html import escape

from modularml.diagram.layout import Point
from modularml.diagram.palette import MUTED
from modularml.diagram.scene import Arrow, Bar, Group, Panel, Scene, Words

__all__ = ["page", "to_svg"]

FONTS = "system-ui,-apple-system,'Segoe UI','DejaVu Sans',Helvetica,Arial,sans-serif"


def to_svg(scene: Scene) -> str:
    """Write a scene as one SVG element, readable on light and dark ground."""
    x, y, width, height = map(_num, scene.sheet)
    body = "\n".join(_group(group) for group in scene.groups)
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


def _group(group: Group) -> str:
    tip = f"<title>{escape(group.tip)}</title>" if group.tip else ""
    shapes = "\n".join(_shape(shape) for shape in group.shapes)
    return f'<g class="{group.role}">{tip}\n{shapes}\n</g>'


@singledispatch
def _shape(shape: object) -> str:
    """Write one shape; each kind of shape registers its own way."""
    raise TypeError(f"cannot draw {type(shape).__name__}")


@_shape.register
def _panel(shape: Panel) -> str:
    box = shape.box
    return (
        f'<rect x="{_num(box.x)}" y="{_num(box.y)}" width="{_num(box.width)}" '
        f'height="{_num(box.height)}" rx="{_num(shape.radius)}" fill="{shape.fill}" '
        f'fill-opacity="{_num(shape.opacity)}" stroke="{shape.line}" stroke-width="1.25"'
        f"{_dash(shape.dashed)}/>"
    )


@_shape.register
def _arrow(shape: Arrow) -> str:
    start, *rest = shape.curve
    return (
        f'<path d="M{_points([start])} C{_points(rest)}" fill="none" stroke="{MUTED}" '
        f'stroke-width="1.5"{_dash(shape.dashed)}/>'
        f'<polygon points="{_points(shape.head)}" fill="{MUTED}"/>'
    )


@_shape.register
def _bar(shape: Bar) -> str:
    tip = f"<title>{escape(shape.tip)}</title>" if shape.tip else ""
    return (
        f'<path d="M{_points([shape.start])} L{_points([shape.end])}" stroke="{shape.colour}" '
        f'stroke-width="3" stroke-linecap="round">{tip}</path>'
    )


@_shape.register
def _words(shape: Words) -> str:
    weight = ' font-weight="600"' if shape.bold else ""
    return (
        f'<text x="{_num(shape.at.x)}" y="{_num(shape.at.y)}" font-size="{_num(shape.size)}" '
        f'fill="{shape.colour}"{weight}>{escape(shape.text)}</text>'
    )


def _dash(dashed: bool) -> str:
    return ' stroke-dasharray="5 4"' if dashed else ""


def _points(points: Iterable[Point]) -> str:
    return " ".join(f"{_num(x)},{_num(y)}" for x, y in points)


def _num(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
