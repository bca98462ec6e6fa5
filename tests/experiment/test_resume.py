"""Stopping a run and going on with it, held against the same run never stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import modularml as mm
from modularml.callbacks import Callback, CSVLogger
from modularml.errors import ConfigError, MMLError, UnknownNameError
from modularml.experiment.resume import config_hash
from tests.fuzz.stopping import differences, outcome
from tests.worlds import (
    QUIET,
    arrays,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    train_phase,
)

ROOT = Path(__file__).parents[2]


class Ends(Callback):
    """Raises an error, or does something else, after some batches."""

    def __init__(self) -> None:
        super().__init__("ends")
        self.batches_, self.at, self.act = 0, -1, None

    def on_batch_end(self, **facts):
        self.batches_ += 1
        if self.batches_ == self.at:
            self.act()


def fail():
    raise ValueError("mine")


def world(folder, *, save_on="batch_end", n=40, lr=0.02, n_epochs=3, **kwargs):
    """Return an experiment of a training and an evaluation, three batches an epoch."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.4), torch.nn.Linear(8, 1))
    fs = featureset(*arrays(n=n))
    fs.split_random({"train": 0.5, "val": 0.5}, seed=0)
    graph = graph_of(fs, net, "adam", lr=lr)
    loss, ends = mse(), Ends()
    val = mm.Evaluation.from_split("val", split="val", metrics=[mm.EvalLossMetric(loss=loss)])
    stop = mm.EarlyStopping(patience=9, restore_best=True)
    kept = None if save_on is None else mm.Checkpointing(mode="disk", save_on=save_on, **kwargs)
    phase = train_phase(
        graph, [loss], split="train", n_epochs=n_epochs, batch_size=8, shuffle=True,
        callbacks=[val, stop, ends], checkpointing=kept,
    )  # fmt: skip
    exp = experiment(audit="off")
    exp.execution_plan.add_phase(phase).add_phase(eval_phase(graph, split="val"))
    if folder is not None:
        exp.set_checkpoint_dir(folder)
    return exp, ends


def never_stopped(**kwargs):
    with mm.ExperimentContext().activate():
        exp, _ = world(None, **{**kwargs, "save_on": None})
        torch.manual_seed(9)
        exp.run(**QUIET)
        return outcome(exp)


def stopped(folder, at, act=fail, error=ValueError, **kwargs):
    with mm.ExperimentContext().activate():
        exp, ends = world(folder, **kwargs)
        torch.manual_seed(9)
        ends.at, ends.act = at, act
        with pytest.raises(error):
            exp.run(**QUIET)
    return exp


def resumed(folder, resume="auto", **kwargs):
    with mm.ExperimentContext().activate():
        exp, ends = world(folder, **kwargs)
        exp.run(resume=resume, **QUIET)
    return exp, ends


def assert_equal(exp, wanted):
    assert not differences(wanted, outcome(exp))


def test_it_goes_on_in_the_middle_of_an_epoch(tmp_path):
    stopped(tmp_path, 6)
    steps = []
    with mm.ExperimentContext().activate():
        exp, ends = world(tmp_path)
        ends.on_batch_start = lambda *, exec_ctx, **facts: steps.append(
            (exec_ctx.epoch_idx, exec_ctx.batch_idx)
        )
        exp.run(resume="auto", **QUIET)
    assert steps == [(1, 2), (2, 0), (2, 1), (2, 2)]  # five were done
    assert_equal(exp, never_stopped())
    assert exp.last_run.results.get_train_result("train").n_epochs == 3


@pytest.mark.parametrize("hook", ["phase_start", "epoch_start", "batch_start", "epoch_end"])
def test_behind_every_hook(tmp_path, hook):
    stopped(tmp_path, 8, save_on=hook)
    exp, _ = resumed(tmp_path, save_on=hook)
    assert_equal(exp, never_stopped())


def test_without_a_checkpoint_it_begins(tmp_path):
    with mm.ExperimentContext().activate():
        exp, _ = world(tmp_path)
        torch.manual_seed(9)
        exp.run(resume="auto", **QUIET)
        assert_equal(exp, never_stopped())
    with mm.ExperimentContext().activate():
        exp, _ = world(None, save_on=None)
        with pytest.raises(ConfigError, match="set_checkpoint_dir"):
            exp.run(resume="auto", **QUIET)
    assert exp.history == []


def test_what_is_done_is_not_run_again(tmp_path):
    with mm.ExperimentContext().activate():
        exp, _ = world(tmp_path)
        exp.set_checkpointing(mm.Checkpointing(mode="disk", save_on="phase_end"))
        torch.manual_seed(9)
        exp.run(**QUIET)
        wanted = outcome(exp)
    with mm.ExperimentContext().activate():
        exp, _ = world(tmp_path)
        exp.set_checkpointing(mm.Checkpointing(mode="disk", save_on="phase_end"))
        exp.run(resume="auto", **QUIET)
        assert not hasattr(exp.execution_plan.get_phase("train"), "position")
        del wanted["positions"]
        got = outcome(exp)
        got.pop("positions")
        assert not differences(wanted, got)


