"""Names of members and files, and file suffixes."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from modularml.errors import ConfigError, MMLError, MMLNotFoundError
from modularml.io import limits

_PART = re.compile(r"[A-Za-z0-9._-]{1,80}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,120}")
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(10))}
)
_OURS = re.compile(rf"\.(?:(?:{'|'.join(limits.KINDS)})\.)?mml$")


def check_members(names: Iterable[str], path: object) -> None:
    """Refuse names of members other than plain files in folders.

    Raises
    ------
    MMLError
        If a name has parts that are not allowed, or two are equal on some file system.
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
    """Return a user's name if it is valid for a file.

    Raises
    ------
    MMLError
        If it has characters other than letters, digits and ``. _ = -``, or starts with one of the
        latter.
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
    """Return whether a user's name is valid for a file."""
    return isinstance(name, str) and bool(_LABEL.fullmatch(name)) and _is_plain_label(name)


def file_path(filepath: str | Path, kind: str) -> Path:
    """Return the path with the suffix of its kind: ``name.<kind>.mml``; dots are kept.

    Raises
    ------
    MMLError
        If the path does not name a file, or the name is too long.
    """
    path = _path(filepath)
    stem = _OURS.sub("", path.name)
    is_folder = str(filepath).endswith(("/", os.sep)) or path.name in (".", "..")
    if is_folder or not stem:
        raise MMLError(limits.BAD_NAME, repr(str(filepath)), "", "names no file", "Add a file name")
    name = f"{stem}.{kind}.mml"
    if len(os.fsencode(name)) > _MAX_BYTES:
        problem, hint = f"is too long for a file's name: {name[:40]}...", "Choose a shorter name"
        raise MMLError(limits.BAD_NAME, path.parent, "", problem, hint)
    return path.with_name(name)


_MAX_BYTES = 255


def _path(filepath: str | Path) -> Path:
    """Return a valid path.

    Raises
    ------
    MMLError
        If it is empty, or has invalid characters.
    """
    try:
        path = Path(filepath)
        if not str(filepath) or b"\0" in os.fsencode(path):
            raise ValueError("empty, or with a character of code 0")
    except (TypeError, ValueError) as error:
        problem = f"{filepath!r:.60} is not a path: {error}"
        raise MMLError(limits.BAD_NAME, "", "", problem, "Pass the path of a file") from error
    return path


def find_file(filepath: str | Path, kind: str | None) -> Path:
    """Return the file at a path, with or without its suffix.

    Raises
    ------
    MMLNotFoundError
        If neither exists.
    MMLError
        If it is a folder, or not a valid path.
    """
    path, folders = _path(filepath), []
    kinds = ([kind] if kind else limits.KINDS) if path.name not in ("", "..") else ()
    try:
        for candidate in (path, *(file_path(path, suffix) for suffix in kinds)):
            if candidate.exists() and not candidate.is_dir():
                return candidate
            folders += [candidate] if candidate.is_dir() else []
        near = path.parent.glob("*.mml") if path.parent.is_dir() else ()
        files = sorted(p.name for p in near)[:5]
    except OSError as error:
        problem = f"cannot be looked for: {error.strerror}"
        raise MMLError(limits.NOT_FOUND, path, "", problem, "Check the path") from error
    if folders:
        raise MMLError(limits.FOREIGN, folders[-1], "", "is a folder", "Name a file in it")
    hint = f"That folder has {', '.join(files)}" if files else "Check the folder and the name"
    raise MMLNotFoundError(limits.NOT_FOUND, path, "", "no such file", hint)


def folder_at(path: str | Path, *, create: bool = True) -> Path:
    """Return a folder, created with its parents if missing.

    Raises
    ------
    ConfigError
        If it cannot be created, is not a folder, or does not exist and `create` is false.
    """
    folder = _path(path)
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        is_folder = folder.is_dir()
    except OSError as error:
        problem = f"{str(folder)!r:.200} cannot be a folder: {error.strerror}; choose another"
        raise ConfigError(problem) from error
    if not is_folder:
        raise ConfigError(f"{str(folder)!r} is not a folder; create it, or pass create=True")
    return folder


def inside(folder: Path, name: str) -> Path:
    """Return a path in a folder, and refuse names that lead outside.

    Raises
    ------
    MMLError
        If it is outside the folder.
    """
    path = folder / name
    if path.resolve().parent != folder.resolve():
        raise MMLError(limits.BAD_NAME, path, "", "lies outside its folder", "Remove the link")
    return path


def member_stem(text: str, taken: set[str]) -> str:
    """Return an unused member name made from a text, and mark it as used."""
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
