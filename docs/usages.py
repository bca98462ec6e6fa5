"""Find the guides that use a public name, and link names in guides to the reference."""

import ast
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

MOST = 8
"""Guides that a page of the reference lists, those that use the name most first."""

LEFT_OUT = ("reference", "_build", "changelog", "gallery", "examples", "_templates")
IMPORT = re.compile(r"from modularml[\w.]* import (\([^)]*\)|[^\n#]*)")
TAG = re.compile(r"<[^>]+>")
CHAIN = re.compile(
    r'(?:<span class="n">(?:mml|mm|modularml)</span><span class="o">\.</span>)?'
    r'(?:<span class="n">\w+</span><span class="o">\.</span>)*<span class="n">\w+</span>'
)
WORD = re.compile(r'<span class="n">(\w+)</span>')
OBJECTS = {"fs": "FeatureSet", "graph": "ModelGraph", "experiment": "Experiment"}
"""Classes of the objects that guides call by these names."""

LITERAL = re.compile(r"(?:mml\.|modularml\.)?([A-Za-z_][\w.]*)(?:\(.*\))?$", re.DOTALL)


def find(docs: Path, paths: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Return for each name the documents that use it, as (document, title)."""
    found: dict[str, list[tuple[int, str, str]]] = {path: [] for path in paths}
    for document, title, code in _guides(docs):
        counts = Counter(_paths_in(code, paths))
        for path, count in counts.items():
            found[path].append((-count, document, title))
    return {path: [(d, t) for _, d, t in sorted(rows)] for path, rows in found.items()}


def section(guides: list[tuple[str, str]]) -> str:
    """Return the list of guides as RST."""
    if not guides:
        return ""
    links = [f"- :doc:`{title} </{document}>`" for document, title in guides[:MOST]]
    more = len(guides) - MOST
    tail = ["", f"and {more} other{'s' if more > 1 else ''}."] if more > 0 else []
    return "\n".join(["", "Used in", "-------", "", *links, *tail, ""])


def _guides(docs: Path) -> list[tuple[str, str, str]]:
    """Return (document, title, code) of all guides, tutorials, recipes and pages."""
    rows = []
    for path in sorted([*docs.rglob("*.md"), *docs.rglob("*.ipynb")]):
        place = path.relative_to(docs)
        if place.name == "index.md" or place.parts[0].partition(".")[0] in LEFT_OUT:
            continue
        text = _notebook(path) if path.suffix == ".ipynb" else path.read_text("utf-8")
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        fences = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        if title:
            rows.append((place.with_suffix("").as_posix(), _plain(title[1]), "\n".join(fences)))
    for path in sorted(docs.glob("examples/*/plot_*.py")):
        text = path.read_text("utf-8")
        title = (ast.get_docstring(ast.parse(text)) or path.stem).strip().splitlines()[0]
        place = path.relative_to(docs / "examples").with_suffix("")
        rows.append((f"gallery/{place.as_posix()}", _plain(title), text))
    return rows


def _notebook(path: Path) -> str:
    """Return a notebook as Markdown with fenced cells."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    return "\n\n".join(parts)


def _plain(title: str) -> str:
    return re.sub(r"[`<>\\]", "", title).strip()


def _imported(code: str) -> set[str]:
    lists = (match[1].strip("()") for match in IMPORT.finditer(code))
    return {item.split(" as ")[0].strip() for names in lists for item in names.split(",")}


def _paths_in(code: str, paths: list[str]) -> list[str]:
    """Return the public names in code, once for each use, by import or after ``mml.``."""
    imported, used = _imported(code), Counter[str]()
    words = Counter(re.findall(r"[\w.]+", code))
    short = {path.removeprefix("modularml."): path for path in paths}
    for word, count in words.items():
        rest = re.sub(r"^(mml|mm|modularml)\.", "", word)
        parts = rest.split(".")
        if rest != word:
            for end in range(len(parts), 0, -1):
                if (path := short.get(".".join(parts[:end]))) is not None:
                    used[path] += count
                    break
        elif parts[0] in imported:
            for path in _modules_of(code, parts[0], paths):
                used[path] += count
    return list(used.elements())


def _modules_of(code: str, name: str, paths: list[str]) -> list[str]:
    found = re.findall(
        rf"from (modularml[\w.]*) import (?:\([^)]*\b{name}\b|[^\n]*\b{name}\b)", code
    )
    own = [f"{module}.{name}" for module in found if f"{module}.{name}" in paths]
    return own or [path for path in paths if path.rpartition(".")[2] == name][:1]


# ------------------------------------------------------------- links from guides to reference


class LinkNames(SphinxPostTransform):
    """Link inline code that is the name of a public class, function or method."""

    default_priority = 5

    def run(self, **_: Any) -> None:
        document = self.env.docname
        if document.startswith(("reference/api", "changelog")):
            return
        targets = _targets(self.env)
        for literal in list(self.document.findall(nodes.literal)):
            match = LITERAL.match(literal.astext())
            target = targets.get(match[1]) or targets.get(_of_class(match[1])) if match else None
            if target is None or isinstance(literal.parent, nodes.reference | nodes.title):
                continue
            name, entry = target
            link = make_refnode(
                self.app.builder, document, entry.docname, entry.node_id, literal.deepcopy(), name
            )
            literal.replace_self(link)


def _of_class(name: str) -> str:
    """Return ``FeatureSet.audit`` for ``fs.audit``."""
    first, dot, rest = name.partition(".")
    return f"{OBJECTS.get(first, first)}.{rest}" if dot else name


def _targets(env: Any) -> dict[str, Any]:
    """Return the objects of the reference by the names that guides give them."""
    found: dict[str, Any] = {}
    for name, entry in env.domains["py"].objects.items():
        if entry.aliased or not entry.docname.startswith("reference/api/generated"):
            continue
        rest = name.removeprefix("modularml.")
        parts = rest.split(".")
        found[rest] = (name, entry)
        at = next((i for i, part in enumerate(parts) if part[:1].isupper()), None)
        if at:  # `EMA` for `callbacks.EMA`, unless another module has one, too
            key = ".".join(parts[at:])
            found[key] = None if key in found else (name, entry)
    return {key: target for key, target in found.items() if target}


def link_code(app: Any, document: str, _template: str, context: dict[str, Any], _tree: Any) -> None:
    """Link public names in the code blocks of a page."""
    body = context.get("body", "")
    if document.startswith(("reference/api", "_modules", "gallery")) or "modularml" not in body:
        return
    targets = _targets(app.env)
    code = "\n".join(TAG.sub("", block) for block in re.findall(r"<pre>.*?</pre>", body, re.DOTALL))
    imported = _imported(code)

    def linked(match: re.Match[str]) -> str:
        words = WORD.findall(match[0])
        start = 1 if words[0] in ("mml", "mm", "modularml") else 0
        if not start and words[0] not in imported:
            return match[0]
        for end in range(len(words), start, -1):
            target = targets.get(".".join(words[start:end]))
            if target is not None:
                return _wrapped(match[0], end, _address(app, document, target[1]))
        return match[0]

    context["body"] = re.sub(
        r"<pre>.*?</pre>", lambda block: CHAIN.sub(linked, block[0]), body, flags=re.DOTALL
    )


def _address(app: Any, document: str, entry: Any) -> str:
    return f"{app.builder.get_relative_uri(document, entry.docname)}#{entry.node_id}"


def _wrapped(text: str, end: int, address: str) -> str:
    """Put a link around the last of the first ``end`` words of a chain."""
    at = list(WORD.finditer(text))[end - 1]
    link = f'<a class="api-link" href="{address}">{at[0]}</a>'
    return text[: at.start()] + link + text[at.end() :]


def setup(app: Any) -> dict[str, Any]:
    app.add_post_transform(LinkNames)
    app.connect("html-page-context", link_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
