"""``modularml predict``, reports, JSON and streams."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import modularml as mm
from modularml.cli import COMMANDS, main
from modularml.models.torch import SequentialMLP
from tests.cli import plans

QUIET = {"show_training_progress": False, "show_eval_progress": False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    plans.write_table(folder)
    with mm.ExperimentContext().activate():
        experiment = plans.experiment(plans.featureset(folder))
        experiment.run(**QUIET)
        experiment.save(folder / "study")
        experiment.model_graph.save(folder / "graph")
    return folder


@pytest.fixture
def folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(trained)
    return trained


def expected(**options: Any) -> pd.DataFrame:
    with mm.ExperimentContext().activate():
        experiment = mm.Experiment.load("study.exp.mml")
        frame = pd.read_csv("cells.csv", dtype={"code": str})
        return experiment.predict(frame, fmt="pandas", **options)


@pytest.mark.parametrize("model", ["study.exp.mml", "graph.mg.mml"])
@pytest.mark.parametrize("out", ["o.csv", "o.parquet"])
def test_predictions_are_those_of_python(
    folder: Path, model: str, out: str, tmp_path: Path
) -> None:
    target = tmp_path / out
    assert main(["predict", model, "cells.csv", "-o", str(target), "--tags"]) == 0
    wanted = expected(tags=True)
    read = (
        pd.read_parquet(target)
        if out.endswith("parquet")
        else pd.read_csv(target, dtype={"code": str})
    )
    assert list(read["code"][:3]) == ["0000", "0001", "0002"]  # no number
    np.testing.assert_array_equal(read["y"].astype("float32"), wanted["y"].astype("float32"))
    assert list(read) == list(wanted)


def test_intervals_streams_and_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["predict", "study.exp.mml", "cells.csv", "--json"]
    assert main([*args, "--interval", "0.5", "--calibration", "test"]) == 0
    shown = pd.DataFrame(json.loads(capsys.readouterr().out))
    wanted = expected(interval=0.5, calibration="test")
    pd.testing.assert_frame_equal(shown, wanted.reset_index(drop=True), check_dtype=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO("x,z\n0.5,1.0\n,1.0\n"))
    with pytest.warns(UserWarning, match="NaN"):
        assert main(["predict", "study.exp.mml", "-"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "y"
    assert float(lines[1]) > 0
    assert lines[2] in ("", '""', "nan")


def test_ensembles_and_calibration_on_a_table(trained: Path, tmp_path: Path) -> None:
    frame = plans.write_table(tmp_path, n=150).iloc[120:]  # rows that are not in the first 120
    frame.to_csv(tmp_path / "new.csv", index=False)
    with mm.ExperimentContext().activate():
        experiment = plans.experiment(plans.featureset(trained))
        ensemble = mm.Ensemble(experiment, n=2)
        ensemble.run(show_training_progress=False)
        ensemble.save(tmp_path / "two")
        options = {"interval": 0.8, "calibration": frame, "tags": True}
        wanted = ensemble.predict(
            pd.read_csv(trained / "cells.csv", dtype={"code": str}), **options
        )
    args = ["predict", str(tmp_path / "two.en.mml"), str(trained / "cells.csv"), "--tags"]
    args += ["--interval", "0.8", "--calibration", str(tmp_path / "new.csv")]
    assert main([*args, "-o", str(tmp_path / "o.parquet")]) == 0
    read = pd.read_parquet(tmp_path / "o.parquet")
    assert list(read["code"][:2]) == ["0000", "0001"]
    for name in ("y", "y_low", "y_high"):
        np.testing.assert_allclose(read[name], wanted[name], rtol=1e-6)


def test_labels_of_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.arange(40.0)
    frame = pd.DataFrame({"x": x, "kind": np.where(x < 20, "low", "high")})
    frame.to_csv("kinds.csv", index=False)
    Path("plan.yaml").write_text("""
data:
  kinds:
    csv: kinds.csv
    features: x
    targets: kind
    scalers: [{scaler: LabelEncoder, domain: targets}]
experiment:
  label: kinds
  model_graph:
    nodes:
    - {label: tree, model: !sklearn.tree.DecisionTreeClassifier {}, upstream_ref: kinds}
  execution_plan: {phases: [!FitPhase {label: fit, split: null}]}
