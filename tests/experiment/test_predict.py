"""Predictions in the target's own units, for whatever rows."""

import numpy as np
import pandas as pd
import pytest
import torch

import modularml as mm
from modularml.errors import (
    ConfigError,
    DataError,
    GraphError,
    NotFittedError,
    ScalerError,
    UnknownNameError,
)
from tests.scenarios.test_relations import sets, wired
from tests.worlds import (
    QUIET,
    arrays,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    train_phase,
)


def world(*, scaled=True, n=40):
    x, y = arrays(n=n)
    x, y = 3 * x + 1, 5 * y + 2
    fs = featureset(x, y)
    fs.split_random({"train": 0.5, "test": 0.5})
    if scaled:
        fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
        fs.fit_transform("StandardScaler", domain="targets", fit_to_split="train")
    graph = graph_of(fs, mlp(), "adam", lr=0.01)
    exp = experiment()
    exp.run_phase(train_phase(graph, split="train"), **QUIET)
    return x, y, fs, graph, exp


def by_hand(fs, graph, x, y):
    rows = fs["train"].row_indices
    mean, scale = x[rows].mean(axis=0), x[rows].std(axis=0)
    z = torch.tensor(((x - mean) / scale).astype(np.float32))
    with torch.no_grad():
        out = graph.get_node("net").model.inner(z).numpy()
    return out * y[rows].std() + y[rows].mean(), out


