"""Colours that diagrams and plots share, told apart by colour-blind readers too."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["INK", "MUTED", "PAPER", "SERIES", "STOP", "TONES", "Tone"]


class Tone(NamedTuple):
    """Colours of one kind of box: its fill, its border, and small text upon the fill."""

    fill: str
    line: str
    ink: str


INK = "#1B1F24"
PAPER = "#FFFFFF"
MUTED = "#757A82"  # reads on white and on a dark notebook alike
STOP = "#D55E00"

# Most hues after Okabe & Ito 2008, "Color Universal Design", jfly.uni-koeln.de/color
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

SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4B5563")
