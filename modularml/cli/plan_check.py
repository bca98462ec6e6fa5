"""Checks of a plan before anything runs: names, types, classes, files and columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from modularml.cli.console import column_names
from modularml.cli.plan import Plan, Where, walk
from modularml.cli.plan_classes import ESTIMATORS, find_class
from modularml.cli.plan_schema import VALUE, class_schema, load_classes, plan_schema
from modularml.config import config_registry
from modularml.data.csv_files import ENDINGS
from modularml.data.featureset_yaml import DOMAIN_KEYS, SOURCES
from modularml.data.table_files import files_of
from modularml.errors import MMLError, ModularMLError, PlanError, closest
from modularml.io.classes import Resolver, known_names, names_in


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
    load_classes()
    problems = list(_check(plan.tree, plan_schema(), (), plan.allow_import))
    if not problems:
        resolver = Resolver(Path(plan.name), [], None, plan.allow_import)
        for role, name in names_in(plan.tree):
            try:
                resolver.resolve([(role, name)])
            except MMLError as error:
                message = f"{error.problem}; a plan names classes of modularml and of the "
                message += "frameworks, or of a module that you allow by --allow-import"
                at = (
                    path
                    for path, part in walk(plan.tree)
                    if isinstance(part, dict) and name in map(str, part.values())
                )
                problems.append(Problem(next(at, ()), message))
        problems += _of_tables(plan)
    if problems:
        lines = dict.fromkeys(f"{plan.where(p.path, key=p.key)}: {p.message}" for p in problems)
        raise PlanError("\n".join(lines))


_ANYTHING = {"items": VALUE, "additionalProperties": VALUE}


def _check(
    value: Any, schema: Mapping[str, Any], path: Where, allow_import: tuple[str, ...]
) -> Iterator[Problem]:
    """Yield the differences of plain data from a schema."""
    options = schema.get("anyOf", [schema])
    refs = [o["$ref"].rpartition("/")[2] for o in options if "$ref" in o]
    rest = [o for o in options if "$ref" not in o]
    if isinstance(value, dict) and "$type" in value:
        yield from _tagged(value, refs, rest, path, allow_import)
        return
    if refs == ["value"]:
        rest, refs = [_ANYTHING], []
    fitting = [o for o in rest if _fits(value, o)]
    if len(fitting) > 1 and isinstance(value, dict):  # as tables, which differ in their source
        keys = [key for o in fitting for key in o.get("required", ())]
        fitting = [o for o in fitting if set(o.get("required", ())) <= set(value)]
        if len(fitting) != 1:
            yield Problem(path, f"needs one of the keys {', '.join(map(repr, keys))}")
            return
    if fitting:  # the mistakes by the option that comes closest
        found = [list(_inside(value, option, path, allow_import)) for option in fitting]
        yield from min(found, key=len)
    elif isinstance(value, dict) and refs:
        shown = [f"!{name}" for name in refs[:6]] if "anyOf" in schema else [f"!{refs[0]} {{...}}"]
        yield Problem(path, f"needs a tag that says what it is, such as {' or '.join(shown)}")
    else:
        names = [f"!{name}" for name in refs[:6]] if "anyOf" in schema else refs
        allowed = [*dict.fromkeys(map(_allowed, rest)), *names]
        yield Problem(path, f"must be {' or '.join(allowed)}, got {_shown(value)}")


def _inside(
    value: Any, schema: Mapping[str, Any], path: Where, allow_import: tuple[str, ...]
) -> Iterator[Problem]:
    """Yield the mistakes within a list or a mapping."""
    if isinstance(value, list) and "items" in schema:
        for i, item in enumerate(value):
            yield from _check(item, schema["items"], (*path, i), allow_import)
    if not isinstance(value, dict):
        return
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            yield Problem(path, f"{name!r} is missing")
    for name, item in value.items():
        inner = path if name == "$tuple" else (*path, name)
        if name in known:
            yield from _check(item, known[name], inner, allow_import)
        elif others is False:
            yield Problem(inner, f"unknown key {name!r}; {closest(name, known)}", key=True)
        elif isinstance(others, dict):
            yield from _check(item, others, inner, allow_import)


def _tagged(
    value: dict[str, Any],
    refs: list[str],
    rest: list[Any],
    path: Where,
    allow_import: tuple[str, ...],
) -> Iterator[Problem]:
    """Yield the mistakes in a tag with its arguments."""
    name = value["$type"]
    cls = find_class(value, allow_import)
    if value.keys() != {"$type", "params"} or not isinstance(value["params"], dict):
        yield Problem(path, f"an object is a tag with its arguments, as in !{name} {{...}}")
    elif str(name).startswith(ESTIMATORS):
        yield Problem(path, f"there is no estimator {name!r}; check its name, or install it")
    elif cls is None:
        names = [n for n in refs if n != "value"] or known_names()
        yield Problem(path, f"unknown class !{name}; {closest(name, names)}")
    elif (
        "value" not in refs
        and cls.__module__.startswith("modularml.")  # constructors check classes of the user's
        and not issubclass(cls, tuple(config_registry[name] for name in refs))
    ):
        allowed = [*(f"!{n}" for n in refs[:6]), *map(_allowed, rest)]
        yield Problem(path, f"must be {' or '.join(allowed)}, got !{name}")
    else:
        yield from _inside(value["params"], class_schema(cls), path, allow_import)


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
