"""Files that are written whole or not at all, their contents, and temporary folders."""

from __future__ import annotations

import mmap
import os
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from modularml.errors import ConfigError, MMLError, MMLExistsError
from modularml.io import limits

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def owned(path: str | Path) -> Iterator[None]:
    """Lock a file or folder within a block; released when the process ends.

    A hidden file next to the file, or in the folder, holds the lock and the process id.

    Raises
    ------
    ConfigError
        If another run has locked it; the message names the process.
    """
    path = Path(path).absolute()
    name = ".modularml.lock" if path.is_dir() else f".{path.name[:200]}.lock"
    lock = path / name if path.is_dir() else path.with_name(name)
    fd = _locked(lock, path)
    try:
        yield
    finally:
        if fd is not None:
            lock.unlink(missing_ok=True)
            os.close(fd)


def _locked(lock: Path, path: Path) -> int | None:
    if fcntl is None:  # pragma: no cover - not on Windows
        return None
    while True:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(fd, 20).decode("ascii", "replace").strip() or "of another user"
            os.close(fd)
            whose = "another run in this process" if pid == str(os.getpid()) else f"process {pid}"
            raise ConfigError(
                f"{str(path)!r} is being written by {whose}; use a separate path for each run, or "
                "wait until it is done"
            ) from None
        except OSError:  # a file system without locks
            os.close(fd)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), lock.stat()):
                os.ftruncate(fd, 0)
                os.write(fd, str(os.getpid()).encode())
                return fd
        os.close(fd)  # its last owner has just removed it


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Create a temporary folder for a block, and remove those of killed processes."""
    for stray in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(ConfigError, OSError):
            if time.time() - stray.stat().st_mtime > _YOUNG:
                with owned(stray):
                    shutil.rmtree(stray, ignore_errors=True)
    temporary = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
    with temporary as folder, owned(folder):
        yield Path(folder)


def is_temporary(path: Path) -> bool:
    """Return whether a path is in a folder of `temporary_folder`, which ends with its process."""
    return any(part.startswith(_PREFIX) for part in path.parts)


_YOUNG = 60  # seconds within which a new folder may not be locked yet
_PREFIX = "modularml-run-"


class Owned:
    """Files and folders locked by a run until it ends, each once."""

    def __init__(self) -> None:
        self._stack, self.paths = ExitStack(), set[Path]()

    def add(self, path: str | Path) -> bool:
        """Lock a file or folder; return whether it was not locked before."""
        absolute = Path(path).absolute()
        if absolute in self.paths:
            return False
        self._stack.enter_context(owned(absolute))
        self.paths.add(absolute)
        return True

    def release(self) -> None:
        """Release all locks."""
        self._stack.close()
        self.paths.clear()


_MARK = ".mml-part"


@dataclass(frozen=True)
class Late:
    """A part of a file whose size is known before its bytes; written last."""

    size: int
    make: Callable[[], bytes]


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse a path that exists, before any work is done.

    Raises
    ------
    MMLExistsError
        If the file exists and `overwrite` is false.
    MMLError
        If its folder does not exist, or the path is a folder or device.
    """
    try:
        if path.is_dir():
            raise MMLError(limits.NOT_WRITTEN, path, "", "is a folder", "Add a file name")
        if path.exists() and not path.is_file():  # such as a device behind a link
            raise MMLError(limits.NOT_WRITTEN, path, "", "is no regular file", "Choose another")
        if not path.parent.is_dir():
            problem = f"its folder {str(path.parent)!r} does not exist"
            raise MMLError(limits.NOT_WRITTEN, path, "", problem, "Make the folder first")
        if not overwrite and os.path.lexists(path):
            raise _exists_error(path)
    except MMLExistsError:
        raise
    except OSError as error:
        problem = f"could not be written: {error.strerror}"
        raise MMLError(limits.NOT_WRITTEN, path, "", problem, "Check the path") from error


