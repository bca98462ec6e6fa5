"""Checkpoints of the best epochs."""

from __future__ import annotations

import signal

import numpy as np
import pytest

import modularml as mm
from modularml.callbacks import Callback, MetricCallback
from modularml.errors import ConfigError, MetricNotLoggedError
from tests.worlds import QUIET, arrays, experiment, featureset, graph_of, mlp, mse, train_phase

pytestmark = pytest.mark.filterwarnings("ignore::modularml.strategies.SelectionWarning")
SCORES = [3.0, 1.0, float("nan"), 2.0, 1.0, 0.5, 4.0]


class EndsOfBest(Callback):
    logs = ()

    def __init__(self):
        super().__init__("ends", execution_order=2_000_000)
        self.at = -1

    def on_epoch_end(self, *, exec_ctx, **facts):
        if exec_ctx.epoch_idx == self.at:
            raise ValueError("mine")


def run(saving, name="val_loss", *, scores=SCORES, fails_at=-1, resume=None, folder=None):
    with mm.ExperimentContext().activate():
        graph = graph_of(featureset(*arrays(n=40)), mlp(), "adam", lr=0.01)
        log = MetricCallback(name, lambda *, exec_ctx, **facts: scores[exec_ctx.epoch_idx])
        ends = EndsOfBest()
        ends.at = fails_at
        phase = train_phase(
            graph, n_epochs=len(scores), callbacks=[log, ends], checkpointing=saving
        )
        exp = experiment()
        exp.set_checkpoint_dir(folder) if folder else None
        if fails_at >= 0:
            with pytest.raises(ValueError, match="mine"):
                exp.run_phase(phase, **QUIET)
        else:
            exp.run_phase(phase, resume=resume, **QUIET)
        return graph


def expected(k, scores=SCORES, greater=False):
    """Return the k best epochs, best first, of equal ones the first."""
    values = [(-s if greater else s, i) for i, s in enumerate(scores) if not np.isnan(s)]
    return [i for _, i in sorted(values)[:k]]


@pytest.mark.parametrize("k", [1, 2, 3, 20])
@pytest.mark.parametrize(("name", "mode", "greater"), [
    ("val_loss", None, False), ("val_r2", None, True), ("mine", "max", True),
])  # fmt: skip
def test_the_best_are_kept(tmp_path, k, name, mode, greater):
    options = {"monitor": name, "monitor_mode": mode, "save_top_k": k}
    want = expected(k, greater=greater)
    saving = mm.Checkpointing(**options)
    run(saving, name)
    assert sorted(want) == saving.saved_keys
    assert list(saving.scores) == want
    assert saving.best_key == want[0]
    saving = mm.Checkpointing(mode="disk", **options)
    run(saving, name, folder=tmp_path)
    files = {p.name for p in (tmp_path / "train").glob("*.ckpt.mml")}
    assert files == {f"epoch_{epoch:04d}.ckpt.mml" for epoch in want}
    assert saving.get_path(want[0]) is not None


def test_the_same_after_a_resumption(tmp_path):
    def saving():
        return mm.Checkpointing(mode="disk", monitor="val_loss", save_top_k=2)

    whole = saving()
    graph = run(whole, folder=tmp_path / "a")
    run(saving(), folder=tmp_path / "b", fails_at=4)
    assert {p.name[:10] for p in (tmp_path / "b/train").glob("*.ckpt.mml")} == {
        "epoch_0001", "epoch_0004",
    }  # fmt: skip
    again = saving()
    other = run(again, folder=tmp_path / "b", resume="auto")
    assert again.scores == whole.scores
    assert {p.name for p in (tmp_path / "b/train").glob("*.ckpt.mml")} == {
        p.name for p in (tmp_path / "a/train").glob("*.ckpt.mml")
    }
    assert graph.get_node("net").model.same_weights(other.get_node("net").model)


def test_the_best_weights_can_be_had(tmp_path):
    saving = mm.Checkpointing(monitor="val_loss", save_top_k=1)
    graph = run(saving, scores=[1.0, 0.1, 3.0])
    best = saving.get_state(1)
    graph.set_state({k: v for k, v in best.items() if k != "run"})
    short = run(None, scores=[1.0, 0.1])
    assert graph.get_node("net").model.same_weights(short.get_node("net").model)


