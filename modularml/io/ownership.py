"""Files and folders that one run writes to, and no other meanwhile."""

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

__all__ = ["Owned", "owned", "temporary_folder"]


@contextmanager
def owned(path: str | Path) -> Iterator[None]:
    """Own a file or folder within a block; the system gives it free when the process ends.

    A hidden file beside a file, or in a folder, holds the lock and the number of the process.

    Raises
    ------
    ConfigError
        If another run owns it; its process is named.
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
                f"{str(path)!r} is being written by {whose}; give each run a path of its own, or "
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
    """Make a folder that goes when the block ends; those of processes that were killed go now."""
    for stray in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(ConfigError, OSError):
            if time.time() - stray.stat().st_mtime > _YOUNG:
                with owned(stray):
                    shutil.rmtree(stray, ignore_errors=True)
    made = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
    with made as folder, owned(folder):
        yield Path(folder)


_YOUNG = 60  # seconds within which a folder may have been made and not be owned yet
_PREFIX = "modularml-run-"


class Owned:
    """What a run owns until it ends; nothing is asked for twice."""

    def __init__(self) -> None:
        self._stack, self.paths = ExitStack(), set[Path]()

    def add(self, path: str | Path) -> bool:
        """Own a file or folder from now on; tell whether it was not owned before."""
        found = Path(path).absolute()
        if found in self.paths:
            return False
        self._stack.enter_context(owned(found))
        self.paths.add(found)
        return True

    def release(self) -> None:
        """Give everything free."""
        self._stack.close()
        self.paths.clear()
