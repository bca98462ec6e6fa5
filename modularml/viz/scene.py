"""Nodes and edges of diagrams, and scenes: their shapes with positions and colours."""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

from modularml.errors import ConfigError, UnknownNameError
from modularml.viz.layout import Layout, Link, Point, Rect, lay_out
from modularml.viz.style import INK, MUTED, STOP

STOP_WORDS = "gradients stop here"
UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Tone(NamedTuple):
    """Colours of one kind of box: its fill, its border, and small text upon the fill."""

    fill: str
    line: str
    ink: str


TONES = {
    "featureset": Tone("#DCEBF7", "#0072B2", "#00507D"),
    "split": Tone("#E8F4FC", "#56B4E9", "#1D5E86"),
    "torch": Tone("#FBE5D8", "#D55E00", "#8A3C00"),
    "tensorflow": Tone("#FDF0D5", "#E69F00", "#754E00"),
    "sklearn": Tone("#D9F1EA", "#009E73", "#005F46"),
    "merge": Tone("#F7E6EF", "#CC79A7", "#813566"),
    "function": Tone("#E9EBEF", "#6B7280", "#3F4650"),
    "phase": Tone("#E9E4F5", "#4B2E83", "#4B2E83"),
    "node": Tone("#F4F5F7", "#2B3038", "#3F4650"),
}


@dataclass(frozen=True)
class DiagramNode:
    """A box of a diagram.

    Parameters
    ----------
    id : str
        Unique within the diagram; only shown in listings with equal titles.
    title : str
        First line, in bold.
    lines : sequence of str
        Further lines, such as shapes. One string counts as one line.
    kind : str
        A key of ``TONES``: decides the colour and is written above the title,
        except for the plain kind ``"node"``.
    dimmed : bool
        Draw the box pale with a dashed border (a frozen node, an unused split).

    Raises
    ------
    UnknownNameError
        If ``kind`` is not known.
    """

    id: str
    title: str
    lines: Sequence[str] = ()
    kind: str = "node"
    dimmed: bool = False

    def __post_init__(self) -> None:
        if self.kind not in TONES:
            raise UnknownNameError("diagram kind", self.kind, TONES)
        lines = (self.lines,) if isinstance(self.lines, str) else tuple(self.lines)
        object.__setattr__(self, "lines", lines)

    @property
    def caption(self) -> str:
        """Text above the title: the kind, except for the plain one."""
        return "" if self.kind == "node" else self.kind


@dataclass(frozen=True)
class DiagramEdge:
    """An arrow between two boxes.

    Parameters
    ----------
    source, target : str
        Ids of the nodes that the arrow leaves and reaches.
    label : str
        Text beside the arrow.
    style : {"solid", "dashed"}
        How the line is drawn.
    marker : {"", "stop"}
        ``"stop"`` puts a bar across the arrow: gradients stop here.

    Raises
    ------
    ConfigError
        If ``style`` or ``marker`` is not one of these.
    """

    source: str
    target: str
    label: str = ""
    style: Literal["solid", "dashed"] = "solid"
    marker: Literal["", "stop"] = ""

    def __post_init__(self) -> None:
        if self.style not in ("solid", "dashed"):
            raise ConfigError(f"style must be 'solid' or 'dashed', got {self.style!r}")
        if self.marker not in ("", "stop"):
            raise ConfigError(f"marker must be '' or 'stop', got {self.marker!r}")

    @property
    def notes(self) -> str:
        """Notes on the edge: its label, and whether gradients stop."""
        notes = (clean(self.label), STOP_WORDS if self.marker == "stop" else "")
        return "; ".join(note for note in notes if note)


def clean(text: str) -> str:
    """Return a text as one line, with unprintable characters replaced."""
    return " ".join(UNPRINTABLE.sub("\ufffd", str(text)).split())


MARGIN, PAD = 16.0, 12.0
HEAD, BAR = 8.0, 9.0
NODE_CHARS, LABEL_CHARS = 40, 26
CAPTION, SMALL, BODY, BOLD, HEADING = 10.0, 11.0, 12.0, 14.0, 16.0
HEADING_CHARS, KEY_WIDTH = 60, 140.0
STRIPE, LEADING = 4.0, 1.4


