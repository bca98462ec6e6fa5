"""Export to ONNX and torch.export, run without the library and held against `predict`."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from modularml import (
    ConcatNode,
    FeatureSet,
    ModelGraph,
    ModelNode,
    Optimizer,
)
from modularml.context import ExperimentContext
from modularml.errors import (
    BackendNotSupportedError,
    ConfigError,
    DataError,
    MMLExistsError,
    NotFittedError,
    ScalerError,
    UnknownNameError,
)
from modularml.scalers.scaler import Scaler
from tests.worlds import QUIET, arrays, experiment, featureset, graph_of, mlp, train_phase

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")
from torch import nn  # noqa: E402


def rows_of(n, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(5, 3, n),
        "b_°C": rng.normal(1, 2, n).astype("f4"),
        "kind": rng.integers(0, 4, n) * 10,
        "pack": rng.integers(1, 4, n),
        "curve": rng.normal(3, 2, (n, 16)).astype("f4"),
        "series": rng.normal(3, 2, (n, 2, 12)),
        "y": rng.normal(1000, 20, n),
        "z": np.exp(rng.normal(3, 1, n)),
    }


class LastStep(nn.Module):
    """The last output of a GRU."""

    def __init__(self, *, by_len=False):
        super().__init__()
        self.gru, self.by_len = nn.GRU(1, 6, batch_first=True), by_len

    def forward(self, x):
        n = len(x) if self.by_len else x.shape[0]
        return self.gru(x.reshape(n, -1, 1))[0][:, -1]


def large_graph(*, by_len=False):
    features = ["a", "b_°C", "kind", "pack", "curve", "series"]
    fs = FeatureSet.from_dict("rows", rows_of(80), features, ["y", "z"])
    fs.fit_transform("StandardScaler", domain="features", keys=["a", "b_°C"])
    fs.fit_transform("MinMaxScaler", domain="features", keys=["a", "b_°C"])
    fs.fit_transform("PerSampleMinMaxScaler", domain="features", keys="curve")
    fs.fit_transform("RobustScaler", domain="features", keys="series", merged_axes=(0, 1, 3))
    fs.fit_transform("OrdinalEncoder", domain="features", keys="kind")
    fs.fit_transform("OneHotEncoder", domain="features", keys="pack")
    fs.fit_transform("StandardScaler", domain="targets", keys="y")
    fs.fit_transform("PowerTransformer", domain="targets", keys="z")
    torch.manual_seed(0)
    numbers = ModelNode("numbers", nn.Sequential(nn.Linear(2, 8), nn.ReLU()), _of(fs, "a", "b_°C"))
    gru = ModelNode("gru", LastStep(by_len=by_len), _of(fs, "curve"))
    layers = [nn.Flatten(1, 2), nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten()]
    cnn = ModelNode("cnn", nn.Sequential(*layers), _of(fs, "series"))
    kinds = ModelNode("kinds", nn.Sequential(nn.Embedding(4, 3), nn.Flatten()), _of(fs, "kind"))
    packs = ModelNode("packs", nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), _of(fs, "pack"))
    merged = ConcatNode("merged", [numbers, gru, cnn, kinds, packs])
    width = 8 + 6 + 40 + 3 + 2
    heads = [
        ModelNode("head_y", nn.Linear(width, 1), merged, targets="y"),
        ModelNode("head_z", nn.Linear(width, 1), merged, targets="z"),
    ]
    return ModelGraph([numbers, gru, cnn, kinds, packs, merged, *heads], Optimizer("adam"))


def _of(fs, *keys):
    return fs.reference(features=list(keys))


def small_graph(scaler="StandardScaler", model=None):
    with ExperimentContext().activate():
        fs = FeatureSet.from_dict("rows", rows_of(40), ["a", "b_°C"], "y")
        fs.fit_transform("StandardScaler", domain="targets")
        fs.fit_transform(scaler, domain="features")
        graph = ModelGraph([ModelNode("net", model or nn.Linear(2, 1), fs, targets="y")])
        graph.build()
        return graph


def run(path, table):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    outs = session.run(None, {name: np.asarray(table[name]) for name in names})
    return dict(zip([each.name for each in session.get_outputs()], outs, strict=True))


def close(values, expected):
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("by_len", [False, True])
def test_a_graph_of_all_kinds_gives_the_numbers_of_predict(tmp_path, by_len):
    graph = large_graph(by_len=by_len)
    graph.build()
    path = graph.export(tmp_path / "all")
    assert path.name == "all.onnx"
    for n in (1, 3, 33):
        new = rows_of(n, seed=n)
        expected = graph.predict({key: new[key] for key in new if key not in ("y", "z")})
        outputs = run(path, new)
        assert outputs.keys() == {"y", "z"}
        close(outputs["y"], expected["head_y"])
        close(outputs["z"], expected["head_z"])


@pytest.mark.slow
def test_a_torch_program_runs_without_the_library(tmp_path):
    graph = large_graph()
    graph.build()
    path = graph.export(tmp_path / "all.pt2", "torch")
    new = rows_of(5, seed=9)
    inputs = {key: torch.as_tensor(new[key]) for key in new if key not in ("y", "z")}
    torch.save(inputs, tmp_path / "inputs.pt")
    script = f"""
