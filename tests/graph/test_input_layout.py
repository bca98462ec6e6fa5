"""Shapes that samples get for the model that reads them."""

import numpy as np
import pytest

import modularml as mml
from modularml.backends.layouts import arrangement, laid_out, matching
from modularml.errors import BackendNotSupportedError, ConfigError, ShapeError
from tests.worlds import QUIET, eval_phase, experiment, mse, train, train_phase

torch = pytest.importorskip("torch")
nn = torch.nn
N, T = 12, 16
X = np.random.default_rng(0).normal(size=(N, T)).astype("f4")
Y = X.sum(axis=1)


class Recurrent(nn.Module):
    """A user's own model of (n, time, channels)."""

    def __init__(self, channels=1):
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.out = nn.GRU(channels, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        assert x.shape[-1] == self.gru.input_size
        return self.out(self.gru(x)[0][:, -1])


class Last(nn.Module):
    """The last step of a recurrent layer."""

    def forward(self, x):
        return x[0][:, -1]


def graph_of(model, layout=None, x=X, **kwargs):
    data = {"x": x, "y": Y, "group": np.arange(N) % 3}
    fs = mml.FeatureSet.from_dict("rows", data, "x", "y", "group")
    fs.add_split(fs.take(range(N), label="all"))
    node = mml.ModelNode("net", model, fs, input_layout=layout, **kwargs)
    graph = mml.ModelGraph([node], optimizer=mml.Optimizer("sgd", opt_kwargs={"lr": 0.1}))
    graph.build()
    return graph


def shown(graph):
    return graph.summary().nodes[0].input_shape


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nn.Linear(T, 1), "1 x 16 as 16"),
        (lambda: nn.Sequential(nn.Sequential(nn.Linear(T, 3)), nn.BatchNorm1d(3)), "1 x 16 as 16"),
        (lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten()), "1 x 16"),
        (lambda: nn.Sequential(nn.GRU(1, 3, batch_first=True), Last()), "1 x 16 as 16 x 1"),
        (lambda: nn.Sequential(nn.GRU(T, 3, batch_first=True), Last()), "1 x 16"),
        (lambda: mml.models.torch.SequentialMLP(input_shape=(T,)), "1 x 16 as 16"),
        (lambda: nn.Sequential(nn.Linear(T, 3), nn.BatchNorm1d(1), nn.Flatten()), "1 x 16"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(T, 1)), "1 x 16"),
    ],
    ids=map(str, range(8)),
)
def test_a_first_layer_says_what_it_reads(make, text):
    assert shown(graph_of(make())) == text


def test_columns_of_several_channels_and_images():
    rng = np.random.default_rng(0)
    for shape, model, text in (
        ((3, T), nn.Sequential(nn.Conv1d(3, 2, 3), nn.Flatten()), "1 x 3 x 16 as 3 x 16"),
        ((8, 8), nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), "1 x 8 x 8"),
        ((3, 8, 8), nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), "1 x 3 x 8 x 8 as 3 x 8 x 8"),
        ((T, 3), nn.Sequential(nn.LSTM(3, 2, batch_first=True), Last()), "1 x 16 x 3 as 16 x 3"),
    ):
        with mml.ExperimentContext().activate():
            x = rng.normal(size=(N, *shape)).astype("f4")
            graph = graph_of(model, x=x)
            assert shown(graph) == text
            with torch.no_grad():
                tensor = torch.from_numpy(x[:, None] if text == "1 x 8 x 8" else x)
                np.testing.assert_allclose(graph.predict({"x": x}), model(tensor), rtol=1e-5)


