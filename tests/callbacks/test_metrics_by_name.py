"""Metrics by name, held against scikit-learn and torchmetrics on the same rows."""

import numpy as np
import pytest
import torch
import torchmetrics
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from torch import nn

import modularml as mm
from modularml.callbacks import MetricResult, ScoreMetric
from modularml.errors import ConfigError, UnknownNameError
from modularml.results.scores import find_score, find_scores
from modularml.results.scoring import ScoredGroup
from tests.worlds import (
    QUIET,
    arrays,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    train_phase,
)


def worst(true, out):
    return np.abs(true - out).max()


WHO = np.array(["ann", "bob", "cid"] * 20)


def world():
    x, y = arrays(n=60)
    fs = featureset(x, 5 * y + 2, who=WHO)
    fs.split_random({"train": 0.5, "val": 0.5})
    fs.fit_transform("StandardScaler", domain="targets", fit_to_split="train")
    return fs, graph_of(fs, mlp())


def evaluated(graph, fs, split="val"):
    results = experiment().run_phase(eval_phase(graph, split=split, batch_size=8))
    frame = results.to_pandas()
    assert list(frame.index) == list(fs[split].get_sample_uuids())
    return results, frame["target"].to_numpy(), frame["prediction"].to_numpy()


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("mae", "mean_absolute_error"),
        ("mse", "mean_squared_error"),
        ("rmse", "root_mean_squared_error"),
    ],
)
def test_short_names(short, name):
    true, out = np.array([1.0, 2.0, 4.0]), np.array([[1.5], [2.0], [1.0]])
    assert find_score(short)(true, out) == getattr(metrics, name)(true, out[:, 0])


def test_what_is_proposed_is_known():
    with pytest.raises(UnknownNameError) as caught:  # sklearn.metrics.auc takes no targets
        find_score("auc")
    assert "auc" not in caught.value.known


def test_in_own_units_for_all_rows_and_each_group():
    fs, graph = world()
    results, true, pred = evaluated(graph, fs)
    np.testing.assert_allclose(true, fs["val"].get_targets("numpy", rep="raw")[:, 0], rtol=1e-5)
    names = ["r2", "neg_mean_squared_error", "mean_absolute_error", "MeanAbsoluteError"]
    found = results.scores(names, group_by="who").set_index(["score", "group"])["value"]
    who = WHO[fs["val"].row_indices]
    for group in (None, "ann", "bob", "cid"):
        at = slice(None) if group is None else who == group
        want = [
            metrics.r2_score(true[at], pred[at]),
            -metrics.mean_squared_error(true[at], pred[at]),
            metrics.mean_absolute_error(true[at], pred[at]),
        ]
        key = np.nan if group is None else group
        np.testing.assert_allclose([found[n, key] for n in names], [*want, want[2]], rtol=1e-5)
    scaled = results.scores(["r2"], unscale=False)["value"].item()
    assert scaled == pytest.approx(metrics.r2_score(true, pred), rel=1e-4)


def test_logged_each_epoch_and_watched():
    fs, graph = world()
    evaluation = mm.Evaluation.from_split(
        "val", split="val", metrics=["r2", worst, mm.EvalLossMetric(loss=mse())], group_by="who"
    )
    assert evaluation.logs == ["val_r2", "val_worst", "val_loss"]
    stop = mm.EarlyStopping(monitor="val_r2[bob]", mode="max", patience=99, restore_best=True)
    phase = train_phase(graph, split="train", n_epochs=3, callbacks=[evaluation, stop])
    results = experiment().run_phase(phase, **QUIET)
    frame = results.to_pandas()
    groups = [f"val_{n}[{g}]" for n in ("r2", "worst") for g in ("ann", "bob", "cid")]
    assert {"val_r2", "val_worst", "val_loss", *groups} == set(frame.columns) - {"train_loss"}
    assert stop.best_epoch == int(frame["val_r2[bob]"].idxmax())
    _, true, pred = evaluated(graph, fs)
    best = frame.loc[stop.best_epoch]
    assert best["val_r2"] == pytest.approx(metrics.r2_score(true, pred), rel=1e-5)
    assert best["val_worst"] == pytest.approx(np.abs(true - pred).max(), rel=1e-5)
    again = mm.Evaluation.from_config({**evaluation.get_config(), "metrics": ["r2"]})
    assert again.logs == ["val_r2"]


