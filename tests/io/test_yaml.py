"""Configs as YAML: there and back, and nothing but data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import modularml as mm
from modularml.errors import ConfigError, MMLError, MMLExistsError, MMLKindError
from modularml.io.yamltext import dump_yaml, load_yaml
from modularml.samplers import BaseSampler
from modularml.splitters import BaseSplitter, RandomSplitter
from tests.io import things

SMALL = [
    mm.SimpleSampler(batch_size=8, shuffle=True, seed=1),
    RandomSplitter({"a": 0.5, "b": 0.5}, group_by=["cell"]),
    mm.Optimizer("adam", opt_kwargs={"lr": 1e-5, "betas": (0.9, 0.99)}),
    mm.Loss("mse"),
    mm.Scaler("MinMaxScaler", {"feature_range": (0, 1)}),
]


@pytest.mark.parametrize("made", SMALL, ids=lambda o: type(o).__name__)
def test_small_objects_come_back_equal(made: Any, tmp_path: Path) -> None:
    text = made.to_yaml(tmp_path / "x.yaml")
    assert text.startswith(f"!{type(made).__name__}")
    for source in (text, tmp_path / "x.yaml", str(tmp_path / "x.yaml")):
        again = type(made).from_yaml(source)
        assert again == made
        assert again.to_yaml() == text


def test_a_whole_experiment_trains_alike_when_rebuilt(tmp_path: Path) -> None:
    with mm.ExperimentContext().activate():
        text = things.experiment().to_yaml(tmp_path / "study.yaml")
    assert "id" not in {line.strip().partition(":")[0] for line in text.splitlines()}
    fs = things.featureset()
    again = mm.Experiment.from_yaml(tmp_path / "study.yaml")
    assert again.model_graph.nodes.keys() <= again.ctx.available_nodes.keys()
    assert again.ctx.get_node(label="cells") is fs
    assert again.to_yaml() == text
    assert again.run(**things.QUIET)["train"].n_epochs == 2


def test_graphs_phases_and_groups(fresh_context: Any) -> None:
    fs = things.featureset()
    graph = things.graph(fs)
    phase = things.train_phase()
    group = mm.PhaseGroup("both", [phase, mm.PhaseGroup("inner", [])])
    for made in (phase, group):
        again = type(made).from_yaml(made.to_yaml())
        assert again.get_config() == made.get_config()
    with mm.ExperimentContext().activate() as other:
        things.featureset()
        again = mm.ModelGraph.from_yaml(graph.to_yaml())
        assert list(again.get_config()["nodes"][0]) == list(graph.get_config()["nodes"][0])
        assert other.model_graph is again
        assert again.to_yaml() == graph.to_yaml()


def test_a_taken_label_leaves_the_context_alone(fresh_context: Any) -> None:
    graph = things.graph(things.featureset())
    before = things.snapshot(fresh_context)
    again = mm.ModelGraph.from_yaml(graph.to_yaml())
    assert things.snapshot(fresh_context) == before
    assert again is not graph


def test_files_are_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    SMALL[0].to_yaml(path)
    with pytest.raises(MMLExistsError):
        SMALL[0].to_yaml(path)
    SMALL[0].to_yaml(path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["s.yaml"]


HOSTILE = {
    "python object": "!!python/object/apply:os.system ['echo x']\n",
    "python name": "!SimpleSampler\nseed: !!python/name:os.system\n",
    "anchor": "!SimpleSampler\na: &x [1]\nb: *x\n",
    "laughs": "a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]\n",
    "twice": "!SimpleSampler\nseed: 1\nseed: 2\n",
    "no class": "- 1\n- 2\n",
    "unknown": "!Nobody\nseed: 1\n",
    "scalar": "!SimpleSampler 3\n#\n",
    "code": "!Loss\nloss:\n  $code: os:system\n",
    "deep": "[" * 3000 + "]" * 3000 + "\n",
    "long": "a: " + "x" * 2**21 + "\n",
    "broken": "!SimpleSampler\n  seed: [1\n",
    "two": "!SimpleSampler\nseed: 1\n---\n!SimpleSampler\nseed: 2\n",
    "argument": "!SimpleSampler\nsed: 1\n",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_config_is_refused(text: str) -> None:
    cls: Any = mm.Loss if "!Loss" in text else BaseSampler
    with pytest.raises((MMLError, ConfigError, mm.errors.UnknownNameError)):
        cls.from_yaml(text)


def test_another_kind_is_refused() -> None:
    with pytest.raises(MMLKindError, match="RandomSplitter, not a SimpleSampler"):
        mm.SimpleSampler.from_yaml(SMALL[1].to_yaml())
    assert BaseSplitter.from_yaml(SMALL[1].to_yaml()) == SMALL[1]


def test_it_is_plain_yaml() -> None:
    tree = {"$type": "A", "params": {"x": {"$tuple": [1, 2.5]}, "y": {"$enum": "m:E", "value": 1}}}
    text = dump_yaml(tree)
    assert load_yaml(text) == tree
    assert yaml.compose(text).tag == "!A"