@pytest.mark.parametrize(
    ("layout", "shape"), [("flat", (T,)), ("time_first", (T, 1)), ("channels_first", (1, T))]
)
def test_a_layout_reaches_the_model_on_every_road(layout, shape, tmp_path):
    model = mml.TorchModelWrapper(model_class=Shown, model_kwargs={"shape": shape})
    graph = graph_of(model, layout)
    assert graph.get_node("net").input_shape == shape
    want = X.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(graph.predict({"x": X}), want, rtol=1e-5)
    results = experiment("first").run_phase(eval_phase(graph, batch_size=5))
    np.testing.assert_allclose(results.stacked_tensors("net", "outputs"), want, rtol=1e-5)
    node = graph.get_node("net")
    view = (
        train_phase(graph, batch_size=N)
        .input_sources[0]
        .materialize_batches(show_progress=False)[0]
    )
    out = graph.forward({(node.node_id, node.upstream_refs[0]): view.materialize()})[node.node_id]
    np.testing.assert_allclose(out.role_data["default"].outputs, want, rtol=1e-5)
    np.testing.assert_allclose(node(X[:, None]).detach(), want, rtol=1e-5)
    exp = experiment("saved", audit="off")
    sampler = mml.SimpleSampler(batch_size=4)
    exp.execution_plan.add_phase(
        mml.TrainPhase.from_split("train", split="all", sampler=sampler, losses=[mse()])
    )
    path = exp.save(tmp_path / "e")
    with mml.ExperimentContext().activate():
        exp = mml.Experiment.load(path)
        again = exp.ctx.model_graph
        assert again.get_node("net").input_layout == layout
        np.testing.assert_allclose(again.predict({"x": X}), want, rtol=1e-5)
        fs = exp.ctx.get_node("rows")
        binding = mml.CVBinding(fs, ["all"], train_split_name="all")
        cv = mml.CrossValidation(bindings=binding, n_folds=2, experiment=exp)
        found = cv.run(show_fold_progress=False, **QUIET).out_of_fold("net")
        assert np.isfinite(found["prediction"]).all()


