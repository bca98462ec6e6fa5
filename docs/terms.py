"""Look for words of ``terms.txt`` in docs, notebooks and public docstrings.

``python docs/terms.py`` prints each place and exits with 1 if there is one.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TERMS = ROOT / "docs" / "terms.txt"
PAGES = ("*.md", "docs/**/*.md", "docs/**/*.rst", "benchmarks/*.md", "changelog.d/*.md")
MADE = ("docs/_build", "docs/gallery/", "docs/howto/", "docs/tutorials/", "docs/reference/api")
"""Where a build leaves pages; their sources are looked at."""


def rules() -> dict[re.Pattern[str], str]:
    """Return each pattern and what to write instead."""
    lines = TERMS.read_text("utf-8").splitlines()
    pairs = [line.split(" -> ") for line in lines if line and not line.startswith("#")]
    return {re.compile(rf"\b(?:{word})\b", re.IGNORECASE): better for word, better in pairs}


def texts() -> Iterator[tuple[str, str]]:
    """Yield each text that a reader sees, with its place."""
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(MADE) or name.endswith("/index.md"):
                yield name, path.read_text("utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for number, cell in enumerate(json.loads(path.read_text("utf-8"))["cells"]):
            if cell["cell_type"] == "markdown":
                yield f"notebooks/{path.name}, cell {number}", "".join(cell["source"])
    for path in sorted((ROOT / "modularml").rglob("*.py")):
        yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the docstrings of a module and of its public classes, functions and methods."""
    todo: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            name = getattr(node, "name", "")
            if name.startswith("_"):
                continue
            place = f"{path.relative_to(ROOT).as_posix()}:{getattr(node, 'lineno', 1)}"
            yield place, ast.get_docstring(node) or ""
            todo += [] if isinstance(node, ast.FunctionDef) else node.body


def prose(text: str) -> str:
    """Return a text without what stands in code."""
    return re.sub(r"^```.*?^```|`[^`]*`|\]\([^)]*\)", " ", text, flags=re.DOTALL | re.MULTILINE)


def findings() -> list[str]:
    """Return one line for each word that must not stand where it does."""
    known = rules()
    return [
        f"{place}: {match.group()!r}: write {better}"
        for place, text in texts()
        for pattern, better in known.items()
        for match in pattern.finditer(prose(text))
    ]


if __name__ == "__main__":
    sys.exit("\n".join(findings()) or None)
