"""Weights that nodes share stay shared, and what its owner froze keeps its weights."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.callbacks import Callback
from modularml.errors import ConfigError
from tests.worlds import QUIET, arrays, experiment, featureset, graph_of, mlp, train_phase


class Notes(Callback):
    """Notes what a function says of the graph at the end of each training."""

    seen: ClassVar[list] = []
    look = None

    def on_phase_end(self, *, phase, **facts):
        Notes.seen.append(Notes.look(phase.graph()))


def two_nodes(tied):
    """Return a graph whose nodes share one module, or a parameter of two modules."""
    x, y = arrays()
    fs = featureset(x, y)
    fs.split_random({"train": 0.8, "val": 0.2}, seed=0)
    first = mlp(out=3)
    second = first if tied == "module" else mlp(out=3, seed=1)
    if tied == "parameter":
        second[0].weight = first[0].weight
    a, b = mm.ModelNode("a", first, fs), mm.ModelNode("b", second, fs)
    both = mm.SumNode("both", [a, b])
    net = mm.ModelNode("net", nn.Linear(3, 1), both)
    return fs, mm.ModelGraph([a, b, both, net], mm.Optimizer("adam", opt_kwargs={"lr": 0.05}))


def is_tied(graph):
    first, second = (graph.get_node(k).model.module for k in "ab")
    first, second = (getattr(m, "inner", m) for m in (first, second))
    return first[0].weight is second[0].weight


@pytest.mark.parametrize("tied", ["module", "parameter"])
class TestShared:
    def test_in_folds(self, tied):
        fs, graph = two_nodes(tied)
        Notes.seen, Notes.look = [], staticmethod(is_tied)
        phase = train_phase(graph, split="train", callbacks=[Notes()])
        experiment()
        cv = mm.CrossValidation(bindings=mm.CVBinding(fs, ["train", "val"]), phase=phase, n_folds=2)
        cv.run(show_fold_progress=False, **QUIET)
        assert Notes.seen == [True, True]

    def test_in_a_file(self, tied, tmp_path):
        _, graph = two_nodes(tied)
        experiment().run_phase(train_phase(graph, split="train"), **QUIET)
        path = graph.save(tmp_path / "graph")
        with mm.ExperimentContext().activate():
            again = mm.ModelGraph.load(path)
            assert is_tied(again)
        for k in "ab":
            ours, theirs = (g.get_node(k).model.get_weights() for g in (graph, again))
            assert all(map(np.array_equal, ours.values(), theirs.values()))

    def test_after_a_reset(self, tied):
        _, graph = two_nodes(tied)
        graph.build()
        graph.get_node("a").reset_weights(seed=3)
        assert is_tied(graph)


def two_keras_nodes(tied):
    """Return a graph whose nodes share one Keras model, or a layer of two models."""
    keras = pytest.importorskip("keras")
    fs = featureset(*arrays())
    fs.split_random({"train": 0.8, "val": 0.2}, seed=0)
    layer = keras.layers.Dense(3)

    def made():
        ends = keras.Input((6,))
        return keras.Model(ends, layer(ends))

    first = made()
    a = mm.ModelNode("a", first, fs)
    b = mm.ModelNode("b", first if tied == "model" else made(), fs)
    both = mm.SumNode("both", [a, b])
    net = mm.ModelNode("net", keras.Sequential([keras.layers.Dense(1)]), both)
    optimizer = mm.Optimizer("adam", opt_kwargs={"learning_rate": 0.05}, backend="tensorflow")
    graph = mm.ModelGraph([a, b, both, net], optimizer)
    graph.build()
    return fs, graph


def is_one_model(graph):
    return graph.get_node("a").model.inner is graph.get_node("b").model.inner


class TestSharedOfKeras:
    def test_one_model_stays_one_in_folds(self):
        fs, graph = two_keras_nodes("model")
        Notes.seen, Notes.look = [], staticmethod(is_one_model)
        phase = train_phase(graph, split="train", callbacks=[Notes()])
        experiment()
        cv = mm.CrossValidation(bindings=mm.CVBinding(fs, ["train", "val"]), phase=phase, n_folds=2)
        cv.run(show_fold_progress=False, **QUIET)
        assert Notes.seen == [True, True]

    def test_one_model_stays_one_in_a_file_and_trains_on_as_one(self, tmp_path):
        _, graph = two_keras_nodes("model")
        run, phase = experiment(), train_phase(graph, split="train")
        run.run_phase(phase, **QUIET)
        path = run.save(tmp_path / "run")
        again = mm.Experiment.load(path)
        assert is_one_model(again.model_graph)
        run.run_phase(phase, **QUIET)
        with again.ctx.activate():
            again.run_phase(train_phase(again.model_graph, split="train"), **QUIET)
        for k in ("a", "b", "net"):
            ours, theirs = (e.model_graph.get_node(k).model.get_weights() for e in (run, again))
            for mine, other in zip(ours.values(), theirs.values(), strict=True):
                np.testing.assert_allclose(mine, other, atol=1e-6)

    def test_a_shared_layer_is_refused_where_it_would_become_two(self, tmp_path):
        fs, graph = two_keras_nodes("layer")
        run, phase = experiment(), train_phase(graph, split="train")
        run.run_phase(phase, **QUIET)
        for save in (graph.save, run.save):
            with pytest.raises(ConfigError, match=r"\['a', 'b'\] share the weight"):
                save(tmp_path / "one")
        with pytest.raises(ConfigError, match="make the shared part a separate node"):
            mm.CrossValidation(bindings=mm.CVBinding(fs, ["train", "val"]), phase=phase).run(
                **QUIET
            )
        path = graph.save_checkpoint(tmp_path / "values")
        before = graph.get_node("a").model.get_weights()
        run.run_phase(phase, **QUIET)
        graph.restore_checkpoint(path)
        after = graph.get_node("b").model.get_weights()
        assert all(map(np.array_equal, before.values(), after.values()))


def frozen_part(backend):
    if backend == "torch":
        module = mlp()
        module[0].requires_grad_(False)
        return module, lambda m: getattr(m, "inner", m)[0].weight.detach().numpy().copy()
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.layers.Dense(8), keras.layers.Dense(1)])
    model.layers[0].trainable = False
    return model, lambda m: m.inner.layers[0].kernel.numpy().copy()


@pytest.mark.parametrize("backend", ["torch", "tensorflow"])
class TestFrozenByItsOwner:
    def test_keeps_its_weights_in_folds(self, backend):
        x, y = arrays()
        fs = featureset(x, y)
        fs.split_random({"train": 0.8, "val": 0.2}, seed=0)
        module, read = frozen_part(backend)
        graph = graph_of(fs, module)
        graph.build()
        Notes.seen = []
        Notes.look = staticmethod(lambda g: read(g.get_node("net").model.module))
        phase = train_phase(graph, split="train", callbacks=[Notes()])
        experiment()
        cv = mm.CrossValidation(bindings=mm.CVBinding(fs, ["train", "val"]), phase=phase, n_folds=2)
        cv.run(show_fold_progress=False, **QUIET)
        for found in Notes.seen:
            np.testing.assert_array_equal(found, read(graph.get_node("net").model.module))
        assert len(Notes.seen) == 2

    def test_keeps_its_weights_in_a_reset(self, backend):
        module, read = frozen_part(backend)
        node = graph_of(featureset(*arrays()), module).get_node("net")
        node.context.model_graph.build()
        before, weights = read(node.model.module), node.model.get_weights()
        node.reset_weights(seed=3)
        np.testing.assert_array_equal(read(node.model.module), before)
        after = node.model.get_weights()
        assert any(not np.array_equal(weights[k], after[k]) for k in weights)


def test_a_module_saved_before_build_keeps_its_weights(tmp_path):
    module = mlp(seed=5)
    graph = graph_of(featureset(*arrays()), module)
    path = graph.save(tmp_path / "graph")
    with mm.ExperimentContext().activate():
        again = mm.ModelGraph.load(path).get_node("net").model.get_weights()
    wanted = [p.detach().numpy() for p in module.parameters()]
    assert all(map(np.array_equal, again.values(), wanted))
    assert isinstance(module[0].weight, torch.nn.Parameter)
