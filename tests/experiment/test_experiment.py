"""Experiments: previews, history, callbacks, configs, several at once."""

import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.callbacks import ExperimentCallback
from modularml.errors import ConfigError, GraphError, UnknownNameError
from modularml.models.torch import SequentialMLP
from tests.training.test_optimizer import assert_same_state
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    train_phase,
    weights,
)


def noisy(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))


class TestPreviews:
    def world(self):
        x, y = arrays(n=40)
        fs = featureset(x, y)
        fs.split_random({"train": 0.5, "test": 0.5})
        net = noisy()
        graph = graph_of(fs, net, "adam", lr=0.01)
        exp = experiment()
        exp.run_phase(train_phase(graph, label="before", split="train"), **QUIET)
        return fs, net, graph, exp

    def snapshot(self, fs, net, graph, exp):
        return {
            "weights": {k: v.numpy() for k, v in weights(net).items()},
            "graph": graph.get_state(),
            "torch": torch.get_rng_state().numpy(),
            "numpy": np.random.get_state()[1],  # noqa: NPY002
            "python": random.getstate(),
            "history": len(exp.history),
            "columns": fs.get_all_keys(),
            "splits": sorted(fs.available_splits),
            "nodes": sorted(exp.ctx.available_nodes),
            "flags": [m.training for m in net.modules()],
            "requires": [p.requires_grad for p in net.parameters()],
        }

    @pytest.mark.parametrize("what", ["phase", "group", "run", "failing"])
    def test_leave_no_trace(self, what):
        fs, net, graph, exp = self.world()

        class Meddles(mm.callbacks.Callback):
            def on_epoch_end(self, **facts):
                random.random()
                np.random.rand()  # noqa: NPY002
                torch.rand(1)
                if not any("transformed" in key for key in fs.get_all_keys()):
                    fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
                graph.freeze()
                mm.FeatureSet.from_dict("other", {"a": [1.0]}, ["a"], [])
                if what == "failing":
                    raise ValueError("mine")

        phase = train_phase(graph, split="train", callbacks=[Meddles()])
        group = mm.PhaseGroup("g", [phase, eval_phase(graph, split="test")])
        exp.execution_plan.add_group(group)
        before = self.snapshot(fs, net, graph, exp)
        if what == "phase":
            assert exp.preview_phase(phase, **QUIET).n_epochs == 1
        elif what == "group":
            assert exp.preview_group(group, **QUIET).labels == ["train", "eval"]
        elif what == "run":
            assert exp.preview_run(**QUIET).labels == ["g"]
        else:
            with pytest.raises(ValueError, match="mine"):
                exp.preview_phase(phase, **QUIET)
        assert_same_state(self.snapshot(fs, net, graph, exp), before)

    def test_a_run_after_a_preview_equals_one_without(self):
        found = []
        for previewed in (True, False):
            with mm.ExperimentContext().activate():
                _, net, graph, exp = self.world()
                torch.manual_seed(4)
                phase = train_phase(graph, split="train", n_epochs=2, shuffle=True)
                if previewed:
                    exp.preview_phase(phase, **QUIET)
                exp.run_phase(phase, **QUIET)
                found.append(weights(net))
        assert_equal_weights(*found)

    def test_a_preview_of_an_unbuilt_graph(self):
        x, y = arrays(n=40)
        found = []
        for previewed in (True, False):
            with mm.ExperimentContext().activate():
                graph = graph_of(featureset(x, y), SequentialMLP(dropout=0.2))
                exp = experiment()
                torch.manual_seed(4)
                phase = train_phase(graph)
                if previewed:
                    exp.preview_phase(phase, **QUIET)
                exp.run_phase(phase, **QUIET)
                found.append(weights(graph.get_node("net").model))
        assert_equal_weights(*found)

    @pytest.mark.parametrize("append", [True, False])
    def test_files_of_callbacks_survive_a_preview(self, tmp_path, append):
        _, _, graph, exp = self.world()
        told = []

        class Writes(mm.callbacks.ExperimentCallback):
            writes_files = True

            def on_phase_end(self, **facts):
                told.append("written")

        exp.add_callback(Writes())
        inner = mm.callbacks.CSVLogger(tmp_path / "inner.csv", append=append)
        part = eval_phase(graph, split="test", label="part", callbacks=[inner])
        log = mm.callbacks.CSVLogger(tmp_path / "new" / "log.csv", append=append)
        evaluation = mm.Evaluation(eval_phase=part)
        phase = train_phase(graph, split="train", n_epochs=2, callbacks=[log, evaluation])
        exp.preview_phase(phase, **QUIET)
        assert not [*tmp_path.iterdir()]
        exp.run_phase(phase, **QUIET)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.csv")}
        assert len(before) == 2
        exp.execution_plan.add_phase(phase)
        for preview in (
            lambda: exp.preview_phase(phase, **QUIET),
            lambda: exp.preview_run(**QUIET),
        ):
            preview()
            assert {path: path.read_bytes() for path in tmp_path.rglob("*.csv")} == before
        assert told == ["written"]
        assert not exp.is_preview

    def test_checkpoints_of_a_phase_survive_a_preview(self):
        _, _, graph, exp = self.world()
        kept = mm.Checkpointing()
        phase = train_phase(graph, split="train", n_epochs=3, checkpointing=kept)
        exp.run_phase(phase, **QUIET)
        before = {key: kept.get_state(key) for key in kept.saved_keys}
        exp.preview_phase(phase, **QUIET)
        assert kept.saved_keys == list(before)
        assert_same_state({key: kept.get_state(key) for key in kept.saved_keys}, before)
        assert phase.checkpointing is kept


