"""What cannot work is refused where it was asked for, with the names, and changes nothing."""

import joblib
import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

import modularml as mm
from modularml.errors import (
    GraphError,
    LossError,
    NotFittedError,
    OptimizerNotSetError,
    ShapeError,
    UnknownNameError,
)
from modularml.models.torch import SequentialMLP
from tests.worlds import (
    QUIET,
    arrays,
    bindings,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mse,
    train_phase,
)

ALL = ("left", "right", "net", "ridge")


def sgd():
    return mm.Optimizer("sgd", opt_kwargs={"lr": 0.05})


def net(label, above, out=1):
    return mm.ModelNode(label, SequentialMLP(output_shape=(out,), hidden_dim=4), above)


def world(optimizer=True):
    """Return a graph: data -> left, right -> both -> net, and an estimator beside it."""
    fs = featureset(*arrays(n=20))
    left, right = net("left", fs, 2), net("right", fs, 2)
    both = mm.ConcatNode("both", [left, right], concat_axis_targets="first")
    nodes = [left, right, both, net("net", both), mm.ModelNode("ridge", Ridge(), fs)]
    return mm.ModelGraph(nodes, sgd() if optimizer else None)


def on_net(*inputs):
    return mm.AppliedLoss(mm.Loss("mse"), "net", list(inputs))


def made(graph, *losses, **kwargs):
    """Only make a phase; it never runs."""
    return train_phase(graph, list(losses), **{"active_nodes": ["net"], **kwargs})


def start(graph, *losses, **kwargs):
    experiment().run_phase(made(graph, *losses, **kwargs), **QUIET)


def circle(graph):
    left = graph.get_node("left")
    left.set_upstream_refs(["net"])
    try:
        mm.ModelGraph(list(graph.nodes.values()), register=False)
    finally:
        left.set_upstream_refs(["data"])


def fed(graph):
    return {
        (node.node_id, ref): graph.context.get_node("data").to_view().to_sample_data()
        for node in graph.head_nodes.values()
        for ref in node.feature_refs
    }


def frozen_step(graph):
    (ctx, *_) = made(graph, mse("net")).iter_execution(show_training_progress=False)
    graph.train_step(ctx, [mse("net")], active_nodes=["net"])


def with_keras(graph):
    keras = pytest.importorskip("tests.keras_worlds").keras
    dense = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    return mm.ModelNode("dense", dense, "data", register=False)


CASES = {
    "circle": (circle, GraphError, ["cycle", "'?net", "left"]),
    "dangling": (
        lambda g: mm.ModelGraph(
            [g.get_node("net"), mm.ConcatNode("bot", ["left", "right"])], register=False
        ),
        GraphError,
        ["'net' reads from 'both', which is not in the graph", "did you mean 'bot'"],
    ),
    "unknown label": (
        lambda g: mm.ModelGraph(["lft"], register=False),
        UnknownNameError,
        ["'lft'", "did you mean 'left'"],
    ),
    "loss on an unknown node": (
        lambda g: made(g, mse("nte")),
        UnknownNameError,
        ["'nte'", "did you mean 'net'"],
    ),
    "loss of an unknown node": (
        lambda g: made(g, on_net("outputs", "bothh.outputs")),
        UnknownNameError,
        ["'mse_net'", "did you mean 'both'"],
    ),
    "loss on a role": (
        lambda g: made(g, on_net("outputs.defualt", "targets")),
        LossError,
        ["'mse_net' on node 'net'", "role 'defualt'", "did you mean 'default'"],
    ),
    "loss on what is not there": (
        lambda g: made(g, on_net("outputs", "tags")),
        LossError,
        ["tags of node 'net'"],
    ),
    "loss on a node that does not run": (
        lambda g: made(g, mse("ridge")),
        LossError,
        ["'mse_ridge'", r"\['left', 'right', 'both', 'net'\]"],
    ),
    "loss by an unknown name": (
        lambda g: made(g, mm.AppliedLoss(mm.Loss("msee"), "net", ["outputs", "targets"])),
        UnknownNameError,
        ["did you mean 'mse'"],
    ),
    "nothing that could learn": (
        lambda g: made(g, mse("ridge"), active_nodes=["ridge"]),
        GraphError,
        [r"\['ridge'\]"],
    ),
    "nothing that could be fitted": (
        lambda g: mm.FitPhase("fit", input_sources=bindings(g), active_nodes=["net"]),
        GraphError,
        ["'net'", "fit\\(features, targets\\)"],
    ),
    "two frameworks under one optimizer": (
        lambda g: mm.ModelGraph([*g.nodes.values(), with_keras(g)], sgd(), register=False),
        GraphError,
        ["net: torch", "dense: tensorflow", "their own optimizers"],
    ),
    "a node of another framework": (
        lambda g: g.add_node(with_keras(g)),
        GraphError,
        ["net: torch", "dense: tensorflow"],
    ),
    "unfitted": (
        lambda g: g.predict(arrays()[0], node="ridge"),
        NotFittedError,
        ["'ridge' has not been fitted"],
    ),
    "unfitted in a forward pass": (
        lambda g: g.forward(fed(g), active_nodes=["ridge"]),
        NotFittedError,
        ["'ridge' has not been fitted"],
    ),
    "unfitted by hand": (
        lambda g: g.get_node("ridge")(g.context.get_node("data").to_view().to_sample_data()),
        NotFittedError,
        ["'ridge' has not been fitted"],
    ),
    "unfitted in an evaluation": (
        lambda g: experiment().run_phase(eval_phase(g, [mse("net")]), **QUIET),
        NotFittedError,
        ["'ridge' has not been fitted"],
    ),
    "unfitted in training": (
        lambda g: start(g, mse("net"), active_nodes=None),
        NotFittedError,
        ["'ridge' has not been fitted"],
    ),
    "an edit that orphans": (
        lambda g: g.remove_node("both"),
        GraphError,
        ["'net' takes 1", "ConcatNode"],
    ),
    "an edit of what is not there": (
        lambda g: g.remove_node("nett"),
        UnknownNameError,
        ["did you mean 'net'"],
    ),
    "an edge that is not there": (
        lambda g: g.insert_node_between(net("new", "data"), upstream="left", downstream="net"),
        GraphError,
        ["'net' does not read from 'left'", "'both'"],
    ),
    "a node that reads from a stranger": (
        lambda g: g.add_node(net("new", net("letf", "data"))),
        GraphError,
        ["'new' reads from 'letf', which is not in the graph", "did you mean 'left'"],
    ),
    "a label twice": (
        lambda g: g.add_node(mm.ModelNode("net", SequentialMLP(), "data", register=False)),
        GraphError,
        ["already has a node 'net'"],
    ),
}


