"""A graph's file predicts by itself, and an experiment can be shared without its rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import modularml as mml
from modularml.errors import ConfigError, DataError, MMLError, UnknownNameError
from modularml.io.archive import open_archive, write_archive
from modularml.models.torch import SequentialMLP

QUIET = {"show_training_progress": False}
N = 60


def columns(seed: int = 0) -> dict[str, np.ndarray]:
    """Return columns on unlike scales, with values that stand out in a file's bytes."""
    rng = np.random.default_rng(seed)
    x = (100 + rng.normal(size=(N, 3))).astype(np.float32)
    x[7] = 12345.678  # planted
    cells = np.array([f"PATIENT-{i % 6:03}" for i in range(N)])
    return {"x": x, "y": 5 + x.sum(1) + rng.normal(size=N), "cell": cells}


def rows_of(data: dict[str, np.ndarray], **options) -> mml.FeatureSet:
    return mml.FeatureSet.from_dict("rows", data, "x", "y", "cell", **options)


def trained() -> mml.Experiment:
    experiment = mml.Experiment("e", seed=0, audit="off")
    fs = rows_of(columns())
    fs.split_by_condition(
        {
            "train": {"cell": ["PATIENT-000", "PATIENT-001", "PATIENT-002"]},
            "test": {"cell": ["PATIENT-003", "PATIENT-004", "PATIENT-005"]},
        }
    )
    fs.fit_transform("RobustScaler", domain="features", fit_to_split="train", merged_axes=(1, 2))
    fs.fit_transform("StandardScaler", domain="targets", fit_to_split="train")
    net = mml.ModelNode("net", SequentialMLP(output_shape=(1,)), fs)
    mml.ModelGraph([net], mml.Optimizer("adam"))
    loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
    phase = mml.TrainPhase.from_split(
        "t", split="train", sampler=mml.SimpleSampler(batch_size=8), losses=[loss], n_epochs=2
    )
    experiment.execution_plan.add_phase(phase)
    experiment.run(**QUIET)
    return experiment


NEW = {"x": np.full((2, 3), 101.0, dtype=np.float32)}


def save(what: str, experiment: mml.Experiment, path) -> tuple[type, str]:
    if what == "graph":
        return mml.ModelGraph, str(experiment.model_graph.save(path))
    return mml.Experiment, str(experiment.save(path, rows=False))


