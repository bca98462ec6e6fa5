"""Every door to a file answers odd paths with an error of the format, and changes nothing."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

import modularml as mml
from modularml import errors
from modularml.errors import ConfigError, MMLError, ModularMLError, UnknownNameError


@pytest.fixture
def fs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.fs.mml").mkdir()
    (tmp_path / "out").mkdir()
    made = mml.FeatureSet.from_dict("s", {"x": [1.0, 2], "y": [0.0, 1]}, "x", "y", register=False)
    made.save("good")
    if hasattr(os, "mkfifo"):
        os.mkfifo("fifo.fs.mml")
        Path("device.fs.mml").symlink_to("/dev/null")
    return made


ODD = [
    "",
    "folder",
    "folder.fs.mml",
    "a" * 300,
    "ä" * 200,
    "x" * 5000,
    "a\0b",
    "out/",
    "..",
    None,
    3,
    "fifo.fs.mml",
    "device.fs.mml",
]
DOORS = {
    "load": lambda fs, path: mml.FeatureSet.load(path),
    "save": lambda fs, path: fs.save(path),
    "overwrite": lambda fs, path: fs.save(path, overwrite=True),
    "inspect": lambda fs, path: mml.io.inspect(path),
    "graph": lambda fs, path: mml.ModelGraph.load(path),
    "experiment": lambda fs, path: mml.Experiment.load(path),
    "extract": lambda fs, path: mml.io.extract(path, "to"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("path", ODD, ids=range(len(ODD)))
def test_odd_paths(fs, door, path):
    before = sorted(Path().rglob("*"))
    with pytest.raises(ModularMLError):
        DOORS[door](fs, path)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("door", [d for d in DOORS if d not in ("save", "overwrite")])
@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/proc/self/mem", "."])
def test_what_is_no_file_of_ours(fs, door, path):
    with pytest.raises(ModularMLError):
        DOORS[door](fs, path)


def test_a_folder_beside_a_file_of_that_name(fs):
    (Path() / "good").mkdir()
    assert len(mml.FeatureSet.load("good")) == 2


def test_links_stay_and_lead_to_what_is_written(fs):
    Path("link.fs.mml").symlink_to("good.fs.mml")
    other = mml.FeatureSet.from_dict("s", {"x": [1.0], "y": [0.0]}, "x", "y", register=False)
    other.save("link", overwrite=True)
    assert Path("link.fs.mml").is_symlink()
    assert len(mml.FeatureSet.load("good", overwrite=True)) == 1
    with pytest.raises(errors.MMLExistsError):
        other.save("link")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(fs):
    Path("out").chmod(0o500)
    with pytest.raises(MMLError):
        fs.save("out/a")
    with pytest.raises(ConfigError):
        mml.Experiment("e").set_checkpoint_dir("out/deep/er")


def test_checkpoints(fs):
    experiment = mml.Experiment("e")
    for folder in ("good.fs.mml", "good.fs.mml/below", "a" * 300):
        with pytest.raises(ConfigError):
            experiment.set_checkpoint_dir(folder)
    experiment.set_checkpoint_dir("out")
    for name in ("none", "a/b"):
        with pytest.raises(UnknownNameError):
            experiment.restore_checkpoint(name)
    for name in ("a" * 300, "", "folder.fs.mml"):
        with pytest.raises(ModularMLError):
            experiment.restore_checkpoint(name)


def every_error() -> list[ModularMLError]:
    made = {
        UnknownNameError: lambda c: c("column", "x", ["y"]),
        errors.NonFiniteLossError: lambda c: c(
            phase="p",
            epoch=1,
            batch=2,
            node="n",
            loss="l",
            value=float("nan"),
            columns=["features.x.raw"],
            rows=range(9),
        ),
    }
    known = [c for c in vars(errors).values() if isinstance(c, type)]
    known = [c for c in known if issubclass(c, ModularMLError)]
    codes = {c: (lambda c: c("MML-101", "a/b", "m", "is odd", "Do it")) for c in known}
    plain = {c: (lambda c: c("it is odd")) for c in known if not issubclass(c, MMLError)}
    return [{**codes, **plain, **made}[c](c) for c in known]


@pytest.mark.parametrize("error", every_error(), ids=lambda e: type(e).__name__)
def test_errors_survive_pickling(error):
    error.add_note("a note")
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert str(vars(there)) == str(vars(error))
    assert there.args == error.args


def unknown_name(_: int) -> None:
    fs = mml.FeatureSet.from_dict("q", {"x": [1.0], "y": [1.0]}, "x", "y", register=False)
    fs.get_features(features="zz")


def test_an_error_in_a_worker_arrives_as_itself():
    from multiprocessing import get_context

    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        pytest.raises(UnknownNameError, match="zz"),
    ):
        pool.submit(unknown_name, 0).result()
