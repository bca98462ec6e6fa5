"""Windows of rows from files: the same batches as in memory, and each page read once."""

import resource
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.data import FeatureSet, collection, memory_map
from modularml.errors import DataError
from modularml.graph import input_tensors
from modularml.samplers import batching
from tests import worlds
from tests.experiment.test_resume import Ends, fail
from tests.worlds import QUIET

N = 700
NAMES = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(batching, "LEAST_BLOCK", 8)
    monkeypatch.setattr(collection, "BLOCK_BYTES", 500)
    monkeypatch.setattr(input_tensors, "CHUNK_BYTES", 8000)


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    v = rng.normal(size=(N, 3)).astype("f4")
    columns = {
        "a": rng.normal(size=N).astype("f4"),
        "b": rng.normal(size=N),  # float64, which a float32 model rounds
        "c": rng.integers(-9, 9, N).astype("i2"),
        "v": pa.FixedSizeListArray.from_arrays(v.ravel(), 3),
        "y": v.sum(axis=1).astype("f8"),
        "w": rng.uniform(size=N).astype("f4"),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=200)
    return tmp_path / "t.parquet"


def read(path, *, in_memory, features=(*NAMES, "v"), label="fs"):
    fs = FeatureSet.from_parquet(label, path, list(features), "y", "w", in_memory=in_memory)
    fs.split_random({"train": 0.8, "test": 0.2}, seed=0)
    return fs


def batches_of(fs, window, *, columns=NAMES, epochs=(0, 1), split="train", **kwargs):
    """Return the tensors of each batch, as the feed passes them to the step."""
    mm.ExperimentContext.get_active().set_registration_policy("overwrite")
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(1))
    graph = worlds.graph_of(fs.reference(features=list(columns), targets="y", tags=[]), net)
    sampler = mm.SimpleSampler(batch_size=32, shuffle=True, seed=5, shuffle_window=window)
    sources = worlds.bindings(graph, sampler, split)
    phase = mm.TrainPhase("t", input_sources=sources, losses=[worlds.mse()], **kwargs)
    feed, found = phase.feed(), []
    for epoch in epochs:
        feed.run(epoch, lambda tensors: found.append([t.clone() for t in tensors]))
    return found


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("columns", [NAMES, ["a"], ["b"], ["v"]])
def test_batches_are_those_in_memory_bit_for_bit(path, scaled, columns):
    found = []
    for in_memory in (True, False):
        with mm.ExperimentContext().activate():
            fs = read(path, in_memory=in_memory)
            if scaled:  # fitted block by block to the same numbers
                for keys in (["a", "b", "c"], ["v"]):
                    fs.fit_transform(
                        "MinMaxScaler", domain="features", keys=keys, fit_to_split="train"
                    )
            found.append(batches_of(fs, 64, columns=columns))
    assert len(found[0]) == 2 * 18
    for one, other in zip(*found, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.dtype == b.dtype == torch.float32
            assert torch.equal(a, b)


def test_large_integers_are_targets_as_in_memory(tmp_path):
    columns = {"a": np.arange(N, dtype="f4"), "y": 2**24 + np.arange(N)}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    found = []
    for in_memory in (True, False):
        with mm.ExperimentContext().activate():
            fs = FeatureSet.from_parquet("t", tmp_path / "t.parquet", "a", "y", in_memory=in_memory)
            fs.split_random({"train": 0.8, "test": 0.2}, seed=0)
            found.append(batches_of(fs, 64, columns=["a"]))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one[1], other[1])
        assert torch.equal(one[1][:, 0], (2**24 + one[0].ravel().long()).float())