class TestHistory:
    def test_entries(self):
        x, y = arrays(n=40)
        graph = graph_of(featureset(x, y), mlp())
        exp = experiment()
        assert exp.last_run is None
        results = exp.run_phase(train_phase(graph), **QUIET)
        run = exp.last_run
        assert (run.label, run.status) == ("train", "completed")
        assert run.started_at <= run.ended_at
        assert run.results.get_train_result() is results
        assert run.execution_meta["durations"]["train"] > 0
        exp.history.clear()
        assert len(exp.history) == 1
        assert "completed" in repr(run)

    def test_a_bad_call_is_no_run(self):
        exp = experiment()
        with pytest.raises(TypeError, match="ExperimentPhase"):
            exp.run_phase("train")
        with pytest.raises(TypeError, match="PhaseGroup"):
            exp.run_group("train")
        x, y = arrays(n=10)
        phase = train_phase(graph_of(featureset(x, y), mlp()))
        with pytest.raises(UnknownNameError, match="show_training_progress"):
            exp.run_phase(phase, show_training_progres=False)
        assert exp.history == []


class TestCallbacks:
    def test_order(self):
        log = []

        class Watch(ExperimentCallback):
            def on_experiment_start(self, *, experiment):
                log.append("experiment_start")

            def on_group_start(self, *, experiment, phase_group):
                log.append(("group_start", phase_group.label))

            def on_phase_start(self, *, experiment, phase):
                log.append(("phase_start", phase.label))

            def on_phase_end(self, *, experiment, phase):
                log.append(("phase_end", phase.label))

            def on_group_end(self, *, experiment, phase_group):
                log.append(("group_end", phase_group.label))

            def on_experiment_end(self, *, experiment):
                log.append("experiment_end")

            def on_exception(self, *, experiment, exception):
                log.append(("exception", str(exception)))

        x, y = arrays(n=10)
        graph = graph_of(featureset(x, y), mlp())
        exp = experiment(callbacks=[Watch()])
        exp.execution_plan.add_group(mm.PhaseGroup("g", [train_phase(graph)]))
        exp.run(**QUIET)
        assert log == [
            "experiment_start",
            ("group_start", "g"),
            ("phase_start", "train"),
            ("phase_end", "train"),
            ("group_end", "g"),
            "experiment_end",
        ]
        log.clear()
        graph.freeze()
        with pytest.raises(GraphError):
            exp.run_phase(train_phase(graph), **QUIET)
        assert log[0] == ("phase_start", "train")
        assert log[1][0] == "exception"
        with pytest.raises(TypeError, match="ExperimentCallback"):
            exp.add_callback(mm.EarlyStopping())


