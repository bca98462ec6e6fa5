"""Mistakes in plan files: found before anything runs, with position, and by the schema too."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import modularml as mml
from modularml.cli import main
from modularml.cli.plan import read_plan
from modularml.cli.plan_check import check_plan
from modularml.cli.plan_schema import class_schema, load_classes, plan_schema
from modularml.config import config_registry
from modularml.errors import PlanError
from modularml.io.yamltext import dump_yaml, load_marked, load_yaml
from tests.cli import plans

SPLITS = "    splits:\n"
FOLDS = "folds: {bindings: [{fs: cells, source_splits: [train, val]}]%s}\nexperiment:\n"
SWEEP = "sweep: {space: {graph.optimizer.lr: %s}, n_trials: 2}\nexperiment:\n"

BY_SCHEMA = {
    "section": ("experiment:\n", "experimnt:\n", "14:1: 'experimnt' is no section of a plan; did"),
    "key": ("n_epochs: 4", "n_epoch: 4", "30:7: unknown key 'n_epoch'; did you mean 'n_epochs'?"),
    "number": ("n_epochs: 4", "n_epochs: four", "30:17: must be an integer, got 'four'"),
    "bool": ("shuffle: true", "shuffle: yes", "28:57: must be true or false, got 'yes'"),
    "class": ("!SimpleSampler", "!SimpleSampl", "28:16: unknown class !SimpleSampl; did you mean"),
    "other class": ("!SimpleSampler", "!RandomSplitter", "28:16: must be !NSampler or"),
    "no source": ("    csv: cells.csv\n", "", "3:5: needs one of the keys 'csv', 'parquet'"),
    "path": ("csv: cells.csv", "csv: 3", "3:10: must be a text or a list, got 3"),
    "scaler": ("es, fit_to_split", "es, fit_to", "11:50: unknown key 'fit_to'; did you mean"),
    "no domain": (" domain: targets,", "", "12:7: 'domain' is missing"),
    "model": ("hidden_dim: 8", "hidden_dims: 8", "20:30: unknown key 'hidden_dims'; did you mean"),
    "folds": ("experiment:\n", FOLDS % ", n_fold: 3", "14:63: unknown key 'n_fold'; did you mean"),
    "space": ("experiment:\n", SWEEP % "0.1", "14:37: must be a list that is not empty or a map"),
    "range": ("experiment:\n", SWEEP % "{log_float: [1]}", "14:49: must be a list of 2, got [1]"),
    "output": ("experiment:\n", "output: {foldr: x}\nexperiment:\n", "14:10: unknown key 'foldr'"),
    "list": ("experiment:\n  label", "experiment:\n- label", "15:1: must be a text or !Experi"),
    "sampler": ("test, metrics", "test, sampler: null, metrics", "36:45: unknown key 'sampler'"),
    "unit": ("unit: {y: V}", "unit: V", "7:11: must be a mapping, got 'V'"),
    "no estimator": ("!SequentialMLP", "!sklearn.svm.SVRR", "20:14: there is no estimator"),
}
"""What to replace, by what, and the message; found by the JSON schema as well, but for the last."""

BY_FILES = {
    "file": ("csv: cells.csv", "csv: cell.csv", "3:10: file 'cell.csv' does not exist"),
    "column": ("[x, z]", "[x, zz]", "4:19: 'cells.csv' has no column 'zz'; did you mean 'z'?"),
    "target": ("targets: y", "targets: yy", "5:14: 'cells.csv' has no column 'yy'; did you"),
    "code": ("!SequentialMLP {hidden_dim: 8, dropout: 0.1}", "{$code: os:system}", "20:14: needs"),
    "ratios": ("test: 0.2}", "test: 0.3}", "9:7: ratios must sum to 1"),
    "fit split": ("es, fit_to_split: train", "es, fit_to_split: trai", "11:7: unknown split 'trai"),
    "scaler name": ("scaler: StandardScaler", "scaler: StandardScalr", "11:7: unknown scaler"),
    "kind": ("unit: {y: V}", "kind: {x: numbr}", "3:5: column 'x' of float64 cannot have kind"),
    "split": ("rain\n      split: train", "rain\n      split: trai", "27:14: unknown split 'trai'"),
    "no split": ("rain\n      split: train\n", "rain\n", "25:7: phase 'train' needs split"),
    "upstream": ("upstream_ref: cells", "upstream_ref: cell", "18:5: node 'net' reads from 'cell'"),
    "node of loss": ("s: [{loss: mse, on: net", "s: [{loss: mse, on: n", "25:7: unknown node 'n'"),
    "loss": ("s: [{loss: mse", "s: [{loss: msee", "25:7: unknown torch loss 'msee'; did you mean"),
    "metric": ("[rmse, r2]", "[rmsee, r2]", "36:7: unknown metric 'rmsee'; did you mean 'rmse'"),
    "monitor": ("monitor: val_loss", "monitor: val_los", "25:7: EarlyStopping monitors the metric"),
    "shapes": ("out: 0.1}", "out: 0.1, output_shape: [3]}", "25:7: loss 'mse_net' needs equal sh"),
    "size": ("hidden_dim: 8", "hidden_dim: 0", "20:14: hidden_dim must be an int of at least 1"),
    "pool": ("experiment:\n", FOLDS.replace("val]", "vall]") % "", "14:20: unknown split 'vall'"),
    "path of space": (
        "experiment:\n",
        SWEEP.replace("lr:", "lrr:") % "[1.0, 0.1]",
        "14:8: unknown setting 'graph.optimizer.lrr'; did you mean 'graph.optimizer.lr'",
    ),
}
"""Found with the files and classes at hand."""

BY_YAML = {
    "broken": ("[rmse, r2]", "[rmse, r2", "36:63: expected ',' or ']'"),
    "twice": ("  label: study\n", "  label: study\n  label: other\n", "16:3: the key 'label' is"),
    "alias": ("[rmse, r2]", "[&a rmse, *a]", "36:64: anchors and aliases are not allowed"),
    "python": ("!SequentialMLP", "!!python/object/apply:os.system", "20:14: could not determine"),
    "no arguments": ("!SequentialMLP {hidden_dim: 8, dropout: 0.1}", "!SequentialMLP", "20:14: !S"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    plans.write_table(tmp_path)
    return tmp_path


def changed(old: str, new: str) -> str:
    assert old in plans.PLAN
    return plans.PLAN.replace(old, new, 1)


@pytest.mark.parametrize("case", [*BY_SCHEMA.values(), *BY_FILES.values(), *BY_YAML.values()])
def test_mistakes_are_named_with_their_position(
    case: tuple[str, str, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, message = case
    Path("plan.yaml").write_text(changed(old, new))
    assert main(["run", "plan.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"modularml: plan.yaml:{message}")
    assert {path.name for path in folder.iterdir()} == {"cells.csv", "plan.yaml"}


def test_all_mistakes_are_named_at_once(folder: Path) -> None:
    Path("plan.yaml").write_text(changed("n_epochs: 4", "n_epoch: x").replace("1e-2", "1e-2, 3: 4"))
    plan = read_plan(["plan.yaml"])
    plan.tree["experiment"]["params"]["audit"] = "loud"
    with pytest.raises(PlanError) as caught:
        check_plan(plan)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "must be 'warn' or 'error' or 'off', got 'loud'" in lines[1] + lines[0]


# -- the schema -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    load_classes(models=True)
    return plan_schema()


def untagged(tree: Any) -> Any:
    """Return what an editor sees, which does not know tags."""
    if isinstance(tree, list):
        return [untagged(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    inner = tree["params"] if "$type" in tree else tree.get("$tuple", tree)
    return untagged(inner) if inner is not tree else {k: untagged(v) for k, v in tree.items()}


def test_the_schema_is_one_and_fits_plans(schema: dict[str, Any], folder: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert json.loads(json.dumps(schema)) == schema
    tree = load_marked(plans.PLAN)[0]
    validator.validate(tree)
    validator.validate(untagged(tree))
    from_python = plans.experiment(plans.featureset(folder))
    validator.validate({"data": tree["data"], "experiment": load_yaml(from_python.to_yaml())})
    for extra in (FOLDS % ", n_folds: 3", SWEEP % "{log_float: [1e-4, 0.1]}", SWEEP % "[1, 2]"):
        validator.validate(load_marked(changed("experiment:\n", extra))[0])
    described = schema["$defs"]["SimpleSampler"]["anyOf"][1]["properties"]["batch_size"]
    assert described["type"] == "integer"
    assert "description" in schema["$defs"]["EarlyStopping"]["anyOf"][1]["properties"]["patience"]


def test_the_schema_fits_the_plans_of_the_guide(schema: dict[str, Any]) -> None:
    guide = Path(__file__).parents[2] / "notebooks" / "31_from_the_shell.ipynb"
    sources = ["".join(cell["source"]) for cell in json.loads(guide.read_text("utf-8"))["cells"]]
    (plan,) = (s.partition("\n")[2] for s in sources if s.startswith("%%writefile plan.yaml"))
    added = [s.split('"""')[1] for s in sources if s.startswith(("folds = ", "sweep = "))]
    assert len(added) == 2
    for text in (plan, *(f"{plan}\n{extra}" for extra in added)):
        tree = load_marked(text)[0]
        jsonschema.Draft202012Validator(schema).validate(tree)
        jsonschema.Draft202012Validator(schema).validate(untagged(tree))


