"""Diagrams as values: what ``visualize()`` gives, anywhere in the library."""

from __future__ import annotations

from modularml.diagram.palette import INK, MUTED, PAPER, SERIES, STOP, TONES, Tone
from modularml.diagram.parts import DiagramEdge, DiagramNode
from modularml.diagram.value import Diagram

__all__ = [
    "INK",
    "MUTED",
    "PAPER",
    "SERIES",
    "STOP",
    "TONES",
    "Diagram",
    "DiagramEdge",
    "DiagramNode",
    "Tone",
]
