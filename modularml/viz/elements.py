"""Elements of diagrams: nodes, edges and their text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from modularml.errors import ConfigError, UnknownNameError

__all__ = ["STOP_WORDS", "TONES", "DiagramEdge", "DiagramNode", "Tone", "clean"]

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
