"""Start pages, and guides for those who come from elsewhere: examples print what they show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
GUIDES = [
    *sorted(DOCS.glob("explanation/from-*.md")),
    DOCS / "start/tour.md",
    DOCS / "start/gpus.md",
]


def blocks(path: Path, language: str) -> str:
    """Return all code blocks of a language; those in ``py`` are of other libraries."""
    fences = re.findall(r"^```(\w+)\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return "\n".join(text for fence, text in fences if fence == language)


def words_and_numbers(text: str) -> tuple[list[str], list[float]]:
    number = r"-?\d+\.?\d*"
    return re.sub(number, " ", text).split(), [float(n) for n in re.findall(number, text)]


def test_there_are_guides() -> None:
    assert GUIDES


@pytest.mark.slow
@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_the_example_prints_what_the_guide_shows(
    path: Path, tmp_path: Path, run_script: Any
) -> None:
    if "import keras" in path.read_text("utf-8"):
        pytest.importorskip("keras")
    printed = run_script(blocks(path, "python"), tmp_path)
    words, numbers = words_and_numbers(printed)
    shown_words, shown_numbers = words_and_numbers(blocks(path, "text"))
    assert words == shown_words
    assert numbers == pytest.approx(shown_numbers, rel=0.03, abs=0.02)  # of other processors
