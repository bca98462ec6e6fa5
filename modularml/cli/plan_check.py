"""Checks of a plan before anything runs: names, types, classes, files and columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from modularml.cli.console import column_names
from modularml.cli.plan import Plan, Where
from modularml.cli.plan_classes import ESTIMATORS, find_class
from modularml.cli.plan_schema import class_schema, load_classes, plan_schema
from modularml.config import config_registry
from modularml.data.csv_files import ENDINGS
from modularml.data.sections import DOMAIN_KEYS, SOURCES
from modularml.data.table_files import files_of
from modularml.errors import MMLError, ModularMLError, PlanError, closest
from modularml.io.classes import Resolver, known_names, names_in

__all__ = ["check_plan"]


class Problem(NamedTuple):
    """A mistake: where, what, and whether the key or the value is wrong."""

    path: Where
    message: str
    key: bool = False


def check_plan(plan: Plan) -> None:
    """Refuse a plan with mistakes, and name all of them.

    Raises
    ------
    PlanError
        One line for each mistake: ``file:line:column: message``.
    """
    problems = list(_Checker(plan).problems(plan.tree))
    problems = problems or [*_of_names(plan), *_of_tables(plan)]
    if problems:
        lines = dict.fromkeys(f"{plan.where(p.path, key=p.key)}: {p.message}" for p in problems)
        raise PlanError("\n".join(lines))


class _Checker:
    """Compares plain data with the schema of plans."""

    def __init__(self, plan: Plan) -> None:
        self.allow_import = plan.allow_import
        load_classes()
        self.schema = plan_schema()

    def problems(self, tree: Any) -> Iterator[Problem]:
        """Yield the mistakes in a plan."""
        yield from self._check(tree, self.schema, ())

    def _check(self, value: Any, schema: Mapping[str, Any], path: Where) -> Iterator[Problem]:
        if isinstance(value, dict) and "$type" in value:
            yield from self._tagged(value, schema, path)
            return
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            if name == "value":
                yield from self._any(value, path)
                return
            if isinstance(value, dict):
                yield Problem(path, f"needs a tag that says what it is, such as !{name} {{...}}")
            else:
                yield Problem(path, f"must be {name}, got {_shown(value)}")
            return
        if "anyOf" in schema:
            yield from self._one_of(value, schema["anyOf"], path)
            return
        yield from self._plain(value, schema, path)

    def _plain(self, value: Any, schema: Mapping[str, Any], path: Where) -> Iterator[Problem]:
        if not _fits(value, schema):
            yield Problem(path, f"must be {_allowed(schema)}, got {_shown(value)}")
        elif isinstance(value, dict):
            yield from self._dict(value, schema, path)
        elif isinstance(value, list) and "items" in schema:
            for i, item in enumerate(value):
                yield from self._check(item, schema["items"], (*path, i))

    def _dict(
        self, value: dict[str, Any], schema: Mapping[str, Any], path: Where
    ) -> Iterator[Problem]:
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name in schema.get("required", ()):
            if name not in value:
                yield Problem(path, f"{name!r} is missing")
        for name, item in value.items():
            inner = path if name == "$tuple" else (*path, name)
            if name in known:
                yield from self._check(item, known[name], inner)
            elif others is False:
                yield Problem(inner, f"unknown key {name!r}; {closest(name, known)}", key=True)
            elif isinstance(others, dict):
                yield from self._check(item, others, inner)

    def _any(self, value: Any, path: Where) -> Iterator[Problem]:
        if isinstance(value, dict):
            for name, item in value.items():
                inner = path if name == "$tuple" else (*path, name)
                yield from self._check(item, {"$ref": "#/$defs/value"}, inner)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                yield from self._check(item, {"$ref": "#/$defs/value"}, (*path, i))

    def _one_of(self, value: Any, options: list[Any], path: Where) -> Iterator[Problem]:
        """Yield the mistakes by the option that comes closest."""
        refs = [o["$ref"].rpartition("/")[2] for o in options if "$ref" in o]
        plain = [o for o in options if "$ref" not in o and _fits(value, o)]
        if len(plain) > 1 and isinstance(value, dict):  # as tables, which differ in their source
            keys = [key for o in plain for key in o.get("required", ())]
            plain = [o for o in plain if set(o.get("required", ())) <= set(value)]
            if len(plain) != 1:
                yield Problem(path, f"needs one of the keys {', '.join(map(repr, keys))}")
                return
        if plain:
            found = [list(self._plain(value, option, path)) for option in plain]
            yield from min(found, key=len)
        elif isinstance(value, dict) and refs:
            shown = " or ".join(f"!{name}" for name in refs[:6])
            yield Problem(path, f"needs a tag that says what it is, such as {shown}")
        else:
            allowed = [_allowed(o) for o in options if "$ref" not in o]
            allowed = [*dict.fromkeys(allowed), *(f"!{name}" for name in refs[:6])]
            yield Problem(path, f"must be {' or '.join(allowed)}, got {_shown(value)}")

    def _tagged(
        self, value: dict[str, Any], schema: Mapping[str, Any], path: Where
    ) -> Iterator[Problem]:
        name = value["$type"]
        cls = find_class(value, self.allow_import)
        options = schema.get("anyOf", [schema])
        refs = [o["$ref"].rpartition("/")[2] for o in options if "$ref" in o]
        if value.keys() != {"$type", "params"} or not isinstance(value["params"], dict):
            yield Problem(path, f"an object is a tag with its arguments, as in !{name} {{...}}")
        elif str(name).startswith(ESTIMATORS):
            yield Problem(path, f"there is no estimator {name!r}; check its name, or install it")
        elif cls is None:
            names = [n for n in refs if n != "value"] or known_names()
            yield Problem(path, f"unknown class !{name}; {closest(name, names)}")
        elif "value" not in refs and not self._may_stand(cls, refs):
            allowed = [*(f"!{n}" for n in refs[:6]), *map(_allowed, _without_refs(options))]
            yield Problem(path, f"must be {' or '.join(allowed)}, got !{name}")
        else:
            yield from self._dict(value["params"], class_schema(cls), path)

    def _may_stand(self, cls: type, refs: list[str]) -> bool:
        bases = [config_registry[name] for name in refs]
        is_yours = not cls.__module__.startswith("modularml.")  # its constructor checks it
        return is_yours or issubclass(cls, tuple(bases))


def _without_refs(options: list[Any]) -> list[Any]:
    return [option for option in options if "$ref" not in option]


_TYPES: dict[str, tuple[str, Any]] = {
    "null": ("null", lambda v: v is None),
    "boolean": ("true or false", lambda v: isinstance(v, bool)),
    "integer": ("an integer", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "number": ("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    "string": ("a text", lambda v: isinstance(v, str)),
    "array": ("a list", lambda v: isinstance(v, list)),
    "object": ("a mapping", lambda v: isinstance(v, dict)),
}


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Tell whether a value has the type and range that a schema asks for; not what is inside."""
    if "enum" in schema:
        return any(value == v and type(value) is type(v) for v in schema["enum"])
    kind = schema.get("type")
    if kind is not None and not _TYPES[kind][1](value):
        return False
    if isinstance(value, list | dict):
        least = schema.get("minItems", schema.get("minProperties", 0))
        return bool(least <= len(value) <= schema.get("maxItems", len(value)))
    return not ("minimum" in schema and value < schema["minimum"])