class Panel(NamedTuple):
    """A rectangle with round corners; ``opacity`` is that of its fill alone."""

    box: Rect
    radius: float
    fill: str
    line: str
    dashed: bool = False
    opacity: float = 1.0


class Arrow(NamedTuple):
    """A line with a head; ``curve`` is a start, then three points per Bezier segment."""

    curve: tuple[Point, ...]
    head: tuple[Point, Point, Point]
    dashed: bool


class Bar(NamedTuple):
    """A short thick stroke."""

    start: Point
    end: Point
    colour: str
    tip: str


class Words(NamedTuple):
    """One line of text, starting at ``at`` on its baseline."""

    at: Point
    text: str
    size: float
    colour: str
    bold: bool = False


Shape: TypeAlias = Panel | Arrow | Bar | Words


@dataclass(frozen=True)
class Group:
    """A group of shapes and its tooltip."""

    role: Literal["node", "edge", "title", "key"]
    tip: str
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Scene:
    """All shapes, back to front, and the visible area."""

    title: str
    sheet: Rect
    groups: tuple[Group, ...]


def compose(
    title: str,
    nodes: Sequence[DiagramNode],
    edges: Sequence[DiagramEdge],
    direction: Literal["LR", "TB"],
) -> Scene:
    """Lay out a diagram and turn it into shapes.

    Parameters
    ----------
    title : str
        Shown above; an empty one takes no space.
    nodes : sequence of DiagramNode
        May be empty.
    edges : sequence of DiagramEdge
        Between these nodes, none from a node to itself.
    direction : {"LR", "TB"}
        Direction of edges: to the right, or down.

    Returns
    -------
    Scene
        Edges first, so that boxes cover them.
    """
    rows = {}
    for node in nodes:
        small, ink = (MUTED, MUTED) if node.dimmed else (TONES[node.kind].ink, INK)
        rows[node.id] = [
            *_rows(node.caption, NODE_CHARS, CAPTION, small),
            *_rows(node.title, NODE_CHARS, BOLD, ink, bold=True),
            *(row for line in node.lines for row in _rows(line, NODE_CHARS, BODY, ink)),
        ]
    labels = [_rows(edge.label, LABEL_CHARS, SMALL, MUTED) for edge in edges]
    links = [
        Link(edge.source, edge.target, _size(label))
        for edge, label in zip(edges, labels, strict=True)
    ]
    sizes = {}
    for name, content in rows.items():
        width, height = _size(content)
        sizes[name] = max(width + 2 * PAD + STRIPE, 72.0), max(height + 1.5 * PAD, 36.0)
    heading = _rows(title, HEADING_CHARS, HEADING, MUTED, bold=True)
    layout = lay_out(sizes, links, direction)
    groups = _edge_groups(nodes, edges, labels, layout, direction)
    groups += [_node_group(node, layout.boxes[node.id], rows[node.id]) for node in nodes]
    width, top, bottom = layout.width, -MARGIN, layout.height + MARGIN
    if heading:
        width, top = max(width, _size(heading)[0]), top - _size(heading)[1] - PAD
        groups.append(Group("title", "", _words(heading, 0.0, top + MARGIN)))
    if any(edge.marker == "stop" for edge in edges):
        middle = bottom + SMALL / 2
        ends = (Point(4.0, middle - BAR * 0.7), Point(4.0, middle + BAR * 0.7))
        words = _words(_rows(STOP_WORDS, NODE_CHARS, SMALL, MUTED), 14.0, bottom - 2.0)
        groups.append(Group("key", "", (Bar(*ends, STOP, ""), *words)))
        width, bottom = max(width, KEY_WIDTH), bottom + MARGIN + SMALL
    sheet = Rect(-MARGIN, top, width + 2 * MARGIN, bottom - top)
    return Scene(clean(title), sheet, tuple(groups))


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Estimate how wide a text is in pixels, in a wide sans-serif font."""
    ems = 0.0
    for char in text:
        if unicodedata.east_asian_width(char) in "WF" or char in "@%mwMW":
            ems += 1.0
        elif char in " .,:;'|!iIjl()[]/frt-":
            ems += 0.4
        else:
            ems += 0.74 if char.isupper() else 0.64
    return ems * size * (1.1 if bold else 1.0)


def _rows(text: str, chars: int, size: float, colour: str, *, bold: bool = False) -> list[Words]:
    """Wrap a text into lines of at most ``chars`` characters, not positioned yet."""
    origin = Point(0.0, 0.0)
    return [Words(origin, line, size, colour, bold) for line in textwrap.wrap(clean(text), chars)]


def _size(rows: Sequence[Words]) -> tuple[float, float]:
    """Return width and height of lines of text, one below the other."""
    width = max((text_width(row.text, row.size, bold=row.bold) for row in rows), default=0.0)
    return width, sum(row.size * LEADING for row in rows)


def _words(rows: Sequence[Words], x: float, y: float) -> tuple[Words, ...]:
    """Put lines of text one below the other, from an upper left corner."""
    placed = []
    for row in rows:
        placed.append(row._replace(at=Point(x, y + row.size * 1.1)))
        y += row.size * LEADING
    return tuple(placed)


def _node_group(node: DiagramNode, box: Rect, rows: Sequence[Words]) -> Group:
    """Draw a box: a panel, a stripe in the colour of its kind, and its text."""
    tone = TONES[node.kind]
    top = box.y + (box.height - _size(rows)[1]) / 2
    stripe = Rect(box.x + 5.0, box.y + 8.0, STRIPE, box.height - 16.0)
    panel = Panel(box, 7.0, tone.fill, tone.line)
    if node.dimmed:
        panel = Panel(box, 7.0, tone.line, MUTED, dashed=True, opacity=0.1)
    mark = Panel(stripe, STRIPE / 2, tone.line, "none", opacity=0.5 if node.dimmed else 1.0)
    words = _words(rows, box.x + PAD + STRIPE, top)
    return Group("node", f"{clean(node.title)} ({node.kind})", (panel, mark, *words))


def _edge_groups(
    nodes: Sequence[DiagramNode],
    edges: Sequence[DiagramEdge],
    labels: Sequence[Sequence[Words]],
    layout: Layout,
    direction: Literal["LR", "TB"],
) -> list[Group]:
    """Draw every edge: its line, its head, its bar and its label."""
    titles = {node.id: clean(node.title) for node in nodes}
    groups = []
    for edge, label, route in zip(edges, labels, layout.routes, strict=True):
        tip = f"{titles[edge.source]} \u2192 {titles[edge.target]}"
        points = [_turned(point, direction) for point in route.points]
        before, end = points[-2:]
        back = math.copysign(HEAD, before.x - end.x)
        points[-1] = Point(end.x + back * 0.7, end.y)
        corners = (end, *(Point(end.x + back, end.y + side) for side in (-HEAD / 2, HEAD / 2)))
        curve = points[:1]
        for one, two in pairwise(points):
            middle = (one.x + two.x) / 2
            curve += [Point(middle, one.y), Point(middle, two.y), two]
        first, second, third = (_turned(point, direction) for point in corners)
        line = tuple(_turned(point, direction) for point in curve)
        shapes: list[Shape] = [Arrow(line, (first, second, third), edge.style == "dashed")]
        if edge.marker == "stop":
            # a stroke perpendicular to the edge, in the middle of its last curve
            one, two = route.points[-2:]
            dx, dy = two.x - one.x, two.y - one.y
            dx, dy = (dx, 2 * dy) if direction == "LR" else (2 * dx, dy)
            scale = BAR / math.hypot(dx, dy)
            x, y = (one.x + two.x) / 2, (one.y + two.y) / 2
            ends = Point(x - dy * scale, y + dx * scale), Point(x + dy * scale, y - dx * scale)
            shapes.append(Bar(*ends, STOP, STOP_WORDS))
        if route.label:
            shapes += _words(label, route.label.x, route.label.y)
        notes = f": {edge.notes}" if edge.notes else ""
        groups.append(Group("edge", tip + notes, tuple(shapes)))
    return groups


def _turned(point: Point, direction: Literal["LR", "TB"]) -> Point:
    """Swap the axes if edges lead down."""
    return point if direction == "LR" else Point(point.y, point.x)
