"""Class weights, freezing, schedules, averages, limits and best checkpoints, all at once."""

from __future__ import annotations

import numpy as np
import pytest

import modularml as mm
from modularml.callbacks import EMA, SWA, Callback, GradientNorms, MaxTime
from modularml.phases.group import PhaseGroup
from tests.fuzz.stopping import differences, outcome
from tests.worlds import QUIET, experiment, mlp

pytestmark = pytest.mark.filterwarnings("ignore::modularml.strategies.SelectionWarning")


class EndsTogether(Callback):
    logs = ()

    def __init__(self):
        super().__init__("ends", execution_order=2_000_000)
        self.at, self.n_ = -1, 0

    def on_epoch_end(self, **facts):
        self.n_ += 1
        if self.n_ == self.at:
            raise ValueError("mine")


def model(d, out, seed, backend):
    if backend == "torch":
        return mlp(d=d, out=out, seed=seed)
    from tests.keras_worlds import net

    return net(d, out, seed=seed)


def world(folder=None, *, average="ema", backend="torch", at=-1):
    """Return an experiment of two nodes, of which the second phase freezes the first."""
    rng = np.random.default_rng(0)
    c = rng.choice(3, size=90, p=[0.6, 0.3, 0.1])
    x = (rng.normal(size=(90, 6)) + c[:, None]).astype("f4")
    columns = {f"x{i}": x[:, i] for i in range(6)}
    fs = mm.FeatureSet.from_dict("data", {**columns, "c": c}, list(columns), ["c"])
    fs.split_random({"train": 0.8, "val": 0.2}, seed=0)
    schedule = mm.LRSchedule("cosine", warmup=0.25, every="batch")
    opt = mm.Optimizer("adam", opt_kwargs={"lr": 0.02}, schedule=schedule, clip_norm=1.0)
    enc = mm.ModelNode("enc", model(6, 4, 1, backend), fs)
    net = mm.ModelNode("net", model(4, 3, 2, backend), enc)
    mm.ModelGraph([enc, net], opt)
    name = "cross_entropy" if backend == "torch" else "SparseCategoricalCrossentropy"
    inner = mm.Loss(name, loss_kwargs=None if backend == "torch" else {"from_logits": True})
    loss = mm.AppliedLoss(inner, "net", ["outputs", "targets"], class_weight="balanced")
    exp = experiment(seed=3, audit="off")
    inner_group = PhaseGroup("inner")
    exp.execution_plan.add_group(inner_group)
    for label, freeze in (("all", None), ("head", ["enc"])):
        val = mm.Evaluation.from_split(
            "val", split="val", metrics=[mm.EvalLossMetric(loss=loss)], batch_size=8
        )
        averaged = EMA(0.8) if average == "ema" else SWA(start=0.4)
        ends = EndsTogether()
        ends.at = at if label == "head" else -1
        saving = None
        if folder is not None:
            saving = mm.Checkpointing(mode="disk", monitor="val_loss", save_top_k=2)
        inner_group.add_phase(
            mm.TrainPhase.from_split(
                label, split="train", sampler=mm.SimpleSampler(batch_size=16, shuffle=True),
                losses=[loss], n_epochs=5, accumulate=2, freeze=freeze, limit_batches=4,
                callbacks=[val, averaged, GradientNorms(), MaxTime("1h"), ends],
                checkpointing=saving,
            )
        )  # fmt: skip
    exp.execution_plan.add_phase(mm.EvalPhase.from_split("eval", split="val", losses=[loss]))
    if folder is not None:
        exp.set_checkpoint_dir(folder)
    return exp


def figures(exp):
    inner, scored = exp.last_run.results["inner"], exp.last_run.results["eval"]
    every = {"all": inner["all"], "head": inner["head"], "eval": scored}
    return {label: dict(results.metrics().items()) for label, results in every.items()}


@pytest.mark.parametrize(("average", "backend"), [
    ("ema", "torch"), ("swa", "torch"), ("swa", "tensorflow"),
])  # fmt: skip
def test_killed_and_resumed(tmp_path, average, backend):
    kwargs = {"average": average, "backend": backend}
    with mm.ExperimentContext().activate():
        exp = world(tmp_path, at=4, **kwargs)
        with pytest.raises(ValueError, match="mine"):
            exp.run(**QUIET)
    with mm.ExperimentContext().activate():
        whole = world(**kwargs)
        whole.run(**QUIET)
    with mm.ExperimentContext().activate():
        again = world(tmp_path, **kwargs)
        again.run(resume="auto", **QUIET)
    assert figures(whole) == figures(again)
    a, b = (exp.model_graph.get_state() for exp in (whole, again))
    assert not differences({"graph": a}, {"graph": b})
    results = again.last_run.results["inner"]["head"]
    assert {"val_loss", "grad_norm", "share_of_batches"} <= set(results.metric_names())
    assert not again.model_graph.frozen_nodes


def test_files_and_yaml(tmp_path):
    with mm.ExperimentContext().activate():
        exp = world()
        path, text = exp.save(tmp_path / "e"), exp.execution_plan.to_yaml()
    found = []
    for load in (False, True):
        with mm.ExperimentContext().activate():
            other = mm.Experiment.load(path) if load else world()
            if load:
                plan = PhaseGroup.from_yaml(text)
                assert plan.to_yaml() == text
                phase = plan.get_group("inner").get_train_phase("head")
                assert (phase.freeze, phase.limit_batches) == (["enc"], 4)
                assert phase.losses[0].class_weight == "balanced"
            other.run(**QUIET)
            found.append((figures(other), outcome(other)["graph"]))
    assert found[0][0] == found[1][0]
    assert not differences({"graph": found[0][1]}, {"graph": found[1][1]})


def test_a_sweep_over_them():
    with mm.ExperimentContext().activate():
        exp = world()
        space = {
            "graph.optimizer.schedule.warmup": [0.1, 0.5],
            "losses.cross_entropy_net.class_weight": [None, "balanced"],
        }
        sweep = mm.Sweep(exp, space, objective="val_loss", seed=0)
        frame = sweep.run(**QUIET).to_pandas()
    assert len(frame) == 4
