"""Sums, means and functions as nodes: equal to one module written by hand."""

import operator

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.data import Batch, RoleData
from modularml.errors import ConfigError, DataError, GraphError, ShapeError, UnknownNameError
from modularml.graph import function_registry
from modularml.models.torch import SequentialMLP
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    by_hand,
    eval_phase,
    experiment,
    featureset,
    mlp,
    train,
    train_phase,
    twin,
)


def gated(a, b, power=1.0):
    """Return a, gated by b."""
    return a * torch.sigmoid(b) ** power


def halves(x):
    return x[: len(x) // 2]


class ByHand(nn.Module):
    def __init__(self, a, b, head, join):
        super().__init__()
        self.a, self.b, self.head, self.join = twin(a), twin(b), twin(head), join

    def forward(self, x):
        return self.head(self.join(self.a(x), self.b(x)))


def two(make, fs=None, models=None):
    """Return encoders a and b, a node that joins them and a head."""
    fs = fs if fs is not None else featureset(*arrays(n=45))
    a, b, head = models or (mlp(out=3, seed=1), mlp(out=3, seed=2), mlp(d=3, seed=3))
    nodes = [mm.ModelNode("a", a, fs), mm.ModelNode("b", b, fs)]
    join = make("join", nodes)
    tail = mm.ModelNode("net", head, join)
    return mm.ModelGraph([*nodes, join, tail], mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}))


def modules(graph):
    return [graph.get_node(label).model.module for label in ("a", "b", "net")]


CASES = [
    (mm.SumNode, operator.add),
    (mm.MeanNode, lambda a, b: (a + b) / 2),
    (lambda *a: mm.FunctionNode(*a, "Multiply"), operator.mul),
    (
        lambda *a: mm.FunctionNode(*a, gated, function_kwargs={"power": 2.0}),
        lambda a, b: gated(a, b, 2),
    ),
]
IDS = ["sum", "mean", "named", "function"]


@pytest.mark.parametrize(("make", "join"), CASES, ids=IDS)
def test_training_equals_one_module(make, join):
    x, y = arrays(n=45)
    graph = two(make)
    hand = ByHand(*modules(graph), join)
    train(graph, n_epochs=2)
    by_hand(hand, lambda p: torch.optim.SGD(p, lr=0.05), x, y)
    assert graph.get_node("join").output_shape == (3,)
    for mine, theirs in zip(modules(graph), (hand.a, hand.b, hand.head), strict=True):
        assert_equal_weights(mine, theirs, atol=1e-6)


def test_function_of_one_input_before_a_model():
    x, y = arrays(n=40)
    fs = featureset(x, y)
    net = mlp()
    hand = nn.Sequential(twin(net))
    node = mm.FunctionNode("minus", fs, "negative")
    graph = mm.ModelGraph(
        [node, mm.ModelNode("net", net, node)], mm.Optimizer("sgd", opt_kwargs={"lr": 0.05})
    )
    train(graph, n_epochs=2)
    by_hand(hand, lambda p: torch.optim.SGD(p, lr=0.05), -x, y)
    assert_equal_weights(net, hand, atol=1e-6)
    np.testing.assert_allclose(graph.predict(fs), hand(torch.tensor(-x)).detach(), rtol=1e-5)


@pytest.mark.parametrize("make", [c[0] for c in CASES], ids=IDS)
def test_config_state_and_file(make, tmp_path):
    fs = featureset(*arrays(n=45))
    own = [SequentialMLP(output_shape=(n,)) for n in (3, 3, 1)]
    graph = two(make, fs, own)
    train(graph)
    want = graph.predict(fs)
    path = graph.save(tmp_path / "g")
    again = mm.ModelGraph.load(path, custom_objects={"gated": gated})
    np.testing.assert_array_equal(again.predict(fs), want)
    assert repr(again.get_node("join")) == repr(graph.get_node("join"))
    assert again.get_node("join")._strategies == graph.get_node("join")._strategies


def test_strategies_ids_and_targets_travel():
    x, y = arrays(n=12)
    one, other = featureset(x, y, "one", t=y[:, 0] + 1), featureset(x, 3 * y, "two", t=y[:, 0])
    nodes = [mm.ModelNode("a", mlp(seed=1), one), mm.ModelNode("b", mlp(seed=2), other)]
    how = {"target_strategy": "mean", "tags_strategy": nodes[1], "align_on": "position"}
    total = mm.SumNode("net", nodes, **how)
    graph = mm.ModelGraph([*nodes, total], mm.Optimizer("sgd"))
    result = experiment().run_phase(eval_phase(graph, batch_size=5))
    np.testing.assert_allclose(result.stacked_tensors("net", "targets", fmt="np"), 2 * y, rtol=1e-6)
    np.testing.assert_allclose(result.stacked_tensors("net", "tags", fmt="np"), y)
    batch = result.execution_contexts().at(epoch=0, batch=0).outputs[total.node_id]
    assert list(batch.role_data["default"].sample_uuids) == list(one.get_sample_uuids()[:5])
    with pytest.raises(TypeError, match="axis"):
        _ = total.target_axis


