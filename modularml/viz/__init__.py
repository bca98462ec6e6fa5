"""Diagrams, as returned by every ``visualize()``, and plots."""

from __future__ import annotations

from modularml.viz.diagram import Diagram
from modularml.viz.scene import DiagramEdge, DiagramNode

__all__ = ["Diagram", "DiagramEdge", "DiagramNode"]