class Shown(nn.Module):
    """The sum of all values, for samples of one shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.scale = tuple(shape), nn.Parameter(torch.ones(1))

    def reset_parameters(self):
        nn.init.ones_(self.scale)

    def forward(self, x):
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"samples of shape {tuple(x.shape[1:])}, not {self.shape}")
        return x.flatten(1).sum(dim=1, keepdim=True) * self.scale


def test_training_in_a_layout_is_training_by_hand():
    graph, theirs = graph_of(Recurrent(), "time_first"), Recurrent()
    train(graph, batch_size=4, n_epochs=2)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(2):
        for at in range(0, N, 4):
            optimizer.zero_grad()
            out = theirs(torch.from_numpy(X[at : at + 4, :, None]))
            nn.functional.mse_loss(out, torch.from_numpy(Y[at : at + 4, None])).backward()
            optimizer.step()
    mine = graph.get_node("net").model.inner
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("n_steps", [4, 5])
def test_several_columns_are_the_channels_of_steps(n_steps):
    """Also where there are as many channels as steps."""
    rng = np.random.default_rng(0)
    columns = {f"c{i}": rng.normal(size=(N, n_steps)).astype("f4") for i in range(4)}
    fs = mml.FeatureSet.from_dict("rows", {**columns, "y": Y}, list(columns), "y")
    model = Recurrent(4)
    node = mml.ModelNode("net", model, fs, input_layout="time_first")
    graph = mml.ModelGraph([node], optimizer=mml.Optimizer("adam"))
    graph.build()
    steps = np.stack(list(columns.values()), axis=2)
    with torch.no_grad():
        want = model(torch.from_numpy(steps)).numpy()
    np.testing.assert_allclose(graph.predict(fs), want, rtol=1e-5)
    train(graph, batch_size=4, n_epochs=1)


def test_a_layout_after_another_node_and_in_a_frozen_one():
    data = {"x": X, "y": Y}
    fs = mml.FeatureSet.from_dict("rows", data, "x", "y")
    first = mml.ModelNode("first", nn.Linear(T, 6), fs)
    second = mml.ModelNode("second", Recurrent(), first, input_layout="time_first")
    third = mml.ModelNode("net", nn.Linear(1, 1), second)
    graph = mml.ModelGraph([first, second, third], optimizer=mml.Optimizer("adam"))
    graph.build()
    assert [row.input_shape for row in graph.summary().nodes] == ["1 x 16 as 16", "6 as 6 x 1", "1"]
    with torch.no_grad():
        hidden = first.model.inner(torch.from_numpy(X))
        want = third.model.inner(second.model.inner(hidden[..., None])).numpy()
    np.testing.assert_allclose(graph.predict(fs), want, rtol=1e-5)
    first.freeze()
    second.freeze()
    train(graph, batch_size=4, n_epochs=1)
    with torch.no_grad():
        want = third.model.inner(second.model.inner(hidden[..., None])).numpy()
    np.testing.assert_allclose(graph.predict(fs), want, rtol=1e-5)


@pytest.mark.parametrize("shape", [(16,), (16, 1), (None, 1), (1, 16)])
def test_keras_gets_the_input_that_it_declares(shape, tmp_path):
    keras = pytest.importorskip("keras")
    inputs = keras.Input(shape)
    hidden = inputs if len(shape) == 1 else keras.layers.GRU(3)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    graph = graph_of(model)
    own = tuple(n or T for n in shape)
    assert graph.get_node("net").input_shape == own
    train(graph, batch_size=4, n_epochs=1)
    want = model(X.reshape(N, *own)).numpy()
    np.testing.assert_allclose(graph.predict({"x": X}), want, rtol=1e-4, atol=1e-5)
    path = experiment("saved").save(tmp_path / "e")
    with mml.ExperimentContext().activate():
        again = mml.Experiment.load(path).ctx.model_graph
        np.testing.assert_allclose(again.predict({"x": X}), want, rtol=1e-4, atol=1e-5)


def test_keras_in_a_layout_of_several_channels():
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(0)
    columns = {f"c{i}": rng.normal(size=(N, 5)).astype("f4") for i in range(2)}
    fs = mml.FeatureSet.from_dict("rows", {**columns, "y": Y}, list(columns), "y")
    model = keras.Sequential([keras.layers.GRU(3), keras.layers.Dense(1)])
    graph = mml.ModelGraph([mml.ModelNode("net", model, fs, input_layout="time_first")])
    graph.build()
    want = model(np.stack(list(columns.values()), axis=2)).numpy()
    np.testing.assert_allclose(graph.predict(fs), want, rtol=1e-4, atol=1e-5)


def test_bad_layouts_are_refused():
    fs = mml.FeatureSet.from_dict("r", {"x": np.zeros((4, 2, 3, 5)), "y": np.zeros(4)}, "x", "y")
    with pytest.raises(ConfigError, match="input_layout must be one of 'channels_first', 'flat'"):
        mml.ModelNode("a", nn.Linear(2, 1), fs, input_layout="steps")
    with pytest.raises(ConfigError, match="input_layout is for one input"):
        mml.ModelNode("a", nn.Bilinear(2, 2, 1), [fs, fs], input_layout="flat")
    linear = pytest.importorskip("sklearn.linear_model")
    with pytest.raises(ConfigError, match=r"input_layout is for torch and Keras.*omit it"):
        mml.ModelNode("a", linear.Ridge(), fs, input_layout="flat")
    node = mml.ModelNode("a", nn.Linear(2, 1), fs, input_layout="time_first")
    with pytest.raises(ShapeError, match=r"needs samples of shape \(time,\).*got \(1, 2, 3, 5\)"):
        mml.ModelGraph([node]).build()
    with mml.ExperimentContext().activate(), pytest.raises(ShapeError, match="does not accept"):
        graph_of(nn.Linear(T, 1), "time_first")


def test_shapes():
    assert [laid_out((6,), name) for name in ("flat", "channels_first", "time_first")] == [
        (6,),
        (1, 6),
        (6, 1),
    ]
    assert matching((1, 16), (16,)) == (16,)
    assert matching((2, 16), (32,)) is None
    assert matching((1, 16), (None, 1)) == (16, 1)
    assert matching((4, 16), (None, None)) == (4, 16)
    assert arrangement((4, 4), (4, 4)) is None
    assert arrangement((4, 4), (4, 4), "time_first") == "swap"
    assert arrangement((2, 8), (16,), "flat") == "reshape"
    assert arrangement((2, 8), (16,)) is None


def test_masks_of_keras_are_not_lost_in_another_shape():
    keras = pytest.importorskip("keras")
    fs = mml.FeatureSet.from_dict("rows", {"x": np.zeros((N, 5, 2), "f4"), "y": Y}, "x", "y")
    masks = keras.Sequential([keras.layers.Masking(), keras.layers.Dense(3)])
    first = mml.ModelNode("first", masks, fs, input_layout="time_first")
    second = mml.ModelNode("second", keras.layers.Dense(1), first, input_layout="flat")
    graph = mml.ModelGraph([first, second])
    graph.build()
    with pytest.raises(BackendNotSupportedError, match="a mask of Keras, which would be lost"):
        graph.predict(fs)
