"""The position in a loop, and when to leave it: for those who write the loop themselves."""

from modularml.loop.patience import Patience
from modularml.loop.stream import Stream

__all__ = ["Patience", "Stream"]
