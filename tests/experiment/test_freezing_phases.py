"""Nodes that are frozen during one phase, held against loops by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.callbacks import Callback, ProgressiveUnfreezing
from modularml.errors import ConfigError, GraphError, UnknownNameError
from modularml.phases.group import PhaseGroup
from tests.fuzz.stopping import differences, outcome
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    assert_same_folds,
    by_hand,
    experiment,
    featureset,
    mlp,
    mse,
    train_phase,
    twin,
    weights,
)

pytestmark = pytest.mark.filterwarnings("ignore::modularml.strategies.SelectionWarning")


def chain(*, own=False, opt="sgd", n=48, model=None):
    """Return encoder -> head, with one optimizer or one each."""
    x, y = arrays(n=n)
    fs = featureset(x, y, cell=np.arange(n) // 4)
    fs.split_random({"train": 0.75, "val": 0.25}, seed=0, group_by="cell")
    opts = [mm.Optimizer(opt, opt_kwargs={"lr": 0.05}) for _ in range(2)]
    model = model or (lambda d, out, seed: mlp(d=d, out=out, seed=seed))
    enc = mm.ModelNode("enc", model(6, 4, 1), fs, opts[0] if own else None)
    net = mm.ModelNode("net", model(4, 1, 2), enc, opts[1] if own else None)
    return mm.ModelGraph([enc, net], None if own else opts[0]), x, y


def plan(graph, *, freeze="enc", **kwargs):
    first = train_phase(graph, label="head", n_epochs=2, freeze=[graph.get_node(freeze)], **kwargs)
    return PhaseGroup("outer", [PhaseGroup("inner", [first]), train_phase(graph, n_epochs=2)])


@pytest.mark.parametrize("own", [False, True])
def test_equals_a_loop_that_freezes(own):
    graph, x, y = chain(own=own)
    enc, net = (graph.get_node(k).model.module for k in ("enc", "net"))
    hand = nn.Sequential(twin(enc), twin(net))
    before, seen = weights(enc), []

    class Watch(Callback):
        def on_epoch_end(self, **facts):
            seen.append((torch.equal(enc[0].weight, before["0.weight"]), *graph.frozen_nodes))

    exp = experiment()
    exp.run_group(plan(graph, callbacks=[Watch()]), **QUIET)
    assert [same for same, _ in seen] == [True, True]
    assert not graph.frozen_nodes
    hand[0].requires_grad_(False)
    by_hand(hand, lambda p: torch.optim.SGD(p, lr=0.05), x, y, epochs=2)
    hand[0].requires_grad_(True)
    by_hand(hand, lambda p: torch.optim.SGD(p, lr=0.05), x, y, epochs=2)
    assert_equal_weights(enc, hand[0], atol=1e-6)
    assert_equal_weights(net, hand[1], atol=1e-6)


def test_keras():
    from tests import keras_worlds

    graph, _, _ = chain(opt="SGD", model=lambda d, out, seed: keras_worlds.net(d, out, seed=seed))
    graph.build()
    enc = graph.get_node("enc").model.module
    before = [v.numpy().copy() for v in enc.variables().values()]
    exp = experiment()
    group = plan(graph)
    exp.run_phase(group.get_group("inner").get_phase("head"), **QUIET)
    for old, v in zip(before, enc.variables().values(), strict=True):
        np.testing.assert_array_equal(old, v)
    exp.run_phase(group.get_phase("train"), **QUIET)
    assert any(
        (old != v.numpy()).any() for old, v in zip(before, enc.variables().values(), strict=True)
    )


def test_its_own_flag_and_states_stay():
    graph, _, _ = chain()
    graph.freeze(["enc"])
    copies = []

    class Copies(Callback):
        def on_epoch_end(self, **facts):
            copies.append((copy.deepcopy(graph.get_node("net")), graph.get_state()))

    graph.unfreeze()
    phase = train_phase(graph, freeze=["enc"], callbacks=[Copies()])
    experiment().run_phase(phase, **QUIET)
    assert not copies[0][1]["nodes"]["enc"]["frozen"]
    graph.freeze(["enc"])
    experiment("second").run_phase(train_phase(graph, freeze=["enc"]), **QUIET)
    assert list(graph.frozen_nodes) == [graph.get_node("enc").node_id]


def test_after_an_error_nothing_is_frozen():
    graph, _, _ = chain()

    class Fails(Callback):
        def on_epoch_end(self, **facts):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        experiment().run_phase(train_phase(graph, freeze=["enc"], callbacks=[Fails()]), **QUIET)
    assert not graph.frozen_nodes
    assert all(p.requires_grad for p in graph.get_node("enc").model.module.parameters())


class EndsOfFreezing(Callback):
    def __init__(self, at=-1):
        super().__init__("ends")
        self.n_, self.at = 0, -1
        self.stops = at

    def on_epoch_end(self, **facts):
        self.n_ += 1
        if self.n_ == self.stops:
            raise ValueError("mine")


def checkpointed(folder, at, resume=None):
    with mm.ExperimentContext().activate():
        graph, _, _ = chain(opt="adam")
        saving = None if folder is None else mm.Checkpointing(mode="disk")
        first = train_phase(graph, label="head", n_epochs=3, freeze=["enc"], checkpointing=saving,
                            callbacks=[EndsOfFreezing()], shuffle=True)  # fmt: skip
        first.callbacks[0].stops = at
        exp = experiment(audit="off")
        exp.execution_plan.add_phase(first).add_phase(train_phase(graph, n_epochs=2))
        if folder is not None:
            exp.set_checkpoint_dir(folder)
        if at > 0:
            with pytest.raises(ValueError, match="mine"):
                exp.run(**QUIET)
        else:
            exp.run(resume=resume, **QUIET)
        return outcome(exp)


def test_resume_in_the_middle(tmp_path):
    checkpointed(tmp_path, 2)
    assert not differences(checkpointed(None, -1), checkpointed(tmp_path, -1, "auto"))


@pytest.mark.parametrize(
    "how", [{"stacked": True}, pytest.param({"n_jobs": 2}, marks=pytest.mark.slow)]
)
def test_folds(how):
    def plan():
        model = lambda d, out, seed: mm.models.torch.SequentialMLP(  # noqa: E731
            output_shape=(out,), hidden_dim=4
        )
        graph, _, _ = chain(n=160, opt="adam", model=model)
        graph.build()
        exp = experiment(audit="off")
        sampler = mm.SimpleSampler(batch_size=16, shuffle=True, seed=0)
        for label, freeze in (("head", ["enc"]), ("all", None)):
            exp.execution_plan.add_phase(
                mm.TrainPhase.from_split(
                    label, split="train", sampler=sampler, losses=[mse()], n_epochs=3,
                    freeze=freeze,
                )
            )  # fmt: skip
        return exp

    assert_same_folds(plan, how, atol=1e-5)


def test_config_and_refusals():
    graph, _, _ = chain()
    phase = train_phase(graph, freeze=["enc"])
    assert mm.TrainPhase.from_config(phase.get_config()).freeze == ["enc"]
    with pytest.raises(UnknownNameError, match="encc"):
        train_phase(graph, freeze=["encc"])
    for bad in ("enc", []):
        with pytest.raises(ConfigError, match="freeze must be a list"):
            train_phase(graph, freeze=bad)
    with pytest.raises(GraphError, match="nothing can be trained"):
        experiment().run_phase(train_phase(graph, freeze=["enc", "net"]), **QUIET)
    callback = ProgressiveUnfreezing({1: "enc"})
    with pytest.raises(ConfigError, match="omit them in freeze="):
        experiment("e").run_phase(train_phase(graph, freeze=["enc"], callbacks=[callback]), **QUIET)
