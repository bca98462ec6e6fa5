"""Learning curves, held against scikit-learn and rows by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import model_selection
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import modularml as mm
from modularml.errors import ConfigError, ExecutionError, UnknownNameError
from modularml.strategies import FoldFailedWarning

N = 60
RNG = np.random.default_rng(4)
X = RNG.normal(size=(N, 3))
Y = X @ [0.5, 0, 1] + RNG.normal(size=N)
CELL = np.repeat(np.arange(12), 5)
KIND = np.array(["a", "b", "b"] * 20)
FOLDS = model_selection.KFold(3)
QUIET = {"show_fold_progress": False}
pytest.importorskip("matplotlib")


def folds(y=Y, model=None, splitter=None, **binding):
    mm.Experiment("e", audit="off")
    fs = mm.FeatureSet.from_dict(
        "fs", {"x": X, "y": y, "cell": CELL}, "x", "y", "cell",
        unit={"y": "V"} if y is Y else None,
    )  # fmt: skip
    fs.add_split(fs.take(np.arange(N), label="train"))
    fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    mm.ModelGraph([mm.ModelNode("ridge", model or Ridge(), fs)])
    phase = mm.FitPhase.from_split("fit", split="train")
    bound = mm.CVBinding(fs, ["train"], val_split_name="val", **binding)
    return mm.CrossValidation(bindings=bound, phase=phase, splitter=splitter, n_folds=3)


@pytest.mark.parametrize("metric", ["r2", "mae"])
def test_equals_that_of_sklearn(metric):
    cv = folds(splitter=FOLDS)
    shares = [0.2, 0.5, 1.0]
    found = mm.learning_curve(cv, metric, shares=shares, seed=5, **QUIET)
    sizes, train, test = model_selection.learning_curve(
        make_pipeline(StandardScaler(), Ridge()), X, Y, cv=FOLDS, train_sizes=shares,
        shuffle=True, random_state=5,
        scoring={"mae": "neg_mean_absolute_error"}.get(metric, metric),
    )  # fmt: skip
    sign = -1 if metric == "mae" else 1
    np.testing.assert_array_equal(found.sizes, sizes)
    np.testing.assert_allclose(found.train_scores, sign * train)
    np.testing.assert_allclose(found.test_scores, sign * test)
    axes = found.plot(title="t").axes[0]
    np.testing.assert_allclose(axes.lines[1].get_data(), [sizes, sign * test.mean(axis=1)])
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "training rows", {"mae": "mae (V)"}.get(metric, metric),
    )  # fmt: skip
    table = found.to_pandas()
    assert table["n_rows"].tolist() == np.repeat(sizes, 3).tolist()
    np.testing.assert_array_equal(table["held_out"], found.test_scores.ravel())
    assert not cv._runs.done, "the cross-validation itself did not run"


def test_groups_are_added_as_a_whole():
    cv = folds(group_by="cell")
    seen = []

    class Spy(Ridge):
        def fit(self, x, y, **options):
            seen.append(y)
            return super().fit(x, y, **options)

    cv = folds(group_by="cell", model=Spy())
    found = mm.learning_curve(cv, "r2", shares=[0.25, 0.5, 1.0], **QUIET)
    assert found.counted == "training groups (cell)"
    assert found.sizes.tolist() == [2, 4, 8]
    assert found.n_rows.tolist() == [[10] * 3, [20] * 3, [40] * 3]
    place = {value: i for i, value in enumerate(Y.tolist())}
    trained = [{place[v] for v in np.ravel(y).tolist()} for y in seen]
    assert len(trained) == 9
    for smaller, larger in zip(trained[:3], trained[3:6], strict=True):
        assert smaller < larger
    for rows in trained:
        for cell in {CELL[i] for i in rows}:
            assert rows >= set(np.flatnonzero(cell == CELL))


def test_shares_keep_the_proportions_of_strata():
    model = mm.ScikitModelWrapper(LogisticRegression(), output_method="predict_proba")
    found = mm.learning_curve(
        folds(KIND, model, stratify_by="y"), "accuracy", shares=[0.15, 1.0], seed=1, **QUIET
    )
    assert np.isfinite(found.test_scores).all(), "small shares hold both classes"
    assert found.sizes.tolist() == [6, 40]
    assert found.plot().axes[0].get_ylabel() == "accuracy"


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ([0.5], "two or more numbers"),
        ([0.0, 1.0], "above 0 and up to 1"),
        ([0.5, 2], "above 0 and up to 1"),
        ([1.0, 0.5], "must be ascending"),
        ([0.5, 0.5], "and each once"),
        (["half", 1.0], "two or more numbers"),
        ([0.001, 1.0], "share 0.001 of the 40 training groups or rows of fold_0 is none"),
    ],
)
def test_shares_that_are_refused(shares, words):
    with pytest.raises(ConfigError, match=words):
        mm.learning_curve(folds(), "r2", shares=shares, **QUIET)


def test_what_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'rmse'"):
        mm.learning_curve(folds(), "rmsee", **QUIET)
    with pytest.raises(ConfigError, match="pass per= too"):
        mm.learning_curve(folds(), "r2", reduce="max", **QUIET)
    with pytest.raises(ConfigError, match="cv must be a CrossValidation"):
        mm.learning_curve("cv", "r2")
    one_class = np.array(["a"] * 20 + ["b"] * 40)
    cv = folds(one_class, LogisticRegression(), splitter=FOLDS)
    with (
        pytest.warns(FoldFailedWarning),
        pytest.raises(ExecutionError, match="learning curve"),
    ):
        mm.learning_curve(cv, "accuracy", shares=[0.05, 1.0], **QUIET)