class TestErrors:
    def test_shapes_name_nodes(self):
        fs = featureset(*arrays(n=12))
        nodes = [mm.ModelNode("a", mlp(out=2), fs), mm.ModelNode("b", mlp(out=3), fs)]
        for node in (mm.SumNode("s", nodes), mm.MeanNode("m", nodes)):
            with pytest.raises(ShapeError, match=r"a: \(2,\), b: \(3,\).*equal shapes"):
                mm.ModelGraph([*nodes, node], register=False).build()

    @pytest.mark.parametrize(
        ("fn", "match"), [(torch.matmul, "matmul.*cannot take"), (halves, "keep axis 0")]
    )
    def test_functions_that_do_not_fit(self, fn, match):
        fs = featureset(*arrays(n=12))
        a = mm.ModelNode("a", mlp(out=2), fs)
        b = mm.ModelNode("b", mlp(out=3), fs)
        f = mm.FunctionNode("f", a if fn is halves else [a, b], fn)
        with pytest.raises(ShapeError, match=f"'f'.*a.*{match}"):
            mm.ModelGraph([a, b, f]).build()

    def test_construction(self):
        fs = featureset(*arrays(n=12))
        a = mm.ModelNode("a", mlp(), fs)
        with pytest.raises(GraphError, match="at least 2"):
            mm.SumNode("s", [a])
        with pytest.raises(UnknownNameError, match="multiply"):
            mm.FunctionNode("f", a, "multipl")
        with pytest.raises(ConfigError, match="callable"):
            mm.FunctionNode("f", a, 3)
        with pytest.raises(GraphError, match="no model"):
            mm.FunctionNode("lone", fs, "negative").build_from([(6,)], None)


def test_a_registered_function_goes_by_its_name():
    function_registry.register("gated", gated)
    node = mm.FunctionNode(
        "f", [featureset(*arrays(n=4), "p"), featureset(*arrays(n=4), "q")], "gated"
    )
    assert node.get_config()["function"] == "gated"


def test_phase_continues_after_a_node_is_inserted():
    graph = two(mm.SumNode)
    exp = experiment()
    exp.run_phase(train_phase(graph, label="one"), **QUIET)
    node = mm.FunctionNode("abs", graph.get_node("a"), "absolute")
    graph.insert_node_between(node, upstream="a", downstream="join")
    exp.run_phase(train_phase(graph, label="two"), **QUIET)
    assert graph.get_node("abs").output_shape == (3,)


@pytest.mark.parametrize("kind", ["Add", "Average", "Multiply"])
def test_training_equals_one_functional_keras_model(kind):
    keras = pytest.importorskip("keras")
    x, y = arrays(n=45)
    keras.utils.set_random_seed(0)
    given = keras.Input((6,))
    a, b, head = keras.layers.Dense(3, "tanh"), keras.layers.Dense(3), keras.layers.Dense(1)
    whole = keras.Model(given, head(getattr(keras.layers, kind)()([a(given), b(given)])))
    before = whole.get_weights()
    optimizer = keras.optimizers.SGD(0.05)
    whole.compile(optimizer, "mse")
    whole.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    want = whole.get_weights()
    whole.set_weights(before)
    make = {
        "Add": mm.SumNode,
        "Average": mm.MeanNode,
        "Multiply": lambda *args: mm.FunctionNode(*args, "multiply"),
    }[kind]
    flat = [keras.Sequential([keras.layers.Flatten(), layer]) for layer in (a, b)]
    graph = two(make, featureset(x, y), [*flat, keras.Sequential([head])])
    train(graph, n_epochs=2)
    for mine, theirs in zip(whole.get_weights(), want, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert graph.get_node("join").output_shape == (3,)


def test_merge_nodes_called_by_hand_give_what_the_graph_gives():
    mm.Experiment("by hand")
    rng = np.random.default_rng(0)
    rows = {"x": rng.normal(size=(6, 3)), "y": rng.normal(size=6)}
    fs = mm.FeatureSet.from_dict("rows", rows, "x", "y")
    a, b = (mm.ModelNode(n, nn.Linear(3, 2), fs.reference()) for n in "ab")
    both = mm.ConcatNode("both", [a, b], concat_axis=-1, concat_axis_targets="first")
    assert (both.is_built, both.input_shapes) == (False, [None, None])
    flat = mm.FlattenNode("flat", both)
    graph = mm.ModelGraph([a, b, both, flat])
    graph.build()
    assert (both.is_built, both.backend) == (True, a.backend)
    assert both.input_shapes == [a.output_shape, b.output_shape]
    data = fs.to_sample_data("numpy")
    out = both([a(data), b(data)])
    assert out.outputs.requires_grad
    found = out.to("numpy")
    np.testing.assert_array_equal(found.outputs, graph.predict(fs, node="both"))
    np.testing.assert_array_equal(found.targets, data.targets)
    np.testing.assert_array_equal(flat(out).to("numpy").outputs, graph.predict(fs, node="flat"))
    roles = RoleData({"one": data, "two": data})
    np.testing.assert_array_equal(both([a(roles), b(roles)]).two.to("numpy").outputs, found.outputs)
    batch = Batch(RoleData({"default": data}), {"default": np.arange(6.0)})
    merged = both([a(batch), b(batch)])
    np.testing.assert_array_equal(merged.to("numpy").outputs, found.outputs)
    arrays = [a(data).to("numpy").outputs, b(data).outputs]
    np.testing.assert_array_equal(both(arrays).detach().numpy(), found.outputs)
    with pytest.raises(DataError, match="different samples"):
        both([a(data), b(fs.take([5, 4, 3, 2, 1, 0]).to_sample_data("numpy"))])
    with pytest.raises(GraphError, match="one per input"):
        both(a(data))
