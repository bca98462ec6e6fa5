"""``modularml run``: the same bits as in Python, folders of results, and stopped runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import modularml as mm
from modularml.cli import main
from modularml.models.torch import SequentialMLP
from tests.cli import plans

QUIET = {"show_training_progress": False, "show_eval_progress": False}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    plans.write_table(tmp_path)
    (tmp_path / "plan.yaml").write_text(plans.PLAN)
    return tmp_path


def weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the weights of all nodes of a saved experiment."""
    with mm.ExperimentContext().activate():
        return weights_of(mm.Experiment.load(path))


def weights_of(experiment: mm.Experiment) -> dict[str, np.ndarray[Any, Any]]:
    nodes = experiment.model_graph.get_state()["nodes"]
    found = {}
    for label, state in nodes.items():
        stack = [(label, state.get("model"))]
        while stack:
            name, value = stack.pop()
            if isinstance(value, dict):
                stack += [(f"{name}.{k}", v) for k, v in value.items()]
            elif hasattr(value, "shape"):
                found[name] = np.asarray(value)
    return found


def assert_equal_runs(path: Path, experiment: mm.Experiment) -> None:
    one, other = weights(path), weights_of(experiment)
    assert one.keys() == other.keys()
    assert len(one) >= 4
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], name)


@pytest.mark.parametrize("eager", [False, True])
def test_a_plan_of_python_gives_equal_bits(folder: Path, eager: bool) -> None:
    with mm.ExperimentContext().activate():
        fs = plans.featureset(folder)
        experiment = plans.experiment(fs, eager=eager)
        (folder / "plans").mkdir()
        fs.to_yaml(folder / "plans" / "cells.yaml")
        experiment.to_yaml(folder / "plans" / "study.yaml")
        experiment.run(**QUIET)
    args = ["run", "plans/cells.yaml", "plans/study.yaml", "-o", "results", "--quiet"]
    assert main(args) == 0
    assert_equal_runs(folder / "results" / "study.exp.mml", experiment)
    metrics = pd.read_csv(folder / "results" / "metrics.csv")
    expected = experiment.last_run.to_pandas()
    np.testing.assert_array_equal(metrics["train_loss"], expected["train_loss"])
    np.testing.assert_array_equal(metrics["rmse"], expected["rmse"])


