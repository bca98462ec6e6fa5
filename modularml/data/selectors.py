"""Selection of columns by ``key``, ``key.rep``, ``domain.key.rep`` or wildcards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from types import NoneType

from modularml._typing import Columns
from modularml.data.schema import DOMAINS, RAW, TRANSFORMED, SampleSchema
from modularml.errors import UnknownNameError, expect

__all__ = ["Candidates", "as_list", "newest", "select", "select_one"]


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
    expect("rep", rep, (str, NoneType), "a representation such as 'raw', '*' or None")
    by_domain = {"features": features, "targets": targets, "tags": tags}
    if columns is None and all(v is None for v in by_domain.values()):
        if rep is None:
            return newest(schema, names)
        matches = [name for name in names if fnmatchcase(schema[name].rep, rep)]
        if names and not matches:
            raise UnknownNameError("representation", rep, {schema[name].rep for name in names})
        return matches
    candidates = Candidates(schema, names)
    chosen: dict[str, None] = {}
    for selector in as_list(columns):
        chosen.update(dict.fromkeys(candidates.match(selector, None, rep)))
    for domain in DOMAINS:
        for selector in as_list(by_domain[domain]):
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
        spec = schema[name]
        if spec.rep == TRANSFORMED or schema[by_key.setdefault(spec.key, name)].rep != TRANSFORMED:
            by_key[spec.key] = name
    return list(by_key.values())


class Candidates:
    """Full names that selectors are matched against."""

    def __init__(self, schema: SampleSchema, names: Iterable[str]) -> None:
        self.schema, self.names = schema, dict.fromkeys(names)

    def match(self, selector: str, domain: str | None, rep: str | None) -> list[str]:
        """Return the names that match a selector, in table order."""
        if selector in self.names and domain in (None, self.schema[selector].domain):
            return [selector]
        prefix, key, suffix = _parse(str(selector))
        wanted_rep = suffix or rep or "*"
        matches: list[str] = []
        if domain is None or prefix in (None, domain):
            matches = self._exact(domain or prefix, key, wanted_rep) or [
                name
                for name in self.names
                if self._matches(name, domain or prefix, key, wanted_rep)
            ]
        if not matches:
            text = key if wanted_rep == "*" else f"{key}.{wanted_rep}"
            raise self._unknown(text, selector, domain or prefix)
        return matches if suffix or rep else newest(self.schema, matches)

    def _exact(self, domain: str | None, key: str, rep: str) -> list[str]:
        """Look up a key literally, before it is interpreted as a wildcard."""
        domains = DOMAINS if domain is None else (domain,)
        names = [f"{d}.{key}.{r}" for d in domains for r in self.schema.reps(d, key)]
        return [n for n in names if n in self.names and fnmatchcase(n.rpartition(".")[2], rep)]

    def _matches(self, name: str, domain: str | None, key: str, rep: str) -> bool:
        spec = self.schema[name]
        return (
            domain in (None, spec.domain)
            and fnmatchcase(spec.key, key)
            and fnmatchcase(spec.rep, rep)
        )

    def _unknown(self, text: str, selector: str, domain: str | None) -> UnknownNameError:
        specs = [self.schema[name] for name in self.names]
        candidates = [spec for spec in specs if domain in (None, spec.domain)]
        near = [f"{spec.key}.{spec.rep}" if "." in text else spec.key for spec in candidates]
        shown = text if len(text) > len(str(selector)) else selector
        return UnknownNameError(f"column of {domain}" if domain else "column", shown, near)


def _parse(selector: str) -> tuple[str | None, str, str]:
    """Split a selector into domain (None for any), key and representation ("")."""
    parts = selector.split(".")
    domain = None
    if len(parts) > 1 and parts[0] in DOMAINS:
        domain, *parts = parts
    elif len(parts) == 3 and parts[0] == "*":
        parts = parts[1:]
    key, *rep = parts
    return domain, key, ".".join(rep)
