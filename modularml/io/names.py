"""Names of members and of files: what is allowed, and what suffix a file gets."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from modularml.errors import MMLError, MMLNotFoundError
from modularml.io import limits

__all__ = [
    "check_label",
    "check_members",
    "file_path",
    "find_file",
    "inside",
    "is_label",
    "member_stem",
]

_PART = re.compile(r"[A-Za-z0-9._-]{1,80}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,120}")
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(10))}
)
_OURS = re.compile(rf"\.(?:(?:{'|'.join(limits.KINDS)})\.)?mml$")


def check_members(names: Iterable[str], path: object) -> None:
    """Refuse names of members that could mean anything but a plain file in a folder.

    Raises
    ------
    MMLError
        If a name is not made of allowed parts, or two are the same to some file system.
    """
    seen: set[str] = set()
    for name in names:
        parts = name.split("/")
        if len(parts) > limits.MAX_NAME_DEPTH or not all(map(_is_plain, parts)):
            raise MMLError(limits.BAD_NAME, path, repr(name)[:120], "not a name that we write", _NO)
        folded = unicodedata.normalize("NFC", name).casefold()
        if folded in seen:
            raise MMLError(limits.BAD_NAME, path, name, "comes twice", _NO)
        seen.add(folded)
    for name in seen:
        parents = [name[:i] for i, char in enumerate(name) if char == "/"]
        if seen.intersection(parents):
            raise MMLError(limits.BAD_NAME, path, name, "lies within another file", _NO)


_NO = "Do not trust this file; ask its sender for another copy"


def check_label(name: str, what: str = "checkpoint name") -> str:
    """Return a name that users gave, if it can be a file's.

    Raises
    ------
    MMLError
        If it has other characters than letters, digits and ``. _ = -``, or starts with one of
        those.
    """
    if not is_label(name):
        raise MMLError(
            limits.BAD_NAME,
            "",
            repr(name)[:120],
            f"not a {what}",
            "Use up to 120 letters, digits and . _ = -, a letter or digit first",
        )
    return name


def is_label(name: object) -> bool:
    """Tell whether a name that users gave can be a file's."""
    return isinstance(name, str) and bool(_LABEL.fullmatch(name)) and _is_plain_label(name)


def file_path(filepath: str | Path, kind: str) -> Path:
    """Return the path with the suffix of its kind: ``name.<kind>.mml``; dots in it stay.

    Raises
    ------
    MMLError
        If the path names no file.
    """
    path = Path(filepath)
    if "\0" in str(path) or not _OURS.sub("", path.name):
        raise MMLError(limits.BAD_NAME, repr(str(filepath)), "", "names no file", "Add a file name")
    return path.with_name(f"{_OURS.sub('', path.name)}.{kind}.mml")


def find_file(filepath: str | Path, kind: str | None) -> Path:
    """Return the file at a path, with or without its suffix.

    Raises
    ------
    MMLNotFoundError
        If there is neither.
    """
    path = Path(filepath)
    if "\0" not in str(path):
        kinds = ([kind] if kind else limits.KINDS) if path.name else ()
        for candidate in (path, *(file_path(path, suffix) for suffix in kinds)):
            if candidate.exists():
                return candidate
    there = sorted(p.name for p in path.parent.glob("*.mml"))[:5] if path.parent.is_dir() else []
    hint = f"That folder has {', '.join(there)}" if there else "Check the folder and the name"
    raise MMLNotFoundError(limits.NOT_FOUND, path, "", "no such file", hint)


def inside(folder: Path, name: str) -> Path:
    """Return a path in a folder, whatever the name tries.

    Raises
    ------
    MMLError
        If it would lie elsewhere.
    """
    found = folder / name
    if found.resolve().parent != folder.resolve():
        raise MMLError(limits.BAD_NAME, found, "", "lies outside its folder", "Remove the link")
    return found


def member_stem(text: str, taken: set[str]) -> str:
    """Return a name for a member that shows this text and is not taken; it is taken then."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:60].strip("_") or "part"
    stem = f"{stem}_" if not _is_plain(stem) else stem
    name, n = stem, 1
    while name.casefold() in taken:
        n += 1
        name = f"{stem}-{n}"
    taken.add(name.casefold())
    return name


def _is_plain(part: str) -> bool:
    return bool(_PART.fullmatch(part)) and not part.startswith(".") and _is_plain_label(part)


def _is_plain_label(part: str) -> bool:
    return not part.endswith(".") and part.split(".")[0].casefold() not in _DEVICES
