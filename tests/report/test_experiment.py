"""Reports of experiments and FeatureSets: content, escaping, sizes and files."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.ensemble
import sklearn.metrics

import modularml as mm
from modularml.errors import ConfigError
from modularml.report import write_report
from modularml.report.evaluation import _QUICK, intervals
from modularml.results.scores import find_score
from tests.report.worlds import EVIL, trained
from tests.worlds import arrays, featureset, graph_of, mlp


class Page(HTMLParser):
    """Tables by caption, and the names of all tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[str] = []
        self.words = ""
        self._rows: list[list[str]] = []
        self._open: list[str] = []
        self._caption = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self._open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        self.words += data
        if "caption" in self._open:
            self._caption += data
        elif {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data


@pytest.fixture(scope="module")
def experiment() -> mm.Experiment:
    return trained()


@pytest.fixture(scope="module")
def page(experiment: mm.Experiment, tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("page") / "r.html"
    return Page(write_report(experiment, path, notes="Does it work?"))


def test_scores_of_the_test_rows_are_those_of_scikit_learn(
    experiment: mm.Experiment, page: Page
) -> None:
    view = next(iter(experiment.ctx.available_featuresets.values()))["test"]
    true = view.get_targets("numpy", rep="raw")[:, 0]
    out = experiment.predict(view)[:, 0]
    patients = view.get_tags("numpy")[:, 0]
    header, *rows = page.tables["Scores of test"]
    found = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    groups = {"all rows": np.ones(len(true), bool)} | {
        str(p): patients == p for p in np.unique(patients)
    }
    assert found.keys() == groups.keys()
    for name, mine in groups.items():
        rmse = sklearn.metrics.root_mean_squared_error(true[mine], out[mine])
        r2 = sklearn.metrics.r2_score(true[mine], out[mine])
        assert float(found[name]["rmse"]) == pytest.approx(rmse, abs=6e-4)
        assert float(found[name]["r2"]) == pytest.approx(r2, abs=6e-4)
        assert found[name]["n"] == str(mine.sum())


def test_a_report_names_rows_splits_audit_graph_and_versions(page: Page) -> None:
    assert page.tables["Splits"][1][:3] == ["train", "72", "50.0%"]
    assert "Nothing found" in page.words
    assert "Does it work?" in page.words
    assert any(row[0] == "net" for table in page.tables.values() for row in table)
    assert dict(page.tables["Versions"][1:])["modularml"] == mm.__version__
    assert page.tables["Phases of the plan"][1][0] == "train"
    assert "script" not in page.tags


def test_bootstrap_intervals_of_a_mean_are_those_of_a_loop_by_hand() -> None:
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(9), 7)
    true, out = np.zeros((63, 1)), rng.normal(size=(63, 1)) + groups[:, None]
    low, high = intervals({"mae": _QUICK["mae"]}, true, out, groups)["mae"]
    by_group = [np.abs(out[groups == g]).mean() for g in range(9)]
    draws = np.random.default_rng(77)
    means = [np.mean(draws.choice(by_group, 9)) for _ in range(20_000)]
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), rel=0.06)
    alone = intervals({"mae": _QUICK["mae"]}, true, out, np.arange(63))["mae"]
    assert alone[1] - alone[0] < 0.75 * (high - low)  # rows of a group are alike


def test_a_bootstrap_interval_needs_five_groups() -> None:
    true, out = np.zeros((40, 1)), np.ones((40, 1))
    few = intervals({"mae": _QUICK["mae"]}, true, out, np.arange(40) % 4)["mae"]
    assert np.isnan(few).all()
    enough = intervals({"mae": _QUICK["mae"]}, true, out, np.arange(40) % 5)["mae"]
    assert enough == (1.0, 1.0)


@pytest.mark.parametrize("name", ["rmse", "mae", "r2"])
def test_quick_scores_equal_those_by_name(name: str) -> None:
    rng = np.random.default_rng(1)
    true, out = rng.normal(size=(50, 3)), rng.normal(size=(50, 3))
    assert _QUICK[name](true, out) == pytest.approx(find_score(name)(true, out))


def test_the_same_experiment_gives_the_same_bytes(
    experiment: mm.Experiment, tmp_path: Path
) -> None:
    first = write_report(experiment, tmp_path / "a.html").read_bytes()
    assert write_report(experiment, tmp_path / "b.html").read_bytes() == first


def test_everything_that_users_name_is_escaped(tmp_path: Path) -> None:
    experiment = trained(EVIL, name=EVIL, n_epochs=2)
    path = write_report(experiment, tmp_path / "r.html", title=f"T {EVIL}", notes=EVIL)
    page = Page(path)
    assert "script" not in page.tags
    assert page.words.count(EVIL) > 5


def test_a_report_of_a_file_equals_that_of_its_experiment(
    experiment: mm.Experiment, page: Page, tmp_path: Path
) -> None:
    file = experiment.save(tmp_path / "e")
    of_file = Page(write_report(file, tmp_path / "f.html"))
    assert of_file.tables["Scores of test"] == page.tables["Scores of test"]
    assert of_file.tables["Columns"] == page.tables["Columns"]
    assert "content id" in of_file.words


