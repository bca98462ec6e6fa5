"""Stopping early and checkpoints; files that are data."""

import json
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularml.errors import ConfigError, DataError
from modularml.loop import Stream
from modularml.runner import Event, Runner, read_saved, write_safely
from modularml.runner.callbacks import checkpoint, maybe_stop_early, save


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ----------------------------------------------------------------------------- stopping early


@pytest.mark.parametrize(
    ("better", "patience", "n"),
    [
        ([1, 0, 0, 0, 0], 2, 4),
        ([1, 0, 1, 0, 0, 0, 0], 1, 5),
        ([0, 0], 0, 1),
        ([1, 1, 1], 0, 3),
    ],
)
def test_a_run_that_gets_no_better_is_stopped(better, patience, n):
    runner = Runner()
    runner.on(Event.EPOCH_FINISHED, lambda state: state.update(ok=better[state["epoch"] - 1]))
    runner.on(Event.EPOCH_FINISHED, maybe_stop_early(patience, check="ok", counter="bad"))
    runner.run("a", max_epoch=len(better))
    assert runner.state["epoch"] == n


def test_bad_early_stops():
    with pytest.raises(ConfigError, match="patience must be an int of at least 0"):
        maybe_stop_early(-1)
    with pytest.raises(KeyError, match="better"):
        maybe_stop_early()({"bettr": True})


# --------------------------------------------------------------------------------- checkpoints


def test_at_most_so_many_files_are_kept(tmp_path):
    runner = Runner()
    runner.on(Event.EPOCH_FINISHED, lambda state: state.update(model=state["epoch"]))
    runner.on(Event.EPOCH_FINISHED, checkpoint("model", under=tmp_path / "deep" / "er", at_most=2))
    runner.run("a", max_epoch=4)
    folder = tmp_path / "deep" / "er"
    assert names(folder) == ["3_model.pkl", "4_model.pkl"]
    assert runner.state["_saved_model"] == [folder / "3_model.pkl", folder / "4_model.pkl"]
    assert read_saved(folder / "4_model.pkl") == 4


def test_only_one_by_default_and_only_when(tmp_path):
    runner = Runner()
    runner.on(Event.EPOCH_FINISHED, lambda state: state.update(better=state["epoch"] in (1, 3)))
    runner.on(Event.EPOCH_FINISHED, save("best", {"w": 1}, under=tmp_path, when="better"))
    runner.run("a", max_epoch=4)
    assert names(tmp_path) == ["3_best.pkl"]


def test_names_prefixes_and_queues(tmp_path):
    runner = Runner()
    keep = checkpoint(
        "model",
        [1],
        under=str(tmp_path),
        ext="json",
        prefix_fmt="{run}-{epoch:03d}-{n_iters}_",
        queue_fmt="kept_{what}",
        at_most=9,
    )
    runner.state["run"] = "a"
    runner.on(Event.BATCH, keep)
    runner.run("xy", max_epoch=2)
    assert names(tmp_path) == [
        "a-001-1_model.json",
        "a-001-2_model.json",
        "a-002-3_model.json",
        "a-002-4_model.json",
    ]
    assert len(runner.state["kept_model"]) == 4


def test_a_file_of_one_name_is_written_over_and_stays(tmp_path):
    runner = Runner()
    runner.on(Event.EPOCH_FINISHED, lambda state: state.update(x=state["epoch"]))
    runner.on(Event.EPOCH_FINISHED, checkpoint("x", under=tmp_path, prefix_fmt="", ext="json"))
    runner.run("a", max_epoch=3)
    assert names(tmp_path) == ["x.json"]
    assert json.loads((tmp_path / "x.json").read_text()) == 3


def test_the_current_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint("x", 1)({"epoch": 1})
    assert names(tmp_path) == ["1_x.pkl"]


def test_a_way_of_saving_of_your_own(tmp_path):
    def dump(obj, path):
        assert isinstance(path, Path)
        path.write_bytes(pickle.dumps(obj))

    checkpoint("x", {1, 2}, under=tmp_path, using=dump)({"epoch": 1})
    assert pickle.loads((tmp_path / "1_x.pkl").read_bytes()) == {1, 2}


