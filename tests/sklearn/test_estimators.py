"""Experiments as estimators: what they train, parameters, frames, weights, groups, pickles."""

from __future__ import annotations

import copy
import functools
import io
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge

import modularml as mml
from modularml.audit import AuditWarning
from modularml.errors import ConfigError, DataError, UnknownNameError
from modularml.io.randomness import random_states
from modularml.sklearn import ExperimentClassifier, ExperimentRegressor, tabular_mlp
from tests.sklearn import builds
from tests.sklearn.builds import logistic, network, ridge, single_logit, table
from tests.worlds import QUIET


def by_hand(x, y, *, seed, lr=0.02, n_epochs=5, n_out=1):
    """Train the network of `builds.network` by an experiment written out."""
    experiment = mml.Experiment("study", seed=seed)
    fs = mml.FeatureSet.from_dict("data", {"x": x, "y": y}, "x", "y")
    fs.split_random({"train": 1.0})
    kwargs = {"width": 8, "n_in": x.shape[1], "n_out": n_out}
    model = mml.TorchModelWrapper(model_class=builds.Net, model_kwargs=kwargs)
    net = mml.ModelNode("net", model, fs)
    mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": lr}))
    loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
    sampler = mml.SimpleSampler(batch_size=16, shuffle=True)
    phase = mml.TrainPhase.from_split(
        "train", split="train", sampler=sampler, losses=[loss], n_epochs=n_epochs
    )
    experiment.execution_plan.add_phase(phase)
    experiment.run(**QUIET)
    return experiment.predict(x).reshape(y.shape)


# ----------------------------------------------------------------------------- what is trained


def test_equals_the_experiment_written_out_bit_for_bit():
    x, y = table()
    fitted = ExperimentRegressor(network, random_state=7).fit(x, y)
    assert np.array_equal(fitted.predict(x), by_hand(x, y, seed=7))


def test_several_targets_keep_their_shape():
    x, y = table()
    targets = np.column_stack([y, -y])
    fitted = ExperimentRegressor(network, n_out=2, random_state=1).fit(x, targets)
    assert np.array_equal(fitted.predict(x), by_hand(x, targets, seed=1, n_out=2))
    column = ExperimentRegressor(network, random_state=1).fit(x, y[:, None])
    assert column.predict(x).shape == (80, 1)


class Study(mml.Experiment):
    """An experiment that is its own `build`."""

    def __init__(self, rows, *, alpha=1.0):
        super().__init__("study", ctx=mml.ExperimentContext.get_active())
        mml.ModelGraph([mml.ModelNode("net", Ridge(alpha=alpha), rows)])
        self.execution_plan.add_phase(mml.FitPhase.from_split("fit", split="train"))


def test_a_class_and_a_partial_function_build_too():
    x, y = table()
    fitted = ExperimentRegressor(Study, alpha=20.0).fit(x, y)
    expected = Ridge(alpha=20.0).fit(x, y).predict(x)
    assert np.allclose(fitted.predict(x), expected, atol=1e-12)
    partial = functools.partial(ridge, model=Ridge(alpha=20.0))
    fitted = pickle.loads(pickle.dumps(ExperimentRegressor(partial).fit(x, y)))
    assert np.allclose(fitted.predict(x), expected, atol=1e-12)
    (rows,) = fitted.experiment_.ctx.available_featuresets.values()
    assert not rows.has_rows


def test_a_network_of_each_framework(backend):
    x, y = table()
    build = network if backend == "torch" else builds.keras_network
    a, b = (ExperimentRegressor(build, n_epochs=2, random_state=3).fit(x, y) for _ in range(2))
    assert np.array_equal(a.predict(x), b.predict(x))
    assert not np.array_equal(
        a.predict(x), clone(a).set_params(random_state=4).fit(x, y).predict(x)
    )


def test_an_estimator_in_the_graph_equals_the_estimator_alone():
    x, y = table()
    w = np.random.default_rng(0).random(80)
    fitted = ExperimentRegressor(ridge).fit(x, y, sample_weight=w)
    expected = Ridge().fit(x, y, sample_weight=w).predict(x)
    assert np.allclose(fitted.predict(x), expected, atol=1e-12)


