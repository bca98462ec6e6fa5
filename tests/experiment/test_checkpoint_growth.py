"""Checkpoints of a run hold what is new; what came before lies in a log beside them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import modularml as mm
from modularml.callbacks import Callback
from modularml.errors import MMLError
from modularml.io import append_log as log_module
from modularml.io.append_log import Segment
from modularml.io.values import Packer, Unpacker
from tests.fuzz.stopping import differences, outcome
from tests.worlds import QUIET, arrays, experiment, featureset, graph_of, mlp, mse


class Stops(Callback):
    """Raises an error at the start of an epoch."""

    changes_weights = False

    def __init__(self, at: int = -1) -> None:
        super().__init__("stops")
        self.at = at

    def on_epoch_start(self, *, exec_ctx, **facts):
        if exec_ctx.epoch_idx == self.at:
            raise ValueError("mine")


def world(folder, n_epochs, *, at=-1, save_on="epoch_end", recording="all", **kwargs):
    """Return an experiment that evaluates after each epoch and keeps a checkpoint of it."""
    with mm.ExperimentContext().activate():
        fs = featureset(*arrays(n=300, d=5))
        fs.split_random({"train": 0.7, "val": 0.3}, seed=1)
        graph_of(fs, mlp(5, width=8), "adam", lr=0.01)
        val = mm.Evaluation.from_split("val", split="val", metrics=[mm.EvalLossMetric(loss=mse())])
        kept = mm.Checkpointing(mode="disk", save_on=save_on, **kwargs)
        phase = mm.TrainPhase.from_split(
            "train",
            split="train",
            sampler=mm.SimpleSampler(batch_size=32, shuffle=True, seed=0),
            losses=[mse()],
            n_epochs=n_epochs,
            callbacks=[val, mm.EarlyStopping(patience=99, restore_best=False), Stops(at)],
            checkpointing=kept,
            result_recording=recording,
        )
        made = experiment(seed=0, audit="off")
        made.set_checkpoint_dir(folder)
        made.execution_plan.add_phase(phase)
        return made


def written(folder):
    """Return how many bytes there are in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_bytes_grow_with_what_is_new(tmp_path):
    sizes = []
    for n in (4, 12):
        world(tmp_path / str(n), n).run(**QUIET)
        sizes.append(written(tmp_path / str(n)))
    checkpoints = sorted((tmp_path / "12").rglob("*.ckpt.mml"))
    assert checkpoints[-1].stat().st_size < checkpoints[0].stat().st_size + 500
    assert sizes[1] < 3 * sizes[0]
    assert (sizes[1] - sizes[0]) / 8 < 17_000  # 57 weights, 300 rows' outputs, by the epoch


def test_batches_of_an_epoch_are_written_once(tmp_path):
    world(tmp_path, 2, save_on="batch_end").run(**QUIET)
    (log,) = tmp_path.rglob("*.log.mml")
    whole = world(tmp_path / "whole", 2)
    whole.run(**QUIET)
    (once,) = (tmp_path / "whole").rglob("*.log.mml")
    assert log.stat().st_size < once.stat().st_size + 14 * 5_000


@pytest.mark.parametrize("recording", ["all", "last", "none"])
@pytest.mark.parametrize("kwargs", [{}, {"max_to_keep": 1}, {"name_template": "newest"}], ids=str)
def test_a_resumed_run_has_the_whole_history(tmp_path, kwargs, recording):
    never = world(tmp_path / "never", 6, recording=recording, **kwargs)
    never.run(**QUIET)
    for at in (3, 5):  # stopped, resumed and stopped again
        stopped = world(tmp_path / "it", 6, at=at, recording=recording, **kwargs)
        with pytest.raises(ValueError, match="mine"):
            stopped.run(resume="auto", strict=False, **QUIET)
    resumed = world(tmp_path / "it", 6, recording=recording, **kwargs)
    resumed.run(resume="auto", strict=False, **QUIET)
    assert not differences(outcome(never), outcome(resumed))
    assert len(list((tmp_path / "it").rglob("*.log.mml"))) == 1


def test_history_of_groups_and_earlier_runs(tmp_path):
    made = world(tmp_path, 2)
    group = mm.PhaseGroup("more", [made.execution_plan.flatten()[0]])
    made.run(**QUIET)
    made.run_group(group, **QUIET)
    path = max(tmp_path.rglob("epoch_*.ckpt.mml"), key=lambda path: path.stat().st_mtime_ns)
    facts = mm.Experiment.inspect(path)
    assert [run["label"] for run in facts["runs"]] == ["exp", "more"]
    metrics = made.history[1].results.flatten()["train"].to_pandas().iloc[-1]
    for name in ("train_loss", "val_loss"):
        assert facts["runs"][1]["metrics"][f"train.{name}"] == metrics[name]
    assert facts["log"] in mm.io.render(facts)


def test_what_a_killed_run_left_in_the_log_is_passed_over(tmp_path):
    never = world(tmp_path / "never", 4)
    never.run(**QUIET)
    with pytest.raises(ValueError, match="mine"):
        world(tmp_path / "it", 4, at=2).run(**QUIET)
    (log,) = (tmp_path / "it").rglob("*.log.mml")
    with log.open("ab") as file:
        file.write(b"half a segment")
    resumed = world(tmp_path / "it", 4)
    resumed.run(resume="auto", strict=False, **QUIET)
    assert not differences(outcome(never), outcome(resumed))


