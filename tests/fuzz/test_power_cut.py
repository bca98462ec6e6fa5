"""Writers that are killed, disks that are full, and many at one path."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import modularml as mm
from modularml.errors import MMLError
from modularml.io import atomic
from tests.fuzz.share import SEED, dice, times

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")]

KILLER = '''
"""Forks writers, kills each at a random moment or at its n-th call, and loads what is there."""
import json, os, random, signal, sys, time
from pathlib import Path
import torch
import modularml as mm
from modularml.io import archive, atomic
from tests.fuzz.test_mutants import LOADS
from tests.io import things

torch.set_num_threads(1)
atomic._LARGE = atomic.IN_MEMORY = archive.IN_MEMORY = 0  # as large files are written
folder, n, seed = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rng = random.Random(seed)
with mm.ExperimentContext(registration_policy="overwrite").activate():
    made = things.experiment()
    fs = made.ctx.get_node("cells")
    objects = {"exp": made, "fs": fs, "mg": made.model_graph, "ls": mm.Loss("mse")}
    content = {}
    for kind, obj in objects.items():
        path = obj.save(folder / f"a.{kind}.mml")
        content[kind] = {path.read_bytes()}
    fs.split_random({"p": 0.5, "q": 0.5})
    made.run(**things.QUIET)
    objects["ls"] = mm.Loss("l1")
    for kind, obj in objects.items():
        content[kind].add(obj.save(folder / f"b.{kind}.mml").read_bytes())

def doomed(kind, at):
    """Save over and over; with `at`, die at the at-th call that touches the disk."""
    count = [0]
    def watch(event, args):
        if at is not None and event in ("open", "os.rename", "os.link", "os.remove"):
            count[0] += 1
            if count[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    while True:
        objects[kind].save(folder / f"a.{kind}.mml", overwrite=True)

bad = []
for i in range(n):
    kind = rng.choice(list(objects))
    at = rng.randint(1, 12) if i % 5 == 0 else None
    child = os.fork()
    if child == 0:
        try:
            doomed(kind, at)
        finally:
            os._exit(1)
    if at is None:
        time.sleep(rng.random() * 0.03)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    path = folder / f"a.{kind}.mml"
    with mm.ExperimentContext().activate():
        try:
            LOADS[kind].load(path)
            if path.read_bytes() not in content[kind]:
                bad.append([i, kind, "neither the old nor the new"])
        except Exception as error:
            bad.append([i, kind, str(error)])
for kind, obj in objects.items():
    obj.save(folder / f"a.{kind}.mml", overwrite=True)
strays = [p.name for p in folder.iterdir() if ".mml-part" in p.name]
print(json.dumps({"bad": bad, "strays": strays}))
'''


def test_a_killed_writer_never_costs_a_good_file(tmp_path: Path) -> None:
    args = [sys.executable, "-c", KILLER, str(tmp_path), str(times(500)), f"{SEED} kill"]
    run = subprocess.run(args, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout.splitlines()[-1]) == {"bad": [], "strays": []}


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = dice("full")
    path = mm.Loss("mse").save(tmp_path / "a")
    before = path.read_bytes()
    room = [0]

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            left = room[0] - self.tell()
            if left <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(memoryview(data)[:left])

    def fdopen(fd: int, mode: str, **kwargs: Any) -> Any:
        return open(fd, mode, **kwargs) if "w" not in mode else io.BufferedWriter(Full(fd, "wb"))

    monkeypatch.setattr(atomic.os, "fdopen", fdopen)
    for _ in range(times(200)):
        room[0] = rng.randrange(len(before) - 60)
        with pytest.raises(MMLError, match="No space left"):
            mm.Loss("l1").save(path, overwrite=True)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["a.ls.mml"]


WRITER = """
import sys
import modularml as mm
name, path, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
for _ in range(n):
    mm.Loss(name).save(path, overwrite=True)
"""


def test_four_writers_and_a_reader(tmp_path: Path) -> None:
    names = ["mse", "l1", "huber", "bce"]
    path = mm.Loss("mse").save(tmp_path / "a")
    args = [sys.executable, "-c", WRITER]
    writers = [subprocess.Popen([*args, name, str(path), str(times(200))]) for name in names]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        assert mm.Loss.load(path).name in names
        reads += 1
    assert [writer.returncode for writer in writers] == [0, 0, 0, 0]
    assert reads > times(200)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ls.mml"]