@pytest.mark.parametrize("names", [np.array(["b", "a"]), np.array([7, 3]), np.array([True, False])])
def test_classes_keep_names_types_and_order(names):
    x, y = table()
    labels = names[(y > 10).astype(int)]
    fitted = ExperimentClassifier(logistic).fit(x, labels)
    alone = LogisticRegression().fit(x, labels)
    assert fitted.classes_.tolist() == sorted(names.tolist())
    assert fitted.predict(x).dtype == labels.dtype
    assert np.array_equal(fitted.predict(x), alone.predict(x))
    assert np.allclose(fitted.predict_proba(x), alone.predict_proba(x))


def test_a_classifier_that_predicts_labels_has_no_probabilities():
    x, y = table()
    labels = np.where(y > 10, "high", "low")
    fitted = ExperimentClassifier(logistic, method="predict").fit(x, labels)
    assert np.array_equal(fitted.predict(x), LogisticRegression().fit(x, labels).predict(x))
    with pytest.raises(ConfigError, match="labels of shape"):
        fitted.predict_proba(x)


def test_one_logit_is_the_score_of_the_second_class():
    x, y = table()
    fitted = ExperimentClassifier(single_logit, outputs="logits", n_epochs=30, random_state=0)
    fitted.fit(x, np.where(y > 10, "high", "low"))
    logits = fitted.experiment_.predict(x)[:, 0].astype(float)
    low = 1 / (1 + np.exp(-logits))
    assert np.allclose(fitted.predict_proba(x), np.column_stack([1 - low, low]))
    assert fitted.score(x, np.where(y > 10, "high", "low")) > 0.9
    with pytest.raises(ConfigError, match="outputs='logits'"):
        fitted.set_params(outputs="auto").predict(x)


def test_random_states_of_the_process_do_not_change():
    x, y = table()
    before = random_states()
    ExperimentRegressor(network, random_state=0).fit(x, y)
    assert same_states(random_states(), before)


@pytest.mark.parametrize("random_state", [None, np.random.RandomState])
def test_random_states_are_drawn_from(random_state):
    x, y = table()
    predicted = []
    for _ in range(2):
        np.random.seed(5)  # noqa: NPY002 - what scikit-learn draws from
        state = None if random_state is None else random_state(5)
        fits = [ExperimentRegressor(network, random_state=state).fit(x, y) for _ in range(2)]
        predicted.append([fitted.predict(x) for fitted in fits])
    assert np.array_equal(predicted[0], predicted[1])
    assert not np.array_equal(*predicted[0])


def same_states(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_states(a[k], b[k]) for k in a)
    return np.array_equal(a, b)


# ---------------------------------------------------------------------------------- parameters


def test_parameters_of_build_and_paths_are_parameters():
    estimator = ExperimentRegressor(network, lr=0.1, graph__optimizer__lr=0.01)
    params = estimator.get_params(deep=False)
    assert params["lr"] == 0.1
    assert params["graph__optimizer__lr"] == 0.01
    assert "width" not in params
    assert estimator.get_params()["width"] == 8
    assert clone(estimator).get_params(deep=False) == params
    assert "graph__optimizer__lr=0.01" in repr(estimator)
    assert "graph__optimizer__lr" in estimator._repr_html_()


def test_a_path_changes_the_setting_of_the_experiment():
    x, y = table()
    estimator = ExperimentRegressor(network, random_state=0).set_params(
        graph__optimizer__lr=0.5, phases__train__n_epochs=2, nodes__net__width=3
    )
    graph = estimator.fit(x, y).experiment_.model_graph
    assert graph.optimizer.opt_kwargs == {"lr": 0.5}
    assert graph.get_node("net").model.module.hidden.out_features == 3
    assert estimator.experiment_.execution_plan.flatten()[0].n_epochs == 2
    assert estimator.experiment_.seed == 0


def test_arguments_are_not_changed_by_training():
    x, y = table()
    module, model = torch.nn.Linear(6, 1), Ridge()
    before = module.weight.detach().clone()

    def build(rows, *, module=None):
        mml.ModelGraph([mml.ModelNode("net", module, rows)], mml.Optimizer("adam"))
        return builds.planned(rows, "mse", n_epochs=2)

    fits = [ExperimentRegressor(build, module=module, random_state=0).fit(x, y) for _ in range(2)]
    assert np.array_equal(fits[0].predict(x), fits[1].predict(x))
    assert torch.equal(module.weight, before)
    ExperimentRegressor(ridge, model=model).fit(x, y)
    assert not hasattr(model, "coef_")


