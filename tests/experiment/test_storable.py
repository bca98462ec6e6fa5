"""Models that no file can hold are refused before a run that writes files begins."""

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression, OrthogonalMatchingPursuitCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import modularml as mm
from modularml.errors import ConfigError
from tests.experiment.test_fit_phase import ClosedFormRidge
from tests.worlds import QUIET, arrays, bindings, experiment, featureset, graph_of, mse, train_phase


class KeepsAnObject(ClosedFormRidge):
    """A model whose state holds what is no data."""

    def get_state(self):
        return {**super().get_state(), "generator": object()}


class ExtraState(torch.nn.Linear):
    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


def fitted_here():
    class Local(LinearRegression):
        pass

    return Local()


UNKNOWN = {
    "a class that is not listed": OrthogonalMatchingPursuitCV,
    "within a pipeline": lambda: make_pipeline(StandardScaler(), OrthogonalMatchingPursuitCV()),
    "a class within a function": fitted_here,
    "a state that is no data": KeepsAnObject,
}


def world(model, kept=None):
    fs = featureset(*arrays())
    graph = graph_of(fs, model, opt=None)
    phase = mm.FitPhase("fit", input_sources=bindings(graph), losses=[mse()])
    return experiment(checkpointing=kept), phase, graph


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_no_file_can_hold_is_refused_before_it_is_fitted(kind, tmp_path):
    model = UNKNOWN[kind]()
    kept = mm.Checkpointing(mode="disk", save_on="phase_end", directory=tmp_path)
    run, phase, graph = world(model, kept)
    graph.build()
    with pytest.raises(ConfigError, match=r"node 'net'.*mode='memory'"):
        run.run_phase(phase, **QUIET)
    assert run.history[-1].status == "failed"
    assert kind == "a state that is no data" or not graph.get_node("net").model.is_fitted
    assert not list(tmp_path.glob("*.mml"))


@pytest.mark.parametrize("kept", [None, mm.Checkpointing(mode="memory", save_on="phase_end")])
def test_runs_that_write_no_file_fit_what_they_are_given(kept):
    run, phase, _ = world(OrthogonalMatchingPursuitCV(), kept)
    run.run_phase(phase, **QUIET)
    x, y = arrays()
    by_hand = OrthogonalMatchingPursuitCV().fit(x, y[:, 0]).predict(x)
    got = run.predict(run.ctx.get_node(label="data"))[:, 0]
    np.testing.assert_allclose(got, by_hand, rtol=1e-4)


def test_what_files_hold_is_fitted_and_kept(tmp_path):
    kept = mm.Checkpointing(mode="disk", save_on="phase_end", directory=tmp_path)
    run, phase, _ = world(make_pipeline(StandardScaler(), DummyRegressor()), kept)
    run.run_phase(phase, **QUIET)
    assert list(tmp_path.glob("*.ckpt.mml"))


def test_a_training_phase_that_keeps_files_is_refused_before_its_first_epoch(tmp_path):
    fs = featureset(*arrays())
    net = torch.nn.Linear(6, 3)
    first = mm.ModelNode("first", net, fs)
    graph = mm.ModelGraph(
        [first, mm.ModelNode("net", OrthogonalMatchingPursuitCV(), fs.reference())],
        mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}),
    )
    loss = mm.AppliedLoss(mm.Loss("mse"), on="first", inputs=["outputs", "targets"])
    kept = mm.Checkpointing(mode="disk", save_on="epoch_end", directory=tmp_path)
    before = net.weight.detach().clone()
    phase = train_phase(graph, [loss], active_nodes=["first"], checkpointing=kept)
    with pytest.raises(ConfigError, match=r"OrthogonalMatchingPursuitCV of node 'net'"):
        experiment().run_phase(phase, **QUIET)
    assert torch.equal(net.weight, before)


def test_folds_in_workers_are_refused_before_a_worker_starts():
    fs = featureset(*arrays())
    fs.split_random({"train": 0.8, "val": 0.2}, seed=0)
    graph = graph_of(fs, OrthogonalMatchingPursuitCV(), opt=None)
    experiment()
    phase = mm.FitPhase("fit", input_sources=bindings(graph, split="train"), losses=[mse()])
    binding = mm.CVBinding(fs, ["train", "val"])
    with pytest.raises(ConfigError, match="n_jobs=1"):
        mm.CrossValidation(bindings=binding, n_folds=2, n_jobs=2, phase=phase).run(**QUIET)
    results = mm.CrossValidation(bindings=binding, n_folds=2, phase=phase).run(**QUIET)
    assert not results.failed_folds


def test_a_module_whose_state_is_no_tensor_is_refused_by_name(tmp_path):
    graph = graph_of(featureset(*arrays()), ExtraState(6, 1))
    graph.build()
    kept = mm.Checkpointing(mode="disk", save_on="epoch_end", directory=tmp_path)
    with pytest.raises(ConfigError, match=r"_extra_state', a dict.*register_buffer"):
        experiment().run_phase(train_phase(graph, checkpointing=kept), **QUIET)