def test_a_checkpoint_alone(tmp_path):
    made = world(tmp_path / "it", 3)
    made.run(**QUIET)
    path = made.available_checkpoints["epoch_0001"]
    alone = tmp_path / "alone.ckpt.mml"
    shutil.copy(path, alone)
    made.restore_checkpoint(alone)  # weights are in it
    assert mm.Experiment.inspect(alone)["runs"] == []
    other = world(tmp_path / "other", 3)
    with pytest.raises(MMLError, match=r"history-\w+\.log\.mml'.*\n?.*save_checkpoint\(\)"):
        other.run(resume=alone, **QUIET)
    (log,) = (tmp_path / "it").rglob("*.log.mml")
    shutil.copy(log, tmp_path)
    other.run(resume=alone, **QUIET)
    whole = made.save_checkpoint("whole")
    moved = tmp_path / "elsewhere.ckpt.mml"
    shutil.move(whole, moved)
    assert mm.Experiment.inspect(moved)["log"] is None
    assert len(mm.Experiment.inspect(moved)["runs"]) == 1


def test_logs_that_no_checkpoint_needs_are_removed(tmp_path):
    for _ in range(3):
        world(tmp_path, 2).run(**QUIET)
    logs = {path.name for path in tmp_path.rglob("*.log.mml")}
    needed = {mm.Experiment.inspect(path)["log"] for path in tmp_path.rglob("*.ckpt.mml")}
    assert needed < logs
    assert len(logs) == 2


def spoilt(log, how):
    data = bytearray(log.read_bytes())
    if how == "cut":
        data = data[:-40]
    elif how == "changed":
        data[len(data) // 2] ^= 1
    elif how == "empty":
        data = bytearray()
    log.write_bytes(data)


@pytest.mark.parametrize("how", ["cut", "changed", "empty", "folder"])
def test_a_damaged_log_is_refused(tmp_path, how):
    made = world(tmp_path, 3)
    made.run(**QUIET)
    (log,) = tmp_path.rglob("*.log.mml")
    if how == "folder":
        log.unlink()
        log.mkdir()
    else:
        spoilt(log, how)
    path = made.available_checkpoints["epoch_0002"]
    other = world(tmp_path / "other", 3)
    before = other.model_graph.get_state()
    with pytest.raises(MMLError, match="MML-1"):
        other.run(resume=path, **QUIET)
    assert not differences(before, other.model_graph.get_state())
    assert not other.history


@pytest.mark.parametrize(
    "segment",
    [
        {"file": "../history-000000000000.log.mml"},
        {"file": "history-000000000000.log.mml/.."},
        {"file": "epoch_0000.ckpt.mml"},
        {"at": -1},
        {"at": True},
        {"size": 2**40},
        {"size": 0},
        {"sha256": None},
        {"more": 1},
    ],
    ids=str,
)
def test_a_hostile_pointer_is_refused(tmp_path, segment):
    told = {"file": "history-000000000000.log.mml", "at": 0, "size": 10, "sha256": "0" * 64}
    assert Segment.from_json(told, tmp_path)
    with pytest.raises(MMLError, match="MML-107"):
        Segment.from_json({**told, **segment}, tmp_path)


def test_numbers_in_the_tree_come_back_as_they_were():
    arrays = [np.array([1, -2]), np.float32([[0.1]]), np.array([], dtype="u1"), np.arange(9.0)]
    arrays += [np.array([True]), np.array([np.nan]), np.array(-0.0), np.array([2**63], "u8")]
    packer = Packer(compact=True)
    tree = packer.pack({"all": arrays})
    payloads = {
        name: memoryview(b"".join(d) if isinstance(d, list) else d)
        for name, d in packer.members().items()
    }
    back = Unpacker(payloads, "x").unpack(tree)["all"]
    for old, new in zip(arrays, back, strict=True):
        assert (old.dtype, old.shape, old.tobytes()) == (new.dtype, new.shape, new.tobytes())


def test_a_log_that_was_removed_is_begun_anew(tmp_path):
    class Removes(Callback):
        changes_weights = False

        def on_epoch_start(self, *, exec_ctx, **facts):
            if exec_ctx.epoch_idx == 2:
                for path in tmp_path.rglob("*.mml"):
                    path.unlink()

    made = world(tmp_path, 4)
    made.execution_plan.flatten()[0].add_callback(Removes("removes"))
    made.run(**QUIET)
    facts = mm.Experiment.inspect(made.available_checkpoints["epoch_0003"])
    assert facts["runs"][0]["metrics"]


def test_a_checkpoint_that_could_not_be_written_loses_nothing(tmp_path, monkeypatch):
    never, made = world(tmp_path / "never", 3), world(tmp_path / "it", 3)
    never.run(**QUIET)
    write, phase = log_module.append_file, made.execution_plan.flatten()[0]

    def full(path, data):
        monkeypatch.setattr(log_module, "append_file", write)
        raise MMLError("MML-111", path, "", "the disk is full")

    class Fills(Callback):
        changes_weights = False

        def on_epoch_start(self, *, exec_ctx, **facts):
            if exec_ctx.epoch_idx == 1:
                monkeypatch.setattr(log_module, "append_file", full)

    phase.add_callback(Fills("fills"))
    with pytest.raises(MMLError, match="the disk is full"):
        made.run(**QUIET)
    resumed = world(tmp_path / "it", 3)
    resumed.run(resume="auto", strict=False, **QUIET)
    assert not differences(outcome(never), outcome(resumed))
