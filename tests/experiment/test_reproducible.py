"""Seeds, switches, previews and the state of a phase, held against runs without them."""

import os
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import SGDRegressor
from torch import nn

import modularml as mm
from modularml.callbacks import Callback
from modularml.engine.run_state import phase_state, set_phase_state
from modularml.errors import ConfigError
from modularml.experiment import SeedWarning
from modularml.models.torch import SequentialMLP
from tests.training.test_optimizer import assert_same_state
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    bindings,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    train_phase,
    weights,
)


def noisy():
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.4), nn.Linear(8, 1))


class Draws(Callback):
    def on_epoch_end(self, **facts):
        return [random.random(), np.random.rand(), torch.rand(1).item()]  # noqa: NPY002


def script(seed, runs=2):
    exp = mm.Experiment("mine", registration_policy="error", seed=seed)
    net = noisy()
    graph = graph_of(featureset(*arrays(n=30)), net, "adam", lr=0.02)
    sampler = mm.SimpleSampler(batch_size=8, shuffle=True)  # no seed of its own
    phase = mm.TrainPhase(
        "t", input_sources=bindings(graph, sampler), losses=[mse()], callbacks=[Draws()]
    )
    said = [exp.run_phase(phase, **QUIET).callbacks().one().payload for _ in range(runs)]
    return weights(net), said


class TestSeed:
    def test_the_same_script_gives_the_same_bits(self):
        first, said = script(3)
        torch.rand(7), random.random(), np.random.rand()  # noqa: NPY002
        second, again = script(3)
        assert_equal_weights(first, second)
        assert said == again
        assert said[0] != said[1]
        other, _ = script(4)
        assert not torch.equal(other["0.weight"], first["0.weight"])

    def test_streams_are_apart(self):
        _, ((a, b, c), _) = script(3)
        assert len({a, b, c}) == 3

    def test_without_a_seed_nothing_is_seeded(self):
        graph = graph_of(featureset(*arrays(n=30)), mlp(), "adam", lr=0.02)
        exp = experiment()
        before = random.getstate(), torch.get_rng_state()
        exp.run_phase(train_phase(graph, shuffle=True), **QUIET)
        assert random.getstate() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])

    @pytest.mark.parametrize("framework", ["torch", "numpy"])
    def test_samplers_without_a_seed_obey_the_global_generators(self, framework):
        def losses(seed):
            fs = featureset(*arrays(n=30))
            if framework == "torch":
                torch.manual_seed(seed)
                graph = graph_of(fs, mlp(), "sgd", lr=0.02)
                torch.manual_seed(seed)
            else:
                graph = graph_of(fs, SGDRegressor(random_state=0), None)
                np.random.seed(seed)  # noqa: NPY002 - as a user does
            phase = train_phase(graph, shuffle=True, seed=None, n_epochs=2)
            with mm.ExperimentContext.get_active().activate():
                return experiment().run_phase(phase, **QUIET).metrics().values()

        with mm.ExperimentContext(registration_policy="overwrite").activate():
            first, again, other = losses(1), losses(1), losses(2)
        assert first == again
        assert first != other

    def test_arguments(self):
        with pytest.raises(ConfigError, match="seed"):
            mm.Experiment("x", seed="7")
        with pytest.raises(TypeError, match="results_config"):
            mm.Experiment("x", results_config=3)
        exp = experiment(seed=3, deterministic=True, results_config=mm.ResultsConfig())
        config = exp.get_config()
        with mm.ExperimentContext().activate():
            again = mm.Experiment.from_config(config)
        assert (again.seed, again.deterministic) == (3, True)
        assert again.results_config == mm.ResultsConfig()

    def test_deterministic_is_put_back(self):
        seen = []

        class Looks(Callback):
            def on_epoch_end(self, **facts):
                seen.append(torch.are_deterministic_algorithms_enabled())
                seen.append(torch.backends.cudnn.deterministic)
                raise ValueError("mine")

        graph = graph_of(featureset(*arrays(n=30)), mlp())
        exp = experiment(deterministic=True)
        before = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
        with pytest.raises(ValueError, match="mine"):
            exp.run_phase(train_phase(graph, callbacks=[Looks()]), **QUIET)
        assert seen == [True, True]
        assert not torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.deterministic
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == before


class Counts(Callback):
    def __init__(self):
        super().__init__()
        self.seen_ = []

    def on_epoch_end(self, *, exec_ctx, **facts):
        self.seen_.append(exec_ctx.epoch_idx)


def test_previews_leave_samplers_and_callbacks_as_they_are():
    fs = featureset(*arrays(n=40))
    fs.split_random({"train": 0.5, "val": 0.5})
    graph = graph_of(fs, mlp())
    loss = mse()
    stop = mm.EarlyStopping(restore_best=True)
    evaluation = mm.Evaluation.from_split(
        "val", split="val", metrics=[mm.EvalLossMetric(loss=loss)]
    )
    counts = Counts()
    phase = train_phase(
        graph, [loss], split="train", n_epochs=2, callbacks=[evaluation, stop, counts]
    )
    sampler = phase.input_sources[0].sampler
    sampler.seed = None
    exp = experiment(seed=1)
    exp.run_phase(phase, **QUIET)
    before = sampler.seed_, stop.best_epoch, stop.best_value, list(counts.seen_)
    phase.n_epochs = 5
    exp.preview_phase(phase, **QUIET)
    assert (sampler.seed_, stop.best_epoch, stop.best_value, counts.seen_) == before


