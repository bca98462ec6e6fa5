"""Rows to predict as people have them: missing values, other types, other names."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression

import modularml as mml
from modularml.errors import DataError

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame({"a": RNG.normal(size=40), "b": RNG.normal(size=40), "k": np.arange(40) % 5})
FRAME["y"] = 2 * FRAME["a"] + FRAME["b"] - FRAME["k"]
FRAME["label"] = np.where(FRAME["a"] > 0, "pos", "neg")
FRAME["cell"] = np.repeat(list("uvwx"), 10)
NEW = pd.DataFrame({"a": [1.0, 2.0, -1.0], "b": [0.0, 1.0, 2.0], "k": [3, 4, 0]})


def fitted(model, target="y", steps=()):
    fs = mml.FeatureSet.from_pandas("rows", FRAME, ["a", "b", "k"], target, tag_cols="cell")
    fs.split_random({"train": 1.0})
    for step in steps:
        fs.fit_transform(step, domain="features", fit_to_split="train")
    mml.ModelGraph([mml.ModelNode("net", model, fs)])
    experiment = mml.Experiment.from_active_context("e", seed=0, audit="off")
    experiment.run_phase(mml.FitPhase.from_split("fit", split="train"))
    return experiment


def plain(model, target="y"):
    return model.fit(FRAME[["a", "b", "k"]].to_numpy(), FRAME[target])


HOLES = [
    NEW.assign(a=[1.0, np.nan, -1.0]),
    NEW.assign(a=pd.array([1.0, None, -1.0], dtype="Float64")),
    NEW.assign(a=pd.Series([1.0, None, -1.0], dtype=object)),
    NEW.assign(k=[3, np.nan, 0]),
    pl.from_pandas(NEW.assign(a=[1.0, None, -1.0])),
    [{"a": 1.0, "b": 0.0, "k": 3}, {"b": 1.0, "k": 4}, {"a": -1.0, "b": 2.0, "k": 0}],
    {"a": [1.0, None, -1.0], "b": [0.0, 1, 2], "k": [3, 4, 0]},
]


@pytest.mark.parametrize("rows", HOLES, ids=range(len(HOLES)))
def test_rows_with_holes_get_nan_and_the_others_their_prediction(rows):
    experiment = fitted(LinearRegression())
    want = plain(LinearRegression()).predict(NEW.to_numpy())
    with pytest.warns(UserWarning, match=r"1 of 3 predictions of 'net' are NaN.*SimpleImputer"):
        found = experiment.predict(rows).ravel()
    np.testing.assert_allclose(found, [want[0], np.nan, want[2]], atol=1e-12)
    with pytest.raises(DataError, match="NaN"):  # a score of fewer rows would mislead
        experiment.evaluate(NEW.assign(a=[1, np.nan, 2], y=[0.0, 1, 2]), metrics=["rmse"])


def test_batches_and_rows_that_all_have_holes():
    experiment = fitted(LinearRegression())
    lacks = np.arange(40) % 3 == 0
    rows = FRAME.assign(b=FRAME["b"].where(~lacks))
    want = np.where(lacks, np.nan, FRAME["y"])
    for size in (1, 7, None):
        with pytest.warns(UserWarning, match="14 of 40 predictions"):
            found = experiment.predict(rows, batch_size=size).ravel()
        np.testing.assert_allclose(found, want, atol=1e-9)
    with pytest.warns(UserWarning, match="3 of 3 predictions"):
        assert np.isnan(experiment.predict(NEW.assign(a=np.nan))).all()


def test_models_and_steps_that_take_holes_answer():
    rows = NEW.assign(a=[1.0, np.nan, -1.0])
    boosted = fitted(HistGradientBoostingRegressor(random_state=0)).predict(rows).ravel()
    want = plain(HistGradientBoostingRegressor(random_state=0)).predict(rows.to_numpy())
    np.testing.assert_allclose(boosted, want)
    with mml.ExperimentContext().activate():
        filled = fitted(LinearRegression(), steps=["SimpleImputer"]).predict(rows).ravel()
    mean = rows.fillna({"a": FRAME["a"].mean()})
    np.testing.assert_allclose(
        filled, plain(LinearRegression()).predict(mean.to_numpy()), atol=1e-12
    )


def test_no_class_is_named_for_rows_with_holes():
    rows = NEW.assign(a=[1.0, np.nan, -1.0])
    experiment = fitted(LogisticRegression(), "label")
    with pytest.warns(UserWarning, match="1 of 3"):
        assert experiment.predict(rows, decode=True).ravel().tolist() == ["pos", None, "neg"]
    with mml.ExperimentContext().activate():
        fs = mml.FeatureSet.from_pandas("rows", FRAME, ["a", "b"], "k", tag_cols="cell")
        fs.fit_transform("LabelEncoder", domain="targets")
        graph = mml.ModelGraph([mml.ModelNode("net", torch.nn.Linear(2, 5), fs)])
        graph.build()
        with pytest.warns(UserWarning, match="1 of 3"):
            found = graph.predict(rows, decode=True).ravel()
        scores = graph.predict(NEW)
    np.testing.assert_array_equal(found, [scores[0].argmax(), np.nan, scores[2].argmax()])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (NEW.assign(a=["1.0", "2.0", "3.0"]), "'a' holds text, such as '1.0', but numbers"),
        (NEW.assign(a=pd.to_datetime(["2024"] * 3)), "'a' holds times.*but numbers"),
        ({"a": 1.0, "b": 0.0, "k": 3}, r"'a' must hold one value per row.*\{'a': \[1.0\]"),
        ({"a": "abc", "b": "abc", "k": "abc"}, "'a' must hold one value per row, got 'abc'"),
        (NEW.rename(columns={"a": "a [V]"}), r"lacks the column 'a'.*'a \[V\]'"),
        (NEW.assign(**{f"u{i}": 0 for i in range(60)}).drop(columns="k"), "it has 62 columns"),
        (pd.concat([NEW, NEW[["a"]]], axis=1), "'a' occurs 2 times"),
        (NEW.assign(k=[2**70, 1, 2]), "at most 64 bits"),
    ],
)
def test_rows_that_do_not_fit_are_named(rows, message):
    with pytest.raises(DataError, match=message) as caught:
        fitted(LinearRegression()).predict(rows)
    assert len(str(caught.value)) < 400


def test_missing_tags_do_not_stand_in_the_way():
    rows = NEW.assign(cell=["u", None, "new"])
    found = fitted(LinearRegression()).predict(rows, fmt="pandas", tags=True)
    assert found["cell"].tolist()[::2] == ["u", "new"]
    assert found["cell"].isna().tolist() == [False, True, False]
    np.testing.assert_allclose(found["y"], 2 * NEW["a"] + NEW["b"] - NEW["k"], atol=1e-12)
