"""Model cards: fields of Hugging Face, scores, and what the author did not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import modularml as mm
from modularml.errors import ConfigError, UnknownNameError
from modularml.report import write_model_card
from tests.report.worlds import EVIL, classified, trained


def parsed(path: Path) -> tuple[dict[str, Any], str]:
    """Return the front matter and the text of a card."""
    _, front, text = path.read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.fixture(scope="module")
def experiment() -> mm.Experiment:
    return trained("Patients", n_epochs=2)


def test_a_card_has_the_scores_of_the_evaluation(experiment: mm.Experiment, tmp_path: Path) -> None:
    front, text = parsed(experiment.model_card(tmp_path / "README.md", license="mit"))
    assert front["library_name"] == "modularml"
    assert front["license"] == "mit"
    assert front["tags"] == ["modularml", "tabular-regression"]
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"]["name"] == "test"
    values = {m["type"]: m["value"] for m in result["metrics"]}
    table = experiment.evaluate("test").iloc[0]
    assert values == pytest.approx({k: table[k] for k in ("rmse", "mae", "r2")}, abs=6e-4)
    assert front["metrics"] == ["rmse", "mae", "r2"]
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[0] == "## Uses"
    assert "## Evaluation" in headings


def test_a_card_names_what_the_author_did_not_say(
    experiment: mm.Experiment, tmp_path: Path
) -> None:
    path = experiment.model_card(tmp_path / "a.md", intended_use="Research.")
    front, text = parsed(path)
    assert "## Uses\n\nResearch.\n" in text
    assert "## Bias, risks and limitations\n\nNot stated by the author." in text
    assert "license" not in front


def test_classes_are_tagged_and_names_are_escaped(tmp_path: Path) -> None:
    file = classified().save(tmp_path / "kinds")
    about = {"description": f"a | b\n# no heading {EVIL}", "load": {}}
    front, text = parsed(write_model_card(file, tmp_path / "c.md", **about))
    assert front["tags"] == ["modularml", "tabular-classification"]
    assert front["model_name"] == f"Kinds {EVIL}"
    assert "<script" not in text
    assert "\na \\| b \\# no heading" in text
    assert "mml.Experiment.load('kinds.exp.mml')" in text


@pytest.mark.parametrize(
    ("path", "options", "error", "message"),
    [
        ("a.txt", {}, ConfigError, "must end in one of .md"),
        ("a.md", {"licence": "mit"}, UnknownNameError, "license"),
        ("a.md", {"level": 0}, ConfigError, "level"),
        ("a.md", {"load": {"allow_import": ["x"]}}, ConfigError, "for files"),
    ],
)
def test_bad_input_is_refused(
    path: str, options: Any, error: Any, message: str, experiment: mm.Experiment, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        experiment.model_card(tmp_path / path, **options)
    assert not list(tmp_path.iterdir())


def test_a_card_is_of_an_experiment(tmp_path: Path) -> None:
    fs = mm.FeatureSet.from_dict("d", {"x": [1, 2], "y": [0, 1]}, "x", "y", register=False)
    with pytest.raises(TypeError, match="of an experiment, got a FeatureSet"):
        write_model_card(fs, tmp_path / "a.md")
