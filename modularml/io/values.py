"""States as trees of plain data, with arrays and tables stored separately."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._typing import Array
from modularml.config import (
    PLAIN,
    Configurable,
    decode,
    decode_items,
    encode,
    find_class,
    tagged,
)
from modularml.errors import ConfigError, MMLError, ModularMLError
from modularml.io import limits
from modularml.io.names import member_stem
from modularml.io.tensors import dump_table, dump_tensors, load_members, storable


def object_state(value: Any) -> Any:
    """Return the state of an object for a file; None without one."""
    for name in ("_file_state", "get_state"):
        if hasattr(value, name):
            return getattr(value, name)()
    return None


def set_object_state(value: Any, state: Any) -> None:
    """Restore the state that `object_state` returned."""
    name = "_set_file_state" if hasattr(value, "_set_file_state") else "set_state"
    getattr(value, name)(state)


class IfPlain:
    """A value that is stored if it is plain data, and as None otherwise.

    Attributes
    ----------
    omitted : bool
        Whether it was omitted when packed, as it was not plain data.
    """

    def __init__(self, value: Any) -> None:
        self.value, self.omitted = value, False


class Packer:
    """Converts values to trees and collects their arrays and tables, member by member.

    Parameters
    ----------
    compact : bool
        Whether small arrays are stored in the tree, and others are named by number.
    """

    def __init__(self, *, compact: bool = False) -> None:
        self.compact = compact
        self._tensors: dict[str, dict[str, Array]] = {}
        self._tables: dict[str, pa.Table] = {}
        self._members: dict[tuple[str, tuple[str, ...]], str] = {}
        self._taken: dict[str, set[str]] = {}

    def members(self) -> dict[str, Any]:
        """Return the collected bytes, by name of member."""
        tables = {name: dump_table(table) for name, table in self._tables.items()}
        return {**tables, **{name: dump_tensors(a) for name, a in self._tensors.items()}}

    def pack(self, value: Any, where: tuple[str, ...] = ()) -> Any:
        """Return a tree for plain data, arrays, tables, `Configurable` objects or containers.

        `where` is its path, for names of members and for messages.

        Raises
        ------
        MMLError
            If a part cannot be stored as data.
        """
        if type(value) in PLAIN:
            return value
        for kinds, packed in _PACKERS:
            if isinstance(value, kinds):
                return packed(self, value, where)
        if isinstance(value, dict | list | tuple):
            inner: Any = {**value} if isinstance(value, dict) else [*value]
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                if type(item) not in PLAIN:
                    inner[key] = self.pack(item, (*where, str(key)))
            return tagged(value, inner, lambda key: self.pack(key, where))
        try:
            return encode(value)
        except ConfigError as error:
            raise _no_data(where, error) from error

    def _scalar(self, value: np.generic, where: tuple[str, ...]) -> Any:
        if value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
            return {"$scalar": value.item(), "dtype": value.dtype.str}
        return {"$element": self._array(np.asarray(value), where)}

    def _array(self, value: Array, where: tuple[str, ...]) -> Any:
        kind, items = value.dtype.kind, value.ravel().tolist() if value.dtype.kind in "UO" else []
        if kind == "U" or (kind == "O" and all(isinstance(item, str) for item in items)):
            return {"$text": items, "dtype": value.dtype.str, "shape": list(value.shape)}
        stored = storable(value)
        if stored is None:
            raise _no_data(where, f"an array of {value.dtype} with {value.ndim} axes")
        if self.compact and stored.size <= _FEW and np.isfinite(stored).all():
            facts = {"dtype": value.dtype.str, "shape": list(stored.shape)}
            if stored.dtype == value.dtype and stored.dtype.kind in "biuf":
                return {"$array": stored.ravel().tolist(), **facts}
        folder = "optim" if "optimizer" in where else "tensors"
        member, name = self._member(folder, where[:1] if self.compact else where, "safetensors")
        arrays, base = self._tensors.setdefault(member, {}), name
        if self.compact:
            name = base = str(len(arrays))
        while name in arrays:
            name = f"{base}~{len(arrays)}"
        arrays[name] = stored
        facts = {"dtype": stored.dtype.str, "shape": list(stored.shape)}
        tree = {"$tensor": name, "in": member, **facts}
        return tree if stored.dtype == value.dtype else {**tree, "as": value.dtype.str}

    def _table(self, value: pa.Table, where: tuple[str, ...]) -> Any:
        member, _ = self._member("tables", where, "arrow")
        if member in self._tables:
            raise _no_data(where, "two tables of one owner")
        self._tables[member] = value
        return {"$table": member, "rows": value.num_rows, "columns": value.column_names}

    def _object(self, value: Configurable, where: tuple[str, ...]) -> Any:
        tree, state = value.encoded(), object_state(value)
        return {**tree, "state": self.pack(state, where)} if state else tree

    def _if_plain(self, marked: IfPlain, where: tuple[str, ...]) -> Any:
        before = {n: dict(arrays) for n, arrays in self._tensors.items()}, dict(self._tables)
        try:
            return self.pack(marked.value, where)
        except MMLError:
            self._tensors, self._tables = before
            marked.omitted = True
            return None

    def _member(self, folder: str, where: tuple[str, ...], suffix: str) -> tuple[str, str]:
        """Return a member named after the owner of a value, and the name within it."""
        start = next((i for i, part in enumerate(where) if part not in _HOLDERS), 0)
        owner, rest = where[: start + 1], where[start + 1 :]
        if rest and rest[0].isdigit():
            owner, rest = where[: start + 2], rest[1:]
        key = (folder, owner)
        if len(self._tensors.get(self._members.get(key, ""), ())) >= _MAX_TENSORS:
            del self._members[key]  # headers are limited: start another member
        if key not in self._members:
            stem = member_stem("_".join(owner[start:]), self._taken.setdefault(folder, set()))
            self._members[key] = f"{folder}/{stem}.{suffix}"
        return self._members[key], ".".join(rest) or "value"


_HOLDERS = frozenset({"featuresets", "model_graph", "nodes"})
"""Parts of paths that do not identify the owner of a value."""

_MAX_TENSORS = 2048
_FEW = 8

_PACKERS: list[tuple[Any, Callable[[Packer, Any, tuple[str, ...]], Any]]] = [
    (IfPlain, Packer._if_plain),
    (np.generic, Packer._scalar),
    (np.ndarray, Packer._array),
    (pa.Table, Packer._table),
    (Configurable, Packer._object),
    (bytes, lambda p, v, w: {"$bytes": base64.b64encode(v).decode("ascii")}),
    (datetime, lambda p, v, w: {"$time": v.isoformat()}),
]


class Unpacker:
    """Converts trees back to values, with arrays and tables from the members of a file.

    Parameters
    ----------
    payloads : mapping of str to memoryview
    path : Path
        For messages.
    """

    def __init__(self, payloads: Mapping[str, memoryview], path: Path) -> None:
        self.path = path
        self.tensors, self.tables = load_members(payloads, path)

    def unpack(self, tree: Any) -> Any:
        """Return the value represented by a tree."""
        if isinstance(tree, dict):
            for tag, read in _READERS.items():
                if tag in tree:
                    return read(self, tree)
            if any(key.startswith("$") and key not in ("$tuple", "$dict") for key in tree):
                return decode(tree)
        return decode_items(tree, self.unpack)

    def _tensor(self, tree: dict[str, Any]) -> Array:
        key = (tree["in"], tree["$tensor"])
        array = self.tensors.get(key)
        if array is None:
            raise MMLError(limits.MISFIT, self.path, f"{key[0]}", f"lacks tensor {key[1]!r:.80}")
        if array.dtype.str != tree["dtype"] or list(array.shape) != tree["shape"]:
            problem = f"tensor {key[1]!r:.80} is not {tree['dtype']} {tree['shape']}"
            raise MMLError(limits.MISFIT, self.path, key[0], problem)
        if "as" not in tree:
            return array
        dtype = np.dtype(tree["as"])
        if dtype.kind not in "mMcbiuf":
            raise ValueError(f"dtype {dtype} is not one that we write")
        if dtype.kind == "c":
            return np.asarray(array.view(dtype.newbyteorder("="))[..., 0].astype(dtype))
        return array.view(dtype) if dtype.kind in "mM" else array.astype(dtype)

    def _table(self, tree: dict[str, Any]) -> pa.Table:
        table = self.tables.get(tree["$table"])
        if table is None:
            raise MMLError(limits.MISFIT, self.path, str(tree["$table"]), "is missing")
        if table.num_rows != tree["rows"] or table.column_names != tree["columns"]:
            problem = "has other rows or columns than announced"
            raise MMLError(limits.MISFIT, self.path, tree["$table"], problem)
        return table

    def _object(self, tree: dict[str, Any]) -> Any:
        made = find_class(tree["$type"]).from_config(tree["params"])
        if "state" in tree:
            set_object_state(made, self.unpack(tree["state"]))
        return made

    def _few(self, tree: dict[str, Any]) -> Array:
        dtype, numbers = np.dtype(tree["dtype"]), tree["$array"]
        if dtype.kind not in "biuf" or not isinstance(numbers, list) or len(numbers) > _FEW:
            raise ValueError("an array in the tree is not one that we write")
        if not all(type(n) in (bool, int, float) for n in numbers):
            raise ValueError("an array in the tree holds no numbers")
        return np.array(numbers, dtype=dtype).reshape(tree["shape"])

    def _text(self, tree: dict[str, Any]) -> Array:
        dtype = np.dtype(tree["dtype"])
        if dtype.kind not in "UO" or not all(isinstance(t, str) for t in tree["$text"]):
            raise ValueError("a text array holds no text")
        if dtype.itemsize * len(tree["$text"]) > _MAX_TEXT:
            raise ValueError("a text array is too large")
        return np.array(tree["$text"], dtype=dtype).reshape(tree["shape"])

    def _scalar(self, tree: dict[str, Any]) -> Any:
        dtype = np.dtype(tree["dtype"])
        if dtype.kind not in "biuf":
            raise ValueError(f"dtype {dtype} is not one that we write")
        return dtype.type(tree["$scalar"])


_MAX_TEXT = 2**28

_READERS: dict[str, Callable[[Unpacker, dict[str, Any]], Any]] = {
    "$tensor": Unpacker._tensor,
    "$array": Unpacker._few,
    "$table": Unpacker._table,
    "$type": Unpacker._object,
    "$text": Unpacker._text,
    "$scalar": Unpacker._scalar,
    "$element": lambda u, t: u.unpack(t["$element"])[()],
    "$bytes": lambda u, t: base64.b64decode(t["$bytes"], validate=True),
    "$time": lambda u, t: datetime.fromisoformat(t["$time"]),
}


def _no_data(where: tuple[str, ...], why: object) -> ModularMLError:
    hint = "Keep numbers, text, arrays and Configurable objects in states"
    return MMLError(limits.NO_PLAIN_DATA, "", " > ".join(where), f"cannot be stored: {why}", hint)
