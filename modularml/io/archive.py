"""Archives: members and a manifest in one file, written atomically, read with checks.

The container is one canonical zip layout, for writing and for validation: every byte that is not
payload follows from the names, sizes and checksums of the members. The reader takes these from the
central directory, rebuilds the layout, and compares: overlaps, gaps, unusual headers, comments and
trailing bytes are thus detected.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial, reduce
from pathlib import Path
from typing import Any

from modularml._optional import loaded
from modularml.errors import MMLError
from modularml.io import limits
from modularml.io.atomic import IN_MEMORY, Late, contents_of, write_file
from modularml.io.jsontext import dump_json, load_json
from modularml.io.names import check_members

MANIFEST = "manifest.json"
IDS = "ids.json"
"""Ids of one process, which are not part of an object's content id."""

_HASH = re.compile(r"[0-9a-f]{64}")
_KEYS = {
    "backends": dict,
    "classes": list,
    "content_id": str,
    "format": str,
    "kind": str,
    "library": str,
    "members": dict,
    "requires": list,
    "schema": int,
}


@dataclass(frozen=True)
class Archive:
    """A file that passed the first six steps of reading: all checks before building.

    Parameters
    ----------
    path : Path
    manifest : dict
    payloads : dict of str to memoryview
        By name; views of the file, which stays open as long as they exist.
    """

    path: Path
    manifest: dict[str, Any]
    payloads: dict[str, memoryview]

    @property
    def kind(self) -> str:
        """Kind of artifact, as in its suffix."""
        return str(self.manifest["kind"])

    def json(self, name: str) -> Any:
        """Read a JSON member.

        Raises
        ------
        MMLError
            If it is missing, or not JSON as we write it.
        """
        if name not in self.payloads:
            raise MMLError(limits.MISFIT, self.path, name, "is missing")
        return load_json(bytes(self.payloads[name]), self.path, name)