class TestSideBySide:
    def make(self, seed):
        x, y = arrays(n=40, seed=seed)
        exp = mm.Experiment(f"exp{seed}", registration_policy="error")
        net = mlp(seed=seed)
        graph = graph_of(featureset(x, y), net, "adam", lr=0.01)
        return exp, graph, net, train_phase(graph, n_epochs=2, shuffle=True)

    def alone(self, seed):
        exp, _, net, phase = self.make(seed)
        exp.run_phase(phase, **QUIET)
        return weights(net)

    def test_in_any_order(self):
        want = [self.alone(seed) for seed in range(2)]
        first, second = self.make(0), self.make(1)
        for exp, graph, _, phase in (first, second):
            assert exp.model_graph is graph
            exp.preview_phase(phase, **QUIET)
        for (exp, _, net, phase), weights_ in reversed(
            list(zip((first, second), want, strict=True))
        ):
            exp.run_phase(phase, **QUIET)
            assert_equal_weights(net, weights_)
        assert len(first[0].history) == len(second[0].history) == 1

    def test_in_threads(self):
        want = [self.alone(seed) for seed in range(4)]
        made = [self.make(seed) for seed in range(4)]
        errors = []

        def run(exp, phase):
            try:
                exp.run_phase(phase, **QUIET)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(m[0], m[3])) for m in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        for (_, _, net, _), weights_ in zip(made, want, strict=True):
            assert_equal_weights(net, weights_)

    def test_made_in_threads(self):
        want = [self.alone(seed) for seed in range(3)]
        found = {}

        def run(seed):
            exp, _, net, phase = self.make(seed)
            exp.run_phase(phase, **QUIET)
            found[seed] = weights(net)

        for seed in range(3):  # weights are drawn from a generator that threads share
            thread = threading.Thread(target=run, args=(seed,))
            thread.start()
            thread.join()
        for seed in range(3):
            assert_equal_weights(found[seed], want[seed])

    def test_a_context_survives_its_experiment(self):
        outside = mm.ExperimentContext.get_active()
        exp, _, _, phase = self.make(0)
        assert mm.ExperimentContext.get_active() is exp.ctx
        outside.make_active()
        exp.run_phase(phase, **QUIET)
        assert mm.ExperimentContext.get_active() is outside
        assert exp.predict(arrays(n=5)[0]).shape == (5, 1)


class TestConfig:
    def test_rebuilding_the_plan(self):
        x, y = arrays(n=40)

        def data():
            fs = featureset(x, y)
            fs.split_random({"train": 0.5, "val": 0.5})
            return fs

        loss = mse()
        graph = graph_of(data(), SequentialMLP(), "adam", lr=0.02)
        exp = experiment("mine", audit="off")
        callbacks = [
            mm.Evaluation.from_split("val", split="val", metrics=[mm.EvalLossMetric(loss=loss)]),
            mm.EarlyStopping(restore_best=True),
        ]
        phase = train_phase(
            graph, [loss], split="train", n_epochs=3, shuffle=True, callbacks=callbacks
        )
        exp.execution_plan.add_group(
            mm.PhaseGroup("g", [phase, eval_phase(graph, split="val", label="last")])
        )
        graph.build()
        start = graph.get_state()
        config = exp.get_config()
        want = exp.run(**QUIET)
        with mm.ExperimentContext(registration_policy="error").activate() as ctx:
            data()
            again = mm.Experiment.from_config(config)
            assert again.ctx is ctx
            assert again.label == "mine"
            assert again.get_config() == config
            again.model_graph.set_state(start)
            found = again.run(**QUIET)
        for label in ("train", "last"):
            one, two = want["g"].get_phase_result(label), found["g"].get_phase_result(label)
            assert one.metric_names() == two.metric_names()
            assert one.metrics().values() == two.metrics().values()
        assert found["g"].get_train_result().metric_names() == ["train_loss", "val_loss"]

    def test_state(self):
        x, y = arrays(n=40)
        fs = featureset(x, y)
        graph = graph_of(fs, mlp(), "adam", lr=0.02)
        exp = experiment()
        exp.run_phase(train_phase(graph), **QUIET)
        state = exp.get_state()
        weights_ = graph.get_state()
        exp.run_phase(train_phase(graph, label="more"), **QUIET)
        fs.fit_transform("StandardScaler", domain="features")
        exp.set_state(state)
        assert_same_state(graph.get_state(), weights_)
        assert len(exp.history) == 1
        assert not any("transformed" in key for key in fs.get_all_keys())

    def test_labels(self):
        with pytest.raises(ConfigError, match="label"):
            mm.Experiment("")


