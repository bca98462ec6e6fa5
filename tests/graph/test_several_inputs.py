"""A model of several inputs as one node, held against loops written by hand."""

import numpy as np
import pytest

import modularml as mml
from modularml.errors import DataError, GraphError, ShapeError

torch = pytest.importorskip("torch")

N, SIZE = 40, 8
rng = np.random.default_rng(0)
IDS = rng.permutation(np.repeat(np.arange(4), N // 4)) + 2**24
X = rng.normal(size=(N, 3)).astype("f4")
Y = rng.normal(size=N).astype("f4")


class Looks(torch.nn.Module):
    """Looks an id up and reads numbers beside it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.out = torch.nn.Embedding(4, 2), torch.nn.Linear(5, 1)

    def forward(self, ids, x):
        return self.out(torch.cat([self.rows((ids[:, 0] - 2**24).clamp(0)), x], 1))


def keras_model(kind):
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    rows, out = keras.layers.Embedding(4, 2), keras.layers.Dense(1)

    def outputs(ids, x):
        found = keras.ops.reshape(rows(keras.ops.maximum(ids - 2**24, 0)), (-1, 2))
        return out(keras.ops.concatenate([found, x], 1))

    if kind == "functional":
        ids, x = keras.Input((1,), dtype="int64", name="ids"), keras.Input((3,), name="x")
        return keras.Model([ids, x], outputs(ids, x))

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.rows, self.last = rows, out

        def call(self, ids, x):
            return outputs(ids, x)

    return Own()


def graph_of(kind, named=False):
    model = Looks() if kind == "torch" else keras_model(kind)
    rows = {"id": IDS, **dict(zip("abc", X.T, strict=True)), "y": Y}
    fs = mml.FeatureSet.from_dict("rows", rows, ["id", *"abc"], "y")
    fs.split_by_condition({"all": {"id": lambda ids: ids > 0}})
    refs = {"x": fs.reference(features=list("abc")), "ids": fs.reference(features="id")}
    node = mml.ModelNode("net", model, refs if named else [refs["ids"], refs["x"]])
    graph = mml.ModelGraph([node], mml.Optimizer("sgd", opt_kwargs={"lr": 0.1}))
    graph.build()
    return fs, graph


def loss():
    return mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])


def trained_by_hand(kind):
    """Return predictions of a twin after two epochs."""
    if kind == "torch":
        net = Looks()
        sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        ids, x, y = torch.tensor(IDS[:, None]), torch.tensor(X), torch.tensor(Y[:, None])
        for at in [*range(0, N, SIZE)] * 2:
            rows = slice(at, at + SIZE)
            sgd.zero_grad()
            torch.nn.functional.mse_loss(net(ids[rows], x[rows]), y[rows]).backward()
            sgd.step()
        return net(ids, x).detach().numpy()
    tf = pytest.importorskip("tensorflow")
    net = keras_model(kind)
    take = (lambda i, x: net([i, x])) if kind == "functional" else net
    for at in [*range(0, N, SIZE)] * 2:
        rows = slice(at, at + SIZE)
        with tf.GradientTape() as tape:
            out = take(tf.constant(IDS[rows, None]), tf.constant(X[rows]))
            error = tf.reduce_mean((out - Y[rows, None]) ** 2)
        weights = net.trainable_variables
        for w, g in zip(weights, tape.gradient(error, weights), strict=True):
            w.assign_sub(0.1 * tf.convert_to_tensor(g))
    return take(tf.constant(IDS[:, None]), tf.constant(X)).numpy()


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", ["torch", "functional", "subclass"])
def test_trains_as_by_hand(kind, named):
    exp = mml.Experiment("exp")
    fs, graph = graph_of(kind, named)
    sampler = mml.SimpleSampler(batch_size=SIZE)
    exp.run_phase(
        mml.TrainPhase.from_split("fit", split="all", losses=[loss()], n_epochs=2, sampler=sampler)
    )
    found = graph.predict(fs)
    np.testing.assert_allclose(found, trained_by_hand(kind), atol=1e-5)
    columns = {"id": IDS, **dict(zip("abc", X.T, strict=True))}
    np.testing.assert_array_equal(graph.predict(columns), found)
    with pytest.raises(DataError, match="bare array"):
        graph.predict(X)
    node = graph.get_node("net")
    views = {"ids": fs.select(features="id"), "x": fs.select(features=list("abc"))}
    given = {name: view.to_sample_data("numpy") for name, view in views.items()}
    out = node(given if named else list(given.values()))
    np.testing.assert_allclose(out.to("numpy").outputs, found, atol=1e-6)
    np.testing.assert_array_equal(out.sample_uuids, fs.get_sample_uuids())
    inputs = {
        (node.node_id, ref): fs.select(features=ref.features).to_sample_data("numpy")
        for ref in node.upstream_refs
    }
    forward = graph.forward(inputs)[node.node_id]
    np.testing.assert_allclose(forward.to("numpy").outputs, found, atol=1e-6)
    assert node.input_shapes == ([(3,), (1,)] if named else [(1,), (3,)])
    assert "1 + 3" in repr(graph.summary()) or "3 + 1" in repr(graph.summary())
    assert graph.visualize().to_mermaid().count("rows") > 0


def test_saved_graphs_read_the_same_inputs(tmp_path):
    mml.Experiment("exp")
    fs, graph = graph_of("functional", named=True)
    expected = graph.predict(fs)
    path = graph.save(tmp_path / "graph")
    mml.Experiment("again")
    fs, _ = graph_of("functional", named=True)
    np.testing.assert_array_equal(mml.ModelGraph.load(path).predict(fs), expected)


class Adds(torch.nn.Module):
    """Adds its inputs, times a weight of 1."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, a, b):
        return (a + b) * self.weight


def related(named=False, **on):
    """Return a graph whose loss is 0 where rows of two sets are paired by their key."""
    order, of = rng.permutation(10), rng.permutation(np.repeat(np.arange(10), 3))
    x, f = rng.normal(size=30).astype("f4"), rng.normal(size=10).astype("f4")
    columns = {"x": x, "y": x + f[of], "machine": of}
    windows = mml.FeatureSet.from_dict("W", columns, "x", "y", "machine")
    facts = mml.FeatureSet.from_dict("F", {"f": f[order], "machine": order}, "f", [], "machine")
    for fs in (windows, facts):
        fs.split_by_condition({"all": {"machine": lambda m: m >= 0}})
    refs = {"b": facts.reference(**on), "a": windows.reference(**on)}
    node = mml.ModelNode(
        "net", mml.TorchModelWrapper(model_class=Adds), refs if named else list(refs.values())
    )
    return mml.ModelGraph([node], mml.Optimizer("sgd", opt_kwargs={"lr": 0.0})), windows, facts


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_rows_of_two_sets_are_paired_by_their_key(named, frozen, tmp_path):
    exp = mml.Experiment("exp")
    graph, windows, facts = related(named, on="machine")
    graph.build()
    if frozen:
        graph.get_node("net").freeze()
    phase = mml.EvalPhase.from_split("eval", split="all", losses=[loss()])
    assert exp.run_phase(phase).losses("net").values()[0].auxiliary < 1e-9
    y = windows.get_targets("numpy")
    rows = {"W": windows, "F": facts}
    np.testing.assert_allclose(graph.predict(rows), y, atol=1e-6)
    node = graph.get_node("net")
    again = mml.ModelNode.from_config(node.get_config(), register=False)
    assert again.upstream_ref == node.upstream_ref


def test_sets_that_nothing_relates_are_refused():
    exp = mml.Experiment("exp")
    graph, *_ = related()
    graph.build()
    with pytest.raises(DataError, match="no key relates them"):
        exp.run_phase(mml.EvalPhase.from_split("eval", split="all", losses=[loss()]))


def test_refused_where_it_is_written():
    mml.Experiment("exp")
    fs, graph = graph_of("torch")
    refs = graph.get_node("net").upstream_refs
    with pytest.raises(GraphError, match="ConcatNode"):
        mml.ModelNode("mlp", mml.models.torch.SequentialMLP(), refs)
    other = mml.FeatureSet.from_dict("other", {"z": Y, "w": Y}, "z", "w")
    both = mml.ModelNode("both", Adds(), [fs.reference(features="a"), other])
    with pytest.raises(GraphError, match="targets="):
        mml.ModelGraph([both], register=False).build()
    with pytest.raises(GraphError, match="2 input"):
        graph.get_node("net")(fs.to_sample_data("numpy"))
    with pytest.raises(GraphError, match="2 inputs, got 1"):
        graph.get_node("net").set_upstream_refs([fs])


@pytest.mark.parametrize("several", [tuple, lambda outs: dict(zip("pq", outs, strict=True))])
def test_several_outputs_are_refused_with_what_to_write(several):
    class Two(torch.nn.Linear):
        def forward(self, x):
            return several([super().forward(x)] * 2)

    mml.Experiment("exp")
    fs, _ = graph_of("torch")
    node = mml.ModelNode("two", Two(3, 1), fs.reference(features=list("abc")))
    with pytest.raises(ShapeError, match=r"trunk.*head_a"):
        mml.ModelGraph([node], register=False).build()


def test_keras_inputs_by_other_names_are_refused():
    mml.Experiment("exp")
    fs, _ = graph_of("torch")
    refs = {"ids": fs.reference(features="id"), "z": fs.reference(features=list("abc"))}
    with pytest.raises(ShapeError, match=r"declares the inputs \['ids', 'x'\]"):
        mml.ModelGraph(
            [mml.ModelNode("k", keras_model("functional"), refs)], register=False
        ).build()
