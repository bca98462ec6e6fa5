"""Selectors: ``key``, ``key.rep``, ``domain.key.rep`` and wildcards, to full column names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from modularml._typing import Columns
from modularml.data.schema import DOMAINS, SampleSchema
from modularml.errors import UnknownNameError

__all__ = ["as_list", "select", "select_one"]


def as_list(value: str | Sequence[str] | None) -> list[str]:
    """Return a list: none, one or several names."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


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
        Representation for selectors that name none. None means every one there is.

    Returns
    -------
    list of str
        Without repetition. All of `names` (of that `rep`) where no selector is given.

    Raises
    ------
    UnknownNameError
        If a selector fits no column; the closest names are listed.
    """
    given = {"features": features, "targets": targets, "tags": tags}
    if columns is None and all(v is None for v in given.values()):
        return [name for name in names if rep is None or schema[name].rep == rep]
    chosen: dict[str, None] = {}
    for selector in as_list(columns):
        chosen.update(dict.fromkeys(_match(schema, names, selector, None, rep)))
    for domain in DOMAINS:
        for selector in as_list(given[domain]):
            chosen.update(dict.fromkeys(_match(schema, names, selector, domain, rep)))
    return list(chosen)


def select_one(schema: SampleSchema, names: Sequence[str], selector: str) -> str:
    """Resolve a selector that must mean one column: the newest representation if none is named."""
    found = _match(schema, names, selector, None, None)
    keys = {(schema[name].domain, schema[name].key) for name in found}
    if len(keys) > 1:
        raise UnknownNameError("single column", selector, found, f"it fits {len(found)} columns")
    newest = schema.newest(*keys.pop())
    return newest if newest in found else found[-1]


def _match(
    schema: SampleSchema, names: Sequence[str], selector: str, domain: str | None, rep: str | None
) -> list[str]:
    pattern = _Pattern.parse(selector, domain, rep)
    found = [name for name in names if pattern.fits(schema, name)]
    if not found:
        offered = [name for name in names if domain is None or schema[name].domain == domain]
        keys = [schema[name].key for name in offered]
        near = offered if "." in selector else keys
        raise UnknownNameError(
            "column" if domain is None else f"column of {domain}", selector, near
        )
    return found


class _Pattern:
    def __init__(self, domain: str, key: str, rep: str) -> None:
        self.domain, self.key, self.rep = domain, key, rep

    @classmethod
    def parse(cls, selector: str, domain: str | None, rep: str | None) -> _Pattern:
        parts = str(selector).split(".")
        own = "*"
        if len(parts) > 1 and parts[0] in DOMAINS:
            own, *parts = parts
        elif len(parts) == 3 and parts[0] == "*":
            parts = parts[1:]
        key = parts[0]
        chosen = parts[1] if len(parts) > 1 else (rep or "*")
        return cls(domain or own, key, chosen)

    def fits(self, schema: SampleSchema, name: str) -> bool:
        spec = schema[name]
        return (
            self.domain in ("*", spec.domain)
            and fnmatchcase(spec.key, self.key)
            and fnmatchcase(spec.rep, self.rep)
        )
