"""Diagrams that can be displayed and saved, as text, SVG and pictures."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modularml._optional import require
from modularml.errors import ConfigError, GraphError, closest
from modularml.viz.layout import Point
from modularml.viz.scene import (
    TONES,
    Arrow,
    Bar,
    DiagramEdge,
    DiagramNode,
    Panel,
    Scene,
    Shape,
    Words,
    clean,
    compose,
)
from modularml.viz.style import FONT, INK, MUTED, checked_path, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


ARROWS = {
    ("solid", ""): "-->",
    ("dashed", ""): "-.->",
    ("solid", "stop"): "--x",
    ("dashed", "stop"): "-.-x",
}
# What ends a label or starts a code, Markdown (also at the edge of a word or at the start),
# and the one statement that Mermaid reads even within quotes.
SPECIAL = re.compile(
    r"""["#&<>;`*\\|{}\[\]~]|%%+|\$\$|(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9])|^\d+\.|^[+-]"""
    r"|(?<=direction) (?=TB|BT|TD|LR|RL)"
)


def _entity(text: str) -> str:
    """Write what is not plain text as Mermaid's entity codes."""
    return SPECIAL.sub(lambda m: "".join(f"#{ord(char)};" for char in m[0]), clean(text))


FONTS = "system-ui,-apple-system,'Segoe UI','DejaVu Sans',Helvetica,Arial,sans-serif"
PIXELS = 100.0  # an inch
POINT = 72.0 / PIXELS


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


SUFFIXES = (".svg", ".html", ".mmd", ".txt", ".png", ".pdf")