class TestCheckpointing:
    def test_arguments(self):
        for kwargs, match in (
            ({"mode": "cloud"}, "mode"),
            ({"every_n": 0}, "every_n"),
            ({"max_to_keep": 0}, "max_to_keep"),
            ({"save_on": "epoch"}, "save_on"),
            ({"save_on": []}, "save_on"),
            ({"name_template": "{phase.label}"}, "name_template"),
            ({"name_template": "{nobody}"}, "name_template"),
            ({"name_template": "../x"}, "not valid file names"),
            ({"name_template": "/abs"}, "not valid file names"),
            ({"name_template": ".."}, "not valid file names"),
            ({"name_template": ""}, "non-empty"),
            ({"name_template": "a b"}, "not valid file names"),
            ({"name_template": "x/{epoch}"}, "not valid file names"),
            ({"name_template": "nul"}, "not valid file names"),
            ({"name_template": "{epoch:099d}{batch:099d}"}, "not valid file names"),
            ({"name_template": "{epoch"}, "brace"),
        ):
            with pytest.raises(ConfigError, match=match):
                mm.Checkpointing(**kwargs)
        x, y = arrays(n=10)
        graph = graph_of(featureset(x, y), mlp())
        with pytest.raises(ConfigError, match="save_on"):
            train_phase(graph, checkpointing=mm.Checkpointing(save_on="group_end"))

    def test_in_memory(self):
        x, y = arrays(n=40)
        mine = mlp()
        graph = graph_of(featureset(x, y), mine)
        kept = mm.Checkpointing(save_on=["epoch_end"], every_n=2, max_to_keep=2)
        experiment().run_phase(train_phase(graph, n_epochs=7, checkpointing=kept), **QUIET)
        assert kept.saved_keys == [3, 5]
        assert kept.has_key(5)
        assert not kept.has_key(1)
        assert kept.get_state(1) is None
        after = weights(mine)
        graph.set_state(kept.get_state(5))
        assert not torch.equal(after["0.weight"], mine[0].weight)
        kept.reset()
        assert kept.saved_keys == []

    def test_every_hook(self):
        x, y = arrays(n=32)
        graph = graph_of(featureset(x, y), mlp())
        hooks = ["phase_start", "epoch_start", "batch_start", "batch_end", "phase_end"]
        kept = mm.Checkpointing(save_on=hooks)
        experiment().run_phase(train_phase(graph, checkpointing=kept), **QUIET)
        assert {"phase_start", "phase_end", 0, "0.0", "0.1"} <= set(kept.saved_keys)

    def test_names(self):
        named = mm.Checkpointing(name_template="{phase}-{epoch:03d}")
        assert named.format_name(phase="train", epoch=7) == "train-007"
        with pytest.raises(ConfigError, match="epoch"):
            named.format_name(phase="train")
        assert mm.Checkpointing.from_config(named.get_config()) == named

    def test_switched_off(self):
        x, y = arrays(n=32)
        graph = graph_of(featureset(x, y), mlp())
        kept = mm.Checkpointing()
        exp = experiment()
        phase = train_phase(graph, checkpointing=kept)
        exp.execution_plan.add_phase(phase)
        with exp.disable_checkpointing():
            assert phase.checkpointing is None
            exp.run(**QUIET)
        assert kept.saved_keys == []
        assert phase.checkpointing is kept