class TestPhaseState:
    def world(self, kept=None, n_epochs=3):
        torch.manual_seed(0)
        net = noisy()
        fs = featureset(*arrays(n=40))
        fs.split_random({"train": 0.5, "val": 0.5})
        graph = graph_of(fs, net, "adam", lr=0.02)
        graph.build()
        loss = mse()
        evaluation = mm.Evaluation.from_split(
            "val", split="val", metrics=[mm.EvalLossMetric(loss=loss)]
        )
        stop = mm.EarlyStopping(patience=9, restore_best=True)
        counts = Counts()
        phase = train_phase(
            graph,
            [loss],
            split="train",
            n_epochs=n_epochs,
            batch_size=8,
            shuffle=True,
            callbacks=[evaluation, stop, counts],
            checkpointing=kept,
        )
        return net, graph, phase, stop, counts

    def test_in_memory_it_is_complete(self):
        kept = mm.Checkpointing(save_on=["phase_start", "epoch_end", "batch_end"])
        with mm.ExperimentContext().activate():
            _, graph, phase, stop, counts = self.world(kept)
            torch.manual_seed(11)
            results = experiment().run_phase(phase, **QUIET)
        assert kept.get_state("phase_start")["run"]["position"] is None
        middle = kept.get_state("1.1")["run"]["position"]
        assert (middle["epoch"], middle["batch"]) == (1, 2)
        logged = results.metrics().where(name="train_loss", epoch=1, batch=[0, 1]).values()
        np.testing.assert_allclose(np.ravel(middle["losses"]), logged, rtol=1e-6)
        assert kept.get_state(1)["run"]["position"]["batch"] == 3
        with mm.ExperimentContext().activate():
            _, graph, phase, stop, counts = self.world(n_epochs=1)
            assert set_phase_state(phase, kept.get_state(1))["epoch"] == 1
            assert stop.best_value is not None
            assert counts.seen_ == [0, 1]
            graph.set_state(phase_state(phase))

    def test_the_last_epoch_after_a_checkpoint_equals_the_one_without(self):
        kept = mm.Checkpointing(save_on="epoch_end")
        with mm.ExperimentContext().activate():
            net, _, phase, _, _ = self.world(kept)
            phase.callbacks.clear()
            experiment().run_phase(phase, **QUIET)
            end = weights(net)
        with mm.ExperimentContext().activate():
            again, graph, phase, _, _ = self.world()
            phase.callbacks.clear()
            set_phase_state(phase, kept.get_state(1))
            for ctx in phase.feed().epoch(2)[1]:
                graph.train_step(ctx, phase.losses)
        assert_equal_weights(again, end)

    def test_another_phase_is_refused(self):
        _, graph, phase, _, _ = self.world()
        state = phase_state(phase)
        other = train_phase(graph)
        before = graph.get_state()
        with pytest.raises(ConfigError, match="callbacks"):
            set_phase_state(other, state)
        assert_same_state(graph.get_state(), before)


def test_experiment_checkpoints_begin_anew_with_each_run():
    graph = graph_of(featureset(*arrays(n=20)), mlp())
    kept = mm.Checkpointing(save_on="phase_end", every_n=2)
    exp = experiment(checkpointing=kept)
    exp.execution_plan.add_phase(train_phase(graph)).add_phase(eval_phase(graph))
    for _ in range(2):
        exp.run(**QUIET)
        assert kept.saved_keys == ["eval_phase_end"]


class TestWeightsOlderThanTheSeed:
    """A seed cannot determine weights that were drawn before it was set."""

    @staticmethod
    def graph(model: Any) -> mm.ModelGraph:
        torch.seed()  # as in a process where nobody has set one
        rows = {"x": np.arange(8.0), "y": np.arange(8.0)}
        fs = mm.FeatureSet.from_dict("rows", rows, "x", "y")
        return mm.ModelGraph([mm.ModelNode("net", model(), fs)], mm.Optimizer("adam"))

    @pytest.fixture(autouse=True)
    def generator(self) -> Iterator[None]:
        state = torch.random.get_rng_state()
        yield
        torch.random.set_rng_state(state)

    def test_weights_of_a_module_are_warned_of_once(self) -> None:
        self.graph(lambda: torch.nn.Linear(1, 1))
        with pytest.warns(SeedWarning, match="weights of 'net' were drawn before seed=0"):
            mm.Experiment.from_active_context("first", seed=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mm.Experiment.from_active_context("second", seed=0)

    def test_weights_of_a_built_graph_are_warned_of(self) -> None:
        self.graph(SequentialMLP).build()
        with pytest.warns(SeedWarning):
            mm.Experiment.from_active_context("late", seed=0)

    @pytest.mark.parametrize("how", ["built later", "seeded by hand", "no seed"])
    def test_the_rest_is_not(self, how: str) -> None:
        def seeded() -> Any:
            torch.manual_seed(5)
            return torch.nn.Linear(1, 1)

        self.graph(SequentialMLP if how == "built later" else seeded)
        if how == "no seed":
            torch.seed()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mm.Experiment.from_active_context("e", seed=None if how == "no seed" else 0)
