"""What is saved comes back equal, and saves to the same bytes."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modularml as mm
from modularml.errors import ConfigError, MMLError, MMLExistsError, MMLKindError, MMLNotFoundError
from modularml.models.torch import SequentialCNN, SequentialMLP, TorchModelWrapper
from modularml.splitters import BaseSplitter, ConditionSplitter, RandomSplitter
from tests.io import things


def again(obj: Any, folder: Path, cls: type | None = None) -> Any:
    """Save, load and save once more; the files are equal byte for byte."""
    first = obj.save(folder / "first")
    loaded = (cls or type(obj)).load(first)
    second = loaded.save(folder / "second")
    assert second.read_bytes() == first.read_bytes()
    assert obj.save(folder / "third").read_bytes() == first.read_bytes()
    return loaded


def built(model: Any) -> Any:
    model.build((4,) if not isinstance(model, SequentialCNN) else (2, 9), (2,))
    return model


MODELS = {
    "unbuilt": lambda: SequentialMLP(hidden_dim=3, activation="tanh"),
    "mlp": lambda: built(SequentialMLP(hidden_dim=3)),
    "cnn": lambda: built(SequentialCNN()),
    "wrapped": lambda: built(
        TorchModelWrapper(
            model_class=torch.nn.Linear, model_kwargs={"in_features": 4, "out_features": 2}
        )
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, tmp_path: Path) -> None:
    original = MODELS[name]()
    loaded = again(original, tmp_path, mm.BaseModel)
    assert loaded.same_weights(original)
    if original.is_built:
        x = torch.randn(5, *original.input_shape)
        assert torch.equal(loaded.eval()(x), original.eval()(x))


@pytest.mark.parametrize(
    "loss",
    [
        mm.Loss("mse"),
        mm.Loss("huber", loss_kwargs={"delta": 0.5}, backend="torch"),
        mm.Loss(torch.nn.L1Loss),
        mm.Loss(torch.nn.functional.mse_loss),
    ],
    ids=["name", "kwargs", "class", "function"],
)
def test_losses(loss: mm.Loss, tmp_path: Path) -> None:
    assert again(loss, tmp_path) == loss


def test_optimizer_keeps_its_moments(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = mm.Optimizer("adam", opt_kwargs={"lr": 0.1}, backend="torch")
    optimizer.build(parameters={"w": weight})
    weight.grad = torch.ones(3)
    optimizer.step()
    loaded = again(optimizer, tmp_path)
    twin = torch.nn.Parameter(weight.detach().clone())
    loaded.build(parameters={"w": twin})
    for each, p in ((optimizer, weight), (loaded, twin)):
        p.grad = torch.full((3,), 2.0)
        each.step()
    assert torch.equal(weight, twin)


@pytest.mark.parametrize(
    "name",
    ["StandardScaler", "MinMaxScaler", "RobustScaler", "QuantileTransformer", "PowerTransformer",
     "MaxAbsScaler", "Normalizer", "Negate", "PerSampleMinMaxScaler"],
)  # fmt: skip
def test_scalers(name: str, tmp_path: Path) -> None:
    kwargs = {"n_quantiles": 10} if name == "QuantileTransformer" else {}
    rows = np.random.default_rng(0).normal(size=(20, 3))
    scaler = mm.Scaler(name, kwargs).fit(rows)
    loaded = again(scaler, tmp_path)
    np.testing.assert_array_equal(loaded.transform(rows), scaler.transform(rows))


def test_samplers_and_splitters(tmp_path: Path) -> None:
    sampler = mm.SimpleSampler(batch_size=4, shuffle=True, seed=5)
    assert again(sampler, tmp_path) == sampler
    for i, splitter in enumerate(
        [RandomSplitter({"a": 0.5, "b": 0.5}), ConditionSplitter({"a": {"cell": ["x", "y"]}})]
    ):
        folder = tmp_path / str(i)
        folder.mkdir()
        assert again(splitter, folder, BaseSplitter) == splitter


def test_featureset(tmp_path: Path) -> None:
    fs = things.featureset()
    path = fs.save(tmp_path / "rows.v2")
    assert path.name == "rows.v2.fs.mml"
    with mm.ExperimentContext().activate() as ctx:
        loaded = mm.FeatureSet.load(tmp_path / "rows.v2")
        assert loaded.save(tmp_path / "again").read_bytes() == path.read_bytes()
        assert ctx.get_node("cells") is loaded
    assert loaded.collection.table.equals(fs.collection.table)
    assert loaded.available_splits == fs.available_splits
    assert loaded.split_records[0].splitter == fs.split_records[0].splitter
    assert loaded["test"].get_sample_uuids("list") == fs["test"].get_sample_uuids("list")
    scaled = fs.get_targets("numpy", rep="transformed")
    back = loaded.unscale_data_for_cols(data=scaled, domain="targets", columns="y")
    np.testing.assert_allclose(back, fs.get_targets("numpy", rep="raw"), rtol=1e-6)
    loaded.undo_all_transforms()


def test_a_loaded_set_makes_room_only_on_request(tmp_path: Path) -> None:
    fs = things.featureset()
    path, ctx = fs.save(tmp_path / "rows"), fs.context
    before = things.snapshot(ctx)
    other = mm.FeatureSet.load(path)
    assert things.snapshot(ctx) == before
    assert other.node_id != fs.node_id
    assert other.context is not ctx
    third = mm.FeatureSet.load(path, overwrite=True)
    assert ctx.get_node("cells") is third
    assert third.node_id == fs.node_id


def test_columns_stay_in_the_file(tmp_path: Path) -> None:
    rows = np.arange(400_000, dtype=np.float64)
    fs = mm.FeatureSet.from_dict("big", {"x": rows, "y": rows}, "x", "y")
    path = fs.save(tmp_path / "big")
    with mm.ExperimentContext().activate():
        loaded = mm.FeatureSet.load(path, verify=False)
    buffer = loaded.collection.table.column("features.x.raw").chunk(0).buffers()[1]
    assert not buffer.is_mutable
    assert buffer.address % 8 == 0
    np.testing.assert_array_equal(loaded.get_features("numpy").reshape(-1), rows)


def test_graph_in_its_own_and_in_a_new_context(tmp_path: Path) -> None:
    made = things.experiment()
    fs, graph = made.ctx.get_node("cells"), made.model_graph
    assert isinstance(fs, mm.FeatureSet)
    assert graph is not None
    want = made.predict(fs)
    path = graph.save(tmp_path / "graph")
    beside = mm.ModelGraph.load(path)
    assert made.model_graph is graph
    with beside.context.activate():
        np.testing.assert_array_equal(mm.Experiment.from_active_context("x").predict(fs), want)
    with mm.ExperimentContext().activate() as ctx:
        rows = fs.save(tmp_path / "rows")
        alone = mm.ModelGraph.load(path)
        assert ctx.model_graph is alone
        assert alone.save(tmp_path / "b").read_bytes() == path.read_bytes()
        loaded = mm.FeatureSet.load(rows)
        assert mm.ModelGraph.load(path, overwrite=True).is_built
        np.testing.assert_array_equal(mm.Experiment.from_active_context("x").predict(loaded), want)


def test_two_nodes_that_share_odd_labels(tmp_path: Path) -> None:
    fs = things.featureset("a/b c")
    a = mm.ModelNode("nœud.1", SequentialMLP(output_shape=(2,)), fs.reference(features=["x"]))
    b = mm.ModelNode("n ud 1", SequentialMLP(), a)
    graph = mm.ModelGraph([a, b], optimizer=mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}))
    graph.build()
    path = graph.save(tmp_path / "graph")
    loaded = mm.ModelGraph.load(path)
    assert loaded.get_node("n ud 1").model.same_weights(b.model)
    assert loaded.get_node("nœud.1").model.same_weights(a.model)


def test_an_ordinary_zip_file_with_aligned_payloads(tmp_path: Path) -> None:
    path = things.featureset().save(tmp_path / "rows")
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert file.namelist()[0] == "manifest.json"
        data = path.read_bytes()
        for info in file.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            if info.filename.endswith((".arrow", ".safetensors")):
                assert data.index(file.read(info)) % 64 == 0


def test_a_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = mm.Loss("mse").save(tmp_path / "a")
    before = path.read_bytes()
    with pytest.raises(MMLExistsError, match="overwrite=True"):
        mm.Loss("l1").save(tmp_path / "a")
    assert path.read_bytes() == before
    mm.Loss("l1").save(path, overwrite=True)
    assert mm.Loss.load(path) == mm.Loss("l1")


def test_wrong_kinds_and_missing_files(tmp_path: Path) -> None:
    path = mm.Loss("mse").save(tmp_path / "a")
    with pytest.raises(MMLKindError, match="is of kind Loss, not Optimizer"):
        mm.Optimizer.load(path)
    with pytest.raises(MMLNotFoundError, match=r"a\.ls\.mml"):
        mm.Loss.load(tmp_path / "b")
    with pytest.raises(MMLError, match="MML-109"):
        mm.Loss.load(path, allow_packaged_code=True)
    with pytest.raises(MMLError, match="Make the folder first"):
        mm.Loss("mse").save(tmp_path / "no" / "a")


def test_what_cannot_be_found_again_says_how(tmp_path: Path) -> None:
    with pytest.raises(MMLError, match="model_class=LSTM"):
        TorchModelWrapper(model=torch.nn.LSTM(2, 1)).save(tmp_path / "a")
    with pytest.raises(MMLError, match="top level of a module"):
        mm.Loss(lambda a, b: a - b).save(tmp_path / "a")
    with pytest.raises(ConfigError):
        TorchModelWrapper(model=torch.nn.LSTM(2, 1)).get_config()
    assert list(tmp_path.iterdir()) == []


def test_loading_leaves_random_numbers_alone(tmp_path: Path) -> None:
    path = built(SequentialMLP()).save(tmp_path / "a")
    torch.manual_seed(1)
    want = torch.rand(3)
    torch.manual_seed(1)
    mm.BaseModel.load(path)
    assert torch.equal(torch.rand(3), want)


def test_another_process_reads_it(tmp_path: Path) -> None:
    made = things.experiment()
    path = made.save(tmp_path / "study")
    fs: Any = made.ctx.get_node("cells")
    code = (
        f"import modularml as mm; e = mm.Experiment.load({str(path)!r});"
        "print(repr(float(e.predict(e.ctx.get_node('cells')).sum())), len(e.history))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path.cwd()
    )
    assert run.stdout.split() == [repr(float(made.predict(fs).sum())), "1"]