def facts(graph):
    """Return everything that a graph is, as a hash."""
    return joblib.hash((graph.get_config(), graph.get_state(), graph.is_built))


def refused(graph, act, error, words):
    before = facts(graph)
    with pytest.raises(error) as caught:
        act(graph)
    for word in words:
        assert caught.match(word)
    assert facts(graph) == before


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    graph = world()
    if name != "a node of another framework":  # the optimizer belongs to torch once it is built
        graph.build()
    refused(graph, *CASES[name])
    graph.build()
    assert graph.predict(graph.context.get_node("data"), node="net").shape == (20, 1)


def test_no_optimizer():
    graph = world(optimizer=False)
    message = [r"\['left', 'right', 'net'\] have no optimizer"]
    refused(graph, lambda g: made(g, mse("net")), OptimizerNotSetError, message)
    graph.replace_node("net", mm.ModelNode("own", SequentialMLP(), "both", sgd()))
    phase = made(graph, mse("own"), active_nodes=["own"])  # others may be frozen by then
    graph.build()
    message = [r"\['left', 'right'\] have no optimizer"]
    run = lambda g: experiment().run_phase(phase, **QUIET)  # noqa: E731
    refused(graph, run, OptimizerNotSetError, message)
    graph.freeze(["left", "right"])
    run(graph)


@pytest.mark.parametrize("run", [lambda g: start(g, mse("net")), frozen_step], ids=["run", "step"])
def test_frozen(run):
    graph = world()
    graph.build()
    graph.freeze()
    message = [r"\['left', 'right', 'both', 'net'\] are frozen", "unfreeze"]
    refused(graph, run, GraphError, message)
    phase = made(graph, mse("net"))  # it may be made while all is frozen
    graph.unfreeze()
    experiment().run_phase(phase, **QUIET)


def test_a_phase_without_an_input():
    graph = world()
    one = bindings(graph, mm.SimpleSampler(batch_size=8))[:1]
    refused(
        graph,
        lambda g: mm.TrainPhase("t", input_sources=one, losses=[mse("net")], active_nodes=["net"]),
        GraphError,
        ["head node 'right'", "InputBinding"],
    )


