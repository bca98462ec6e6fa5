"""The repository itself: nothing tied to one machine, a light import, notebooks that run."""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from modularml._optional import EXTRAS
from tests import extras

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "modularml").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# ------------------------------------------------------------------ nothing machine-specific

MACHINE = re.compile(
    r"(?<![\w.~:/-])/(?:home|root|Users|work|farm|mnt|opt|srv|tmp|var)/\w"  # an absolute path
    r"|(?<!\w)[A-Z]:\\\\?(?:Users|Windows)\b"
    r"|file:///?\w"
    r"|pypi\.org|pythonhosted\.org|download\.pytorch\.org"  # a registry
    r"|(?:extra-)?index[-_]url\b|PIP_[A-Z]*INDEX"
)


def tracked_files() -> list[Path]:
    """Every text file that is in git, or would be after ``git add``."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [p for p in paths if p.is_file() and b"\0" not in p.read_bytes()[:8192]]


def test_no_tracked_file_names_a_machine_or_a_registry() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {hit.group()}"
        for path in tracked_files()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if (hit := MACHINE.search(line))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("see /ho" + "me/ada/data.csv", True),
        ('"C:' + "\\Users\\ada", True),
        ("https://py" + "pi.org/simple", True),
        ("pip --index" + "-url x", True),
        ("https://example.org/home/page", False),
        ("docs/home/index and ./tmp/x", False),
    ],
)
def test_the_machine_pattern_tells_good_from_bad(text: str, bad: bool) -> None:
    assert bool(MACHINE.search(text)) is bad


# -------------------------------------------------------------------------- a light front door


def test_import_loads_no_framework() -> None:
    heavy = {"keras", "matplotlib", "pandas", "scipy", "sklearn", "tensorflow", "torch"}
    code = "import sys, json, modularml; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert heavy & set(json.loads(run.stdout)) == set()


def test_public_surface_is_sorted_and_resolves() -> None:
    modularml = importlib.import_module("modularml")
    names = list(modularml.__all__)
    assert names == sorted(set(names))
    assert [name for name in names if getattr(modularml, name, None) is None] == []
    assert set(names) <= set(dir(modularml))


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    modularml = importlib.import_module("modularml")
    with pytest.raises(AttributeError, match="FeatureSett"):
        modularml.FeatureSett  # noqa: B018


def test_version_is_the_same_everywhere() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert importlib.import_module("modularml").__version__ == version
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [version]


# ---------------------------------------------------------------- files are data, never code

UNSAFE_MODULES = {"cloudpickle", "dill", "marshal", "pickle", "shelve"}
UNSAFE_BUILTINS = {"__import__", "compile", "eval", "exec"}
UNSAFE_ATTRIBUTES = {"full_load", "load_model", "read_pickle", "to_pickle", "unsafe_load"}
UNSAFE_LOAD = {"joblib", "torch", "yaml"}  # the `load` of these can run code


def unsafe_code(source: str) -> Iterator[str]:
    """Name every construct in a source that could run code out of a file."""
    for node in ast.walk(ast.parse(source)):
        for what in _unsafe(node):
            yield f"line {getattr(node, 'lineno', 0)}: {what}"


def _unsafe(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
        yield from (name for name in names if name.split(".")[0] in UNSAFE_MODULES)
    elif isinstance(node, ast.ImportFrom):
        root = (node.module or "").split(".")[0]
        for alias in node.names:
            loads = root in UNSAFE_LOAD and alias.name == "load"
            if root in UNSAFE_MODULES or loads or alias.name in UNSAFE_ATTRIBUTES:
                yield f"from {node.module} import {alias.name}"
    elif isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_BUILTINS:
            yield f"{node.func.id}()"
        yield from (f"{k.arg}=" for k in node.keywords if _unsafe_keyword(k))
    elif isinstance(node, ast.Attribute):
        owner = ast.unparse(node.value).split(".")[-1]
        if node.attr in UNSAFE_ATTRIBUTES or (node.attr == "load" and owner in UNSAFE_LOAD):
            yield ast.unparse(node)


def _unsafe_keyword(keyword: ast.keyword) -> bool:
    """``np.load(allow_pickle=...)`` and its like, unless plainly switched to the safe side."""
    safe = {"allow_pickle": False, "weights_only": True, "safe_mode": True}.get(keyword.arg or "")
    value = keyword.value
    return safe is not None and not (isinstance(value, ast.Constant) and value.value is safe)


ON_CONSENT = ROOT / "modularml" / "io" / "packaged.py"
"""The one room that runs code out of a file, where its reader says so."""


@pytest.mark.parametrize(
    "path", [p for p in PACKAGE if p != ON_CONSENT], ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_no_file_can_run_code_from_data(path: Path) -> None:
    assert list(unsafe_code(path.read_text("utf-8"))) == []


def test_code_runs_in_one_place_on_consent() -> None:
    found = list(unsafe_code(ON_CONSENT.read_text("utf-8")))
    assert sorted(what.partition(": ")[2] for what in found) == ["compile()", "exec()"]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from cloudpickle import dumps",
        "from joblib import load",
        "joblib.load(f)",
        "backend.torch.load(f, weights_only=True)",
        "read = torch.load",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=trust)",
        "yaml.load(s, Loader=L)",
        "yaml.unsafe_load(s)",
        "keras.models.load_model(f)",
        "pd.read_pickle(f)",
        "eval('1')",
        "exec(code)",
        "__import__(name)",
    ],
)
def test_unsafe_code_is_seen(source: str) -> None:
    assert list(unsafe_code(source))


@pytest.mark.parametrize(
    "source",
    [
        "import json; json.load(f)",
        "np.load(f, allow_pickle=False)",
        "yaml.safe_load(s)",
        "model.eval()",
        "torch.compile(m)",
        "re.compile(p)",
        "safetensors.torch.load_file(f)",
        "modularml.load(f)",
    ],
)
def test_harmless_code_is_let_through(source: str) -> None:
    assert list(unsafe_code(source)) == []


# ------------------------------------------------------------------------------- notebooks


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


TUTORIALS = [path for path in NOTEBOOKS if "_tutorial_" in path.name]
SOLUTION = re.compile(
    r"^<details>.*?^```python\n(.*?)^```\n.*?^</details>", re.MULTILINE | re.DOTALL
)


def test_there_are_tutorials_with_exercises() -> None:
    """Each promises what it gives, shows what it prints, and hides the solutions of exercises."""
    assert len(TUTORIALS) >= 4
    for path in TUTORIALS:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        words = "".join(cells[0]["source"])
        assert "**At the end you will have**" in words, path.name
        assert "**You need**" in words, path.name
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        assert len(SOLUTION.findall(text)) == text.count("**Exercise") >= 3, path.name
        shown = [output for c in cells for output in c.get("outputs", [])]
        assert any("image/png" in output.get("data", {}) for output in shown), path.name


def test_tutorials_can_be_pasted_into_a_prompt() -> None:
    """A prompt ends a block at an empty line; without one, the next statement is an error."""
    for path in TUTORIALS:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells]
        code = [t for t, c in zip(texts, cells, strict=True) if c["cell_type"] == "code"]
        for script in [*code, *(part for text in texts for part in SOLUTION.findall(text))]:
            lines = script.splitlines()
            for first, second in itertools.pairwise(ast.parse(script).body):
                if isinstance(first, ast.For | ast.With | ast.If | ast.FunctionDef):
                    assert not lines[(first.end_lineno or 0)].strip(), (
                        f"{path.name}: {second.lineno}"
                    )


def test_tutorials_are_short() -> None:
    for path in TUTORIALS:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        code = [line for c in cells if c["cell_type"] == "code" for line in c["source"]]
        lines = [line for line in code if line.strip() and not line.strip().startswith("#")]
        limit = 60 if path.stem == "35_tutorial_table" else 50
        assert len(lines) <= limit, f"{path.name} has {len(lines)} lines of code"


START = ROOT / "docs" / "start"
PAGES = [*NOTEBOOKS, *sorted(START.glob("*.md")), *(ROOT / "docs/explanation").glob("from-*.md")]
NEEDS = re.compile(
    r"^(?:You need|Needs) the extras? .+: `pip install '\.\[([\w,]+)\]'`", re.MULTILINE
)
EXTRA_OF_PART = {"dask": "cluster", "tracking": "track", "plotting": "plot", "sweep": "sweep"}


def top_and_code(path: Path) -> tuple[str, str, bool]:
    """Return what a page says first, its code, and whether it shows figures of matplotlib."""
    if path.suffix == ".md":
        text = path.read_text("utf-8")
        code = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        return text.partition("\n## ")[0], "\n".join(code), False
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    drawn = any("image/png" in o.get("data", {}) for c in cells for o in c.get("outputs", []))
    top = "".join(cells[0]["source"]).partition("\n## ")[0]
    return top, "\n".join(c for c in code if not c.startswith("%%")), drawn


def needed_extras(code: str) -> set[str]:
    """Derive extras from the imports of a script, and from what needs them without an import."""
    known = {**EXTRAS, **EXTRA_OF_PART}
    parts: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [alias.name for alias in node.names]
            modules = named if isinstance(node, ast.Import) else [node.module or ""]
            for root, *inside in (module.split(".") for module in modules):
                parts |= {*inside} if root == "modularml" else {root}
        elif isinstance(node, ast.Attribute) and node.attr in {"Sweep", "report", "write_report"}:
            parts.add("sweep" if node.attr == "Sweep" else "jinja2")
    return {known[part] for part in parts if part in known}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_a_page_names_the_extras_that_it_needs(path: Path) -> None:
    top, code, drawn = top_and_code(path)
    named = NEEDS.search(top)
    extras_named = set(named[1].split(",")) if named else set()
    assert needed_extras(code) | ({"plot"} if drawn else set()) <= extras_named
    assert extras_named <= set(EXTRAS.values())
    if named:
        assert re.findall(r"`(\w+)`", named[0]) == named[1].split(",")


def test_extras_are_derived_from_imports() -> None:
    code = "import polars as pl, dask.distributed\nfrom modularml.models.torch import SequentialMLP"
    assert needed_extras(code) == {"polars", "cluster", "torch"}
    assert needed_extras("import numpy\nimport modularml as mml\nmml.Sweep(build)") == {"sweep"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_top_to_bottom(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fresh kernel of this very interpreter, in an empty folder, with hidden solutions."""
    nbformat = importlib.import_module("nbformat")
    client = importlib.import_module("nbclient").NotebookClient
    kernelspec = importlib.import_module("ipykernel.kernelspec")

    # A kernel "python3" of the user's own would be found first, so we put ours before it.
    kernelspec.install(kernel_name="python3", prefix=str(tmp_path / "kernel"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "kernel" / "share" / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    workdir = tmp_path / "work"
    workdir.mkdir()

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    notebook.cells = [
        each
        for cell in notebook.cells
        for each in (
            cell,
            *map(nbformat.v4.new_code_cell, SOLUTION.findall(cell.source)),
        )
    ]
    client(
        notebook,
        kernel_name="python3",
        timeout=300,
        resources={"metadata": {"path": str(workdir)}},
    ).execute()

    noise = [
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.get("name") == "stderr" and "Warning" in output["text"]
    ]
    assert not noise, "\n".join(noise)


def test_each_extra_is_used_alone_in_a_session() -> None:
    """What is declared is installed and used by ``nox -s extras``, and named by error messages."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = set(declared["optional-dependencies"]) - {"docs", "dev", "all"}
    assert names == set(runpy.run_path(str(ROOT / "noxfile.py"))["EXTRAS"])
    assert all(callable(getattr(extras, name)) for name in names)
    assert names == set(EXTRAS.values())
    (whole,) = declared["optional-dependencies"]["all"]
    assert set(whole.partition("[")[2].rstrip("]").split(",")) == names


@pytest.mark.parametrize("name", ["plot", "report", "polars", "metrics", "torch", "export"])
def test_uses_of_extras_run(name: str) -> None:
    extras.main(name)


@pytest.mark.parametrize("folder", ["howto", "tutorials"])
def test_each_notebook_is_in_an_index(folder: str) -> None:
    text = (ROOT / "docs" / folder / "index.md").read_text("utf-8")
    listed = re.findall(r"\]\((\w+\.ipynb)\)$", text, re.MULTILINE)
    there = [path.name for path in NOTEBOOKS if ("_tutorial_" in path.name) == (folder != "howto")]
    assert sorted(listed) == sorted(there)
