"""Settings by path, held against experiments that were written with these settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import modularml as mml
from modularml.errors import ConfigError, UnknownNameError
from modularml.models.torch import SequentialMLP
from modularml.strategies.variants.settings import settings_of
from modularml.strategies.variants.variant import Variant, variant_experiment
from tests.sweep_worlds import world
from tests.worlds import QUIET, arrays, experiment, featureset, mse


class Wide(nn.Module):
    def __init__(self, input_shape, output_shape, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(input_shape[0], width), nn.Tanh(), nn.Linear(width, output_shape[0])
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def changed(own: mml.Experiment, seed: int = 7, **changes) -> mml.Experiment:
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return variant_experiment(own, own.execution_plan, Variant("a", seed, changes=changes), "a")


def losses(own: mml.Experiment) -> np.ndarray:
    results = own.run(**QUIET)
    return results["train"].to_pandas().to_numpy()


@pytest.mark.parametrize(
    ("path", "value", "options"),
    [
        ("graph.optimizer.lr", 0.2, {"optimizer": ("adam", {"lr": 0.2})}),
        (
            "graph.optimizer.weight_decay",
            0.3,
            {"optimizer": ("adam", {"lr": 0.01, "weight_decay": 0.3})},
        ),
        ("graph.optimizer", "sgd", {"optimizer": ("sgd", {"lr": 0.01})}),
        (
            "graph.optimizer",
            mml.Optimizer("sgd", opt_kwargs={"lr": 0.5}),
            {"optimizer": ("sgd", {"lr": 0.5})},
        ),
        ("nodes.net.hidden_dim", 9, {"model": {"hidden_dim": 9}}),
        ("nodes.net.activation", "tanh", {"model": {"hidden_dim": 4, "activation": "tanh"}}),
        ("nodes.net.model", SequentialMLP(n_layers=3), {"model": {"n_layers": 3}}),
        ("phases.train.n_epochs", 4, {"n_epochs": 4}),
        ("phases.train.sampler.batch_size", 5, {"batch_size": 5}),
        ("losses.mse_net.weight", 3.0, {"weight": 3.0}),
        ("phases.train.losses.mse_net.weight", 3.0, {"weight": 3.0}),
        ("phases.train.callbacks.EarlyStopping.patience", 0, {"patience": 0, "n_epochs": 2}),
        ("callbacks.EarlyStopping.patience", 0, {"patience": 0}),
    ],
)
def test_a_changed_setting_is_that_of_an_experiment_written_with_it(path, value, options):
    mine = changed(world(), **{path.replace(".", "__"): value})
    options = dict(options)
    if "optimizer" in options:
        name, kwargs = options["optimizer"]
        options["optimizer"] = mml.Optimizer(name, opt_kwargs=kwargs)
    if "model" in options:
        options["model"] = SequentialMLP(**options["model"])
    with mml.ExperimentContext(registration_policy="error").activate():
        theirs = changed(world(**options))
        expected = losses(theirs)
    found = losses(mine)
    np.testing.assert_array_equal(found, expected)
    with mml.ExperimentContext(registration_policy="error").activate():
        unchanged = losses(changed(world()))
    assert "patience" in path or not np.array_equal(found, unchanged)


@pytest.mark.parametrize("above", ["phases.train.", ""])
def test_arguments_of_callbacks_change(above):
    own = world()
    new = changed(own, **{f"{above}callbacks.EarlyStopping.patience": 1})
    stops = [plan.phases["train"].callbacks[1] for plan in (own.execution_plan, new.execution_plan)]
    assert [stop.patience for stop in stops] == [5, 1]


def test_the_seed_determines_the_weights_and_nothing_else_changes_them():
    own = world()
    plans = [Variant("a", 1), Variant("a", 2, changes={"seed": 1}), Variant("a", 2)]
    found = [variant_experiment(own, own.execution_plan, v, "a").model_graph for v in plans]
    one, same, other = [graph.get_node("net").model.get_weights() for graph in found]
    for name in one:
        np.testing.assert_array_equal(one[name], same[name])
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_several_changes_of_one_optimizer_add_up():
    new = changed(world(), graph__optimizer="adamw", graph__optimizer__lr=0.3)
    found = new.model_graph.optimizer
    assert (found.name, found.kwargs) == ("adamw", {"lr": 0.3})
    assert found.learning_rates == {"default": 0.3}


def test_a_sampler_shared_by_two_phases_changes_in_one():
    own = world()
    first = own.execution_plan.phases["train"]
    more = mml.TrainPhase("more", input_sources=first.input_sources, losses=[mse()])
    own.execution_plan.add_phase(more)
    new = changed(own, phases__more__sampler__batch_size=4).execution_plan.phases
    sizes = {name: new[name].input_sources[0].sampler.batch_size for name in ("train", "more")}
    assert sizes == {"train": 16, "more": 4}
    assert first.input_sources[0].sampler.batch_size == 16


def test_arguments_of_a_class_and_of_estimators_change():
    fs = featureset(*arrays(40))
    pipe = make_pipeline(StandardScaler(), Ridge(alpha=1.0))
    wide = mml.TorchModelWrapper(model_class=Wide)
    nodes = [mml.ModelNode("wide", wide, fs), mml.ModelNode("pipe", pipe, fs)]
    mml.ModelGraph(nodes, mml.Optimizer("adam"))
    own = experiment(audit="off")
    own.execution_plan.add_phase(
        mml.FitPhase(
            "fit",
            input_sources=[
                mml.InputBinding(nodes[1].node_id, nodes[1].feature_refs[0]),
            ],
            active_nodes=["pipe"],
        )
    )
    changes = {"nodes.wide.width": 7, "nodes.pipe.ridge__alpha": 50.0}
    new = variant_experiment(own, own.execution_plan, Variant("a", 1, changes=changes), "a")
    assert new.model_graph.get_node("wide").model.inner.layers[0].out_features == 7
    assert new.model_graph.get_node("pipe").model.inner.get_params()["ridge__alpha"] == 50.0
    assert pipe.get_params()["ridge__alpha"] == 1.0
    new.run(**QUIET)
    x, y = arrays(40)
    expected = make_pipeline(StandardScaler(), Ridge(alpha=50.0)).fit(x, y.ravel()).predict(x)
    found = new.predict(fs, node="pipe")
    np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("graph.optimiser.lr", "graph.optimizer.lr"),
        ("nodes.net.hiden_dim", "nodes.net.hidden_dim"),
        ("nodes.nett.hidden_dim", "nodes.net.hidden_dim"),
        ("phases.train.epochs", "phases.train.n_epochs"),
        ("phases.train.sampler.batchsize", "phases.train.sampler.batch_size"),
        ("losses.mse.weight", "losses.mse_net.weight"),
    ],
)
def test_a_path_that_names_nothing_lists_the_closest(path, named):
    with pytest.raises(UnknownNameError, match=path) as caught:
        changed(world(), **{path: 1})
    assert named in str(caught.value)


def test_a_model_passed_as_an_object_names_the_remedy():
    own = world(model=nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 1)))
    with pytest.raises(ConfigError, match=r"model_class=\.\.\., model_kwargs"):
        changed(own, **{"nodes.net.hidden_dim": 3})


def test_a_setting_of_what_another_path_replaces_is_refused():
    own, choice = world(), mml.Optimizer("sgd")
    with pytest.raises(ConfigError, match="by name"):
        changed(own, graph__optimizer=choice, graph__optimizer__lr=0.1)
    with pytest.raises(ConfigError, match="no effect"):
        changed(own, nodes__net__model=SequentialMLP(), nodes__net__hidden_dim=3)


def test_a_frozen_node_keeps_its_model():
    own = world()
    own.model_graph.get_node("net").freeze()
    for path, value in {"nodes.net.hidden_dim": 3, "nodes.net.model": SequentialMLP()}.items():
        with pytest.raises(ConfigError, match="frozen"):
            changed(own, **{path: value})


def test_arguments_of_a_schedule_change():
    schedule = mml.LRSchedule("step", schedule_kwargs={"step_size": 1, "gamma": 0.5})
    new = changed(world(schedule=schedule), graph__optimizer__schedule__gamma=0.1)
    assert new.model_graph.optimizer.schedule.schedule_kwargs == {"step_size": 1, "gamma": 0.1}
    assert schedule.schedule_kwargs["gamma"] == 0.5


def test_all_settings_of_an_experiment_are_listed():
    own = world()
    found = settings_of(own, own.execution_plan)
    expected = {"seed", "graph.optimizer.lr", "nodes.net.dropout", "phases.eval.batch_size"}
    assert expected <= set(found)
    assert not [path for path in found if path.startswith("nodes.net.optimizer.")]