def test_parameters_of_a_nested_estimator_leave_the_default_of_build_alone():
    x, y = table()
    estimator = ExperimentRegressor(ridge).set_params(model__alpha=50.0)
    assert builds.ridge.__kwdefaults__["model"].alpha == 1.0
    assert estimator.get_params()["model__alpha"] == 50.0
    expected = Ridge(alpha=50.0).fit(x, y).predict(x)
    assert np.allclose(clone(estimator).fit(x, y).predict(x), expected, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["widht", "warm_start", "optimizer__lr", "seed", "lr__x", "class_weight"]
)
def test_unknown_parameters_are_refused_at_once(name):
    with pytest.raises(UnknownNameError, match=name):
        ExperimentRegressor(network, **{name: 1})
    estimator = ExperimentRegressor(ridge, model=Ridge())
    with pytest.raises(ValueError, match=name):
        estimator.set_params(build=network, **{name: 1})
    assert estimator.build is ridge


def test_an_unknown_path_is_refused_by_fit_with_the_closest():
    x, y = table()
    with pytest.raises(UnknownNameError, match="graph__optimizer__lr"):
        ExperimentRegressor(network, graph__optimizer__lrr=1).fit(x, y)


def returns_nothing(rows):
    pass


def elsewhere(rows):
    return mml.Experiment("elsewhere")


def seeded(rows):
    experiment = network(rows)
    return mml.Experiment("again", ctx=experiment.ctx, seed=3)


def takes_verbose(rows, *, verbose=False):
    return network(rows)


def takes_score(rows, *, score="r2"):
    return network(rows)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"build": 3}, "build must be a function"),
        ({"build": returns_nothing}, "must return an Experiment, got None"),
        ({"build": elsewhere}, "from_active_context"),
        ({"build": seeded, "random_state": 0}, "omit one of them"),
        ({"build": takes_verbose}, "rename them"),
        ({"build": takes_score}, "rename them"),
        ({"validation_fraction": 1.5}, "between 0 and 1"),
        ({"validation_fraction": True}, "between 0 and 1"),
        ({"random_state": -1}, "random_state must be at least 0"),
    ],
)
def test_bad_parameters_are_refused_by_fit(params, message):
    x, y = table()
    estimator = ExperimentRegressor(**{"build": network, **params})
    with pytest.raises(ConfigError, match=message):
        estimator.fit(x, y)
    with pytest.raises(NotFittedError):
        estimator.predict(x)


def test_a_fit_that_fails_leaves_no_older_one():
    x, y = table()
    estimator = ExperimentRegressor(network, n_epochs=1, random_state=0).fit(x, y)
    with pytest.raises(ValueError, match="NaN"):
        estimator.fit(np.full_like(x, np.nan), y)
    with pytest.raises(NotFittedError):
        estimator.predict(x)


def two_heads(rows):
    """One node predicts the target, and one nothing that y is."""
    trunk = mml.ModelNode("trunk", torch.nn.Linear(6, 4), rows)
    heads = [mml.ModelNode("net", torch.nn.Linear(4, 1), trunk)]
    heads.append(mml.ModelNode("aux", torch.nn.Linear(4, 3), trunk))
    mml.ModelGraph([trunk, *heads], mml.Optimizer("adam"))
    return builds.planned(rows, "mse", n_epochs=1)


def test_the_node_that_predicts():
    x, y = table()
    several = ExperimentRegressor(two_heads, random_state=0).fit(x, y)
    with pytest.raises(ConfigError, match="several nodes"):
        several.predict(x)
    assert clone(several).set_params(node="net").fit(x, y).predict(x).shape == y.shape
    with pytest.raises(ConfigError, match="for a target of shape"):
        clone(several).set_params(node="aux").fit(x, y).predict(x)
    with pytest.raises(UnknownNameError, match="nett"):
        clone(several).set_params(node="nett").fit(x, y)


