"""Seeing what a file makes the interpreter do."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

EVENTS = frozenset(
    {
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "subprocess.Popen",
        "exec",
        "import",
        "pickle.find_class",
    }
    | {"socket.connect", "os.remove", "os.rename", "shutil.rmtree", "ctypes.dlopen"}
)
_watching: list[list[str]] = []


def _watch(event: str, args: Any) -> None:
    if _watching and event in EVENTS:
        told = args[0] if args and event != "exec" else ""
        _watching[-1].append(f"{event} {told}")


sys.addaudithook(_watch)  # it stays for the whole process, so there is only one


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Collect everything that starts programs, runs code, imports or removes."""
    _watching.append([])
    try:
        yield _watching[-1]
    finally:
        _watching.pop()


OURS = frozenset(
    {"modularml", "torch", "numpy", "pandas", "pyarrow", "sklearn", "scipy", "tensorflow", "keras"}
    | {"encodings", "joblib", "narwhals"}
)
"""What the library itself loads when it is first needed."""


def harm(events: list[str]) -> list[str]:
    """Return the events that a file, and not the library, brought about."""
    ours = ("import ", "exec ")
    return [e for e in events if not e.startswith(ours) or _root(e) not in OURS | {""}]


def _root(event: str) -> str:
    return event.partition(" ")[2].split(".")[0]
