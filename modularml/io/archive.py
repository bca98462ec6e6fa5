"""Archives: members and a manifest in one file, written atomically, read with checks."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import stat
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from modularml._optional import loaded
from modularml.errors import MMLError
from modularml.io import limits
from modularml.io.atomic import Late, write_file
from modularml.io.jsontext import dump_json, load_json
from modularml.io.names import check_members
from modularml.io.zipfile import Entry, Layout, lay_out, read_entries

__all__ = [
    "IDS",
    "MANIFEST",
    "Archive",
    "archive_bytes",
    "contents_of",
    "open_archive",
    "read_archive",
    "write_archive",
]

MANIFEST = "manifest.json"
IDS = "ids.json"
"""Ids of one process, which are not part of an object's content id."""

_IN_MEMORY = 2**20
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
        map_over = executor.map if size > _IN_MEMORY else map
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
    entries = [Entry(name, sum(map(len, p)), _crc(p)) for name, p in views.items()]

    def manifest(found: Mapping[str, str]) -> bytes:
        return dump_json(_manifest(kind, entries, found, facts), sort=True)

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


def _crc(parts: list[memoryview]) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


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
    _check_payloads(manifest, payloads, {e.name: e.crc for e in entries}, path, verify)
    return Archive(path, manifest, payloads)


def contents_of(path: Path, most: int = limits.MAX_FILE) -> memoryview:
    """Return the bytes of a regular file, memory-mapped if large.

    Raises
    ------
    MMLError
        If it does not exist, or has more than `most` bytes.
    """
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise MMLError(limits.NOT_FOUND, path, "", f"cannot be opened: {error}") from error
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        os.close(fd)
        raise MMLError(limits.FOREIGN, path, "", "is no regular file")
    with os.fdopen(fd, "rb") as file:
        if facts.st_size > most:
            raise MMLError(limits.TOO_LARGE, path, "", f"is larger than {(most + 1) >> 30} GiB")
        try:
            if facts.st_size <= _IN_MEMORY:
                return memoryview(file.read())
            return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise MMLError(limits.NOT_FOUND, path, "", f"cannot be read: {error}") from error


def _manifest(
    kind: str, entries: Sequence[Entry], hashes: Mapping[str, str], facts: dict[str, Any]
) -> dict[str, Any]:
    members = {e.name: {"crc32": e.crc, "sha256": hashes[e.name], "size": e.size} for e in entries}
    front = loaded("modularml")
    manifest = {
        "backends": {},
        "classes": [],
        "requires": [],
        **facts,
        "format": limits.FORMAT,
        "kind": kind,
        "library": str(getattr(front, "__version__", "unknown")),
        "members": members,
        "schema": limits.SCHEMA,
    }
    return {**manifest, "content_id": _content_id(manifest)}


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
    _check_schema(manifest, path)
    for key, value in manifest.items():
        if not key.startswith("x-") and not isinstance(value, _KEYS.get(key, ())):
            raise MMLError(limits.FOREIGN, path, MANIFEST, f"{key!r} is unknown or invalid")
    if missing := _KEYS.keys() - manifest.keys():
        raise MMLError(limits.DAMAGED, path, MANIFEST, f"lacks {', '.join(sorted(missing))}")
    if manifest["kind"] not in limits.KINDS:
        problem = f"kind {manifest['kind']!r:.40} is not known"
        raise MMLError(limits.FOREIGN, path, MANIFEST, problem)
    if not all(map(_are_valid_entries, manifest["members"].values())):
        raise MMLError(limits.DAMAGED, path, MANIFEST, "its entries of members are invalid")
    if manifest["content_id"] != _content_id(manifest) or dump_json(manifest, sort=True) != data:
        raise MMLError(limits.DAMAGED, path, MANIFEST, "differs from its content_id", _COPY)
    return manifest


def _check_schema(manifest: Mapping[str, Any], path: Path) -> None:
    schema = manifest.get("schema")
    if type(schema) is not int or schema < 1:
        raise MMLError(limits.DAMAGED, path, MANIFEST, f"schema {schema!r:.40} is not a version")
    if schema > limits.SCHEMA:
        problem = (
            f"it has schema {schema}, written by modularml {manifest.get('library')!s:.20}; this "
            f"version reads up to {limits.SCHEMA}"
        )
        raise MMLError(
            limits.NEWER,
            path,
            "",
            problem,
            "Update the checkout and install it again: git pull, pip install .",
        )


def _are_valid_entries(facts: Any) -> bool:
    return (
        isinstance(facts, dict)
        and facts.keys() == {"crc32", "sha256", "size"}
        and type(facts["size"]) is int
        and type(facts["crc32"]) is int
        and isinstance(facts["sha256"], str)
        and bool(_HASH.fullmatch(facts["sha256"]))
    )


def _check_payloads(
    manifest: Mapping[str, Any],
    payloads: Mapping[str, memoryview],
    crcs: Mapping[str, int],
    path: Path,
    verify: bool,
) -> None:
    entries = manifest["members"]
    if unmatched := entries.keys() ^ payloads.keys():
        name = min(unmatched)
        problem = "is missing" if name in entries else "is not in the manifest"
        raise MMLError(limits.DAMAGED, path, name[:120], problem, _COPY)
    for name, data in payloads.items():
        facts = entries[name]
        if len(data) != facts["size"] or crcs[name] != facts["crc32"]:
            raise MMLError(limits.DAMAGED, path, name, "its size or checksum differs", _COPY)
    hashed = [n for n in payloads if verify or n.endswith(".json")]
    with ThreadPoolExecutor(2) as executor:
        map_over = executor.map if sum(len(payloads[n]) for n in hashed) > _IN_MEMORY else map
        for name, sha in zip(
            hashed, map_over(_sha256, [[payloads[n]] for n in hashed]), strict=True
        ):
            if sha != entries[name]["sha256"]:
                problem = "sha256 differs from the manifest"
                raise MMLError(limits.DAMAGED, path, name, problem, _COPY)


_COPY = "Restore another copy"