@pytest.mark.parametrize(
    ("y", "params", "message"),
    [
        (np.zeros(80, int), {}, "one class"),
        (np.array(["a", None] * 40, dtype=object), {}, "40 missing classes"),
        (np.arange(80) / 7, {}, "continuous"),
        (np.eye(80, dtype=int), {}, "1d array"),
        (np.arange(80) % 2, {"outputs": "logit"}, "outputs must be one of"),
        (np.arange(80) % 2, {"class_weight": {"b": 2.0}}, "not in class_weight"),
    ],
)
def test_classes_that_cannot_be_used_are_refused(y, params, message):
    with pytest.raises(ValueError, match=message):
        ExperimentClassifier(n_epochs=1, **params).fit(table()[0], y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[[]], "one column"),
        (lambda f: f[:0], "at least one row|0 sample"),
        (lambda f: f.assign(a=np.inf), "infinity"),
        (lambda f: f.assign(a=f["a"].astype("Float64").where(f.index != 3)), "a contains NaN"),
        (lambda f: f.assign(c=["x", None] * 40), "'c' has 40 missing"),
        (lambda f: f.assign(c=pd.Timestamp("2026-11-30")), "the kind 'time'"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(change, message):
    x, y = table(d=2)
    frame = change(pd.DataFrame(x, columns=list("ab")))
    with pytest.raises(ValueError, match=message):
        ExperimentRegressor(n_epochs=1).fit(frame, y[: len(frame)])


# -------------------------------------------------------------------------------------- frames


def cells(n=120):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "petal length (cm)": rng.normal(size=n),
            "maker": rng.choice(["a", "b", "c"], n),
            "site": pd.Categorical(rng.choice([31, 7_000_001], n)),
            "count": rng.integers(0, 9, n),
            "wet": rng.random(n) < 0.5,
        }
    )
    y = frame["petal length (cm)"] + 5 * (frame["maker"] == "a") - 2 * frame["wet"]
    return frame, y.rename("life")


def test_frames_of_numbers_text_and_categories_by_name():
    frame, y = cells()
    fitted = ExperimentRegressor(n_epochs=60, random_state=0).fit(frame, y)
    assert fitted.feature_names_in_.tolist() == list(frame.columns)
    assert fitted.score(frame, y) > 0.95
    unknown = frame.assign(maker="z", count=frame["count"] + 0.5)
    assert np.isfinite(fitted.predict(unknown)).all()
    with pytest.raises(ValueError, match="in the same order"):
        fitted.predict(frame[frame.columns[::-1]])
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(frame.rename(columns={"wet": "dry"}))


def test_frames_and_arrays_of_numbers_give_equal_predictions():
    x, y = table()
    frame = pd.DataFrame(x, columns=[f"f {i}" for i in range(6)])
    by_name = ExperimentRegressor(network, random_state=0).fit(frame, y)
    by_place = ExperimentRegressor(network, random_state=0).fit(x, y)
    assert np.array_equal(by_name.predict(frame), by_place.predict(x))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        assert np.array_equal(by_name.predict(x), by_place.predict(x))
    with pytest.warns(UserWarning, match="fitted without feature names"):
        assert np.array_equal(by_place.predict(frame), by_place.predict(x))
    numbered = pd.DataFrame(x)
    fitted = ExperimentRegressor(network, random_state=0).fit(numbered, y)
    assert np.array_equal(fitted.predict(numbered[[5, 4, 3, 2, 1, 0]]), by_place.predict(x))


def test_polars_frames():
    polars = pytest.importorskip("polars")
    x, y = table()
    frame = polars.DataFrame({f"f{i}": x[:, i] for i in range(6)})
    fitted = ExperimentRegressor(network, random_state=0).fit(frame, polars.Series(y))
    assert np.allclose(fitted.predict(frame), by_hand(x, y, seed=0), atol=1e-5)


@pytest.mark.parametrize("names", [["y", "a"], ["a b", "a.b"], ["groups", "a"]])
def test_names_that_meet_others_are_refused(names):
    x, y = table(d=2)
    with pytest.raises(DataError, match="rename these columns"):
        ExperimentRegressor(network).fit(pd.DataFrame(x, columns=names), y)