def _allowed(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(repr(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_allowed, schema["anyOf"])))
    text: str = _TYPES[schema["type"]][0] if "type" in schema else "a value"
    n = schema.get("minItems", schema.get("minProperties"))
    text += f" of {n}" if n is not None and n == schema.get("maxItems") else ""
    text += " that is not empty" if n == 1 and schema.get("maxItems") != 1 else ""
    return text + (f" of at least {schema['minimum']}" if "minimum" in schema else "")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return (
            f"a mapping of {', '.join(map(repr, list(value)[:4]))}" if value else "an empty mapping"
        )
    return "null" if value is None else f"{value!r:.60}"


# -- names, files and columns ------------------------------------------------------------------


def _of_names(plan: Plan) -> Iterator[Problem]:
    """Yield the classes and functions that a plan may not name, or that are not there."""
    resolver = Resolver(Path(plan.name), [], None, plan.allow_import)
    for role, name in names_in(plan.tree):
        try:
            resolver.resolve([(role, name)])
        except MMLError as error:
            message = f"{error.problem}; a plan names classes of modularml and of the frameworks, "
            message += "or of a module that you allow by --allow-import"
            yield Problem(_path_of(plan.tree, name, ()) or (), message)


def _path_of(tree: Any, name: str, path: Where) -> Where | None:
    """Return the path of the value that holds a name."""
    if isinstance(tree, dict) and name in map(str, tree.values()):
        return path
    if not isinstance(tree, dict | list):
        return None
    inside = tree.get("params", tree) if isinstance(tree, dict) and "$type" in tree else tree
    items = inside.items() if isinstance(inside, dict) else enumerate(inside)
    found = (_path_of(item, name, (*path, key)) for key, item in items)
    return next((at for at in found if at is not None), None)


def _of_tables(plan: Plan) -> Iterator[Problem]:
    """Yield the mistakes that show in the files: names of sets, files, columns and splits."""
    tables: dict[str, Any] = plan.tree["data"]
    earlier: list[str] = []
    for label, table in tables.items():
        path: Where = ("data", label)
        kind = next(name for name in SOURCES if name in table)
        if kind in ("windows", "join"):
            for argument in {"of", "other"} & table[kind].keys():
                other = table[kind][argument]
                if other not in earlier:
                    message = (
                        f"no table {other!r} comes before {label!r}; {closest(other, earlier)}"
                    )
                    yield Problem((*path, kind, argument), message)
        else:
            yield from _of_files(table, kind, plan.folders[label], path)
        earlier.append(label)


def _of_files(table: Mapping[str, Any], kind: str, folder: Path, path: Where) -> Iterator[Problem]:
    given = table[kind]
    paths = [str(folder / p) for p in (given if isinstance(given, list) else [given])]
    endings = {"csv": ENDINGS, "parquet": (".parquet", ".pq"), "file": (".mml",)}[kind]
    try:
        files = files_of(paths, endings)
        read = table.get("read") or {}
        if kind == "file" or table.get("rename") or {"header", "names"} & set(read):
            return  # these names follow from more than the first line
        names = column_names(files[0], kind, read)
    except ModularMLError as error:
        yield Problem((*path, kind), str(error))
        return
    known = [*names, *(table.get("stack") or ()), *filter(None, [table.get("file_as")])]
    known += [part.partition("=")[0] for part in files[0].parent.parts if "=" in part]
    for domain in DOMAIN_KEYS:
        columns = table.get(domain) or []
        for i, name in enumerate([columns] if isinstance(columns, str) else columns):
            if name not in known:
                at = (*path, domain) if isinstance(columns, str) else (*path, domain, i)
                message = f"{str(files[0])!r} has no column {name!r}; {closest(name, known)}"
                yield Problem(at, message)
