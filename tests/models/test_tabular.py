"""Embeddings of categories beside numbers: ids, unseen categories, folds, files."""

import numpy as np
import pandas as pd
import pytest

import modularml as mml
from modularml.errors import ConfigError, DataError, ShapeError, UnknownNameError
from modularml.models.tabular_arguments import embedding_width
from tests.worlds import QUIET, experiment, mse, train

torch = pytest.importorskip("torch")
from sklearn.preprocessing import OrdinalEncoder  # noqa: E402

from modularml.models import torch as torch_models  # noqa: E402

LARGE = 2**40
backends = pytest.mark.parametrize("backend", ["torch", "tensorflow"])


def models_of(backend):
    pytest.importorskip(backend)
    return __import__(f"modularml.models.{backend}", fromlist=["TabularMLP"])


def rows(n=60, largest=LARGE):
    rng = np.random.default_rng(0)
    cell, lot = rng.choice(list("abc"), n), rng.choice([7, 1003, largest], n)
    x = rng.normal(size=n).astype("f4")
    y = (cell == "a") * 2.0 - (lot == 1003) + x
    return pd.DataFrame({"cell": pd.Categorical(cell), "lot": pd.Categorical(lot), "x": x, "y": y})


def featureset(frame, label="rows"):
    fs = mml.FeatureSet.from_pandas(
        label, frame, feature_cols=["cell", "lot", "x"], target_cols="y"
    )
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    fs.fit_transform(encoder, domain="features", keys="cell")
    return fs


def inputs(fs, road):
    ids, x = fs.reference(features=["cell", "lot"]), fs.reference(features="x")
    return {"one": fs, "several": [ids, x], "by name": {"x": x, "ids": ids}}[road]


def graph_of(fs, backend, road, **kwargs):
    model = models_of(backend).TabularMLP(hidden_dim=8, **kwargs)
    node = mml.ModelNode("net", model, inputs(fs, road), targets="y")
    adam = mml.Optimizer("adam", opt_kwargs={"learning_rate" if backend != "torch" else "lr": 0.01})
    graph = mml.ModelGraph([node], optimizer=adam)
    graph.build()
    return graph, model


def by_hand(model, frame):
    """Return the outputs of a torch model, looking each category up in a dict."""
    codes, ids = {c: i + 1 for i, c in enumerate("abc")}, sorted(set(rows()["lot"].tolist()))
    columns = [
        [codes.get(c, 0) for c in frame["cell"]],
        [ids.index(i) + 1 if i in ids else 0 for i in frame["lot"]],
    ]
    w = {k: torch.tensor(v) for k, v in model.get_weights().items()}
    parts = [w[f"embeddings.{i}.weight"][rows] for i, rows in enumerate(columns)]
    x = torch.tensor(frame["x"].to_numpy(np.float32))[:, None]
    hidden = torch.cat([*parts, x], dim=1) @ w["layers.0.weight"].T + w["layers.0.bias"]
    return (torch.relu(hidden) @ w["layers.2.weight"].T + w["layers.2.bias"]).numpy()


@pytest.mark.parametrize("road", ["one", "several", "by name"])
def test_each_id_reads_its_own_row_and_unseen_ones_row_0(road):
    frame = rows(largest=LARGE if road != "one" else 2**24)
    if road == "one":
        frame["lot"] = frame["lot"].cat.rename_categories({2**24: 9_999_999})
    fs = featureset(frame)
    graph, model = graph_of(fs, "torch", road)
    sizes = {name: w.shape for name, w in model.get_weights().items() if "embed" in name}
    wide = embedding_width(4)
    assert sizes == {"embeddings.0.weight": (4, wide), "embeddings.1.weight": (4, wide)}
    train(graph, batch_size=10, n_epochs=3)
    assert all(np.abs(w[1:]).min() > 0 for k, w in model.get_weights().items() if "embed" in k)
    new = frame.iloc[:6].drop(columns="y").astype({"cell": object, "lot": "int64"})
    new.loc[0, "cell"], new.loc[1, "lot"] = "unseen", 8
    lots = sorted(set(frame["lot"].tolist()))
    known = dict(zip(lots, sorted(set(rows()["lot"])), strict=True))
    asked = new.assign(lot=[known.get(lot, -5) for lot in new["lot"]])
    found = graph.predict(new)
    np.testing.assert_allclose(found, by_hand(model, asked), rtol=1e-4, atol=1e-5)


def test_large_ids_beside_numbers_in_one_input_are_refused():
    graph, _ = graph_of(featureset(rows()), "torch", "one")
    with pytest.raises(DataError, match=r"'features\.lot\.raw' holds integers beyond 16,777,216"):
        graph.predict(rows())


@pytest.mark.parametrize("road", ["one", "several", "by name"])
def test_keras_gives_the_numbers_of_torch(road):
    frame = rows(largest=99)
    results = {}
    for backend in ("torch", "tensorflow"):
        with mml.ExperimentContext().activate():
            graph, model = graph_of(featureset(frame), backend, road)
            if backend == "torch":
                rng = np.random.default_rng(1)
                weights = [rng.normal(size=w.shape) for w in model.get_weights().values()]
            else:
                weights = [
                    w.T if i >= 2 else w for i, w in enumerate(weights)
                ]  # embeddings come first
            names = model.get_weights()
            assert [w.shape for w in names.values()] == [w.shape for w in weights]
            model.set_weights({k: w.astype("f4") for k, w in zip(names, weights, strict=True)})
            new = frame.head(5).astype({"cell": object, "lot": "int64"})
            new.loc[0, "cell"], new.loc[1, "lot"] = "unseen", 8
            results[backend] = graph.predict(new.drop(columns="y"))
    np.testing.assert_allclose(results["torch"], results["tensorflow"], rtol=1e-4, atol=1e-5)