def test_missing_values_are_refused_unless_allowed():
    x, y = table()
    holes = np.where(np.arange(x.size).reshape(x.shape) % 17 == 0, np.nan, x)
    frame = pd.DataFrame(holes, columns=list("abcdef"))
    for rows in (holes, frame):
        with pytest.raises(ValueError, match="NaN"):
            ExperimentRegressor(network).fit(rows, y)
    trees = pytest.importorskip("sklearn.ensemble").HistGradientBoostingRegressor(max_iter=5)
    with pytest.warns(AuditWarning, match="not_finite"):
        fitted = ExperimentRegressor(ridge, model=trees, allow_nan=True).fit(holes, y)
    assert np.allclose(fitted.predict(holes), clone(trees).fit(holes, y).predict(holes))


def test_a_row_without_scores_has_no_class():
    frame, y = cells()
    fitted = ExperimentClassifier(n_epochs=1, random_state=0, nodes__net__handle_unknown="nan")
    fitted.fit(frame, y > 1)
    frame.loc[3, "maker"] = "z"
    with pytest.raises(DataError, match=r"no class for 1 rows, the first \[3\]"):
        fitted.predict(frame)
    assert np.flatnonzero(np.isnan(fitted.predict_proba(frame)).any(axis=1)).tolist() == [3]


# ------------------------------------------------------------------- weights, groups, validation


def test_a_weight_of_zero_leaves_a_row_out_of_an_estimator():
    x, y = table()
    w = np.ones(80)
    w[:40] = 0.0
    fitted = ExperimentRegressor(ridge).fit(x, y, sample_weight=w)
    assert np.allclose(fitted.predict(x), Ridge().fit(x[40:], y[40:]).predict(x), atol=1e-10)


def test_weights_reach_the_loss_of_a_network():
    x, y = table()
    w = np.where(np.arange(80) < 40, 1.0, 0.0)
    options = {"n_epochs": 20, "random_state": 0}
    weighted = ExperimentRegressor(network, **options).fit(x, y, sample_weight=w)
    spoiled = np.where(w > 0, y, 1e6)
    same = ExperimentRegressor(network, **options).fit(x, spoiled, sample_weight=w)
    assert np.allclose(weighted.predict(x), same.predict(x), atol=1e-4)
    applied = weighted.experiment_.execution_plan.flatten()[0].losses[0]
    assert applied.sample_weight == "sample_weight"


def test_class_weights_are_sample_weights():
    x, y = table()
    labels = np.where(y > 13, "rare", "usual")
    w = np.random.default_rng(1).random(80) + 0.5
    share = np.where(
        labels == "rare", 80 / 2 / (labels == "rare").sum(), 80 / 2 / (labels == "usual").sum()
    )
    options = {"n_epochs": 5, "random_state": 0}
    balanced = ExperimentClassifier(class_weight="balanced", **options).fit(x, labels, w)
    by_rows = ExperimentClassifier(**options).fit(x, labels, w * share)
    plain = ExperimentClassifier(**options).fit(x, labels, w)
    assert np.allclose(balanced.predict_proba(x), by_rows.predict_proba(x), atol=1e-6)
    assert not np.allclose(balanced.predict_proba(x), plain.predict_proba(x), atol=1e-3)


def test_classes_are_not_weighted_twice():
    x, y = table()
    twice = ExperimentClassifier(
        class_weight="balanced", losses__cross_entropy_net__class_weight="balanced"
    )
    with pytest.raises(ConfigError, match="weighted twice"):
        twice.fit(x, y > 12)
    once = twice.set_params(class_weight=None, n_epochs=2, random_state=0).fit(x, y > 12)
    assert once.experiment_.execution_plan.flatten()[0].losses[0].class_weight == "balanced"


def no_losses(rows):
    experiment = network(rows)
    phase = experiment.execution_plan.flatten()[0]
    phase.losses[0].sample_weight = "age"
    return experiment


@pytest.mark.parametrize(
    ("build", "weights", "message"),
    [
        (logistic, np.ones(80), "no phase of the experiment has a loss"),
        (tabular_mlp, -np.ones(80), "at least 0"),
        (tabular_mlp, np.zeros(80), "all zero"),
        (tabular_mlp, np.ones((80, 2)), "shape"),
        (tabular_mlp, np.ones(79), "inconsistent numbers of samples"),
        (no_losses, np.ones(80), "weighted by"),
    ],
)
def test_weights_are_used_or_refused(build, weights, message):
    x, y = table()
    kind = ExperimentRegressor if build is no_losses else ExperimentClassifier
    with pytest.raises(ValueError, match=message):
        kind(build).fit(x, y if build is no_losses else y > 10, sample_weight=weights)