def test_folds_monitor_the_rows_held_out_for_it(tmp_path):
    fs = featureset(*arrays(n=60))
    fs.split_random({"train": 0.75, "val": 0.25}, seed=0)
    graph_of(fs, mm.models.torch.SequentialMLP(hidden_dim=4)).build()
    exp = experiment(audit="off")
    val = mm.Evaluation.from_split("val", split="val", metrics=[mm.EvalLossMetric(loss=mse())])
    saving = mm.Checkpointing(monitor="val_loss")
    exp.execution_plan.add_phase(
        mm.TrainPhase.from_split(
            "train", split="train", sampler=mm.SimpleSampler(batch_size=16, seed=0), losses=[mse()],
            n_epochs=3, callbacks=[val], checkpointing=saving,
        )
    )  # fmt: skip
    binding = mm.CVBinding("data", ["train", "val"], stop_size=0.2)
    cv = mm.CrossValidation(bindings=binding, experiment=exp, n_folds=2, stacked=False)
    results = cv.run(show_fold_progress=False, **QUIET)
    assert "stop_val_loss" in results.get_fold(0).get_train_result("train").metric_names()
    assert saving.monitor == "val_loss"


def test_config_and_refusals(tmp_path):
    made = mm.Checkpointing(monitor="val_loss", save_top_k=3, monitor_mode="min")
    assert mm.Checkpointing.from_config(made.get_config()) == made
    for bad in (
        {"save_top_k": 2},
        {"monitor_mode": "max"},
        {"monitor": "val_loss", "max_to_keep": 2},
        {"monitor": "val_loss", "save_on": "batch_end"},
        {"monitor": "val_loss", "save_top_k": 0},
        {"monitor": "val_loss", "monitor_mode": "best"},
    ):
        with pytest.raises(ConfigError):
            mm.Checkpointing(**bad)
    with pytest.raises(ConfigError, match="is not known; pass Checkpointing"):
        run(mm.Checkpointing(monitor="mine"), "mine")
    with pytest.raises(MetricNotLoggedError, match="val_los"):
        run(mm.Checkpointing(monitor="val_los"))
    with pytest.raises(ConfigError, match="save_on"):
        experiment().set_checkpointing(mm.Checkpointing(monitor="val_loss"))


@pytest.mark.parametrize("options", [
    {"monitor": "val_loss", "save_top_k": 2}, {"max_to_keep": 2},
], ids=["best", "newest"])  # fmt: skip
def test_old_files_go_after_a_signal_too(tmp_path, options):
    """The checkpoint of a signal is in the folder above those of the phase."""

    class Signals(Callback):
        logs = ()

        def __init__(self):
            super().__init__("signals")
            self.n_, self.at = 0, -1

        def on_batch_end(self, **facts):
            self.n_ += 1
            if self.n_ == self.at:
                signal.raise_signal(signal.SIGINT)

    scores = [3.0, 1.0, 2.0, 0.9, 0.8, 0.7, 4.0]
    for at, resume in ((11, None), (-1, "auto")):
        with mm.ExperimentContext().activate():
            graph = graph_of(featureset(*arrays(n=40)), mlp(), "adam", lr=0.01)
            log = MetricCallback("val_loss", lambda *, exec_ctx, **_: scores[exec_ctx.epoch_idx])
            signals, saving = Signals(), mm.Checkpointing(mode="disk", **options)
            signals.at = at
            how = {"callbacks": [log, signals], "checkpointing": saving}
            phase = train_phase(graph, n_epochs=7, **how)
            exp = experiment()
            exp.set_checkpoint_dir(tmp_path)
            if at > 0:
                with pytest.raises(KeyboardInterrupt):
                    exp.run_phase(phase, **QUIET)
            else:
                exp.run_phase(phase, resume=resume, **QUIET)
    names = sorted(p.name[:10] for p in (tmp_path / "train").glob("*.ckpt.mml"))
    want = [4, 5] if "monitor" in options else [5, 6]
    assert names == [f"epoch_{epoch:04d}" for epoch in want]