@backends
def test_unseen_categories_give_nan_where_asked(backend):
    frame = rows(largest=99)
    graph, _ = graph_of(featureset(frame), backend, "several", handle_unknown="nan")
    new = frame.head(4).drop(columns="y").astype({"cell": object, "lot": "int64"})
    new.loc[0, "cell"], new.loc[2, "lot"] = "unseen", 8
    with pytest.warns(UserWarning, match=r"2 of 4 predictions of 'net' are NaN"):
        found = np.isnan(graph.predict(new))[:, 0]
    assert found.tolist() == [True, False, True, False]


@backends
def test_files_hold_the_ids(backend, tmp_path):
    graph, _ = graph_of(featureset(rows()), backend, "by name")
    train(graph, batch_size=20, n_epochs=1)
    want = graph.predict(rows())
    path = experiment("saved").save(tmp_path / "e")
    with mml.ExperimentContext().activate():
        again = mml.Experiment.load(path).ctx.model_graph
        np.testing.assert_allclose(again.predict(rows()), want, rtol=1e-6)
        ids = again.get_node("net").model.categories_
    assert ids[0] is None
    assert ids[1].tolist() == [0, 1, 2]
    assert ids[2].tolist() == [7, 1003, LARGE]


def test_categories_that_no_training_row_has_count_as_unknown():
    frame = rows(largest=99)
    fs = featureset(frame)
    known = np.flatnonzero(frame["lot"].isin([7, 99]))
    fs.add_split(fs.take(known, label="train"))
    graph, model = graph_of(fs, "torch", "several")
    train(graph, split="train", batch_size=10, n_epochs=2)
    weights = model.get_weights()["embeddings.1.weight"]
    assert not weights[[0, 3]].any()
    assert np.abs(weights[[1, 2]]).min() > 0


def test_folds_encode_anew():
    fs = featureset(rows(largest=99))
    fs.add_split(fs.take(range(60), label="train"))
    graph_of(fs, "torch", "several")
    exp = experiment("folds", audit="off")
    phase = mml.TrainPhase.from_split(
        "train",
        split="train",
        sampler=mml.SimpleSampler(batch_size=10),
        losses=[mse()],
        n_epochs=40,
    )
    exp.execution_plan.add_phase(phase)
    binding = mml.CVBinding(fs, ["train"], train_split_name="train")
    cv = mml.CrossValidation(bindings=binding, n_folds=3, experiment=exp)
    frame = cv.run(show_fold_progress=False, **QUIET).out_of_fold("net")
    assert np.mean((frame["prediction"] - frame["target"]) ** 2) < 0.2


def test_by_hand_without_a_graph():
    model = torch_models.TabularMLP(categories=[3, None, [5, 9]], embedding_dims=2)
    model.build((3,), (1,))
    assert [tuple(e.weight.shape) for e in model.embeddings] == [(4, 2), (3, 2)]
    with torch.no_grad():
        for e in model.embeddings:
            e.weight.copy_(torch.arange(e.weight.numel()).reshape(e.weight.shape))
    base = torch.tensor([[0.0, 1.5, 5.0]])
    for other in ([3.0, 1.5, 5.0], [-1.0, 1.5, 5.0], [float("nan"), 1.5, 5.0], [0.5, 1.5, 5.0]):
        unknown = model(torch.tensor([other]))
        assert not torch.equal(unknown, model(base))
        assert torch.equal(unknown, model(torch.tensor([[99.0, 1.5, 5.0]])))


def test_the_rule_of_widths():
    assert [embedding_width(n) for n in (2, 4, 10, 100, 10**6)] == [2, 3, 6, 21, 600]


def test_bad_arguments():
    for kwargs, match in (
        ({"categories": [[0.5], None]}, "categories must be a list with ids"),
        ({"categories": [[], None]}, "categories must be a list with ids"),
        ({"embedding_dims": 0}, "embedding_dims"),
        ({"handle_unknown": "skip"}, "handle_unknown must be one of 'row', 'nan', got 'skip'"),
        ({"n_layers": 0}, "n_layers"),
    ):
        with pytest.raises(ConfigError, match=match):
            torch_models.TabularMLP(**kwargs)
    with pytest.raises(UnknownNameError, match="activation"):
        torch_models.TabularMLP(activation="rellu").build((3,), (1,))
    with pytest.raises(ShapeError, match=r"each of the 3 values of a row.*got 2"):
        torch_models.TabularMLP(categories=[2, None]).build((3,), (1,))
    with pytest.raises(ShapeError, match="output_shape"):
        torch_models.TabularMLP().build((3,))


def test_arrays_of_categories_are_refused():
    frame = pd.DataFrame({"a": pd.Categorical([1, 2] * 4), "y": np.zeros(8), "row": range(8)})
    frame["group"] = frame["row"] // 2
    fs = mml.FeatureSet.from_pandas("rows", frame, ["a"], "y", group_by="group", scalar_cols="y")
    assert fs.collection.schema["features.a.raw"].kind == "category"
    node = mml.ModelNode("net", torch_models.TabularMLP(), fs)
    with pytest.raises(ShapeError, match=r"reads the categories 'a' of shape \(2,\)"):
        mml.ModelGraph([node]).build()
