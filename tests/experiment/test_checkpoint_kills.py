"""Checkpoints whose writing ends at any moment, and logs that several runs went on with."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

import modularml as mm
from modularml.errors import MMLError
from tests.experiment.test_checkpoint_growth import Stops, world
from tests.fuzz.stopping import differences, outcome
from tests.worlds import QUIET

CALLS = [(os, "fsync"), (os, "link"), (Path, "replace"), (os, "open"), (Path, "unlink")]


class Killed(BaseException):
    """Ends a run as a signal would that nobody handles."""


class Counts:
    """Counts calls to the system that write files; raises an error at one of them."""

    def __init__(self, monkeypatch, folder, error=None, at=0):
        self.n, self.folder, self.error, self.at = 0, str(folder), error, at
        for owner, name in CALLS:
            monkeypatch.setattr(owner, name, self.wrapped(getattr(owner, name), name))

    def wrapped(self, function, name):
        def call(*args, **kwargs):
            path = str(args[0])
            if name == "fsync" or (self.folder in path and not path.endswith(".lock")):
                self.n += 1
                if self.n == self.at:
                    raise self.error
            return function(*args, **kwargs)

        return call


@pytest.fixture(scope="module")
def never(tmp_path_factory):
    """Return what a run leads to that is never stopped."""
    made = world(tmp_path_factory.mktemp("never"), 3)
    made.run(**QUIET)
    return outcome(made)


def n_calls(folder, **kwargs):
    """Return how many calls to the system write the checkpoints of a run."""
    with pytest.MonkeyPatch.context() as patch:
        counts = Counts(patch, folder)
        world(folder, 3, **kwargs).run(**QUIET)
    return counts.n


def readable(folder):
    """Return the names of checkpoints in a folder, each of which must be readable."""
    paths = sorted(folder.rglob("*.ckpt.mml"))
    for path in paths:
        facts = mm.Experiment.inspect(path)
        assert facts["log"] is None or facts["runs"], path
    return [path.name for path in paths]


@pytest.mark.parametrize(
    "error", [Killed(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))], ids=["kill", "full"]
)
@pytest.mark.parametrize("kwargs", [{}, {"max_to_keep": 1}], ids=str)
def test_a_run_that_ends_at_any_write_resumes(tmp_path, monkeypatch, never, error, kwargs):
    n, seen = n_calls(tmp_path / "count", **kwargs), set()
    assert n > 15
    for at in range(1, n + 1, 7 if kwargs else 5):
        folder = tmp_path / str(at)
        with monkeypatch.context() as patch:
            Counts(patch, folder, error, at)
            try:
                world(folder, 3, **kwargs).run(**QUIET)
            except (Killed, MMLError, OSError) as raised:
                seen.add(str(raised).partition("No space left")[1])
        names = readable(folder)
        assert not kwargs or len(names) <= 2
        resumed = world(folder, 3, **kwargs)
        resumed.run(resume="auto", **QUIET)
        assert not differences(outcome(resumed), never), at
        assert readable(folder)[-1] == "epoch_0002.ckpt.mml"
        assert not [path for path in folder.rglob("*") if path.name.endswith("part")]
    assert ("No space left" in seen) == isinstance(error, OSError)


def test_a_kill_while_a_segment_is_written(tmp_path, never, monkeypatch):
    """What was appended by halves is passed over, and what follows is appended after it."""
    with pytest.raises(ValueError, match="mine"):
        world(tmp_path, 3, at=2).run(**QUIET)
    (log,) = tmp_path.rglob("*.log.mml")
    size = log.stat().st_size
    for n in (1, 700, 5_000):
        folder = tmp_path / str(n)
        shutil.copytree(tmp_path / "train", folder / "train")
        with (folder / "train" / log.name).open("ab") as file:
            file.write(os.urandom(n))
        resumed = world(folder, 3)
        resumed.run(resume="auto", strict=False, **QUIET)
        assert not differences(outcome(resumed) | {"callbacks": 0}, never | {"callbacks": 0})
        assert (folder / "train" / log.name).stat().st_size > size + n


def test_a_segment_of_another_run(tmp_path):
    for name in ("a", "b"):
        world(tmp_path / name, 2).run(**QUIET)
    (mine,) = (tmp_path / "a").rglob("*.log.mml")
    (other,) = (tmp_path / "b").rglob("*.log.mml")
    shutil.copy(other, mine)
    made = world(tmp_path / "a", 2)
    with pytest.raises(MMLError, match="differs from what was written"):
        made.run(resume=tmp_path / "a" / "train" / "epoch_0001.ckpt.mml", **QUIET)
    assert not made.history
    with pytest.warns(UserWarning, match="starts from the beginning"):
        made.run(resume="auto", **QUIET)


class Another(Stops):
    """Is another callback, so that a run takes another course."""

    def on_epoch_end(self, *, exec_ctx, **facts):
        return mm.callbacks.MetricResult("other", float(exec_ctx.epoch_idx))


def test_runs_that_part_at_an_older_checkpoint(tmp_path):
    """Both append to one log; neither sees what the other has added."""
    first = world(tmp_path / "it", 5)
    first.run(**QUIET)
    train = tmp_path / "it" / "train"
    kept = tmp_path / "kept"
    shutil.copytree(train, kept)
    (log,) = train.glob("*.log.mml")
    second = world(tmp_path / "it", 5)
    phase = second.execution_plan.flatten()[0]
    phase.add_callback(Another("another"))
    second.run(resume=train / "epoch_0001.ckpt.mml", strict=False, **QUIET)
    names = second.history[0].results["train"].metric_names()
    assert "other" in names
    values = second.history[0].results["train"].metrics().where(name="other").values()
    assert values == [2.0, 3.0, 4.0]
    for path in kept.glob("epoch_000[2-4]*"):  # the files of the first run
        shutil.copy(path, train)
    again = world(tmp_path / "it", 5)
    again.run(resume=train / "epoch_0003.ckpt.mml", **QUIET)
    assert not differences(outcome(again), outcome(first))
    assert [path.name for path in train.glob("*.log.mml")] == [log.name]


def test_files_that_are_dropped_and_those_of_the_best_need_only_the_log(tmp_path):
    made = world(tmp_path, 6, monitor="val_loss", save_top_k=2)
    made.run(**QUIET)
    assert len(readable(tmp_path)) == 2
    assert len(list(tmp_path.rglob("*.log.mml"))) == 1
    for path in tmp_path.rglob("*.ckpt.mml"):
        n = int(path.name[6:10]) + 1
        other = world(tmp_path / "other", 6, monitor="val_loss", save_top_k=2)
        shutil.copytree(path.parent, tmp_path / "other" / "train", dirs_exist_ok=True)
        other.run(resume=tmp_path / "other" / "train" / path.name, **QUIET)
        assert len(other.history[0].results["train"].epoch_indices) == 6, n
        assert len(readable(tmp_path / "other")) >= 2
        shutil.rmtree(tmp_path / "other")


def test_a_resumed_run_knows_the_files_of_before(tmp_path):
    never = world(tmp_path / "never", 5)
    never.run(**QUIET)
    for at in (2, 4, -1):
        made = world(tmp_path / "it", 5, at=at)
        try:
            made.run(resume="auto", strict=False, **QUIET)
        except ValueError:
            assert at > 0
    ours, theirs = (e.execution_plan.flatten()[0].checkpointing for e in (made, never))
    assert ours.saved_keys == theirs.saved_keys == [0, 1, 2, 3, 4]
    assert [ours.get_path(key).name for key in range(5)] == [
        theirs.get_path(key).name for key in range(5)
    ]


def test_a_run_of_the_same_experiment_in_the_same_folder(tmp_path):
    """Files are replaced one by one; each of them keeps the log that it needs."""
    world(tmp_path, 4).run(**QUIET)
    with pytest.raises(ValueError, match="mine"):
        world(tmp_path, 4, at=2).run(**QUIET)
    assert len(readable(tmp_path)) == 4
    logs = {mm.Experiment.inspect(path)["log"] for path in tmp_path.rglob("*.ckpt.mml")}
    assert logs == {path.name for path in tmp_path.rglob("*.log.mml")}
    assert len(logs) == 2
