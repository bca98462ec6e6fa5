"""Objects of the package pass through pickle and deepcopy, before a run and after it."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

import modularml as mm
from modularml.callbacks import CSVLogger
from modularml.models.torch import SequentialMLP
from tests.worlds import QUIET, arrays, bindings, experiment, featureset, graph_of, mlp, mse

WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}


def network(backend):
    """Return a small network."""
    if backend == "torch":
        return mlp()
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential([keras.Input((6,)), layers.Dense(8, "tanh"), layers.Dense(1)])


def world(folder, model, *, memory_budget=None):
    """Return an experiment that has trained and evaluated."""
    fs = featureset(*arrays(n=40))
    fs.split_random({"train": 0.6, "val": 0.4}, seed=0)
    graph_of(fs, model, "adam", lr=0.02)
    loss = mse()
    val = mm.Evaluation.from_split("val", split="val", metrics=["r2", mm.EvalLossMetric(loss=loss)])
    stop = mm.EarlyStopping(patience=9, restore_best=True)
    callbacks = [val, stop, CSVLogger(folder / "log.csv")]
    phase = mm.TrainPhase.from_split(
        "train",
        split="train",
        sampler=mm.SimpleSampler(batch_size=8, shuffle=True),
        losses=[loss],
        n_epochs=2,
        callbacks=callbacks,
        checkpointing=mm.Checkpointing(mode="memory"),
    )
    made = mm.Experiment.from_active_context(
        "study",
        audit="off",
        seed=3,
        results_config=mm.ResultsConfig(memory_budget=memory_budget),
    )
    made.execution_plan.add_phase(phase)
    made.execution_plan.add_phase(mm.EvalPhase.from_split("test", split="val", losses=[loss]))
    made.run(**QUIET)
    return made


def goes_on(made):
    """Train on from where an experiment is; return the losses of batches."""
    phase = made.execution_plan.flatten()[0]
    results = made.run_phase(phase, **QUIET)
    return [block.tolist() for _, block in results._metrics.blocks("train_loss")]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras
@pytest.mark.parametrize("way", WAYS)
def test_experiment(tmp_path, backend, way):
    made = world(tmp_path, network(backend))
    x = arrays(n=5)[0]
    new = WAYS[way](made)
    assert new.ctx is not made.ctx
    assert new.get_config() == made.get_config()
    assert np.array_equal(new.predict(x), made.predict(x))
    for name in ("train", "test"):
        old, copied = made.last_run.results[name], new.last_run.results[name]
        assert copied.to_pandas().equals(old.to_pandas())
        for node in made.model_graph.tail_nodes.values():
            pairs = [r.tensors(node.label, "outputs").values() for r in (old, copied)]
            assert all(map(np.array_equal, *pairs))
    assert goes_on(new) == goes_on(made)  # with the moments of the optimizer


@pytest.mark.parametrize("way", WAYS)
def test_each_object_after_a_run(tmp_path, way):
    made = world(tmp_path, mlp())
    graph, phase = made.model_graph, made.execution_plan.flatten()[0]
    (node,) = graph.nodes.values()
    binding, (loss,) = phase.input_sources[0], phase.losses
    parts = [phase.checkpointing, loss, loss.loss, binding.sampler, graph.optimizer, node.model]
    for value in (phase, *phase.callbacks, *parts):
        new = WAYS[way](value)
        assert type(new) is type(value)
        if hasattr(value, "get_config"):
            assert new.get_config() == value.get_config()
    assert WAYS[way](graph.optimizer).get_state().keys() == graph.optimizer.get_state().keys()
    fs = next(iter(made.ctx.available_featuresets.values()))
    for rows in (fs, fs["train"]):
        pairs = [v.get_features(fmt="dict_numpy") for v in (rows, WAYS[way](rows))]
        assert all(np.array_equal(pairs[1][name], column) for name, column in pairs[0].items())


def test_results_that_lie_in_files(tmp_path):
    made = world(tmp_path, mlp(), memory_budget=0)
    results = made.last_run.results["test"]
    assert results._execution.parts[0]._files
    for way in WAYS.values():
        new = way(results)
        assert not new._execution.parts[0]._files  # the files go with the first experiment
        assert new.to_pandas().equals(results.to_pandas())


def test_phase_under_way(tmp_path):
    copies = []

    class Copies(mm.callbacks.Callback):
        def on_batch_end(self, *, phase, **facts):
            if not copies:
                copies.append(copy.deepcopy(phase))

    made = world(tmp_path, mlp())
    phase = made.execution_plan.flatten()[0]
    phase.add_callback(Copies("copies"))
    made.run_phase(phase, **QUIET)
    assert copies[0].progress() is None


def test_estimator_after_a_fit():
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = arrays(n=30)
    node = mm.ModelNode("net", linear.Ridge(), featureset(x, y))
    graph = mm.ModelGraph([node])
    made = experiment()
    made.run_phase(mm.FitPhase("fit", input_sources=bindings(graph)), **QUIET)
    for way in WAYS.values():
        assert np.array_equal(way(made).predict(x), made.predict(x))
        assert np.array_equal(way(node.model).inner.coef_, node.model.inner.coef_)


def in_worker(made, x):
    """Predict and train in a worker."""
    return made.predict(x), goes_on(made)


def refused(label):
    mm.FeatureSet.from_dict("q", {"x": [1.0], "y": [1.0]}, "x", "y", register=False).get_features(
        features=label
    )


@pytest.mark.slow
def test_worker_of_a_pool(tmp_path):
    made, x = world(tmp_path, SequentialMLP(hidden_dim=4)), arrays(n=5)[0]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        outputs, losses = pool.submit(in_worker, made, x).result()
        with pytest.raises(mm.errors.UnknownNameError, match="zz"):
            pool.submit(refused, "zz").result()
    assert np.array_equal(outputs, made.predict(x))
    assert losses == goes_on(made)