import sys, torch
module = torch.export.load({str(path)!r}).module()
outs = module(torch.load({str(tmp_path / "inputs.pt")!r}))
torch.save(dict(outs), {str(tmp_path / "outs.pt")!r})
assert "modularml" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    outs = torch.load(tmp_path / "outs.pt")
    expected = graph.predict({key: value.numpy() for key, value in inputs.items()})
    close(outs["y"].detach().numpy(), expected["head_y"])
    close(outs["z"].detach().numpy(), expected["head_z"])


def test_a_trained_experiment_and_its_frame(tmp_path):
    x, y = arrays(n=60)
    fs = featureset(x, 5 * y + 2)
    fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
    for domain in ("features", "targets"):
        fs.fit_transform("StandardScaler", domain=domain, fit_to_split="train")
    graph, exp = graph_of(fs, mlp()), experiment()
    exp.run_phase(train_phase(graph, split="train"), **QUIET)
    path = exp.export(tmp_path / "e.onnx")
    frame = pd.DataFrame({f"x{i}": x[:9, i] * 2 for i in range(x.shape[1])})
    close(run(path, frame)["y"], exp.predict(frame))


def test_classes_are_scores_with_labels_in_the_file(tmp_path):
    rows = {**rows_of(40), "c": np.array(["low", "high"] * 20)}
    fs = FeatureSet.from_dict("rows", rows, ["a"], "c")
    fs.fit_transform("LabelEncoder", domain="targets")
    graph = ModelGraph([ModelNode("net", nn.Linear(1, 2), fs, targets="c")])
    graph.build()
    path = graph.export(tmp_path / "c")
    new = rows_of(4, seed=2)
    close(run(path, new)["c"], graph.predict({"a": new["a"]}))
    facts = ort.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(facts["modularml.nodes"])["net"]["classes"] == ["high", "low"]


def test_several_targets_and_sets_have_names_of_their_own(tmp_path):
    first = FeatureSet.from_dict("first", rows_of(40), ["a"], ["y", "z"])
    first.fit_transform("MinMaxScaler", domain="targets")
    second = FeatureSet.from_dict("second", rows_of(40, seed=1), ["a"], [])
    a = ModelNode("of_first", nn.Linear(1, 3), first.reference(on="position"))
    b = ModelNode("of_second", nn.Linear(1, 3), second.reference(on="position"))
    merged = ConcatNode("merged", [a, b])
    head = ModelNode("head", nn.Linear(6, 2), merged, targets=["y", "z"])
    head.paired = ("targets.y", "targets.z"), False, ()  # as a loss on both records it
    graph = ModelGraph([a, b, merged, head])
    graph.build()
    path = graph.export(tmp_path / "two")
    new = {"first": {"a": rows_of(5, 2)["a"]}, "second": {"a": rows_of(5, 3)["a"]}}
    outs = run(path, {f"{label}.a": table["a"] for label, table in new.items()})
    close(np.hstack([outs["y"], outs["z"]]), graph.predict(new))


def test_means_variances_and_quantiles_have_their_own_units(tmp_path):
    graph = small_graph(model=nn.Linear(2, 2))
    for labels in (("mean", "variance"), ("0.1", "0.9")):
        graph.get_node("net").paired = ("targets.y",), False, labels
        graph._plans.clear()
        path = graph.export(tmp_path / "head", overwrite=True)
        new = rows_of(7, seed=4)
        expected = graph.predict({key: new[key] for key in ("a", "b_°C")})
        np.testing.assert_allclose(run(path, new)["y"], expected, rtol=2e-5)


def test_scalers_of_groups_are_refused(tmp_path):
    rows = {**rows_of(40), "cell": np.repeat(["p", "q"], 20)}
    fs = FeatureSet.from_dict("rows", rows, ["a"], "y", "cell")
    fs.fit_transform("StandardScaler", domain="features", per="cell")
    graph = ModelGraph([ModelNode("net", nn.Linear(1, 1), fs)])
    graph.build()
    with pytest.raises((ScalerError, DataError), match=r"group|'cell'"):
        graph.export(tmp_path / "g")
    assert not list(tmp_path.iterdir())


def test_the_file_of_a_graph_without_rows_is_exported_too(tmp_path):
    graph = small_graph()
    graph.save(tmp_path / "g")
    with ExperimentContext().activate():
        loaded = ModelGraph.load(tmp_path / "g.mg.mml")
        path = loaded.export(tmp_path / "g")
    new = rows_of(4, seed=5)
    close(run(path, new)["y"], graph.predict({key: new[key] for key in ("a", "b_°C")}))


