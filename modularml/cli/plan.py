"""Plan files: YAML of data and an experiment, with the position of every value."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from modularml.cli.plan_classes import completed, find_class, inner_of, parameters_of
from modularml.errors import PlanError, closest
from modularml.io.yamltext import load_marked

SECTIONS = ("data", "experiment", "folds", "sweep", "output")
Where = tuple[Any, ...]
"""Keys and places that lead to a value; arguments of a tag come right after it."""

_SHORT = {
    "graph": ("experiment", "model_graph"),
    "nodes": ("experiment", "model_graph", "nodes"),
    "phases": ("experiment", "execution_plan", "phases"),
    "callbacks": ("experiment", "callbacks"),
    **{k: ("experiment", k) for k in ("seed", "label", "audit", "deterministic")},
}
"""First parts of the config paths of a sweep, and where they stand in a plan."""


def walk(tree: Any, path: Where = ()) -> Iterator[tuple[Where, Any]]:
    """Yield every part of a tree with its path, from the outside in."""
    yield path, tree
    inside = tree.get("params", tree) if isinstance(tree, dict) and "$type" in tree else tree
    if isinstance(inside, dict | list):
        for key, item in inside.items() if isinstance(inside, dict) else enumerate(inside):
            yield from walk(item, (*path, key))


class Plan:
    """A plan as plain data, which knows where each value was written.

    Parameters
    ----------
    allow_import : iterable of str
        Prefixes of modules whose classes may be named.
    """

    def __init__(self, allow_import: Iterable[str] = ()) -> None:
        self.tree: dict[str, Any] = {}
        self.folders: dict[str, Path] = {}
        """Folder of the file that a table stands in, by label; paths start there."""
        self.allow_import = tuple(allow_import)
        self.output_folder = Path()
        """Folder of the file that has the section ``output``."""
        self.name = "plan"
        self._marks: dict[Where, str] = {}
        self._sources: list[str] = []

    @property
    def output(self) -> dict[str, Any]:
        """The section ``output``, in which a text alone is the folder."""
        section: Any = self.tree.get("output", {})
        return {"folder": section} if isinstance(section, str) else section

    def where(self, path: Where, *, key: bool = False) -> str:
        """Return ``file:line:column`` of a value or its key, else of what holds it."""
        if key and (*path, None) in self._marks:
            return self._marks[*path, None]
        while path and path not in self._marks:
            path = path[:-1]
        return self._marks.get(path, self.name)

    def __contains__(self, path: Where) -> bool:
        """Tell whether a value was written at a path."""
        return path in self._marks

    def error(self, path: Where, message: object, *, key: bool = False) -> PlanError:
        """Return an error that names a position."""
        return PlanError(f"{self.where(path, key=key)}: {message}")

    def add(self, source: str) -> None:
        """Add the sections of a file, or of stdin for ``-``."""
        if source in self._sources:
            raise PlanError(f"{source}: the file is read twice; name it once")
        self._sources.append(source)
        shown = "<stdin>" if source == "-" else source
        folder = Path() if source == "-" else Path(source).parent
        try:
            text = sys.stdin.read() if source == "-" else Path(source).read_text("utf-8-sig")
            tree, marks = load_marked(text)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise PlanError(f"{shown}: the file cannot be read: {reason}; check the path") from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = "" if mark is None else f":{mark.line + 1}:{mark.column + 1}"
            raise PlanError(f"{shown}{place}: {error.problem}") from None
        if isinstance(tree, dict) and tree.get("$type") == "Experiment":
            tree, marks = {"experiment": tree}, {("experiment", *k): v for k, v in marks.items()}
        at = {path: f"{shown}:{line}:{column}" for path, (line, column) in marks.items()}
        if not isinstance(tree, dict) or "$type" in tree:
            problem = f"a plan has the sections {', '.join(SECTIONS)}, or is one !Experiment"
            raise PlanError(f"{at.get((), shown)}: {problem}")
        for name, section in tree.items():
            if name not in SECTIONS:
                hint = closest(name, SECTIONS)
                raise PlanError(f"{at[name, None]}: {name!r} is no section of a plan; {hint}")
            self._take(name, section, at, folder)
        self._marks = {**at, **self._marks}

    def _take(self, name: str, section: Any, at: dict[Where, str], folder: Path) -> None:
        if name == "experiment" and isinstance(section, str):
            self.add(str(folder / section))
            return
        if name == "data":
            if not isinstance(section, dict) or "$type" in section:
                raise PlanError(f"{at['data',]}: data maps labels to tables")
            tables = self.tree.setdefault("data", {})
            for label, table in section.items():
                if label in tables:
                    raise PlanError(f"{at['data', label, None]}: {label!r} is there twice")
                tables[label], self.folders[label] = table, folder
        elif name in self.tree:
            raise PlanError(f"{at[name, None]}: there are two sections {name!r}")
        else:
            self.tree[name] = section
            self.output_folder = folder if name == "output" else self.output_folder

    def complete(self) -> None:
        """Name the classes that follow from their place, and fill in what from_config needs."""
        if isinstance(self.tree.get("experiment"), dict):
            self.tree["experiment"] = completed(self.tree["experiment"], self.allow_import)

    def change(self, assignment: str) -> None:
        """Set a value by its path: ``graph.optimizer.lr=0.01``."""
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise PlanError(f"--set {assignment}: write PATH=VALUE, such as seed=3")
        try:
            value, _ = load_marked(text)
        except yaml.MarkedYAMLError as error:
            raise PlanError(f"--set {assignment}: the value is no YAML: {error.problem}") from None
        parts = name.split(".")
        if parts[0] in SECTIONS:
            steps: Sequence[str] = parts
        elif parts[0] in _SHORT:
            steps = (*_SHORT[parts[0]], *parts[1:])
        else:
            hint = closest(parts[0], [*SECTIONS, *_SHORT])
            raise PlanError(f"--set {assignment}: no setting begins with {parts[0]!r}; {hint}")
        places = list(_places(self, self.tree, list(steps), (), assignment))
        for holder, key, path in places:
            holder[key] = value
            self._marks = {p: m for p, m in self._marks.items() if p[: len(path)] != path}
            self._marks[path] = f"--set {assignment}"


def read_plan(
    sources: Iterable[str], changes: Iterable[str] = (), allow_import: Iterable[str] = ()
) -> Plan:
    """Read files into one plan, and change settings.

    Raises
    ------
    PlanError
        If a file is no plan, or a setting does not exist; the message names the position.
    """
    plan = Plan(allow_import)
    for source in sources:
        plan.add(source)
        plan.name = "<stdin>" if source == "-" else source
    plan.complete()
    for change in changes:
        plan.change(change)
    plan.complete()
    return plan


def _places(plan: Plan, tree: Any, parts: list[str], path: Where, asked: str) -> Any:
    """Yield the dict or list, the key and the path of each value that a setting names."""
    part, rest = parts[0], parts[1:]
    tagged = isinstance(tree, dict) and ("$type" in tree or "$estimator" in tree)
    inside = tree["params"] if tagged else tree
    cls = find_class(tree, plan.allow_import)
    if part == "sampler" and isinstance(inside, dict) and inside.get("input_sources"):
        for i, source in enumerate(inside["input_sources"]):
            yield from _places(plan, source, parts, (*path, "input_sources", i), asked)
        return
    known: list[str] = [] if cls is None else list(parameters_of(cls))
    if isinstance(inside, list):
        labels = [_label_of(item) or str(i) for i, item in enumerate(inside)]
        key: Any
        known, key = labels, labels.index(part) if part in labels else None
    elif isinstance(inside, dict):
        key = part if part in inside or part in known or (cls is None and not rest) else None
    else:
        key = None
    if key is not None and not rest:
        if tagged and key in tree.get("defaults", ()):  # of an estimator that to_yaml wrote
            tree["defaults"].remove(key)
        yield inside, key, (*path, key)
    elif key is not None and (isinstance(inside, list) or key in inside):
        yield from _places(plan, inside[key], rest, (*path, key), asked)
    elif cls is not None and (inner := inner_of(cls, inside)):
        inside.setdefault(inner, {})
        inside[inner] = {} if inside[inner] is None else inside[inner]
        yield from _places(plan, inside[inner], parts, (*path, inner), asked)
    else:
        names = known or (list(inside) if isinstance(inside, dict) else [])
        hint = closest(part, map(str, names))
        place = ".".join(map(str, path)) or "the plan"
        raise PlanError(f"--set {asked}: there is no {part!r} in {place}; {hint}")


def _label_of(item: Any) -> str:
    inside = item.get("params", item) if isinstance(item, dict) else {}
    if not isinstance(inside, dict):
        return ""
    loss = inside.get("loss")
    if "on" in inside and not inside.get("label") and isinstance(loss, dict):
        return f"{loss.get('params', {}).get('loss')}_{inside['on']}"  # its default
    return str(inside.get("label") or "")