class TestForms:
    def test_all_forms_agree_with_a_computation_by_hand(self):
        x, y, fs, graph, exp = world()
        want, _ = by_hand(fs, graph, x, y)
        columns = {f"x{i}": x[:, i] for i in range(6)}
        frame = pd.DataFrame(columns)
        for data in (fs, fs.to_view(), columns, frame, frame.assign(extra="no"), x):
            found = exp.predict(data)
            assert found.shape == (40, 1)
            np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4)

    def test_views(self):
        x, y, fs, graph, exp = world()
        want, _ = by_hand(fs, graph, x, y)
        for view in (fs["test"], fs.take([3, 1, 3])):
            np.testing.assert_allclose(
                exp.predict(view), want[view.row_indices], rtol=1e-3, atol=1e-4
            )

    def test_another_featureset(self):
        x, y, fs, graph, exp = world()
        want, _ = by_hand(fs, graph, x, y)
        other = featureset(x[:7], y[:7], "other")
        np.testing.assert_allclose(exp.predict(other), want[:7], rtol=1e-3, atol=1e-4)

    def test_polars_and_arrow(self):
        pl = pytest.importorskip("polars")
        x, y, fs, graph, exp = world()
        want, _ = by_hand(fs, graph, x, y)
        frame = pl.DataFrame({f"x{i}": x[:, i] for i in range(6)})
        np.testing.assert_allclose(exp.predict(frame), want, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(exp.predict(frame.to_arrow()), want, rtol=1e-3, atol=1e-4)

    def test_scaled_units(self):
        x, y, fs, graph, exp = world()
        _, raw = by_hand(fs, graph, x, y)
        np.testing.assert_allclose(exp.predict(fs, unscale=False), raw, rtol=1e-3, atol=1e-4)

    def test_without_scalers(self):
        x, _, fs, graph, exp = world(scaled=False)
        with torch.no_grad():
            want = graph.get_node("net").model.inner(torch.tensor(x)).numpy()
        for data in (fs, x):
            np.testing.assert_allclose(exp.predict(data), want, rtol=1e-5)

    def test_unlabelled_rows(self):
        x, y, fs, graph, exp = world()
        want, _ = by_hand(fs, graph, x, y)
        bare = mm.FeatureSet.from_dict(
            "bare", {f"x{i}": x[:5, i] for i in range(6)}, [f"x{i}" for i in range(6)], []
        )
        np.testing.assert_allclose(exp.predict(bare), want[:5], rtol=1e-3, atol=1e-4)

    def test_agrees_with_an_evaluation(self):
        _, _, fs, graph, exp = world()
        results = exp.run_phase(eval_phase(graph, split="test"))
        outputs = results.stacked_tensors("net", "outputs", unscale=True, fmt="np")
        np.testing.assert_allclose(exp.predict(fs["test"]), outputs, rtol=1e-5)

    @pytest.mark.parametrize("batch_size", [1, 7, 40, 1000])
    def test_batch_size_does_not_matter(self, batch_size):
        _, _, fs, _, exp = world()
        np.testing.assert_allclose(
            exp.predict(fs, batch_size=batch_size), exp.predict(fs), rtol=1e-5, atol=1e-6
        )

    def test_no_rows(self):
        _, _, fs, _, exp = world()
        assert exp.predict(fs.take([])).shape == (0, 1)

    def test_formats(self):
        _, _, fs, _, exp = world()
        assert isinstance(exp.predict(fs, fmt="torch"), torch.Tensor)
        assert isinstance(exp.predict(fs, fmt="list"), list)


def test_changes_nothing():
    _, _, fs, graph, exp = world()
    net = graph.get_node("net").model.inner
    net[1].eval()
    before = [m.training for m in net.modules()]
    state, runs = torch.get_rng_state(), len(exp.history)
    exp.predict(fs)
    assert [m.training for m in net.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert len(exp.history) == runs


def test_several_tails():
    x, y = arrays(n=20)
    fs = featureset(x, y)
    nodes = [mm.ModelNode("a", mlp(seed=1), fs), mm.ModelNode("b", mlp(out=2, seed=2), fs)]
    graph = mm.ModelGraph(nodes)
    graph.build()
    found = experiment().predict(x)
    assert {k: v.shape for k, v in found.items()} == {"a": (20, 1), "b": (20, 2)}
    one = mm.Experiment.from_active_context("again").predict(x, node="b")
    np.testing.assert_array_equal(one, found["b"])


def test_two_inputs():
    x, y = arrays(n=20)
    fs = featureset(x, y)
    refs = [
        fs.reference(features=["x0", "x1"], targets="y"),
        fs.reference(features=["x4"], targets="y"),
    ]
    nodes = [mm.ModelNode("a", mlp(d=2), refs[0]), mm.ModelNode("b", mlp(d=1), refs[1])]
    both = mm.ConcatNode("both", nodes, concat_axis_targets="first")
    graph = mm.ModelGraph([*nodes, both, mm.ModelNode("net", mlp(d=2), both)])
    graph.build()
    exp = experiment()
    columns = {k: x[:, i] for i, k in enumerate(["x0", "x1", "x2", "x3", "x4", "x5"])}
    del columns["x3"]
    np.testing.assert_allclose(exp.predict(columns), exp.predict(fs), rtol=1e-5)
    with pytest.raises(DataError, match=r"x0.*x1"):
        exp.predict(x)


def test_sequences():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 12)).astype(np.float32)
    fs = mm.FeatureSet.from_dict("data", {"wave": x, "y": x.mean(axis=1)}, ["wave"], ["y"])
    from modularml.models.torch import SequentialCNN

    graph = graph_of(fs, SequentialCNN(hidden_dim=2))
    graph.build()
    exp = experiment()
    for data in (x, {"wave": x}, {"wave": list(x)}, x[:, None, :]):
        np.testing.assert_allclose(exp.predict(data), exp.predict(fs), rtol=1e-5)


