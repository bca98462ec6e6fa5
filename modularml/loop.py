"""Position and early stopping for loops that you write yourself."""

from modularml.loops.patience import Patience
from modularml.loops.stream import Stream

__all__ = ["Patience", "Stream"]