class DependsOnValues(nn.Module):
    """Takes a branch by the values of its input."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x):
        return self.linear(x) if float(x.sum()) > 0 else self.linear(-x)


class MeanOfBatch(nn.Module):
    """Gives each row a number that depends on the others, in Python."""

    def __init__(self):
        super().__init__()
        self.linear, self.rows = nn.Linear(2, 1), []

    def forward(self, x):
        self.rows.append(0)
        return self.linear(x) + len(self.rows)


def test_what_cannot_be_exported_is_refused_by_name_and_nothing_is_written(tmp_path):
    path = tmp_path / "no.onnx"
    with pytest.raises(ScalerError, match=r"QuantileTransformer on .*'a'.* of 'rows'"):
        _quantile().export(path)
    with pytest.raises(ConfigError, match=r"\['net'\] cannot be exported"):
        small_graph(model=DependsOnValues()).export(path)
    with pytest.raises(ConfigError, match=r"output 'y' .* from predict"):
        small_graph(model=MeanOfBatch()).export(path)
    with pytest.raises(UnknownNameError, match="onnx"):
        small_graph().export(path, "onxx")
    assert not list(tmp_path.iterdir())


def _quantile():
    return small_graph(Scaler("QuantileTransformer", {"n_quantiles": 10}))


def test_other_frameworks_text_and_graphs_that_are_not_built_are_refused(tmp_path):
    fs = FeatureSet.from_dict("rows", {**rows_of(20), "t": ["u", "v"] * 10}, ["a", "t"], "y")
    fs.fit_transform("OrdinalEncoder", domain="features", keys="t")
    numbers = ModelNode("net", nn.Linear(1, 1), fs.reference(features="a"))
    text = ModelNode("text", nn.Linear(1, 1), fs.reference(features="t"))
    graph = ModelGraph([numbers])
    with pytest.raises(NotFittedError, match="build"):
        graph.export(tmp_path / "n")
    graph = ModelGraph([text], register=False)
    graph.build()
    with pytest.raises(DataError, match="'t' of 'rows'"):
        graph.export(tmp_path / "n")
    estimator = ModelNode("line", LinearRegression(), fs.reference(features="a"))
    estimator.model.fit(rows_of(20)["a"][:, None], rows_of(20)["y"])
    graph = ModelGraph([estimator], register=False)
    graph.build()
    with pytest.raises(BackendNotSupportedError, match="'line'"):
        graph.export(tmp_path / "n")
    assert not list(tmp_path.iterdir())


def test_an_existing_file_stays_unless_overwritten(tmp_path):
    graph, path = small_graph(), tmp_path / "g.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(MMLExistsError):
        graph.export(path)
    assert path.read_bytes() == b"mine"
    graph.export(path, overwrite=True)
    assert run(path, rows_of(2))["y"].shape == (2, 1)


def test_numbers_are_compared_on_the_rows_passed(tmp_path):
    graph = small_graph()
    rows = rows_of(3)
    with pytest.raises(DataError, match="lacks the column 'b_°C'"):
        graph.export(tmp_path / "g", data={"a": rows["a"]})
    graph.export(tmp_path / "g", data=pd.DataFrame({k: rows[k] for k in ("a", "b_°C")}))


class MaskedMean(nn.Module):
    """A linear function of the mean over steps that are data."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x, mask):
        holds = mask.to(x.dtype).reshape(x.shape[0], -1)
        values = x.reshape(x.shape[0], -1) * holds
        return self.linear(values.sum(1, keepdim=True) / holds.sum(1, keepdim=True))


def test_masks_are_inputs_and_keep_padding_out_of_scalers(tmp_path):
    rng = np.random.default_rng(0)
    holds = rng.random((30, 6)) < 0.7
    holds[:, 0] = True
    rows = {"s": rng.normal(3, 2, (30, 6)), "m": holds, "y": rng.normal(size=30)}
    fs = FeatureSet.from_dict("rows", rows, ["s"], "y", ["m"], mask={"s": "m"})
    fs.fit_transform("StandardScaler", domain="features", merged_axes=(0, 1, 2))
    graph = ModelGraph([ModelNode("net", MaskedMean(), fs, mask_as="mask")])
    graph.build()
    path = graph.export(tmp_path / "m")
    new = {"s": rng.normal(3, 2, (7, 6)), "m": holds[:7]}
    (values,) = run(path, new).values()
    close(values, graph.predict(new))


def test_models_of_keras_are_refused_by_name(tmp_path):
    keras = pytest.importorskip("keras")
    fs = FeatureSet.from_dict("rows", rows_of(20), ["a"], "y")
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    graph = ModelGraph([ModelNode("dense", model, fs)])
    graph.build()
    with pytest.raises(BackendNotSupportedError, match="'dense' is a model of tensorflow"):
        graph.export(tmp_path / "k")
    assert not list(tmp_path.iterdir())