def classes(k, softmax=False):
    x, _ = arrays(n=80)
    y = np.digitize(x[:, 0], np.linspace(-0.5, 0.5, k - 1))
    fs = featureset(x, y)
    layers = [*mlp(out=k if k > 2 else 1), *([nn.Softmax(1)] if softmax else [])]
    graph = graph_of(fs, nn.Sequential(*layers))
    results = experiment().run_phase(eval_phase(graph, []))
    return y, results, results.stacked_tensors("net", "outputs")


@pytest.mark.parametrize("softmax", [False, True])
def test_several_classes(softmax):
    y, results, out = classes(3, softmax)
    shares = (out if softmax else torch.softmax(out, 1)).double().numpy()
    names = ["accuracy", "f1_macro", "neg_log_loss", "roc_auc_ovr", "balanced_accuracy_score"]
    found = results.scores(names).set_index("score")["value"]
    label = shares.argmax(axis=1)
    shares = shares / shares.sum(axis=1, keepdims=True)
    want = [
        metrics.accuracy_score(y, label),
        metrics.f1_score(y, label, average="macro"),
        -metrics.log_loss(y, shares),
        metrics.roc_auc_score(y, shares, multi_class="ovr"),
        metrics.balanced_accuracy_score(y, label),
    ]
    np.testing.assert_allclose(found[names], want, rtol=1e-5)
    options = {"task": "multiclass", "num_classes": 3}
    theirs = torchmetrics.Accuracy(**options)(out, torch.tensor(y))
    score = find_score("Accuracy", options)
    assert score(y, out.numpy()) == pytest.approx(float(theirs))


@pytest.mark.parametrize("meaning", ["logits", "probabilities"])
def test_two_classes(meaning):
    y, results, out = classes(2)
    shares = torch.sigmoid(out).double().numpy()[:, 0]
    given = out.numpy() if meaning == "logits" else shares
    for name, want in {
        "accuracy": metrics.accuracy_score(y, shares > 0.5),
        "roc_auc": metrics.roc_auc_score(y, shares),
        "average_precision_score": metrics.average_precision_score(y, shares),
        "neg_brier_score": -metrics.brier_score_loss(y, shares),
        "brier": metrics.brier_score_loss(y, shares),
        "log_loss": metrics.log_loss(y, shares),
    }.items():
        assert find_score(name, meaning=meaning)(y, given) == pytest.approx(want, rel=1e-6)
    with pytest.raises(ConfigError, match="say which"):
        results.scores(["accuracy"])
    whole = find_score("accuracy", meaning="values")(y, (shares > 0.5).astype(int))
    assert whole == metrics.accuracy_score(y, shares > 0.5)


def test_roles():
    _, graph = world()
    found = experiment().run_phase(eval_phase(graph)).scores(["r2"], role="default")
    assert found["role"].tolist() == ["default"]

    class TwoRoles:
        label = "val"

        class results:
            @staticmethod
            def scored(functions, node, **facts):
                (name,) = functions
                return [ScoredGroup(name, role, None, 1.0, 5, 0) for role in ("anchor", "pair")]

    said = ScoreMetric("r2").extract(eval_result=TwoRoles)
    assert [s.name for s in said] == ["val_r2/anchor", "val_r2/pair"]
    assert all(isinstance(s, MetricResult) for s in said)


def test_a_metric_of_classes_does_not_go_with_numbers():
    fs, graph = world()
    found = evaluated(graph, fs)[0]
    for name in ("accuracy", "f1_score", "Accuracy"):
        with pytest.raises(
            ConfigError, match=f"metric '{name}' cannot be computed from targets of float"
        ):
            found.scores([name])


def test_what_is_refused():
    with pytest.raises(UnknownNameError, match="r2"):
        ScoreMetric("r22")
    with pytest.raises(UnknownNameError):
        find_score("roc_curve_display")
    with pytest.raises(ConfigError, match="outputs"):
        ScoreMetric("r2", outputs="scores")
    config = ScoreMetric("f1_score", options={"average": "macro"}, role="default").get_config()
    assert ScoreMetric.from_config(config) == ScoreMetric(
        "f1_score", options={"average": "macro"}, role="default"
    )