def test_the_file_is_written_once_for_each_set_and_columns(path, monkeypatch):
    written = []

    def counted(blocks, n_rows):
        written.append(n_rows)
        return memory_map.write_rows(blocks, n_rows)

    monkeypatch.setattr(input_tensors, "write_rows", counted)
    with mm.ExperimentContext().activate():
        fs = read(path, in_memory=False)
        batches_of(fs, None)
        assert written == []  # nothing changes without windows
        first = batches_of(fs, 64)
        second = batches_of(fs, 64)
        assert written == [N]
        batches_of(fs, 64, columns=["a", "b"])
        batches_of(fs, 64, columns=["v"])  # is in a file row by row already
        assert written == [N, N]
        fs.fit_transform("MinMaxScaler", domain="features", keys=NAMES, fit_to_split="train")
        third = batches_of(fs, 64)
        assert written == [N, N, N]
    assert all(
        torch.equal(a, b)
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    assert not torch.equal(first[0][0], third[0][0])


def test_stopped_and_resumed_is_never_stopped(path, tmp_path):
    found = []
    for in_memory, stop in ((True, False), (False, False), (False, True)):
        folder = tmp_path / f"{in_memory}{stop}"
        for resume in (False, True) if stop else (False,):
            with mm.ExperimentContext().activate():
                fs = read(path, in_memory=in_memory)
                net = nn.Sequential(nn.Flatten(), worlds.mlp(3))
                graph = worlds.graph_of(fs.reference(features=NAMES, tags=[]), net)
                sampler = mm.SimpleSampler(batch_size=80, shuffle=True, shuffle_window=64, seed=5)
                ends = Ends()
                phase = mm.TrainPhase(
                    "t",
                    input_sources=worlds.bindings(graph, sampler, "train"),
                    losses=[worlds.mse()],
                    n_epochs=2,
                    callbacks=[ends],
                    checkpointing=mm.Checkpointing(mode="disk", save_on="batch_end"),
                )
                run = worlds.experiment(audit="off")
                run.execution_plan.add_phase(phase)
                run.set_checkpoint_dir(folder)
                if stop and not resume:
                    ends.at, ends.act = 10, fail  # in the second epoch of 7 batches each
                    with pytest.raises(ValueError, match="mine"):
                        run.run(**QUIET)
                else:
                    run.run(resume="auto" if resume else None, **QUIET)
        found.append(worlds.weights(net))
    worlds.assert_equal_weights(found[0], found[1])
    worlds.assert_equal_weights(found[1], found[2])


@pytest.mark.slow
def test_keras_reads_windows_too(path):
    keras = pytest.importorskip("keras")
    found = []
    for in_memory in (True, False):
        with mm.ExperimentContext().activate():
            fs = read(path, in_memory=in_memory)
            keras.utils.set_random_seed(0)
            net = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])
            graph = worlds.graph_of(fs.reference(features=NAMES, tags=[]), net)
            sampler = mm.SimpleSampler(batch_size=32, shuffle=True, shuffle_window=64, seed=5)
            sources = worlds.bindings(graph, sampler, "train")
            phase = mm.TrainPhase("t", input_sources=sources, losses=[worlds.mse()], n_epochs=2)
            worlds.experiment(audit="off").run_phase(phase, **QUIET)
            found.append(net.get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_padding_is_left_out_in_windows_too(tmp_path):
    lengths = np.random.default_rng(0).integers(1, 5, 300)
    v = np.arange(1200, dtype="f4").reshape(300, 4) / 1200
    is_step = np.arange(4) < lengths[:, None]
    columns = {
        "v": pa.FixedSizeListArray.from_arrays(np.where(is_step, v, 9).ravel(), 4),
        "is_step": pa.FixedSizeListArray.from_arrays(pa.array(is_step.ravel()), 4),
        "y": np.arange(300) % 7,
    }
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    found = []
    for in_memory in (True, False):
        with mm.ExperimentContext().activate():
            fs = FeatureSet.from_parquet(
                "p", tmp_path / "p.parquet", "v", "y", mask={"v": "is_step"}, in_memory=in_memory
            )
            net = nn.Sequential(nn.Flatten(), worlds.mlp(4, 4))
            graph = worlds.graph_of(fs.reference(targets=[], tags=[]), net)
            loss = mm.AppliedLoss(mm.Loss("mse"), on="net", inputs=["outputs", "features"])
            sampler = mm.SimpleSampler(batch_size=16, shuffle=True, seed=0, shuffle_window=64)
            phase = mm.TrainPhase("t", input_sources=worlds.bindings(graph, sampler), losses=[loss])
            worlds.experiment().run_phase(phase, **QUIET)
            found.append(worlds.weights(net))
    worlds.assert_equal_weights(*found)


def test_a_disk_that_is_too_small_is_named(path, monkeypatch):
    usage = memory_map.shutil.disk_usage("/")._replace(free=5000)
    with mm.ExperimentContext().activate():
        fs = read(path, in_memory=False)
        monkeypatch.setattr(memory_map.shutil, "disk_usage", lambda folder: usage)
        with pytest.raises(DataError, match=r"0\.00 GB.*TMPDIR") as caught:
            batches_of(fs, 64)
        assert tempfile.gettempdir() in str(caught.value)
        monkeypatch.undo()
        batches_of(fs, 64)


def test_a_disk_that_others_fill_meanwhile_is_named(path):
    """The system itself refuses the bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with mm.ExperimentContext().activate():
        fs = read(path, in_memory=False)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(DataError, match=r"do not fit into a temporary file.*TMPDIR"):
                batches_of(fs, 64)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not [key for key in fs.collection.tensors if key[0] == "rows"]


@pytest.mark.parametrize("width", [1, 33, 1500])
def test_each_page_of_a_window_is_asked_for_once(width):
    n, page = 3000, memory_map.mmap.PAGESIZE
    rows = memory_map.write_rows([np.zeros((n, width), "f4")], n)
    window = np.random.default_rng(0).permutation(np.r_[100:900, 2000:2100, 2999])
    for taken in (window, slice(100, 900), slice(0, n)):
        spans = rows.spans(taken).tolist()
        pages = [p for start, stop in spans for p in range(start // page, -(-stop // page))]
        assert len(pages) == len(set(pages))
        wanted = {
            p
            for row in np.arange(n)[taken].tolist()
            for p in range(row * width * 4 // page, ((row + 1) * width * 4 - 1) // page + 1)
        }
        assert wanted <= set(pages)
        unit = -(-width * 4 // page)
        assert len(pages) <= len(wanted) + 6 * (unit - 1)  # whole units, at the ends of runs
        rows.prefetch(taken)
