"""Ensembles, held against loops over their members and closed forms of intervals."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsRegressor
from torch import nn

import modularml as mml
from modularml.audit import AuditWarning
from modularml.data.scaling import LeakWarning
from modularml.data.selectors import select_one
from modularml.errors import (
    ConfigError,
    DataError,
    ExecutionError,
    MMLError,
    NotFittedError,
    ScalerError,
    UnknownNameError,
)
from modularml.io.randomness import random_states
from modularml.models.torch import SequentialMLP
from modularml.strategies import FoldFailedWarning, SelectionWarning
from tests.saboteurs import Saboteur
from tests.worlds import arrays, experiment, featureset, mse

SILENT = {"show_progress": False}
N = 120


def table(n: int = N, seed: int = 0) -> pd.DataFrame:
    """Features, a target in units of its own, a cell of five rows and a kind."""
    x, y = arrays(n, seed=seed)
    frame = pd.DataFrame({f"x{i}": x[:, i] for i in range(x.shape[1])})
    return frame.assign(y=5 + 3 * y[:, 0], cell=np.arange(n) // 5, kind=np.arange(n) % 3)


def rows(n: int = N, label: str = "data", seed: int = 0) -> mml.FeatureSet:
    """Rows in the splits train, val, calibration and test."""
    frame = table(n, seed)
    fs = featureset(
        frame[[c for c in frame if c.startswith("x")]].to_numpy(),
        frame["y"].to_numpy(),
        label,
        cell=frame["cell"].to_numpy(),
        kind=frame["kind"].to_numpy(),
    )
    fs.split_random({"train": 0.5, "val": 0.1, "calibration": 0.2, "test": 0.2}, seed=1)
    return fs


def world(fs: mml.FeatureSet, *, n_epochs: int = 2, callbacks: Any = (), audit: str = "off"):
    """An experiment that trains a small network with dropout on scaled rows of ``train``."""
    for domain in ("features", "targets"):
        fs.fit_transform("StandardScaler", domain=domain, fit_to_split="train")
    own = experiment(audit=audit)
    model = SequentialMLP(n_layers=2, hidden_dim=4, dropout=0.1)
    optimizer = mml.Optimizer("adam", opt_kwargs={"lr": 0.02})
    mml.ModelGraph([mml.ModelNode("net", model, fs)], optimizer).build()
    sampler = mml.SimpleSampler(batch_size=16, shuffle=True)
    options: Any = {"losses": [mse()], "n_epochs": n_epochs, "callbacks": list(callbacks)}
    phase = mml.TrainPhase.from_split("train", split="train", sampler=sampler, **options)
    own.execution_plan.add_phase(phase)
    return own


def fitted(fs: Any, model: Any, *, scale: bool = False, **options: Any) -> mml.Experiment:
    """An experiment that fits a scikit-learn estimator on ``train``."""
    if scale:
        fs.fit_transform("StandardScaler", domain="targets", fit_to_split="train")
    own = experiment(audit="off")
    node = mml.ModelNode("net", mml.ScikitModelWrapper(model, **options), fs)
    mml.ModelGraph([node]).build()
    own.execution_plan.add_phase(mml.FitPhase.from_split("fit", split="train"))
    return own


def varied(own: mml.Experiment, vary: str = "bootstrap", n: int = 4, **kwargs: Any) -> mml.Ensemble:
    return mml.Ensemble(own, n, vary, **kwargs)


def features(view: Any) -> pd.DataFrame:
    data = view.get_features(rep="raw", include_rep_suffix=False)
    return pd.DataFrame({k: data[k] for k in sorted(data)})


def column(view: Any, key: str) -> np.ndarray:
    return np.asarray(view.column(select_one(view.collection.schema, key)))


def y_of(view: Any) -> np.ndarray:
    return column(view, "targets.y.raw")


def weights(own: mml.Experiment) -> np.ndarray:
    module = own.model_graph.get_node("net").model.module
    return np.concatenate([p.detach().numpy().ravel() for p in module.parameters()])


@pytest.fixture
def seeds() -> mml.Ensemble:
    return mml.Ensemble(world(rows()), n=3, seed=5).run(**SILENT)


# -------------------------------------------------------------------------------------- members


def test_members_of_seeds_differ_in_weights_and_are_the_same_every_time():
    own = world(rows())
    own.run(show_training_progress=False)
    before, random = weights(own), random_states()
    a = mml.Ensemble(own, n=3, seed=5).run(**SILENT)
    b = mml.Ensemble(own, n=4, seed=5).run(**SILENT)
    np.testing.assert_array_equal(weights(own), before)
    assert repr(random_states()) == repr(random)
    assert list(a.members) == ["member_0", "member_1", "member_2"]
    for i in range(3):
        np.testing.assert_array_equal(weights(a.get_member(i)), weights(b.get_member(i)))
        assert not np.array_equal(weights(a.get_member(i)), weights(b.get_member(3)))
    other = mml.Ensemble(own, n=3, seed=6).run(**SILENT)
    assert not np.array_equal(weights(a.get_member(0)), weights(other.get_member(0)))


@pytest.mark.parametrize("vary", ["seed", "bootstrap", "folds"])
def test_workers_give_the_same_members(vary):
    own = world(rows())
    serial = mml.Ensemble(own, n=3, vary=vary).run(**SILENT)
    workers = mml.Ensemble(own, n=3, vary=vary, n_jobs=2).run(**SILENT)
    for label, member in serial.members.items():
        np.testing.assert_array_equal(weights(member), weights(workers.members[label]))
    view = own.ctx.get_node(label="data")["test"]
    options = {"interval": None if vary == "seed" else 0.8, "members": True}
    pd.testing.assert_frame_equal(
        serial.predict(view, **options), workers.predict(view, **options), check_exact=True
    )


@pytest.mark.parametrize("vary", ["seed", "bootstrap", "folds"])
def test_members_trained_as_one_equal_those_trained_alone(vary):
    fs = rows()
    own = world(fs, n_epochs=1)
    alone = mml.Ensemble(own, n=3, vary=vary, stacked=False).run(**SILENT)
    together = mml.Ensemble(own, n=3, vary=vary, stacked=True).run(**SILENT)
    for label, member in alone.members.items():
        np.testing.assert_allclose(weights(member), weights(together.members[label]), atol=1e-5)
    options = {"interval": 0.8, "calibration": "calibration", "members": True}
    pd.testing.assert_frame_equal(
        alone.predict(fs["test"], **options), together.predict(fs["test"], **options), rtol=1e-4
    )


def test_folds_are_those_of_cross_validation():
    fs = rows()
    own = world(fs)
    bindings = mml.CVBinding(fs, ["train", "calibration"], group_by="cell")
    ensemble = mml.Ensemble(own, n=4, vary="folds", bindings=bindings, seed=3).run(**SILENT)
    cv = mml.CrossValidation(experiment=own, bindings=bindings, n_folds=4, seed=3)
    results = cv.run(show_fold_progress=False, show_training_progress=False)
    for label in results.fold_labels:
        np.testing.assert_array_equal(
            weights(ensemble.get_member(label)), weights(results.get_experiment(label))
        )
    options = {"interval": 0.9, "tags": True}
    pd.testing.assert_frame_equal(
        ensemble.predict(fs["test"], **options), results.predict(fs["test"], **options)
    )


def test_folds_split_the_training_split_and_leave_the_others():
    fs = rows()
    ensemble = mml.Ensemble(world(fs), n=3, vary="folds").run(**SILENT)
    held_out = []
    for member in ensemble.members.values():
        own = member.ctx.get_node(label="data")
        parts = own["train"].indices, own["held_out"].indices
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.sort(fs["train"].indices))
        np.testing.assert_array_equal(own["val"].indices, fs["val"].indices)
        held_out += parts[1].tolist()
        scaler = own.scaler_records[-1].scaler.wrapped
        np.testing.assert_allclose(scaler.mean_, y_of(own["train"]).mean(), rtol=1e-5)
    assert sorted(held_out) == sorted(fs["train"].indices)


# ------------------------------------------------------------------------------------ bootstrap


def test_bootstrap_counts_a_row_as_often_as_it_was_drawn():
    fs = rows()
    own = fitted(fs, LinearRegression())
    ensemble = mml.Ensemble(own, n=5, vary="bootstrap", seed=2).run(**SILENT)
    pool = fs["train"].indices
    draws = []
    for member in ensemble.members.values():
        copy = member.ctx.get_node(label="data")
        drawn, out_of_bag = copy["train"].indices, copy["out_of_bag"].indices
        assert len(drawn) == len(pool)
        assert set(drawn).isdisjoint(out_of_bag)
        assert set(drawn) | set(out_of_bag) == set(pool)
        assert len(set(drawn)) < len(pool)
        times = np.bincount(drawn, minlength=len(fs))[pool]
        by_hand = LinearRegression().fit(
            features(fs["train"]), y_of(fs["train"]), sample_weight=times
        )
        np.testing.assert_allclose(
            member.predict(fs["test"])[:, 0], by_hand.predict(features(fs["test"])), rtol=1e-4
        )
        learned = member.model_graph.learned_from
        np.testing.assert_array_equal(learned.known(fs), np.unique(drawn))
        draws.append(tuple(drawn))
    assert len(set(draws)) == 5


def test_bootstrap_weighs_scalers_and_batches_by_draws_and_survives_files(tmp_path):
    fs = rows()
    ensemble = mml.Ensemble(world(fs), n=2, vary="bootstrap").run(**SILENT)
    member = ensemble.get_member(0)
    copy = member.ctx.get_node(label="data")
    drawn = copy["train"].indices
    scaler = copy.scaler_records[-1].scaler.wrapped
    np.testing.assert_allclose(scaler.mean_, y_of(fs)[drawn].mean(), rtol=1e-5)
    path = member.save(tmp_path / "member")
    with mml.ExperimentContext().activate():
        loaded = mml.Experiment.load(path)
        other = loaded.ctx.get_node(label="data")
        np.testing.assert_array_equal(other["train"].indices, drawn)
        loaded.run(show_training_progress=False)  # trains on the repeats again


def test_losses_of_a_bootstrap_count_a_row_as_often_as_it_was_drawn():
    fs = rows()
    own = experiment(audit="off")
    mml.ModelGraph(
        [mml.ModelNode("net", nn.Linear(6, 1), fs)],
        mml.Optimizer("sgd", opt_kwargs={"lr": 0.0}),  # weights stay as drawn
    ).build()
    sampler = mml.SimpleSampler(batch_size=7, shuffle=True)
    own.execution_plan.add_phase(
        mml.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[mse()])
    )
    ensemble = mml.Ensemble(own, n=2, vary="bootstrap").run(**SILENT)
    member = ensemble.get_member(0)
    drawn = member.ctx.get_node(label="data")["train"].indices
    errors = (member.predict(fs)[:, 0] - y_of(fs)) ** 2
    logged = ensemble.to_pandas().loc["member_0", "train.train_loss"]
    assert logged == pytest.approx(errors[drawn].mean(), rel=1e-5)
    assert logged != pytest.approx(errors[np.unique(drawn)].mean(), rel=1e-3)


@pytest.mark.parametrize("key", ["cell", ["cell", "kind"]])
def test_bootstrap_draws_whole_groups(key):
    fs = rows()
    bindings = mml.CVBinding(fs, ["train"], group_by=key, val_split_name="oob")
    ensemble = mml.Ensemble(
        fitted(fs, LinearRegression()), n=4, vary="bootstrap", bindings=bindings
    )
    keys = [key] if isinstance(key, str) else key
    groups = pd.DataFrame({k: column(fs, k) for k in keys}).groupby(keys).ngroup().to_numpy()
    pool = fs["train"].indices
    for variant in ensemble.variants:
        sides = variant.sides["data"]
        times = np.bincount(sides.train, minlength=len(fs))[pool]
        per_group = pd.Series(times).groupby(groups[pool])
        assert (per_group.nunique() == 1).all()
        assert per_group.first().sum() == len(np.unique(groups[pool]))
        assert set(groups[sides.val]).isdisjoint(groups[sides.train])


def test_bootstrap_keeps_strata():
    fs = rows()
    bindings = mml.CVBinding(fs, ["train"], stratify_by="kind", val_split_name="oob")
    ensemble = mml.Ensemble(
        fitted(fs, LinearRegression()), n=4, vary="bootstrap", bindings=bindings
    )
    kind = column(fs, "kind")
    for variant in ensemble.variants:
        drawn = kind[variant.sides["data"].train]
        np.testing.assert_array_equal(np.bincount(drawn), np.bincount(kind[fs["train"].indices]))


# ---------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("vary", ["seed", "bootstrap", "folds"])
@pytest.mark.parametrize("kind", ["view", "frame", "dict"])
def test_predictions_are_those_of_a_loop_over_members(vary, kind):
    fs = rows()
    ensemble = mml.Ensemble(world(fs), n=3, vary=vary).run(**SILENT)
    view = fs["test"]
    frame = features(view)
    data = {"view": view, "frame": frame.set_index(np.arange(7, 7 + len(frame)))}.get(
        kind, frame.to_dict("list")
    )
    loop = np.stack([m.predict(frame)[:, 0] for m in ensemble.members.values()]).astype(float)
    found = ensemble.predict(data, members=True)
    names = list(ensemble.members)
    assert list(found) == ["y", "y_std", *(f"y_{name}" for name in names)]
    np.testing.assert_allclose(found["y"], loop.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["y_std"], loop.std(axis=0, ddof=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[[f"y_{name}" for name in names]].T, loop, rtol=1e-6)
    if kind == "frame":
        assert list(found.index) == list(data.index)
    np.testing.assert_allclose(ensemble.predict(data, fmt="numpy")[:, 0], found["y"])
    each = ensemble.predict(data, fmt="numpy", members=True)
    np.testing.assert_allclose(each[..., 0], loop, rtol=1e-6)


def test_tags_and_ids_precede_predictions(seeds):
    view = seeds.experiment.ctx.get_node(label="data")["test"]
    found = seeds.predict(view, tags=True)
    assert list(found) == ["cell", "kind", "y", "y_std"]
    assert list(found.index) == list(view.get_sample_uuids("list"))
    assert set(seeds.predict(view, fmt="dict", tags=True)) == {*found, "sample_uuid"}
    with pytest.raises(ConfigError, match="tags=True needs a format with named columns"):
        seeds.predict(view, tags=True, fmt="numpy")


def test_several_tails_and_several_targets_are_each_returned():
    x, y = arrays(N)
    fs = featureset(x, np.column_stack([y, 100 + 2 * y]))
    fs.split_random({"train": 0.7, "test": 0.3})
    own = experiment(audit="off")
    nodes = [
        mml.ModelNode("a", RandomForestRegressor(5), fs),
        mml.ModelNode("b", LinearRegression(), fs.reference(targets="y0")),
    ]
    mml.ModelGraph(nodes).build()
    own.execution_plan.add_phase(mml.FitPhase.from_split("fit", split="train"))
    ensemble = mml.Ensemble(own, n=3, vary="bootstrap").run(**SILENT)
    found = ensemble.predict(fs["test"], interval=0.8)
    assert set(found) == {"a", "b"}
    columns = [f"{y}{end}" for y in ("y0", "y1") for end in ("", "_std", "_low", "_high")]
    assert list(found["a"]) == columns
    loop = np.stack([m.predict(fs["test"], node="a") for m in ensemble.members.values()])
    np.testing.assert_allclose(found["a"][["y0", "y1"]], loop.mean(axis=0), rtol=1e-6)
    assert list(ensemble.predict(fs["test"], node="b")) == ["y0", "y0_std"]
    scores = ensemble.evaluate("test", metrics=["r2"])
    assert list(scores["node"]) == ["a", "b"]
    b = metrics.r2_score(column(fs["test"], "y0"), found["b"]["y0"])
    true = np.column_stack([column(fs["test"], "y0"), column(fs["test"], "y1")])
    a = metrics.r2_score(true, found["a"][["y0", "y1"]])
    np.testing.assert_allclose(scores["r2"], [a, b], rtol=1e-5)


def test_several_tables_are_joined_as_in_predict():
    rng = np.random.default_rng(0)
    machine = np.arange(60) % 12
    size = rng.normal(size=12).astype(np.float32)
    x = rng.normal(size=60).astype(np.float32)
    y = 3 * x + size[machine]
    windows = mml.FeatureSet.from_dict(
        "windows", {"x": x, "y": y, "machine": machine}, "x", "y", "machine"
    )
    facts = mml.FeatureSet.from_dict(
        "facts", {"size": size, "machine": np.arange(12)}, "size", [], "machine"
    )
    windows.split_random({"train": 0.7, "test": 0.3})
    refs = [windows.reference(on="machine"), facts.reference(on="machine")]
    merged = mml.ConcatNode("all", refs, align_on="machine")
    own = experiment(audit="off")
    mml.ModelGraph([merged, mml.ModelNode("net", LinearRegression(), merged)]).build()
    sources = [
        mml.InputBinding("all", refs[0], "train"),
        mml.InputBinding("all", refs[1], None),
    ]
    own.execution_plan.add_phase(mml.FitPhase("fit", input_sources=sources))
    with pytest.raises(ConfigError, match="bindings must be given unless the plan learns from one"):
        mml.Ensemble(own, n=2, vary="bootstrap").run(**SILENT)
    bindings = mml.CVBinding(windows, ["train"], val_split_name="oob")
    ensemble = mml.Ensemble(own, n=8, vary="bootstrap", bindings=bindings).run(**SILENT)
    frames = {
        "windows": pd.DataFrame({"x": x[:5], "machine": machine[:5]}),
        "facts": pd.DataFrame({"size": size, "machine": np.arange(12)}),
    }
    found = ensemble.predict(frames, interval=0.8)
    np.testing.assert_allclose(found["y"], y[:5], atol=1e-4)
    views = ensemble.predict({"windows": windows["test"], "facts": facts}, fmt="numpy")
    np.testing.assert_allclose(views[:, 0], y_of(windows["test"]), atol=1e-4)


@pytest.mark.parametrize("vary", ["bootstrap", "folds"])
def test_rows_of_two_tables_stay_together(vary, tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(80, 3)), rng.normal(size=(80, 2))
    y = a.sum(axis=1) + b.sum(axis=1)
    key = np.arange(80)
    left = mml.FeatureSet.from_dict("left", {"a": a, "y": y, "id": key}, "a", "y", "id")
    right = mml.FeatureSet.from_dict("right", {"b": b, "id": key}, "b", [], "id")
    for fs in (left, right):
        fs.split_random({"train": 0.7, "test": 0.3}, seed=1)
    refs = [left.reference(on="id"), right.reference(on="id")]
    merged = mml.ConcatNode("all", refs, align_on="id", flatten=True)
    own = experiment(audit="off")
    mml.ModelGraph([merged, mml.ModelNode("net", LinearRegression(), merged)]).build()
    own.execution_plan.add_phase(mml.FitPhase.from_split("fit", split="train"))
    sets = [left] if vary == "bootstrap" else [left, right]
    bindings = [mml.CVBinding(fs, ["train"], val_split_name="held_out") for fs in sets]
    ensemble = varied(own, vary, bindings=bindings).run(**SILENT)
    tables = {"left": left["test"], "right": right["test"]}
    found = ensemble.predict(tables, interval=0.8)
    np.testing.assert_allclose(found["y"], y_of(left["test"]), atol=1e-4)
    np.testing.assert_allclose(found["y_high"], found["y_low"], atol=1e-4)
    np.testing.assert_allclose(ensemble.evaluate("test")["rmse"], 0, atol=1e-4)
    frames = {
        "left": {"a": a[:3], "id": key[:3]},
        "right": {"b": b[::-1].copy(), "id": key[::-1].copy()},
    }
    loaded = mml.Ensemble.load(ensemble.save(tmp_path / "all"))
    np.testing.assert_allclose(loaded.predict(frames)["y"], y[:3], atol=1e-4)


def test_scores_by_group_are_those_of_the_mean(seeds):
    fs = seeds.experiment.ctx.get_node(label="data")
    found = seeds.evaluate("test", metrics=["rmse"], group_by="kind")
    mean = seeds.predict(fs["test"])["y"].to_numpy()
    for group, rmse in zip(found["group"], found["rmse"], strict=True):
        part = np.ones(len(mean), bool) if pd.isna(group) else column(fs["test"], "kind") == group
        expected = metrics.root_mean_squared_error(y_of(fs["test"])[part], mean[part])
        assert rmse == pytest.approx(expected, rel=1e-5)
    assert list(seeds.evaluate(fs["test"])) == ["rmse", "mae", "r2", "n", "n_missing"]
    with pytest.raises(UnknownNameError, match="metric"):
        seeds.evaluate("test", metrics=["nothing"])
    with pytest.raises(ConfigError, match=r"a split 'tests', there are .*; pass a split"):
        seeds.evaluate("tests")


def test_scores_of_learned_rows_are_warned_of():
    fs = rows()
    own = world(fs, audit="warn")
    with pytest.warns(AuditWarning):  # groups
        ensemble = varied(own, "folds", 3).run(**SILENT)
    of_first = fs.take(ensemble.variants[0].sides["data"].val)  # the others learned from these
    with pytest.warns(AuditWarning, match="measure memorization"):
        ensemble.evaluate(of_first)


def test_the_wish_for_a_spread_of_equal_members_is_warned_of():
    fs = rows()
    ensemble = mml.Ensemble(fitted(fs, LinearRegression()), n=2).run(**SILENT)
    with pytest.warns(UserWarning, match=r"all 2 members predict the same .* vary='bootstrap'"):
        found = ensemble.predict(fs["test"])
    assert (found["y_std"] == 0).all()


# ------------------------------------------------------------------------------------- classes


def classes(n: int = 150) -> tuple[mml.FeatureSet, np.ndarray]:
    """Three named classes, in the splits train and test."""
    rng = np.random.default_rng(3)
    kind = rng.integers(3, size=n)
    x = rng.normal(size=(n, 2)) + 1.2 * np.column_stack([np.cos(2 * kind), np.sin(2 * kind)])
    names = np.array(["red", "blue", "green"])[kind]
    data = {"a": x[:, 0].astype(np.float32), "b": x[:, 1].astype(np.float32), "y": names}
    fs = mml.FeatureSet.from_dict("data", data, ["a", "b"], "y")
    fs.split_random({"train": 0.6, "test": 0.4}, stratify_by="y")
    return fs, names


def test_probabilities_are_averaged_and_votes_counted():
    fs, names = classes()
    own = fitted(fs, RandomForestClassifier(5), output_method="predict_proba")
    ensemble = mml.Ensemble(own, n=4).run(**SILENT)
    loop = np.stack([m.predict(fs["test"]) for m in ensemble.members.values()])
    labels = sorted(set(names))
    found = ensemble.predict(fs["test"])
    assert list(found) == [f"{c}{end}" for c in labels for end in ("", "_std", "_votes")]
    np.testing.assert_allclose(found[labels], loop.mean(axis=0), atol=1e-7)
    votes = loop.argmax(axis=2)
    for i, label in enumerate(labels):
        np.testing.assert_allclose(found[f"{label}_votes"], (votes == i).mean(axis=0))
    decoded = ensemble.predict(fs["test"], decode=True, members=True)
    best = np.array(labels)[loop.mean(axis=0).argmax(axis=1)]
    assert list(decoded["y"]) == list(best)
    same = np.array(labels)[votes] == best
    np.testing.assert_allclose(decoded["y_votes"], same.mean(axis=0))
    assert list(decoded["y_member_2"]) == list(np.array(labels)[votes[2]])
    scores = ensemble.evaluate("test", metrics=["accuracy", "neg_log_loss"]).iloc[0]
    true = column(fs["test"], "y")
    assert scores["accuracy"] == pytest.approx((best == true).mean())
    assert scores["neg_log_loss"] == pytest.approx(
        -metrics.log_loss(true, loop.mean(axis=0), labels=labels)
    )
    with pytest.raises(ConfigError, match="interval needs numeric targets"):
        ensemble.predict(fs["test"], interval=0.9, calibration="test")


def test_labels_are_voted_on():
    fs, _ = classes()
    own = fitted(fs, RandomForestClassifier(3), output_method="predict")
    ensemble = mml.Ensemble(own, n=5).run(**SILENT)
    loop = pd.DataFrame([m.predict(fs["test"])[:, 0] for m in ensemble.members.values()])
    found = ensemble.predict(fs["test"])
    assert list(found) == ["y", "y_votes"]
    assert list(found["y"]) == list(loop.mode(axis=0).iloc[0])
    share = (loop.to_numpy() == found["y"].to_numpy()).mean(axis=0)
    np.testing.assert_allclose(found["y_votes"], share)
    accuracy = ensemble.evaluate("test")["accuracy"].item()
    assert accuracy == (found["y"].to_numpy() == column(fs["test"], "y")).mean()


def test_logits_become_probabilities_before_they_are_averaged():
    fs, names = classes()
    fs.fit_transform("LabelEncoder", domain="targets", keys="y", fit_to_split="train")
    own = experiment(audit="off")
    node = mml.ModelNode("net", SequentialMLP(output_shape=(3,), hidden_dim=4), fs)
    mml.ModelGraph([node], mml.Optimizer("adam", opt_kwargs={"lr": 0.02})).build()
    loss = mml.AppliedLoss(mml.Loss("cross_entropy"), on="net", inputs=["outputs", "targets"])
    sampler = mml.SimpleSampler(batch_size=32)
    own.execution_plan.add_phase(
        mml.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[loss])
    )
    ensemble = mml.Ensemble(own, n=3).run(**SILENT)
    logits = np.stack([m.predict(fs["test"]) for m in ensemble.members.values()])
    shares = torch.softmax(torch.as_tensor(logits, dtype=torch.float64), dim=2).numpy()
    labels = sorted(set(names))
    found = ensemble.predict(fs["test"])
    np.testing.assert_allclose(found[labels], shares.mean(axis=0), rtol=1e-6)
    raw = ensemble.predict(fs["test"], outputs="values", fmt="numpy")
    np.testing.assert_allclose(raw, logits.mean(axis=0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="not between 0 and 1, so not probabilities"):
        ensemble.predict(fs["test"], outputs="probabilities")


def test_one_column_of_scores_needs_to_be_named():
    fs = rows()
    data = {**features(fs).to_dict("list"), "y": (y_of(fs) > 5).astype(np.float32)}
    binary = mml.FeatureSet.from_dict("binary", data, [k for k in data if k != "y"], "y")
    binary.split_random({"train": 0.6, "test": 0.4})
    own = experiment(audit="off")
    mml.ModelGraph(
        [mml.ModelNode("net", SequentialMLP(hidden_dim=4), binary)], mml.Optimizer("sgd")
    )
    own.model_graph.build()
    loss = mml.AppliedLoss(mml.Loss("BCEWithLogitsLoss"), on="net", inputs=["outputs", "targets"])
    sampler = mml.SimpleSampler(batch_size=32)
    own.execution_plan.add_phase(
        mml.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[loss])
    )
    ensemble = mml.Ensemble(own, n=3).run(**SILENT)
    with pytest.raises(ConfigError, match="may be logits or probabilities"):
        ensemble.predict(binary["test"])
    found = ensemble.predict(binary["test"], outputs="logits")
    logits = np.stack([m.predict(binary["test"]) for m in ensemble.members.values()])
    shares = 1 / (1 + np.exp(-logits.astype(float)))[..., 0]
    mean, _, votes = found.to_numpy().T
    np.testing.assert_allclose(mean, shares.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(votes, (shares > 0.5).mean(axis=0))
    accuracy = ensemble.evaluate("test", outputs="logits")["accuracy"].item()
    assert accuracy == ((shares.mean(axis=0) > 0.5) == y_of(binary["test"])).mean()


def test_a_class_that_a_member_has_not_seen_has_no_probability_there():
    fs, _ = classes(12)
    own = fitted(fs, LogisticRegression(), output_method="predict_proba")
    ensemble = varied(own, n=12).run(**SILENT)
    fits = [m.model_graph.get_node("net").model.inner for m in ensemble.members.values()]
    assert {2, 3} <= {fit.classes_.size for fit in fits}
    expected = [
        pd.DataFrame(fit.predict_proba(features(fs["test"]).to_numpy()), columns=fit.classes_)
        for fit in fits
    ]
    expected = [frame.reindex(columns=["blue", "green", "red"], fill_value=0) for frame in expected]
    found = ensemble.predict(fs["test"])
    np.testing.assert_allclose(found[["blue", "green", "red"]], np.mean(expected, 0), atol=1e-6)


# ----------------------------------------------------------------------------------- intervals


def half_width(residuals: np.ndarray, level: float) -> float:
    """The closed form of split-conformal prediction."""
    return np.sort(np.abs(residuals))[int(np.ceil(round(level * (len(residuals) + 1), 9))) - 1]


def test_split_conformal_is_the_order_statistic_of_calibration_residuals(seeds):
    fs = seeds.experiment.ctx.get_node(label="data")
    found = seeds.predict(fs["test"], interval=0.9)
    mean = seeds.predict(fs["calibration"])["y"]
    width = half_width(y_of(fs["calibration"]) - mean, 0.9)
    np.testing.assert_allclose(found["y_high"] - found["y"], width, rtol=1e-6)
    np.testing.assert_allclose(found["y"] - found["y_low"], width, rtol=1e-6)
    frame = features(fs["calibration"]).assign(y=y_of(fs["calibration"]))
    other = seeds.predict(features(fs["test"]), interval=0.9, calibration=frame)
    np.testing.assert_allclose(other, found, rtol=1e-5)
    learned = features(fs["train"]).assign(y=y_of(fs["train"]))
    both = pd.concat([frame, learned.iloc[:3]])
    for rows in (both, both.to_dict("list")):
        with pytest.raises(DataError, match=rf"3 of {len(both)} rows .* would be too narrow"):
            seeds.predict(features(fs["test"]), interval=0.9, calibration=rows)
    member = seeds.get_member(0)
    with pytest.raises(DataError, match=r"3 of .* would be too narrow"):
        member.predict(features(fs["test"]), interval=0.9, calibration=both, fmt="pandas")


def test_rows_with_missing_features_are_nan_with_one_warning_that_counts_them(seeds):
    fs = seeds.experiment.ctx.get_node(label="data")
    frame = features(fs["test"])
    whole = seeds.predict(frame, interval=0.9)
    frame.iloc[[1, 4], 0] = np.nan
    counted = rf"2 of {len(frame)} predictions of 'net' are NaN"
    with pytest.warns(UserWarning, match=counted) as said:
        found = seeds.predict(frame, interval=0.9)
    assert len(said) == 1
    assert found.isna().all(axis=1).to_numpy().nonzero()[0].tolist() == [1, 4]
    kept = ~found.isna().any(axis=1).to_numpy()
    np.testing.assert_allclose(found[kept], whole[kept], rtol=1e-6)
    member = seeds.get_member(0)
    with pytest.warns(UserWarning, match=counted):
        alone = member.predict(frame, interval=0.9, fmt="pandas")
    assert alone.isna().all(axis=1).sum() == 2
    labelled = frame.assign(y=y_of(fs["test"]))
    for trained in (seeds, member):
        with pytest.raises(ConfigError, match=rf"outputs of 2 of {len(frame)} rows are NaN"):
            trained.evaluate(labelled, metrics="rmse")


def test_split_conformal_by_group_uses_the_rows_of_the_group(seeds):
    fs = seeds.experiment.ctx.get_node(label="data")
    found = seeds.predict(fs["test"], interval=0.7, group_by="kind", tags=True)
    mean = seeds.predict(fs["calibration"])["y"]
    for kind in range(3):
        part = column(fs["calibration"], "kind") == kind
        width = half_width((y_of(fs["calibration"]) - mean)[part], 0.7)
        rows_of_kind = found[found["kind"] == kind]
        np.testing.assert_allclose(rows_of_kind["y_high"] - rows_of_kind["y"], width, rtol=1e-6)


def test_an_experiment_has_split_conformal_intervals():
    fs = rows()
    own = world(fs)
    own.run(show_training_progress=False)
    found = own.predict(fs["test"], interval=0.8, fmt="pandas", tags=True)
    assert list(found) == ["cell", "kind", "y", "y_low", "y_high"]
    residuals = y_of(fs["calibration"]) - own.predict(fs["calibration"])[:, 0]
    width = half_width(residuals, 0.8)
    np.testing.assert_allclose(found["y_high"] - found["y"], width, rtol=1e-6)
    np.testing.assert_allclose(found["y"], own.predict(fs["test"])[:, 0], rtol=1e-6)
    groups = own.predict(fs["test"], interval=0.5, fmt="pandas", group_by="kind", tags=True)
    part = column(fs["calibration"], "kind") == 1
    chosen = groups[groups["kind"] == 1]
    np.testing.assert_allclose(
        chosen["y_high"] - chosen["y"], half_width(residuals[part], 0.5), rtol=1e-6
    )
    with pytest.raises(ConfigError, match=r"interval=0.8 needs a format with named columns"):
        own.predict(fs["test"], interval=0.8)
    with pytest.raises(DataError, match=r"calibration rows .* learned from"):
        own.predict(fs["test"], interval=0.8, fmt="pandas", calibration="train")
    with pytest.raises(ConfigError, match="calibration and group_by are for interval"):
        own.predict(fs["test"], calibration="calibration")
    with pytest.raises(ConfigError, match="omit decode and unscale"):
        own.predict(fs["test"], interval=0.8, fmt="pandas", unscale=False)
    with pytest.raises(ConfigError, match=r"group 0: interval=0.99 needs at least 99 calibration"):
        own.predict(fs["test"], interval=0.99, fmt="pandas", group_by="kind")
    with pytest.raises(ConfigError, match="no FeatureSet has a split 'other'"):
        own.predict(fs["test"], interval=0.8, fmt="pandas", calibration="other")
    frame = features(fs["calibration"])
    with pytest.raises(DataError, match=r"data lacks \['y'\]"):
        own.predict(fs["test"], interval=0.8, fmt="pandas", calibration=frame)
    with pytest.raises(DataError, match=r"1 of 24 calibration rows .* NaN"):
        own.predict(
            fs["test"],
            interval=0.8,
            fmt="pandas",
            calibration=frame.assign(y=np.where(np.arange(24) == 3, np.nan, 1.0)),
        )


def candidates(ensemble: mml.Ensemble, fs: Any, view: Any) -> tuple[np.ndarray, np.ndarray]:
    """CV+ candidates by a loop over rows: means over members without the row, and residuals."""
    centers, residuals = [], []
    members = list(ensemble.members.items())
    test = {k: m.predict(features(view))[:, 0].astype(float) for k, m in members}
    sides = {v.label: v.sides["data"] for v in ensemble.variants}
    for row in fs["train"].indices:
        without = [k for k, _ in members if row in sides[k].val]
        if not without:
            continue
        one = features(fs.take([row]))
        own = np.mean([ensemble.get_member(k).predict(one)[0, 0] for k in without], dtype=float)
        residuals.append(abs(y_of(fs)[row] - own))
        centers.append(np.mean([test[k] for k in without], axis=0))
    return np.array(centers), np.array(residuals)[:, None]


@pytest.mark.parametrize("vary", ["folds", "bootstrap"])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_cv_plus_is_that_of_a_loop_over_rows(vary, level):
    fs = rows()
    ensemble = varied(fitted(fs, LinearRegression(), scale=True), vary, 6).run(**SILENT)
    view = fs["test"].take(np.arange(4))
    centers, residuals = candidates(ensemble, fs, view)
    found = ensemble.predict(view, interval=level)
    rank = int(np.ceil(round(level * (len(residuals) + 1), 9)))
    high = np.sort(centers + residuals, axis=0)[rank - 1]
    low = np.sort(centers - residuals, axis=0)[len(residuals) - rank]
    np.testing.assert_allclose(found["y_high"], high, rtol=1e-4)
    np.testing.assert_allclose(found["y_low"], low, rtol=1e-4)


def test_cv_plus_by_group_uses_residuals_of_the_group():
    fs = rows(240)
    ensemble = mml.Ensemble(fitted(fs, LinearRegression()), n=5, vary="folds").run(**SILENT)
    found = ensemble.predict(fs["test"], interval=0.8, group_by="kind", tags=True)
    pooled = ensemble.predict(fs["test"], interval=0.8)
    assert not np.allclose(found["y_low"], pooled["y_low"])
    for kind in range(3):
        view = fs["test"].filter(conditions={"kind": kind})
        alone = ensemble.predict(view, interval=0.8, group_by="kind")
        chosen = found[found["kind"] == kind]
        np.testing.assert_allclose(
            chosen[["y_low", "y_high"]], alone[["y_low", "y_high"]], rtol=1e-5
        )


def test_calibration_rows_that_an_epoch_is_selected_by_are_warned_of():
    fs = rows()
    own = world(fs)
    watch = mml.Evaluation.from_split("w", split="val", metrics=[mml.EvalLossMetric(loss=mse())])
    own.execution_plan.get_train_phase("train").callbacks += [watch, mml.EarlyStopping()]
    own.run(show_training_progress=False)
    ensemble = mml.Ensemble(own, n=2).run(**SILENT)
    for predict in (partial(own.predict, fmt="pandas"), ensemble.predict):
        predict(fs["test"], interval=0.5)
        with pytest.warns(UserWarning, match="EarlyStopping.* select by 'val_loss'.*calibration"):
            predict(fs["test"], interval=0.5, calibration="val")


def test_rows_without_a_group_are_refused(seeds):
    view = seeds.experiment.ctx.get_node(label="data")["test"]
    frame = features(view).assign(kind=[None, *column(view, "kind")[1:]])
    with pytest.raises(DataError, match=r"1 of 24 rows have no group \(the first at row 0"):
        seeds.predict(frame, interval=0.5, group_by="kind")


def test_intervals_need_known_units():
    fs = rows()
    fs.fit_transform("StandardScaler", domain="targets", fit_to_split="train")
    own = experiment(audit="off")
    node = mml.ModelNode("net", SequentialMLP(output_shape=(2,), hidden_dim=4), fs)
    graph = mml.ModelGraph([node], mml.Optimizer("sgd"))
    graph.build()
    own_loss = mml.Loss(lambda out, y: (out - y) ** 2)
    loss = mml.AppliedLoss(own_loss, on="net", inputs=["outputs", "targets"])
    sampler = mml.SimpleSampler(batch_size=32)
    own.execution_plan.add_phase(
        mml.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[loss])
    )
    own.run(show_training_progress=False)
    with pytest.raises(ScalerError, match="units"):
        own.predict(fs["test"], interval=0.5, fmt="pandas")


def test_array_targets_have_bounds_for_each_element():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3))
    y = np.stack([x @ rng.normal(size=3) + i * rng.normal(size=80) for i in range(4)], axis=1)
    fs = mml.FeatureSet.from_dict("data", {"x": x, "y": y}, "x", "y")
    fs.split_random({"train": 0.5, "calibration": 0.25, "test": 0.25})
    ensemble = varied(fitted(fs, LinearRegression())).run(**SILENT)
    found = ensemble.predict(fs["test"], interval=0.8, method="split", fmt="dict")
    loop = np.stack([m.predict(fs["test"]) for m in ensemble.members.values()])
    mean = np.stack([found[k] for k in found if not k.endswith(("_std", "_low", "_high"))], axis=1)
    np.testing.assert_allclose(mean.reshape(20, 4), loop.mean(axis=0).reshape(20, 4), rtol=1e-6)
    known = np.mean([m.predict(fs["calibration"]) for m in ensemble.members.values()], axis=0)
    truth = fs["calibration"].get_targets()["y"]
    high = np.stack([found[k] for k in found if k.endswith("_high")], axis=1).reshape(20, 4)
    for i in range(4):
        width = half_width(truth[:, i] - known.reshape(20, 4)[:, i], 0.8)
        np.testing.assert_allclose(high[:, i] - mean.reshape(20, 4)[:, i], width, rtol=1e-5)


def test_no_rows_give_no_predictions(seeds):
    view = seeds.experiment.ctx.get_node(label="data")["test"].take([])
    found = seeds.predict(view, interval=0.8)
    assert found.shape == (0, 4)


def test_scalers_that_need_other_columns_of_the_row_are_inverted_for_members_too():
    x, y = arrays(60)
    fs = mml.FeatureSet.from_dict("data", {"x": x[:, 0], "y": 3 * y[:, 0] - 1}, "x", "y")
    fs.split_random({"train": 0.7, "test": 0.3})
    fs.fit_transform("Absolute", domain="targets", fit_to_split="train")
    ensemble = varied(fitted(fs, LinearRegression())).run(**SILENT)
    loop = [
        m.predict(m.ctx.get_node(label="data")["test"])[:, 0] for m in ensemble.members.values()
    ]
    np.testing.assert_allclose(ensemble.predict(fs["test"])["y"], np.mean(loop, axis=0), rtol=1e-6)
    with pytest.raises(ScalerError, match="these rows are new"):
        ensemble.predict({"x": [1.0, 2.0]})


def test_repeated_folds_count_each_row_once():
    fs = rows()
    own = fitted(fs, LinearRegression())
    binding = mml.CVBinding(fs, ["train"], val_split_name="held_out")
    cv = mml.CrossValidation(experiment=own, bindings=binding, n_folds=3, n_repeats=2)
    results = cv.run(show_fold_progress=False)
    folds = {v.label: v.sides["data"] for v in cv.folds}
    each = {k: results.get_experiment(k).predict(fs)[:, 0] for k in folds}
    centers, residuals = [], []
    for row in fs["train"].indices:
        without = [k for k, side in folds.items() if row in side.val]
        assert len(without) == 2
        own_mean = np.mean([each[k][row] for k in without])
        residuals.append(abs(y_of(fs)[row] - own_mean))
        centers.append(np.mean([each[k][fs["test"].indices] for k in without], axis=0))
    high = np.sort(np.array(centers) + np.array(residuals)[:, None], axis=0)
    found = results.predict(fs["test"], interval=0.9)
    np.testing.assert_allclose(found["y_high"], high[int(np.ceil(0.9 * 61)) - 1], rtol=1e-4)


def test_intervals_without_a_failed_fold_use_the_other_rows(tmp_path):
    fs = rows()
    own = world(fs, callbacks=[Saboteur("raise", "fold_1", str(tmp_path))])
    with pytest.warns(FoldFailedWarning, match="1 of 4 members failed"):
        ensemble = varied(own, "folds").run(**SILENT)
    ensemble.predict(fs["test"], interval=44 / 46)  # of the 45 rows of the other three folds
    with pytest.raises(ConfigError, match="and there are 45"):
        ensemble.predict(fs["test"], interval=0.98)


def test_quantiles_are_order_statistics_and_calibration_widens_them():
    fs = rows()
    ensemble = mml.Ensemble(fitted(fs, LinearRegression()), n=19, vary="bootstrap").run(**SILENT)
    each = ensemble.predict(fs["test"], fmt="numpy", members=True)[..., 0]
    found = ensemble.predict(fs["test"], interval=0.9, method="quantiles")
    np.testing.assert_allclose(found["y_low"], each.min(axis=0))
    np.testing.assert_allclose(found["y_high"], each.max(axis=0))
    options = {"interval": 0.9, "method": "quantiles", "calibration": "calibration"}
    wide = ensemble.predict(fs["test"], **options)
    known = ensemble.predict(fs["calibration"], fmt="numpy", members=True)[..., 0]
    y = y_of(fs["calibration"])
    outside = np.maximum(known.min(axis=0) - y, y - known.max(axis=0))
    margin = np.sort(outside)[int(np.ceil(round(0.9 * (len(y) + 1), 9))) - 1]
    np.testing.assert_allclose(wide["y_high"], found["y_high"] + margin, rtol=1e-6)
    by_kind = ensemble.predict(fs["test"], **{**options, "interval": 0.8}, group_by="kind")
    assert (by_kind["y_high"] >= by_kind["y_low"]).all()


def test_quantiles_without_calibration_are_refused_for_too_few_members(seeds):
    view = seeds.experiment.ctx.get_node(label="data")["test"]
    with pytest.raises(ConfigError, match="at least 19 members, and there are 3"):
        seeds.predict(view, interval=0.9, method="quantiles")


# ------------------------------------------------------------------------------------- coverage


def draws(n_draws: int, n: int, seed: int = 0) -> Iterator[tuple[mml.Experiment, Any]]:
    """Linear data with noise that differs by group, drawn many times."""
    for i in range(n_draws):
        rng = np.random.default_rng([seed, i])
        x = rng.normal(size=(n, 3))
        group = np.arange(n) % 2
        y = x @ rng.normal(size=3) + rng.normal(size=n) * np.where(group == 1, 3.0, 1.0)
        data = {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y, "g": group}
        with mml.ExperimentContext().activate():
            fs = mml.FeatureSet.from_dict("data", data, ["a", "b", "c"], "y", "g")
            fs.split_random({"train": 0.3, "calibration": 0.2, "test": 0.5}, seed=i)
            yield fitted(fs, LinearRegression()), fs


METHODS = {
    "bootstrap": [
        {"method": "split"},
        {"method": "cv+"},
        {"method": "quantiles", "calibration": "calibration"},
    ],
    "folds": [{"method": "cv+"}, {"method": "cv+", "group_by": "g"}],
    "experiment": [{}, {"group_by": "g"}],
}


@pytest.mark.slow
@pytest.mark.parametrize("vary", METHODS)
def test_coverage_is_within_two_points_of_the_level(vary):
    inside: dict[int, list[np.ndarray]] = {i: [] for i in range(len(METHODS[vary]))}
    for own, fs in draws(80, 398):
        if vary == "experiment":
            own.run(show_training_progress=False)
            predict = partial(own.predict, fmt="pandas")
        else:
            predict = varied(own, vary, 10 if vary == "folds" else 19).run(**SILENT).predict
        y, g = y_of(fs["test"]), column(fs["test"], "g")
        for i, options in enumerate(METHODS[vary]):
            found = predict(fs["test"], interval=0.9, **options)
            hit = ((found["y_low"] <= y) & (y <= found["y_high"])).to_numpy()
            inside[i].append(np.array([hit.mean(), hit[g == 0].mean(), hit[g == 1].mean()]))
    for i, options in enumerate(METHODS[vary]):
        whole, of_quiet, of_noisy = np.mean(inside[i], axis=0)
        assert whole == pytest.approx(0.9, abs=0.02)
        if "group_by" in options:
            assert of_quiet == pytest.approx(0.9, abs=0.02)
            assert of_noisy == pytest.approx(0.9, abs=0.02)
        else:  # noise differs, so that a pooled interval is too wide for one group
            assert of_quiet > 0.95 > 0.87 > of_noisy


# ---------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("vary", ["seed", "bootstrap", "folds"])
def test_a_file_predicts_as_the_ensemble_does(vary, tmp_path):
    fs = rows()
    ensemble = mml.Ensemble(world(fs), n=3, vary=vary).run(**SILENT)
    own = {} if vary == "seed" else {"group_by": "kind"}
    path = ensemble.save(tmp_path / "all", **own)
    assert path.name == "all.en.mml"
    assert mml.io.inspect(path)["kind"] == "Ensemble"
    frame = features(fs["test"]).assign(kind=column(fs["test"], "kind"))
    with mml.ExperimentContext().activate():
        loaded = mml.Ensemble.load(path)
        options = {"members": True, "tags": True}
        pd.testing.assert_frame_equal(
            loaded.predict(frame, **options), ensemble.predict(frame, **options), check_exact=True
        )
        calibration = features(fs["calibration"]).assign(y=y_of(fs["calibration"]))
        options = {"interval": 0.8, "calibration": calibration}
        if vary != "seed":
            options = {"interval": 0.5, "group_by": "kind"}
        pd.testing.assert_frame_equal(
            loaded.predict(frame, **options), ensemble.predict(frame, **options), check_exact=True
        )
        labelled = frame.assign(y=y_of(fs["test"]))
        pd.testing.assert_frame_equal(
            loaded.evaluate(labelled), ensemble.evaluate("test"), rtol=1e-5
        )
        assert "3 of 3 members trained" in repr(loaded)
        assert "trained" in loaded._repr_html_()
        with pytest.raises(ConfigError, match="holds no experiment to run"):
            loaded.run()
        with pytest.raises(DataError, match=r"calibration rows .* learned from"):
            loaded.predict(frame, interval=0.8, calibration=fs["train"])
        again = mml.Ensemble.load(loaded.save(tmp_path / "again", **own))
        pd.testing.assert_frame_equal(again.predict(frame), ensemble.predict(frame))
    with pytest.raises(MMLError, match="exists"):
        ensemble.save(path)


def test_estimators_that_hold_rows_are_warned_of(tmp_path):
    ensemble = varied(fitted(rows(), KNeighborsRegressor()), n=2).run(**SILENT)
    with pytest.warns(UserWarning, match="predict with stored training rows"):
        ensemble.save(tmp_path / "all")


def test_a_file_holds_no_rows_and_groups_only_on_request(tmp_path):
    fs = rows()
    ensemble = mml.Ensemble(world(fs), n=3, vary="folds").run(**SILENT)
    path = ensemble.save(tmp_path / "all")
    with mml.ExperimentContext().activate():
        loaded = mml.Ensemble.load(path)
        assert all(
            len(f.collection.table) == 0
            for m in loaded.members.values()
            for f in m.ctx.available_featuresets.values()
        )
        frame = features(fs["test"]).assign(kind=0)
        with pytest.raises(ConfigError, match="save it with group_by='kind'"):
            loaded.predict(frame, interval=0.5, group_by="kind")
    with pytest.raises(MMLError, match="of kind Ensemble, not Experiment"):
        mml.Experiment.load(path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(MMLError, match="MML-101"):
        mml.Ensemble.load(path)


# ------------------------------------------------------------------------- failures and bad input


def test_failed_members_are_named_and_tried_again(tmp_path):
    fs = rows()
    flag = tmp_path / "flag"
    flag.touch()
    own = world(fs, callbacks=[Saboteur("raise", "member_1", str(flag))])
    ensemble = mml.Ensemble(own, n=3)
    with pytest.warns(FoldFailedWarning, match=r"1 of 3 members failed.*member_1: "):
        ensemble.run(**SILENT)
    assert list(ensemble.failed_members) == ["member_1"]
    assert list(ensemble.members) == ["member_0", "member_2"]
    assert "2 of 3 members trained, 1 failed" in repr(ensemble)
    assert ensemble.to_pandas()["status"].to_dict()["member_1"] == "failed"
    assert list(ensemble.predict(fs["test"], members=True)) == [
        "y",
        "y_std",
        "y_member_0",
        "y_member_2",
    ]
    assert ensemble.get_member(2) is ensemble.members["member_2"]
    with pytest.raises(UnknownNameError, match="member"):
        ensemble.get_member(1)
    flag.unlink()
    kept = ensemble.get_member(0)
    ensemble.run(**SILENT)
    assert not ensemble.failed_members
    assert list(ensemble.members) == ["member_0", "member_1", "member_2"]
    assert ensemble.get_member(0) is kept
    whole = mml.Ensemble(own, n=3).run(**SILENT)
    pd.testing.assert_frame_equal(ensemble.predict(fs["test"]), whole.predict(fs["test"]))


def test_all_failed_raises(tmp_path):
    saboteur = Saboteur("raise", "", str(tmp_path))
    ensemble = mml.Ensemble(world(rows(), callbacks=[saboteur]), n=2)
    with pytest.raises(ExecutionError, match="all members of 'ensemble' failed"):
        ensemble.run(**SILENT)
    with pytest.raises(NotFittedError, match="has no members; call run"):
        ensemble.predict(rows(label="other"))


def test_one_member_has_no_spread(tmp_path):
    saboteur = Saboteur("raise", "member_1", str(tmp_path))
    ensemble = mml.Ensemble(world(rows(), callbacks=[saboteur]), n=2)
    with pytest.warns(FoldFailedWarning):
        ensemble.run(**SILENT)
    found = ensemble.predict(ensemble.experiment.ctx.get_node(label="data")["test"])
    assert found["y_std"].isna().all()
    assert found["y"].notna().all()


def test_finished_members_are_resumed_from_checkpoints(tmp_path):
    own = world(rows())
    own.set_checkpoint_dir(tmp_path)
    first = mml.Ensemble(own, n=2).run(**SILENT, resume="auto")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.ckpt.mml")}
    assert before
    second = mml.Ensemble(own, n=2).run(**SILENT, resume="auto")
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.ckpt.mml")} == before
    np.testing.assert_array_equal(weights(first.get_member(1)), weights(second.get_member(1)))


@pytest.mark.parametrize("change", [{"seed": 7}, {"vary": "bootstrap"}])
def test_members_of_another_ensemble_are_not_taken_for_these(change, tmp_path):
    fs = rows()
    own = fitted(fs, RandomForestRegressor(3))
    own.set_checkpoint_dir(tmp_path)
    mml.Ensemble(own, n=2).run(**SILENT, resume="auto")
    other = mml.Ensemble(own, n=2, **change)
    with pytest.raises(ConfigError, match=r"has checkpoints of an ensemble 'ensemble' with"):
        other.run(**SILENT, resume="auto")
    fresh = mml.Ensemble(own, n=2, label="other", **change).run(**SILENT, resume="auto")
    again = other.run(**SILENT)  # replaces the checkpoints
    pd.testing.assert_frame_equal(again.predict(fs["test"]), fresh.predict(fs["test"]))


def test_calling_run_again_adds_nothing(seeds):
    members = seeds.members
    assert seeds.run(**SILENT).members == members


def test_a_phase_of_the_plan_can_be_chosen():
    own = world(rows())
    phase = own.execution_plan.get_train_phase("train")
    ensemble = mml.Ensemble(own, n=2, phase=phase, label="own").run(**SILENT)
    assert ensemble.get_member(0).history[-1].results.labels == ["train"]
    assert ensemble.get_member(0).label == "own_member_0"


def test_held_out_rows_that_are_learned_from_or_selected_by_are_warned_of():
    fs = rows()
    own = world(fs)
    watch = mml.Evaluation.from_split("w", split="val", metrics=[mml.EvalLossMetric(loss=mse())])
    own.execution_plan.get_train_phase("train").callbacks += [watch, mml.EarlyStopping()]
    mml.Ensemble(own, n=2, vary="folds").run(**SILENT)  # val is not in the pool
    bindings = mml.CVBinding(fs, ["train", "val"])
    with pytest.warns(SelectionWarning, match="held out by members"):
        mml.Ensemble(own, n=2, vary="folds", bindings=bindings).run(**SILENT)
    bindings = mml.CVBinding(fs, ["train"], train_split_name="part", val_split_name="oob")
    with pytest.warns(LeakWarning, match="learns from 'train'"):
        mml.Ensemble(own, n=2, vary="bootstrap", bindings=bindings).run(**SILENT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 1}, "n must be at least 2, got 1"),
        ({"n": 2.5}, "n must be an int, got 2.5"),
        ({"vary": "seeds"}, "vary must be one of 'seed', 'bootstrap', 'folds', got 'seeds'"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"n_jobs": 0}, "n_jobs must be an int other than 0"),
        ({"timeout": 3.0}, "timeout needs n_jobs of at least 2: a member"),
        ({"stacked": "yes"}, "stacked must be one of 'auto' or True or False"),
        ({"bindings": "train"}, "bindings are for vary='folds' and 'bootstrap'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    own = world(rows())
    with pytest.raises(ConfigError, match=message):
        mml.Ensemble(own, **arguments)


def test_bad_experiments_and_phases_are_refused():
    own = world(rows())
    with pytest.raises(TypeError, match=r"experiment must be an Experiment, .* Experiment\.load"):
        mml.Ensemble("exp")
    with pytest.raises(TypeError, match="phase must be a phase or a PhaseGroup"):
        mml.Ensemble(own, phase="train")
    own.execution_plan.clear()
    with pytest.raises(ConfigError, match="the plan is empty"):
        mml.Ensemble(own, n=2).run(**SILENT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_size": 0.2}, "has no val_size"),
        ({"stop_size": 0.2}, "has no stop_size"),
        ({"group_by": "cell", "stratify_by": "kind"}, "group_by or stratify_by"),
    ],
)
def test_bindings_that_a_bootstrap_cannot_honour_are_refused(options, message):
    fs = rows()
    bindings = mml.CVBinding(fs, ["train"], **options)
    ensemble = mml.Ensemble(fitted(fs, LinearRegression()), vary="bootstrap", bindings=bindings)
    with pytest.raises(ConfigError, match=message):
        ensemble.run(**SILENT)


def test_default_rows_need_one_training_split():
    fs = rows()
    own = fitted(fs, LinearRegression())
    ref = own.model_graph.get_node("net").feature_refs[0]
    sources = [mml.InputBinding("net", ref, None)]
    own.execution_plan.clear().add_phase(mml.FitPhase("fit", input_sources=sources))
    with pytest.raises(ConfigError, match=r"learns from .*all rows.*Pass bindings"):
        mml.Ensemble(own, n=2, vary="folds").run(**SILENT)
    fs.split_by_condition({"held_out": {"kind": 0}})
    own.execution_plan.clear().add_phase(mml.FitPhase.from_split("fit", split="train"))
    with pytest.raises(ConfigError, match="has a split 'held_out', which members would replace"):
        mml.Ensemble(own, n=2, vary="folds").run(**SILENT)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"interval": 1.0}, ConfigError, "between 0 and 1, exclusive"),
        ({"interval": 90}, ConfigError, "between 0 and 1, exclusive"),
        ({"interval": True}, ConfigError, "between 0 and 1, exclusive"),
        ({"interval": float("nan")}, ConfigError, "between 0 and 1, exclusive"),
        ({"interval": 0.99}, ConfigError, "at least 99 calibration rows, and there are 24"),
        ({"interval": 0.9, "method": "cv+"}, ConfigError, "vary='folds' or 'bootstrap'"),
        ({"interval": 0.9, "method": "jackknife"}, ConfigError, "method must be one of"),
        ({"interval": 0.9, "calibration": "train"}, DataError, "learned from"),
        ({"interval": 0.9, "decode": True}, ConfigError, "omit one of them"),
        ({"interval": 0.9, "fmt": "numpy"}, ConfigError, "named columns"),
        ({"interval": 0.9, "group_by": "nothing"}, UnknownNameError, "group_by column"),
        ({"interval": 0.7, "group_by": "cell"}, ConfigError, "group .*needs at least 3"),
        ({"group_by": "kind"}, ConfigError, "are for interval="),
        ({"method": "split"}, ConfigError, "are for interval="),
        ({"decode": True}, ConfigError, "predicts no classes"),
        ({"node": "other"}, UnknownNameError, "other"),
    ],
)
def test_bad_predictions_are_refused(seeds, options, error, message):
    view = seeds.experiment.ctx.get_node(label="data")["test"]
    with pytest.raises(error, match=message):
        seeds.predict(view, **options)


def test_names_of_columns_must_not_meet():
    x, y = arrays(N)
    data = {"x": x[:, 0], "y": y[:, 0], "y_std": y[:, 0]}
    fs = mml.FeatureSet.from_dict("data", data, "x", ["y", "y_std"])
    fs.split_random({"train": 0.7, "test": 0.3})
    ensemble = mml.Ensemble(fitted(fs, LinearRegression()), n=2, vary="bootstrap").run(**SILENT)
    with pytest.raises(ConfigError, match="would be called 'y_std'"):
        ensemble.predict(fs["test"])


def test_html_and_table_list_the_members(seeds):
    assert "member_0" in seeds._repr_html_()
    found = seeds.to_pandas()
    assert list(found) == ["status", "seconds", "train.train_loss"]
    assert len(found) == len(seeds) == 3


def test_modules_given_as_objects_get_new_weights():
    fs = rows()
    own = experiment(audit="off")
    mml.ModelGraph([mml.ModelNode("net", nn.Linear(6, 1), fs)], mml.Optimizer("sgd")).build()
    sampler = mml.SimpleSampler(batch_size=32)
    own.execution_plan.add_phase(
        mml.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[mse()])
    )
    ensemble = mml.Ensemble(own, n=2).run(**SILENT)
    assert (ensemble.predict(fs["test"])["y_std"] > 0).all()
