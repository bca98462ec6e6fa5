"""Columns that stay in files: the same numbers as in memory, and little memory."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.preprocessing import StandardScaler

import modularml as mm
from modularml.data import FeatureSet, collection, parquet
from modularml.errors import DataError
from tests import worlds

N = 500


def table(n=N, seed=0):
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(n, 3))
    return pa.table(
        {
            "v": pa.FixedSizeListArray.from_arrays(v.ravel(), 3),
            "w": v.tolist(),
            "f": rng.normal(size=n).astype("f4"),
            "y": v.sum(axis=1),
            "cell": [f"c{i % 7}" for i in range(n)],
            "ok": rng.random(n) > 0.5,
            "day": pa.array(np.arange(n), pa.timestamp("s")),
        }
    )


@pytest.fixture(autouse=True)
def many_small_pieces(monkeypatch):
    monkeypatch.setattr(parquet, "PIECE_ROWS", 64)
    monkeypatch.setattr(collection, "BLOCK_BYTES", 500)
    monkeypatch.setattr(collection, "MAPPED_ROWS", 9)


@pytest.fixture
def pair(tmp_path):
    """The same folder of files, in memory and mapped."""
    for i in range(2):
        folder = tmp_path / f"lab={i}"
        folder.mkdir()
        pq.write_table(table(N - 100 * i, seed=i), folder / "0.parquet", row_group_size=200)
    args = (tmp_path, ["v", "w", "f"], "y", ["cell", "ok", "day", "lab"])
    mapped = FeatureSet.from_parquet("mapped", *args, in_memory=False)
    assert set(mapped.collection.maps) >= {"features.v.raw", "features.f.raw", "tags.day.raw"}
    return FeatureSet.from_parquet("held", *args), mapped


def test_a_mapped_set_is_the_same_as_one_in_memory(pair):
    held, mapped = pair
    assert mapped.to_arrow().equals(held.to_arrow())
    assert mapped.get_sample_uuids("list") == held.get_sample_uuids("list")
    rows = np.random.default_rng(0).permutation(len(held))[:300]
    names = ["features.w.raw", "features.v.raw"]
    np.testing.assert_array_equal(
        mapped.collection.gather(names, rows), held.collection.gather(names, rows)
    )
    for fs in pair:
        fs.split_random({"train": 0.5, "test": 0.5}, group_by="cell")
    assert mapped["train"].indices.tolist() == held["train"].indices.tolist()
    conditions = {"y": mm.predicates.GT(0.5), "lab": 1}
    assert (
        mapped.filter(conditions=conditions)
        .to_arrow()
        .equals(held.filter(conditions=conditions).to_arrow())
    )


def test_scaling_piece_by_piece(pair):
    held, mapped = pair
    for fs in pair:
        fs.split_random({"train": 0.5, "test": 0.5})
        for scaler in ("StandardScaler", "RobustScaler"):
            fs.fit_transform(
                scaler, domain="features", keys=["v", "w"], fit_to_split="train", merged_axes=(1, 2)
            )
    name = "features.v.transformed"
    assert name in mapped.collection.maps
    np.testing.assert_allclose(mapped.column(name), held.column(name), atol=1e-12)
    mapped.undo_last_transform("features", ["v", "w"])
    theirs = StandardScaler().fit(held["train"].column("features.v.raw"))
    np.testing.assert_allclose(
        mapped.column(name), theirs.transform(held.column("features.v.raw")), atol=1e-12
    )
    assert name in mapped.collection.maps
    mapped.undo_all_transforms()
    assert mapped.to_arrow().equals(held.select(rep="raw").to_arrow())


def test_training_is_the_same_bit_for_bit(pair):
    weights = []
    for fs in pair:
        net = torch.nn.Sequential(torch.nn.Flatten(), worlds.mlp(6))
        with mm.ExperimentContext().activate() as ctx:
            ctx.register_experiment_node(fs)
            reference = fs.reference(features=["v", "w"], tags=[])
            worlds.train(worlds.graph_of(reference, net), shuffle=True, n_epochs=2)
        weights.append(worlds.weights(net))
    worlds.assert_equal_weights(*weights)


def test_what_comes_late_is_refused_as_well(tmp_path):
    def read(values):
        pq.write_table(pa.table({"x": values, "y": np.zeros(len(values))}), tmp_path / "t.parquet")
        FeatureSet.from_parquet("bad", tmp_path / "t.parquet", "x", "y", in_memory=False)

    with pytest.raises(
        DataError, match=r"'x' is ragged: row 0 has shape \(2,\), row 64 is .*\(3,\)"
    ):
        read([[1, 2]] * 64 + [[1, 2, 3]] * 64)
    with pytest.raises(DataError, match=r"'x' has 1 missing.*row 6\b.*count from row 64 of"):
        read(pa.array([1] * 70 + [None]))


@pytest.mark.parametrize("in_memory", [True, False])
def test_no_rows(tmp_path, in_memory):
    pd.DataFrame({"x": [1.0], "y": [2]}).iloc[:0].to_parquet(tmp_path / "none.parquet")
    fs = FeatureSet.from_parquet("fs", tmp_path / "none.parquet", "x", "y", in_memory=in_memory)
    assert len(fs) == 0
    assert fs.get_features("np").shape == (0, 1)


TRAINING = """
import resource, sys, torch
import modularml as mm
fs = mm.FeatureSet.from_parquet("big", sys.argv[1], "x", "y")
fs.split_random({"train": 0.8, "test": 0.2})
fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(250, 1))
graph = mm.ModelGraph([mm.ModelNode("net", net, fs)], optimizer=mm.Optimizer("sgd"))
loss = mm.AppliedLoss(mm.Loss("mse"), on="net", inputs=["outputs", "targets"])
sampler = mm.SimpleSampler(batch_size=1024, shuffle=True)
phase = mm.TrainPhase.from_split("t", split="train", sampler=sampler, losses=[loss], n_epochs=1)
mm.Experiment.from_active_context("e").run_phase(phase, show_training_progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak(path):
    """Return the most megabytes that a process holds which scales and trains on a file."""
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, path], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.slow
def test_a_gigabyte_trains_in_a_fraction_of_it(tmp_path):
    rng = np.random.default_rng(0)
    kind = pa.schema({"x": pa.list_(pa.float32(), 250), "y": pa.float32()})
    with pq.ParquetWriter(tmp_path / "big.parquet", kind, compression="none") as writer:
        for _ in range(20):
            x = rng.normal(size=(50_000, 250)).astype("f4")
            columns = [pa.FixedSizeListArray.from_arrays(x.ravel(), 250), pa.array(x[:, 0])]
            part = pa.Table.from_arrays(columns, schema=kind)
            writer.write_table(part)
    pq.write_table(part, tmp_path / "small.parquet")
    assert (tmp_path / "big.parquet").stat().st_size > 1e9
    assert peak(tmp_path / "big.parquet") - peak(tmp_path / "small.parquet") < 250
