"""Configs as YAML, read as safely as the JSON of artifacts.

A class is a tag, ``!SimpleSampler``, on its arguments. Reading returns plain data only; names are
resolved by the rules of artifacts, so no unknown code is imported or run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from modularml.errors import MMLError
from modularml.io import limits
from modularml.io.names import find_file

MAX_YAML = 2**20


def dump_yaml(tree: Any) -> str:
    """Write an encoded value as YAML; equal values give equal text."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def load_yaml(text: str, path: object = "") -> Any:
    """Read what `dump_yaml` wrote, as plain data.

    Raises
    ------
    MMLError
        If it is not YAML, over 1 MiB, has anchors, duplicate keys or tags that could run code.
    """
    if len(text) > MAX_YAML:
        raise MMLError(limits.TOO_LARGE, path, "", "more than 1 MiB of YAML", _HINT)
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise MMLError(limits.FOREIGN, path, "", f"not YAML that we write: {reason:.200}") from None


Marks = dict[tuple[Any, ...], tuple[int, int]]
"""1-based line and column by the keys that lead to a value, of the value and, with None appended,
of its key. Arguments of a tag come right after the tag's own keys."""


def load_marked(text: str) -> tuple[Any, Marks]:
    """Read hand-written YAML as `load_yaml` does, with scalars of YAML 1.2 and positions.

    ``on`` and ``2024-01-01`` are text here, and ``1e-4`` is a number.

    Raises
    ------
    MarkedYAMLError
        If it is not YAML, or not allowed in a config. Its ``problem_mark`` may be None.
    """
    if len(text) > MAX_YAML:
        raise yaml.MarkedYAMLError(problem="more than 1 MiB of YAML")
    try:
        loader = _HandLoader(text)
        try:
            node = loader.get_single_node()
            marks: Marks = {}
            _mark(loader, node, (), marks)
            return (None if node is None else loader.construct_document(node)), marks
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        raise yaml.MarkedYAMLError(problem=" ".join(str(error).split())) from None
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="too deep") from None
    except ValueError as error:
        raise yaml.MarkedYAMLError(problem=str(error)) from None


def _mark(loader: Any, node: Any, path: tuple[Any, ...], marks: Marks) -> None:
    if node is None:
        return
    marks[path] = node.start_mark.line + 1, node.start_mark.column + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be text", problem_mark=key.start_mark
                )
            name = loader.construct_object(key)
            if (*path, name) in marks:
                problem = f"the key {name!r} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            _mark(loader, value, (*path, name), marks)
            marks[*path, name, None] = key.start_mark.line + 1, key.start_mark.column + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _mark(loader, item, (*path, i), marks)


_HINT = "Pass the output of to_yaml()"


def read_yaml(source: str | Path) -> tuple[Path, Any]:
    """Read a file, or a text of several lines, as plain data; return its path too."""
    if isinstance(source, str) and "\n" in source:
        return Path("<text>"), load_yaml(source, Path("<text>"))
    path = find_file(source, None)
    if path.stat().st_size > 4 * MAX_YAML:
        raise MMLError(limits.TOO_LARGE, path, "", "more than 1 MiB of YAML", _HINT)
    try:
        return path, load_yaml(path.read_text("utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise MMLError(limits.FOREIGN, path, "", f"cannot be read as text: {error}") from None


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent(dumper: _Dumper, tree: dict[str, Any]) -> yaml.Node:
    if tree.keys() == {"$type", "params"}:
        return dumper.represent_mapping(f"!{tree['$type']}", tree["params"])
    if tree.keys() == {"$tuple"}:
        return dumper.represent_sequence("!tuple", tree["$tuple"], flow_style=True)
    return dumper.represent_mapping("tag:yaml.org,2002:map", tree)


_Dumper.add_representer(dict, _represent)


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _problem("anchors and aliases are not allowed", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = super().construct_mapping(node, deep=True)
        if len(found) != len(node.value):
            raise _problem("a duplicate key", node)
        return found


def _problem(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _construct(loader: _Loader, name: str, node: yaml.Node) -> Any:
    if name == "tuple" and isinstance(node, yaml.SequenceNode):
        return {"$tuple": loader.construct_sequence(node, deep=True)}
    if not isinstance(node, yaml.MappingNode):
        raise _problem(f"!{name} needs arguments, as in !{name} {{...}}", node)
    return {"$type": name, "params": loader.construct_mapping(node, deep=True)}


_Loader.add_multi_constructor("!", _construct)


class _HandLoader(_Loader):
    """Scalars as in YAML 1.2: a Norwegian ``no`` is text, and ``1e-4`` is a number."""


_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_HandLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), "tTfF"),
    ("null", re.compile(r"(~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    ("int", re.compile(r"[-+]?(0|[1-9][0-9]*)\Z"), "-+0123456789"),
    ("float", re.compile(rf"({_FLOAT.pattern})\Z"), "-+0123456789."),
):
    _HandLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(rf"({_FLOAT.pattern})\Z"), list("-+0123456789.")
)
