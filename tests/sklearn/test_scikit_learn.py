"""Experiments in scikit-learn's own tools: its checks, searches, pipelines and displays."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibrationDisplay
from sklearn.compose import TransformedTargetRegressor
from sklearn.inspection import PartialDependenceDisplay, partial_dependence, permutation_importance
from sklearn.linear_model import Ridge
from sklearn.metrics import ConfusionMatrixDisplay, PredictionErrorDisplay, RocCurveDisplay
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LearningCurveDisplay,
    cross_val_predict,
    cross_validate,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from modularml.sklearn import ExperimentClassifier, ExperimentRegressor, tabular_mlp
from tests.sklearn.builds import network, ridge, table, weighted_logistic

EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": (
        "a row that is repeated is in other batches, and counts twice for scalers"
    ),
    "check_methods_subset_invariance": (
        "networks compute in float32, rounded differently in batches of other sizes"
    ),
}
"""The checks that a network cannot pass, and why; the guide lists them too."""


def quick(rows):
    return tabular_mlp(rows, n_epochs=25, batch_size=64, lr=0.02)


def test_the_guide_lists_the_checks_that_cannot_pass():
    guide = Path(__file__).parents[2] / "notebooks" / "30_scikit_learn.ipynb"
    assert set(re.findall(r"`(check_\w+_\w+)`", guide.read_text("utf-8"))) == set(EXPECTED)


def failures(estimator, expected=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(
            estimator, on_fail=None, on_skip=None, expected_failed_checks=expected
        )
    assert len(results) > 40
    return {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ExperimentRegressor, ExperimentClassifier])
def test_check_estimator_of_a_network(kind):
    assert failures(kind(quick), EXPECTED) == {}


@pytest.mark.parametrize(
    "estimator", [ExperimentRegressor(ridge), ExperimentClassifier(weighted_logistic)]
)
def test_check_estimator_of_an_estimator_in_the_graph_has_no_exceptions(estimator):
    assert failures(estimator) == {}


# ------------------------------------------------------------------------------------ searches


def test_cross_validation_equals_a_loop_over_its_folds():
    x, y = table()
    estimator = ExperimentRegressor(network, n_epochs=5, random_state=0)
    folds = KFold(3, shuffle=True, random_state=0)
    scores = cross_validate(estimator, x, y, cv=folds)["test_score"]
    predicted = cross_val_predict(estimator, x, y, cv=folds)
    for (train, test), score in zip(folds.split(x), scores, strict=True):
        alone = clone(estimator).fit(x[train], y[train])
        assert score == alone.score(x[test], y[test])
        assert np.array_equal(predicted[test], alone.predict(x[test]))


def test_grid_search_over_arguments_and_paths():
    x, y = table()
    grid = {"net__width": [2, 8], "net__graph__optimizer__lr": [0.001, 0.1]}
    pipeline = Pipeline([("scale", StandardScaler()), ("net", ExperimentRegressor(network))])
    pipeline.set_params(net__n_epochs=15, net__random_state=0)
    search = GridSearchCV(pipeline, grid, cv=2).fit(x, y)
    assert search.best_params_["net__graph__optimizer__lr"] == 0.1
    best = clone(pipeline).set_params(**search.best_params_).fit(x, y)
    assert np.array_equal(search.predict(x), best.predict(x))


@pytest.mark.slow
def test_searches_and_fitted_estimators_of_two_processes():
    x, y = table()
    grid = {"width": [2, 8], "graph__optimizer__lr": [0.001, 0.1]}
    estimator = ExperimentRegressor(network, n_epochs=3, random_state=0)
    here, there = (GridSearchCV(estimator, grid, cv=2, n_jobs=n).fit(x, y) for n in (None, 2))
    assert np.array_equal(here.cv_results_["mean_test_score"], there.cv_results_["mean_test_score"])
    options = {"cv": 2, "return_estimator": True}
    a, b = (cross_validate(estimator, x, y, n_jobs=n, **options)["estimator"] for n in (None, 2))
    for mine, returned in zip(a, b, strict=True):
        assert np.array_equal(mine.predict(x), returned.predict(x))
    options = {"n_repeats": 2, "random_state": 0}
    a, b = (permutation_importance(here, x, y, n_jobs=n, **options) for n in (None, 2))
    assert np.allclose(a.importances, b.importances, atol=1e-5)


SCRIPT = """
import numpy as np, torch
from sklearn.inspection import permutation_importance
from sklearn.model_selection import cross_validate
import modularml as mml
from modularml.sklearn import ExperimentRegressor

class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(6, width), torch.nn.Linear(width, 1))

    def forward(self, x):
        return self.layers(x)

def own_loss(outputs, targets):
    return (outputs - targets) ** 2

def build(rows, *, width=4):
    model = mml.TorchModelWrapper(model_class=Net, model_kwargs={"width": width})
    net = mml.ModelNode("net", model, rows)
    mml.ModelGraph([net], mml.Optimizer("adam"))
    loss = mml.AppliedLoss(mml.Loss(own_loss), on="net", inputs=["outputs", "targets"])
    experiment = mml.Experiment.from_active_context("script")
    sampler = mml.SimpleSampler(batch_size=16)
    phase = mml.TrainPhase.from_split("t", split="train", sampler=sampler, losses=[loss])
    experiment.execution_plan.add_phase(phase)
    return experiment

