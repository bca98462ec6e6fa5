"""Diagrams as text: Mermaid source, and a listing for the terminal."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from modularml.viz.elements import TONES, DiagramEdge, DiagramNode, clean
from modularml.viz.style import INK

__all__ = ["listing", "to_mermaid"]

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


def to_mermaid(
    title: str,
    nodes: Sequence[DiagramNode],
    edges: Sequence[DiagramEdge],
    direction: Literal["LR", "TB"],
) -> str:
    """Write a diagram as a Mermaid flowchart; a bar across an edge becomes a cross.

    Every special character of Mermaid, Markdown or HTML is written as an entity code, and nodes are
    named ``n0``, ``n1``, ..., so no label can break the source.
    """
    names = {node.id: f"n{i}" for i, node in enumerate(nodes)}
    front = json.dumps(clean(title), ensure_ascii=False).replace("<", "\\u003c")
    out = ["---", f"title: {front}", "---"] if clean(title) else []
    out.append(f"flowchart {direction}")
    for node in nodes:
        lines = [_entity(node.title) or "#8203;"]  # Mermaid does not accept empty labels
        lines += [_entity(line) for line in (node.caption, *node.lines) if line]
        out.append(f'    {names[node.id]}["{"<br/>".join(lines)}"]:::kind_{node.kind}')
    for edge in edges:
        arrow = ARROWS[edge.style, edge.marker]
        label = f'|"{_entity(edge.label)}"|' if clean(edge.label) else ""
        out.append(f"    {names[edge.source]} {arrow}{label} {names[edge.target]}")
    for kind in sorted({node.kind for node in nodes}):
        tone = TONES[kind]
        out.append(f"    classDef kind_{kind} fill:{tone.fill},stroke:{tone.line},color:{INK}")
    if dimmed := [names[node.id] for node in nodes if node.dimmed]:
        out.append("    classDef dimmed opacity:0.5,stroke-dasharray:5 4")
        out.append(f"    class {','.join(dimmed)} dimmed")
    return "\n".join(out) + "\n"


def _entity(text: str) -> str:
    """Write what is not plain text as Mermaid's entity codes."""
    return SPECIAL.sub(lambda m: "".join(f"#{ord(char)};" for char in m[0]), clean(text))


def listing(title: str, nodes: Sequence[DiagramNode], edges: Sequence[DiagramEdge]) -> str:
    """Write a diagram as an indented tree in plain characters.

    A node that several edges reach is written in full once; afterwards its
    title is followed by ``(above)``. Titles that occur twice are distinguished by their id.
    """
    counts = Counter(clean(node.title) for node in nodes)
    known = {node.id: (node, _name(node, counts)) for node in nodes}
    out = defaultdict(list)
    for edge in edges:
        out[edge.source].append(edge)
    inner = {edge.target for edge in edges}
    seen: set[str] = set()
    lines = [clean(title)] if clean(title) else []
    for node in sorted(nodes, key=lambda node: node.id in inner):
        if node.id not in seen:
            lines += _tree(node.id, known, out, seen)
    return "\n".join(lines)


def _name(node: DiagramNode, counts: Mapping[str, int]) -> str:
    """Return a one-line title of a node, with its kind and, if needed, its id."""
    title = clean(node.title)
    facts = ", ".join(fact for fact in (node.caption, "dimmed" if node.dimmed else "") if fact)
    mark = f" #{clean(node.id)}" if counts[title] > 1 or not title else ""
    return title + mark + (f" ({facts})" if facts else "")


def _tree(
    root: str,
    known: Mapping[str, tuple[DiagramNode, str]],
    out: Mapping[str, Sequence[DiagramEdge]],
    seen: set[str],
) -> Iterator[str]:
    """Yield the lines of a tree from a root, each node once."""
    todo = [(root, "", "", "")]
    while todo:
        name, start, indent, note = todo.pop()
        node, title = known[name]
        if name in seen:
            yield f"{start}{title} (above){note}"
            continue
        seen.add(name)
        yield f"{start}{title}{note}"
        edges = out.get(name, ())
        yield from (f"{indent}{'|' if edges else ' '}   {clean(line)}" for line in node.lines)
        for edge in reversed(edges):
            last = edge is edges[-1]
            branch = ("`" if last else "+") + (".. " if edge.style == "dashed" else "-- ")
            deeper = indent + ("    " if last else "|   ")
            note = f"  <- {edge.notes}" if edge.notes else ""
            todo.append((edge.target, indent + branch, deeper, note))
