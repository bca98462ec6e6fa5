"""Minimal flatbuffers reader to detect compression in Arrow files.

A compressed buffer states the size of its contents, and Arrow allocates it before it checks the
rest: a file of a few bytes could request any amount of memory.
"""

from __future__ import annotations

import struct
from typing import Any

__all__ = ["check_uncompressed"]

_MAGIC = b"ARROW1"
_CONTINUATION = 0xFFFFFFFF
_MESSAGE_HEADER, _BATCH_COMPRESSION, _FOOTER_DICTIONARIES, _FOOTER_BATCHES = 2, 3, 2, 3


def check_uncompressed(data: Any) -> None:
    """Refuse an Arrow file with compressed batches or with dictionaries.

    Parameters
    ----------
    data : memoryview
        The whole file.

    Raises
    ------
    ValueError
        If there is one, or this is not an Arrow file.
    """
    if len(data) < 22 or bytes(data[:6]) != _MAGIC or bytes(data[-6:]) != _MAGIC:
        raise ValueError("not an Arrow file")
    size = _number(data, len(data) - 10, "<i")
    start = len(data) - 10 - size
    if size <= 0 or start < 8:
        raise ValueError("its footer does not fit into the file")
    footer = _Table(data, start + _number(data, start, "<I"))
    if len(footer.blocks(_FOOTER_DICTIONARIES)):
        raise ValueError("it has dictionaries")
    for offset in footer.blocks(_FOOTER_BATCHES):
        if not 8 <= offset < start:
            raise ValueError("a batch lies outside")
        at = offset + (8 if _number(data, offset, "<I") == _CONTINUATION else 4)
        message = _Table(data, at + _number(data, at, "<I"))
        batch = message.table(_MESSAGE_HEADER)
        if batch is None or batch.has(_BATCH_COMPRESSION):
            raise ValueError("it is compressed")


class _Table:
    """A table of a flatbuffer: a list of field offsets."""

    def __init__(self, data: Any, at: int) -> None:
        self.data, self.at = data, at
        self.vtable = at - _number(data, at, "<i")
        self.size = _number(data, self.vtable, "<H")

    def has(self, field: int) -> bool:
        return self._offset(field) != 0

    def table(self, field: int) -> _Table | None:
        offset = self._offset(field)
        if not offset:
            return None
        at = self.at + offset
        return _Table(self.data, at + _number(self.data, at, "<I"))

    def blocks(self, field: int) -> list[int]:
        """Return the first number of each 24-byte block of a vector: an offset in the file."""
        offset = self._offset(field)
        if not offset:
            return []
        at = self.at + offset
        at += _number(self.data, at, "<I")
        count = _number(self.data, at, "<I")
        if count > 4096:
            raise ValueError("it has too many batches")
        return [_number(self.data, at + 4 + 24 * i, "<q") for i in range(count)]

    def _offset(self, field: int) -> int:
        place = 4 + 2 * field
        return 0 if place + 2 > self.size else _number(self.data, self.vtable + place, "<H")


def _number(data: Any, at: int, form: str) -> int:
    if not 0 <= at <= len(data) - 8 and not 0 <= at <= len(data) - struct.calcsize(form):
        raise ValueError("an offset points outside")
    return int(struct.unpack_from(form, data, at)[0])