def write_archive(
    path: Path,
    kind: str,
    members: Mapping[str, Any],
    *,
    overwrite: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write members (bytes, or lists of bytes) and a manifest to a file, atomically.

    Raises
    ------
    MMLError
        If the file exists, is too large or cannot be written.
    """
    views, size = _checked_views(path, members)
    with ThreadPoolExecutor(2) as executor:  # hashing is most of the work
        map_over = executor.map if size > IN_MEMORY else map
        hashes = zip(views, map_over(_sha256, views.values()), strict=True)
        parts = _parts(kind, views, hashes, dict(facts or {}))
        write_file(path, parts, overwrite=overwrite, verify=partial(open_archive, verify=False))


def archive_bytes(
    path: Path, kind: str, members: Mapping[str, Any], facts: Mapping[str, Any]
) -> bytes:
    """Return the bytes that `write_archive` writes; `path` is for messages.

    Raises
    ------
    MMLError
        If it is too large.
    """
    views, _ = _checked_views(path, members)
    hashes = zip(views, map(_sha256, views.values()), strict=True)
    parts = _parts(kind, views, hashes, dict(facts))
    return b"".join(part.make() if isinstance(part, Late) else part for part in parts)


def _checked_views(
    path: Path, members: Mapping[str, Any]
) -> tuple[dict[str, list[memoryview]], int]:
    """Return views of the bytes of each member, and their total size."""
    check_members(members, path)
    views = {
        name: [memoryview(part).cast("B") for part in (data if isinstance(data, list) else [data])]
        for name, data in members.items()
    }
    sizes = {name: sum(map(len, parts)) for name, parts in views.items()}
    for name, size in sizes.items():
        if name.endswith(".json") and size > limits.MAX_JSON:
            raise MMLError(limits.TOO_LARGE, path, name, "more than 16 MiB of JSON", _ARRAYS)
    if len(views) >= limits.MAX_MEMBERS or sum(sizes.values()) > limits.MAX_FILE - 2**22:
        raise MMLError(limits.TOO_LARGE, path, "", "more than 4 GiB or 4,096 members", _PARTS)
    return views, sum(sizes.values())


def _parts(
    kind: str,
    views: Mapping[str, list[memoryview]],
    hashes: Iterable[tuple[str, str]],
    facts: dict[str, Any],
) -> list[Any]:
    """Return a file in parts; the manifest and its checksum wait for the hashes."""
    entries = []
    for name, chunks in views.items():
        crc = reduce(lambda crc, chunk: zlib.crc32(chunk, crc), chunks, 0)
        entries.append(Entry(name, sum(map(len, chunks)), crc))
    unhashed = {
        "backends": {},
        "classes": [],
        "requires": [],
        **facts,
        "format": limits.FORMAT,
        "kind": kind,
        "library": str(getattr(loaded("modularml"), "__version__", "unknown")),
        "schema": limits.SCHEMA,
    }

    def manifest(found: Mapping[str, str]) -> bytes:
        members = {
            e.name: {"crc32": e.crc, "sha256": found[e.name], "size": e.size} for e in entries
        }
        tree = {**unhashed, "members": members}
        return dump_json({**tree, "content_id": _content_id(tree)}, sort=True)

    size = len(manifest(dict.fromkeys(views, "0" * 64)))

    def layout(crc: int) -> Layout:
        return lay_out([Entry(MANIFEST, size, crc), *entries])

    @cache
    def known() -> tuple[bytes, Layout]:
        data = manifest(dict(hashes))
        return data, layout(zlib.crc32(data))

    plan = layout(0)
    bodies = zip(plan.headers[1:], views.values(), strict=True)
    head = Late(len(plan.headers[0]) + size, lambda: known()[1].headers[0] + known()[0])
    tail = Late(len(plan.tail), lambda: known()[1].tail)
    return [head, *(part for header, parts in bodies for part in (header, *parts)), tail]


def _sha256(parts: Iterable[memoryview]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()


_ARRAYS = "Store large data in FeatureSets or arrays"
_PARTS = "Save its parts separately"


def open_archive(path: Path, *, verify: bool = True) -> Archive:
    """Read a file up to step 6: strict zip, names, limits, manifest, sizes and hashes.

    Parameters
    ----------
    path : Path
    verify : bool
        Whether to verify the hashes of tensors and tables; without, a large file opens at once, but
        damage in its numbers is not detected.

    Raises
    ------
    MMLError
        At the first deviation from the format.
    """
    return read_archive(contents_of(path), path, verify=verify)


def read_archive(data: memoryview, path: Path, *, verify: bool) -> Archive:
    """Read an archive from bytes as `open_archive` does; `path` is for messages."""
    entries, layout = read_entries(data, path)
    check_members([entry.name for entry in entries], path)
    places = zip(entries, layout.starts, strict=True)
    payloads = {entry.name: data[start : start + entry.size] for entry, start in places}
    if next(iter(payloads), None) != MANIFEST:
        raise MMLError(limits.FOREIGN, path, "", "its first member is not manifest.json")
    manifest = _read_manifest(bytes(payloads.pop(MANIFEST)), entries[0].crc, path)
    members, crcs = manifest["members"], {entry.name: entry.crc for entry in entries}
    if unmatched := members.keys() ^ payloads.keys():
        name = min(unmatched)
        problem = "is missing" if name in members else "is not in the manifest"
        raise MMLError(limits.DAMAGED, path, name[:120], problem, _COPY)
    for name, payload in payloads.items():
        if len(payload) != members[name]["size"] or crcs[name] != members[name]["crc32"]:
            raise MMLError(limits.DAMAGED, path, name, "its size or checksum differs", _COPY)
    hashed = {n: [payload] for n, payload in payloads.items() if verify or n.endswith(".json")}
    with ThreadPoolExecutor(2) as executor:
        is_large = sum(len(payload) for (payload,) in hashed.values()) > IN_MEMORY
        hashes = (executor.map if is_large else map)(_sha256, hashed.values())
        for name, sha in zip(hashed, hashes, strict=True):
            if sha != members[name]["sha256"]:
                problem = "sha256 differs from the manifest"
                raise MMLError(limits.DAMAGED, path, name, problem, _COPY)
    return Archive(path, manifest, payloads)


def _content_id(manifest: Mapping[str, Any]) -> str:
    members = manifest["members"]
    hashes = {n: m["sha256"] for n, m in members.items() if n not in (MANIFEST, IDS)}
    described_by = {
        key: manifest[key] for key in ("kind", "schema", "classes", "backends", "requires")
    }
    return hashlib.sha256(dump_json({**described_by, "members": hashes}, sort=True)).hexdigest()


def _read_manifest(data: bytes, crc: int, path: Path) -> dict[str, Any]:
    if zlib.crc32(data) != crc:
        raise MMLError(limits.DAMAGED, path, MANIFEST, "its checksum differs", _COPY)
    manifest = load_json(data, path, MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != limits.FORMAT:
        raise MMLError(limits.FOREIGN, path, MANIFEST, "is of another format")
    schema = manifest.get("schema")
    if type(schema) is not int or schema < 1:
        raise MMLError(limits.DAMAGED, path, MANIFEST, f"schema {schema!r:.40} is not a version")
    if schema > limits.SCHEMA:
        problem = (
            f"it has schema {schema}, written by modularml {manifest.get('library')!s:.20}; this "
            f"version reads up to {limits.SCHEMA}"
        )
        hint = "Update the checkout and install it again: git pull, pip install ."
        raise MMLError(limits.NEWER, path, "", problem, hint)
    for key, value in manifest.items():
        if not key.startswith("x-") and not isinstance(value, _KEYS.get(key, ())):
            raise MMLError(limits.FOREIGN, path, MANIFEST, f"{key!r} is unknown or invalid")
    if missing := _KEYS.keys() - manifest.keys():
        raise MMLError(limits.DAMAGED, path, MANIFEST, f"lacks {', '.join(sorted(missing))}")
    if manifest["kind"] not in limits.KINDS:
        problem = f"kind {manifest['kind']!r:.40} is not known"
        raise MMLError(limits.FOREIGN, path, MANIFEST, problem)
    if not all(
        isinstance(facts, dict)
        and facts.keys() == {"crc32", "sha256", "size"}
        and type(facts["size"]) is int
        and type(facts["crc32"]) is int
        and isinstance(facts["sha256"], str)
        and _HASH.fullmatch(facts["sha256"])
        for facts in manifest["members"].values()
    ):
        raise MMLError(limits.DAMAGED, path, MANIFEST, "its entries of members are invalid")
    if manifest["content_id"] != _content_id(manifest) or dump_json(manifest, sort=True) != data:
        raise MMLError(limits.DAMAGED, path, MANIFEST, "differs from its content_id", _COPY)
    return manifest


_COPY = "Restore another copy"


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
        extra, length = b"", -(at + _LOCAL.size + len(name)) % limits.ALIGNMENT
        length += limits.ALIGNMENT if 0 < length < _PADDING.size else 0
        if length and entry.name.endswith((".safetensors", ".arrow")):  # aligned for memory mapping
            padding = _PADDING.pack(_PADDING_ID, length - 4, limits.ALIGNMENT)
            extra = padding + bytes(length - len(padding))
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