@pytest.mark.parametrize("what", ["graph", "experiment"])
def test_it_predicts_in_a_new_process(what, tmp_path):
    experiment = trained()
    expected = experiment.predict(NEW)
    assert expected.min() > 100  # in the target's own units, not in standard deviations
    cls, path = save(what, experiment, tmp_path / "f")
    code = (
        f"import numpy as np, modularml as mml\n"
        f"there = mml.{cls.__name__}.load({path!r})\n"
        f"np.save({str(tmp_path / 'out.npy')!r}, "
        f"there.predict({{'x': np.full((2, 3), 101.0, dtype=np.float32)}}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


@pytest.mark.parametrize("what", ["graph", "experiment"])
def test_a_classifier_of_scikit_learn_knows_its_classes(what, tmp_path):
    linear_model = pytest.importorskip("sklearn.linear_model")
    data = columns()
    fs = rows_of(data | {"y": data["y"] > np.median(data["y"])})
    fs.fit_transform("LabelEncoder", domain="targets")
    fs.split_random({"train": 1.0})
    mml.ModelGraph([mml.ModelNode("net", linear_model.LogisticRegression(max_iter=2000), fs)])
    experiment = mml.Experiment.from_active_context("e", audit="off")
    experiment.run_phase(mml.FitPhase.from_split("fit", split="train"))
    cls, path = save(what, experiment, tmp_path / "f")
    with mml.ExperimentContext().activate():
        loaded = cls.load(path)
        assert np.array_equal(loaded.predict(NEW), experiment.predict(NEW))
        assert loaded.predict(NEW, decode=True).dtype == bool


@pytest.mark.parametrize("what", ["graph", "experiment"])
@pytest.mark.parametrize("form", ["dict", "pandas", "array", "known rows"])
def test_every_form_of_rows(what, form, tmp_path):
    pd = pytest.importorskip("pandas")
    experiment = trained()
    known = experiment.ctx.get_node(label="rows")["test"]
    x = known.get_features("numpy", rep="raw")[:, 0]
    data = {
        "dict": {"x": x},
        "pandas": pd.DataFrame({"x": list(x)}),
        "array": x,
        "known rows": rows_of(columns(), register=False).take(known.indices),
    }[form]
    cls, path = save(what, experiment, tmp_path / "f")
    with mml.ExperimentContext().activate():
        found = cls.load(path).predict(data)
    np.testing.assert_allclose(found, experiment.predict(known), rtol=1e-5)


@pytest.mark.parametrize("what", ["graph", "experiment"])
def test_no_value_of_a_row_is_in_the_file(what, tmp_path):
    experiment = trained()
    _, path = save(what, experiment, tmp_path / "f")
    data = Path(path).read_bytes()
    for planted in (np.float32(12345.678).tobytes(), np.float64(columns()["y"][3]).tobytes()):
        assert planted not in data
    assert b"PATIENT-00" not in data
    whole = experiment.save(tmp_path / "whole").read_bytes()
    assert b"PATIENT-00" in whole  # so that this test could fail
    assert np.float32(12345.678).tobytes() in whole


def test_texts_of_errors_are_left_out(tmp_path):
    experiment = trained()
    experiment.last_run.execution_meta["error"] = ValueError("PATIENT-001 has 12345.678")
    experiment.last_run.metadata["note"] = "PATIENT-002"
    path = experiment.save(tmp_path / "f", rows=False)
    assert b"PATIENT-00" not in path.read_bytes()
    assert b"ValueError" in path.read_bytes()
    with_results = experiment.save(tmp_path / "g", rows=False, results=True)
    assert b"PATIENT-00" in with_results.read_bytes()


def test_what_needs_rows_says_so(tmp_path):
    path = trained().save(tmp_path / "f", rows=False)
    with mml.ExperimentContext().activate():
        there = mml.Experiment.load(path)
        fs = there.ctx.get_node(label="rows")
        assert fs.available_splits == ["train", "test"]
        assert not fs.has_rows
        assert len(fs) == 0
        for needs_rows in (
            lambda: fs["train"],
            fs.get_features,
            fs.get_sample_uuids,
            fs.summary,
            lambda: there.run(**QUIET),
            lambda: there.predict(fs),
            fs.undo_all_transforms,
            fs.audit,
            fs.visualize,
            lambda: fs.fit_transform("StandardScaler", domain="features"),
            lambda: fs.copy(restore_splits=True).get_targets(),
        ):
            with pytest.raises(DataError, match=r"60 rows are missing.*attach\(fs\)"):
                needs_rows()
        metrics = there.history[0].results["t"].metrics()
        assert len(metrics.where(name="train_loss", batch=None)) == 2


@pytest.mark.parametrize("what", ["graph", "experiment"])
def test_attach_puts_the_rows_back(what, tmp_path):
    experiment = trained()
    fs = experiment.ctx.get_node(label="rows")
    cls, path = save(what, experiment, tmp_path / "f")
    with mml.ExperimentContext().activate():
        there = cls.load(path)
        ctx = mml.ExperimentContext.get_active()
        other = rows_of({**columns(), "y": columns()["y"] + 1})  # has no place in the context
        with pytest.raises(DataError, match="values differ"):
            there.attach(other)
        with pytest.raises(UnknownNameError, match="without rows"):
            there.attach(mml.FeatureSet.from_dict("z", columns(), "x", "y", register=False))
        there.attach(rows_of(columns()))
        back = ctx.get_node(label="rows")
        assert back.has_rows
        with pytest.raises(ConfigError, match="already has its rows"):
            back.attach(rows_of(columns(), register=False))
        for rep in ("raw", "transformed"):
            for getter in ("get_features", "get_targets"):
                mine = getattr(back, getter)("numpy", rep=rep)
                np.testing.assert_array_equal(mine, getattr(fs, getter)("numpy", rep=rep))
        np.testing.assert_array_equal(there.predict(back), experiment.predict(fs))
        if what == "experiment":
            np.testing.assert_array_equal(back["train"].indices, fs["train"].indices)
            there.run(**QUIET)


def test_a_file_without_rows_is_saved_again(tmp_path):
    experiment = trained()
    first = experiment.save(tmp_path / "a", rows=False)
    with mml.ExperimentContext().activate():
        again = mml.Experiment.load(first).save(tmp_path / "b")
    assert b"PATIENT-00" not in again.read_bytes()
    with mml.ExperimentContext().activate():
        np.testing.assert_array_equal(
            mml.Experiment.load(again).predict(NEW), experiment.predict(NEW)
        )
    found = mml.io.inspect(again)["featuresets"]["rows"]
    assert (found["rows"], found["has_rows"]) == (N, False)
    assert found["fingerprint"] == experiment.ctx.get_node(label="rows").collection.fingerprint


def test_rows_that_were_learned_from_are_known_without_them(tmp_path):
    experiment = trained()
    fs = experiment.ctx.get_node(label="rows")
    path = experiment.save(tmp_path / "a", rows=False)
    with mml.ExperimentContext().activate():
        learned = mml.Experiment.load(path).model_graph.learned_from
        np.testing.assert_array_equal(learned.known(fs), fs["train"].indices)
        assert learned.counts == {"rows": 30}


def test_a_set_that_is_here_is_used_and_other_scalers_are_warned_of(tmp_path):
    experiment = trained()
    path = experiment.model_graph.save(tmp_path / "g")
    with mml.ExperimentContext().activate() as ctx:
        fs = rows_of(columns())
        with pytest.warns(UserWarning, match="scalers of FeatureSet") as caught:
            mml.ModelGraph.load(path)
        assert caught[0].filename == __file__
        assert ctx.available_featuresets == {fs.node_id: fs}


def test_estimators_that_keep_rows_are_warned_of(tmp_path):
    sklearn = pytest.importorskip("sklearn.neighbors")
    experiment = mml.Experiment("e", audit="off")
    fs = rows_of(columns())
    fs.add_split(fs.take(range(N), label="train"))
    mml.ModelGraph([mml.ModelNode("knn", sklearn.KNeighborsRegressor(), fs)])
    experiment.run_phase(mml.FitPhase.from_split("fit", split="train"))
    with pytest.warns(UserWarning, match=r"\['knn'\] predict with stored"):
        experiment.save(tmp_path / "f", rows=False)


def test_what_a_file_says_of_its_rows_is_checked(tmp_path):
    archive = open_archive(trained().save(tmp_path / "a", rows=False))
    members = {name: bytes(data) for name, data in archive.payloads.items()}
    state = json.loads(members["state.json"])
    facts = {key: archive.manifest[key] for key in ("backends", "classes", "requires")}
    for bad in ({"rows": -1}, {"rows": True}, {"rows": 3}, {"fingerprint": 7}, {"fingerprint": ""}):
        state["featuresets"]["rows"]["absent"] = {"rows": N, "fingerprint": "0" * 32, **bad}
        members["state.json"] = json.dumps(state, separators=(",", ":")).encode()
        write_archive(Path(tmp_path / "b.exp.mml"), "exp", members, facts=facts, overwrite=True)
        with mml.ExperimentContext().activate(), pytest.raises(MMLError, match="MML-107"):
            mml.Experiment.load(tmp_path / "b")
