"""A failed or killed save leaves the old file byte for byte, and nothing beside it."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import modularml as mm
from modularml.errors import MMLError
from modularml.io import atomic


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


def test_an_error_at_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mm.Loss("mse").save(tmp_path / "a")
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing_at(1, Path.replace))
        with pytest.raises(MMLError, match="No space left"):
            mm.Loss("l1").save(path, overwrite=True)
    assert (path.read_bytes(), names(tmp_path)) == (before, ["a.ls.mml"])


@pytest.mark.parametrize("room", range(0, 900, 90))
def test_a_disk_that_is_full(room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mm.Loss("mse").save(tmp_path / "a")
    before = path.read_bytes()

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            left = room - self.tell()
            if left <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(memoryview(data)[:left])

    def fdopen(fd: int, mode: str, **kwargs: Any) -> Any:
        if "w" not in mode:
            return open(fd, mode, **kwargs)
        return io.BufferedWriter(Full(fd, "wb"))

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fdopen", fdopen)
        with pytest.raises(MMLError, match="No space left"):
            mm.Loss("l1").save(path, overwrite=True)
    assert (path.read_bytes(), names(tmp_path)) == (before, ["a.ls.mml"])


def test_bytes_that_change_on_the_way_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mm.Loss("mse").save(tmp_path / "a")
    before = path.read_bytes()
    real = atomic._sync_and_compare

    def bend(fd: int, temporary: Path, written: Any) -> None:
        data = bytearray(temporary.read_bytes())
        data[len(data) // 2] ^= 1
        temporary.write_bytes(data)
        real(fd, temporary, written)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_sync_and_compare", bend)
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


@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")
def test_a_killed_writer_leaves_a_good_file(tmp_path: Path) -> None:
    path = mm.Loss("mse").save(tmp_path / "a")
    code = (
        f"import modularml as mm, itertools\nprint('on', flush=True)\n"
        f"for i in itertools.count():\n"
        f"    mm.Loss(['mse', 'l1'][i % 2]).save({str(path)!r}, overwrite=True)"
    )
    for i in range(3):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(0.03 + 0.017 * i)
            child.send_signal(signal.SIGKILL)
        assert mm.Loss.load(path).name in ("mse", "l1")
    mm.Loss("mse").save(path, overwrite=True)
    assert names(tmp_path) == ["a.ls.mml"]


def test_writers_take_turns_and_readers_see_whole_files(tmp_path: Path) -> None:
    path = mm.Loss("mse").save(tmp_path / "a")
    errors: list[BaseException] = []

    def write(name: str) -> None:
        try:
            for _ in range(20):
                mm.Loss(name).save(path, overwrite=True)
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(n,)) for n in ("mse", "l1", "huber", "bce")]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert mm.Loss.load(path).name in ("mse", "l1", "huber", "bce")
    for writer in writers:
        writer.join()
    assert errors == []
    assert names(tmp_path) == ["a.ls.mml"]


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