def test_a_report_of_a_file_without_rows_says_what_is_absent(
    experiment: mm.Experiment, tmp_path: Path
) -> None:
    file = experiment.save(tmp_path / "e", rows=False)
    page = Page(write_report(file, tmp_path / "f.html"))
    assert "Not audited" in page.words
    assert "Without rows" in page.words
    assert page.tables["Splits"][1] == ["train", "72", "50.0%"]
    assert "Scores of test" not in page.tables
    assert page.tables["Logged metrics"][1][0] == "rmse"


def test_a_failed_run_is_shown_with_its_error(tmp_path: Path) -> None:
    experiment = trained(n_epochs=1)
    phase = experiment.execution_plan.flatten()[0]
    phase.losses[0].weight = float("nan")
    with pytest.raises(Exception, match="NaN"):
        experiment.run_phase(phase, show_training_progress=False)
    page = Page(write_report(experiment, tmp_path / "r.html"))
    assert "failed: NonFiniteLossError" in page.words


def test_an_experiment_that_has_not_run_can_be_reported(tmp_path: Path) -> None:
    with mm.ExperimentContext().activate():
        page = Page(write_report(mm.Experiment("empty"), tmp_path / "r.html"))
    assert "Nothing has run yet." in page.words


@pytest.mark.parametrize("n", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_a_featureset_of_many_columns_is_small(n: int, tmp_path: Path) -> None:
    frame = pd.DataFrame(np.zeros((20, n)), columns=[f"c{i}" for i in range(n)])
    frame["y"] = np.arange(20.0)
    fs = mm.FeatureSet.from_pandas("wide", frame, list(frame.columns[:-1]), "y", register=False)
    path = write_report(fs, tmp_path / "r.html")
    assert path.stat().st_size < 200_000
    assert re.search(rf"The first 40 of {n + 1:,} columns", path.read_text("utf-8"))


@pytest.mark.parametrize(
    ("source", "path", "options", "error", "message"),
    [
        (None, "r.html", {}, TypeError, "NoneType"),
        (None, "r.txt", {}, ConfigError, "must end in one of .html"),
        (None, "no/such/r.html", {}, ConfigError, "does not exist"),
        (None, "r.html", {"level": 1.5}, ConfigError, "level must be between 0 and 1"),
        (None, "r.html", {"allow_import": ["a"]}, ConfigError, "for files"),
        ("absent.exp.mml", "r.html", {}, Exception, "absent"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(
    source: Any, path: str, options: Any, error: Any, message: str, tmp_path: Path
) -> None:
    found = tmp_path / source if isinstance(source, str) else source
    with pytest.raises(error, match=message):
        write_report(found, tmp_path / path, **options)
    assert not list(tmp_path.iterdir())


def test_a_failing_report_leaves_an_existing_file(
    experiment: mm.Experiment, tmp_path: Path
) -> None:
    path = tmp_path / "r.html"
    path.write_text("before")
    with pytest.raises(Exception, match="no_such_score"):
        write_report(experiment, path, metrics=["no_such_score"])
    assert path.read_text() == "before"


def binary(tmp_path: Path, **options: Any) -> Page:
    """Return the report of a network with one logit."""
    with mm.ExperimentContext().activate():
        x, _ = arrays(60)
        columns = {"x": x, "sick": (x[:, 0] > 0).astype(int)}
        fs = mm.FeatureSet.from_dict("d", columns, "x", "sick")
        fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
        graph_of(fs, mlp(), "adam", lr=0.05)
        own = mm.Experiment.from_active_context("binary", audit="off")
        loss = mm.AppliedLoss(mm.Loss("bcewithlogits"), on="net", inputs=["outputs", "targets"])
        own.run_phase(mm.EvalPhase.from_split("test", split="test", losses=[loss]))
        return Page(write_report(own, tmp_path / "r.html", **options))


def test_one_score_of_two_classes_needs_to_know_what_it_is(tmp_path: Path) -> None:
    page = binary(tmp_path)
    assert page.tables["Scores of test"][1][2] == "–"
    assert "accuracy is undefined: one column of outputs against labels 0 and 1" in page.words
    known = binary(tmp_path, outputs="logits")
    assert 0 <= float(known.tables["Scores of test"][1][2]) <= 1
    assert "Confusion matrix, test" in known.words


def test_scores_of_rows_that_were_learned_from_say_so(tmp_path: Path) -> None:
    with mm.ExperimentContext().activate():
        fs = featureset(*arrays(40))
        fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
        forest = sklearn.ensemble.RandomForestRegressor(5, random_state=0)
        mm.ModelGraph([mm.ModelNode("forest", forest, fs)])
        own = mm.Experiment.from_active_context("forest", audit="off")
        own.run_phase(mm.FitPhase.from_split("fit", split="train"))
        page = Page(write_report(own, tmp_path / "r.html"))
        assert {n for n in page.tables if n.startswith("Scores of")} == {
            "Scores of fit, fitted on these rows",
            "Scores of split train, learned from",
            "Scores of split test, not learned from",
        }
        own.run_phase(mm.EvalPhase.from_split("again", split="train"))
        page = Page(write_report(own, tmp_path / "r.html"))
        assert "Rows that were learned from" in page.words
