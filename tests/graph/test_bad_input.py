"""What cannot work is refused where it was asked for, with the names, and changes nothing."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from torch import nn

import modularml as mm
from modularml.errors import ModularMLError, ShapeError
from tests.worlds import (
    QUIET,
    arrays,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    train_phase,
)


def sgd():
    return mm.Optimizer("sgd", opt_kwargs={"lr": 0.05})


def world(optimizer=True):
    """Return data -> left, right -> both -> net, and an estimator beside it."""
    fs = featureset(*arrays(n=20))
    left, right = (mm.ModelNode(name, mlp(out=2), fs) for name in ("left", "right"))
    both = mm.ConcatNode("both", [left, right], concat_axis_targets="first")
    net = mm.ModelNode("net", mlp(d=4), both)
    ridge = mm.ModelNode("ridge", Ridge(), fs)
    graph = mm.ModelGraph([left, right, both, net, ridge], sgd() if optimizer else None)
    graph.build()
    return fs, graph


def extra(graph, label="extra", d=6, out=1, above="data"):
    return mm.ModelNode(label, mlp(d=d, out=out), above)


def start(graph, *losses, **kwargs):
    experiment().run_phase(train_phase(graph, list(losses), **kwargs), **QUIET)


def circle(graph):
    left, net = graph.get_node("left"), graph.get_node("net")
    left.set_upstream_refs([net])
    try:
        mm.ModelGraph(list(graph.nodes.values()), register=False)
    finally:
        left.set_upstream_refs(["data"])


def unfrozen_only(graph, *labels):
    graph.freeze([n for n in ("left", "right", "net", "ridge") if n not in labels])


CASES = {
    "circle": (circle, "circle: .*net"),
    "dangling": (
        lambda g: mm.ModelGraph([g.get_node("net")], register=False),
        r"'net' reads from 'both', which is not in the graph",
    ),
    "unknown label": (lambda g: mm.ModelGraph(["lft"], register=False), "'left'"),
    "loss on an unknown node": (lambda g: start(g, mse("nte")), "closest: 'net'|'net'"),
    "loss on a role": (
        lambda g: start(
            g,
            mm.AppliedLoss(mm.Loss("mse"), "net", ["outputs.anchor", "targets"]),
            active_nodes=["net"],
        ),
        r"'anchor'.*\['default'\]",
    ),
    "no data of its own": (
        lambda g: start(
            g, mm.AppliedLoss(mm.Loss("mse"), "net", ["outputs", "tags"]), active_nodes=["net"]
        ),
        "tags of node 'net'",
    ),
    "frozen": (
        lambda g: (g.freeze(), start(g, mse("net"), active_nodes=["net"])),
        r"\['left', 'right', 'both', 'net'\] are frozen",
    ),
    "unfitted": (
        lambda g: g.predict(arrays()[0], node="ridge"),
        "node 'ridge' has not been fitted",
    ),
    "unfitted in training": (lambda g: start(g, mse("net")), "node 'ridge' has not been fitted"),
    "an edit that takes an input of a merge": (lambda g: g.remove_node("both"), "'net' takes 1"),
    "an edit of what is not there": (lambda g: g.remove_node("nett"), "'net'"),
    "an edge that is not there": (
        lambda g: g.insert_node_between(extra(g), upstream="left", downstream="net"),
        r"'net' does not read from 'left'.*'both'",
    ),
    "a node that reads from a stranger": (
        lambda g: g.add_node(extra(g, above=extra(g, "stranger"))),
        "'extra' reads from 'stranger', which is not in the graph",
    ),
    "a label twice": (
        lambda g: g.add_node(mm.ModelNode("net", mlp(), "data", register=False)),
        "'net' already",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    fs, graph = world()
    act, message = CASES[name]
    wiring = {n.label: [r.node_label for r in n.upstream_refs] for n in graph.nodes.values()}
    before = {n: graph.get_node(n).model.get_weights() for n in ("left", "right", "net")}
    with pytest.raises(ModularMLError, match=message):
        act(graph)
    assert wiring == {
        n.label: [r.node_label for r in n.upstream_refs] for n in graph.nodes.values()
    }
    for label, weights in before.items():
        for key, value in graph.get_node(label).model.get_weights().items():
            np.testing.assert_array_equal(value, weights[key])
    assert graph.predict(fs, node="net").shape == (20, 1)


def test_no_optimizer():
    _, graph = world(optimizer=False)
    with pytest.raises(ModularMLError, match=r"\['left', 'right', 'net'\] learn but have no opt"):
        start(graph, mse("net"), active_nodes=["net"])


def test_a_merge_that_cannot_be_built():
    fs = featureset(*arrays(n=20))
    flat, square = (
        mm.ModelNode("flat", mlp(out=2), fs),
        mm.ModelNode("cube", nn.Unflatten(1, (2, 3)), fs),
    )
    graph = mm.ModelGraph([flat, square, mm.ConcatNode("both", [flat, square])])
    with pytest.raises(ShapeError, match=r"'both' cannot merge flat: \(2,\), cube: \(2, 3\)"):
        graph.build()
    assert not graph.is_built


def test_one_optimizer_for_two_frameworks():
    keras = pytest.importorskip("tests.keras_worlds").keras
    fs = featureset(*arrays(n=20))
    a = mm.ModelNode("a", mlp(), fs)
    b = mm.ModelNode("b", keras.Sequential([keras.layers.Dense(1)]), fs)
    message = "share one optimizer .*a: torch, b: tensorflow"
    with pytest.raises(ModularMLError, match=message):
        mm.ModelGraph([a, b], mm.Optimizer("adam"), register=False)
    graph = mm.ModelGraph([a], mm.Optimizer("adam"))
    with pytest.raises(ModularMLError, match=message):
        graph.add_node(b)
    assert graph.node_labels == {"a"}
    c = mm.ModelNode("c", keras.Sequential([keras.layers.Dense(1)]), fs, mm.Optimizer("adam"))
    graph.add_node(c)
    start(graph, mse("a"), mse("c"), n_epochs=1)


def test_outputs_that_change_their_shape():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 1)

        def forward(self, x):
            out = self.linear(x)
            return out.repeat(1, 2) if len(x) == 4 else out

    graph = graph_of(featureset(*arrays(n=20)), Odd())
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(
            ShapeError,
            match=r"node 'net' gives samples of shape \(2,\) in batch 1, and gave \(1,\)",
        ),
    ):
        start(graph, mse("net"))
