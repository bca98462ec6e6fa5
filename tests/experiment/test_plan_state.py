"""States of samplers and callbacks go back where they came from, or that is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import modularml as mml
from modularml.callbacks import Callback
from modularml.errors import ConfigError, MMLError
from modularml.models.torch import SequentialMLP

torch = pytest.importorskip("torch")

QUIET = {"show_training_progress": False, "show_sampler_progress": False}


class Counts(Callback):
    def __init__(self, label=None):
        super().__init__(label)
        self.seen_ = 0
        self.asked = 0

    def on_epoch_end(self, **facts):
        self.seen_ += 1

    def get_state(self):
        self.asked += 1
        return super().get_state()


class Stop(Callback):
    def on_batch_start(self, *, exec_ctx, **facts):
        if exec_ctx.epoch_idx == 2:
            raise KeyboardInterrupt


class Unstorable(Callback):
    def get_state(self):
        return {"big": np.zeros(4), "odd": object()}


def world(folder, callbacks, *, labels=("t",), name="e", n=40, opt="adam", **options):
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(n, 4)).astype("f4")
    fs = mml.FeatureSet.from_dict("d", {"x": x, "y": x.sum(1)}, "x", "y")
    fs.add_split(fs.take(range(n), label="train"))
    node = mml.ModelNode("n", SequentialMLP(output_shape=(1,)), fs)
    mml.ModelGraph([node], mml.Optimizer(opt, opt_kwargs={"lr": 1e-3}))
    experiment = mml.Experiment.from_active_context(name, audit="off")
    experiment.set_checkpoint_dir(folder)
    sampler = mml.SimpleSampler(batch_size=8, shuffle=True)
    for label in labels:
        phase = mml.TrainPhase.from_split(
            label,
            split="train",
            sampler=sampler,
            losses=[mml.AppliedLoss(mml.Loss("mse"), on="n", inputs=["outputs", "targets"])],
            n_epochs=3,
            callbacks=callbacks,
            **options,
        )
        experiment.execution_plan.add_phase(phase)
    return experiment, sampler


def in_a_new_context():
    return mml.ExperimentContext().activate()


def saved(folder):
    with in_a_new_context():
        experiment, sampler = world(folder, [Counts("c0")])
        experiment.run(**QUIET)
        experiment.save_checkpoint("a")
        weights = experiment.model_graph.get_state()["nodes"]["n"]["model"]
    return sampler.seed_, weights


def test_into_the_same_plan(tmp_path):
    seed, _ = saved(tmp_path)
    with in_a_new_context():
        counts = Counts("c0")
        experiment, sampler = world(tmp_path, [counts], name="another label")
        experiment.restore_checkpoint("a")
        assert (counts.seen_, sampler.seed_) == (3, seed)


@pytest.mark.parametrize(
    ("labels", "n_callbacks", "named"),
    [
        (("t",), 2, "Counts 'c1'"),
        (("t",), 0, "Counts 'c0'"),
        (("u",), 1, "t"),
        (("t", "u"), 1, "u"),
    ],
)
def test_another_plan_is_refused_and_nothing_changes(labels, n_callbacks, named, tmp_path):
    seed, trained = saved(tmp_path)
    with in_a_new_context():
        counts = [Counts(f"c{i}") for i in range(n_callbacks)]
        experiment, sampler = world(tmp_path, counts, labels=labels)
        experiment.model_graph.build()
        with pytest.raises(MMLError, match=f"another plan: .*{named}"):
            experiment.restore_checkpoint("a")
        assert sampler.seed_ != seed
        assert [c.seen_ for c in counts] == [0] * n_callbacks
        now = experiment.model_graph.get_state()["nodes"]["n"]["model"]
        assert str(now) != str(trained)
        assert experiment.history == []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            experiment.restore_checkpoint("a", strict=False)
        assert str(experiment.model_graph.get_state()["nodes"]["n"]["model"]) == str(trained)


def test_what_fits_is_put_back_without_strict_and_the_rest_is_named(tmp_path):
    seed, _ = saved(tmp_path)
    with in_a_new_context():
        more = [Counts("c1"), Counts("c0")]
        experiment, sampler = world(tmp_path, more)
        experiment.restore_checkpoint("a", strict=False)
        assert [c.seen_ for c in more] == [0, 3]
        assert sampler.seed_ == seed
    with in_a_new_context():
        experiment, sampler = world(tmp_path, [])
        with pytest.warns(UserWarning, match="skips the states of Counts 'c0' of 't'"):
            experiment.restore_checkpoint("a", strict=False)
        assert sampler.seed_ == seed


def test_a_state_that_a_part_refuses(tmp_path):
    class Counts2(Counts):
        def set_state(self, state):
            if state["seen_"] == 3:
                raise ValueError("no")
            super().set_state(state)

    Counts2.__name__ = "Counts"
    saved(tmp_path)
    with in_a_new_context():
        experiment, sampler = world(tmp_path, [Counts2("c0")])
        before = sampler.seed_
        with pytest.raises(MMLError, match="ValueError: no"):
            experiment.restore_checkpoint("a")
        assert sampler.seed_ == before
        with pytest.warns(UserWarning, match="skips the states"):
            experiment.restore_checkpoint("a", strict=False)


def test_a_graph_that_is_on_one_side_only(tmp_path):
    saved(tmp_path)
    with in_a_new_context():
        experiment = mml.Experiment("empty")
        experiment.set_checkpoint_dir(tmp_path)
        with pytest.raises(MMLError, match="rows"):
            experiment.restore_checkpoint("a")


@pytest.mark.parametrize("how", ["run", "run_phase"])
def test_resume_without_strict_goes_on_with_other_callbacks(how, tmp_path):
    kept = mml.Checkpointing(mode="disk", save_on="epoch_end", directory=tmp_path)

    def run(callbacks, **options):
        with in_a_new_context():
            experiment, _ = world(tmp_path, callbacks, checkpointing=kept)
            phase = experiment.execution_plan.get_phase("t")
            if how == "run":
                experiment.run(resume="auto", **QUIET, **options)
            else:
                experiment.execution_plan.clear()
                experiment.run_phase(phase, resume="auto", **QUIET, **options)
            return experiment.last_run.results["t"]

    with pytest.raises(KeyboardInterrupt):
        run([Stop("stop"), Counts("c0")])
    with pytest.raises(ConfigError, match="strict=False"):
        run([Counts("c0")])
    counts = Counts("c0")
    results = run([counts], strict=False)
    assert results.n_epochs == 3
    assert counts.seen_ == 3  # two of which before the stop


def test_each_state_is_asked_for_and_stored_once(tmp_path):
    counts, kept = Counts("c0"), mml.Checkpointing(mode="disk", save_on="epoch_end")
    with in_a_new_context():
        experiment, _ = world(tmp_path, [counts], checkpointing=kept)
        experiment.run(**QUIET)
    assert counts.asked == 3  # a checkpoint an epoch


def test_a_state_that_is_no_plain_data_is_told_of_when_the_run_goes_on(tmp_path):
    kept = mml.Checkpointing(mode="disk", save_on="epoch_end", directory=tmp_path)
    with in_a_new_context():
        experiment, _ = world(tmp_path, [Unstorable("u"), Stop("stop")], checkpointing=kept)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(**QUIET)
    with in_a_new_context():
        experiment, _ = world(tmp_path, [Unstorable("u"), Stop("stop")], checkpointing=kept)
        with pytest.raises(ConfigError, match="lacks the state of a sampler or callback"):
            experiment.run(resume="auto", **QUIET)
        assert not any("big" in str(p) for p in mml.io.inspect(tmp_path / "epoch_0001.ckpt.mml"))


def test_a_history_of_other_rows_is_left_out_without_strict(tmp_path):
    _, trained = saved(tmp_path)
    with in_a_new_context():
        experiment, _ = world(tmp_path, [Counts("c0")], n=30)
        with pytest.raises(MMLError, match=r"rows of \['d'\] differ from those"):
            experiment.restore_checkpoint("a")
        with pytest.warns(UserWarning, match=r"does not restore the history.*'d'"):
            experiment.restore_checkpoint("a", strict=False)
        assert experiment.history == []
        assert str(experiment.model_graph.get_state()["nodes"]["n"]["model"]) == str(trained)


def test_moments_of_another_optimizer_are_refused(tmp_path):
    _, trained = saved(tmp_path)
    with in_a_new_context():
        experiment, _ = world(tmp_path, [Counts("c0")], opt="sgd")
        experiment.model_graph.build()
        with pytest.raises(MMLError, match="of the optimizer Adam, and this is SGD"):
            experiment.restore_checkpoint("a")
        assert str(experiment.model_graph.get_state()["nodes"]["n"]["model"]) != str(trained)
