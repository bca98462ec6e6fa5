"""Scores of reports against those of results: padding, classes, missing targets, several nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modularml as mm
from modularml.report.evaluation import Compared, score_table
from tests.experiment.test_padding import T, evaluated, padded
from tests.report.test_experiment import Page
from tests.worlds import arrays, eval_phase, experiment, featureset, graph_of, mlp


def assert_scores(results: Any, names: list[str], group_by: str | None = None) -> None:
    """Check the scores of a report's table against `EvalResults.scores`."""
    compared = Compared.of("it", results.compared_rows("net"), group_by)
    table = score_table(compared, names)
    expected = results.scores(names, group_by=group_by)
    for row in table.rows:
        cells = dict(zip(table.columns, row, strict=True))
        group = row[0]
        mine = expected[
            expected.group.isna() if group == "all rows" else expected.group == float(group)
        ].set_index("score")
        for name in names:
            assert float(cells[name]) == pytest.approx(mine.value[name], rel=2e-3, abs=2e-4)
        assert int(cells["n"]) == mine.n_rows.iloc[0]
    assert len(table.rows) == 1 + expected.group.nunique()


@pytest.mark.parametrize("scaled", [False, True])
def test_padding_does_not_count(scaled: bool) -> None:
    fs = padded()
    if scaled:
        fs.fit_transform("StandardScaler", domain="targets", keys="y", merged_axes=(0, 2))
    results, _ = evaluated(fs, torch.nn.Conv1d(1, 1, 1))
    assert_scores(results, ["r2", "mae", "rmse"], "cell")


def test_steps_of_one_sequence_are_drawn_together() -> None:
    results, _ = evaluated(padded(), torch.nn.Conv1d(1, 1, 1))
    compared = Compared.of("it", results.compared_rows("net"), None)
    assert len(compared.true) == 27
    assert np.bincount(compared.rows).tolist() == [3, 5, 4, 2, 5, 3, 4, 1]


def test_classes_of_padded_steps() -> None:
    results, _ = evaluated(padded(), torch.nn.Conv1d(1, 3, 1), "c")
    assert_scores(results, ["accuracy", "f1_macro"], "cell")


def test_rows_without_a_target_are_left_out_and_counted() -> None:
    x, y = arrays(60)
    y[::7] = np.nan
    fs = featureset(x, y, group=np.arange(60) % 6)
    results = experiment().run_phase(eval_phase(graph_of(fs.reference(tags="group"), mlp()), []))
    with pytest.warns(UserWarning, match="lack a target"):
        assert_scores(results, ["rmse", "max_error"], "group")
    compared = Compared.of("it", results.compared_rows("net"), "group")
    assert "9 rows without a target are left out." in score_table(compared).note


def test_several_targets() -> None:
    x, _ = arrays(40)
    y = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    results = experiment().run_phase(eval_phase(graph_of(featureset(x, y), mlp(out=3)), []))
    assert_scores(results, ["rmse", "mae", "r2"])


def test_what_cannot_be_scored_is_named_and_the_rest_is_reported(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(T, 1))
    _, graph = evaluated(padded(), model)
    own = graph.context.get_experiment()
    page = Page(own.report(tmp_path / "r.html"))
    assert "eval is not scored: " in page.words
    assert "Columns" in page.tables
    assert mm.__version__ in page.words
