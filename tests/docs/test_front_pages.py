"""README and landing page: their code runs, their figures are those of the benchmarks."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def module(name: str) -> ModuleType:
    """Import a file of docs/, which is not a package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def block(text: str, language: str) -> str:
    match = re.search(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert match is not None
    return match[1]


def test_the_landing_page_prints_what_it_shows(tmp_path: Path) -> None:
    text = (DOCS / "index.md").read_text("utf-8")
    script = tmp_path / "landing.py"
    script.write_text(block(text, "python"), "utf-8")
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    number = r"\d+\.\d+"
    shown = block(text, "text")
    assert re.sub(number, "", done.stdout).split() == re.sub(number, "", shown).split()
    printed, stated = (float(re.findall(number, part)[0]) for part in (done.stdout, shown))
    assert printed == pytest.approx(stated, abs=0.02)  # other processors round other bits


def test_landing_and_readme_show_about_twenty_lines() -> None:
    for path, most in ((DOCS / "index.md", 20), (ROOT / "README.md", 25)):
        lines = block(path.read_text("utf-8"), "python").splitlines()
        assert len([line for line in lines if line.strip()]) <= most, path


def test_the_speed_figure_is_drawn_from_the_benchmarks() -> None:
    figure = module("speed_figure")
    drawn = figure.svg()
    assert figure.FIGURE.read_text("utf-8") == drawn, "run: python docs/speed_figure.py"
    assert figure.ratios()["by hand"] == 1.0
    assert all(f">{ratio:.2f}<" in drawn for ratio in figure.ratios().values())


def test_what_the_readme_says_of_speed_is_in_the_tables() -> None:
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    ratio = module("speed_figure").ratios()["modularml"]
    assert "modularml takes about half" in readme
    assert 0.4 < ratio < 0.6


def test_the_commands_stand_at_the_top_of_the_readme() -> None:
    top = (ROOT / "README.md").read_text("utf-8").splitlines()[:12]
    assert any(line.startswith("make demo") for line in top)
    assert any(line.startswith("make test") for line in top)


def test_versions_and_citation_know_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    versions = json.loads((DOCS / "_static" / "versions.json").read_text("utf-8"))
    assert [row["version"] for row in versions if row["url"] == "./"] == [version]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == version
    assert {"cff-version", "title", "message", "authors", "license"} <= set(citation)


def test_each_guide_is_a_card_with_a_thumbnail(tmp_path: Path) -> None:
    pages = module("pages")
    pages.write_thumbnails(tmp_path)
    source = (DOCS / "howto" / "index.md").read_text("utf-8")
    names = re.findall(r"^\[[^]]+\]\((\w+)\.ipynb\)$", source, re.MULTILINE)
    page = pages.cards(source, tmp_path)
    assert len(names) > 20
    for name in names:
        (picture,) = tmp_path.glob(f"{name}.*")
        assert page.count(f":link: {name}\n") == 1
        assert f"/_thumbnails/{picture.name}" in page
        assert 300 < picture.stat().st_size < 100_000, picture


def test_the_changelog_page_lists_each_fragment() -> None:
    text = module("pages").unreleased()
    for path in (ROOT / "changelog.d").glob("*.*.md"):
        assert " ".join(path.read_text("utf-8").split()) in text
