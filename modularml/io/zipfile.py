"""The container: one canonical zip layout, for writing and for validation.

Every byte that is not payload follows from the names, sizes and checksums of the members. The
reader takes these from the central directory, rebuilds the layout, and compares: overlaps, gaps,
unusual headers, comments and trailing bytes are thus detected.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modularml.errors import MMLError
from modularml.io import limits

__all__ = ["Entry", "Layout", "lay_out", "read_entries"]

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_VERSION, _UNIX = 20, 3 << 8
_DAY = 0x21  # 1980-01-01: a time would make equal objects differ
_REGULAR = 0o100644 << 16
_VERSION_1 = (b"state.pkl", b"artifact.json")
_WAY_OVER = (
    "Its settings and weights are pickles, which are never opened as they could run any code; make "
    "the graph anew. The rows, ids and splits of a FeatureSet need none: 'modularml convert FILE' "
    "or modularml.migrate.convert writes them to a new file"
)
_PADDING = struct.Struct("<HHH")  # id and size of the extra field, then the alignment
_PADDING_ID = 0xD935  # the one that Android's zipalign uses


@dataclass(frozen=True)
class Entry:
    """One member: name, size in bytes and CRC-32."""

    name: str
    size: int
    crc: int


@dataclass(frozen=True)
class Layout:
    """A file layout: headers and offsets of payloads, the end record and the size."""

    headers: list[bytes]
    starts: list[int]
    tail: bytes
    size: int


def lay_out(entries: Sequence[Entry]) -> Layout:
    """Return the layout of a file of members, in this order, without gaps."""
    headers, starts, central, at = [], [], [], 0
    for entry in entries:
        name = entry.name.encode("ascii")
        extra = _extra(entry.name, at + _LOCAL.size + len(name))
        facts = (0, 0, 0, _DAY, entry.crc, entry.size, entry.size, len(name), len(extra))
        header = _LOCAL.pack(b"PK\3\4", _VERSION, *facts) + name + extra
        record = (b"PK\1\2", _UNIX | _VERSION, _VERSION, *facts, 0, 0, 0, _REGULAR, at)
        central.append(_CENTRAL.pack(*record) + name + extra)
        headers.append(header)
        starts.append(at + len(header))
        at = starts[-1] + entry.size
    directory = b"".join(central)
    n = len(entries)
    end = _END.pack(b"PK\5\6", 0, 0, n, n, len(directory), at, 0)
    return Layout(headers, starts, directory + end, at + len(directory) + len(end))


def read_entries(data: Any, path: object) -> tuple[list[Entry], Layout]:
    """Read the members of a file and compare all bytes between them with the layout.

    Parameters
    ----------
    data : memoryview
        The whole file.
    path : object
        For messages.

    Raises
    ------
    MMLError
        If it is not a zip file in our layout.
    """
    count, size, start = _end(data, path)
    entries, at = [], start
    if all(name in bytes(data[start : start + size]) for name in _VERSION_1):
        raise MMLError(limits.FOREIGN, path, "", "this is a file of ModularML 1.0", _WAY_OVER)
    for _ in range(count):
        entry, at = _entry(data, at, start + size, path)
        entries.append(entry)
    expected = lay_out(entries)
    if at != start + size or expected.size != len(data):
        raise MMLError(limits.DAMAGED, path, "", "members overlap, or bytes lie between them")
    for entry, header, payload in zip(entries, expected.headers, expected.starts, strict=True):
        if data[payload - len(header) : payload] != header:
            raise MMLError(limits.DAMAGED, path, entry.name, "its header is not as we write it")
    if data[start:] != expected.tail:
        raise MMLError(limits.DAMAGED, path, "", "its directory is not as we write it")
    return entries, expected


def _extra(name: str, at: int) -> bytes:
    """Return padding that aligns payloads of tensors and tables for memory mapping."""
    if not name.endswith((".safetensors", ".arrow")):
        return b""
    length = -at % limits.ALIGNMENT
    length += limits.ALIGNMENT if 0 < length < _PADDING.size else 0
    if not length:
        return b""
    padding = _PADDING.pack(_PADDING_ID, length - 4, limits.ALIGNMENT)
    return padding + bytes(length - len(padding))


def _end(data: Any, path: object) -> tuple[int, int, int]:
    if len(data) < _END.size or bytes(data[:4]) != b"PK\3\4":
        hint = "Pass a file written by save()"
        raise MMLError(limits.FOREIGN, path, "", "this is no .mml file", hint)
    mark, disk, disk2, here, count, size, start, comment = _END.unpack(data[-_END.size :])
    if mark != b"PK\5\6":
        problem = "it ends too early, has a comment, or bytes were appended"
        raise MMLError(limits.DAMAGED, path, "", problem, "Restore another copy")
    if disk or disk2 or comment or here != count or start + size + _END.size != len(data):
        raise MMLError(limits.DAMAGED, path, "", "its end record is not as we write it")
    if count > limits.MAX_MEMBERS:
        raise MMLError(limits.TOO_LARGE, path, "", f"{count} members; 4,096 are allowed")
    return count, size, start


def _entry(data: Any, at: int, end: int, path: object) -> tuple[Entry, int]:
    if at + _CENTRAL.size > end:
        raise MMLError(limits.DAMAGED, path, "", "its directory ends too early")
    fields = _CENTRAL.unpack(data[at : at + _CENTRAL.size])
    mark, flags, method, crc, packed, size = fields[0], *fields[3:5], *fields[7:10]
    name_length, extra_length = fields[10:12]
    stop = at + _CENTRAL.size + name_length + extra_length
    name = bytes(data[at + _CENTRAL.size : stop - extra_length]).decode("ascii", "replace")
    if mark != b"PK\1\2" or stop > end:
        raise MMLError(limits.DAMAGED, path, "", "its directory is not as we write it")
    if not name.isascii():
        raise MMLError(limits.BAD_NAME, path, repr(name)[:120], "not a name that we write")
    if flags & 1:
        raise MMLError(limits.FOREIGN, path, name, "is encrypted; we never encrypt")
    if method or packed != size:
        raise MMLError(limits.FOREIGN, path, name, "is compressed; we never compress")
    return Entry(name, size, crc), stop
