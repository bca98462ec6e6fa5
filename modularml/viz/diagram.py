"""Diagrams that can be displayed and saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from modularml.errors import ConfigError, GraphError, closest
from modularml.viz.elements import DiagramEdge, DiagramNode
from modularml.viz.render import page, to_figure, to_svg
from modularml.viz.scene import Scene, compose
from modularml.viz.style import checked_path, save_figure
from modularml.viz.text import listing, to_mermaid

__all__ = ["Diagram"]

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
        _check_ids(self.nodes)
        _check_edges(self.nodes, self.edges)

    def to_svg(self) -> str:
        """Draw as one SVG element that needs no network, script or font file."""
        return to_svg(self._scene())

    def to_mermaid(self) -> str:
        """Write as a Mermaid flowchart, for pages that render Mermaid."""
        return to_mermaid(self.title, self.nodes, self.edges, self.direction)

    def to_text(self) -> str:
        """Write as an indented tree for the terminal."""
        return listing(self.title, self.nodes, self.edges)

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
            forms = {".svg": self.to_svg, ".mmd": self.to_mermaid, ".txt": self.to_text}
            text = page(self._scene()) if suffix == ".html" else forms[suffix]()
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


def _check_ids(nodes: Sequence[DiagramNode]) -> None:
    duplicates = [name for name, count in Counter(node.id for node in nodes).items() if count > 1]
    if duplicates:
        raise GraphError(
            f"node ids must be unique, got more than once: {', '.join(map(repr, duplicates))}"
        )


def _check_edges(nodes: Sequence[DiagramNode], edges: Sequence[DiagramEdge]) -> None:
    known = {node.id for node in nodes}
    for edge in edges:
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