def write_file(
    path: Path, parts: Iterable[Any], *, overwrite: bool, verify: Callable[[Path], Any]
) -> None:
    """Write a file of bytes and `Late` parts atomically.

    `verify` reads the finished file before it is renamed, and raises if it is not valid. Its bytes
    were already compared with `parts`.

    Raises
    ------
    MMLExistsError
        If the file exists and `overwrite` is false.
    MMLError
        If it cannot be written. An existing file is unchanged, and no temporary file is left.
    """
    check_free(path, overwrite)
    if path.is_symlink():  # keep the link, and write to its target
        path = path.resolve()
        check_free(path, overwrite)
    temporary = path.with_name(f".{path.name[:150]}.{secrets.token_hex(8)}{_MARK}")
    try:
        with _exclusive(path.parent):
            try:
                _fill(temporary, parts)
                verify(temporary)
                _publish(temporary, path, overwrite)
            finally:
                temporary.unlink(missing_ok=True)
    except FileExistsError as error:
        raise _exists_error(path) from error
    except (OSError, MMLError) as error:
        if isinstance(error, MMLError) and error.path == str(path):
            raise
        problem = f"could not be written: {error}"
        hint = "An existing file is unchanged"
        raise MMLError(limits.NOT_WRITTEN, path, "", problem, hint) from error


def append_file(path: Path, data: bytes) -> int:
    """Append bytes to a file atomically; return their offset.

    Raises
    ------
    MMLError
        If they cannot be written. The file is unchanged then.
    """
    try:
        with _exclusive(path.parent):
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
    """Write all parts and read them back, while the kernel flushes them to disk.

    Temporary files are read soon and need not outlive the machine, so they stay in its cache.
    """
    flushes = not is_temporary(temporary)
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
            if flushes and size >= _LARGE and hasattr(os, "posix_fadvise"):  # starts flushing it
                os.posix_fadvise(fd, at, size, os.POSIX_FADV_DONTNEED)
        file.flush()
        _compare(temporary, written)
        late_parts = [(at, part.make()) for at, part in late]
        for at, data in late_parts:
            file.seek(at)
            file.write(data)
        file.flush()
        if flushes:
            os.fsync(fd)
        _compare(temporary, late_parts)


_LARGE = 2**20


def _compare(temporary: Path, written: list[tuple[int, Any]]) -> None:
    with pa.memory_map(str(temporary)) as file:
        on_disk = file.read_buffer()
    for at, part in written:
        expected = pa.py_buffer(part)
        if not on_disk.slice(at, expected.size).equals(expected):
            raise OSError("the bytes read back differ from those written")


def _publish(temporary: Path, path: Path, overwrite: bool) -> None:
    """Rename the file; if the rename cannot be synced, restore the old file."""
    old = path.with_name(f".{path.name[:150]}.{secrets.token_hex(8)}.old{_MARK}")
    existed = os.path.lexists(path)
    linked = overwrite and _link(path, old)
    try:
        if overwrite:
            temporary.replace(path)
        elif not _link(temporary, path):
            raise FileExistsError(path)
        try:
            if not is_temporary(path):
                _sync_folder(path.parent)
        except BaseException:
            if linked:
                old.replace(path)
            elif not (overwrite and existed):
                path.unlink(missing_ok=True)
            raise
    finally:
        fd = None  # freeing a large file takes long, so a thread does it
        with suppress(OSError):
            if fcntl is not None and old.stat().st_size >= _LARGE:
                fd = os.open(old, os.O_RDONLY)
        old.unlink(missing_ok=True)
        if fd is not None:
            try:
                threading.Thread(target=os.close, args=(fd,)).start()
            except RuntimeError:  # Python is exiting
                os.close(fd)


def _link(source: Path, target: Path) -> bool:
    """Hard-link a file, or copy it without hard links; False if the target exists."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        return False
    except (NotImplementedError, PermissionError):  # a file system without hard links
        if os.path.lexists(target) or target.name.endswith(_MARK):
            return False
        source.replace(target)
    return True


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder for one writer, and remove files left by killed writers."""
    fd = None
    if fcntl is not None:  # pragma: no branch - not on Windows
        fd = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except BaseException as error:
            os.close(fd)
            if not isinstance(error, OSError):
                raise
            fd = None  # a file system without locks: no waiting, no clean-up
    try:
        if fd is not None:
            for stray in folder.glob(f".*{_MARK}"):
                stray.unlink(missing_ok=True)
        yield
    finally:
        if fd is not None:
            os.close(fd)


def _sync_folder(folder: Path) -> None:
    if fcntl is None:  # pragma: no cover - not on Windows
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _exists_error(path: Path) -> MMLExistsError:
    return MMLExistsError(
        limits.EXISTS, path, "", "the file already exists", "Pass overwrite=True, or another name"
    )


IN_MEMORY = 2**20


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
            if facts.st_size <= IN_MEMORY:
                return memoryview(file.read())
            return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise MMLError(limits.NOT_FOUND, path, "", f"cannot be read: {error}") from error
