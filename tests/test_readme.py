"""The README shows what really happens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    parts = re.split(r"^```(.*)\n", README, flags=re.MULTILINE)  # text, fence, text, fence ...
    fences = zip(parts[1::4], parts[2::4], strict=True)
    return [text for fence, text in fences if fence == language]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory, run_script: Any) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("readme")
    return run_script(blocks("python")[0], folder), folder


def numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+\.\d+", text)]


def test_the_example_prints_what_the_readme_shows(printed: tuple[str, Path]) -> None:
    shown = next(b for b in blocks("") if "n_missing" in b)
    words = re.sub(r"[\d.\s]+", " ", shown).split()
    assert re.sub(r"[\d.\s]+", " ", printed[0]).split() == words
    # other processors round other bits: the story is the same, not the last digit
    assert numbers(printed[0])[-1] == pytest.approx(numbers(shown)[-1], abs=0.02)


def test_the_example_saves_its_picture(printed: tuple[str, Path]) -> None:
    drawn = (printed[1] / "graph.svg").read_text(encoding="utf-8")
    assert all(label in drawn for label in ("cnn", "mlp", "both", "head", "digits"))
    shown = Path(__file__).parents[1] / "docs" / "images" / "readme_graph.svg"
    assert drawn.split() == shown.read_text(encoding="utf-8").split()


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