def test_a_path_a_phase_and_a_group(tmp_path):
    stopped(tmp_path, 6)
    exp, ends = resumed(tmp_path, "epoch_0000_batch_000001")
    assert ends.batches_ == 9
    assert_equal(exp, never_stopped())
    with mm.ExperimentContext().activate():
        exp, _ = world(tmp_path)
        train = exp.execution_plan.get_train_phase("train")
        with pytest.raises(ConfigError, match="is of 'exp', so 'train' cannot"):
            exp.run_phase(train, resume="epoch_0000_batch_000001", **QUIET)
        with pytest.raises(UnknownNameError, match="epoch_0000_batch_000001"):
            exp.run_phase(train, resume="epoch_0000_batch_00001", **QUIET)
        assert exp.history == []
    for kind in ("run_phase", "run_group"):
        folder, ends = tmp_path / kind, []
        for resume, at in ((None, 0), (None, 6), ("auto", 0)):
            with mm.ExperimentContext().activate():
                exp, end = world(folder / ("whole" if resume is None and not at else "cut"))
                own = exp.execution_plan.get_phase("train")
                if kind == "run_group":
                    own = mm.PhaseGroup("own", [own, exp.execution_plan.get_phase("eval")])
                torch.manual_seed(9 if resume is None else 1)
                end.at, end.act = at, fail
                try:
                    getattr(exp, kind)(own, resume=resume, **QUIET)
                    ends.append(outcome(exp))
                except ValueError:
                    assert at
        assert not differences(*ends)


def test_another_config_or_other_rows_are_refused(tmp_path):
    stopped(tmp_path, 5)
    with pytest.raises(ConfigError, match="another config"):
        resumed(tmp_path, lr=0.03)
    with pytest.raises(ConfigError, match="another config"):
        resumed(tmp_path, n_epochs=4)
    with pytest.raises(ConfigError, match="another config"):
        resumed(tmp_path, n=38)  # other splits
    with mm.ExperimentContext().activate():
        exp, _ = world(tmp_path, n_epochs=4)
        exp.run(resume="auto", strict=False, **QUIET)
        assert exp.last_run.results.get_train_result("train").n_epochs == 4
    with mm.ExperimentContext().activate():
        exp, _ = world(tmp_path)
        exp.execution_plan.get_phase("train").callbacks.pop()
        with pytest.raises(ConfigError, match="numbers of inputs and callbacks"):
            exp.run(resume="auto", **QUIET)
        assert exp.history == []
        with pytest.warns(UserWarning, match="skips the states of Ends 'ends'"):
            exp.run(resume="auto", strict=False, **QUIET)
        assert exp.last_run.results.get_train_result("train").n_epochs == 3


def test_a_state_that_is_no_data_is_missed(tmp_path):
    with mm.ExperimentContext().activate():
        exp, ends = world(tmp_path)
        ends.handle_ = object()
        exp.run(**QUIET)
    with pytest.raises(ConfigError, match="not plain data"):
        resumed(tmp_path)
    with mm.ExperimentContext().activate():
        exp, _ = world(tmp_path)
        exp.run(resume="auto", strict=False, **QUIET)
        assert exp.last_run.status == "completed"


def test_a_checkpoint_of_the_user_is_no_run(tmp_path):
    with mm.ExperimentContext().activate():
        exp, _ = world(tmp_path)
        exp.model_graph.build()
        exp.save_checkpoint("mine")
        with pytest.raises(ConfigError, match="was not taken by Checkpointing"):
            exp.run(resume="mine", **QUIET)


def test_a_damaged_newest_is_passed_over(tmp_path):
    stopped(tmp_path, 6)
    newest = tmp_path / "train" / "epoch_0001_batch_000001.ckpt.mml"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match="resumes from an older checkpoint"):
        exp, _ = resumed(tmp_path)
    assert_equal(exp, never_stopped())
    damaged = tmp_path / "train" / "bad.ckpt.mml"
    damaged.write_bytes(data)
    with pytest.raises(MMLError, match="sha256"):
        resumed(tmp_path, damaged)


def test_files_that_stay(tmp_path):
    with mm.ExperimentContext().activate():
        exp, _ = world(tmp_path, save_on="epoch_end", max_to_keep=1, n_epochs=4)
        stop = exp.execution_plan.get_phase("train").callbacks[1]
        values = iter([3.0, 1.0, 2.0, 4.0])
        stop.on_epoch_end = lambda **facts: (
            stop._patience.update(next(values), facts["exec_ctx"].epoch_idx) and None
        )
        exp.run(**QUIET)
        assert sorted(exp.available_checkpoints) == ["epoch_0001", "epoch_0003"]  # best and newest
        weights = exp.model_graph.get_state()["nodes"]
        exp.model_graph.restore_checkpoint(exp.available_checkpoints["epoch_0001"])
        assert differences(weights, exp.model_graph.get_state()["nodes"])
        assert len(exp.history) == 1


