"""Reports of cross-validations, sweeps and collections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics

import modularml as mm
from tests.report.test_experiment import Page
from tests.report.worlds import EVIL, folds, trained
from tests.sweep_worlds import world


def test_held_out_scores_of_folds_are_those_of_out_of_fold(tmp_path: Path) -> None:
    cv = folds(trained(n_epochs=2))
    page = Page(cv.report(tmp_path / "r.html"))
    frame = cv.out_of_fold("net")
    rmse = sklearn.metrics.root_mean_squared_error(frame["target"], frame["prediction"])
    header, whole, *groups = page.tables["Scores of held-out rows, net"]
    assert header[:3] == ["patient", "n", "rmse"]
    assert whole[:2] == ["all rows", "144"]
    assert float(whole[2]) == pytest.approx(rmse, abs=6e-4)
    assert [row[0] for row in groups] == [str(i) for i in range(12)]
    one = frame[frame["group"] == 7]
    rmse = sklearn.metrics.root_mean_squared_error(one["target"], one["prediction"])
    assert float(groups[7][2]) == pytest.approx(rmse, abs=6e-4)
    means = {row[0]: row[1] for row in page.tables["Scores"][1:]}
    assert float(means["test.rmse"]) == pytest.approx(cv.to_pandas()["test.rmse"].mean(), abs=6e-4)
    assert len(page.tables["Rows of each fold"]) == 4


def test_failed_folds_are_named_with_their_errors(tmp_path: Path) -> None:
    cv = folds(trained(n_epochs=1))
    cv.failed_folds["fold_1"] = ValueError(f"no {EVIL}")
    del cv._experiments["fold_1"]
    page = Page(cv.report(tmp_path / "r.html"))
    assert f"no {EVIL}" in page.words
    assert page.tables["Scores of held-out rows, net"][1][1] == "96"


def test_a_sweep_shows_trials_best_first_and_its_best_experiment(tmp_path: Path) -> None:
    with mm.ExperimentContext().activate():
        space = {"graph.optimizer.lr": [1e-4, 1e-2, 5e-2]}
        results = mm.Sweep(world(), space, objective="eval.mse_net", n_trials=3, seed=1).run()
    page = Page(results.report(tmp_path / "r.html"))
    header, *rows = page.tables["Trials, best first"]
    values = [float(row[header.index("value")]) for row in rows]
    assert values == sorted(values)
    assert rows[0][0] == str(results.best.number)
    assert values[0] == pytest.approx(results.best.value, rel=1e-3)
    assert page.tags.count("svg") >= 4
    assert "results.best_experiment()" in page.words


def test_a_collection_shows_what_differs(tmp_path: Path) -> None:
    runs = {"long": trained(n_epochs=4), EVIL: trained(n_epochs=2)}
    page = Page(mm.ExperimentCollection(runs).report(tmp_path / "r.html"))
    differing = page.tables["What differs, by run"]
    assert differing[1:] == [["long", "4"], [EVIL, "2"]]
    assert [row[0] for row in page.tables["Metrics of the saved weights"][1:]] == ["long", EVIL]
    assert "script" not in page.tags


@pytest.mark.slow
def test_fifty_folds_of_300_epochs_are_a_small_file(tmp_path: Path) -> None:
    cv = folds(trained(n_epochs=1, batch_size=200), n_folds=50, group_by=None)
    noise = np.random.default_rng(0)
    for i in range(50):
        results = cv.get_fold(i).get_train_result("train")
        for epoch in range(1, 300):
            for name in ("train_loss", "val_loss"):
                results._metrics.log(name, noise.normal(), epoch=epoch)
    path = cv.report(tmp_path / "r.html")
    assert path.stat().st_size < 5_000_000
    assert len(Page(path).tables["Scores of each fold"]) == 51
    assert np.isfinite(cv.to_pandas().to_numpy()).all()


def test_bars_of_many_runs_are_not_drawn(tmp_path: Path) -> None:
    run = trained(n_epochs=1)
    names = {f"run {i}": run for i in range(41)}
    page = Page(mm.ExperimentCollection(names).report(tmp_path / "r.html"))
    assert "Bars of 41 runs are not drawn" in page.words
    assert len(page.tables["Metrics of the saved weights"]) == 42
    assert "svg" not in page.tags
