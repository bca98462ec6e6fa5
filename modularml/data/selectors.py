"""Selection of columns by ``key``, ``key.rep``, ``domain.key.rep`` or wildcards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from modularml._typing import Columns
from modularml.data.schema import DOMAINS, RAW, TRANSFORMED, SampleSchema
from modularml.errors import UnknownNameError, expect


def as_list(value: str | Sequence[str] | None) -> list[str]:
    """Return no, one or several names as a list."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    return list(expect("columns", value, Iterable, "a name or a list of names"))


def select(
    schema: SampleSchema,
    names: Sequence[str],
    columns: Columns = None,
    *,
    features: Columns = None,
    targets: Columns = None,
    tags: Columns = None,
    rep: str | None = None,
) -> list[str]:
    """Resolve selectors to full names, in the order passed.

    Parameters
    ----------
    schema : SampleSchema
        Schema of all columns.
    names : sequence of str
        Full names to choose from, in table order.
    columns, features, targets, tags : str or list of str, optional
        Selectors; the last three may omit the domain.
    rep : str, optional
        Representation for selectors that name none: None means the newest of each column, ``"*"``
        all of them.

    Returns
    -------
    list of str
        Without repetition. Every column (in representation `rep`) if there is no selector.

    Raises
    ------
    UnknownNameError
        If a selector matches no column; the message lists the closest names.
    """
    if rep is not None:
        expect("rep", rep, str, "a representation such as 'raw', '*' or None")
    if columns is None and features is None and targets is None and tags is None:
        if rep is None:
            return newest(schema, names)
        matches = [name for name in names if fnmatchcase(schema[name].rep, rep)]
        if names and not matches:
            raise UnknownNameError("representation", rep, {schema[name].rep for name in names})
        return matches
    candidates = Candidates(schema, names)
    chosen: dict[str, None] = {}
    for domain, selectors in (
        (None, columns), ("features", features), ("targets", targets), ("tags", tags)
    ):  # fmt: skip
        for selector in () if selectors is None else as_list(selectors):
            chosen.update(dict.fromkeys(candidates.match(selector, domain, rep)))
    return list(chosen)


def select_one(schema: SampleSchema, selector: str) -> str:
    """Resolve a selector to a single column of the schema.

    The default representation is ``raw``: rows are filtered, grouped and split in the original
    units, so scaling does not change which rows are selected.

    Raises
    ------
    UnknownNameError
        If it matches no column, or columns of several keys.
    ConfigError
        If it is not a string.
    """
    selector = expect("column", selector, str, "one name")
    names = Candidates(schema, schema.columns).match(selector, None, "*")
    if len({schema[name].key for name in names}) > 1:
        raise UnknownNameError("single column", selector, names, f"it matches {len(names)} columns")
    raw = [name for name in names if schema[name].rep == RAW]
    return raw[0] if raw else names[-1]


def newest(schema: SampleSchema, names: Iterable[str]) -> list[str]:
    """Return the newest representation of each column among full names, in order."""
    by_key: dict[str, str] = {}
    for name in names:
        spec = schema.columns[name]
        known = schema.columns[by_key.setdefault(spec.key, name)]
        if spec.rep == TRANSFORMED or known.rep != TRANSFORMED:
            by_key[spec.key] = name
    return list(by_key.values())


class Candidates:
    """Full names that selectors are matched against."""

    def __init__(self, schema: SampleSchema, names: Iterable[str]) -> None:
        self.schema, self.names = schema, dict.fromkeys(names)

    def match(self, selector: str, domain: str | None, rep: str | None) -> list[str]:
        """Return the names that match a selector, in table order."""
        columns = self.schema.columns
        if selector in self.names and domain in (None, columns[selector].domain):
            return [selector]
        prefix, parts = None, str(selector).split(".")
        if len(parts) > 1 and parts[0] in DOMAINS:
            prefix, *parts = parts
        elif len(parts) == 3 and parts[0] == "*":
            parts = parts[1:]
        key, suffix = parts[0], ".".join(parts[1:])
        wanted, wanted_rep = domain or prefix, suffix or rep or "*"
        matches: list[str] = []
        if domain is None or prefix in (None, domain):
            for each in DOMAINS if wanted is None else (wanted,):  # a key as it is written
                for own in self.schema.reps(each, key):
                    name = f"{each}.{key}.{own}"
                    if name in self.names and fnmatchcase(own, wanted_rep):
                        matches.append(name)
            matches = matches or [
                name
                for name in self.names
                if wanted in (None, columns[name].domain)
                and fnmatchcase(columns[name].key, key)
                and fnmatchcase(columns[name].rep, wanted_rep)
            ]
        if matches:
            return matches if suffix or rep else newest(self.schema, matches)
        text = key if wanted_rep == "*" else f"{key}.{wanted_rep}"
        specs = [columns[name] for name in self.names]
        candidates = [spec for spec in specs if wanted in (None, spec.domain)]
        near = [f"{spec.key}.{spec.rep}" if "." in text else spec.key for spec in candidates]
        shown = text if len(text) > len(str(selector)) else selector
        raise UnknownNameError(f"column of {wanted}" if wanted else "column", shown, near)
