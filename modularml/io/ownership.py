"""Exclusive access of a run to files and folders."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from modularml.errors import ConfigError

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Owned", "is_temporary", "owned", "temporary_folder"]


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