def test_what_is_no_data_is_refused_and_the_old_file_stays(tmp_path):
    runner, objects = Runner(), [{"a": [1]}, {"a": [1, object()]}]
    runner.on(Event.EPOCH_FINISHED, lambda state: state.update(x=objects[state["epoch"] - 1]))
    runner.on(Event.EPOCH_FINISHED, checkpoint("x", under=tmp_path))
    with pytest.raises(ConfigError, match=r"a object at a > 1 cannot be saved.*using="):
        runner.run("a", max_epoch=2)
    assert names(tmp_path) == ["1_x.pkl"]
    runner.state["x"] = {"a": []}
    runner.resume()
    assert names(tmp_path) == ["2_x.pkl"]


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"at_most": 0}, "at_most must be an int of at least 1"),
        ({"using": "pickle"}, "using must be a function"),
        ({"prefix_fmt": "{epoch"}, "prefix_fmt must be a format"),
        ({"prefix_fmt": "{}_"}, "a field has no name"),
        ({"prefix_fmt": "{0}_"}, "a field has no name"),
    ],
)
def test_bad_checkpoints(keywords, said):
    with pytest.raises(ConfigError, match=said):
        checkpoint("x", **keywords)


@pytest.mark.parametrize(
    ("keywords", "missing"),
    [
        ({}, "x"),
        ({"obj": 1, "when": "better"}, "better"),
        ({"obj": 1, "prefix_fmt": "{ep}_"}, "ep"),
    ],
)
def test_keys_that_are_missing(tmp_path, keywords, missing):
    with pytest.raises(KeyError, match=f"unknown state key '{missing}'"):
        checkpoint("x", under=tmp_path, **keywords)({"epoch": 1})
    assert names(tmp_path) == []


# ------------------------------------------------------------------------------ files as data

KEYS = st.one_of(st.text(max_size=4), st.integers(-3, 3), st.sampled_from(["$dict", "$float"]))
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_plain_data_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_safely(value, path)
    assert read_saved(path) == value
    json.loads(path.read_text("utf-8"))  # and is JSON


def test_arrays_come_back(tmp_path):
    value = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "scalar": np.array(3),
        "flags": [np.array([True, False])],
        "big": np.array([1, 2], dtype=">i4"),
        "number": np.float64(0.5),
        1: (np.zeros((0, 2), np.uint16),),
    }
    write_safely(value, tmp_path / "x.safetensors")
    found = read_saved(tmp_path / "x.safetensors")
    assert found.keys() == value.keys()
    np.testing.assert_equal(found, value)
    assert found["f"].dtype == np.float32
    assert found["scalar"].shape == ()


def test_a_model_and_its_optimizer_come_back(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.8, 0.9))
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    for name, obj in (("model", model), ("optimizer", optimizer)):
        checkpoint(name, obj, under=tmp_path, ext="safetensors")({"epoch": 1})
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(read_saved(tmp_path / "1_model.safetensors"))
    assert torch.equal(other.weight, model.weight)
    again = torch.optim.Adam(other.parameters())
    again.load_state_dict(read_saved(tmp_path / "1_optimizer.safetensors"))
    assert repr(again.state_dict()) == repr(optimizer.state_dict())


def test_objects_with_a_state_may_stand_in_a_dict(tmp_path):
    stream = Stream([1, 2])
    stream.next()
    write_safely({"epoch": 3, "parts": [stream]}, tmp_path / "x")
    assert read_saved(tmp_path / "x") == {"epoch": 3, "parts": [stream.state_dict()]}


def test_other_tools_can_read_a_state_dict(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    model = torch.nn.Linear(3, 2)
    write_safely(model, tmp_path / "x")
    assert load_file(tmp_path / "x").keys() == model.state_dict().keys()


def test_tensors_of_any_kind(tmp_path):
    torch = pytest.importorskip("torch")
    tied = torch.arange(4.0)
    value = OrderedDict(
        a=tied,
        b=tied[::2],
        half=torch.ones(2, dtype=torch.bfloat16),
        grad=torch.tensor(1.0, requires_grad=True),
        array=np.array([1, 2], dtype=np.int16),
    )
    write_safely(value, tmp_path / "x")
    found = read_saved(tmp_path / "x")
    assert torch.equal(found["a"], tied)
    assert torch.equal(found["b"], tied[::2])
    assert found["half"].dtype is torch.bfloat16
    assert found["grad"].item() == 1.0
    assert found["array"].dtype == np.int16
    write_safely(tied, tmp_path / "x")
    assert torch.equal(read_saved(tmp_path / "x"), tied)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\x80\x04pickle", bytes(20), b'{"$tuple": 3}', b'{"$tensor": "w"}']
)
def test_what_is_no_file_of_ours(tmp_path, data):
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(DataError, match="neither JSON nor safetensors"):
        read_saved(path)


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, b"x", np.array(["a"]), np.array([object()]), {"a": {(1,): len}}]
)
def test_what_cannot_be_written(tmp_path, value):
    with pytest.raises(ConfigError, match="cannot be saved as data"):
        write_safely(value, tmp_path / "x")
    assert names(tmp_path) == []
