"""Plots reached from results, held against scikit-learn and the data by hand."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import PredefinedSplit

import modularml as mm
from modularml.errors import ConfigError, DataError, UnknownNameError
from modularml.results.scores import axis_of_score

pytest.importorskip("matplotlib")
torch = pytest.importorskip("torch")
N = 90
RNG = np.random.default_rng(7)
X = RNG.normal(size=(N, 4)).astype("f4")
Y = 3 * X[:, 0] - X[:, 1] + 5 + RNG.normal(0, 0.4, N)
KIND = np.array(["low", "mid", "top"])[(X[:, 0] > -0.4).astype(int) + (X[:, 0] > 0.4)]
CELL = np.tile(["a", "b", "c"], N // 3)
HEAT = RNG.normal(300, 9, N)
WEIGHT = RNG.random(N)
QUIET = {"show_training_progress": False}


def world(model, y=Y, *, encode=None, outputs=None, target="capacity", **targets):
    """Return an experiment that was fitted on the first half, and its rows."""
    own = mm.Experiment("e", audit="off")
    columns = {"x": X, target: y, **targets, "cell": CELL, "heat": HEAT, "weight": WEIGHT}
    fs = mm.FeatureSet.from_dict(
        "fs", columns, "x", [target, *targets], ["cell", "heat", "weight"],
        unit={target: "Ah", "heat": "K"} if y.dtype.kind == "f" else {"heat": "K"},
    )  # fmt: skip
    fs.add_split(fs.take(np.arange(0, N, 2), label="train"))
    fs.add_split(fs.take(np.arange(1, N, 2), label="test"))
    if encode:
        fs.fit_transform(encode, domain="targets", fit_to_split="train")
    if outputs:
        model = mm.ScikitModelWrapper(model, output_method=outputs)
    mm.ModelGraph([mm.ModelNode("net", model, fs)])
    own.run_phase(mm.FitPhase.from_split("fit", split="train"))
    return own, fs


def evaluated(own):
    return own.run_phase(mm.EvalPhase.from_split("eval", split="test"))


def legend_of(figure):
    return [text.get_text() for text in (figure.legends or [figure.axes[0].get_legend()])[0].texts]


def points(figure):
    return np.asarray(figure.axes[0].collections[0].get_offsets())


TEST = np.arange(1, N, 2)


@pytest.mark.parametrize("scaled", [None, "StandardScaler"])
def test_numbers_are_drawn_with_name_and_unit(scaled):
    own, fs = world(Ridge(), encode=scaled)
    pred = own.predict(fs["test"]).ravel()
    for drawn in (evaluated(own), own.evaluate("test")):
        figure = drawn.plot()
        line = next(li for li in figure.axes[0].lines if len(li.get_xdata()) == len(TEST))
        np.testing.assert_allclose(line.get_data(), [Y[TEST], pred], rtol=1e-6)
        axes = figure.axes[0]
        assert (axes.get_xlabel(), axes.get_ylabel()) == (
            "true capacity (Ah)", "predicted capacity (Ah)",
        )  # fmt: skip
        r2, rmse = metrics.r2_score(Y[TEST], pred), metrics.root_mean_squared_error(Y[TEST], pred)
        assert legend_of(figure)[0] == f"prediction: RMSE {rmse:#.3g} Ah, R² {r2:.3f}"
        figure = drawn.plot(kind="residuals", over="heat")
        np.testing.assert_allclose(
            points(figure), np.column_stack([HEAT[TEST], Y[TEST] - pred]), rtol=1e-5, atol=1e-5
        )
        assert figure.axes[0].get_xlabel() == "heat (K)"
        figure = drawn.plot(kind="residuals", group_by="cell")
        assert [t.get_text()[0] for t in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]
        assert figure.axes[0].get_ylabel() == "cell"


def test_replicates_are_reduced_before_they_are_drawn():
    own, fs = world(Ridge())
    pred = own.predict(fs["test"]).ravel()
    by_cell = [[v[CELL[TEST] == c].mean() for v in (Y[TEST], pred)] for c in "abc"]
    for figure in (
        evaluated(own).plot(per="cell"),
        own.evaluate("test", per="cell", metrics=["rmse"]).plot("parity"),
    ):
        line = next(li for li in figure.axes[0].lines if len(li.get_xdata()) == 3)
        np.testing.assert_allclose(line.get_xydata(), by_cell, rtol=1e-6)
    with pytest.raises(DataError, match="group_by differ within a sample"):
        evaluated(own).plot(kind="residuals", per="cell", over="heat")


def test_rows_without_a_target_are_counted():
    y = Y.copy()
    y[[3, 5]] = np.nan
    own, _ = world(Ridge(), y)
    assert legend_of(evaluated(own).plot())[0].endswith("2 rows not finite")
    kind = KIND.astype(object)
    kind[3] = None
    own, _ = world(LogisticRegression(), KIND, outputs="predict_proba", target="kind")
    table = own.evaluate({"x": X[TEST], "kind": kind[TEST]}, metrics=["accuracy"])
    assert table.plot("roc").axes[0].get_xlabel().endswith("44 rows, 1 without class or score")
    with pytest.warns(UserWarning, match="1 rows of node 'net' lack a class"):
        assert "44 samples" in table.plot().axes[0].get_xlabel()


def test_integers_beside_missing_ones_are_numbers():
    own, _ = world(Ridge(), np.rint(Y * 10).astype(int))
    for y in (np.array([1, 2, None, 4], dtype=object), pd.array([1, 2, None, 4], dtype="Int64")):
        table = own.evaluate({"x": list(X[:4]), "capacity": y})
        assert legend_of(table.plot())[0].endswith("1 rows not finite")
    with pytest.raises(UnknownNameError, match="unknown role 'anchor'"):
        evaluated(own).plot(role="anchor")


@pytest.mark.parametrize("outputs", ["predict", "predict_proba"])
def test_classes_are_known_without_the_rows(outputs, tmp_path):
    own, _ = world(LogisticRegression(), KIND, outputs=outputs, target="kind")
    rows = {"x": X[TEST], "kind": KIND[TEST]}
    new = mm.Experiment.load(own.save(tmp_path / "e", rows=False))
    table, before = (e.evaluate(rows, metrics=["accuracy"]) for e in (new, own))
    assert table["accuracy"][0] == before["accuracy"][0]
    assert table.plot().axes[0].get_xlabel() == before.plot().axes[0].get_xlabel()
    if outputs == "predict_proba":
        assert legend_of(table.plot("roc")) == legend_of(before.plot("roc"))


def proba(own, fs):
    out = own.predict(fs["test"]).reshape(len(TEST), -1)
    if not np.allclose(out.sum(axis=1), 1, atol=1e-4):
        out = np.exp(out) / np.exp(out).sum(axis=1, keepdims=True)
    return out


def net_of_classes():
    own = mm.Experiment("e", audit="off", seed=0)
    columns = {"x": X, "kind": KIND, "cell": CELL, "weight": WEIGHT}
    fs = mm.FeatureSet.from_dict("fs", columns, "x", "kind", ["cell", "weight"])
    fs.add_split(fs.take(np.arange(0, N, 2), label="train"))
    fs.add_split(fs.take(TEST, label="test"))
    fs.fit_transform("LabelEncoder", domain="targets", fit_to_split="train")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    mm.ModelGraph([mm.ModelNode("net", net, fs)], mm.Optimizer("adam", opt_kwargs={"lr": 0.1}))
    loss = mm.AppliedLoss(mm.Loss("cross_entropy"), "net", ["outputs", "targets"])
    sampler = mm.samplers.SimpleSampler(batch_size=15)
    options = {"split": "train", "sampler": sampler, "losses": [loss], "n_epochs": 4}
    own.run_phase(mm.TrainPhase.from_split("train", **options), **QUIET)
    return own, fs


@pytest.mark.parametrize("backend", ["sklearn", "torch"])
def test_classes_are_named_and_equal_scikit_learn(backend):
    if backend == "torch":
        own, fs = net_of_classes()
    else:
        own, fs = world(LogisticRegression(), KIND, outputs="predict_proba", target="kind")
    shares, true = proba(own, fs), KIND[TEST]
    for drawn in (evaluated(own), own.evaluate("test")):
        figure = drawn.plot()
        assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["low", "mid", "top"]
        hits = (np.array(["low", "mid", "top"])[shares.argmax(axis=1)] == true).mean()
        assert f"{hits:.1%} correct" in figure.axes[0].get_xlabel()
        rocs, precisions = drawn.plot(kind="roc"), drawn.plot(kind="precision_recall")
        for i, name in enumerate(["low", "mid", "top"]):
            auc = metrics.roc_auc_score(true == name, shares[:, i])
            assert legend_of(rocs)[i] == f"{name}: AUC {auc:.3f}"
            ap = metrics.average_precision_score(true == name, shares[:, i])
            assert legend_of(precisions)[i].startswith(f"{name}: AP {ap:.3f}")
        weighted = drawn.plot(kind="roc", positive="top", weight_by="weight")
        auc = metrics.roc_auc_score(true == "top", shares[:, 2], sample_weight=WEIGHT[TEST])
        assert legend_of(weighted)[0] == f"top: AUC {auc:.3f}"
        by_cell = drawn.plot(kind="roc", positive="mid", group_by="cell")
        for i, cell in enumerate("abc"):
            rows = CELL[TEST] == cell
            auc = metrics.roc_auc_score(true[rows] == "mid", shares[rows, 1])
            assert legend_of(by_cell)[i] == f"{cell}: AUC {auc:.3f}"
        brier = metrics.brier_score_loss(true == "low", shares[:, 0])
        assert legend_of(drawn.plot(kind="calibration"))[0] == f"low: Brier score {brier:.3f}"


def test_one_column_of_scores():
    own, fs = world(LogisticRegression(), KIND == "low", outputs="predict_proba", target="is_low")
    second = own.predict(fs["test"]).reshape(len(TEST), -1)[:, 1]
    auc = metrics.roc_auc_score(KIND[TEST] == "low", second)
    assert legend_of(own.evaluate("test").plot("roc"))[0] == f"True: AUC {auc:.3f}"
    labels = (KIND == "low").astype(int)
    own, fs = world(LogisticRegression(), labels, outputs="decision_function", target="is_low")
    margin = own.predict(fs["test"]).ravel()
    table = own.evaluate("test", metrics=["roc_auc"], outputs="logits")
    assert legend_of(table.plot("roc"))[0] == f"1: AUC {table['roc_auc'][0]:.3f}"
    share = 1 / (1 + np.exp(-margin))
    brier = metrics.brier_score_loss(labels[TEST], share)
    assert legend_of(table.plot("calibration"))[0] == f"1: Brier score {brier:.3f}"
    results = evaluated(own)
    assert legend_of(results.plot(kind="roc"))[0] == legend_of(table.plot("roc"))[0]
    with pytest.raises(ConfigError, match="may be logits or probabilities"):
        results.plot(kind="calibration")
    matrix = results.plot(outputs="logits")
    assert f"{((margin > 0) == labels[TEST]).mean():.1%} correct" in matrix.axes[0].get_xlabel()


def test_labels_have_no_scores():
    own, fs = world(LogisticRegression(), KIND, target="kind", outputs="predict")
    hits = (own.predict(fs["test"]).ravel() == KIND[TEST]).mean()
    for drawn in (evaluated(own), own.evaluate("test")):
        assert f"{hits:.1%} correct" in drawn.plot().axes[0].get_xlabel()
        with pytest.raises(ConfigError, match=r"needs class scores.*predict_proba"):
            drawn.plot(kind="roc")


def test_several_targets_are_drawn_one_at_a_time():
    own, fs = world(Ridge(), other=X[:, 2] * 2)
    pred = own.predict(fs["test"])[:, 1].ravel()
    for drawn in (evaluated(own), own.evaluate("test")):
        with pytest.raises(ConfigError, match=r"'capacity', 'other'.*pass target="):
            drawn.plot()
        axes = drawn.plot(kind="residuals", target="other").axes[0]
        drawn_points = np.asarray(axes.collections[0].get_offsets())
        np.testing.assert_allclose(
            drawn_points, np.column_stack([pred, 2 * X[TEST, 2] - pred]), rtol=1e-5, atol=1e-5
        )
        assert axes.get_xlabel() == "predicted other"
        with pytest.raises(UnknownNameError, match="mean 'capacity'"):
            drawn.plot(target="capasity")


LENGTHS = np.array([3, 5, 4, 2, 5, 3, 4, 1])
MASK = np.arange(5) < LENGTHS[:, None]


def test_padded_steps_are_not_drawn():
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, size=(2, 8, 5)).astype(np.float32)
    c, heat = rng.integers(0, 3, size=(8, 5)), rng.normal(size=(8, 5))
    y[~MASK], c[~MASK] = 99.0, -1
    columns = {"x": x, "y": y, "c": c, "m": MASK, "heat": heat, "cell": np.arange(8) % 2}
    fs = mm.FeatureSet.from_dict("s", columns, "x", ["y", "c"], ["m", "heat", "cell"], mask="m")

    def results_of(model, targets):
        own = mm.Experiment("e", audit="off")
        loss = {"y": "mse", "c": "cross_entropy"}[targets]
        copy = fs.copy(label="s", register=True)
        mm.ModelGraph([mm.ModelNode("net", model, copy.reference(features="x", targets=targets))],
                      mm.Optimizer("sgd"))  # fmt: skip
        loss = mm.AppliedLoss(mm.Loss(loss), "net", ["outputs", "targets"])
        source = mm.EvalPhase("e", input_sources=[
            mm.InputBinding("net", copy.reference(features="x", targets=targets))
        ], losses=[loss], batch_size=3)  # fmt: skip
        return own.run_phase(source)

    results = results_of(torch.nn.Conv1d(1, 1, 1), "y")
    pred = results.stacked_tensors("net", "outputs", fmt="numpy")[:, 0]
    by_step = points(results.plot(kind="residuals", over="heat"))
    np.testing.assert_allclose(by_step, np.column_stack([heat[MASK], (y - pred)[MASK]]), rtol=1e-5)
    boxes = results.plot(kind="residuals", group_by="cell").axes[0].get_yticklabels()
    counts = [MASK[np.arange(8) % 2 == k].sum() for k in (0, 1)]
    assert [t.get_text() for t in boxes] == [f"{k} (n={n})" for k, n in enumerate(counts)]
    results = results_of(torch.nn.Conv1d(1, 3, 1), "c")
    logits = np.moveaxis(results.stacked_tensors("net", "outputs", fmt="numpy"), 1, -1)[MASK]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    legend = legend_of(results.plot(kind="roc", outputs="logits"))
    # the padding is no class of the column
    for k in range(3):
        auc = metrics.roc_auc_score(c[MASK] == k, shares[:, k])
        assert legend[k] == f"{k}: AUC {auc:.3f}"


def test_folds_pooled_and_each():
    _, fs = world(Ridge())
    cv = mm.CrossValidation(
        bindings=mm.CVBinding(fs, ["train", "test"], group_by="cell"), n_folds=3,
        phase=mm.FitPhase.from_split("fit", split="train"),
    ).run(show_fold_progress=False)  # fmt: skip
    table = cv.out_of_fold("net")
    line = cv.plot(kind="parity").axes[0].lines[1]
    np.testing.assert_allclose(line.get_data(), table[["target", "prediction"]].to_numpy().T)
    boxes = cv.plot(kind="residuals", group_by="fold").axes[0]
    assert [t.get_text() for t in boxes.get_yticklabels()] == [f"fold_{i} (n=30)" for i in range(3)]
    assert boxes.get_ylabel() == "fold"
    for box, (_, part) in zip(boxes.patches, table.groupby("fold"), strict=True):
        x = box.get_path().vertices[:, 0]
        quartiles = np.percentile(part["target"] - part["prediction"], [25, 75])
        np.testing.assert_allclose([x.min(), x.max()], quartiles)
    with pytest.raises(ConfigError, match="not a metric"):
        cv.plot("val_loss", kind="parity")
    with pytest.raises(ConfigError, match="group_by is for kind="):
        cv.plot(group_by="fold")


def test_a_curve_per_fold():
    _, fs = world(LogisticRegression(), KIND, outputs="predict_proba", target="kind")
    cv = mm.CrossValidation(
        bindings=mm.CVBinding(fs, ["train", "test"], stratify_by="kind"), n_folds=3,
        phase=mm.FitPhase.from_split("fit", split="train"),
    ).run(show_fold_progress=False)  # fmt: skip
    table = cv.out_of_fold("net")
    each = cv.plot(kind="roc", positive="mid", group_by="fold")
    for i, (_, part) in enumerate(table.groupby("fold")):
        auc = metrics.roc_auc_score(part["target"] == "mid", part["prediction_1"])
        assert legend_of(each)[i] == f"fold_{i}: AUC {auc:.3f}"
    pooled = metrics.roc_auc_score(table["target"] == "mid", table["prediction_1"])
    assert legend_of(cv.plot(kind="roc"))[1] == f"mid: AUC {pooled:.3f}"


def test_an_ensemble_draws_its_mean():
    own, fs = world(Ridge())
    ensemble = mm.Ensemble(
        own, n=3, vary="bootstrap", bindings=mm.CVBinding(fs, ["train"]),
        phase=mm.FitPhase.from_split("fit", split="train"),
    ).run(show_progress=False)  # fmt: skip
    mean = ensemble.predict(fs["test"])["capacity"].to_numpy()
    line = ensemble.evaluate(fs["test"]).plot().axes[0].lines[1]
    np.testing.assert_allclose(line.get_data(), [Y[TEST], mean])


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"kind": "roc"}, ConfigError, "kind='roc' is for classes.*numbers.*parity, residuals"),
        ({"kind": "residual"}, UnknownNameError, "did you mean 'residuals'"),
        ({"group_by": "cell"}, ConfigError, "group_by is for kind='residuals' or.*not 'parity'"),
        ({"kind": "residuals", "weight_by": "weight"}, ConfigError, "weight_by is for kind='roc'"),
        ({"kind": "residuals", "group_by": "cel"}, UnknownNameError, "cell"),
        ({"kind": "residuals", "group_by": "cell", "over": "heat"}, ConfigError, "not both"),
        ({"normalise": True}, UnknownNameError, "unknown option 'normalise' of kind='parity'"),
        ({"reduce": "max"}, ConfigError, "pass per= too"),
        ({"outputs": "logits"}, ConfigError, "outputs is for kind='confusion'"),
    ],
)
def test_what_numbers_refuse(how, error, words):
    own, _ = world(Ridge())
    for drawn in (evaluated(own), own.evaluate("test")):
        with pytest.raises(error, match=words):
            drawn.plot(**how)


def test_what_classes_refuse():
    own, fs = world(LogisticRegression(), KIND, outputs="predict_proba", target="kind")
    with pytest.raises(ConfigError, match=r"kind='parity' is for numbers.*classes.*confusion, roc"):
        own.evaluate("test").plot("parity")
    one = own.evaluate(fs["test"].filter(conditions={"kind": "mid"}), metrics=["accuracy"])
    with pytest.raises(DataError, match=r"all .* rows are of 'mid'"):
        one.plot("roc")
    with pytest.raises(UnknownNameError, match="mean 'mid'"):
        own.evaluate("test").plot("roc", positive="midd")


def test_tables_that_have_no_rows():
    own, _ = world(Ridge(), encode="StandardScaler")
    table = own.evaluate("test")
    for other in (own.evaluate("test", unscale=False), pickle.loads(pickle.dumps(table))):
        with pytest.raises(ConfigError, match=r"no rows to draw.*call it again"):
            other.plot()
    with pytest.raises(UnknownNameError, match="unknown node 'nett'"):
        table.plot(node="nett")
    assert type(table[["rmse"]]) is not type(table)


def net_of_numbers(recording="all", n_epochs=6, **options):
    own = mm.Experiment("e", audit="off", seed=0)
    columns = {"x": X, "capacity": Y.astype("f4"), "cell": CELL}
    fs = mm.FeatureSet.from_dict("fs", columns, "x", "capacity", "cell", unit={"capacity": "Ah"})
    fs.add_split(fs.take(np.arange(0, N, 2), label="train"))
    fs.add_split(fs.take(TEST, label="test"))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1))
    schedule = mm.LRSchedule("ExponentialLR", schedule_kwargs={"gamma": 0.1})
    optimizer = mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}, schedule=schedule)
    mm.ModelGraph([mm.ModelNode("net", net, fs)], optimizer)
    loss = mm.AppliedLoss(mm.Loss("mse"), "net", ["outputs", "targets"])
    evaluation = mm.Evaluation.from_split("val", split="test", metrics=["rmse", "mse", "r2"])
    phase = mm.TrainPhase.from_split(
        "train", split="train", sampler=mm.samplers.SimpleSampler(batch_size=15), losses=[loss],
        n_epochs=n_epochs, result_recording=recording,
        callbacks=[evaluation, mm.callbacks.LearningRateMonitor(), *options.get("callbacks", [])],
    )  # fmt: skip
    return own.run_phase(phase, **QUIET)


def test_training_has_an_axis_for_each_unit(tmp_path):
    stop = mm.EarlyStopping(
        monitor="val_r2", mode="max", patience=1, min_delta=9.0, restore_best=True
    )
    results = net_of_numbers(callbacks=[stop])
    figure = results.plot(path=tmp_path / "train.png")
    frame = results.to_pandas()
    drawn = {axes.get_ylabel(): axes for axes in figure.axes}
    assert list(drawn) == [
        "loss", "error (Ah)", "squared error (Ah²)", "score", "learning rate",
    ]  # fmt: skip
    for label, name in zip(
        drawn, ["train_loss", "val_rmse", "val_mse", "val_r2", "lr"], strict=True
    ):
        line = drawn[label].lines[0]
        np.testing.assert_allclose(line.get_data(), [frame.index, frame[name]])
    assert results.kept_epoch == 0
    for axes in figure.axes:
        assert axes.get_legend().get_texts()[-1].get_text() == "kept epoch 0"
        assert list(axes.lines[-1].get_xdata()) == [0, 0]


def test_rates_that_span_decades_are_on_a_log_scale():
    figure = net_of_numbers(recording="none").plot(title="mine")
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert "error" in labels, "without recorded steps the unit is unknown"
    assert figure.axes[-1].get_yscale() == "log"
    assert figure.get_suptitle() == "mine"
    with pytest.raises(DataError, match="nothing to draw"):
        mm.results.TrainResults("empty").plot()


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        ("rmse", "error (km/h)"),
        ("val_mean_absolute_error", "error (km/h)"),
        ("neg_mean_squared_error", "squared error ((km/h)²)"),
        ("neg_root_mean_squared_error", "error (km/h)"),
        ("head.r2", "score"),
        ("balanced_accuracy", "score"),
        ("roc_auc", "score"),
        ("mape", "mape"),
        ("gap", "gap"),
    ],
)
def test_axes_of_scores(name, axis):
    assert axis_of_score(name, "km/h") == axis
    assert axis_of_score("rmse") == "error"


def test_names_and_units_are_drawn_as_they_are():
    own, _ = world(Ridge(), target="$a_b$")
    results = evaluated(own)
    for figure in (results.plot(), results.plot(kind="residuals"), own.evaluate("test").plot()):
        axes = figure.axes[0]
        assert r"\$a_b\$ (Ah)" in axes.get_ylabel()
        text = axes.yaxis.label
        assert text._preprocess_math(text.get_text()) == (
            text.get_text().replace(r"\$", "$"), False,
        )  # fmt: skip


def test_folds_that_learned_other_classes_are_refused():
    order = np.sort(KIND)
    _, fs = world(LogisticRegression(), order, outputs="predict_proba", target="kind")
    whole = PredefinedSplit(np.unique(order, return_inverse=True)[1])  # holds out one class each
    cv = mm.CrossValidation(
        bindings=mm.CVBinding(fs, ["train", "test"]), splitter=whole, n_folds=3,
        phase=mm.FitPhase.from_split("fit", split="train"),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"different classes.*stratify_by"):
        cv.run(show_fold_progress=False).plot(kind="roc")
