"""Cross-validation, held against scikit-learn's own folds, predictions and scalers."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn import model_selection
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import modularml as mml
from modularml.audit import AuditWarning
from modularml.callbacks import CSVLogger
from modularml.data.scaling import LeakWarning
from modularml.errors import AuditError, ConfigError, ExecutionError, SplitError, UnknownNameError
from modularml.io.randomness import random_states
from modularml.models.torch import SequentialMLP
from modularml.splitters import LeaveOneGroupOutSplitter, TimeSeriesSplitter
from modularml.strategies import FoldFailedWarning, SelectionWarning
from tests.clusters import NAMES, cluster
from tests.saboteurs import Saboteur, Threads, shorter
from tests.worlds import QUIET, arrays, experiment, featureset, mse

pytestmark = pytest.mark.filterwarnings("ignore::modularml.strategies.SelectionWarning")

N = 120
SILENT = {"show_fold_progress": False, **QUIET}


def rows(label: str = "data", n: int = N, **kwargs) -> mml.FeatureSet:
    """Twelve cells of ten rows each, of four kinds in turn, in dev and test."""
    x, y = arrays(n, **kwargs)
    cell = np.arange(n) // 10
    fs = featureset(x, 5 + 3 * y, label, cell=cell, kind=np.arange(n) % 4, t=np.arange(n)[::-1])
    fs.split_random({"dev": 0.75, "test": 0.25}, group_by="cell")
    return fs


def folds(bindings, **kwargs):
    """Return the folds of a cross-validation that is not run."""
    return mml.CrossValidation(bindings=bindings, experiment=experiment(), **kwargs).folds


def world(fs: mml.FeatureSet, *, scaled: bool = True, n_epochs: int = 2, callbacks=(), model=None):
    """An experiment that trains a small network on ``train`` and evaluates it on ``val``."""
    fs.clear_splits()
    fs.split_random({"train": 0.6, "val": 0.2, "test": 0.2}, group_by="cell")
    if scaled:
        fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
        fs.fit_transform("StandardScaler", domain="targets", fit_to_split="train")
    model = model or SequentialMLP(n_layers=2, hidden_dim=4, dropout=0.1)
    graph = mml.ModelGraph([mml.ModelNode("net", model, fs)], mml.Optimizer("adam"))
    own = experiment(audit="off")
    watch = mml.Evaluation.from_split(
        "watch", split="val", metrics=[mml.EvalLossMetric(loss=mse())]
    )
    own.execution_plan.add_phase(
        mml.TrainPhase.from_split(
            "train",
            split="train",
            sampler=mml.SimpleSampler(batch_size=16, shuffle=True),
            losses=[mse()],
            n_epochs=n_epochs,
            callbacks=[watch, mml.EarlyStopping(restore_best=True), *callbacks],
        )
    )
    own.execution_plan.add_phase(mml.EvalPhase.from_split("eval", split="val", losses=[mse()]))
    graph.build()
    return own


def assert_same(a, b) -> None:
    """Compare plain states of any depth, bit for bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
    else:
        assert a is b or a == b


def assert_equal_results(a: mml.strategies.CVResults, b: mml.strategies.CVResults) -> None:
    pd.testing.assert_frame_equal(a.to_pandas(), b.to_pandas(), check_exact=True)
    pd.testing.assert_frame_equal(a.out_of_fold("net"), b.out_of_fold("net"), check_exact=True)
    assert len(a.losses("net"))
    for label in a.fold_labels:
        one, other = a.get_experiment(label), b.get_experiment(label)
        assert_same(one.model_graph.get_state(), other.model_graph.get_state())
    mine, theirs = a.losses("net"), b.losses("net")
    assert [(k, r.value) for k, r in mine.items()] == [(k, r.value) for k, r in theirs.items()]


# ---------------------------------------------------------------------------------------- folds


@pytest.mark.parametrize("group_by", [None, "cell"])
@pytest.mark.parametrize("stratify_by", [None, "kind"])
def test_folds_are_those_of_scikit_learn_disjoint_and_complete(group_by, stratify_by):
    fs = rows()
    binding = mml.CVBinding(fs, ["dev"], group_by=group_by, stratify_by=stratify_by)
    found = folds([binding], n_folds=3, seed=7, n_repeats=2)
    name = f"{'Stratified' * bool(stratify_by)}{'Group' * bool(group_by)}KFold"
    pool = fs["dev"].indices
    cell, kind = (fs.collection.numpy(f"tags.{k}.raw") for k in ("cell", "kind"))
    for repeat in range(2):
        theirs = getattr(model_selection, name)(3, shuffle=True, random_state=7 + repeat)
        mine = [f.sides["data"] for f in found if f.repeat == repeat]
        for sides, (train, val) in zip(
            mine, theirs.split(pool, kind[pool], cell[pool] if group_by else None), strict=True
        ):
            np.testing.assert_array_equal(sides.train, pool[train])
            np.testing.assert_array_equal(sides.val, pool[val])
            if group_by:
                assert not set(cell[sides.train]) & set(cell[sides.val])
        np.testing.assert_array_equal(np.sort(np.concatenate([s.val for s in mine])), pool)
    assert [f.label for f in found] == [f"fold_{i}" for i in range(6)]
    assert len({f.seed for f in found}) == 6


