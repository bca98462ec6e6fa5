"""Permutation tests, held against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import model_selection
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import modularml as mm
from modularml.errors import ConfigError

N = 40
RNG = np.random.default_rng(4)
X = RNG.normal(size=(N, 3))
Y = X @ [0.5, 0, 1] + RNG.normal(size=N)
CELL = RNG.integers(0, 5, N)
FOLDS = model_selection.KFold(4)


def folds(y=Y, **kwargs):
    own = mm.Experiment("e", audit="off")
    columns = {"x": X, "y": y, "cell": CELL}
    fs = mm.FeatureSet.from_dict("fs", columns, "x", "y", "cell", unit={"y": "V"})
    fs.add_split(fs.take(np.arange(N), label="train"))
    fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    mm.ModelGraph([mm.ModelNode("ridge", Ridge(), fs)])
    binding = mm.CVBinding(fs, ["train"], val_split_name="val")
    phase = mm.FitPhase.from_split("fit", split="train")
    cv = mm.CrossValidation(bindings=binding, phase=phase, splitter=FOLDS, n_folds=4, **kwargs)
    return own, fs, cv


@pytest.mark.parametrize("metric", ["r2", "mae"])
@pytest.mark.parametrize("groups", [None, "cell"])
def test_equals_that_of_sklearn(metric, groups):
    _, fs, cv = folds()
    before = fs.collection
    found = mm.permutation_test_score(cv, metric, n_permutations=6, groups=groups, seed=3)
    score, scores, p = model_selection.permutation_test_score(
        make_pipeline(StandardScaler(), Ridge()), X, Y, cv=list(FOLDS.split(X)), n_permutations=6,
        groups=None if groups is None else CELL, random_state=3,
        scoring={"mae": "neg_mean_absolute_error"}.get(metric, metric),
    )  # fmt: skip
    sign = -1 if metric == "mae" else 1
    np.testing.assert_allclose(found.score, sign * score)
    np.testing.assert_allclose(found.permutation_scores, sign * scores)
    assert found.p_value == p
    assert fs.collection is before
    assert np.array_equal(fs.get_targets()["y"], Y)


def test_rows_outside_the_folds_keep_their_targets():
    from modularml.strategies.comparison.reruns import _with_rows_of_targets

    _, fs, _ = folds()
    rows = np.r_[np.arange(10)[::-1], np.arange(10, N)]
    made = _with_rows_of_targets(fs.collection, rows)
    assert np.array_equal(made.numpy("targets.y.raw"), Y[rows])
    assert np.array_equal(made.numpy("features.x.raw"), X)
    assert (made.ids == fs.collection.ids).all()
    assert made.schema["targets.y.raw"].unit == "V"


def test_bad_input():
    _, _, cv = folds()
    with pytest.raises(ConfigError, match="n_permutations must be at least 1"):
        mm.permutation_test_score(cv, "r2", n_permutations=0)
    with pytest.raises(ConfigError, match="cv must be a CrossValidation"):
        mm.permutation_test_score(Ridge(), "r2")

    def own(true, out):
        return float(np.abs(true - out).mean())

    with pytest.raises(ConfigError, match="pass greater_is_better="):
        mm.permutation_test_score(cv, own)
    found = mm.permutation_test_score(cv, own, greater_is_better=False, n_permutations=1)
    assert found.p_value in (0.5, 1.0)
    with pytest.raises(mm.errors.UnknownNameError):
        mm.permutation_test_score(cv, "r2", groups="cel")