class TestErrors:
    def test_missing_column(self):
        x, _, _, _, exp = world()
        columns = {f"x{i}": x[:, i] for i in range(5)}
        with pytest.raises(DataError, match="x5"):
            exp.predict(columns)

    def test_lengths(self):
        x, _, _, _, exp = world()
        columns = {f"x{i}": x[: 40 - i, i] for i in range(6)}
        with pytest.raises(DataError, match="length"):
            exp.predict(columns)

    def test_shapes(self):
        x, _, _, _, exp = world()
        with pytest.raises(DataError, match="shape"):
            exp.predict(x[:, :5])

    def test_kinds(self):
        _, _, _, _, exp = world()
        with pytest.raises(DataError, match="frame, a dict or an array"):
            exp.predict(object())

    def test_before_building(self):
        x, y = arrays(n=10)
        graph_of(featureset(x, y), mlp())
        with pytest.raises(NotFittedError, match="built"):
            experiment().predict(x)
        with mm.ExperimentContext().activate(), pytest.raises(GraphError, match="no ModelGraph"):
            experiment().predict(x)

    def test_unknown_node(self):
        x, _, _, _, exp = world()
        with pytest.raises(UnknownNameError, match="net"):
            exp.predict(x, node="nett")

    def test_a_scaler_that_needs_its_rows(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(10, 4)).astype(np.float32)
        y = rng.normal(size=(10, 5)).astype(np.float32) + 3
        fs = mm.FeatureSet.from_dict("data", {"x": x, "y": y}, ["x"], ["y"])
        fs.fit_transform("PerSampleZeroStart", domain="targets")
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5))
        graph = graph_of(fs, net)
        graph.build()
        exp = experiment()
        with pytest.raises(ScalerError, match="unscale=False"):
            exp.predict(x)
        assert exp.predict(x, unscale=False).shape == (10, 5)
        own = exp.predict(fs)
        np.testing.assert_allclose(own, exp.predict(fs, unscale=False) + y[:, :1], rtol=1e-5)


class TestOtherSets:
    def test_a_set_with_scalers_of_its_own_is_scaled_by_those_of_the_graph(self):
        x, y, fs, graph, exp = world()
        want, _ = by_hand(fs, graph, x, y)
        other = featureset(x[5:9], y[5:9], "other")
        other.fit_transform("StandardScaler", domain="features")
        np.testing.assert_allclose(exp.predict(other), want[5:9], rtol=1e-3, atol=1e-4)

    def test_rows_of_one_of_two_sets_are_refused(self):
        x, y = arrays()
        sets = [featureset(x, y, "left"), featureset(2 * x, y, "right")]
        nodes = [mm.ModelNode(f"of_{fs.label}", mlp(), fs) for fs in sets]
        graph = mm.ModelGraph([*nodes, mm.SumNode("sum", nodes, target_strategy="first")])
        graph.build()
        with pytest.raises(DataError, match=r"'left'\] alone .* also reads \['right'\]"):
            graph.predict(sets[0])


@pytest.mark.parametrize("scaled", [False, True])
def test_merged_targets_have_their_units_or_are_refused(scaled):
    x, y = arrays()
    fs = featureset(x, y)
    fs.split_random({"train": 0.5, "test": 0.5})
    if scaled:
        fs.fit_transform("StandardScaler", domain="targets", fit_to_split="train")
    nodes = [mm.ModelNode(label, mlp(), fs) for label in ("one", "two")]
    graph = mm.ModelGraph([*nodes, mm.ConcatNode("both", nodes)])
    graph.build()
    results = experiment().run_phase(eval_phase(graph, []), **QUIET)
    if scaled:
        for ask in (lambda: graph.predict(fs), lambda: results.to_pandas("both")):
            with pytest.raises(ScalerError, match="are merged"):
                ask()
        assert graph.predict(fs, unscale=False).shape == (50, 2)
    else:
        assert graph.predict(fs).shape == (50, 2)
        np.testing.assert_array_equal(results.to_pandas("both")["target_1"], y[:, 0])


def test_a_frame_keeps_its_index_and_the_names_of_targets():
    x, *_, exp = world()
    frame = pd.DataFrame({f"x{i}": x[:, i] for i in range(6)}, index=[f"c{i}" for i in range(40)])
    found = exp.predict(frame.iloc[5:9], fmt="pandas")
    assert list(found.index) == ["c5", "c6", "c7", "c8"]
    assert list(found.columns) == ["y"]
    np.testing.assert_allclose(found[["y"]].to_numpy(), exp.predict(frame)[5:9], rtol=1e-6)