def test_a_splitter_of_the_users_choice_makes_the_folds():
    fs = rows()
    binding = mml.CVBinding(fs, ["dev"])
    pool = fs["dev"].indices
    cells = len(np.unique(pool // 10))
    found = folds([binding], splitter=LeaveOneGroupOutSplitter("cell"))
    assert [set(f.sides["data"].val // 10) for f in found] == [{c} for c in np.unique(pool // 10)]
    assert len(found) == cells
    shuffle = model_selection.GroupShuffleSplit(4, test_size=0.3, random_state=1)
    grouped = mml.CVBinding(fs, ["dev"], group_by="cell")
    for fold, (_, val) in zip(
        folds([grouped], splitter=shuffle),
        shuffle.split(pool, groups=pool // 10),
        strict=True,
    ):
        np.testing.assert_array_equal(fold.sides["data"].val, pool[val])
    for fold in folds([binding], splitter=TimeSeriesSplitter(3, order_by="t")):
        sides = fold.sides["data"]
        assert sides.val.max() < sides.train.min()  # t falls from row to row


def test_val_size_gives_disjoint_parts_of_that_size():
    fs = rows()
    found = folds([mml.CVBinding(fs, ["dev"], val_size=0.2)], n_folds=3)
    vals = [f.sides["data"].val for f in found]
    assert [len(v) for v in vals] == [18] * 3
    assert len(np.unique(np.concatenate(vals))) == 54
    for f in found:
        sides = f.sides["data"]
        np.testing.assert_array_equal(np.union1d(sides.train, sides.val), fs["dev"].indices)
    (only,) = folds([mml.CVBinding(fs, ["dev"], group_by="cell", val_size=0.3)], n_folds=1)
    assert not set(only.sides["data"].train // 10) & set(only.sides["data"].val // 10)


def test_feature_sets_that_share_samples_or_groups_are_cut_as_one():
    fs = rows()
    part = fs.take(np.arange(N)[::-2]).to_featureset("part")
    part.split_random({"all": 0.99, "none": 0.01})
    other = rows("other", 60, seed=5)
    for fold in folds([mml.CVBinding(fs, ["dev", "test"]), mml.CVBinding(part, ["all"])]):
        held = set(fs.take(fold.sides["data"].val).get_sample_uuids())
        for side, inside in (("val", True), ("train", False)):
            ids = part.take(getattr(fold.sides["part"], side)).get_sample_uuids()
            assert {i in held for i in ids} == {inside}
    both = [mml.CVBinding(s, ["dev"], group_by="cell") for s in (fs, other)]
    found = folds(both, n_folds=4)
    for fold in found:
        a, b = fold.sides["data"], fold.sides["other"]
        assert not (set(a.val // 10) | set(b.val // 10)) & (set(a.train // 10) | set(b.train // 10))
    for fs_label, binding in zip(("data", "other"), both, strict=True):
        vals = np.concatenate([f.sides[fs_label].val for f in found])
        np.testing.assert_array_equal(np.sort(vals), binding.pool().indices)
    twin = rows("twin", seed=9)
    for fold in folds([mml.CVBinding(fs, ["dev"]), mml.CVBinding(twin, ["dev"])]):
        np.testing.assert_array_equal(fold.sides["data"].val, fold.sides["twin"].val)
    with pytest.raises(ConfigError, match="split together"):
        folds([mml.CVBinding(fs, ["dev"]), mml.CVBinding(part, ["all"], group_by="cell")])


# ------------------------------------------------------------------------- against scikit-learn


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_out_of_fold_predictions_equal_cross_val_predict(n_jobs):
    fs = rows()
    fs.clear_splits()
    fs.split_random({"train": 0.8, "val": 0.2}, group_by="cell")
    for domain in ("features", "targets"):
        fs.fit_transform("StandardScaler", domain=domain, fit_to_split="train")
    mml.ModelGraph([mml.ModelNode("ridge", Ridge(alpha=2.0), fs)])
    own = experiment()
    phase = mml.FitPhase.from_split("fit", split="train")
    own.run_phase(phase)  # a node that was fitted, and is frozen by now, starts anew in each fold
    binding = mml.CVBinding(fs, ["train", "val"], group_by="cell")
    cv = mml.CrossValidation(bindings=binding, phase=phase, n_folds=4, n_jobs=n_jobs)
    assert cv.phase_template is phase
    found = cv.run(**SILENT).out_of_fold("ridge").loc[fs.get_sample_uuids()]
    x, y = (
        getattr(fs, f"get_{domain}")("numpy", rep="raw").astype(np.float64)
        for domain in ("features", "targets")
    )
    cell = np.arange(N) // 10
    model = TransformedTargetRegressor(
        make_pipeline(StandardScaler(), Ridge(alpha=2.0)), transformer=StandardScaler()
    )
    split = model_selection.GroupKFold(4, shuffle=True, random_state=13)
    expected = model_selection.cross_val_predict(model, x, y[:, 0], cv=split, groups=cell)
    np.testing.assert_allclose(found["prediction"], expected, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(found["target"], y[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(found["group"], cell)


def test_scalers_know_nothing_but_the_rows_that_a_fold_trains_on():
    fs = rows()
    own = world(fs)
    fs.fit_transform("MinMaxScaler", domain="features", fit_to_split="train")
    fs.fit_transform("StandardScaler", domain="tags", keys="t", fit_to_split="test")
    cv = mml.CrossValidation(bindings=mml.CVBinding(fs, ["train", "val"]), n_folds=3)
    results = cv.run(**SILENT)
    raw = fs.get_features("numpy", rep="raw")
    for i, fold in enumerate(cv.folds):
        first, _, _, aside = results.get_experiment(i).ctx.get_node("data").scaler_records
        theirs = StandardScaler().fit(raw[fold.sides["data"].train])
        np.testing.assert_allclose(first.scaler.wrapped.mean_, theirs.mean_, rtol=1e-12)
        np.testing.assert_allclose(first.scaler.wrapped.scale_, theirs.scale_, rtol=1e-12)
        np.testing.assert_array_equal(aside.fit_rows, fs["test"].indices)
    assert own.history == []


@pytest.mark.parametrize("given", ["half", "later"])
def test_scalers_never_see_validation_rows_whatever_they_were_fitted_on(given):
    """Neither where that split lies in the pool in part, nor where a fold in time leaves it out."""
    fs = rows()
    fs.clear_splits()
    fs.split_by_condition({"dev": {"cell": list(range(9))}, "test": {"cell": [9, 10, 11]}})
    splits = {"half": {"cell": [7, 8, 9, 10]}, "later": {"cell": [8]}}
    fs.split_by_condition({given: splits[given]}, register=True)
    fs.fit_transform("StandardScaler", domain="features", fit_to_split=given)
    net = mml.ModelNode("net", Ridge(), fs)
    mml.ModelGraph([net])
    own = experiment(audit="off")
    own.execution_plan.add_phase(mml.FitPhase.from_split("fit", split="dev"))
    binding = mml.CVBinding(fs, ["dev"], train_split_name="dev", val_split_name="out")
    cv = mml.CrossValidation(bindings=binding, splitter=TimeSeriesSplitter(3), n_folds=3)
    results = cv.run(**SILENT)
    raw = fs.get_features("numpy", rep="raw")
    for i, fold in enumerate(cv.folds):
        (record,) = results.get_experiment(i).ctx.get_node("data").scaler_records
        train = fold.sides["data"].train
        np.testing.assert_array_equal(np.sort(record.fit_rows), train)
        np.testing.assert_allclose(record.scaler.wrapped.mean_, raw[train].mean(axis=0), rtol=1e-6)


# ------------------------------------------------------------------------------ honest selection


def noise(n: int = 200) -> mml.FeatureSet:
    """Nothing can be learned of these rows, which belong to twenty cells."""
    rng = np.random.default_rng(0)
    fs = featureset(*(rng.normal(size=(n, k)) for k in (6, 1)), cell=np.arange(n) // 10)
    fs.split_random({"train": 0.8, "val": 0.2}, group_by="cell")
    return fs


def watched(fs: mml.FeatureSet, *, split: str = "val", optimizer=None, **stop: Any):
    """Train on noise for too long, and watch a split by group of rows."""
    model = SequentialMLP(output_shape=(1,))
    mml.ModelGraph([mml.ModelNode("net", model, fs)], optimizer or mml.Optimizer("adam"))
    own = experiment(audit="off")
    watch = mml.Evaluation.from_split(
        "val", split=split, metrics=["rmse", mml.EvalLossMetric(loss=mse())], group_by="cell"
    )
    callbacks = [watch, mml.EarlyStopping(patience=9, restore_best=True, **stop)]
    own.execution_plan.add_phase(
        mml.TrainPhase.from_split(
            "t",
            split="train",
            sampler=mml.SimpleSampler(batch_size=16, shuffle=True),
            losses=[mse()],
            n_epochs=10,
            callbacks=callbacks if optimizer is None else callbacks[:1],
        )
    )
    return own


@pytest.mark.filterwarnings("default::modularml.strategies.SelectionWarning")
@pytest.mark.parametrize("chooses", ["stop", "plateau"])
def test_choosing_by_rows_that_are_scored_is_warned_of_once_and_marked(chooses):
    optimizer = None
    if chooses == "plateau":
        optimizer = mml.Optimizer("adam", schedule=mml.LRSchedule("plateau", monitor="val_loss"))
    fs = noise()
    watched(fs, optimizer=optimizer)
    cv = mml.CrossValidation(bindings=mml.CVBinding(fs, ["train", "val"]), n_folds=2)
    with pytest.warns(
        SelectionWarning, match="'t' select by 'val_loss', which 'val'.*stop_size"
    ) as said:
        results = cv.run(**SILENT)
    assert len(said) == 1
    assert results.selected_on_scored_rows
    assert results.summary().attrs["selected_on_scored_rows"]
    assert "selected on scored rows" in repr(results)


@pytest.mark.filterwarnings("error::modularml.strategies.SelectionWarning")
@pytest.mark.parametrize("monitor", ["val_loss", "val_rmse"])
@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_rows_held_back_choose_the_epoch_and_held_out_rows_score_it(monitor, n_jobs):
    fs = noise()
    fs.fit_transform("StandardScaler", domain="targets", fit_to_split="train")
    watched(fs, monitor=monitor)
    binding = mml.CVBinding(fs, ["train", "val"], group_by="cell", stop_size=0.2)
    cv = mml.CrossValidation(bindings=binding, n_folds=3, n_jobs=n_jobs)
    results = cv.run(**SILENT)
    assert not results.selected_on_scored_rows
    cell, own = fs.get_tags("numpy").ravel(), results.out_of_fold("net")
    for i, fold in enumerate(cv.folds):
        sides = fold.sides["data"]
        parts = [sides.train, sides.stop, sides.val]
        assert np.sort(np.concatenate(parts)).tolist() == list(range(len(fs)))
        assert not any(set(cell[a]) & set(cell[b]) for a in parts for b in parts if a is not b)
        assert len(set(cell[sides.stop])) == round(
            0.2 * len(set(cell[parts[0]]) | set(cell[parts[1]]))
        )
        found = results.get_experiment(i)
        splits = found.ctx.get_node("data").splits
        np.testing.assert_array_equal(splits["stop"].indices, sides.stop)
        (record,) = found.ctx.get_node("data").scaler_records
        np.testing.assert_array_equal(np.sort(record.fit_rows), sides.train)
        phase = results.get_fold(i)["t"]
        curve = phase.to_pandas()[f"stop_{monitor}"]
        assert phase.kept_epoch == curve.idxmin()
        held = own[own.fold == fold.label]
        rmse = np.sqrt(((held.prediction - held.target) ** 2).mean())
        assert results.to_pandas().loc[fold.label, "t.val_rmse"] == pytest.approx(rmse, rel=1e-5)


@pytest.mark.filterwarnings("error::modularml.strategies.SelectionWarning")
def test_schedules_watch_rows_held_back_too_and_splits_of_other_rows_are_honest():
    fs = noise()
    schedule = mml.LRSchedule("plateau", schedule_kwargs={"patience": 0}, monitor="val_loss")
    own = watched(fs, optimizer=mml.Optimizer("adam", schedule=schedule))
    binding = mml.CVBinding(fs, ["train", "val"], stop_size=0.2, stop_split_name="inner")
    results = mml.CrossValidation(bindings=binding, n_folds=2).run(**SILENT)
    graph = results.get_experiment(0).model_graph
    assert graph.optimizer.lr_schedule.monitor == "inner_val_loss"
    best = results.get_fold(0)["t"].to_pandas()["inner_val_loss"].min()
    assert graph.optimizer.scheduler.best == pytest.approx(best)
    assert own.model_graph.optimizer.lr_schedule.monitor == "val_loss"
    fs.clear_splits()
    fs.split_random({"train": 0.6, "val": 0.2, "aside": 0.2})
    mml.ExperimentContext.get_active().set_registration_policy("overwrite")
    watched(fs, split="aside")
    binding = mml.CVBinding(fs, ["train", "val"])
    cv = mml.CrossValidation(bindings=binding, n_folds=2).run(**SILENT)
    assert not cv.selected_on_scored_rows


def test_tables_hold_the_weights_that_were_kept_and_groups_stand_apart():
    fs = noise()
    watched(fs)
    binding = mml.CVBinding(fs, ["train", "val"], group_by="cell")
    results = mml.CrossValidation(bindings=binding, n_folds=4).run(**SILENT)
    for at, pick in (("kept", "min"), ("best", "min"), ("last", "last")):
        table = results.to_pandas(at)
        for label in results.fold_labels:
            curve = results.get_fold(label)["t"].to_pandas()["val_loss"]
            expected = curve.min() if pick == "min" else curve.iloc[-1]
            assert table.loc[label, "t.val_loss"] == expected
    summary = results.summary()
    assert list(summary.index) == ["t.train_loss", "t.val_rmse", "t.val_loss"]
    assert (summary.n == 4).all()
    groups = results.by_group()
    assert len(groups) == 20
    held = results.out_of_fold("net")
    rmse = ((held.prediction - held.target) ** 2).groupby(held.group).mean() ** 0.5
    np.testing.assert_allclose(groups.loc["t.val_rmse"].loc["3"], [rmse[3], np.nan, 1], rtol=1e-5)
    again = results.by_group(metrics=["rmse"]).loc["val.rmse"]
    np.testing.assert_allclose(again["mean"].sort_index(), rmse, rtol=1e-5)


def test_what_was_not_measured_in_the_kept_epoch_is_nan_and_not_of_other_weights():
    fs = noise()
    own = watched(fs)
    phase = own.execution_plan.get_phase("t")
    phase.callbacks[1:] = []
    phase.callbacks[0].every_n_epochs = 4  # of ten epochs
    binding = mml.CVBinding(fs, ["train", "val"])
    results = mml.CrossValidation(bindings=binding, n_folds=2).run(**SILENT)
    with pytest.warns(UserWarning, match=r"t.val_loss, t.val_rmse were not logged in the kept"):
        assert results.to_pandas()["t.val_loss"].isna().all()


def test_estimators_are_scored_where_nothing_was_measured():
    fs = rows()
    fs.clear_splits()
    fs.split_random({"train": 0.7, "val": 0.3})
    mml.ModelGraph([mml.ModelNode("net", Ridge(), fs)])
    own = experiment(audit="off")
    own.execution_plan.add_phase(mml.FitPhase.from_split("fit", split="train"))
    own.execution_plan.add_phase(mml.EvalPhase.from_split("eval", split="val"))
    cv = mml.CrossValidation(bindings=mml.CVBinding(fs, ["train", "val"]), n_folds=3)
    results = cv.run(**SILENT)
    x, y = fs.get_features("numpy"), fs.get_targets("numpy").ravel()
    sides = [fold.sides["data"] for fold in cv.folds]
    cuts = [(side.train, side.val) for side in sides]
    theirs = model_selection.cross_validate(
        Ridge(), x, y, cv=cuts, scoring=["r2", "neg_mean_absolute_error"]
    )
    np.testing.assert_allclose(results.to_pandas()["val.r2"], theirs["test_r2"], rtol=1e-4)
    asked = results.summary(metrics=["mae"])
    assert list(asked.index) == ["val.mae"]
    mean = -theirs["test_neg_mean_absolute_error"].mean()
    assert asked["mean"].iloc[0] == pytest.approx(mean, rel=1e-4)


def test_a_plan_that_measures_nothing_says_how_to():
    fs = rows()
    own = world(fs)
    own.execution_plan.clear().add_phase(mml.EvalPhase.from_split("eval", split="val"))
    results = mml.CrossValidation(bindings=mml.CVBinding(fs, ["train", "val"])).run(**SILENT)
    with pytest.warns(UserWarning, match="the folds of 'CV' logged no scores.*pass metrics"):
        assert not len(results.summary())
    assert list(results.summary(metrics=["rmse"]).index) == ["val.rmse"]


def test_the_rows_of_folds_are_audited_once():
    x, y = arrays(N)
    cell = np.arange(N) // 10  # rows of one cell are near to each other and far from the others
    x = 0.1 * x + np.random.default_rng(0).normal(size=(12, *x.shape[1:]))[cell].astype(x.dtype)
    fs = featureset(x, y, "data", cell=cell)
    own = world(fs)
    own._audit.mode = "warn"
    binding = mml.CVBinding(fs, ["train", "val"])
    with pytest.warns(AuditWarning, match="shared_groups") as said:
        mml.CrossValidation(bindings=binding, n_folds=3).run(**SILENT)
    assert len([w for w in said if w.category is AuditWarning]) == 1
    own._audit.mode = "error"
    with pytest.raises(AuditError, match="shared_groups"):
        mml.CrossValidation(bindings=binding).run(**SILENT)
    whole = mml.CVBinding(fs, ["train", "val"], group_by="cell", stop_size=0.2)
    assert not mml.CrossValidation(bindings=whole, n_folds=3).run(**SILENT).failed_folds


def test_folds_by_row_are_audited_for_the_groups_that_their_pool_was_split_by():
    x, y = arrays(N)
    fs = featureset(x, y, "data", cell=np.arange(N) // 10)
    world(fs)._audit.mode = "error"
    with pytest.raises(AuditError, match=r"share their 'cell' .* by which a split was grouped"):
        mml.CrossValidation(bindings=mml.CVBinding(fs, ["train", "val"])).run(**SILENT)
    whole = mml.CVBinding(fs, ["train", "val"], group_by="cell", stop_size=0.2)
    mml.CrossValidation(bindings=whole, n_folds=3).run(**SILENT)


# ------------------------------------------------------------------------------------ isolation


def test_the_parent_is_untouched_and_folds_follow_from_the_seed():
    fs = rows()
    own = world(fs)
    torch.manual_seed(3)
    before = own.get_state(), own.get_config(), random_states(), own.ctx.get_state()
    active = mml.ExperimentContext.get_active()
    binding = mml.CVBinding(fs, ["train", "val"], group_by="cell")
    first = mml.CrossValidation(bindings=binding).run(**SILENT)
    first.out_of_fold("net")
    after = own.get_state(), own.get_config(), random_states(), own.ctx.get_state()
    assert_same(before, after)
    assert mml.ExperimentContext.get_active() is active
    torch.manual_seed(4)
    assert_equal_results(first, mml.CrossValidation(bindings=binding).run(**SILENT))
    other = mml.CrossValidation(bindings=binding, seed=14).run(**SILENT)
    assert not first.to_pandas().equals(other.to_pandas())
    nets = [first.get_experiment(i).model_graph.get_node("net").model for i in range(5)]
    nets.append(own.model_graph.get_node("net").model)
    assert not any(a.same_weights(b) for a in nets for b in nets if a is not b)
    train = [first.get_experiment(i).execution_plan.get_phase("train") for i in range(5)]
    assert len({p.input_sources[0].sampler.seed_ for p in train}) == 5


def test_models_given_as_objects_start_anew_and_frozen_ones_stay():
    fs = rows()
    fs.split_random({"train": 0.8, "val": 0.2})
    encoder = mml.ModelNode("encoder", nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), fs)
    head = mml.ModelNode("net", nn.Linear(3, 1), encoder)
    graph = mml.ModelGraph([encoder, head], mml.Optimizer("sgd", opt_kwargs={"lr": 0.0}))
    experiment(audit="off")
    graph.freeze(["encoder"])
    sampler = mml.SimpleSampler(batch_size=16)
    phase = mml.TrainPhase.from_split("train", split="train", sampler=sampler, losses=[mse()])
    cv = mml.CrossValidation(bindings=mml.CVBinding(fs, ["dev"]), phase=phase, n_folds=2)
    results = cv.run(**SILENT)
    graphs = [graph, *(results.get_experiment(i).model_graph for i in range(2))]
    for name, same in (("encoder", True), ("net", False)):
        models = [g.get_node(name).model for g in graphs]
        assert all(a.same_weights(b) is same for a in models for b in models if a is not b)


# -------------------------------------------------------------------------------------- results


def test_results_can_be_asked_by_fold():
    fs = rows()
    own = world(fs)
    binding = mml.CVBinding(fs, ["train", "val"])
    results = mml.CrossValidation(bindings=binding, n_folds=3, n_repeats=2).run(**SILENT)
    assert results.n_folds == 6
    assert results.fold_labels[0] == "fold_0"
    assert results.get_fold(0) is results.get_fold("fold_0")
    assert results.losses("net").axes == ("fold", "epoch", "batch", "label")
    assert results.losses(own.model_graph.get_node("net"), phase="eval").shape[0] == 6
    scores = results.collect(lambda r: r.get_eval_result().aggregated_losses("net")["mse_net"])
    frame = results.to_pandas()
    np.testing.assert_array_equal(scores.values(), frame["eval.mse_net"])
    summary = results.summary(0.9)
    pool = len(fs) - len(fs["test"])  # of repeats: corrected by Nadeau and Bengio
    sizes = [pool // 3 + (i < pool % 3) for i in range(3)]
    ratio = np.mean([n / (pool - n) for n in sizes])
    error = frame.std() * np.sqrt(1 / 6 + ratio)
    low, high = stats.t.interval(0.9, 5, frame.mean(), error)
    np.testing.assert_allclose(summary["low"], low)
    np.testing.assert_allclose(summary["high"], high)
    once = mml.CrossValidation(bindings=binding, n_folds=3).run(**SILENT)
    frame = once.to_pandas()
    low, high = stats.t.interval(0.9, 2, frame.mean(), stats.sem(frame))
    np.testing.assert_allclose(once.summary(0.9)[["low", "high"]].T, [low, high])
    out = results.out_of_fold("net")
    assert out.groupby("repeat").size().tolist() == [len(fs) - len(fs["test"])] * 2
    assert "group" not in out
    assert "fold_0" in results.plot().axes[0].get_legend().get_texts()[0].get_text()
    assert "train.val_loss" in results._repr_html_()
    with pytest.raises(UnknownNameError, match="fold_9"):
        results.get_fold("fold_9")


def test_values_in_own_units_are_those_of_the_fold_whatever_context_is_active():
    fs = rows()
    world(fs)
    cv = mml.CrossValidation(bindings=mml.CVBinding(fs, ["train", "val"]), n_folds=2)
    results = cv.run(**SILENT)
    y = fs.get_targets("numpy", rep="raw")[:, 0]
    for i, fold in enumerate(cv.folds):
        found = (
            results.get_fold(i).get_eval_result().stacked_tensors("net", "targets", unscale=True)
        )
        np.testing.assert_allclose(found[:, 0], y[fold.sides["data"].val], rtol=1e-5)


def test_a_search_chooses_within_each_fold_by_an_inner_cross_validation():
    fs = rows()
    own = world(fs, scaled=False)
    seen = []

    def choose(mine: mml.Experiment) -> mml.TrainPhase:
        data = mine.ctx.get_node("data")
        seen.append(data["train"].indices)
        tried = {}
        for n in (1, 3):
            sampler = mml.SimpleSampler(batch_size=16, seed=0)
            tried[n] = mml.TrainPhase.from_split(
                "train", split="train", sampler=sampler, losses=[mse()], n_epochs=n
            )
        scores = {}
        for n, phase in tried.items():
            inner = mml.CrossValidation(
                bindings=mml.CVBinding("data", ["train"]), phase=phase, n_folds=2
            )
            oof = inner.run(**SILENT).out_of_fold("net")
            assert set(oof.index) == set(data["train"].get_sample_uuids())
            scores[n] = ((oof["prediction"] - oof["target"]) ** 2).mean()
        return tried[min(scores, key=scores.get)]

    cv = mml.CrossValidation(bindings=mml.CVBinding(fs, ["train", "val"]), n_folds=2, search=choose)
    results = cv.run(**SILENT)
    for fold, trained_on in zip(cv.folds, seen, strict=True):
        np.testing.assert_array_equal(fold.sides["data"].train, trained_on)
    assert results.collect(lambda r: r.get_train_result().n_epochs).values() == [3, 3]
    assert own.execution_plan.get_train_phase("train").n_epochs == 2


# --------------------------------------------------------------------------------------- faults


def test_a_failed_fold_is_reported_and_a_second_run_does_it_alone(tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    fs = rows()
    world(fs, callbacks=[Saboteur("raise", "fold_1", str(flag))])
    cv = mml.CrossValidation(bindings=mml.CVBinding(fs, ["train", "val"]), n_folds=3)
    with pytest.warns(FoldFailedWarning, match="fold_1: RuntimeError: sabotage"):
        results = cv.run(**SILENT)
    assert list(results.failed_folds) == ["fold_1"]
    assert len(results.to_pandas()) == 2
    with pytest.raises(ExecutionError, match="fold_1 failed"):
        results.get_fold(1)
    flag.unlink()
    again = cv.run(**SILENT)
    assert again.failed_folds == {}
    assert again.get_fold(0) is results.get_fold(0)
    assert len(again.to_pandas()) == 3


@pytest.mark.slow
def test_folds_in_processes_equal_serial_and_dead_or_hanging_ones_lose_their_fold(tmp_path):
    flags = [tmp_path / "die", tmp_path / "hang"]
    fs = rows()
    saboteurs = [
        Saboteur("die", "fold_1", str(flags[0])),
        Saboteur("hang", "fold_2", str(flags[1])),
    ]
    world(fs, callbacks=saboteurs)
    binding = mml.CVBinding(fs, ["train", "val"], group_by="cell")
    serial = mml.CrossValidation(bindings=binding, n_folds=4).run(**SILENT)
    for flag in flags:
        flag.touch()
    cv = mml.CrossValidation(bindings=binding, n_folds=4, n_jobs=2, timeout=9)
    before = random_states()
    with pytest.warns(FoldFailedWarning, match="2 of 4 folds failed"):
        results = cv.run(**SILENT)
    assert_same(before, random_states())
    assert "died" in str(results.failed_folds["fold_1"])
    assert "timeout=9" in str(results.failed_folds["fold_2"])
    for flag in flags:
        flag.unlink()
    assert_equal_results(serial, cv.run(**SILENT))
    shared = {"bindings": binding, "n_folds": 2, "search": shorter}
    one, two = (mml.CrossValidation(**shared, n_jobs=n).run(**SILENT) for n in (1, 2))
    assert_equal_results(one, two)
    assert one.get_fold(0).labels == ["train"]


@pytest.mark.slow
@pytest.mark.parametrize("given_as", ["class", "object"])
def test_keras_folds_in_processes_equal_serial_and_the_parent_is_untouched(given_as):
    keras_worlds = pytest.importorskip("tests.keras_worlds")
    keras, tf = keras_worlds.keras, keras_worlds.tf
    fs = rows()
    model: Any = keras_worlds.net()
    if given_as == "class":
        model = importlib.import_module("modularml.models.tensorflow").SequentialMLP(
            n_layers=2, hidden_dim=4, dropout=0.1
        )
    world(fs, model=model)
    binding = mml.CVBinding(fs, ["train", "val"], group_by="cell")
    keras.utils.set_random_seed(3)
    wanted = [keras.random.uniform((2,)), tf.random.uniform((2,)), tf.random.uniform((2,))]
    keras.utils.set_random_seed(3)
    found = [keras.random.uniform((2,)), tf.random.uniform((2,))]
    serial, again, shared = (
        mml.CrossValidation(bindings=binding, n_folds=3, n_jobs=n).run(**SILENT) for n in (1, 1, 2)
    )
    found.append(tf.random.uniform((2,)))
    np.testing.assert_array_equal(np.stack(found), np.stack(wanted))
    assert_equal_results(serial, again)
    assert_equal_results(serial, shared)


class Cluster(joblib.parallel.BACKENDS["loky"]):
    """A backend of joblib's that is not the default."""


@pytest.mark.slow
def test_folds_run_where_joblib_was_told_to(tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    fs = rows()
    world(fs, callbacks=[Saboteur("raise", "fold_1", str(flag))])
    cv, local = (
        mml.CrossValidation(bindings=mml.CVBinding(fs, ["train", "val"]), n_folds=3)
        for _ in range(2)
    )
    joblib.register_parallel_backend("cluster", Cluster)
    with joblib.parallel_config("cluster", n_jobs=2):
        with pytest.warns(FoldFailedWarning, match="fold_1: .*RuntimeError: sabotage"):
            first = cv.run(**SILENT)
        flag.unlink()
        results = cv.run(**SILENT)
    assert results.get_fold(0) is first.get_fold(0)
    assert_equal_results(results, local.run(**SILENT))
    for backend in ("threading", "multiprocessing"):
        with joblib.parallel_config(backend, n_jobs=2), pytest.raises(ConfigError, match="'loky'"):
            mml.CrossValidation(bindings=mml.CVBinding(fs, ["train"])).run(**SILENT)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the clusters' own
@pytest.mark.parametrize("name", NAMES)
def test_folds_run_on_a_cluster_of_two_workers(name, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # the cluster caps threads by itself
    flag = tmp_path / "flag"
    flag.touch()
    fs = rows()
    world(fs, callbacks=[Threads(), Saboteur("raise", "fold_1", str(flag))])
    binding = mml.CVBinding(fs, ["train", "val"], stop_size=0.2)
    cv, local = (mml.CrossValidation(bindings=binding, n_folds=3) for _ in range(2))
    with cluster(name):
        with pytest.warns(FoldFailedWarning, match="fold_1: .*RuntimeError: sabotage"):
            cv.run(**SILENT)
        flag.unlink()
        results = cv.run(**SILENT)
    assert not results.failed_folds
    assert_equal_results(results, local.run(**SILENT))
    assert (results.to_pandas()["train.threads"] == 1).all()


@pytest.mark.slow
def test_a_class_that_a_worker_cannot_find_is_named():
    fs = rows()
    hidden = type("Hidden", (Saboteur,), {"__module__": "nowhere"})
    world(fs, callbacks=[hidden("raise", "fold_9", "")])
    cv = mml.CrossValidation(bindings=mml.CVBinding(fs, ["train", "val"]), n_folds=2, n_jobs=2)
    with pytest.raises(ExecutionError, match=r"importable there, from .'nowhere'"):
        cv.run(**SILENT)


# -------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_meant_is_refused_at_once():
    fs = rows()
    world(fs)
    binding = mml.CVBinding(fs, ["train", "val"])
    with pytest.raises(UnknownNameError, match="train"):
        mml.CVBinding(fs, ["trian"])
    with pytest.raises(UnknownNameError, match="cell"):
        mml.CVBinding("data", ["train"], group_by="cel")
    for kwargs, match in (
        ({"n_folds": 0}, "at least 1"),
        ({"n_folds": 1}, "val_size"),
        ({"n_jobs": 1, "timeout": 3}, "n_jobs"),
        ({"n_jobs": 0}, "n_jobs must be"),
        ({"n_jobs": "2"}, "n_jobs must be"),
        ({"search": 3}, "search must be"),
        ({"bindings": [binding, binding]}, "twice"),
        ({"splitter": TimeSeriesSplitter(3), "n_repeats": 2}, "seed"),
        (
            {
                "splitter": TimeSeriesSplitter(3),
                "bindings": mml.CVBinding(fs, ["val"], val_size=0.2),
            },
            "splitter",
        ),
    ):
        with pytest.raises(ConfigError, match=match):
            mml.CrossValidation(**{"bindings": binding, **kwargs})
    for splitter in ("kfold", model_selection.KFold):
        with pytest.raises(SplitError, match="an object with a method split"):
            mml.CrossValidation(bindings=binding, splitter=splitter)
    binned = mml.CVBinding(fs, ["train"], stratify_by="y", bins=4)
    with pytest.raises(ConfigError, match="bins is for the strata of KFoldSplitter"):
        mml.CrossValidation(bindings=binned, splitter=model_selection.StratifiedKFold(3))
    with pytest.raises(ConfigError, match=r"bins=4 .* stratify_by is missing"):
        mml.CVBinding(fs, ["train"], bins=4)
    with pytest.raises(ConfigError, match="val_size must"):
        mml.CVBinding(fs, ["train"], val_size="0.2")
    with pytest.raises(TypeError, match="phase"):
        mml.CrossValidation(bindings=binding, phase="train")
    with pytest.raises(ConfigError, match=r"at most 0\.2"):
        mml.CrossValidation(bindings=mml.CVBinding(fs, ["train"], val_size=0.3)).run(**SILENT)
    with pytest.raises(SplitError, match="groups"):
        mml.CrossValidation(bindings=mml.CVBinding(fs, ["val"], group_by="cell"), n_folds=9).run(
            **SILENT
        )
    leaking = mml.CVBinding(fs, ["train", "val"], train_split_name="learn")
    with pytest.warns(LeakWarning, match="learns from 'train'"):
        mml.CrossValidation(bindings=leaking, n_folds=2).run(**SILENT)


@pytest.mark.parametrize(("n_jobs", "searches"), [(1, False), (2, False), (1, True)])
def test_folds_go_on_in_a_new_process_and_log_to_files_of_their_own(
    tmp_path, monkeypatch, n_jobs, searches
):
    monkeypatch.chdir(tmp_path)
    calls = []

    def search(own):
        calls.append(np.random.rand())  # noqa: NPY002
        own.execution_plan.get_train_phase("train").n_epochs = 2

    def made(folder):
        logger = CSVLogger(f"{folder}/log.csv")
        own = world(rows(), n_epochs=3, callbacks=[logger])
        own.execution_plan.get_phase("train").set_checkpointing(
            mml.Checkpointing(mode="disk", save_on="batch_end", every_n=2)
        )
        own.set_checkpoint_dir(tmp_path / folder)
        binding = mml.CVBinding(own.ctx.get_node("data"), ["train", "val"], group_by="cell")
        options = {"n_jobs": n_jobs, "search": search if searches else None}
        return mml.CrossValidation(bindings=binding, n_folds=3, experiment=own, **options)

    with mml.ExperimentContext().activate():
        wanted = made("never").run(**SILENT)
    with mml.ExperimentContext().activate():
        cv = made("often")
        first = cv.run(resume="auto", **SILENT)
    assert_equal_results(first, wanted)
    done, under_way, lost = sorted((tmp_path / "often").glob("CV_fold_*"))
    times = [path.stat().st_mtime_ns for path in sorted(done.rglob("*.mml"))]
    for path in [
        *under_way.glob("*.ckpt.mml"),
        *sorted((under_way / "train").glob("*.ckpt.mml"))[3:],
    ]:
        path.unlink()
    for path in lost.rglob("*.mml"):
        path.unlink()
    with mml.ExperimentContext().activate():
        again = made("often").run(resume="auto", **SILENT)
    assert_equal_results(again, wanted)
    for i in range(3):
        logs = [Path(folder, f"log_CV_fold_{i}.csv") for folder in ("never", "often")]
        values = again.get_fold(i)["train"].to_pandas()["train_loss"]
        np.testing.assert_array_equal(pd.read_csv(logs[1])["train_loss"], values)
        assert logs[0].read_bytes() == logs[1].read_bytes()
    assert times == [path.stat().st_mtime_ns for path in sorted(done.rglob("*.mml"))]
    assert len(calls) == (3 + 3 + 1 if searches else 0)
    cv.experiment._checkpoint_dir = None
    with pytest.raises(ConfigError, match="set_checkpoint_dir"):
        cv.run(resume="auto")


@pytest.mark.parametrize("used", [None, "early stopping", "a split of its own"])
def test_rows_held_back_for_nothing_are_warned_of(used):
    fs = noise()
    own = watched(fs)
    callbacks = own.execution_plan.get_phase("t").callbacks
    if used != "early stopping":
        del callbacks[1]
    binding = mml.CVBinding(fs, ["train", "val"], stop_size=0.2)
    if used == "a split of its own":
        fs.add_split(fs.take(range(10), label="stop"))
        callbacks.append(mml.Evaluation.from_split("held", split="stop", metrics=["rmse"]))
    cv = mml.CrossValidation(bindings=binding, n_folds=2)
    with warnings.catch_warnings(record=True, action="always") as said:
        cv.run(**SILENT)
    found = [w for w in said if "stop_size holds out" in str(w.message)]
    assert len(found) == (used is None)
