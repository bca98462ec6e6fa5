"""Permutation importance, held against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.inspection import permutation_importance
from sklearn.linear_model import Ridge
from sklearn.metrics import make_scorer, mean_absolute_error

import modularml as mm
from modularml.errors import ConfigError, DataError

N = 50
RNG = np.random.default_rng(8)
GENES = RNG.normal(size=(N, 4))
AGE = RNG.normal(60, 9, N)
Y = GENES @ [3.0, 0, 1, 0] + AGE / 10 + RNG.normal(0, 0.1, N)
NAMES = ["brca1", "tp53", "egfr", "kras"]


@pytest.fixture
def own():
    own = mm.Experiment("e", audit="off")
    columns = {"genes": GENES, "age": AGE, "y": Y, "unread": AGE}
    fs = mm.FeatureSet.from_dict(
        "fs", columns, ["genes", "age", "unread"], "y", element_names={"genes": NAMES},
        unit={"y": "mg"},
    )  # fmt: skip
    fs.add_split(fs.take(np.arange(30), label="train"))
    fs.add_split(fs.take(np.arange(30, N), label="test"))
    fs.fit_transform("StandardScaler", domain="features", keys="genes", fit_to_split="train")
    flat = mm.FlattenNode("flat", fs.reference(features=["genes", "age"]))
    mm.ModelGraph([flat, mm.ModelNode("ridge", Ridge(), flat)])
    own.run_phase(mm.FitPhase.from_split("fit", split="train"))
    return own


@pytest.mark.parametrize("metric", ["r2", "mae"])
def test_elements_equal_sklearn(own, metric):
    found = own.importances("test", metric, by="element", n_repeats=4, seed=7)
    x = np.column_stack([GENES, AGE])
    mean, scale = GENES[:30].mean(axis=0), GENES[:30].std(axis=0)

    class Scaled(Ridge):
        def predict(self, values):
            return super().predict(np.column_stack([(values[:, :4] - mean) / scale, values[:, 4]]))

    model = Scaled().fit(np.column_stack([(GENES[:30] - mean) / scale, AGE[:30]]), Y[:30])
    scoring = make_scorer(mean_absolute_error, greater_is_better=False) if metric == "mae" else "r2"
    expected = permutation_importance(
        model, x[30:], Y[30:], n_repeats=4, random_state=7, scoring=scoring
    )
    assert found["column"].tolist() == ["genes"] * 4 + ["age"]
    assert found["element"].tolist()[:4] == NAMES
    np.testing.assert_allclose(np.stack(found["values"]), expected.importances, atol=1e-10)
    np.testing.assert_allclose(found["mean"], expected.importances_mean, atol=1e-10)
    np.testing.assert_allclose(found["std"], expected.importances_std, atol=1e-10)
    assert found.attrs["score"] == own.evaluate("test", metrics=metric)[metric][0]


def test_columns_as_a_whole(own):
    found = own.importances("test", "r2", n_repeats=3).set_index("column")
    assert found.index.tolist() == ["genes", "age"]
    assert found["mean"]["genes"] > found["mean"]["age"] > 0
    some = own.importances("test", "r2", columns="age", n_repeats=3)
    np.testing.assert_array_equal(some["values"][0], found["values"]["age"])


def test_groups_of_columns_are_permuted_together(own):
    found = own.importances(
        "test", "mae", columns={"all": ["genes", "age"], "old": ["age"]}, n_repeats=3, seed=2
    )
    assert found["column"].tolist() == ["all", "old"]
    single = own.importances("test", "mae", columns="age", n_repeats=3, seed=2)
    np.testing.assert_array_equal(found["values"][1], single["values"][0])
    random = np.random.RandomState(2)
    shuffle = np.random.RandomState(random.randint(np.iinfo(np.int32).max + 1))
    order, rows = np.arange(20), np.arange(30, N)
    before = mean_absolute_error(Y[rows], own.predict(_rows(rows)).ravel())
    for drop in found["values"][0]:  # rows are shuffled on from one repeat to the next
        shuffle.shuffle(order)
        rows = rows[order]
        after = mean_absolute_error(Y[30:], own.predict(_rows(rows)).ravel())
        assert drop == pytest.approx(after - before)


def _rows(rows):
    return {"genes": GENES[rows], "age": AGE[rows], "unread": AGE[rows]}


def test_a_plot_is_of_the_largest(own, tmp_path):
    found = own.importances("test", "mae", by="element", n_repeats=3)
    figure = found.plot(n_largest=3, path=tmp_path / "bars.png")
    axes, largest = figure.axes[0], found.sort_values("mean", ascending=False)[:3]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], largest["mean"])
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names[0] == f"{largest['column'].iloc[0]}[{largest['element'].iloc[0]}]"
    assert axes.get_xlabel() == "increase of mae (mg) when permuted\n3 largest of 5"
    whole = own.importances("test", "r2", n_repeats=2).plot(title="t").axes[0]
    assert whole.get_xlabel() == "decrease of r2 when permuted"
    assert [text.get_text() for text in whole.get_yticklabels()] == ["genes", "age"]
    with pytest.raises(ConfigError, match="n_largest must be at least 1"):
        found.plot(n_largest=0)


def test_bad_input(own):
    with pytest.raises(ConfigError, match="groups of columns are permuted as a whole"):
        own.importances("test", "r2", columns={"a": "age"}, by="element")
    with pytest.raises(ConfigError, match=r"got none for \['a'\]"):
        own.importances("test", "r2", columns={"a": []})
    with pytest.raises(ConfigError, match="by must be 'column' or 'element'"):
        own.importances("test", "r2", by="row")
    with pytest.raises(ConfigError, match="n_repeats must be at least 1"):
        own.importances("test", "r2", n_repeats=0)
    with pytest.raises(ConfigError, match="pass greater_is_better="):
        own.importances("test", lambda true, out: 0.0)
    with pytest.raises(DataError, match="rows of one FeatureSet"):
        own.importances({"genes": GENES, "age": AGE, "y": Y}, "r2")
    with pytest.raises(mm.errors.UnknownNameError):
        own.importances("test", "r2", columns="agee")