class Odd(nn.Module):
    """Gives four samples another shape."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 1)

    def forward(self, x):
        out = self.linear(x)
        return out.repeat(1, 3) if len(x) == 4 else out


class OddModel(SequentialMLP):
    def forward(self, x):
        out = super().forward(x)
        return out.repeat(1, 3) if len(x) == 4 else out


@pytest.mark.parametrize("recording", ["none", "last", "all"])
@pytest.mark.parametrize(
    "act",
    [
        lambda g, how: start(g, mse("net"), active_nodes=None, result_recording=how),
        lambda g, how: g.predict(arrays(n=4)[0]),
        lambda g, how: experiment().run_phase(eval_phase(g, batch_size=16), **QUIET),
    ],
    ids=["train", "predict", "eval"],
)
def test_outputs_that_change_their_shape(act, recording):
    graph = graph_of(featureset(*arrays(n=20)), OddModel(hidden_dim=4), "adam", lr=0.0)
    graph.build()
    words = [r"node 'net' returned samples of shape \(3,\)", r"built for \(1,\)"]
    before = graph.get_node("net").model.get_weights()
    with pytest.raises(ShapeError) as caught:
        act(graph, recording)
    assert all(caught.match(word) for word in words)
    for name, value in graph.get_node("net").model.get_weights().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_batch_of_one_sample_that_becomes_a_single_number():
    class Squeezing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(6, 1)

        def forward(self, x):
            return self.linear(x.flatten(1)).squeeze()

    model = mm.TorchModelWrapper(model_class=Squeezing)
    graph = graph_of(featureset(*arrays(n=9)), model, "adam")
    phase = train_phase(graph, batch_size=4)
    with pytest.raises(ShapeError, match=r"a single number for a batch.*squeeze\(-1\)"):
        experiment().run_phase(phase, **QUIET)


def test_outputs_that_change_their_shape_with_keras():
    keras = pytest.importorskip("tests.keras_worlds").keras
    tf = pytest.importorskip("tensorflow")

    class OddKeras(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x, training=False):
            out = self.dense(x)
            return tf.repeat(out, 3, axis=1) if training else out

    graph = graph_of(featureset(*arrays(n=20)), OddKeras())
    with pytest.raises(ShapeError, match=r"node 'net' returned samples of shape \(3,\)"):
        start(graph, mse("net"), active_nodes=None, result_recording="none")


def unfit(fs):
    """Return flat (2,), cube (2, 3) -> both, whose shapes do not fit; nothing is built."""
    cube = mm.ModelNode("cube", SequentialMLP(output_shape=(2, 3), hidden_dim=4), fs, sgd())
    flat = net("flat", fs, 2)
    return mm.ModelGraph([flat, cube, mm.ConcatNode("both", [flat, cube])])


def test_a_merge_that_cannot_be_built():
    graph = unfit(featureset(*arrays(n=20)))
    words = [r"'both' cannot merge flat: \(2,\), cube: \(2, 3\)", "differ in their number of axes"]
    refused(graph, lambda g: g.build(), ShapeError, words)
    assert not any(graph.get_node(n).is_built for n in ("flat", "cube"))
    graph.replace_node("flat", mm.ModelNode("other", SequentialMLP(output_shape=(2, 3)), "data"))
    graph.build()  # what was made for the failed build is in nobody's way
    assert graph.get_node("both").output_shape == (4, 3)


def test_a_second_build_that_fails_forgets_nothing():
    fs = featureset(*arrays(n=20))
    ridge = mm.ModelNode("ridge", Ridge().fit(*arrays(n=20)), fs)
    first = mm.ModelNode("first", SequentialMLP(output_shape=(2,)), fs, sgd())
    graph = mm.ModelGraph([first, ridge])
    graph.build()
    before = graph.get_node("first").model.get_weights()
    odd = mm.ConcatNode("odd", [first, mm.ModelNode("cube", nn.Unflatten(1, (2, 3)), fs)])
    graph.add_node(graph.context.get_node("cube")).add_node(odd)
    with pytest.raises(ShapeError, match="'odd' cannot merge"):
        graph.build(force=True)
    for name, value in first.model.get_weights().items():
        np.testing.assert_array_equal(value, before[name])
    assert ridge.model.is_fitted
    assert first.optimizer.missing(first.parameters()) == []


def no_tensor(x):
    return np.asarray(x) * 2


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_function_that_returns_no_tensor(framework):
    fs = featureset(*arrays(n=20))
    model = nn.Linear(6, 2)
    if framework == "keras":
        keras = pytest.importorskip("tests.keras_worlds").keras
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    first = mm.ModelNode("first", model, fs)
    graph = mm.ModelGraph([first, mm.FunctionNode("twice", first, no_tensor)])
    with pytest.raises(ShapeError, match=r"'twice'.*'no_tensor' must return one .*Tensor.*ndarray"):
        graph.build()
    assert not graph.is_built
    with torch.no_grad():  # scikit-learn's own tensors are arrays
        alone = mm.ModelNode("ridge", Ridge().fit(*arrays(n=20)), fs)
        mm.ModelGraph([alone, mm.FunctionNode("of", alone, no_tensor)], register=False).build()
