"""Scores of replicates, held against pandas; survival scores, against loops."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, log_loss, r2_score, root_mean_squared_error

import modularml as mm
from modularml.callbacks import ScoreMetric
from modularml.errors import ConfigError, DataError
from modularml.results.scores import find_score, greater_is_better

N = 48
RNG = np.random.default_rng(2)
SAMPLE = RNG.permutation(np.repeat(np.arange(16), 3))
SITE = SAMPLE % 2
X = RNG.normal(size=(N, 4)) + SAMPLE[:, None] / 8
Y = X @ [1.0, 2, 3, 4] + RNG.normal(size=N)
KIND = (SAMPLE % 3 == 0).astype(int)


def world(target=Y, model=None, missing=()):
    own = mm.Experiment("e", audit="off")
    y = target.copy()
    if len(missing):
        y[list(missing)] = np.nan
    fs = mm.FeatureSet.from_dict(
        "fs", {"x": X, "y": y, "sample": SAMPLE, "site": SITE, "row": np.arange(N)}, "x", "y",
        ["sample", "site", "row"],
    )  # fmt: skip
    fs.add_split(fs.take(np.arange(24), label="train"))
    fs.add_split(fs.take(np.arange(24, N), label="test"))
    mm.ModelGraph([mm.ModelNode("net", model or Ridge(), fs)])
    own.run_phase(mm.FitPhase.from_split("fit", split="train"))
    return own, fs


def by_hand(own, rows, target=Y, how="mean"):
    frame = pd.DataFrame(
        {"sample": SAMPLE[rows], "site": SITE[rows], "y": target[rows],
         "out": own.model_graph.predict({"x": X[rows]}, batch_size=None).ravel()}
    )  # fmt: skip
    return frame.dropna().groupby("sample").agg({"y": how, "out": how, "site": "first"})


@pytest.mark.parametrize("how", ["mean", "median", "max"])
def test_evaluate_equals_groupby(how):
    own, _ = world()
    table = own.evaluate("test", metrics=["rmse", "r2"], per="sample", reduce=how, group_by="site")
    found = by_hand(own, np.arange(24, N), how=how)
    assert table["n"].tolist() == [len(found), *found["site"].value_counts().sort_index()]
    for row, part in zip(
        table.to_dict("records"), [found, *(p for _, p in found.groupby("site"))], strict=True
    ):
        np.testing.assert_allclose(row["rmse"], root_mean_squared_error(part["y"], part["out"]))
        np.testing.assert_allclose(row["r2"], r2_score(part["y"], part["out"]))


def test_scores_of_phases_and_metrics_of_training():
    own, _ = world()
    phase = mm.EvalPhase.from_split("eval", split="test")
    results = own.run_phase(phase)
    expected = by_hand(own, np.arange(24, N))
    frame = results.scores(["rmse"], per="sample", group_by="site")
    np.testing.assert_allclose(
        frame["value"][0], root_mean_squared_error(expected["y"], expected["out"])
    )
    assert frame["n_rows"].tolist()[0] == len(expected)
    metric = ScoreMetric("rmse", per="sample", reduce="median")
    again = ScoreMetric.from_config(metric.get_config())
    assert (again.per, again.reduce) == ("sample", "median")
    evaluation = type("E", (), {"label": "val", "results": results})()
    (logged,) = again.extract(eval_result=evaluation)
    expected = by_hand(own, np.arange(24, N), how="median")
    np.testing.assert_allclose(
        logged.value, root_mean_squared_error(expected["y"], expected["out"])
    )


def test_missing_targets_leave_rows_out_of_their_sample():
    test = np.arange(24, N)
    whole = np.flatnonzero(SAMPLE[30] == SAMPLE)
    missing = sorted({25, *whole[whole >= 24]})
    own, _ = world(missing=missing)
    target = np.where(np.isin(np.arange(N), missing), np.nan, Y)
    table = own.evaluate("test", metrics="rmse", per="sample")
    expected = by_hand(own, test, target)
    np.testing.assert_allclose(
        table["rmse"][0], root_mean_squared_error(expected["y"], expected["out"])
    )
    assert table["n"][0] == len(expected)
    assert table["n_missing"][0] == len(np.unique(SAMPLE[test])) - len(expected)


def test_class_scores_are_averaged():
    own, fs = world(KIND, LogisticRegression())
    table = own.evaluate("test", metrics=["accuracy", "neg_log_loss"], per="sample")
    shares = pd.DataFrame(own.model_graph.predict(fs["test"]).reshape(24, 2))
    mean = shares.groupby(SAMPLE[24:]).mean().to_numpy()
    true = pd.Series(KIND[24:]).groupby(SAMPLE[24:]).first().to_numpy()
    assert table["accuracy"][0] == accuracy_score(true, mean.argmax(axis=1))
    np.testing.assert_allclose(table["neg_log_loss"][0], -log_loss(true, mean))


def test_folds_score_samples():
    _, fs = world()
    cv = mm.CrossValidation(
        bindings=mm.CVBinding(fs, ["train", "test"], group_by="sample"),
        phase=mm.FitPhase.from_split("fit", split="train"), n_folds=3,
    )  # fmt: skip
    results = cv.run(show_training_progress=False)
    out = results.out_of_fold("net").loc[fs.get_sample_uuids()].reset_index()
    table = results.to_pandas(metrics=["rmse"], per="sample")
    for fold, value in zip(cv.folds, table["val.rmse"], strict=True):
        val = fold.sides["fs"].val
        part = out.loc[val].groupby(SAMPLE[val])[["target", "prediction"]].mean()
        np.testing.assert_allclose(
            value, root_mean_squared_error(part["target"], part["prediction"])
        )
    summary = results.summary(metrics=["rmse"], per="sample")
    np.testing.assert_allclose(summary.loc["val.rmse", "mean"], table["val.rmse"].mean())
    with pytest.raises(ConfigError, match="per='sample' applies to metrics"):
        results.summary(per="sample")


def test_a_phase_logs_metrics_of_samples():
    own, _ = world()
    phase = mm.EvalPhase.from_split(
        "eval", split="test", metrics=["rmse"], per="sample", reduce="median", group_by="site"
    )
    again = mm.EvalPhase.from_config(phase.get_config())
    assert (again.per, again.reduce) == ("sample", "median")
    metrics = own.run_phase(phase).metrics()
    logged = {name: value for (name, _, _), value in metrics.items()}
    found = by_hand(own, np.arange(24, N), how="median")
    parts = {"rmse": found, **{f"rmse[{site}]": part for site, part in found.groupby("site")}}
    assert logged.keys() == parts.keys()
    for name, part in parts.items():
        np.testing.assert_allclose(logged[name], root_mean_squared_error(part["y"], part["out"]))


def test_ensembles_and_collections_score_samples():
    own, fs = world()
    ensemble = mm.Ensemble(
        own, n=3, vary="bootstrap", bindings=mm.CVBinding(fs, ["train"]),
        phase=mm.FitPhase.from_split("fit", split="train"),
    ).run(show_progress=False)  # fmt: skip
    mean = ensemble.predict(fs["test"])["y"].to_numpy()
    frame = pd.DataFrame({"y": Y[24:], "out": mean}).groupby(SAMPLE[24:]).median()
    table = ensemble.evaluate(fs["test"], metrics=["rmse"], per="sample", reduce="median")
    assert table["n"].tolist() == [len(frame)]
    np.testing.assert_allclose(table["rmse"][0], root_mean_squared_error(frame["y"], frame["out"]))
    runs = mm.ExperimentCollection({"own": own, "mean": ensemble})
    both = runs.evaluate(fs["test"], metrics=["rmse"], per="sample", reduce="median")
    expected = by_hand(own, np.arange(24, N), how="median")
    np.testing.assert_allclose(
        both["rmse"],
        [root_mean_squared_error(expected["y"], expected["out"]), table["rmse"][0]],
    )
    for members in (ensemble, runs):
        with pytest.raises(ConfigError, match="pass per= too"):
            members.evaluate(fs["test"], reduce="max")
        with pytest.raises(mm.errors.UnknownNameError, match="unknown per column 'sampel'"):
            members.evaluate(fs["test"], per="sampel")


def test_what_is_refused():
    with pytest.raises(ConfigError, match="per='sample' is for metrics"):
        mm.EvalPhase("eval", input_sources=[], per="sample")
    own, _ = world()
    with pytest.raises(mm.errors.UnknownNameError, match="unknown per column 'sampel'"):
        own.run_phase(mm.EvalPhase.from_split("e", split="test", metrics=["r2"], per="sampel"))
    with pytest.raises(ConfigError, match="reduce must be one of"):
        own.evaluate("test", per="sample", reduce="sum")
    with pytest.raises(ConfigError, match="pass per= too"):
        own.evaluate("test", reduce="median")
    with pytest.raises(DataError, match="group_by differ within a sample of 'site'"):
        own.evaluate("test", per="site", group_by="sample")
    with pytest.raises(mm.errors.UnknownNameError):
        own.evaluate("test", per="sampel")
    own, _ = world(KIND, LogisticRegression())
    with pytest.raises(DataError, match="targets differ within a sample of 'site'"):
        own.evaluate("test", metrics="accuracy", per="site")


class TestConcordance:
    def by_loop(self, time, event, risk):
        right = pairs = 0
        for i in range(len(time)):
            for j in range(len(time)):
                before = time[i] < time[j] or (time[i] == time[j] and event[j] == 0)
                if i != j and event[i] == 1 and before:
                    pairs += 1
                    right += (risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j])
        return right / pairs

    @pytest.mark.parametrize("seed", range(5))
    def test_equals_a_loop_over_pairs(self, seed):
        rng = np.random.default_rng(seed)
        time, event = rng.integers(1, 15, 40), rng.integers(0, 2, 40)
        risk = rng.integers(0, 8, 40).astype(float)
        true = np.column_stack([time, event])
        expected = self.by_loop(time, event, risk)
        assert find_score("risk_concordance_index")(true, risk[:, None]) == pytest.approx(expected)
        assert find_score("concordance_index")(true, -risk) == pytest.approx(expected)
        every = self.by_loop(time, np.ones(40), -risk)
        assert find_score("concordance_index")(time, risk) == pytest.approx(every)

    def test_bounds_and_direction(self):
        time = np.arange(1.0, 9)
        score = find_score("concordance_index")
        assert (score(time, time), score(time, -time), score(time, time * 0)) == (1, 0, 0.5)
        assert greater_is_better("concordance_index") is True

    @pytest.mark.parametrize(
        ("true", "out", "message"),
        [
            ([[1, 0], [2, 0]], [1.0, 2], "no two rows are comparable"),
            ([[1, 2], [2, 1]], [1.0, 2], "must be 1 for observed events"),
            ([1, 2], [np.nan, 2], "1 of 2 rows are NaN"),
            ([[1, 1, 1], [2, 1, 1]], [1.0, 2], "two columns"),
        ],
    )
    def test_bad_input(self, true, out, message):
        with pytest.raises(ConfigError, match=message):
            find_score("concordance_index")(np.array(true), np.array(out))

    def test_of_two_target_columns(self):
        own = mm.Experiment("e", audit="off")
        event = (RNG.random(N) < 0.7).astype(float)
        fs = mm.FeatureSet.from_dict("fs", {"x": X, "t": Y, "e": event}, "x", ["t", "e"])
        fs.add_split(fs.take(np.arange(N), label="train"))
        mm.ModelGraph([mm.ModelNode("net", Ridge(), fs)])
        own.run_phase(mm.FitPhase.from_split("fit", split="train"))
        times = {"c": lambda true, out: find_score("concordance_index")(true, out[..., :1])}
        found = own.evaluate("train", metrics=times)["c"][0]
        out = own.model_graph.predict(fs).reshape(N, -1)[:, 0]
        assert found == pytest.approx(self.by_loop(Y, event, -out))
