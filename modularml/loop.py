"""The position in a loop, and when to leave it: for those who write the loop themselves."""

from modularml.loops.patience import Patience
from modularml.loops.stream import Stream

__all__ = ["Patience", "Stream"]