def test_groups_stay_together_when_rows_are_held_out():
    x, y = table()
    groups = np.repeat(np.arange(16), 5)
    fitted = ExperimentRegressor(n_epochs=3, validation_fraction=0.25, random_state=0)
    fitted.fit(x, y, groups=groups)
    (rows,) = fitted.experiment_.ctx.available_featuresets.values()
    sides = {name: set(view.get_tags("numpy").ravel()) for name, view in rows.splits.items()}
    assert not sides["train"] & sides["val"]
    assert len(rows.get_split("val")) == 20


def test_held_out_rows_stop_training_early_and_have_all_classes():
    x, y = table(n=200)
    labels = np.digitize(y, np.quantile(y, [0.3, 0.9]))
    fitted = ExperimentClassifier(
        n_epochs=200, patience=2, validation_fraction=0.2, random_state=0
    ).fit(x, labels)
    (rows,) = fitted.experiment_.ctx.available_featuresets.values()
    held_out = rows.get_split("val").get_targets("numpy").ravel()
    assert np.bincount(held_out).tolist() == pytest.approx(np.bincount(labels) / 5, abs=1)
    stopping = fitted.experiment_.execution_plan.flatten()[0].callbacks[1]
    assert stopping.stopped_epoch is not None


def test_a_class_that_is_held_out_entirely_is_refused():
    x, y = table()
    labels = np.where(np.arange(80) < 5, "rare", np.where(y > 10, "a", "b"))
    groups = np.where(labels == "rare", 99, np.arange(80))
    estimator = ExperimentClassifier(n_epochs=1, validation_fraction=0.3)
    refused = 0
    for seed in range(8):
        try:
            estimator.set_params(random_state=seed).fit(x, labels, groups=groups)
        except DataError as error:
            assert "['rare'] are held out" in str(error)  # noqa: PT017 - some seeds fit
            refused += 1
    assert 0 < refused < 8


# ------------------------------------------------------------------------------------- pickles


def through_joblib(value):
    file = io.BytesIO()
    joblib.dump(value, file)
    file.seek(0)
    return joblib.load(file)


WAYS = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "joblib": through_joblib,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
def test_fitted_estimators_pass_through_pickles(way):
    x, y = table()
    labels = np.where(y > 10, "high", "low")
    network_of_own = ExperimentRegressor(network, random_state=0, width=4).fit(x, y)
    classifier = ExperimentClassifier(n_epochs=2, random_state=0).fit(pd.DataFrame(x), labels)
    new, new_classifier = WAYS[way](network_of_own), WAYS[way](classifier)
    assert np.array_equal(new.predict(x), network_of_own.predict(x))
    assert np.array_equal(
        new_classifier.predict_proba(pd.DataFrame(x)), classifier.predict_proba(pd.DataFrame(x))
    )
    assert new.get_params() == network_of_own.get_params()
    assert np.array_equal(new.fit(x, y).predict(x), network_of_own.predict(x))


def test_what_a_file_cannot_hold_is_refused():
    x, y = table()
    fitted = ExperimentRegressor(network, n_epochs=1, random_state=0).fit(x, y)
    fitted.experiment_.execution_plan.flatten()[0].losses[0].loss.loss = lambda out, y: out - y
    with pytest.raises(mml.errors.MMLError, match="cannot be found again by name"):
        pickle.dumps(fitted)


def test_a_pickle_holds_no_rows():
    x, y = table(n=2000)
    fitted = ExperimentRegressor(network, n_epochs=1, random_state=0).fit(x, y)
    data = pickle.dumps(fitted)
    (rows,) = pickle.loads(data).experiment_.ctx.available_featuresets.values()
    assert not rows.has_rows
    assert len(data) < x.nbytes / 2


def test_loading_leaves_the_active_context_alone(fresh_context):
    x, y = table()
    data = pickle.dumps(ExperimentRegressor(network, n_epochs=1, random_state=0).fit(x, y))
    before = dict(fresh_context.available_nodes)
    pickle.loads(data)
    assert mml.ExperimentContext.get_active() is fresh_context
    assert fresh_context.available_nodes == before