""")
    assert main(["run", "plan.yaml", "--quiet"]) == 0
    capsys.readouterr()
    frame.drop(columns="kind").to_parquet("x.parquet")
    args = ["predict", "plan-results/kinds.exp.mml", "x.parquet", "--decode", "--json"]
    assert main(args) == 0
    assert [row["kind"] for row in json.loads(capsys.readouterr().out)] == list(frame["kind"])


def test_several_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    frame = plans.write_table(tmp_path)
    facts = pd.DataFrame({"cell": sorted(set(frame["cell"])), "mass": np.arange(12.0)})
    facts.to_parquet("facts.parquet")
    with mm.ExperimentContext().activate():
        rows = mm.FeatureSet.from_csv("rows", "cells.csv", ["x", "z"], "y", "cell")
        other = mm.FeatureSet.from_parquet("facts", "facts.parquet", "mass", [], "cell")
        refs = [rows.reference(), other.reference(targets=[], on="cell")]
        nodes = [
            mm.ModelNode(f"n{i}", SequentialMLP(output_shape=(3,)), r) for i, r in enumerate(refs)
        ]
        both = mm.ConcatNode("both", nodes)
        head = mm.ModelNode("head", SequentialMLP(output_shape=(1,)), both)
        graph = mm.ModelGraph([*nodes, both, head])
        graph.build()
        experiment = mm.Experiment.from_active_context("two")
        experiment.save("two")
        wanted = experiment.predict({"rows": frame, "facts": facts}, fmt="pandas")
    assert main(["predict", "two.exp.mml", "rows=cells.csv", "facts=facts.parquet", "--json"]) == 0
    shown = pd.DataFrame(json.loads(capsys.readouterr().out))
    np.testing.assert_allclose(shown.to_numpy(), wanted.to_numpy(), rtol=1e-6)
    assert main(["predict", "two.exp.mml", "rows=cells.csv", "fact=facts.parquet"]) == 1
    assert "unknown table 'fact'; did you mean 'facts'" in capsys.readouterr().err
    assert main(["predict", "two.exp.mml", "rows=cells.csv", "facts=cells.csv"]) == 1
    assert "'cells.csv' lacks the columns ['mass']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["study.exp.mml", "no.csv"], "there is no file 'no.csv'; check the path"),
        (["cells.csv", "cells.csv"], "this is no .mml file"),
        (["study.exp.mml", "cells.csv", "-o", "no/x.csv"], "--out needs a file in an existing"),
        (["study.exp.mml", "cells.csv", "--node", "nett"], "unknown node 'nett' of the graph"),
        (["study.exp.mml", "cells.csv", "--interval", "2"], "between 0 and 1, exclusive"),
        (["graph.mg.mml", "cells.csv", "--interval", "0.9"], "--interval needs the rows of an"),
        (["study.exp.mml", "cells.csv", "cells.csv"], "several tables need labels"),
        (["study.exp.mml", "rows.csv"], "'rows.csv' lacks the columns ['x', 'z']"),
        (["cells.fs.mml", "cells.csv"], "holds no trained model"),
    ],
)
def test_predict_refuses_in_one_line(
    args: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("rows.csv").write_text("a,b\n1,2\n")
    if not Path("cells.fs.mml").exists():
        with mm.ExperimentContext().activate():
            plans.featureset(folder).save("cells")
    assert main(["predict", *args]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_report_is_written(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    page = tmp_path / "r.html"
    assert main(["report", "study.exp.mml", "-o", str(page), "--title", "My study"]) == 0
    assert "My study" in page.read_text("utf-8")


def test_json_of_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*args: str) -> Any:
        status = main([*args, "--json"])
        return status, json.loads(capsys.readouterr().out)

    status, contents = shown("inspect", "study.exp.mml")
    assert (status, contents["kind"], contents["label"]) == (0, "Experiment", "study")
    assert shown("diff", "study.exp.mml", "study.exp.mml") == (0, {})
    status, table = shown("compare", "study.exp.mml", "--all")
    assert (status, len(table)) == (0, 1)
    status, audit = shown("audit", "cells.csv", "--target", "y", "--group", "cell", "--tag", "code")
    assert (status, audit["ok"]) == (0, True) or audit["findings"]
    status, error = shown("inspect", "no.exp.mml")
    assert (status, error["status"], error["type"]) == (1, 1, "MMLNotFoundError")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert "exit status:" in shown
    assert f"modularml {command}" in shown.partition("examples:")[2] or command == "demo"


def test_the_reference_page_lists_all_options(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "commands.md").read_text("utf-8")
    rows = {row.split("`")[1].split()[0]: row for row in page.splitlines() if row.startswith("| `")}
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        names = re.findall(r"^  (?:-\w.*, )?(--[\w-]+)", capsys.readouterr().out, re.MULTILINE)
        assert "--json" in names
        missing = [n for n in names if n not in ("--help", "--json") and n not in rows[command]]
        assert missing == [], command


def test_readers_that_leave_and_streams_that_cannot_encode(folder: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": root, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    pd.DataFrame({"x": np.arange(30_000.0), "z": 1.0}).to_csv("long.csv", index=False)
    code = (
        "import sys\nfrom modularml.cli import main\n"
        "first = main(['audit', 'größe.csv', '--target', 'y'])\n"
        "sys.exit(first - main(['predict', 'study.exp.mml', 'long.csv']))\n"
    )
    leave = [sys.executable, "-c", "import sys; sys.stdin.read(5)"]
    reader = subprocess.Popen(leave, stdin=subprocess.PIPE)
    assert reader.stdin is not None
    pipes = {"stdout": reader.stdin, "stderr": subprocess.PIPE}
    writer = subprocess.Popen([sys.executable, "-c", code], env=env, text=True, **pipes)
    reader.stdin.close()
    _, said = writer.communicate(timeout=120)
    reader.wait()
    assert said == "modularml: there is no file 'gr\\xf6\\xdfe.csv'; check the path\n"
    assert writer.returncode == 1