@pytest.mark.parametrize("name", list(BY_SCHEMA)[:-1])
def test_the_schema_finds_mistakes(name: str, schema: dict[str, Any]) -> None:
    old, new, _ = BY_SCHEMA[name]
    tree = load_marked(changed(old, new))[0]
    assert not jsonschema.Draft202012Validator(schema).is_valid(tree)


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Plan of modularml"


# -- settings -------------------------------------------------------------------------------------

SET = {
    "seed=5": ("experiment.seed", 5),
    "graph.optimizer.lr=1e-3": ("experiment.model_graph.optimizer.opt_kwargs.lr", 1e-3),
    "graph.optimizer=sgd": ("experiment.model_graph.optimizer.opt", "sgd"),
    "graph.optimizer.clip_norm=1": ("experiment.model_graph.optimizer.clip_norm", 1),
    "nodes.net.hidden_dim=3": ("experiment.model_graph.nodes.0.model.hidden_dim", 3),
    "phases.train.n_epochs=9": ("experiment.execution_plan.phases.0.n_epochs", 9),
    "phases.train.sampler.batch_size=7": (
        "experiment.execution_plan.phases.0.sampler.batch_size",
        7,
    ),
    "phases.train.losses.mse_net.weight=2": (
        "experiment.execution_plan.phases.0.losses.0.weight",
        2,
    ),
    "phases.train.callbacks.1.patience=2": (
        "experiment.execution_plan.phases.0.callbacks.1.patience",
        2,
    ),
    "data.cells.csv=[a.csv, b.csv]": ("data.cells.csv", ["a.csv", "b.csv"]),
    "output.folder=on": ("output.folder", "on"),
}


