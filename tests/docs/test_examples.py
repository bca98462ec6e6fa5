"""Each recipe of the gallery runs, prints a number and draws one picture."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from modularml.viz.diagram import Diagram

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECIPES = sorted((DOCS / "examples").rglob("*.py"))
NAMES = [path.relative_to(DOCS / "examples").as_posix() for path in RECIPES]
MOST_LINES = 38


def run(path: Path) -> Any:
    """Run a recipe and return what its last line gives, as the gallery does."""
    tree = ast.parse(path.read_text("utf-8"))
    last = tree.body.pop()
    assert isinstance(last, ast.Expr), "the last line must draw the picture"
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(tree, path.name, "exec"), names)
    return eval(compile(ast.Expression(last.value), path.name, "eval"), names)


@pytest.fixture
def pyplot(tmp_path, monkeypatch):
    """Agg, an empty working folder, and a folder of its own for temporary files."""
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


@pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # SQLAlchemy in MLflow
@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_recipe_prints_a_number_and_draws_one_picture(path, pyplot, capsys):
    result = run(path)
    assert re.search(r"\d", capsys.readouterr().out)
    if isinstance(result, Diagram):
        assert len(result.nodes) > 1
        assert not pyplot.get_fignums()
        return
    figures = [pyplot.figure(n) for n in pyplot.get_fignums()] or [result]
    assert len(figures) == 1
    assert any(axes.has_data() for axes in figures[0].axes)
    assert list(Path().iterdir()) == [], "recipes write into temporary folders alone"


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_recipe_is_short_and_says_what_to_change(path):
    text = path.read_text("utf-8")
    _, prose, code = text.split('"""', 2)
    title = prose.strip().partition("\n")[0]
    assert len(title) < 40
    assert "**For your data:**" in prose
    guides = re.findall(r":doc:`/howto/(\w+)`", prose)
    assert guides
    assert all((DOCS.parent / "notebooks" / f"{guide}.ipynb").is_file() for guide in guides)
    assert re.search(r"scikit-learn|synthetic", prose), "prose says where the data come from"
    assert re.search(r'^# sphinx_gallery_alt = "[A-Z].{20,}\."$', code, re.MULTILINE)
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= MOST_LINES


def test_the_index_lists_each_recipe(tmp_path):
    """Pages are written by sphinx-gallery with the settings of the docs; no recipe runs."""
    pytest.importorskip("sphinx_gallery")
    shutil.copytree(DOCS / "examples", tmp_path / "examples")
    (tmp_path / "conf.py").write_text(
        "import gallery\n"
        "extensions = ['sphinx_gallery.gen_gallery']\n"
        "exclude_patterns = ['examples']\n"
        "more = {'plot_gallery': False, 'parallel': False}\n"
        "sphinx_gallery_conf = gallery.SETTINGS | more\n"
    )
    (tmp_path / "index.rst").write_text("Index\n=====\n\n.. toctree::\n\n   gallery/index\n")
    arguments = ["-b", "dummy", str(tmp_path), str(tmp_path / "out")]
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(DOCS), str(DOCS.parent)])},
        check=True,
        capture_output=True,
    )
    index = (tmp_path / "gallery" / "index.rst").read_text("utf-8")
    groups = re.findall(r"^   /?(?:gallery/)?(\w+)/index\.rst$", index, re.MULTILINE)
    listed = [
        f"{group}/{name}.py"
        for group in groups
        for name in re.findall(
            r"^   /gallery/\w+/(plot_\w+)$",
            (tmp_path / "gallery" / group / "index.rst").read_text("utf-8"),
            re.MULTILINE,
        )
    ]
    assert groups == ["rows", "graphs", "training", "results", "many", "files", "own"]
    assert sorted(listed) == NAMES
    assert len(listed) >= 30