@dataclass(frozen=True, repr=False)
class Diagram:
    """Boxes connected by arrows, shown as a picture in notebooks and as text elsewhere.

    Parameters
    ----------
    title : str
        Shown above the drawing; may be empty.
    nodes : sequence of DiagramNode
        Ids must be unique. May be empty.
    edges : sequence of DiagramEdge
        Between ids of ``nodes``. Several between the same two are fine, and so are cycles.
    direction : {"LR", "TB"}
        Direction of arrows: left to right, or top to bottom.

    Raises
    ------
    ConfigError
        If ``direction`` is not one of these.
    GraphError
        If ids occur twice, or an edge joins unknown nodes or a node with itself.

    Examples
    --------
    >>> nodes = [DiagramNode("a", "Cells", kind="featureset"), DiagramNode("b", "Head")]
    >>> print(Diagram("", nodes, [DiagramEdge("a", "b", "voltage")]))
    Cells (featureset)
    `-- Head  <- voltage
    """

    title: str
    nodes: Sequence[DiagramNode] = ()
    edges: Sequence[DiagramEdge] = ()
    direction: Literal["LR", "TB"] = "LR"

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        object.__setattr__(self, "edges", tuple(self.edges))
        if self.direction not in ("LR", "TB"):
            raise ConfigError(f"direction must be 'LR' or 'TB', got {self.direction!r}")
        duplicates = [
            name for name, count in Counter(node.id for node in self.nodes).items() if count > 1
        ]
        if duplicates:
            raise GraphError(
                f"node ids must be unique, got more than once: {', '.join(map(repr, duplicates))}"
            )
        known = {node.id for node in self.nodes}
        for edge in self.edges:
            for name in (edge.source, edge.target):
                if name not in known:
                    raise GraphError(
                        f"edge {edge.source!r} -> {edge.target!r} names unknown node {name!r}; "
                        + closest(name, known)
                    )
            if edge.source == edge.target:
                raise GraphError(
                    f"edge connects node {edge.source!r} with itself, which cannot be drawn"
                )

    def to_svg(self) -> str:
        """Draw as one SVG element that needs no network, script or font file."""
        scene = self._scene()
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

    def to_mermaid(self) -> str:
        """Write as a Mermaid flowchart, for pages that render Mermaid.

        A bar across an edge becomes a cross. Every special character of Mermaid, Markdown or HTML
        is written as an entity code, and nodes are named ``n0``, ``n1``, ..., so no label can
        break the source.
        """
        names = {node.id: f"n{i}" for i, node in enumerate(self.nodes)}
        title = clean(self.title)
        front = json.dumps(title, ensure_ascii=False).replace("<", "\\u003c")
        out = ["---", f"title: {front}", "---"] if title else []
        out.append(f"flowchart {self.direction}")
        for node in self.nodes:
            lines = [_entity(node.title) or "#8203;"]  # Mermaid does not accept empty labels
            lines += [_entity(line) for line in (node.caption, *node.lines) if line]
            out.append(f'    {names[node.id]}["{"<br/>".join(lines)}"]:::kind_{node.kind}')
        for edge in self.edges:
            arrow = ARROWS[edge.style, edge.marker]
            label = f'|"{_entity(edge.label)}"|' if clean(edge.label) else ""
            out.append(f"    {names[edge.source]} {arrow}{label} {names[edge.target]}")
        for kind in sorted({node.kind for node in self.nodes}):
            tone = TONES[kind]
            out.append(f"    classDef kind_{kind} fill:{tone.fill},stroke:{tone.line},color:{INK}")
        if dimmed := [names[node.id] for node in self.nodes if node.dimmed]:
            out.append("    classDef dimmed opacity:0.5,stroke-dasharray:5 4")
            out.append(f"    class {','.join(dimmed)} dimmed")
        return "\n".join(out) + "\n"

    def to_text(self) -> str:
        """Write as an indented tree for the terminal.

        A node that several edges reach is written in full once; afterwards its title is followed
        by ``(above)``. Titles that occur twice are distinguished by their id.
        """
        counts = Counter(clean(node.title) for node in self.nodes)
        known, out = {}, defaultdict(list)
        for node in self.nodes:
            name = clean(node.title)
            facts = [fact for fact in (node.caption, "dimmed" if node.dimmed else "") if fact]
            mark = f" #{clean(node.id)}" if counts[name] > 1 or not name else ""
            known[node.id] = node, name + mark + (f" ({', '.join(facts)})" if facts else "")
        for edge in self.edges:
            out[edge.source].append(edge)
        inner = {edge.target for edge in self.edges}
        seen: set[str] = set()
        lines = [clean(self.title)] if clean(self.title) else []
        for root in sorted(self.nodes, key=lambda node: node.id in inner):
            todo = [] if root.id in seen else [(root.id, "", "", "")]
            while todo:
                name, start, indent, note = todo.pop()
                node, title = known[name]
                if name in seen:
                    lines.append(f"{start}{title} (above){note}")
                    continue
                seen.add(name)
                lines.append(f"{start}{title}{note}")
                bar = "|" if out[name] else " "
                lines += [f"{indent}{bar}   {clean(line)}" for line in node.lines]
                for edge in reversed(out[name]):
                    last = edge is out[name][-1]
                    branch = ("`" if last else "+") + (".. " if edge.style == "dashed" else "-- ")
                    deeper = indent + ("    " if last else "|   ")
                    note = f"  <- {edge.notes}" if edge.notes else ""
                    todo.append((edge.target, indent + branch, deeper, note))
        return "\n".join(lines)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write to a file; the suffix decides the format.

        Parameters
        ----------
        path : path-like
            Ends in ``.svg``, ``.html``, ``.mmd``, ``.txt``, ``.png`` or ``.pdf``; the last
            two need matplotlib. An existing file is replaced; the folder must exist.

        Returns
        -------
        Path
            Path of the file.

        Raises
        ------
        ConfigError
            If the suffix is not supported or the folder does not exist.
        """
        target = checked_path(path, SUFFIXES)
        suffix = target.suffix.lower()
        if suffix in (".png", ".pdf"):
            save_figure(to_figure(self._scene()), target)
        else:
            forms = {".mmd": self.to_mermaid, ".txt": self.to_text}
            text = forms.get(suffix, self.to_svg)()
            if suffix == ".html":
                text = (
                    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
                    '<meta name="color-scheme" content="light dark">\n'
                    f"<title>{escape(clean(self.title)) or 'Diagram'}</title>\n</head>\n"
                    f'<body style="margin:1rem">\n{text}</body>\n</html>\n'
                )
            target.write_text(text.rstrip("\n") + "\n", encoding="utf-8", newline="\n")
        return target

    def _scene(self) -> Scene:
        return compose(self.title, self.nodes, self.edges, self.direction)

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x:auto">{self.to_svg()}</div>'

    def __repr__(self) -> str:
        return self.to_text()