@pytest.mark.parametrize("labels", [[1, 2, 3], [-1, 0, 1], ["u", "v", "w"]])
def test_labels_that_number_no_column_are_refused(labels):
    true = np.array(labels * 4)
    out = np.random.default_rng(0).normal(size=(12, 3))
    with pytest.raises(ConfigError, match="number the classes from 0"):
        find_score("accuracy")(true, out)


def test_what_scores_cannot_be_of():
    fs, graph = world()
    results, *_ = evaluated(graph, fs)
    assert results.scores("r2")["value"].equals(results.scores(["r2"])["value"])
    with pytest.raises(UnknownNameError, match="role 'anchor'; known: 'default'"):
        results.scores(["r2"], role="anchor")
    with pytest.raises(ConfigError, match="column must be one name"):
        results.scores(["r2"], group_by=["who"])
    with pytest.raises(ConfigError, match=r"write \['r2'\]"):
        mm.Evaluation.from_split("val", split="val", metrics="r2")


@pytest.mark.private("it is not public what a scorer of scikit-learn calls")
def test_a_group_of_one_class_counts_all_classes_or_is_nan_by_name():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4))
    y = (x[:, 0] + rng.normal(size=120) > 0).astype(int)
    centre = np.repeat(["a", "b", "c", "d"], 30)
    y[centre == "d"] = 0
    fs = mm.FeatureSet.from_dict("g", {"x": x, "y": y, "centre": centre}, "x", "y", "centre")
    fs.split_random({"train": 0.5, "val": 0.5}, seed=0)
    mm.ModelGraph([mm.ModelNode("clf", LogisticRegression(), fs)])
    exp = experiment()
    exp.run_phase(mm.FitPhase.from_split("f", split="train"))
    results = exp.run_phase(mm.EvalPhase.from_split("e", split="val"))
    with pytest.warns(UserWarning, match="roc_auc of centre='d' .Only one class"):
        table = results.scores(["roc_auc", "neg_log_loss", "log_loss"], group_by="centre")
    table = table.set_index(["group", "score"])["value"]
    assert np.isnan(table["d", "roc_auc"])
    assert not np.isnan(table["a", "roc_auc"])
    for name in "abcd":
        rows = fs["val"].filter(conditions={"centre": name})
        hand = metrics.log_loss(rows.get_targets("numpy").ravel(), exp.predict(rows), labels=[0, 1])
        assert table[name, "log_loss"] == pytest.approx(hand)
        assert table[name, "neg_log_loss"] == pytest.approx(-hand)


def test_a_score_that_fails_for_one_group_fails_for_it_alone_and_for_all_rows_aloud():
    def picky(true, out):
        if len(true) < 15:
            raise ConfigError("too few rows")
        return len(true)

    fs, graph = world()
    results, *_ = evaluated(graph, fs)
    counts = {
        name: int((fs["val"].get_tags("numpy").ravel() == name).sum())
        for name in ["ann", "bob", "cid"]
    }
    with pytest.warns(UserWarning, match="too few rows"):
        table = results.scores({"picky": picky}, group_by="who")
    assert np.isnan(table.value[1:]).tolist() == [n < 15 for n in counts.values()]
    with pytest.raises(ConfigError, match="never"):
        results.scores({"never": lambda true, out: (_ for _ in ()).throw(ConfigError("never"))})


@pytest.mark.parametrize("shapes", [((6, 1), (6, 1, 1)), ((6,), (6, 1)), ((6, 1), (6,))])
def test_a_function_of_ones_own_gets_outputs_in_the_shape_of_targets(shapes):
    def off(true, out):
        return np.mean((true - out) ** 2)

    rng = np.random.default_rng(0)
    true, out = rng.normal(size=6), rng.normal(size=6)
    expected = np.mean((true - out) ** 2)
    given = [values.reshape(shape) for values, shape in zip((true, out), shapes, strict=True)]
    assert find_score(off)(*given) == pytest.approx(expected)
    assert find_scores({"off": off})["off"](*given) == pytest.approx(expected)
    assert find_score(lambda t, p: p.shape[1])(true, rng.normal(size=(6, 3))) == 3
