"""The reference: each public name stands once, under a heading where people look for it."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import modularml as mml

pytest.importorskip("sphinx")
DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def apipages() -> ModuleType:
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("apipages")
    finally:
        sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def apimembers(apipages: ModuleType) -> ModuleType:
    return sys.modules["apimembers"]


@pytest.fixture(scope="module")
def usages(apipages: ModuleType) -> ModuleType:
    return sys.modules["usages"]


def test_every_public_module_is_in_the_reference(apipages: ModuleType) -> None:
    public = [name for name in mml.__all__ if inspect.ismodule(getattr(mml, name))]
    assert {f"modularml.{name}" for name in public} <= set(apipages.MODULES)


def test_every_public_name_stands_once(apipages: ModuleType) -> None:
    names, foreign = apipages.public_names()
    groups = apipages.grouped(names)
    places = Counter(name.path for members in groups.values() for name in members)
    assert set(places.values()) == {1}
    assert all(groups.values())
    elsewhere = {path for name in names for path in name.also}
    elsewhere |= {f"{module}.{key}" for module, keys in foreign.items() for key in keys}
    expected = {
        f"{module}.{key}"
        for module in apipages.MODULES
        for key in importlib.import_module(module).__all__
        if not inspect.ismodule(getattr(importlib.import_module(module), key))
    }
    assert set(places) | elsewhere == expected
    assert not set(places) & elsewhere


def test_a_name_without_a_group_is_an_error(apipages: ModuleType) -> None:
    with pytest.raises(LookupError, match=r"modularml\.unheard\.Of"):
        apipages.grouped([apipages.Name("modularml.unheard.Of", object())])


def test_the_index_lists_every_group(apipages: ModuleType) -> None:
    index = (DOCS / "reference" / "index.md").read_text("utf-8")
    listed = [line.removeprefix("api/") for line in index.splitlines() if line.startswith("api/")]
    assert listed == list(apipages.GROUPS)


def test_members_stand_in_the_order_of_their_use(apimembers: ModuleType) -> None:
    sections = {h: [n for n, _ in rows] for h, rows in apimembers.sections(mml.FeatureSet).items()}
    assert next(iter(sections)) == "Constructors"
    assert list(sections)[-1] == "Config and state"
    assert {"from_pandas", "from_csv", "from_parquet"} <= set(sections["Constructors"])
    assert {"split_random", "filter", "take"} <= set(sections["Rows and splits"])
    assert "fit_transform" in sections["Scalers"]
    assert set(sections["Config and state"]) >= {"get_config", "from_config", "get_state"}
    shown = [name for rows in sections.values() for name in rows]
    assert len(shown) == len(set(shown))
    assert set(shown) >= {name for name in vars(mml.FeatureSet) if name.startswith("split")}


def test_headings_are_of_classes_that_exist(apimembers: ModuleType) -> None:
    classes = {base.__name__ for name in mml.__all__ for base in _bases(getattr(mml, name))}
    assert set(apimembers.BASES) <= classes


def _bases(value: object) -> tuple[type, ...]:
    return value.__mro__ if inspect.isclass(value) else ()


def test_guides_that_use_a_name_are_listed(usages: ModuleType, tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Curves\n"]},
        {"cell_type": "code", "source": ["from modularml.callbacks import EMA, SWA\n", "EMA()"]},
        {"cell_type": "code", "source": ["import modularml as mml\n", "mml.FeatureSet.from_csv()"]},
    ]
    (tmp_path / "howto").mkdir()
    (tmp_path / "howto" / "01_curves.ipynb").write_text(json.dumps({"cells": cells}), "utf-8")
    (tmp_path / "page.md").write_text("# Page\n\n```python\nEMA()\n```\n", "utf-8")
    paths = ["modularml.FeatureSet", "modularml.callbacks.EMA", "modularml.Loss"]
    found = usages.find(tmp_path, paths)
    guide = ("howto/01_curves", "Curves")
    assert found == {paths[0]: [guide], paths[1]: [guide], paths[2]: []}
    assert ":doc:`Curves </howto/01_curves>`" in usages.section(found[paths[0]])
    assert usages.section([]) == ""


def test_names_in_code_are_linked_and_those_of_others_are_not(usages: ModuleType) -> None:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    def entry(name: str) -> SimpleNamespace:
        page = f"reference/api/generated/{name.removesuffix('.from_csv')}"
        return SimpleNamespace(docname=page, node_id=name, aliased=False)

    names = ["modularml.FeatureSet", "modularml.FeatureSet.from_csv", "modularml.callbacks.EMA"]
    domain = SimpleNamespace(objects={name: entry(name) for name in names})
    builder = SimpleNamespace(get_relative_uri=lambda here, there: f"../{there}.html")
    app = SimpleNamespace(env=SimpleNamespace(domains={"py": domain}), builder=builder)
    code = (
        "import modularml as mml\nfrom modularml.callbacks import EMA\n"
        "fs = mml.FeatureSet.from_csv(path)\nEMA()\nother.FeatureSet()\nFeatureSet()\n"
    )
    context = {"body": highlight(code, PythonLexer(), HtmlFormatter())}
    usages.link_code(app, "howto/01_curves", "page.html", context, None)
    links = re.findall(r'<a class="api-link" href="([^"]+)"><span class="n">(\w+)', context["body"])
    page = "../reference/api/generated/modularml"
    assert links == [
        (f"{page}.callbacks.EMA.html#modularml.callbacks.EMA", "EMA"),
        (f"{page}.FeatureSet.html#modularml.FeatureSet.from_csv", "from_csv"),
        (f"{page}.callbacks.EMA.html#modularml.callbacks.EMA", "EMA"),
    ]


def test_the_picture_of_the_layers_has_every_folder(apipages: ModuleType, tmp_path: Path) -> None:
    figure = importlib.import_module("layers_figure")
    figure.write(DOCS.parent / "pyproject.toml", tmp_path / "layers.svg")
    picture = (tmp_path / "layers.svg").read_text("utf-8")
    package = Path(mml.__file__).parent
    folders = [p.name for p in package.iterdir() if (p / "__init__.py").exists()]
    assert len(folders) > 10
    for folder in folders:
        assert folder.startswith("_") or folder in picture
    for number in figure.STEPS.values():
        assert f">{number}</text>" in picture


RETURNED = {
    *("audit.CHECKS", "audit.Check", "audit.Finding", "audit.KINDS", "audit.audit"),
    *("audit.check_allowed", "callbacks.ArtifactResult", "callbacks.CallbackResult"),
    *("callbacks.EarlyStoppingResult", "callbacks.EvaluationCallbackResult"),
    *("callbacks.LearningRates", "callbacks.PayloadResult", "data.Batch", "data.BatchView"),
    *("data.ColumnSpec", "data.ExecutionContext", "data.ExperimentNodeReference"),
    *("data.GraphNodeReference", "data.RoleData", "data.SampleCollection", "data.SampleData"),
    *("data.SampleSchema", "data.SampleShapes", "data.SampledView", "FitResults"),
    *("graph.GraphSummary", "graph.MergeStrategy", "graph.NodeSummary", "graph.PadMode"),
    *("migrate.Converted", "migrate.Finding", "migrate.convert", "PhaseGroupResults"),
    *("results.ExperimentRun", "results.ImportanceTable", "results.LossRecord"),
    *("results.MetricStore", "results.PhaseResults", "results.ScoreTable", "runner.Event"),
    *("runner.Listeners", "samplers.EpochBatches", "strategies.BestTrial"),
    *("strategies.LearningCurve", "strategies.PermutationTest", "strategies.TrialPruning"),
    "SweepResults",
}
"""What calls return, or take in place of a plain value: shown in the examples of these calls."""

BASES = {
    *("BaseModel", "TorchBaseModel", "TensorflowBaseModel", "TensorflowModelWrapper"),
    *("graph.ComputeNode", "graph.GraphNode", "graph.MergeNode", "samplers.BaseSampler"),
    *("models.tensorflow.GaussianHead", "models.tensorflow.TabularMLP"),
    *("splitters.FoldSplitter", "tracking.Tracker"),
}
"""Base classes, and twins for Keras of classes with an example for torch."""


def test_what_users_call_has_an_example(apipages: ModuleType) -> None:
    names, _ = apipages.public_names()
    without = {
        name.short
        for name in names
        if ">>>" not in (inspect.getdoc(name.value) or "")
        and not (inspect.isclass(name.value) and issubclass(name.value, BaseException))
    }
    assert without <= RETURNED | BASES