x = np.random.default_rng(0).normal(size=(40, 6))
estimator = ExperimentRegressor(build, random_state=0)
options = {"cv": 2, "return_estimator": True}
a, b = (cross_validate(estimator, x, x[:, 0], n_jobs=n, **options) for n in (None, 2))
for mine, returned in zip(a["estimator"], b["estimator"]):
    assert np.array_equal(mine.predict(x), returned.predict(x))
there = permutation_importance(a["estimator"][0], x, x[:, 0], n_repeats=1, n_jobs=2)
print("done", there.importances.shape)
"""


@pytest.mark.slow
def test_functions_and_classes_of_a_script_in_two_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout == "done (6, 1)\n", done.stderr[-2000:]


def test_importance_equals_that_of_the_estimator_alone():
    x, y = table()
    fitted = ExperimentRegressor(ridge).fit(x, y)
    options = {"n_repeats": 3, "random_state": 0}
    found = permutation_importance(fitted, x, y, **options).importances
    expected = permutation_importance(Ridge().fit(x, y), x, y, **options).importances
    assert np.allclose(found, expected, atol=1e-10)


def test_transformed_targets():
    x, y = table()
    fitted = TransformedTargetRegressor(ExperimentRegressor(ridge), transformer=StandardScaler())
    assert np.allclose(fitted.fit(x, y).predict(x), Ridge().fit(x, y).predict(x), atol=1e-10)


# ------------------------------------------------------------------------- frames and metadata


def test_set_output_gives_frames_within_a_pipeline():
    x, y = table()
    frame = pd.DataFrame(x, columns=list("abcdef"))
    pipeline = make_pipeline(StandardScaler(), ExperimentRegressor(network, random_state=0))
    pipeline.set_output(transform="pandas").fit(frame, y)
    assert pipeline[-1].feature_names_in_.tolist() == list("abcdef")
    (rows,) = pipeline[-1].experiment_.ctx.available_featuresets.values()
    assert "features.a.raw" in rows.column_names


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def test_groups_and_weights_are_routed(routing):
    x, y = table()
    groups = np.repeat(np.arange(8), 10)
    w = np.random.default_rng(0).random(80)
    estimator = ExperimentRegressor(ridge, validation_fraction=0.3, random_state=0)
    estimator.set_fit_request(sample_weight=True, groups=True).set_score_request(sample_weight=True)
    results = cross_validate(
        estimator,
        x,
        y,
        cv=GroupKFold(2),
        params={"groups": groups, "sample_weight": w},
        return_estimator=True,
    )
    for fitted, (train, test), score in zip(
        results["estimator"], GroupKFold(2).split(x, y, groups), results["test_score"], strict=True
    ):
        alone = clone(estimator).fit(
            x[train], y[train], sample_weight=w[train], groups=groups[train]
        )
        assert np.array_equal(fitted.predict(x), alone.predict(x))
        assert score == alone.score(x[test], y[test], sample_weight=w[test])
        (rows,) = fitted.experiment_.ctx.available_featuresets.values()
        sides = [set(view.get_tags("dict_numpy")["groups"]) for view in rows.splits.values()]
        assert not sides[0] & sides[1]


# ------------------------------------------------------------------------------------ displays


@pytest.fixture
def axes():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    _, axes = plt.subplots()
    yield axes
    plt.close("all")


def test_partial_dependence_of_a_frame_with_integers(axes):
    x, y = table()
    frame = pd.DataFrame(x, columns=list("abcdef")).assign(b=lambda f: f["b"].round().astype(int))
    fitted = ExperimentRegressor(n_epochs=5, random_state=0).fit(frame, y)
    found = partial_dependence(fitted, frame, ["a"], grid_resolution=5)
    by_hand = [fitted.predict(frame.assign(a=v)).mean() for v in found["grid_values"][0]]
    assert np.allclose(found["average"][0], by_hand)
    display = PartialDependenceDisplay.from_estimator(
        fitted, frame, ["a"], grid_resolution=5, ax=axes
    )
    assert np.allclose(display.pd_results[0]["average"][0], by_hand)


def test_displays_of_a_classifier(axes):
    x, y = table()
    labels = np.where(y > 10, "high", "low")
    fitted = ExperimentClassifier(n_epochs=5, random_state=0).fit(x, labels)
    low = fitted.predict_proba(x)[:, 1]
    roc = RocCurveDisplay.from_estimator(fitted, x, labels, ax=axes)
    assert roc.roc_auc == sklearn.metrics.roc_auc_score(labels == "low", low)
    numbered = clone(fitted).fit(x, labels == "low")  # the display needs classes 0 and 1
    calibration = CalibrationDisplay.from_estimator(numbered, x, labels == "low", ax=axes)
    assert np.array_equal(calibration.y_prob, low)
    confusion = ConfusionMatrixDisplay.from_estimator(fitted, x, labels, ax=axes)
    assert np.trace(confusion.confusion_matrix) == (fitted.predict(x) == labels).sum()


def test_displays_of_a_regressor(axes):
    x, y = table()
    estimator = ExperimentRegressor(network, n_epochs=3, random_state=0)
    curve = LearningCurveDisplay.from_estimator(
        estimator, x, y, train_sizes=[0.5, 1.0], cv=2, ax=axes
    )
    assert curve.test_scores.shape == (2, 2)
    fitted = estimator.fit(x, y)
    errors = PredictionErrorDisplay.from_estimator(fitted, x, y, ax=axes)
    assert np.array_equal(errors.y_pred, fitted.predict(x))