def test_a_hand_written_plan_is_what_python_does(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "plan.yaml", "--json", "--quiet"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["folder"] == "plan-results"
    with mm.ExperimentContext().activate():
        experiment = plans.experiment(plans.featureset(folder))
        experiment.run(**QUIET)
        fs = experiment.ctx.get_node(label="cells")
        y = fs["test"].get_targets("numpy", rep="raw")[:, 0]
        error = experiment.predict(fs["test"]).reshape(-1) - y
    assert_equal_runs(folder / "plan-results" / "study.exp.mml", experiment)
    assert facts["figures"]["test"]["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)))
    assert json.loads((folder / "plan-results" / "metrics.json").read_text()) == facts
    again = ["run", "plan-results/plan.yaml", "-o", "again", "--quiet"]  # the resolved plan
    assert main(again) == 0
    assert_equal_runs(folder / "again" / "study.exp.mml", experiment)


def test_results_are_not_replaced_in_silence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = ["run", "plan.yaml", "--quiet", "--set", "phases.train.n_epochs=1"]
    assert main(fast) == 0
    assert main(fast) == 1
    assert "--resume" in capsys.readouterr().err
    before = (folder / "plan-results" / "study.exp.mml").stat().st_mtime_ns
    assert main([*fast, "--resume"]) == 0  # finished, so nothing is run
    assert (folder / "plan-results" / "study.exp.mml").stat().st_mtime_ns == before
    assert main([*fast, "--set", "seed=4", "--resume"]) == 1
    assert "seed: 4" in capsys.readouterr().err
    assert main([*fast, "--set", "seed=4", "--overwrite"]) == 0
    stored = yaml.compose((folder / "plan-results" / "plan.yaml").read_text())
    assert "seed" in {key.value for key, _ in dict(_sections(stored))["experiment"].value}
    assert not (folder / "plan-results" / "checkpoints").exists()


def _sections(node: Any) -> list[tuple[str, Any]]:
    return [(key.value, value) for key, value in node.value]


STOPPER = """
from pathlib import Path
from modularml.engine.callback import Callback

class StopOnce(Callback):
    def on_epoch_end(self, experiment, phase, exec_ctx, **facts):
        mark = Path("stopped")
        if exec_ctx.epoch_idx == 2 and not mark.exists():
            mark.touch()
            raise KeyboardInterrupt
"""


def test_a_stopped_run_resumes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder / "shell_stopper.py").write_text(STOPPER)
    text = plans.PLAN.replace("      callbacks:\n", "      callbacks:\n      - !StopOnce {}\n")
    Path("plan.yaml").write_text(text)
    args = ["run", "plan.yaml", "--quiet", "--allow-import", "shell_stopper"]
    assert main(["run", "plan.yaml"]) == 2
    assert "plan.yaml:32:9: unknown class !StopOnce" in capsys.readouterr().err
    assert main([*args[:-1], "shell_stoper"]) == 1
    assert "there is no such module here" in capsys.readouterr().err
    assert main(args) == 130
    assert "pass --resume to continue" in capsys.readouterr().err
    assert not Path("plan-results/metrics.json").exists()
    assert list(Path("plan-results/checkpoints").rglob("*.ckpt.mml"))
    assert main([*args, "--resume"]) == 0
    assert main([*args, "-o", "whole"]) == 0
    with mm.ExperimentContext().activate():
        whole = mm.Experiment.load("whole/study.exp.mml")
    assert_equal_runs(Path("plan-results/study.exp.mml"), whole)
    tables = [pd.read_csv(Path(name) / "metrics.csv") for name in ("plan-results", "whole")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "table"),
    [
        (
            "folds: {bindings: [{fs: cells, source_splits: train, group_by: cell}], n_folds: 2}\n",
            "metrics.csv",
        ),
        ("sweep: {space: {graph.optimizer.lr: [0.1, 0.01]}, seed: 1}\n", "trials.csv"),
    ],
)
def test_folds_and_sweeps_resume(
    section: str, table: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder / "shell_stopper.py").write_text(STOPPER)
    text = plans.PLAN.replace("      callbacks:\n", "      callbacks:\n      - !StopOnce {}\n")
    text = text.replace("      - !EarlyStopping {monitor: val_loss, patience: 9}\n", "")
    Path("plan.yaml").write_text(section + text)
    args = ["run", "plan.yaml", "--quiet", "--allow-import", "shell_stopper"]
    assert main(args) == 130
    assert main([*args, "--resume"]) == 0
    assert main([*args, "-o", "whole"]) == 0
    tables = [pd.read_csv(Path(name) / table) for name in ("plan-results", "whole")]
    kept = [c for c in tables[0] if c not in ("seconds", "n_epochs")]
    pd.testing.assert_frame_equal(*(t[kept] for t in tables), check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_resumes(folder: Path, number: int) -> None:
    long = ["plan.yaml", "--set", "phases.train.n_epochs=300", "--quiet"]
    command = [sys.executable, "-m", "modularml", "run", *long]
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": root}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not list(folder.glob("plan-results/checkpoints/*/*.ckpt.mml")):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 130), said
    assert "Traceback" not in said
    assert main(["run", *long, "--resume"]) == 0
    assert main(["run", *long, "-o", "whole"]) == 0
    tables = [pd.read_csv(Path(name) / "metrics.csv") for name in ("plan-results", "whole")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_folds_and_sweeps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bindings = "bindings: [{fs: cells, source_splits: [train, val], group_by: cell}]"
    folds = f"folds: {{{bindings}, n_folds: 2, seed: 1}}\n"
    space = "{graph.optimizer.lr: {log_float: [1e-4, 1e-1]}}"
    sweep = f"sweep: {{space: {space}, n_trials: 2, seed: 1}}\n"
    fast = ["--quiet", "--json", "--set", "phases.train.n_epochs=2"]
    plan = plans.PLAN.replace("      - !EarlyStopping {monitor: val_loss, patience: 9}\n", "")
    Path("folds.yaml").write_text(folds + plan)
    Path("sweep.yaml").write_text(sweep + plan)
    assert main(["run", "folds.yaml", *fast]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["folds"] == 2
    table = pd.read_csv("folds-results/metrics.csv")
    name = "train.val_loss"
    assert facts["figures"][name]["mean"] == pytest.approx(table[name].mean())
    assert main(["run", "sweep.yaml", *fast]) == 0
    facts = json.loads(capsys.readouterr().out)
    trials = pd.read_csv("sweep-results/trials.csv")
    assert facts["trials"] == len(trials) == 2
    assert facts["best"]["value"] == pytest.approx(trials["value"].min())
    best = weights(Path("sweep-results/study-best.exp.mml"))
    assert len(best) >= 4


ESTIMATOR = """
  model_graph:
    nodes:
    - {label: net, model: !sklearn.linear_model.Ridge {alpha: 1.0}, upstream_ref: cells}
  execution_plan:
    phases:
    - !FitPhase {label: fit, split: train}
    - !EvalPhase {label: test, split: test, metrics: [rmse]}
"""


def test_estimators_windows_and_saved_sets(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, _, _ = plans.PLAN.partition("experiment:\n")
    plan = f"{data}experiment:\n  label: ridge{ESTIMATOR}"
    Path("ridge.yaml").write_text(plan)
    args = ["run", "ridge.yaml", "--quiet", "--json", "--set", "nodes.net.alpha=1e9"]
    assert main(args) == 0
    flat = json.loads(capsys.readouterr().out)["figures"]["test"]["rmse"]
    with mm.ExperimentContext().activate():
        fs = plans.featureset(folder)
        y = fs["test"].get_targets("numpy", rep="raw")[:, 0]
        mean = fs["train"].get_targets("numpy", rep="raw")[:, 0].mean()
        assert flat == pytest.approx(float(np.sqrt(np.mean((y - mean) ** 2))), rel=1e-3)
        text = fs.to_yaml(rows="rows.fs.mml")
    assert text == "data:\n  cells:\n    file: rows.fs.mml\n"
    Path("sub").mkdir()
    text = text.replace("rows.fs.mml", "../rows.fs.mml")  # from the folder of the plan
    output = "output: {folder: out, rows: false}\n"
    Path("sub/saved.yaml").write_text(output + plan.replace(data, text))
    assert main(["run", "sub/saved.yaml", *args[2:]]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["test"]["rmse"] == flat
    with mm.ExperimentContext().activate():
        saved = mm.Experiment.load("sub/out/ridge.exp.mml")
        assert not saved.ctx.get_node(label="cells").has_rows
    assert main(["run", "sub/out/plan.yaml", "-o", "third", *args[2:]]) == 0


def test_random_encoders_follow_the_seed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = plans.PLAN.partition("experiment:\n")[0]
    encoder = (
        "{scaler: TargetEncoder, domain: features, keys: cell, fit_to_split: train, targets: y}"
    )
    for old, new in {
        "[x, z]": "[x, z, cell]",
        "tags: [cell, code]": "tags: code",
        "domain: features, fit": "domain: features, keys: [x, z], fit",
        ", group_by: cell": "",
        "    scalers:\n": f"    scalers:\n    - {encoder}\n",
    }.items():
        assert old in data
        data = data.replace(old, new)
    Path("t.yaml").write_text(f"{data}experiment:\n  label: ridge\n  seed: 1{ESTIMATOR}")
    found = []
    for options in ([], [], ["--set", "seed=2"]):
        args = ["run", "t.yaml", "--quiet", "--json", "--overwrite", *options]
        assert main([*args, "--set", "experiment.audit=off"]) == 0
        found.append(json.loads(capsys.readouterr().out)["figures"]["test"]["rmse"])
    assert found[0] == found[1] != found[2]


def test_windows_and_joins(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = pd.DataFrame({"cell": [f"c{i:02d}" for i in range(12)], "mass": np.arange(12.0)})
    facts.to_parquet("facts.parquet")
    tables = """\
data:
  rows: {csv: cells.csv, features: [x, z], targets: y, tags: [cell]}
  facts: {parquet: facts.parquet, features: mass, targets: [], tags: cell}
  both: {join: {of: rows, other: facts, on: cell}}
  cells:
    windows: {of: rows, columns: [x, z], length: 5, series: cell, target: last}
    splits: [!RandomSplitter {ratios: {train: 0.6, test: 0.4}}]
"""
    Path("w.yaml").write_text(f"{tables}experiment:\n  label: ridge{ESTIMATOR}")
    assert main(["run", "w.yaml", "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown["data"]) == ["rows", "facts", "both", "cells"]
    Path("bad.yaml").write_text(Path("w.yaml").read_text().replace("of: rows, c", "of: row, c"))
    assert main(["run", "bad.yaml", "--dry-run"]) == 2
    assert "bad.yaml:6:19: no table 'row' comes before" in capsys.readouterr().err


def test_epochs_are_logged_where_no_bar_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "plan.yaml", "--set", "phases.train.n_epochs=2"]) == 0
    said = capsys.readouterr().err
    assert [f"epoch {i} of 2" in said for i in range(3)] == [True, True, False]


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.iterdir())
    assert main(["run", "plan.yaml", "--dry-run", "--set", "graph.optimizer.lr=0.5"]) == 0
    shown = capsys.readouterr().out
    assert "lr: 0.5" in shown
    assert "split: train" in shown
    assert sorted(folder.iterdir()) == before


TWO = """\
experiment:
  label: two
  seed: 1
  model_graph:
    nodes:
    - label: a
      model: !SequentialMLP {output_shape: [3]}
      upstream_ref: !FeatureSetReference {node_label: cells, features: [x]}
    - label: b
      model: !SequentialMLP {output_shape: [3]}
      upstream_ref: !FeatureSetReference {node_label: cells, features: z}
    - !ConcatNode {label: ab, upstream_refs: [a, b], concat_axis_targets: first}
    - {label: head, model: !SequentialMLP {n_layers: 1}, upstream_ref: ab}
    optimizer: adam
  execution_plan:
    phases:
    - !PhaseGroup
      label: both
      phases:
      - !TrainPhase
        label: fit
        split: train
        sampler: !SimpleSampler {batch_size: 16, shuffle: true}
        n_epochs: 2
        losses: [{loss: mse, on: head, inputs: [outputs, targets]}]
    - !EvalPhase {label: test, split: test, metrics: [rmse], group_by: cell}
"""


def two(fs: mm.FeatureSet) -> mm.Experiment:
    """Return the experiment of `TWO`, whose head nodes share one sampler."""
    experiment = mm.Experiment("two", ctx=fs.context, seed=1)
    refs = [fs.reference(features=name) for name in ("x", "z")]
    a, b = (
        mm.ModelNode(label, SequentialMLP(output_shape=(3,)), ref)
        for label, ref in zip("ab", refs, strict=True)
    )
    ab = mm.ConcatNode("ab", [a, b], concat_axis_targets="first")
    head = mm.ModelNode("head", SequentialMLP(n_layers=1), ab)
    mm.ModelGraph([a, b, ab, head], optimizer=mm.Optimizer("adam"))
    fit = mm.TrainPhase.from_split(
        "fit",
        split="train",
        sampler=mm.SimpleSampler(batch_size=16, shuffle=True),
        losses=[mm.AppliedLoss(mm.Loss("mse"), "head", ["outputs", "targets"])],
        n_epochs=2,
    )
    test = mm.EvalPhase.from_split("test", split="test", metrics=["rmse"], group_by="cell")
    experiment.execution_plan.add_items([mm.PhaseGroup("both", [fit]), test])
    return experiment


def test_several_heads_in_groups(folder: Path) -> None:
    Path("two.yaml").write_text(plans.PLAN.partition("experiment:\n")[0] + TWO)
    assert main(["run", "two.yaml", "--quiet"]) == 0
    with mm.ExperimentContext().activate():
        experiment = two(plans.featureset(folder))
        experiment.to_yaml("two_of_python.yaml")
        experiment.run(**QUIET)
    assert_equal_runs(folder / "two-results" / "two.exp.mml", experiment)
    data = folder / "data.yaml"
    data.write_text(plans.PLAN.partition("experiment:\n")[0])
    args = ["run", "data.yaml", "two_of_python.yaml", "-o", "again", "--quiet"]
    assert main(args) == 0
    assert_equal_runs(folder / "again" / "two.exp.mml", experiment)