def tagged():
    """Return an experiment on rows with tags, its features and the names of these rows' cells."""
    x, y = arrays(n=12)
    cells = np.array([f"cell{i:02}" for i in range(12)])
    fs = featureset(x, y, cell=cells, day=np.arange(12))
    graph_of(fs, mlp()).build()
    return x, fs, cells, experiment()


def as_dict(table):
    """Return the columns of any table."""
    if isinstance(table, dict):
        return table
    if hasattr(table, "to_pydict"):
        return table.to_pydict()
    own = {name: table[name].to_list() for name in table.columns}
    return own if not isinstance(table, pd.DataFrame) else {table.index.name: table.index, **own}


@pytest.mark.parametrize("fmt", ["pandas", "arrow", "polars", "dict", "dict_list", "dict_torch"])
def test_every_format_with_named_columns_names_them(fmt):
    if fmt == "polars":
        pytest.importorskip("polars")
    _, fs, _, exp = tagged()
    found = as_dict(exp.predict(fs, fmt=fmt))
    assert [name for name in found if name] == ["y"]
    np.testing.assert_allclose(np.asarray(found["y"]), exp.predict(fs)[:, 0], rtol=1e-6)


@pytest.mark.parametrize("fmt", ["pandas", "arrow", "dict"])
def test_tags_and_ids_stand_beside_predictions(fmt):
    x, fs, cells, exp = tagged()
    rows = fs.take([7, 2, 9])
    found = as_dict(exp.predict(rows, fmt=fmt, tags=True))
    assert list(found) == ["sample_uuid", "cell", "day", "y"]
    assert list(found["sample_uuid"]) == list(rows.get_sample_uuids())
    assert list(found["cell"]) == list(cells[[7, 2, 9]])
    assert list(found["day"]) == [7, 2, 9]
    np.testing.assert_allclose(np.asarray(found["y"]), exp.predict(rows)[:, 0], rtol=1e-6)
    new = pd.DataFrame({f"x{i}": x[:4, i] for i in range(6)} | {"cell": cells[:4]}, index=[*"abcd"])
    table = exp.predict(new, fmt="pandas", tags=True)
    assert list(table.columns) == ["cell", "y"]
    assert list(table.index) == [*"abcd"]
    assert list(table["cell"]) == list(cells[:4])


@pytest.mark.parametrize("fmt", ["numpy", "torch", "list"])
def test_tags_are_refused_where_columns_have_no_names(fmt):
    _, fs, _, exp = tagged()
    with pytest.raises(ConfigError, match=rf"such as fmt='pandas'.*got fmt='{fmt}'"):
        exp.predict(fs, fmt=fmt, tags=True)


def test_tags_of_two_related_sets_stand_beside_predictions():
    windows, facts = sets()
    wired(windows, facts.reference(on="machine"))
    exp = experiment()
    exp.model_graph.build()
    found = exp.predict({"W": windows["val"], "F": facts["val"]}, fmt="pandas", tags=True)
    assert list(found["machine"]) == list(found["F.machine"])
    assert list(found.index) == list(windows["val"].get_sample_uuids())


@pytest.mark.parametrize("fmt", ["torch", "numpy"])
def test_a_node_called_by_hand_casts_as_predict_does(fmt):
    x, y = arrays(n=20)
    fs = featureset(x.astype(np.float64), y.astype(np.float64))
    graph = graph_of(fs, mlp())
    graph.build()
    node, rows = graph.get_node("net"), fs.to_sample_data(fmt)
    want = graph.predict(fs)
    out = node(rows).outputs
    np.testing.assert_allclose(out.detach().numpy(), want, rtol=1e-5)
    given = {(node.node_id, node.upstream_ref): rows}
    found = graph.forward(given)[node.node_id].outputs
    np.testing.assert_allclose(found.detach().numpy(), want, rtol=1e-5)
    if fmt == "torch":
        rows.features.requires_grad_(True)
        node(rows).outputs.sum().backward()
        assert rows.features.grad.abs().sum() > 0
