"""Collections of experiments: tables, tests of common folds, and scores on the same rows."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics
from sklearn.linear_model import Lasso, Ridge

import modularml as mm
from modularml.audit import AuditWarning
from modularml.errors import ConfigError, DataError, MMLNotFoundError, UnknownNameError
from modularml.strategies.comparison.statistics import holm, resampled_t_test
from tests.worlds import QUIET, arrays, featureset, graph_of, mlp, mse

pytest.importorskip("matplotlib")
N = 60
CELLS = np.array(["a", "b", "c"] * (N // 3))


def rows(n=N, seed=0):
    """Return rows with cells and two splits."""
    x, y = arrays(n=n, seed=seed)
    fs = featureset(x, 5 * y + 2, cell=CELLS[:n])
    fs.split_random({"train": 0.6, "test": 0.4}, seed=0)
    return fs


def net(label="net", lr=0.05, n_epochs=2, run=True, split_seed=None):
    """Return an experiment with a network, in a context of its own."""
    with mm.ExperimentContext(registration_policy="error").activate():
        fs = rows()
        if split_seed is not None:
            fs.clear_splits()
            fs.split_random({"train": 0.6, "test": 0.4}, seed=split_seed)
        graph_of(fs, mlp(), lr=lr)
        exp = mm.Experiment.from_active_context(label, audit="off")
        val = mm.Evaluation.from_split("val", split="test", metrics=["rmse"])
        exp.execution_plan.add_items(
            [
                mm.TrainPhase.from_split(
                    "train",
                    split="train",
                    sampler=mm.SimpleSampler(batch_size=16),
                    losses=[mse()],
                    n_epochs=n_epochs,
                    callbacks=[val],
                ),
                mm.EvalPhase.from_split(
                    "test", split="test", losses=[mse()], metrics=["rmse", "r2"], group_by="cell"
                ),
            ]
        )
        if run:
            exp.run(**QUIET)
    return exp


def folds(model, label="cv", seed=13, n_folds=4, n_repeats=1, data=None, **binding):
    """Return the results of a cross-validation of an estimator."""
    with mm.ExperimentContext(registration_policy="error").activate():
        fs = rows() if data is None else data()
        mm.ModelGraph([mm.ModelNode("net", model, fs)])
        exp = mm.Experiment.from_active_context(label, audit="off")
        fs.add_split(fs["train"].take(np.arange(2), label="val"))  # replaced in each fold
        exp.execution_plan.add_items(
            [
                mm.FitPhase.from_split("fit", split="train"),
                mm.EvalPhase.from_split("val", split="val", metrics=["rmse"]),
                mm.EvalPhase.from_split("test", split="test", metrics=["rmse"]),
            ]
        )
        bound = mm.CVBinding(fs, ["train"], **binding)
        cv = mm.CrossValidation(
            label=label, bindings=bound, n_folds=n_folds, n_repeats=n_repeats, seed=seed
        )
        return cv.run(show_fold_progress=False)


@pytest.fixture(scope="module")
def pair():
    return net("slow", lr=0.01), net("fast", lr=0.1)


@pytest.fixture(scope="module")
def cvs():
    return {"ridge": folds(Ridge(), "ridge"), "lasso": folds(Lasso(alpha=2.0), "lasso")}


# -------------------------------------------------------------------------------------- the table


def test_only_what_differs_is_shown_beside_metrics(pair):
    table = mm.ExperimentCollection(list(pair)).compare()
    settings = [c for c in table if c.startswith(("config.", "data.", "rows."))]
    assert settings == ["config.graph.optimizer.lr"]
    assert table["config.graph.optimizer.lr"].to_dict() == {"slow": 0.01, "fast": 0.1}
    for exp in pair:
        test = exp.last_run.results["test"]
        logged = {name: v for (name, *_), v in test.metrics().items()}
        row = table.loc[exp.label]
        assert row["test.rmse"] == logged["rmse"]
        assert row["test.mse_net"] == test.aggregated_losses("net")["mse_net"]
        assert row["train.val_rmse"] == pytest.approx(logged["rmse"])
        assert row["seconds"] == exp.last_run.seconds
        assert row["status"] == "completed"
    assert "test.rmse[a]" not in table
    whole = mm.ExperimentCollection(list(pair)).to_pandas()
    assert {"config.phases.train.n_epochs", "config.nodes.net.model", "data.data"} <= set(whole)
    assert (whole["rows.data.train"] == 36).all()
    assert whole["config.phases.train.sampler.batch_size"].tolist() == [16, 16]


def test_files_give_the_same_table_as_the_experiments_they_hold(pair, tmp_path):
    for exp in pair:
        exp.save(tmp_path / exp.label)
    live = mm.ExperimentCollection(list(pair)).to_pandas()
    read = mm.ExperimentCollection(tmp_path).to_pandas()
    assert read.index.tolist() == ["fast", "slow"]  # sorted by path
    pd.testing.assert_frame_equal(read.loc[live.index], live)
    single = mm.ExperimentCollection([tmp_path / "slow", str(tmp_path / "fast.exp.mml")])
    assert single.labels == ["slow", "fast"]


def test_without_rows_a_file_tells_of_the_same_data(pair, tmp_path):
    pair[0].save(tmp_path / "e", rows=False)
    collection = mm.ExperimentCollection({"live": pair[0], "file": tmp_path / "e"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = collection.to_pandas()
    assert table["data.data"].nunique() == 1
    assert table["rows.data.test"].tolist() == [24, 24]
    assert table.loc["live", "test.rmse"] == table.loc["file", "test.rmse"]


def test_files_are_read_without_the_classes_of_their_callbacks(tmp_path):
    script = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parents[2]), str(Path(__file__).parent)]!r}
import modularml as mm
from modularml.callbacks import Callback
from test_collection import net
class Mine(Callback):
    pass
exp = net("own", run=False)
exp.execution_plan.flatten()[0].add_callback(Mine("mine"))
exp.run(show_training_progress=False, show_sampler_progress=False)
exp.save({str(tmp_path / "own")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    collection = mm.ExperimentCollection(tmp_path)
    assert collection.compare()["status"].tolist() == ["completed"]
    assert collection.evaluate("test", metrics="rmse")["rmse"].item() == pytest.approx(
        collection.compare()["test.rmse"].item()
    )


def test_own_models_that_cannot_be_saved_are_compared_by_what_they_show():
    import torch

    class Own(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(6, width), torch.nn.Linear(width, 1))

        def forward(self, x):
            return self.layers(x.flatten(1))

    experiments = []
    for width in (3, 4):
        with mm.ExperimentContext(registration_policy="error").activate():
            graph_of(rows(), Own(width))
            experiments.append(mm.Experiment.from_active_context(f"w{width}"))
    table = mm.ExperimentCollection(experiments).compare()
    assert table["config.nodes.net.model"].nunique() == 2
    assert "out_features=4" in table.loc["w4", "config.nodes.net.model"]
    assert table["status"].tolist() == ["not run", "not run"]


def test_estimators_and_steps_of_pipelines_by_parameter():
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    experiments = []
    for alpha in (1.0, 3.0):
        with mm.ExperimentContext(registration_policy="error").activate():
            model = make_pipeline(StandardScaler(), Ridge(alpha=alpha))
            mm.ModelGraph([mm.ModelNode("net", model, rows())])
            experiments.append(mm.Experiment.from_active_context(f"a{alpha:g}"))
    table = mm.ExperimentCollection(experiments).compare()
    assert table["config.nodes.net.ridge__alpha"].tolist() == [1.0, 3.0]
    assert [c for c in table if c.startswith("config")] == ["config.nodes.net.ridge__alpha"]


def test_each_run_of_an_experiment_and_each_kind_of_member(pair, cvs):
    twice = net("twice")
    twice.run(**QUIET)
    twice.run_phase(twice.execution_plan.flatten()[1], **QUIET)
    members = {"e": twice, "run": pair[0].last_run, "folds": cvs["ridge"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = mm.ExperimentCollection(members).compare()
    assert table.index.tolist() == ["e/twice", "e/twice (2)", "e/test", "run", "folds"]
    assert np.isnan(table.loc["e/test", "train.train_loss"])
    assert (
        table.loc["run", "test.rmse"]
        == pair[0].last_run.results["test"].metrics().where(name="rmse").one()
    )
    frame = cvs["ridge"].to_pandas()
    assert table.loc["folds", "val.rmse"] == pytest.approx(frame["val.rmse"].mean())
    assert table.loc["folds", "val.rmse_std"] == pytest.approx(frame["val.rmse"].std())
    assert table.loc["folds", "n_members"] == 4
    assert table.loc["folds", "rows.data.val"] == 9


def test_failed_runs_and_failed_folds_are_shown(pair):
    failing = net("failing", run=False)

    class Failing(mm.callbacks.Callback):
        def on_epoch_end(self, **facts):
            raise RuntimeError("no")

    failing.execution_plan.flatten()[0].add_callback(Failing("failing"))
    with pytest.raises(RuntimeError, match="no"):
        failing.run(**QUIET)
    table = mm.ExperimentCollection([pair[0], failing]).compare()
    assert table["status"].tolist() == ["completed", "failed"]
    assert np.isnan(table.loc["failing", "test.rmse"])


def test_runs_on_other_rows_are_said(pair):
    other = net("other", split_seed=5)
    collection = mm.ExperimentCollection([pair[0], other])
    with pytest.warns(UserWarning, match=r"'test.rmse'.*'slow' and 'other'.*different rows"):
        table = collection.compare()
    assert "rows.data.test" not in table  # as many, but others
    with pytest.warns(UserWarning, match="different rows"):
        collection.best("test.rmse")
    with pytest.raises(ConfigError, match="'test' holds other rows in 'other' than in 'slow'"):
        collection.evaluate("test")


# ---------------------------------------------------------------------------------- best and plots


def test_the_best_overall_and_by_setting(pair):
    more = [net("slow4", lr=0.01, n_epochs=4), net("fast4", lr=0.1, n_epochs=4)]
    collection = mm.ExperimentCollection([*pair, *more])
    table = collection.compare()
    assert collection.best("test.rmse") == table["test.rmse"].idxmin()
    assert collection.best("r2") == table["test.r2"].idxmax()
    assert collection.best("test.rmse", mode="max") == table["test.rmse"].idxmax()
    by = collection.best("test.rmse", by="graph.optimizer.lr")
    for lr in (0.01, 0.1):
        part = table[table["config.graph.optimizer.lr"] == lr]["test.rmse"]
        assert by.loc[lr].tolist() == [part.idxmin(), part.min()]
    assert collection.best("test.rmse", by="config.phases.train.n_epochs").index.tolist() == [2, 4]
    with pytest.raises(UnknownNameError, match=r"metric 'rsme'.*test.rmse"):
        collection.best("rsme")
    with pytest.raises(UnknownNameError, match=r"column 'graph.optimizer.rl'.*graph.optimizer.lr"):
        collection.best("test.rmse", by="graph.optimizer.rl")
    with pytest.raises(ConfigError, match="pass mode='min'"):
        mm.ExperimentCollection(pair[0]).best("mse_net")


def test_bars_have_the_values_and_the_spread_of_folds(cvs, tmp_path):
    collection = mm.ExperimentCollection(cvs)
    figure = collection.plot("val.rmse", path=tmp_path / "bars.png")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ridge", "lasso"]
    for bar, cv in zip(axes.patches, cvs.values(), strict=True):
        assert bar.get_width() == pytest.approx(cv.to_pandas()["val.rmse"].mean())
    dots = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 4]
    np.testing.assert_allclose(dots[0], cvs["ridge"].to_pandas()["val.rmse"])
    segments = axes.collections[0].get_segments()
    width = segments[0][1][0] - segments[0][0][0]
    assert width == pytest.approx(2 * cvs["ridge"].to_pandas()["val.rmse"].std())
    assert (tmp_path / "bars.png").stat().st_size > 5000


def test_curves_of_training_lie_over_each_other(pair, tmp_path):
    pair[1].save(tmp_path / "fast")
    collection = mm.ExperimentCollection({"slow": pair[0], "fast": tmp_path / "fast"})
    with pytest.raises(ConfigError, match="kind must be 'bar' or 'curve', got 'line'"):
        collection.plot("train.val_rmse", kind="line")
    lines = collection.plot("train.val_rmse", kind="curve").axes[0].lines
    for line, exp in zip(lines, pair, strict=True):
        wanted = exp.last_run.results["train"].metrics().where(name="val_rmse", batch=None)
        np.testing.assert_allclose(line.get_ydata(), list(wanted.values()))
        assert line.get_xdata().tolist() == [0, 1]
    with pytest.raises(UnknownNameError, match="over epochs"):
        collection.plot("test.rmse", kind="curve")
    with pytest.raises(ConfigError, match="metric must be given"):
        collection.plot()


# ------------------------------------------------------------------------------------- statistics


def by_hand(one, other, ratio, level=0.95):
    """Return t, p and the interval, as Nadeau & Bengio write them."""
    d = np.asarray(one) - np.asarray(other)
    n = len(d)
    variance = d.var(ddof=1)
    error = np.sqrt((1 / n + ratio) * variance)
    t = d.mean() / error
    p = 2 * stats.t(n - 1).sf(abs(t))
    return t, p, stats.t.interval(level, n - 1, loc=d.mean(), scale=error)


@pytest.mark.parametrize("n_repeats", [1, 3])
def test_the_test_equals_the_formula_on_the_folds(n_repeats):
    one, other = folds(Ridge(), "r", n_repeats=n_repeats), folds(Lasso(2.0), n_repeats=n_repeats)
    collection = mm.ExperimentCollection({"r": one, "l": other})
    table = collection.test("val.rmse", baseline="l", level=0.9)
    a, b = (cv.to_pandas()["val.rmse"] for cv in (one, other))
    sizes = [len(s.val) / len(s.train) for f in one.fold_labels for s in one.sides(f).values()]
    t, p, interval = by_hand(a, b, np.mean(sizes), 0.9)
    row = table.loc["r"]
    assert table.index.tolist() == ["r"]
    assert (row["t"], row["p"]) == pytest.approx((t, p))
    assert (row["low"], row["high"]) == pytest.approx(interval)
    assert row["difference"] == pytest.approx(a.mean() - b.mean())
    assert row["effect"] == pytest.approx((a - b).mean() / (a - b).std())
    assert row["n_folds"] == 4 * n_repeats
    assert row["p_holm"] == row["p"]
    computed = collection.test("mae", baseline=1)
    hand = [cv.to_pandas(metrics=["mae"])["val.mae"] for cv in (one, other)]
    assert computed.loc["r", "difference"] == pytest.approx(hand[0].mean() - hand[1].mean())


def test_without_correction_the_test_is_that_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 10))
    tiny = resampled_t_test(a, b, ratio=1e-12, level=0.9)
    scipy = stats.ttest_rel(a, b)
    assert (tiny.t, tiny.p, tiny.df) == pytest.approx((scipy.statistic, scipy.pvalue, 9))
    assert (tiny.low, tiny.high) == pytest.approx(scipy.confidence_interval(0.9))
    corrected = resampled_t_test(a, b, ratio=1 / 9)
    assert corrected.t == pytest.approx(scipy.statistic / np.sqrt(10 * (1 / 10 + 1 / 9)))
    assert corrected.p > scipy.pvalue
    swapped = resampled_t_test(b, a, ratio=1 / 9)
    assert (swapped.t, swapped.low) == pytest.approx((-corrected.t, -corrected.high))


def test_the_corrected_test_keeps_its_level_where_student_does_not():
    """Models that differ by nothing but noise, on resamples that share most of their rows."""
    rng = np.random.default_rng(1)
    n, n_folds, corrected, student = 40, 10, 0, 0
    for _ in range(300):
        x = rng.normal(size=n)  # per-row difference of two equally good models
        d = [x[rng.permutation(n)[: n // 4]].mean() for _ in range(n_folds)]
        corrected += resampled_t_test(np.array(d), np.zeros(n_folds), ratio=1 / 3).p < 0.05
        student += stats.ttest_1samp(d, 0).pvalue < 0.05
    assert corrected / 300 < 0.12
    assert student / 300 > 0.2


def test_several_members_are_adjusted_for(cvs):
    more = {**cvs, "flat": folds(Lasso(alpha=50.0))}
    table = mm.ExperimentCollection(more).test("val.rmse")
    assert table.index.tolist() == ["lasso", "flat"]
    smaller, larger = sorted(table["p"])
    assert sorted(table["p_holm"]) == pytest.approx(
        sorted([min(1, 2 * smaller), max(min(1, 2 * smaller), larger)])
    )
    assert holm([0.04, float("nan"), 0.01])[::2] == [0.04, 0.02]


def test_other_folds_and_other_rows_are_refused_by_name(cvs):
    for options, match in (
        ({"seed": 14}, r"'other' and 'ridge'.*fold_0 holds other rows"),
        ({"n_folds": 3}, "fold_0 holds other rows"),
        ({"data": lambda: rows(n=54)}, "fold_0 holds other rows"),
    ):
        other = folds(Ridge(), **options)
        with pytest.raises(ConfigError, match=match):
            mm.ExperimentCollection({"ridge": cvs["ridge"], "other": other}).test("val.rmse")


def test_folds_that_one_of_them_lacks_are_left_out(cvs):
    few = folds(Ridge(), n_repeats=2)
    collection = mm.ExperimentCollection({"one": cvs["ridge"], "two": few})
    with (
        pytest.warns(UserWarning, match=r"fold_4.*left out of the test"),
        pytest.warns(UserWarning, match="no variance"),
    ):
        table = collection.test("val.rmse")
    assert table["n_folds"].item() == 4
    assert np.isnan(table["p"].item())
    assert table["difference"].item() == 0


def test_what_a_test_refuses(cvs, pair):
    collection = mm.ExperimentCollection({**cvs, "single": pair[0]})
    with pytest.raises(ConfigError, match=r"\['single'\] are single runs.*collection\[\['a', 'b'"):
        collection.test("val.rmse")
    both = collection[["ridge", "lasso"]]
    assert both.labels == ["ridge", "lasso"]
    with pytest.raises(UnknownNameError, match=r"metric.*'rsme'"):
        both.test("rsme")
    with pytest.raises(UnknownNameError, match=r"member 'rigde'.*'ridge'"):
        both.test("val.rmse", baseline="rigde")
    with pytest.raises(ConfigError, match=r"'rmse' may be any of \['val.rmse', 'test.rmse'\]"):
        both.test("rmse")
    with pytest.raises(ConfigError, match="level"):
        both.test("val.rmse", level=95)
    with pytest.raises(ConfigError, match="there is only"):
        both[:1].test("val.rmse")
    with pytest.raises(ConfigError, match="at least 2 folds"):
        resampled_t_test(np.ones(1), np.ones(1), ratio=0.1)
    with pytest.raises(ConfigError, match="ratio must be positive"):
        resampled_t_test(np.ones(3), np.ones(3), ratio=0)


def test_metrics_on_a_fixed_split_are_tested_too(cvs):
    table = mm.ExperimentCollection(cvs).test("test.rmse", baseline=0)
    a, b = (cvs[name].to_pandas()["test.rmse"] for name in ("lasso", "ridge"))
    assert table.loc["lasso", "difference"] == pytest.approx((a - b).mean())


# -------------------------------------------------------------------------------------- evaluation


def test_all_are_scored_on_the_same_rows(pair, cvs, tmp_path):
    pair[1].save(tmp_path / "fast")
    x, y = arrays(n=30, seed=7)
    frame = pd.DataFrame({**{f"x{i}": x[:, i] for i in range(6)}, "y": y[:, 0], "cell": CELLS[:30]})
    members = {"slow": pair[0], "file": tmp_path / "fast", "folds": cvs["ridge"]}
    table = mm.ExperimentCollection(members).evaluate(frame, metrics=["rmse"], group_by="cell")
    assert table.columns.tolist() == ["run", "group", "rmse", "n", "n_missing", "rmse_std"]
    for name, exp in (("slow", pair[0]), ("file", pair[1])):
        own = table[table["run"] == name]
        hand = metrics.root_mean_squared_error(y, exp.predict(frame))
        assert own["rmse"].iloc[0] == pytest.approx(hand, rel=1e-5)
    each = [
        metrics.root_mean_squared_error(y, cvs["ridge"].get_experiment(f).predict(frame))
        for f in cvs["ridge"].fold_labels
    ]
    of_folds = table[table["run"] == "folds"].iloc[0]
    assert (of_folds["rmse"], of_folds["rmse_std"]) == pytest.approx(
        (np.mean(each), np.std(each, ddof=1)), rel=1e-5
    )
    assert (table["n"] == [30, 10, 10, 10] * 3).all()


def test_rows_that_folds_learned_from_are_reported_once(cvs):
    fs = rows()
    collection = mm.ExperimentCollection(cvs)[["ridge"]]
    with pytest.warns(AuditWarning, match=r"of 35 rows.*learned from.*and 3 other folds") as got:
        collection.evaluate(fs["train"].take(np.arange(35)), metrics="rmse")
    assert len(got) == 1


def test_runs_without_a_graph_are_refused(pair):
    with pytest.raises(ConfigError, match="'run' is an ExperimentRun"):
        mm.ExperimentCollection({"run": pair[0].last_run}).evaluate("test")


# ------------------------------------------------------------------------------- members and files


def test_members_are_named_counted_and_selected(pair, tmp_path):
    collection = mm.ExperimentCollection([pair[0], pair[0], *pair])
    assert collection.labels == ["slow", "slow (2)", "slow (3)", "fast"]
    assert len(collection) == 4
    assert list(collection) == [pair[0], pair[0], *pair]
    assert collection["fast"] is pair[1] is collection[-1]
    assert collection[1:3].labels == ["slow (2)", "slow (3)"]
    assert "fast" in collection
    assert dict(collection.items())["fast"] is pair[1]
    assert repr(collection).startswith("ExperimentCollection(4 members: 'slow', 'slow (2)'")
    assert "graph.optimizer.lr" in collection._repr_html_()
    with pytest.raises(UnknownNameError, match=r"member 'fats'.*'fast'"):
        collection["fats"]
    with pytest.raises(ConfigError, match="selects none"):
        collection[9:]


def test_folders_are_read_in_order_and_damaged_files_are_named(pair, tmp_path):
    (tmp_path / "deep").mkdir()
    pair[0].save(tmp_path / "b")
    pair[1].save(tmp_path / "a")
    pair[1].save(tmp_path / "deep" / "c")
    collection = mm.ExperimentCollection(tmp_path)
    assert collection.labels == ["a", "b"]
    assert mm.ExperimentCollection([tmp_path], recursive=True).labels == ["a", "b", "deep/c"]
    named = mm.ExperimentCollection({"all": tmp_path, "own": pair[0]})
    assert named.labels == ["all/a", "all/b", "own"]
    assert collection["a"] is collection["a"]
    data = bytearray((tmp_path / "a.exp.mml").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "a.exp.mml").write_bytes(data)
    with pytest.warns(UserWarning, match=r"1 files cannot be read.*a\.exp\.mml: MML-"):
        assert mm.ExperimentCollection(tmp_path).labels == ["b"]
    with pytest.raises(DataError, match=r"none of the files can be read.*a\.exp\.mml"):
        mm.ExperimentCollection([tmp_path / "a.exp.mml"])


def test_what_is_no_member_is_refused(pair, tmp_path):
    with pytest.raises(DataError, match=r"has no file of an experiment.*recursive=True"):
        mm.ExperimentCollection(tmp_path)
    with pytest.raises(MMLNotFoundError):
        mm.ExperimentCollection([pair[0], tmp_path / "nothing"])
    fs = pair[0].ctx.get_node("data")
    rows_only = fs.save(tmp_path / "rows")
    pair[0].save(tmp_path / "good")
    with pytest.warns(UserWarning, match=r"rows\.fs\.mml.*is of kind FeatureSet"):
        assert mm.ExperimentCollection([rows_only, tmp_path / "good"]).labels == ["good"]
    with pytest.raises(TypeError, match="got a int"):
        mm.ExperimentCollection([3])
    with pytest.raises(DataError, match="it is empty"):
        mm.ExperimentCollection([])


def test_sweeps_enter_with_their_best_experiment(pair):
    space = {"phases.train.n_epochs": [1, 2]}
    results = mm.Sweep(pair[0], space, objective="train_loss", seed=1).run(show_progress=False)
    both = mm.ExperimentCollection([pair[1], results])
    best = results.best_experiment()
    assert both.labels == [pair[1].label, best.label]
    table = both.compare()
    assert table.loc[best.label, "test.rmse"] == best.evaluate("test")["rmse"].item()


def test_the_command_line_compares_files(pair, tmp_path, capsys):
    from modularml.cli import main

    for exp in pair:
        exp.save(tmp_path / exp.label)
    out = tmp_path / "table.csv"
    assert main(["compare", str(tmp_path), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "config.graph.optimizer.lr" in shown
    assert "phases.train.n_epochs" not in shown
    frame = pd.read_csv(out, index_col="run")
    assert (
        frame.loc["slow", "test.rmse"]
        == pair[0].last_run.results["test"].metrics().where(name="rmse").one()
    )
    assert main(["compare", str(tmp_path / "slow"), str(tmp_path / "fast"), "--all"]) == 0
    assert "config.phases.train.n_epochs" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "none")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_an_ensemble_is_a_member_and_its_mean_prediction_is_scored(pair):
    single = net("single", n_epochs=3)
    ensemble = mm.Ensemble(single, n=3, vary="seed", seed=0)
    ensemble.run(show_progress=False)
    collection = mm.ExperimentCollection({"single": single, "ensemble": ensemble})
    table = collection.compare()
    logged = ensemble.to_pandas()["test.rmse"]
    assert table.loc["ensemble", "n_members"] == 3
    assert table.loc["ensemble", "test.rmse"] == pytest.approx(logged.mean())
    assert table.loc["ensemble", "test.rmse_std"] == pytest.approx(logged.std())
    scores = collection.evaluate("test", metrics="rmse").set_index("run")["rmse"]
    true = single.ctx.get_node("data")["test"].get_targets("numpy", rep="raw")
    members = [e.predict(e.ctx.get_node("data")["test"]) for e in ensemble.members.values()]
    hand = metrics.root_mean_squared_error(true, np.mean(members, axis=0))
    assert scores["ensemble"] == pytest.approx(hand, rel=1e-5)
    assert scores["single"] == pytest.approx(table.loc["single", "test.rmse"], rel=1e-5)
    collection.plot("test.rmse")
    assert len(collection.plot("train.val_rmse", kind="curve").axes[0].lines) == 2
    with pytest.raises(ConfigError, match="unscale=False is not supported"):
        collection.evaluate("test", unscale=False)


def stopped(label, stop_size=None, lr=0.05):
    """Return folds of a network that stops early by the validation split."""
    with mm.ExperimentContext(registration_policy="error").activate():
        fs = rows()
        fs.add_split(fs["train"].take(np.arange(2), label="val"))  # replaced in each fold
        node = mm.ModelNode("net", mm.models.torch.SequentialMLP(hidden_dim=4), fs)
        mm.ModelGraph([node], mm.Optimizer("sgd", opt_kwargs={"lr": lr}))
        exp = mm.Experiment.from_active_context(label, audit="off")
        val = mm.EvalPhase.from_split("val", split="val", metrics=["r2", "rmse"])
        callbacks = [
            mm.Evaluation(eval_phase=val),
            mm.EarlyStopping(monitor="val_r2", mode="max", patience=2),
        ]
        exp.execution_plan.add_phase(
            mm.TrainPhase.from_split(
                "train",
                split="train",
                sampler=mm.SimpleSampler(batch_size=16),
                losses=[mse()],
                n_epochs=3,
                callbacks=callbacks,
            )
        )
        binding = mm.CVBinding(fs, ["train"], stop_size=stop_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the selection on scored rows
            return mm.CrossValidation(label=label, bindings=binding, n_folds=3).run(
                show_fold_progress=False
            )


def test_rows_for_stopping_leave_folds_the_same_and_selection_is_said():
    fair, fair_too = stopped("fair", 0.2), stopped("fair too", 0.2, lr=0.01)
    assert "stop_val_r2" in fair.get_fold(0)["train"].metric_names()
    honest = mm.ExperimentCollection([fair, fair_too])
    assert honest.test("train.val_rmse")["n_folds"].item() == 3
    mixed = mm.ExperimentCollection([fair, stopped("optimist")])
    with pytest.warns(UserWarning, match=r"\['optimist'\] selected an epoch.*stop_size"):
        table = mixed.test("train.val_rmse")
    assert table["n_folds"].item() == 3
    with (
        pytest.warns(UserWarning, match="optimistic"),
        pytest.raises(ConfigError, match=r"'train.train_loss'.*different rows of fold_0"),
    ):
        mixed.test("train.train_loss")
    shown = mixed.compare()
    parts = [c for c in shown if "stop_val" in c and c.startswith("config")]
    assert parts == ["config.phases.train.callbacks.stop_val"]  # not each of its settings
