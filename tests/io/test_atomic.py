"""A failed or killed save leaves the old file byte for byte, and nothing beside it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import modularml as mm
from modularml.errors import MMLError
from modularml.io import archive, atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing_at(n: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that fails at its n-th call, as a full disk does."""
    calls = [0]

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == n:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    return call


POINTS = [
    *(("open", n) for n in (1, 2, 3)),
    *((name, n) for name in ("fsync", "fdopen") for n in (1, 2)),
    ("link", 1),
]


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize(("function", "call"), POINTS)
def test_errors_at_every_call(
    function: str, call: int, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ls.mml"
    before = mm.Loss("mse").save(path).read_bytes() if overwrite else None
    with monkeypatch.context() as patch:
        patch.setattr(os, function, failing_at(call, getattr(os, function)))
        with pytest.raises(MMLError, match=r"MML-111 a\.ls\.mml.*unchanged"):
            mm.Loss("l1").save(path, overwrite=overwrite)
    assert names(tmp_path) == (["a.ls.mml"] if overwrite else [])
    assert before is None or path.read_bytes() == before
    mm.Loss("l1").save(path, overwrite=overwrite)
    assert mm.Loss.load(path) == mm.Loss("l1")


@pytest.mark.parametrize("call", [1, 2])
def test_an_error_as_the_disk_takes_a_large_file(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mm.Loss("mse").save(tmp_path / "a")
    before = path.read_bytes()
    monkeypatch.setattr(atomic, "_LARGE", 0)  # as for large files
    monkeypatch.setattr(archive, "IN_MEMORY", 0)
    monkeypatch.setattr(atomic, "IN_MEMORY", 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_at(call, os.fsync))
        with pytest.raises(MMLError, match="unchanged"):
            mm.Loss("l1").save(path, overwrite=True)
    assert (path.read_bytes(), names(tmp_path)) == (before, ["a.ls.mml"])
    mm.Loss("l1").save(path, overwrite=True)
    assert mm.Loss.load(path) == mm.Loss("l1")


def test_an_error_at_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mm.Loss("mse").save(tmp_path / "a")
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing_at(1, Path.replace))
        with pytest.raises(MMLError, match="No space left"):
            mm.Loss("l1").save(path, overwrite=True)
    assert (path.read_bytes(), names(tmp_path)) == (before, ["a.ls.mml"])


def test_bytes_that_change_on_the_way_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mm.Loss("mse").save(tmp_path / "a")
    before = path.read_bytes()
    real = atomic._compare

    def bend(temporary: Path, written: Any) -> None:
        data = bytearray(temporary.read_bytes())
        data[len(data) // 2] ^= 1
        temporary.write_bytes(data)
        real(temporary, written)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_compare", bend)
        with pytest.raises(MMLError, match="MML-111"):
            mm.Loss("l1").save(path, overwrite=True)
    assert (path.read_bytes(), names(tmp_path)) == (before, ["a.ls.mml"])


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(fd: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            mm.Loss("mse").save(tmp_path / "a")
    assert names(tmp_path) == []


def test_strays_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".a.ls.mml.0123456789abcdef.mml-part").write_bytes(b"half")
    (tmp_path / "notes.mml-part").write_bytes(b"mine")
    mm.Loss("mse").save(tmp_path / "a")
    assert names(tmp_path) == ["a.ls.mml", "notes.mml-part"]


def test_only_one_of_two_new_files_wins(tmp_path: Path) -> None:
    won, lost = [], []

    def write(name: str) -> None:
        try:
            mm.Loss(name).save(tmp_path / "a")
            won.append(name)
        except FileExistsError:
            lost.append(name)

    writers = [threading.Thread(target=write, args=(n,)) for n in ("mse", "l1", "huber", "bce")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (len(won), len(lost)) == (1, 3)
    assert mm.Loss.load(tmp_path / "a").name == won[0]
