"""A check of scripts for names of ModularML 1.0."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from modularml.errors import ConfigError, closest

PACKAGES = ("core", "utils", "api", "transforms")
"""Packages of 1.0 below ``modularml`` that do not exist here."""

MODULES = (
    "modularml",
    "modularml.data",
    "modularml.splitters",
    "modularml.predicates",
    "modularml.scalers",
    "modularml.samplers",
    "modularml.models",
    "modularml.graph",
    "modularml.callbacks",
    "modularml.strategies",
    "modularml.results",
    "modularml.audit",
    "modularml.plotting",
    "modularml.io",
    "modularml.errors",
)
"""Modules with public names, in the order in which a name is looked up; none loads a framework."""

ATTRIBUTES = {
    "modularml.callbacks:EvaluationCallbackResult": {"eval_results": "results"},
    "modularml.callbacks:MetricResult": {"metric_name": "name", "metric_value": "value"},
    "modularml.callbacks:ArtifactResult": {"artifact_name": "name", "artifact": "value"},
    "modularml.results:MetricEntry": {"epoch_idx": "epoch"},
}
"""Attributes by class, and what they are called here."""

METHODS = {
    "modularml.graph:GraphNode": {"get_upstream_refs()": "upstream_refs"},
    "modularml.graph:ConcatNode": {"build(shapes)": "build_from(shapes, None)"},
    "modularml.samplers:BaseSampler": {"build_samples()": "materialize_batches()"},
    "modularml.predicates:Predicate": {"to_dict()": "get_config()"},
}
"""Methods by class, and what is called or read here."""

NO_EFFECT = "no effect: "
_PAIRS = {"n_workers": f"{NO_EFFECT}the search for pairs is vectorised, in one process"}
ARGUMENTS = {
    "modularml.callbacks:MetricResult": ATTRIBUTES["modularml.callbacks:MetricResult"],
    "modularml.callbacks:ArtifactResult": ATTRIBUTES["modularml.callbacks:ArtifactResult"],
    "modularml.samplers:PairedSampler": _PAIRS,
    "modularml.samplers:TripletSampler": _PAIRS,
    "modularml:ResultsConfig": {
        "save_*": f"{NO_EFFECT}phases record by result_recording=, save(results=) stores it"
    },
}
"""Keyword arguments by class, and what they are called here; ``*`` stands for any ending."""


def names() -> dict[str, str]:
    """Return the names of ModularML 1.0 that are called otherwise here, and the new names.

    Modules of its packages are not listed one by one: a class is looked up by its name alone, and
    ``*`` stands for any module.

    Examples
    --------
    >>> names()["modularml.core.*.PairedSampler"]
    'modularml.PairedSampler'
    >>> names()["EvaluationCallbackResult.eval_results"]
    'EvaluationCallbackResult.results'
    """
    table = {f"modularml.{p}.*.{name}": at for name, at in _places().items() for p in PACKAGES}
    for by_class in (ATTRIBUTES, METHODS):
        for where, renamed in by_class.items():
            cls = where.partition(":")[2]
            table |= {f"{cls}.{old}": f"{cls}.{new}" for old, new in renamed.items()}
    for where, renamed in ARGUMENTS.items():
        cls = where.partition(":")[2]
        table |= {
            f"{cls}({old}=)": new if new.startswith(NO_EFFECT) else f"{cls}({new}=)"
            for old, new in renamed.items()
        }
    return table


def place_of(name: str) -> str | None:
    """Return where a public name is to be imported from: ``modularml.samplers.BaseSampler``."""
    return _places().get(name)


def public_names() -> list[str]:
    """Return every public name, without its module."""
    return list(_places())


@cache
def _places() -> dict[str, str]:
    """Return the module that each public name is imported from, the first in `MODULES`."""
    places: dict[str, str] = {}
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            if name[:1].isupper() or "_" in name:
                places.setdefault(name, f"{module}.{name}")
    return places


_NOT_SAID = {"to_dict", "build", "artifact", "epoch_idx"}
"""Attributes too common to be reported in a script without knowing the object."""

_NEWEST = "without rep= the newest representation is read: scaled values once there is a scaler"
_DIFFERS = {
    "reference": _NEWEST,
    "column_reference": _NEWEST,
    "get_data": _NEWEST,
    "get_features": _NEWEST,
    "get_targets": _NEWEST,
    "get_tags": _NEWEST,
}
"""Methods that mean something else here when ``rep=`` is left out."""


_MODULE = "no such module here; import the names from their new places"


class Finding(NamedTuple):
    """One line of a script that must change, or whose meaning differs.

    Parameters
    ----------
    line, column : int
        1-based, as editors count; in a notebook, lines of all code cells together.
    name : str
        What the script says.
    kind : {'moved', 'renamed', 'unknown', 'differs'}
        ``differs`` marks what runs unchanged and may give other numbers.
    advice : str
    """

    line: int
    column: int
    name: str
    kind: str
    advice: str

    def __str__(self) -> str:
        return f"{self.line}:{self.column}: {self.kind}: {self.name}: {self.advice}"


def check(path_or_source: str | Path) -> list[Finding]:
    """Find what a script for ModularML 1.0 must change; the script is read, never run.

    Objects are not known before a script runs, so attributes are found by their names; those that
    are common elsewhere, too, are left to `modularml.compat`, which warns when they are used.

    Parameters
    ----------
    path_or_source : str or path-like
        A ``.py`` or ``.ipynb`` file, or the text of a script. A string that ends with one of these
        suffixes is a path.

    Returns
    -------
    list of Finding
        In the order of lines. Empty if nothing was found.

    Raises
    ------
    ConfigError
        If there is no such file, or it is no Python.

    Examples
    --------
    >>> for finding in check("from modularml.core.sampling import NSampler"):
    ...     print(finding)
    1:1: moved: modularml.core.sampling.NSampler: from modularml import NSampler
    """
    source, name = _read(path_or_source)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 0
        problem = getattr(error, "msg", None) or error
        raise ConfigError(f"{name} is no Python that can be read: line {line}: {problem}") from None
    return sorted(set(_Reader(tree).findings()))


class _Reader:
    """One script: the names bound to parts of modularml, and what is done with them."""

    def __init__(self, tree: ast.Module) -> None:
        self.nodes = list(ast.walk(tree))
        self.bound: dict[str, str] = {}

    def findings(self) -> Iterator[Finding]:
        """Yield the findings, imports first."""
        for node in self.nodes:
            if isinstance(node, ast.ImportFrom) and not node.level and _is_ours(node.module or ""):
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    self.bound[alias.asname or alias.name] = full
                    if alias.name != "*" and not _has(str(node.module), alias.name):
                        yield _moved(node, full, alias.name)
            elif isinstance(node, ast.Import):
                for alias in filter(lambda alias: _is_ours(alias.name), node.names):
                    local = alias.asname or alias.name.partition(".")[0]
                    self.bound[local] = alias.name if alias.asname else "modularml"
                    if not _exists(alias.name):
                        yield _at(node, alias.name, "moved", _MODULE)
        for node in self.nodes if self.bound else ():
            if isinstance(node, ast.Attribute):
                yield from self._attribute(node)
            elif isinstance(node, ast.Call):
                yield from self._call(node)
            elif isinstance(node, ast.FunctionDef) and node.name == "build_samples":
                advice = "a sampler of your own defines sample(view, epoch); see BaseSampler"
                yield _at(node, node.name, "renamed", advice)

    def _attribute(self, node: ast.Attribute) -> Iterator[Finding]:
        full = self._full(node)
        module, _, name = full.rpartition(".")
        if module.islower() and name[:1].isupper() and not _has(module, name):
            yield _moved(node, full, name)
        for by_class in (ATTRIBUTES, METHODS):
            for renamed in by_class.values():
                for old, new in renamed.items():
                    if node.attr == old.partition("(")[0] and node.attr not in _NOT_SAID:
                        yield _at(node, f".{old}", "renamed", f".{new}")

    def _call(self, node: ast.Call) -> Iterator[Finding]:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        keywords = [k for k in node.keywords if k.arg is not None]
        takes_more = len(keywords) < len(node.keywords)
        if _is_ours(self._full(node.func)):
            class_name = self._full(node.func).rpartition(".")[2]
            for keyword in keywords:
                new = _renamed_argument(class_name, str(keyword.arg))
                if new is not None:
                    old = f"{class_name}({keyword.arg}=)"
                    advice = new if new.startswith(NO_EFFECT) else f"{new}="
                    yield _at(keyword, old, "renamed", advice)
            if class_name.endswith("Sampler") and not takes_more:
                given = {k.arg for k in keywords}
                if "shuffle" in given and "seed" not in given:
                    advice = (
                        "without seed= the order follows from the experiment's, or a global one"
                    )
                    yield _at(node, f"{class_name}(shuffle=)", "differs", advice)
        if called in _DIFFERS and not takes_more and all(k.arg != "rep" for k in keywords):
            yield _at(node, f".{called}()", "differs", _DIFFERS[called])

    def _full(self, node: ast.expr) -> str:
        """Return the dotted name of an expression; empty if it does not start at an import."""
        if isinstance(node, ast.Name):
            return self.bound.get(node.id, "")
        if isinstance(node, ast.Attribute) and (inner := self._full(node.value)):
            return f"{inner}.{node.attr}"
        return ""


def _renamed_argument(class_name: str, argument: str) -> str | None:
    for where, renamed in ARGUMENTS.items():
        if where.endswith(f":{class_name}"):
            for old, new in renamed.items():
                if argument == old or (old.endswith("*") and argument.startswith(old[:-1])):
                    return new
    return None


def _moved(node: ast.AST, full: str, name: str) -> Finding:
    new = place_of(name)
    if new is None and name.islower() and not _exists(full.rpartition(".")[0]):
        return _at(node, full, "moved", _MODULE)
    if new is None:
        advice = f"no such name here ({closest(name, public_names())})"
        return _at(node, full, "unknown", advice)
    return _at(node, full, "moved", f"from {new.rpartition('.')[0]} import {name}")


def _at(node: Any, name: str, kind: str, advice: str) -> Finding:
    return Finding(node.lineno, node.col_offset + 1, name, kind, advice)


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] == "modularml"


def _has(module: str, name: str) -> bool:
    """Return whether a module has a name, as far as this can be known without a framework."""
    if module in MODULES:
        found = importlib.import_module(module)
        return name in found.__all__ or hasattr(found, name) or _exists(f"{module}.{name}")
    return _exists(module)


def _exists(module: str) -> bool:
    parent = module.rpartition(".")[0]
    if parent and not _exists(parent):
        return False
    if module.split(".")[1:2] and module.split(".")[1] in PACKAGES:
        return False  # which modularml.compat makes importable
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _read(path_or_source: str | Path) -> tuple[str, str]:
    """Return the text of a script, and its name for messages."""
    is_path = isinstance(path_or_source, Path) or str(path_or_source).endswith((".py", ".ipynb"))
    if not is_path or "\n" in str(path_or_source):
        return str(path_or_source), "the script"
    path = Path(path_or_source)
    try:
        text = path.read_text("utf-8")
        if path.suffix == ".ipynb":
            code = [c["source"] for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
            text = "\n".join(map(_without_magics, map("".join, code)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error}") from None
    return text, str(path)


def _without_magics(cell: str) -> str:
    """Return a cell with lines of IPython, or a whole cell of another language, left empty."""
    lines = cell.splitlines()
    is_other = cell.lstrip().startswith("%%")
    return "\n".join("" if is_other or s.lstrip()[:1] in ("%", "!", "?") else s for s in lines)