def test_names_in_two_folders(tmp_path):
    with mm.ExperimentContext().activate():
        exp, _ = world(tmp_path, save_on="phase_end")
        (tmp_path / "older").mkdir()
        exp.run(**QUIET)
        file = exp.available_checkpoints["phase_end"]
        (tmp_path / "older" / file.name).write_bytes(file.read_bytes())
        assert sorted(exp.available_checkpoints) == ["older/phase_end", "train/phase_end"]
        exp.restore_checkpoint("older/phase_end")


def test_gradients_that_are_put_together_are_waited_for(tmp_path):
    with mm.ExperimentContext().activate():
        exp, _ = world(tmp_path, n_epochs=1)
        exp.execution_plan.get_phase("train").accumulate = 2
        exp.run(**QUIET)
        names = list(exp.available_checkpoints)
    assert names == ["epoch_0000_batch_000001", "epoch_0000_batch_000002"]


def test_lines_of_a_log_come_once(tmp_path):
    for resume, at in ((None, 8), ("auto", 0)):
        with mm.ExperimentContext().activate():
            exp, ends = world(tmp_path, save_on="batch_end", every_n=4)
            exp.execution_plan.get_phase("train").add_callback(CSVLogger(tmp_path / "log.csv"))
            ends.at, ends.act = at, fail
            try:
                exp.run(resume=resume, **QUIET)
            except ValueError:
                assert at
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines] == ["epoch", "0", "1", "2"]


class TestSignals:
    @pytest.fixture(autouse=True)
    def _as_in_a_terminal(self):
        """What a shell starts in the background ignores Ctrl-C."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    @pytest.mark.parametrize(
        ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
    )
    def test_the_batch_is_finished(self, tmp_path, number, error):
        before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        act = lambda: signal.raise_signal(number)  # noqa: E731
        exp = stopped(tmp_path, 5, act, error, save_on="phase_end")
        assert exp.last_run.status == "interrupted"
        assert list(exp.available_checkpoints) == ["interrupted"]
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
        exp, _ = resumed(tmp_path, save_on="phase_end")
        assert_equal(exp, never_stopped())

    def test_the_second_ends_at_once(self, tmp_path):
        seen = []

        def act():
            signal.raise_signal(signal.SIGINT)
            seen.append(1)
            signal.raise_signal(signal.SIGINT)
            seen.append(2)

        exp = stopped(tmp_path, 5, act, KeyboardInterrupt, save_on="phase_end")
        assert seen == [1]
        assert exp.available_checkpoints == {}

    def test_elsewhere_nothing_is_caught(self, tmp_path):
        before, seen = signal.getsignal(signal.SIGTERM), []
        look = lambda: seen.append(signal.getsignal(signal.SIGTERM))  # noqa: E731
        for folder, save_on in ((tmp_path, "epoch_end"), (None, None)):
            with mm.ExperimentContext().activate():
                exp, ends = world(folder, save_on=save_on)
                ends.at, ends.act = 2, look
                if folder is None:
                    exp.run(**QUIET)
                    continue
                thread = threading.Thread(target=exp.run, kwargs=QUIET)
                thread.start()
                thread.join()
        assert seen == [before, before]

    @pytest.mark.slow
    def test_a_process_that_is_terminated(self, tmp_path):
        script = (
            "import sys, time, torch; from tests.experiment.test_resume import world, QUIET\n"
            "exp, ends = world(sys.argv[1], save_on='epoch_end')\n"
            "torch.manual_seed(9); ends.at = 5\n"
            "ends.act = lambda: (print('here', flush=True), time.sleep(60))\n"
            "exp.run(resume='auto', **QUIET)\n"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert child.stdout.readline() == b"here\n"
        time.sleep(0.1)
        child.terminate()  # the sleep is over only when the batch is
        time.sleep(0.5)
        assert child.poll() is None
        child.kill()
        child.wait()
        child.stdout.close()
        script = script.replace("time.sleep(60)", "time.sleep(2)")
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert child.stdout.readline() == b"here\n"
        child.terminate()
        assert child.wait(60) == 143
        child.stdout.close()
        exp, _ = resumed(tmp_path, save_on="epoch_end")
        assert_equal(exp, never_stopped())


def test_the_seed_is_a_part_of_the_configs_hash():
    x, y = arrays(n=20)
    with mm.ExperimentContext().activate():
        graph = graph_of(featureset(x, y), mlp())
        phase = train_phase(graph)
        hashes = [config_hash(experiment(seed=seed), phase) for seed in (1, 1, 2, None)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
