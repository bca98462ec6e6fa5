"""From rows to tensors: chunks of gathered rows, cached columns, drawings."""

import numpy as np
import pytest
import torch

import modularml as mm
from modularml.backends.torch import adapter
from modularml.data.ids import as_slice
from modularml.graph import input_tensors
from modularml.graph.framework_segment import InputSlot
from modularml.graph.input_tensors import pieces
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    train_phase,
    weights,
)


@pytest.mark.parametrize("chunk", [1, 100, 1000, 2**25])
@pytest.mark.parametrize(
    "sizes", [[10] * 5, [10, 10, 10, 3], [10, 3, 10, 3], [1], [3, 10], [50]], ids=str
)
def test_pieces_do_not_depend_on_chunks(chunk, sizes, monkeypatch):
    monkeypatch.setattr(input_tensors, "CHUNK_BYTES", chunk)
    column = torch.arange(300.0).reshape(100, 3)
    rows = np.random.default_rng(0).integers(0, 100, size=sum(sizes))
    found = list(pieces(adapter, column, rows, sizes))
    assert [len(p) for p in found] == sizes
    assert torch.equal(torch.cat(found), column[torch.as_tensor(rows)])


def test_rows_that_follow_one_another_are_a_slice(monkeypatch):
    assert as_slice(np.arange(3, 40_000)) == slice(3, 40_000)
    assert as_slice(np.array([7])) == slice(7, 8)
    late = [*range(20_000), 20_001, 20_000, 20_002]
    for given in ([], [1, 1, 3], [2, 1], [0, 2, 1, 3], late):
        rows = np.array(given, dtype=np.int64)
        assert as_slice(rows) is rows
    monkeypatch.setattr(input_tensors, "CHUNK_BYTES", 100)
    column = torch.arange(60.0).reshape(20, 3)
    for room in (None, []):
        found = [p.clone() for p in pieces(adapter, column, slice(2, 19), [5, 5, 5, 2], room)]
        assert [len(p) for p in found] == [5, 5, 5, 2]
        assert torch.equal(torch.cat(found), column[2:19])


def test_training_does_not_depend_on_chunks(monkeypatch):
    found = []
    for chunk in (2**25, 600):
        monkeypatch.setattr(input_tensors, "CHUNK_BYTES", chunk)
        with mm.ExperimentContext().activate():
            x, y = arrays(n=90)
            enc = mm.ModelNode("enc", mlp(out=3), featureset(x, y))
            net = mlp(d=3)
            graph = mm.ModelGraph([enc, mm.ModelNode("net", net, enc)], mm.Optimizer("sgd"))
            graph.freeze(["enc"])
            experiment().run_phase(train_phase(graph, shuffle=True, n_epochs=2), **QUIET)
            found.append(weights(net))
    assert_equal_weights(*found, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 30, 31])
@pytest.mark.parametrize("kind", ["f4", "f8", "i8", "u1", "?"])
def test_columns_stacked_in_blocks_equal_those_stacked_at_once(rows, kind, monkeypatch):
    values = np.random.default_rng(0).integers(0, 200, size=(31, 3)).astype(kind)
    found = []
    for size in (2**16, rows):
        monkeypatch.setattr(input_tensors, "BLOCK_ROWS", size)
        columns = {name: values[:, i] for i, name in enumerate("abc")}
        fs = mm.FeatureSet.from_dict("rows", columns, list("ab"), "c", register=False)
        names = "features.a.raw", "features.b.raw"
        for dtype in (torch.float32, torch.float64, None):
            slot = InputSlot("default", None, names, dtype, adapter=adapter)
            found.append(input_tensors.column_tensor(fs.collection, slot))
    for whole, parts in zip(found[:3], found[3:], strict=True):
        assert whole.dtype == parts.dtype
        assert torch.equal(whole, parts)
        assert np.array_equal(parts.numpy(), values[:, :2].astype(parts.numpy().dtype))


def test_columns_are_stacked_once(monkeypatch):
    x, y = arrays(n=30)
    graph = graph_of(featureset(x, y), mlp())
    made = []
    real = adapter.from_numpy
    monkeypatch.setattr(
        type(adapter),
        "from_numpy",
        lambda self, values, **kw: made.append(np.shape(values)) or real(values, **kw),
    )
    exp = experiment()
    exp.run_phase(train_phase(graph, n_epochs=3), **QUIET)
    exp.run_phase(eval_phase(graph))
    assert sorted(shape for shape in made if shape[:1] == (30,)) == [(30, 1), (30, 6)]


def test_training_never_writes_to_the_table():
    x, y = arrays(n=30)
    fs = featureset(x, y)

    class Rude(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            x.mul_(0.5)
            return self.inner(x)

    graph = graph_of(fs, Rude())
    experiment().run_phase(train_phase(graph), **QUIET)
    np.testing.assert_array_equal(fs.get_features("numpy"), x)


def test_slots_are_values():
    assert InputSlot("default", None, ("a",)) == InputSlot("default", None, ("a",))


class TestDrawings:
    def test_graph(self):
        x, y = arrays(n=30)
        fs = featureset(x, y)
        fs.split_random({"train": 0.5, "test": 0.5})
        enc = mm.ModelNode("enc", mlp(out=3), fs)
        graph = mm.ModelGraph([enc, mm.ModelNode("net", mlp(d=3), enc)])
        graph.build()
        graph.freeze(["enc"])
        text = graph.visualize(show_splits=True, show_features=True).to_text()
        for word in ("data", "enc", "net", "frozen", "train", "x0"):
            assert word in text
        assert "frozen" not in graph.visualize(show_frozen=False).to_text()
        assert "<svg" in graph._repr_html_()
        assert "enc" in repr(graph)

    def test_before_building(self):
        x, y = arrays(n=30)
        graph = graph_of(featureset(x, y), mlp())
        assert "net" in graph.visualize().to_text()

    def test_before_building_columns_of_unlike_shapes_that_are_flattened(self):
        columns = {"a": np.zeros((8, 3)), "b": np.zeros(8), "y": np.zeros(8)}
        flat = mm.FlattenNode("flat", mm.FeatureSet.from_dict("data", columns, ["a", "b"], "y"))
        graph = mm.ModelGraph([flat, mm.ModelNode("net", mlp(d=4), flat)])
        edges = graph.visualize().edges
        assert [edge.label for edge in edges] == ["4", ""]

    def test_phase(self):
        x, y = arrays(n=30)
        phase = train_phase(graph_of(featureset(x, y), mlp()))
        assert "data" in phase.visualize().to_text()
        assert "train" in repr(phase)
