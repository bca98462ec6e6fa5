"""Writing a file so that there is always a good one: the old, or the new."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from modularml.errors import MMLError, MMLExistsError
from modularml.io import limits

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Late", "append_file", "check_free", "write_file"]

_MARK = ".mml-part"


@dataclass(frozen=True)
class Late:
    """A part of a file whose size is known before its bytes are; it is written last."""

    size: int
    make: Callable[[], bytes]


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse a path that is taken, before any work is done.

    Raises
    ------
    MMLExistsError
        If there is a file and `overwrite` is false.
    MMLError
        If its folder is not there, or it is no file but a folder or a device.
    """
    try:
        if path.is_dir():
            raise MMLError(limits.NOT_WRITTEN, path, "", "is a folder", "Add a file name")
        if path.exists() and not path.is_file():  # a device, say, that a link leads to
            raise MMLError(limits.NOT_WRITTEN, path, "", "is no regular file", "Choose another")
        if not path.parent.is_dir():
            problem = f"its folder {str(path.parent)!r} does not exist"
            raise MMLError(limits.NOT_WRITTEN, path, "", problem, "Make the folder first")
        if not overwrite and os.path.lexists(path):
            raise _taken(path)
    except MMLExistsError:
        raise
    except OSError as error:
        problem = f"could not be written: {error.strerror}"
        raise MMLError(limits.NOT_WRITTEN, path, "", problem, "Check the path") from error


def write_file(
    path: Path, parts: Iterable[Any], *, overwrite: bool, verify: Callable[[Path], Any]
) -> None:
    """Write a file whole, of bytes and `Late` parts, or leave everything as it was.

    `verify` reads the finished file, before it gets its name, and raises if it is not good. That
    it holds the bytes of `parts` has been seen by then.

    Raises
    ------
    MMLExistsError
        If there is a file and `overwrite` is false.
    MMLError
        If it cannot be written. The file that was there is unchanged, and nothing is left behind.
    """
    check_free(path, overwrite)
    if path.is_symlink():  # the link stays, and leads to what is written
        path = path.resolve()
        check_free(path, overwrite)
    temporary = path.with_name(f".{path.name[:150]}.{secrets.token_hex(8)}{_MARK}")
    try:
        with _turn(path.parent):
            try:
                _fill(temporary, parts)
                verify(temporary)
                _publish(temporary, path, overwrite)
            finally:
                temporary.unlink(missing_ok=True)
    except FileExistsError as error:
        raise _taken(path) from error
    except (OSError, MMLError) as error:
        if isinstance(error, MMLError) and error.path == str(path):
            raise
        problem = f"could not be written: {error}"
        hint = "The file that was there, if any, is unchanged"
        raise MMLError(limits.NOT_WRITTEN, path, "", problem, hint) from error


def append_file(path: Path, data: bytes) -> int:
    """Write bytes behind those of a file, or leave it as it was; return where they begin.

    Raises
    ------
    MMLError
        If they cannot be written.
    """
    try:
        with _turn(path.parent):
            is_new = not path.exists()
            fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            with os.fdopen(fd, "r+b") as file:
                at = file.seek(0, os.SEEK_END)
                try:
                    file.write(data)
                    file.flush()
                    os.fsync(fd)
                    _compare(path, [(at, data)])
                except BaseException:
                    file.truncate(at)
                    raise
            if is_new:
                _sync_folder(path.parent)
    except OSError as error:
        problem = f"could not be written: {error}"
        raise MMLError(limits.NOT_WRITTEN, path, "", problem, "It is as it was") from error
    return at


def _fill(temporary: Path, parts: Iterable[Any]) -> None:
    """Write all parts, and read them back; meanwhile the disk takes what is there."""
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(fd, "wb") as file:
        written: list[tuple[int, Any]] = []
        late: list[tuple[int, Late]] = []
        for part in parts:
            at = file.tell()
            if isinstance(part, Late):
                late.append((at, part))
                file.seek(part.size, os.SEEK_CUR)
                continue
            written.append((at, part))
            file.write(part)
            size = file.tell() - at
            if size >= _LARGE and hasattr(os, "posix_fadvise"):  # the kernel begins to write it
                os.posix_fadvise(fd, at, size, os.POSIX_FADV_DONTNEED)
        file.flush()
        _compare(temporary, written)
        made = [(at, part.make()) for at, part in late]
        for at, data in made:
            file.seek(at)
            file.write(data)
        file.flush()
        os.fsync(fd)
        _compare(temporary, made)


_LARGE = 2**20


def _compare(temporary: Path, written: list[tuple[int, Any]]) -> None:
    with pa.memory_map(str(temporary)) as file:
        found = file.read_buffer()
    for at, part in written:
        wanted = pa.py_buffer(part)
        if not found.slice(at, wanted.size).equals(wanted):
            raise OSError("what was written reads back otherwise")


def _publish(temporary: Path, path: Path, overwrite: bool) -> None:
    """Give the file its name; if that cannot be made to last, the old file gets it back."""
    old = path.with_name(f".{path.name[:150]}.{secrets.token_hex(8)}.old{_MARK}")
    was_there = os.path.lexists(path)
    kept = overwrite and _link(path, old)
    try:
        if overwrite:
            temporary.replace(path)
        elif not _link(temporary, path):
            raise FileExistsError(path)
        try:
            _sync_folder(path.parent)
        except BaseException:
            if kept:
                old.replace(path)
            elif not (overwrite and was_there):
                path.unlink(missing_ok=True)
            raise
    finally:
        _drop(old)


def _drop(path: Path) -> None:
    """Remove a file; giving its room back takes long where it is large, and is done beside."""
    fd = None
    with contextlib.suppress(OSError):
        if fcntl is not None and path.stat().st_size >= _LARGE:
            fd = os.open(path, os.O_RDONLY)
    path.unlink(missing_ok=True)
    if fd is None:
        return
    try:
        threading.Thread(target=os.close, args=(fd,)).start()
    except RuntimeError:  # Python is about to end
        os.close(fd)


def _link(source: Path, target: Path) -> bool:
    """Give a file a second name, by a hard link where there are such; False if it is taken."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        return False
    except (NotImplementedError, PermissionError):  # a file system without hard links
        if os.path.lexists(target) or target.name.endswith(_MARK):
            return False
        source.replace(target)
    return True


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Let one writer into a folder at a time, and sweep what killed ones left there."""
    fd = _lock(folder)
    try:
        if fd is not None:
            for stray in folder.glob(f".*{_MARK}"):
                stray.unlink(missing_ok=True)
        yield
    finally:
        if fd is not None:
            os.close(fd)


def _lock(folder: Path) -> int | None:
    if fcntl is None:  # pragma: no cover - not on Windows
        return None
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError:  # a file system without locks: nobody waits, nobody sweeps
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _sync_folder(folder: Path) -> None:
    if fcntl is None:  # pragma: no cover - not on Windows
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _taken(path: Path) -> MMLExistsError:
    return MMLExistsError(
        limits.EXISTS, path, "", "there is a file already", "Pass overwrite=True, or another name"
    )
