"""Arrays as safetensors and tables as Arrow files, with checks when read."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors
from safetensors.numpy import load

from modularml._typing import Array
from modularml.errors import MMLError
from modularml.io import limits

_NAMES = dict(
    zip(
        ("u8", "i8", "f8", "f4", "u4", "i4", "f2", "u2", "i2", "i1", "u1", "b1"),
        ("U64", "I64", "F64", "F32", "U32", "I32", "F16", "U16", "I16", "I8", "U8", "BOOL"),
        strict=True,
    )
)
"""safetensors' names of numpy's types, in the order in which it stores them."""

_DTYPES = frozenset(map(np.dtype, _NAMES))


def storable(array: Array) -> Array | None:
    """Return an array in a type of safetensors, or None.

    Returns
    -------
    ndarray, shape of `array`, with one more axis where it is complex
        Dates and durations become int64, complex numbers pairs of floats.
    """
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind in "mM":
        native = native.view("i8")
    if array.dtype.kind == "c":
        real = np.dtype(f"f{native.dtype.itemsize // 2}")
        native = np.ascontiguousarray(native).view(real).reshape(*array.shape, 2)
    if native.dtype not in _DTYPES or native.ndim > limits.MAX_RANK:
        return None
    return np.asarray(native, order="C")


def dump_tensors(arrays: Mapping[str, Array]) -> list[Any]:
    """Return arrays as the parts of a safetensors file, without copies.

    Equal arrays, which are those that `storable` returns, give equal bytes.
    """
    kinds = list(_NAMES)
    order = sorted(arrays, key=lambda name: (kinds.index(arrays[name].dtype.str[1:]), name))
    header, at = {}, 0
    for name in order:
        array, start, at = arrays[name], at, at + arrays[name].nbytes
        kind = _NAMES[array.dtype.str[1:]]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, at]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    parts = [arrays[name].reshape(-1).view("u1") for name in order if arrays[name].size]
    return [len(text).to_bytes(8, "little") + text, *parts]


def load_tensors(data: memoryview, path: Path, member: str) -> dict[str, Array]:
    """Read arrays by name, each with its own memory.

    Raises
    ------
    MMLError
        If the bytes are not what `dump_tensors` writes.
    """
    if int.from_bytes(data[:8], "little") > limits.MAX_TENSOR_HEADER:
        raise MMLError(limits.TOO_LARGE, path, member, "more than 2 MiB of names and shapes")
    try:
        arrays = load(bytes(data))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise MMLError(limits.DAMAGED, path, member, f"no tensors: {error}"[:200]) from None
    if any(a.dtype not in _DTYPES or a.ndim > limits.MAX_RANK for a in arrays.values()):
        raise MMLError(limits.FOREIGN, path, member, "holds a tensor of a type that we never write")
    return {name: a if a.flags.writeable else a.copy() for name, a in arrays.items()}


def dump_table(table: pa.Table) -> list[Any]:
    """Write a table as an uncompressed Arrow file of one batch, in parts.

    Returns
    -------
    list of bytes-like
        Large ones are views of the table's columns: nothing is copied, and of memory-mapped columns
        only the part that is being written is in memory.
    """
    combined, sink = table.combine_chunks().replace_schema_metadata(None), _Parts()
    options = pa.ipc.IpcWriteOptions(compression=None)
    with (
        pa.PythonFile(sink, mode="w") as out,
        pa.ipc.new_file(out, combined.schema, options=options) as w,
    ):
        w.write_table(combined)
    return sink.parts


class _Parts:
    """A file for Arrow to write to that collects buffers without copies."""

    closed = False

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def write(self, data: Any) -> int:
        self.parts.append(data)
        return len(memoryview(data))

    def flush(self) -> None:
        """Do nothing, as nothing is buffered."""

    def close(self) -> None:
        """Do nothing, as parts stay in memory."""


def load_table(data: memoryview, path: Path, member: str) -> pa.Table:
    """Read a table, whose columns are memory-mapped.

    Raises
    ------
    MMLError
        If the bytes are not an Arrow file, compressed, of types we never write, or not valid.
    """
    try:
        check_uncompressed(data)
        reader = pa.ipc.open_file(pa.py_buffer(data), options=_OPTIONS)
        if reader.num_record_batches > 1:
            raise ValueError("more than one batch")
        for field in reader.schema:
            kind, depth = field.type, 0
            while pa.types.is_fixed_size_list(kind):
                kind, depth = kind.value_type, depth + 1
            foreign = (field.metadata or {}).keys() - {
                b"modularml"
            }  # kind, unit and names of elements
            if depth > limits.MAX_NESTING or isinstance(kind, pa.BaseExtensionType) or foreign:
                raise ValueError(f"column {field.name!r:.60} is of a type that we never write")
            plain = (
                pa.types.is_primitive(kind)
                or pa.types.is_string(kind)
                or pa.types.is_binary(kind)
                or pa.types.is_fixed_size_binary(kind)
            )
            if not plain:
                raise ValueError(f"column {field.name!r:.60} is {kind!s:.60}, which we never write")
        table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, ValueError, TypeError, IndexError, OverflowError, OSError) as error:
        raise MMLError(limits.DAMAGED, path, member, f"no table: {error}"[:200]) from None
    return table


def load_members(
    payloads: Mapping[str, memoryview], path: Path
) -> tuple[dict[tuple[str, str], Array], dict[str, pa.Table]]:
    """Read all arrays of a file, by member and name, and all its tables, by member."""
    arrays: dict[tuple[str, str], Array] = {}
    tables = {}
    for member, data in payloads.items():
        if member.endswith(".safetensors"):
            tensors = load_tensors(data, path, member)
            arrays |= {(member, name): array for name, array in tensors.items()}
        elif member.endswith(".arrow"):
            tables[member] = load_table(data, path, member)
    return arrays, tables


_OPTIONS = pa.ipc.IpcReadOptions(ensure_native_endian=False, use_threads=False)


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