def at(tree: Any, path: str) -> Any:
    for part in path.split("."):
        tree = tree["params"] if isinstance(tree, dict) and "$type" in tree else tree
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    return tree


@pytest.mark.parametrize("assignment", SET)
def test_settings_change_one_value(assignment: str, folder: Path) -> None:
    Path("plan.yaml").write_text(plans.PLAN + "output: {}\n")
    before, after = read_plan(["plan.yaml"]), read_plan(["plan.yaml"], [assignment])
    path, value = SET[assignment]
    changed_value = at(after.tree, path)
    if path.endswith("optimizer.opt"):
        assert changed_value == value
        return
    assert changed_value == value
    holder = at(after.tree, path.rpartition(".")[0])
    holder = holder.get("params", holder)
    key = path.rpartition(".")[2]
    original = at(before.tree, path.rpartition(".")[0])
    original = original.get("params", original)
    if key in original:
        holder[key] = copy.deepcopy(original[key])
    else:
        del holder[key]
    assert after.tree == before.tree


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("sed=1", "no setting begins with 'sed'; did you mean 'seed'"),
        ("seed", "write PATH=VALUE"),
        ("seed=[", "the value is no YAML"),
        ("nodes.nett.hidden_dim=3", "there is no 'nett' in experiment.model_graph.nodes; did you"),
        ("nodes.net.hidden_dims=3", "there is no 'hidden_dims' in experiment.model_graph.nodes"),
        ("phases.train.n_epochs.x=3", "there is no 'x' in"),
        ("seed=x", "must be an integer or null, got 'x'"),
    ],
)
def test_settings_that_do_not_exist(
    assignment: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("plan.yaml").write_text(plans.PLAN)
    assert main(["run", "plan.yaml", "--set", assignment, "--json"]) == 2
    out, said = capsys.readouterr()
    assert said.startswith(f"modularml: --set {assignment}: ")
    assert message in said
    assert json.loads(out) == {"error": said[11:-1], "type": "PlanError", "status": 2}


def test_files_that_are_no_plans(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("latin.yaml").write_bytes("data: Größe\n".encode("latin-1"))
    for name, text, message in [
        ("no.yaml", None, "cannot be read: No such file"),
        ("latin.yaml", None, "it is not UTF-8 text"),
        ("empty.yaml", "", "a plan has the sections"),
        ("half.yaml", "data: {}\n", "'experiment' is missing"),
        ("sampler.yaml", "!SimpleSampler {batch_size: 2}\n", "a plan has the sections"),
    ]:
        if text is not None:
            Path(name).write_text(text)
        assert main(["run", name]) == 2
        assert message in capsys.readouterr().err
    Path("self.yaml").write_text("experiment: self.yaml\n")
    assert main(["run", "self.yaml"]) == 2
    assert "self.yaml: the file is read twice" in capsys.readouterr().err
    Path("plan.yaml").write_text(plans.PLAN)
    Path("other.yaml").write_text(plans.PLAN)
    assert main(["run", "plan.yaml", "other.yaml"]) == 2
    assert "other.yaml:2:3: 'cells' is there twice" in capsys.readouterr().err
    assert main(["run", "plan.yaml", "plan.yaml"]) == 2
    assert "plan.yaml: the file is read twice" in capsys.readouterr().err


def test_numbers_and_text_as_in_yaml_1_2() -> None:
    text = "on: 1e-4\nno: [1., .5, 007, 2024-01-01, 1:30, null, ~, true, yes, 1_000, .inf]\n"
    assert load_marked(text)[0] == {
        "on": 1e-4,
        "no": [
            1.0,
            0.5,
            "007",
            "2024-01-01",
            "1:30",
            None,
            None,
            True,
            "yes",
            "1_000",
            float("inf"),
        ],
    }
    odd = {"on": ["1e5", "007", "yes", "1:30", "~", "2024-01-01", "0x1f", 1e-5, "", "a: b", ".5"]}
    assert load_yaml(dump_yaml(odd)) == odd == load_marked(dump_yaml(odd))[0]
    assert yaml.safe_load(dump_yaml(odd)) == odd


def test_classes_of_your_own_weaken_no_check(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class OwnSampler(mml.SimpleSampler):
        pass

    class_schema.cache_clear()
    Path("plan.yaml").write_text(changed("!SimpleSampler", "!RandomSplitter"))
    assert main(["run", "plan.yaml"]) == 2
    assert "28:16: must be !NSampler or" in capsys.readouterr().err
    assert config_registry["OwnSampler"] is OwnSampler
