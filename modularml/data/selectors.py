"""Selectors: ``key``, ``key.rep``, ``domain.key.rep`` and wildcards, to full column names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from types import NoneType

from modularml._typing import Columns
from modularml.data.schema import DOMAINS, RAW, TRANSFORMED, SampleSchema
from modularml.errors import UnknownNameError, expect

__all__ = ["as_list", "newest", "select", "select_one"]


def as_list(value: str | Sequence[str] | None) -> list[str]:
    """Return a list: none, one or several names."""
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
    """Resolve selectors to full names, in the order the caller gave.

    Parameters
    ----------
    schema : SampleSchema
        What there is.
    names : sequence of str
        Full names that may be chosen from, in table order.
    columns, features, targets, tags : str or list of str, optional
        Selectors; the last three may leave the domain out.
    rep : str, optional
        Representation for selectors that name none: None means the newest of each column, ``"*"``
        every one there is.

    Returns
    -------
    list of str
        Without repetition. Every column (in that `rep`) where no selector is given.

    Raises
    ------
    UnknownNameError
        If a selector fits no column; the closest names are listed.
    """
    expect("rep", rep, (str, NoneType), "a representation such as 'raw', '*' or None")
    given = {"features": features, "targets": targets, "tags": tags}
    if columns is None and all(v is None for v in given.values()):
        if rep is None:
            return newest(schema, names)
        found = [name for name in names if fnmatchcase(schema[name].rep, rep)]
        if names and not found:
            raise UnknownNameError("representation", rep, {schema[name].rep for name in names})
        return found
    offer = _Offer(schema, names)
    chosen: dict[str, None] = {}
    for selector in as_list(columns):
        chosen.update(dict.fromkeys(offer.match(selector, None, rep)))
    for domain in DOMAINS:
        for selector in as_list(given[domain]):
            chosen.update(dict.fromkeys(offer.match(selector, domain, rep)))
    return list(chosen)


def select_one(schema: SampleSchema, selector: str) -> str:
    """Resolve a selector that must mean one column of all there are.

    Where it names no representation ``raw`` is meant: rows are chosen, grouped and split in the
    user's own units, so that scaling does not change which rows these are.

    Raises
    ------
    UnknownNameError
        If it fits no column, or columns of several keys.
    ConfigError
        If it is no string.
    """
    selector = expect("column", selector, str, "one name")
    found = _Offer(schema, schema.columns).match(selector, None, "*")
    if len({schema[name].key for name in found}) > 1:
        raise UnknownNameError("single column", selector, found, f"it fits {len(found)} columns")
    raw = [name for name in found if schema[name].rep == RAW]
    return raw[0] if raw else found[-1]


def newest(schema: SampleSchema, names: Iterable[str]) -> list[str]:
    """Return the newest representation, among full names, of each column, in their order."""
    found: dict[str, str] = {}
    for name in names:
        spec = schema[name]
        if spec.rep == TRANSFORMED or schema[found.setdefault(spec.key, name)].rep != TRANSFORMED:
            found[spec.key] = name
    return list(found.values())


class _Offer:
    """Names that selectors may choose from."""

    def __init__(self, schema: SampleSchema, names: Iterable[str]) -> None:
        self.schema, self.names = schema, dict.fromkeys(names)

    def match(self, selector: str, domain: str | None, rep: str | None) -> list[str]:
        """Return the names that a selector fits, in table order."""
        if selector in self.names and domain in (None, self.schema[selector].domain):
            return [selector]
        own, key, named = _parse(str(selector))
        chosen = named or rep or "*"
        found: list[str] = []
        if domain is None or own in (None, domain):
            found = self._exact(domain or own, key, chosen) or [
                name for name in self.names if self._fits(name, domain or own, key, chosen)
            ]
        if not found:
            raise self._unknown(
                key if chosen == "*" else f"{key}.{chosen}", selector, domain or own
            )
        return found if named or rep else newest(self.schema, found)

    def _exact(self, domain: str | None, key: str, rep: str) -> list[str]:
        """Look a key up as it is written, before its signs are read as wildcards."""
        domains = DOMAINS if domain is None else (domain,)
        names = [f"{d}.{key}.{r}" for d in domains for r in self.schema.reps(d, key)]
        return [n for n in names if n in self.names and fnmatchcase(n.rpartition(".")[2], rep)]

    def _fits(self, name: str, domain: str | None, key: str, rep: str) -> bool:
        spec = self.schema[name]
        return (
            domain in (None, spec.domain)
            and fnmatchcase(spec.key, key)
            and fnmatchcase(spec.rep, rep)
        )

    def _unknown(self, asked: str, selector: str, domain: str | None) -> UnknownNameError:
        specs = [self.schema[name] for name in self.names]
        offered = [spec for spec in specs if domain in (None, spec.domain)]
        near = [f"{spec.key}.{spec.rep}" if "." in asked else spec.key for spec in offered]
        shown = asked if len(asked) > len(str(selector)) else selector
        return UnknownNameError(f"column of {domain}" if domain else "column", shown, near)


def _parse(selector: str) -> tuple[str | None, str, str]:
    """Return domain (None for any), key and representation ("" for none) that a selector names."""
    parts = selector.split(".")
    domain = None
    if len(parts) > 1 and parts[0] in DOMAINS:
        domain, *parts = parts
    elif len(parts) == 3 and parts[0] == "*":
        parts = parts[1:]
    key, *named = parts
    return domain, key, ".".join(named)
