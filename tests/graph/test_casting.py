"""Columns of several dtypes reach a model in a dtype that loses nothing, or are refused."""

from contextlib import nullcontext

import numpy as np
import pytest

import modularml as mml
from modularml.backends import adapter_for
from modularml.errors import DataError
from modularml.graph.calling import check_cast

torch = pytest.importorskip("torch")
nn = torch.nn

N = 12
BEYOND = 2**24 + np.arange(N)
CODES = np.arange(N) % 5


class Sees(nn.Module):
    """Sums its input and keeps what it was given."""

    def __init__(self, embedding=False):
        super().__init__()
        if embedding:
            self.rows = nn.Embedding(5, 1)
        self.weight = nn.Linear(1, 1)

    def forward(self, x):
        self.seen = x
        return x.reshape(len(x), -1).double().sum(1, keepdim=True).float()


def graph_of(model, columns, features):
    with mml.ExperimentContext().activate():
        rows = {**columns, "y": np.arange(N, dtype="f4")}
        fs = mml.FeatureSet.from_dict("rows", rows, features, "y")
        graph = mml.ModelGraph([mml.ModelNode("net", model, fs)])
        graph.build()
    return fs, graph


@pytest.mark.parametrize("embedding", [True, False])
def test_floats_beside_integers_stay(embedding):
    model = Sees(embedding)
    columns = {"code": CODES, "a": np.linspace(0.1, 0.7, N)}
    fs, graph = graph_of(model, columns, ["code", "a"])
    expected = np.stack(list(columns.values()), 1).astype("f4")
    for rows in (fs, fs.take(range(N)), columns):
        graph.predict(rows)
        np.testing.assert_array_equal(model.seen.numpy(), expected)
    graph.get_node("net")(fs.to_sample_data())
    np.testing.assert_array_equal(model.seen.numpy(), expected)


def test_integers_reach_an_embedding_as_they_are():
    model = Sees(embedding=True)
    fs, graph = graph_of(model, {"code": BEYOND}, "code")
    for rows in (fs, {"code": BEYOND}):
        graph.predict(rows)
        assert model.seen[:, 0].tolist() == BEYOND.tolist()
    graph.get_node("net")(fs.to_sample_data())
    assert model.seen[:, 0].tolist() == BEYOND.tolist()


@pytest.mark.parametrize("features", ["code", ["code", "a"]])
def test_integers_that_floats_do_not_hold_are_refused(features):
    columns = {"code": BEYOND, "a": np.ones(N)}
    fs, graph = graph_of(Sees(), columns, features)
    with pytest.raises(DataError, match=r"'features.code.raw' holds integers beyond 16,777,216"):
        graph.predict(fs)
    with pytest.raises(DataError, match="in a separate node"):
        graph.predict(columns)


def test_an_embedding_declared_first_may_be_of_positions():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions = nn.Embedding(4, 3)
            self.widen, self.out = nn.Linear(1, 3), nn.Linear(3, 1)

        def forward(self, x):
            return self.out((self.widen(x.reshape(-1, 4, 1)) + self.positions.weight).mean(1))

    for dtype in ("f4", "f8", "i8"):
        values = np.arange(N * 4).reshape(N, 4).astype(dtype)
        model = Positions()
        _, graph = graph_of(model, {"x": values}, "x")
        by_hand = model(torch.tensor(values, dtype=torch.float32)).detach().numpy()
        np.testing.assert_allclose(graph.predict({"x": values}), by_hand, rtol=1e-6)


def test_codes_held_as_floats_are_looked_up_and_fractions_refused():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(3, 1))
    _, graph = graph_of(model, {"code": CODES.astype("f8")}, "code")
    by_hand = model(torch.tensor(CODES)[:, None]).detach().numpy()
    np.testing.assert_allclose(graph.predict({"code": CODES.astype("f8")}), by_hand, rtol=1e-6)
    with pytest.raises(DataError, match=r"holds 0\.5, and the model reads it as integers"):
        graph.predict({"code": CODES + 0.5})


def test_a_merge_of_integers_and_floats():
    model = Sees(embedding=True)
    columns = {"code": CODES, "a": np.linspace(0.1, 0.7, N), "y": np.ones(N)}
    fs = mml.FeatureSet.from_dict("rows", columns, ["code", "a"], "y")
    both = mml.ConcatNode("both", [fs.reference(features=["code"]), fs.reference(features=["a"])])
    graph = mml.ModelGraph([both, mml.ModelNode("net", model, both)])
    graph.build()
    graph.predict(fs)
    np.testing.assert_array_equal(model.seen[:, 1].numpy(), columns["a"].astype("f4"))


def test_keras_reads_what_the_table_holds():
    keras = pytest.importorskip("keras")
    inputs = keras.Input((2,))
    looked_up = keras.layers.Flatten()(keras.layers.Embedding(5, 3)(inputs[:, :1]))
    both = keras.layers.Concatenate()([looked_up, inputs[:, 1:]])
    model = keras.Model(inputs, keras.layers.Dense(1)(both))
    columns = {"code": CODES, "a": np.linspace(0.1, 0.7, N)}
    _, graph = graph_of(model, columns, ["code", "a"])
    by_hand = model(np.stack(list(columns.values()), 1).astype("f4")).numpy()
    np.testing.assert_allclose(graph.predict(columns), by_hand, rtol=1e-5)
    first = keras.Sequential([keras.layers.Embedding(5, 3), keras.layers.Flatten()])
    _, graph = graph_of(first, columns, ["code", "a"])
    with pytest.raises(DataError, match="the model reads it as integers"):
        graph.predict(columns)


def test_large_integers_are_not_stacked_with_floats():
    columns = {"code": 2**53 + np.arange(N), "a": np.ones(N), "y": np.ones(N)}
    fs = mml.FeatureSet.from_dict("rows", columns, ["code", "a"], "y")
    with pytest.raises(DataError, match="cannot represent"):
        fs.get_features("numpy")
    assert fs.get_features()["code"].tolist() == columns["code"].tolist()


@pytest.mark.parametrize(
    ("kind", "value", "fits"),
    [
        (torch.float32, 1e39, False),
        (torch.float32, 3e38, True),
        (torch.float16, 7e4, False),
        (torch.float64, 1e39, True),
        (torch.float32, np.inf, True),
    ],
)
def test_floats_that_would_become_infinite_are_refused(kind, value, fits):
    x = np.array([1.0, value, np.nan])
    refused = pytest.raises(DataError, match=r"features.x.raw.*infinite.*fit_transform")
    with nullcontext() if fits else refused:
        check_cast(adapter_for("torch"), kind, x, "features.x.raw")
