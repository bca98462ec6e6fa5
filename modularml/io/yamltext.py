"""Configs as YAML, read as safely as the JSON of artifacts.

A class is a tag, ``!SimpleSampler``, on its arguments. Reading returns plain data only; names are
resolved by the rules of artifacts, so no unknown code is imported or run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml

from modularml.config import name_of, names_mean
from modularml.errors import MMLError, MMLKindError, ModularMLError
from modularml.io import limits
from modularml.io.atomic import write_file
from modularml.io.classes import Resolver, names_in
from modularml.io.jsontext import with_ids, with_labels
from modularml.io.names import find_file

__all__ = ["Marks", "YamlMixin", "dump_yaml", "load_marked", "load_yaml"]

MAX_YAML = 2**20


class YamlMixin:
    """`to_yaml` and `from_yaml` of a class with a config."""

    makes_nodes: ClassVar[bool] = False
    """Whether building an object registers nodes in the active context."""

    def to_yaml(self, filepath: str | Path | None = None, *, overwrite: bool = False) -> str:
        """Return the config as YAML, and optionally write it to a file.

        Weights, rows and results are not included.

        Raises
        ------
        ConfigError
            If an argument cannot be found by name.
        MMLExistsError
            If the file exists and `overwrite` is false.
        """
        config: Any = self.get_config()  # type: ignore[attr-defined]
        tree = {"$type": name_of(type(self)), "params": config}
        text = dump_yaml(with_labels(tree, self._yaml_labels()))
        if filepath is not None:
            write_file(Path(filepath), [text.encode()], overwrite=overwrite, verify=_checked)
        return text

    @classmethod
    def from_yaml(
        cls,
        source: str | Path,
        *,
        custom_objects: Mapping[str, Any] | None = None,
        allow_import: Iterable[str] = (),
    ) -> Self:
        """Build an object from `to_yaml` output, with new weights.

        Parameters
        ----------
        source : str or path-like
            A file, or the text itself if it has more than one line.
        custom_objects, allow_import
            How your own classes are found; see `BaseModel.load`.

        Raises
        ------
        MMLError
            If it is not YAML that we write, or names an unknown class. Nothing is changed then.
        """
        path, text = _read(source)
        tree = with_ids(load_yaml(text, path), cls._yaml_ids())
        if not isinstance(tree, dict) or tree.keys() != {"$type", "params"}:
            raise MMLError(limits.MISFIT, path, "", f"does not describe a {cls.__name__}", _HINT)
        resolver = Resolver(path, [], custom_objects, allow_import)
        names = resolver.resolve(names_in(tree), nodes=cls.makes_nodes)
        file_class = names[tree["$type"]]
        if not issubclass(file_class, cls):
            problem = f"describes a {file_class.__name__}, not a {cls.__name__}"
            raise MMLKindError(limits.OTHER_KIND, path, "", problem)
        try:
            with names_mean(names), cls._yaml_context():
                obj: Self = file_class.from_config(tree["params"])
        except ModularMLError:
            raise
        except Exception as error:
            reason = f"does not fit together: {type(error).__name__}: {error}"[:300]
            raise MMLError(limits.MISFIT, path, "", reason) from error
        return obj

    def _yaml_labels(self) -> Mapping[str, str]:
        """Return labels by id of nodes that may be referred to."""
        return {}

    @classmethod
    def _yaml_ids(cls) -> dict[str, str]:
        """Return ids by label of nodes that may be referred to."""
        return {}

    @classmethod
    def _yaml_context(cls) -> AbstractContextManager[Any]:
        """Return a context in which objects are built."""
        return nullcontext()


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


def _checked(path: Path) -> None:
    load_yaml(path.read_text("utf-8"), path)


def _read(source: str | Path) -> tuple[Path, str]:
    if isinstance(source, str) and "\n" in source:
        return Path("<text>"), source
    path = find_file(source, None)
    if path.stat().st_size > 4 * MAX_YAML:
        raise MMLError(limits.TOO_LARGE, path, "", "more than 1 MiB of YAML", _HINT)
    try:
        return path, path.read_text("utf-8")
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
