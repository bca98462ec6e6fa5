"""Evaluation of any rows, and of evaluation phases, held against scikit-learn by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

import modularml as mm
from modularml.audit import AuditWarning
from modularml.errors import AuditError, ConfigError, DataError, UnknownNameError
from tests.worlds import QUIET, arrays, experiment, featureset, graph_of, mlp, train_phase

CELLS = np.array(["a", "b", "c"] * 20)
NAMES = ["x0", "x1", "x2", "x3", "x4", "x5"]


def trained(**options):
    """Return scaled rows with cells, and an experiment trained on half of them."""
    x, y = arrays(n=60)
    fs = featureset(x, 5 * y + 2, cell=CELLS)
    fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
    for domain in ("features", "targets"):
        fs.fit_transform("StandardScaler", domain=domain, fit_to_split="train")
    graph = graph_of(fs, mlp())
    exp = experiment(**options)
    exp.run_phase(train_phase(graph, split="train"), **QUIET)
    return fs, exp


def by_hand(exp, view, name=metrics.root_mean_squared_error):
    true = view.get_targets("numpy", rep="raw").ravel()
    return name(true, exp.predict(view).ravel())


def frame_of(view):
    """Return the raw columns of some rows as a frame."""
    columns = [f"features.{name}.raw" for name in NAMES]
    columns += ["targets.y.raw", "tags.cell.raw"]
    return pd.DataFrame({name.split(".")[1]: view.column(name) for name in columns})


def test_all_rows_and_groups_equal_scikit_learn():
    fs, exp = trained()
    table = exp.evaluate("test", metrics=["rmse", "r2"], group_by="cell")
    assert table.columns.tolist() == ["group", "rmse", "r2", "n", "n_missing"]
    assert table["group"].isna().tolist() == [True, False, False, False]
    assert table["group"].tolist()[1:] == ["a", "b", "c"]
    for row in table.itertuples():
        view = fs["test"]
        if isinstance(row.group, str):
            view = view.filter(conditions={"cell": row.group})
        assert row.rmse == pytest.approx(by_hand(exp, view))
        assert row.r2 == pytest.approx(by_hand(exp, view, metrics.r2_score))
        assert (row.n, row.n_missing) == (len(view), 0)
    assert len(exp.history) == 1
    assert exp.evaluate("test").columns.tolist() == ["rmse", "mae", "r2", "n", "n_missing"]


def as_frame(view):
    return frame_of(view)


def as_dict(view):
    return {name: values.to_numpy() for name, values in frame_of(view).items()}


def as_records(view):
    return frame_of(view).to_dict("records")


def as_other_set(view):
    return mm.FeatureSet.from_dict("other", as_dict(view), NAMES, "y", "cell", register=False)


def as_labelled(view):
    return {"data": frame_of(view)}


@pytest.mark.parametrize(
    "form", [lambda v: v, as_frame, as_dict, as_other_set, as_labelled], ids=lambda f: f.__name__
)
def test_every_form_of_the_same_rows_gets_the_same_scores(form):
    fs, exp = trained()
    wanted = exp.evaluate("test", metrics=["rmse", "mae"], group_by="cell")
    found = exp.evaluate(form(fs["test"]), metrics=["rmse", "mae"], group_by="tags.cell")
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-5)
    small = exp.evaluate(form(fs["test"]), metrics="rmse", batch_size=7)
    assert small["rmse"].item() == pytest.approx(wanted["rmse"][0], rel=1e-5)


def test_metrics_by_function_and_in_scaled_units():
    def worst(true, out):
        return np.abs(true - out).max()

    fs, exp = trained()
    table = exp.evaluate("test", metrics=[worst, "r2"])
    assert table["worst"].item() == pytest.approx(by_hand(exp, fs["test"], worst), rel=1e-5)
    named = exp.evaluate("test", metrics={"largest": worst, "error": "rmse"})
    assert named.columns.tolist() == ["largest", "error", "n", "n_missing"]
    assert named["largest"].item() == table["worst"].item()
    scaled = exp.evaluate("test", metrics="rmse", unscale=False)["rmse"].item()
    deviation = fs["train"].get_targets("numpy", rep="raw").std()
    assert scaled * deviation == pytest.approx(named["error"].item(), rel=1e-4)


@pytest.mark.parametrize("as_rows", [as_frame, as_other_set])
def test_rows_without_targets_are_left_out_and_counted(as_rows):
    fs, exp = trained()
    frame = frame_of(fs["test"])
    lacks = np.zeros(len(frame), bool)
    lacks[[0, 4, 5]] = True
    lacks |= (frame["cell"] == "c").to_numpy()
    frame.loc[lacks, "y"] = np.nan
    rows = frame
    if as_rows is as_other_set:
        columns = {name: values.to_numpy() for name, values in frame.items()}
        rows = mm.FeatureSet.from_dict("o", columns, NAMES, "y", "cell", register=False)
    with pytest.warns(UserWarning, match=r"group|cell='c' .no row has a target"):
        table = exp.evaluate(rows, metrics=["rmse", "r2"], group_by="cell").set_index("group")
    known = frame[~lacks]
    hand = metrics.root_mean_squared_error(known["y"], exp.predict(known).ravel())
    assert table["rmse"].iloc[0] == pytest.approx(hand, rel=1e-5)
    assert table["n"].tolist()[0] == (~lacks).sum()
    assert table["n_missing"].tolist()[0] == lacks.sum()
    assert np.isnan(table.loc["c", "rmse"])
    assert table.loc["c", "n"] == 0
    assert table["n_missing"].iloc[1:].sum() == lacks.sum()


@pytest.mark.parametrize("encoded", [False, True])
def test_classes_by_label_in_frames_and_sets(encoded):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(90, 4)).astype("f4")
    kind = np.array(["low", "mid", "top"])[(x[:, 0] > -0.4).astype(int) + (x[:, 0] > 0.4)]
    fs = mm.FeatureSet.from_dict("d", {"x": x, "kind": kind}, "x", "kind")
    fs.split_random({"train": 0.6, "test": 0.4}, seed=0)
    if encoded:
        fs.fit_transform("LabelEncoder", domain="targets", fit_to_split="train")
        net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        node = mm.ModelNode("net", net, fs)
        graph = mm.ModelGraph([node], mm.Optimizer("adam", opt_kwargs={"lr": 0.1}))
        exp = experiment(audit="off")
        loss = mm.AppliedLoss(mm.Loss("cross_entropy"), "net", ["outputs", "targets"])
        exp.run_phase(train_phase(graph, [loss], split="train", n_epochs=5), **QUIET)
    else:
        model = mm.ScikitModelWrapper(LogisticRegression(), output_method="predict_proba")
        mm.ModelGraph([mm.ModelNode("net", model, fs)])
        exp = experiment(audit="off")
        exp.run_phase(mm.FitPhase.from_split("f", split="train"))
    decoded = exp.predict(fs["test"], decode=True).ravel()
    true = kind[fs["test"].indices]
    table = exp.evaluate("test")
    assert table["accuracy"].item() == pytest.approx((decoded == true).mean())
    rows = fs["test"].indices
    frame = {"x": x[rows], "kind": kind[rows].astype(object)}
    frame["kind"][:2] = None
    partly = exp.evaluate(frame, metrics=["accuracy", "f1_macro"])
    assert partly["accuracy"].item() == pytest.approx((decoded == true)[2:].mean())
    assert partly["f1_macro"].item() == pytest.approx(
        metrics.f1_score(true[2:], decoded[2:], average="macro")
    )
    assert partly["n_missing"].item() == 2
    seen = {"x": x, "kind": kind.astype(object)}
    seen["kind"][:9] = None
    learned = int((fs["train"].indices >= 9).sum())
    warned = mm.Experiment("warned", ctx=exp.ctx)
    with pytest.warns(AuditWarning, match=f"^{learned} of 81 rows of data"):
        warned.evaluate(seen)
    frame["kind"][3] = "new"
    with pytest.raises(DataError, match=r"'new'.*classes are"):
        exp.evaluate(frame)


def test_integer_classes_beside_missing_ones():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 2))
    fs = mm.FeatureSet.from_dict("d", {"x": x, "y": (x[:, 0] > 0) + 1}, "x", "y")
    model = mm.ScikitModelWrapper(LogisticRegression(), output_method="predict_proba")
    mm.ModelGraph([mm.ModelNode("net", model, fs)])
    exp = experiment(audit="off")
    exp.run_phase(mm.FitPhase("f", input_sources=sources(exp)))
    y = np.where(np.arange(60) < 5, np.nan, (x[:, 0] > 0) + 1.0)
    table = exp.evaluate({"x": x, "y": y})
    hand = (exp.predict(x, decode=True).ravel() == y)[5:].mean()
    assert table["accuracy"].item() == pytest.approx(hand)
    assert table["n"].item() == 55


def sources(exp):
    return [
        mm.InputBinding(node.node_id, ref)
        for node in exp.model_graph.head_nodes.values()
        for ref in node.feature_refs
    ]


def test_padded_targets_count_real_steps_only():
    rng = np.random.default_rng(0)
    holds = np.arange(5) < np.array([3, 5, 4, 2, 5, 3])[:, None]
    x, y = rng.normal(size=(2, 6, 5)).astype("f4")
    y[~holds] = np.nan
    data = {"x": x, "y": y, "m": holds, "cell": [0, 1] * 3}
    fs = mm.FeatureSet.from_dict("s", data, "x", "y", ["m", "cell"], mask="m")
    node = mm.ModelNode("net", nn.Conv1d(1, 1, 1), fs.reference(features="x", targets="y"))
    mm.ModelGraph([node]).build()
    exp = experiment()
    out = exp.predict(fs)[:, 0]
    for rows in (fs, data):
        table = exp.evaluate(rows, metrics=["mae"], group_by="cell")
        assert table["mae"][0] == pytest.approx(np.abs(out - y)[holds].mean(), rel=1e-5)
        hand = np.abs(out - y)[::2][holds[::2]].mean()
        assert table["mae"][1] == pytest.approx(hand, rel=1e-5)
        assert table["n"].tolist() == [6, 3, 3]
    with pytest.raises(DataError, match=r"tags.m.raw.*mask of padded"):
        exp.evaluate({"x": x, "y": y})


def test_several_tables_meet_by_their_key():
    rng = np.random.default_rng(0)
    machine, f = np.array(["p", "q", "r", "s"]), np.array([1.0, -2.0, 0.5, 3.0])
    of = np.repeat(np.arange(4), 5)
    x = rng.normal(size=20)
    windows = mm.FeatureSet.from_dict(
        "W", {"x": x, "y": x + f[of], "machine": machine[of]}, "x", "y", "machine"
    )
    facts = mm.FeatureSet.from_dict("F", {"f": f, "machine": machine}, "f", [], "machine")
    windows.split_by_condition({"test": {"machine": ["r", "s"]}})
    layers = [nn.Linear(1, 1, bias=False) for _ in range(3)]
    for layer in layers:
        nn.init.constant_(layer.weight, 1.0)
    a, b = mm.ModelNode("a", layers[0], windows), mm.ModelNode("b", layers[1], facts)
    both = mm.SumNode("both", [a, b], align_on="machine")
    mm.ModelGraph([a, b, both, mm.ModelNode("h", layers[2], both)]).build()
    exp = experiment()
    rows = pd.DataFrame({"x": x, "y": x + f[of] + 0.25, "machine": machine[of]})
    new = {"W": rows, "F": facts}
    for data, error in (("test", 0.0), (windows, 0.0), (new, 0.25)):
        table = exp.evaluate(data, metrics="mae", group_by="machine")
        np.testing.assert_allclose(table["mae"], error, atol=1e-6)
        assert table["n"][0] == (10 if isinstance(data, str) else 20)


def test_groups_keep_their_type():
    x, y = arrays(n=12)
    fs = featureset(x, y, day=np.arange(12) % 3)
    graph_of(fs, mlp()).build()
    groups = experiment().evaluate(fs, metrics="mae", group_by="day")["group"].tolist()
    assert groups == [None, 0, 1, 2]
    assert all(isinstance(group, int) for group in groups[1:])


def test_several_heads_are_scored_each():
    x, y = arrays(n=40)
    fs = featureset(x, np.column_stack([y[:, 0], 3 * y[:, 0]]))
    trunk = mm.ModelNode("trunk", nn.Linear(6, 4), fs)
    heads = [mm.ModelNode(f"h{i}", nn.Linear(4, 1), trunk, targets=f"y{i}") for i in range(2)]
    mm.ModelGraph([trunk, *heads]).build()
    exp = experiment()
    table = exp.evaluate(fs, metrics="rmse").set_index("node")["rmse"]
    for i in range(2):
        true = fs.get_targets("dict_numpy")[f"y{i}"]
        hand = metrics.root_mean_squared_error(true, exp.predict(fs, node=f"h{i}").ravel())
        assert table[f"h{i}"] == pytest.approx(hand, rel=1e-5)
    single = exp.evaluate(fs, metrics="rmse", node="h1")
    assert single["rmse"].item() == table["h1"]
    assert "node" not in single


def test_rows_that_were_learned_from_are_reported():
    fs, exp = trained()
    seen = frame_of(fs["train"])
    mixed = fs.take(np.concatenate([fs["train"].indices[:4], fs["test"].indices]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exp.evaluate("test")
        exp.evaluate("train")  # named for training
        exp.evaluate(frame_of(fs["test"]))
        exp.evaluate(seen.drop(columns="x5").assign(x5=0.0))
    for rows, count in ((mixed, 4), (fs, 30), (seen, 30), (as_other_set(fs["train"]), 30)):
        with pytest.warns(AuditWarning, match=f"^{count} of .* rows of .* learned from"):
            exp.evaluate(rows)


def test_what_is_refused_names_the_remedy():
    fs, exp = trained()
    frame = frame_of(fs["test"])
    with pytest.raises(DataError, match=r"data lacks \['y'\].*predict\(\)"):
        exp.evaluate(frame.drop(columns="y"))
    with pytest.raises(DataError, match="none of the 30 rows of data has a target"):
        exp.evaluate(frame.assign(y=np.nan))
    with pytest.raises(DataError, match="no rows"):
        exp.evaluate(frame[:0])
    with pytest.raises(DataError, match="'x1'"):
        exp.evaluate(frame.drop(columns="x1"))
    with pytest.raises(UnknownNameError, match=r"split 'tset'.*'test'"):
        exp.evaluate("tset")
    with pytest.raises(UnknownNameError, match=r"metric 'rsme'.*'rmse'"):
        exp.evaluate("test", metrics=["rsme"])
    for none in ([], {}):
        with pytest.raises(ConfigError, match="metrics must name at least one"):
            exp.evaluate("test", metrics=none)
    for other in ([3], {"a": 3}, [None]):
        with pytest.raises(ConfigError, match="metrics must be names or functions"):
            exp.evaluate("test", metrics=other)
    with pytest.raises(UnknownNameError, match=r"group_by column 'sell'.*cell"):
        exp.evaluate(frame, group_by="sell")
    with pytest.raises(UnknownNameError, match="node"):
        exp.evaluate("test", node="other")
    with pytest.raises(ConfigError, match=r"metric 'r2' cannot be computed|Input contains NaN"):
        exp.evaluate(frame.assign(x0=np.nan), metrics="r2")


def test_a_graph_without_targets_is_refused():
    x, y = arrays(n=20)
    fs = featureset(x, y)
    node = mm.ModelNode("net", mlp(), fs.reference(features=NAMES, targets=[]))
    mm.ModelGraph([node]).build()
    with pytest.raises(DataError, match=r"'net' has no targets.*ModelNode"):
        experiment().evaluate(fs)


def test_a_strict_experiment_refuses_learned_rows():
    x, y = arrays(n=60)
    fs = featureset(x, y)
    fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
    graph = graph_of(fs, mlp())
    exp = experiment(audit="off")
    exp.run_phase(train_phase(graph, split="train"), **QUIET)
    exp.evaluate(fs)  # no warning
    strict = mm.Experiment("strict", ctx=exp.ctx, audit="error")
    with pytest.raises(AuditError, match=r"30 of 60 rows.*audit='warn'"):
        strict.evaluate(fs)
    assert strict.evaluate("test")["n"].item() == 30


def test_loaded_without_rows_a_graph_is_evaluated_on_new_ones(tmp_path):
    fs, exp = trained()
    frame = frame_of(fs["test"])
    wanted = exp.evaluate(frame, metrics=["rmse"], group_by="cell")
    path = exp.save(tmp_path / "e", rows=False)
    loaded = mm.Experiment.load(path)
    found = loaded.evaluate(frame, metrics=["rmse"], group_by="cell")
    pd.testing.assert_frame_equal(found, wanted)


@pytest.mark.parametrize("encoder", ["LabelEncoder", "OneHotEncoder"])
def test_a_head_of_text_labels_beside_another_target(encoder):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 3)).astype("f4")
    kind = rng.choice(["low", "mid", "top"], size=60)
    data = {"x": x, "kind": kind, "y": x[:, 0]}
    fs = mm.FeatureSet.from_dict("d", data, "x", ["kind", "y"])
    fs.fit_transform(encoder, domain="targets", keys="kind")
    node = mm.ModelNode("cls", nn.Sequential(nn.Flatten(), nn.Linear(3, 3)), fs)
    graph = mm.ModelGraph([node], mm.Optimizer("sgd", opt_kwargs={"lr": 0.0}))
    loss = mm.AppliedLoss(mm.Loss("cross_entropy"), "cls", ["outputs", "targets.kind"])
    exp = experiment(audit="off")
    exp.run_phase(train_phase(graph, [loss]), **QUIET)
    phase = mm.EvalPhase("e", input_sources=sources(exp), losses=[loss], metrics=["accuracy"])
    results = exp.run_phase(phase)
    hits = exp.predict(fs, decode=True).ravel() == kind
    assert dict(results.metrics().items())["accuracy", 0, None] == pytest.approx(hits.mean())
    assert results.scores(["accuracy"])["value"][0] == pytest.approx(hits.mean())
    assert exp.evaluate(fs)["accuracy"].item() == pytest.approx(hits.mean())
    assert exp.evaluate(data)["accuracy"].item() == pytest.approx(hits.mean())


# ------------------------------------------------------------------- metrics of evaluation phases


def eval_phase(**kwargs):
    return mm.EvalPhase.from_split("test", split="test", **kwargs)


def test_a_phase_logs_its_metrics_by_name_and_group(tmp_path):
    _, exp = trained()
    phase = eval_phase(metrics=["rmse", "r2"], group_by="cell", batch_size=7)
    results = exp.run_phase(phase, **QUIET)
    table = exp.evaluate("test", metrics=["rmse", "r2"], group_by="cell")
    logged = {name: v for (name, _, batch), v in results.metrics().items() if batch is None}
    names = [f"{m}{g}" for g in ("", "[a]", "[b]", "[c]") for m in ("rmse", "r2")]
    assert sorted(results.metric_names()) == sorted(names)
    for row in table.itertuples():
        suffix = f"[{row.group}]" if isinstance(row.group, str) else ""
        for name in ("rmse", "r2"):
            assert logged[name + suffix] == pytest.approx(getattr(row, name), rel=1e-5)
    assert exp.last_run.to_pandas().loc[("test", 0), "rmse[b]"] == pytest.approx(table["rmse"][2])
    exp.execution_plan.add_item(phase)
    loaded = mm.Experiment.load(exp.save(tmp_path / "e"))
    (again,) = loaded.execution_plan.flatten()
    assert (again.metrics, again.group_by) == (["rmse", "r2"], "cell")
    assert loaded.last_run.results["test"].metric_names() == results.metric_names()
    assert loaded.run_phase(again).metric_names() == results.metric_names()


def test_an_evaluation_of_such_a_phase_logs_them_and_may_be_monitored():
    fs, exp = trained()
    graph = exp.model_graph
    evaluation = mm.Evaluation(eval_phase=eval_phase(metrics=["r2", "mae"]), label="val")
    assert evaluation.logs == ["val_r2", "val_mae"]
    assert evaluation.direction_of("val_r2") is True
    assert evaluation.direction_of("val_mae") is False
    stopping = mm.EarlyStopping(monitor="val_r2", mode="max", patience=1)
    phase = train_phase(
        graph, label="more", split="train", n_epochs=3, callbacks=[evaluation, stopping]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AuditWarning)  # epochs are selected on test rows
        results = exp.run_phase(phase, **QUIET)
    last = results.metrics().where(name="val_mae").last(sort_by="epoch")
    assert last == pytest.approx(by_hand(exp, fs["test"], metrics.mean_absolute_error), rel=1e-4)


def test_metrics_of_a_phase_reach_the_summary_of_folds():
    x, y = arrays(n=60)
    fs = featureset(x, y, cell=CELLS)
    fs.split_random({"pool": 1.0}, seed=0)
    fs.add_split(fs["pool"].take(np.arange(40), label="train"))
    fs.add_split(fs["pool"].take(np.arange(40, 60), label="val"))
    mm.ModelGraph([mm.ModelNode("net", Ridge(), fs)])
    exp = experiment(audit="off")
    exp.execution_plan.add_items(
        [
            mm.FitPhase.from_split("fit", split="train"),
            mm.EvalPhase.from_split("val", split="val", metrics=["rmse"], group_by="cell"),
        ]
    )
    cv = mm.CrossValidation(bindings=mm.CVBinding(fs, ["pool"]), n_folds=3).run()
    frame = cv.to_pandas()
    for fold in cv.fold_labels:
        hand = cv.get_experiment(fold).evaluate("val", metrics="rmse")["rmse"].item()
        assert frame.loc[fold, "val.rmse"] == pytest.approx(hand)
    assert cv.by_group().loc[("val.rmse", "a"), "n"] == 3


def test_a_phase_without_targets_or_columns_is_refused():
    trained()
    with pytest.raises(UnknownNameError, match="metric 'rsme'"):
        eval_phase(metrics=["rsme"])
    with pytest.raises(UnknownNameError, match="group_by column 'sell'"):
        eval_phase(metrics=["rmse"], group_by="sell")
    with pytest.raises(ConfigError, match="group_by='cell' is for metrics"):
        eval_phase(group_by="cell")
    with pytest.raises(ConfigError, match="metrics must be"):
        eval_phase(metrics=[3])
    with mm.ExperimentContext().activate():
        node = mm.ModelNode(
            "net", mlp(), featureset(*arrays(9)).reference(features=NAMES, targets=[])
        )
        graph = mm.ModelGraph([node])
        phase = mm.EvalPhase(
            "e",
            input_sources=[mm.InputBinding(node.node_id, ref) for ref in node.feature_refs],
            metrics=["rmse"],
        )
        assert graph.tail_nodes
        with pytest.raises(ConfigError, match=r"metrics of phase 'e'.*have none"):
            experiment().run_phase(phase)


def test_a_phase_warns_of_rows_without_targets():
    x, y = arrays(n=30)
    y[:4] = np.nan
    fs = featureset(x, y)
    fs.add_split(fs.take(np.arange(20), label="test"))
    graph = graph_of(fs, mlp())
    graph.build()
    phase = eval_phase(metrics=["rmse", "mae"])
    with pytest.warns(UserWarning, match="^4 rows of phase 'test' lack a target"):
        results = experiment().run_phase(phase)
    out = graph.predict(fs.take(np.arange(4, 20)))
    hand = metrics.mean_absolute_error(y[4:20], out)
    assert dict(results.metrics().items())["mae", 0, None] == pytest.approx(hand, rel=1e-5)
    with pytest.warns(UserWarning, match="4 rows"):
        table = results.scores(["rmse"])
    assert table["n_missing"].item() == 4
