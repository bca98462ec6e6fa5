"""Joining the rows of several tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modularml._typing import IntArray
from modularml._warning import warn
from modularml.data.ids import id_array, positions_of
from modularml.data.schema import POSITION, SAMPLE_UUIDS
from modularml.data.selectors import as_list, select_one
from modularml.errors import ConfigError, DataError, UnknownNameError

Key: TypeAlias = str | Sequence[str] | None
"""Columns whose values match rows of two tables."""


@dataclass(frozen=True)
class Table:
    """Rows that can be joined with those of other tables.

    Parameters
    ----------
    label : str
    n : int
        Number of rows.
    is_sample : bool
        Whether the rows are samples (with targets) rather than attributes of samples.
    key : callable
        Maps the name of a column, or ``"sample_uuids"``, to its values as an Arrow array; None
        if there is no such column.
    """

    label: str
    n: int
    is_sample: bool
    key: Callable[[str], pa.Array | None] = field(repr=False)

    def has(self, on: Key) -> bool:
        """Check whether all columns of a key exist."""
        return all(self.key(name) is not None for name in as_list(on))


class Link(NamedTuple):
    """Two tables, by number, whose rows match if their keys are equal.

    `on` describes the key in messages; with `strict`, every sample row needs a match.
    """

    tables: tuple[int, int]
    keys: tuple[pa.Array, pa.Array]
    on: str
    strict: bool = False

    def find(self, side: int) -> IntArray:
        """Return the matching row on the other side for each row; -1 for no match."""
        return positions_of(self.keys[side], self.keys[1 - side])

    def repeats(self, side: int) -> bool:
        """Check whether a key is repeated on one side."""
        keys = self.keys[side].drop_null()
        return len(pc.unique(keys)) < len(keys)


class Joined(NamedTuple):
    """Matching row numbers of each table, and the number of the left table."""

    rows: list[IntArray]
    lead: int


def table_of(view: Any, *, is_sample: bool = True, label: str | None = None) -> Table:
    """Return the rows of a FeatureSetView as a table to be joined."""

    def key(name: str) -> pa.Array | None:
        collection, rows = view.collection, view.valid_indices
        if name == SAMPLE_UUIDS:
            return id_array(collection.ids[rows])
        try:
            column = select_one(collection.schema, name)
        except UnknownNameError:
            return None
        if collection.schema[column].shape:
            raise DataError(
                f"rows of {view.source.label!r} cannot be joined on column {column!r}: it holds "
                "arrays, not single values"
            )
        return collection.array(column).take(pa.array(rows))

    return Table(label or str(view.source.label), len(view), is_sample, key)


def link_by(
    tables: Sequence[Table],
    pair: tuple[int, int],
    on: tuple[Key, Key],
    *,
    strict: bool = False,
) -> Link:
    """Link two tables by columns of each.

    Raises
    ------
    UnknownNameError
        If a table lacks a column of its key.
    DataError
        If values cannot be compared, or tables joined by position differ in length.
    """
    shown = f"{on[0]!r}" if on[0] == on[1] else f"{on[0]!r} and {on[1]!r}"
    a, b = (tables[i] for i in pair)
    if POSITION in on:
        if a.n != b.n:
            raise DataError(
                f"rows of {a.label!r} ({a.n}) and {b.label!r} ({b.n}) differ in number, so they "
                "cannot be matched by position; name a column that both share"
            )
        places = pa.array(np.arange(a.n))
        return Link(pair, (places, places), "position")
    columns: tuple[list[pa.Array], list[pa.Array]] = [], []
    for table, key, own in zip((a, b), on, columns, strict=True):
        for name in as_list(key):
            values = table.key(name)
            if values is None:
                raise DataError(
                    f"{table.label!r} has no column {name!r} to join its rows on; add it, "
                    "or name the column of each set with fs.reference(on=...)"
                )
            if pa.types.is_dictionary(values.type):
                values = values.dictionary_decode()
            if pa.types.is_floating(values.type):  # NaN matches nothing
                values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
            own.append(values)
    if len(columns[0]) != len(columns[1]):
        raise DataError(f"keys of {a.label!r} and {b.label!r} differ in length: {shown}")
    keys = [_to_one_type(x, y, shown, (a, b)) for x, y in zip(*columns, strict=True)]
    if len(keys) == 1:
        return Link(pair, keys[0], shown, strict)
    n, codes, missing = len(keys[0][0]), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool)
    for x, y in keys:  # several columns become one
        both = pa.concat_arrays([x, y]).dictionary_encode()
        column_codes = pc.fill_null(both.indices, 0).to_numpy().astype(np.int64)
        codes = codes * (len(both.dictionary) + 1) + column_codes
        codes = np.unique(codes, return_inverse=True)[1].astype(np.int64)
        missing = missing | both.indices.is_null().to_numpy(zero_copy_only=False)
    combined = pa.array(codes, mask=missing)
    return Link(pair, (combined[:n], combined[n:]), shown, strict)


def link_same(tables: Sequence[Table], pair: tuple[int, int]) -> Link | None:
    """Link two tables by sample id; None if their samples differ."""
    keys = tables[pair[0]].key(SAMPLE_UUIDS), tables[pair[1]].key(SAMPLE_UUIDS)
    if keys[0] is None or keys[1] is None or len(keys[0]) != len(keys[1]):
        return None
    link = Link(pair, keys, repr(SAMPLE_UUIDS))
    same = keys[0].equals(keys[1]) or not (link.repeats(0) or (link.find(0) < 0).any())
    return link if same else None


def split_like(self: Any, other: Any, on: str | Mapping[str, str]) -> None:
    """Split the rows as the rows of another set that have the same key.

    Machine facts get the splits of the windows of these machines, so that scalers of both
    learn from the same machines. Rows whose key is in no split of `other` are in none.

    Parameters
    ----------
    other : FeatureSet
        Its splits are taken over by name.
    on : str or dict of str to str
        Column whose values are equal in both; a dict maps the column of this set to that of
        `other`.

    Raises
    ------
    ConfigError
        If `on` is not one column, or `other` has no splits.
    DataError
        If no row has a key of a split.

    Examples
    --------
    >>> from modularml import FeatureSet
    >>> rows = FeatureSet.from_dict(
    ...     "rows", {"v": [1, 2, 3], "m": ["a", "b", "b"]}, "v", [], "m", register=False
    ... )
    >>> facts = FeatureSet.from_dict(
    ...     "facts", {"m": ["b", "a"], "age": [7, 9]}, "age", [], "m", register=False
    ... )
    >>> rows.split_by_condition({"train": {"m": "b"}, "test": {"m": "a"}})
    >>> facts.split_like(rows, on="m")
    >>> facts["train"].get_features()["age"].tolist()
    [7]
    """
    pairs = {on: on} if isinstance(on, str) else dict(on)
    if len(pairs) != 1:
        raise ConfigError(f"on must be one column that both sets have, got {on!r}")
    splits = getattr(other, "splits", None)
    if not splits:
        raise ConfigError(f"other must be a FeatureSet with splits, got {other!r}; split it first")
    ((own, theirs),) = pairs.items()
    tables = [table_of(self.to_view()), table_of(other.to_view())]
    matches = link_by(tables, (0, 1), (own, theirs))
    conditions = {}
    for name, part in splits.items():
        keys = matches.keys[1].take(pa.array(part.valid_indices))
        conditions[name] = {own: pc.unique(keys.drop_null()).to_pylist()}
    if (matches.find(0) < 0).all():
        raise DataError(f"no row of {self._name!r} has a value of {on!r} in {other.label!r}")
    self.split_by_condition(conditions)


def join(tables: Sequence[Table], links: Sequence[Link], *, who: str = "") -> Joined:
    """Match the rows of tables: one to one, or many to one.

    The left table is the one whose keys repeat, else the first that holds samples. Its rows keep
    their order. Rows without a match are omitted with a warning that counts them, as are unmatched
    samples of other tables. Unmatched rows of tables without samples are ignored.

    Parameters
    ----------
    tables : sequence of Table
    links : sequence of Link
        Must connect all tables.
    who : str
        Prefix of messages that names the caller.

    Raises
    ------
    DataError
        If a key repeats on both sides, no rows match, a row has no match for a strict link, or
        links contradict each other.
    """
    for lead in sorted(range(len(tables)), key=lambda i: not tables[i].is_sample):
        matched = _look_up(lead, tables[lead].n, links)
        if len(matched) == len(tables):
            break
    else:
        link = next((x for x in links if x.repeats(0) and x.repeats(1)), links[0])
        a, b = (tables[i].label for i in link.tables)
        raise DataError(
            f"{who}values of {link.on} repeat in {a!r} and in {b!r}, so rows match "
            "several others; join on columns that together differ in one of them, such as "
            "['machine', 'date'], or select one row per value"
        )
    complete = np.all([rows >= 0 for rows in matched.values()], axis=0)
    rows = [matched[i][complete] for i in range(len(tables))]
    by = " and ".join(dict.fromkeys(link.on for link in links))
    if not len(rows[lead]) and tables[lead].n:
        names = [table.label for table in tables]
        raise DataError(f"{who}rows of {names} have no value of {by} in common")
    counts = [
        f"{n} of {table.n} rows of {table.label!r}"
        for i, table in enumerate(tables)
        if (i == lead or table.is_sample) and (n := table.n - len(np.unique(rows[i])))
    ]
    if counts and any(link.strict for link in links):
        raise DataError(f"{who}{' and '.join(counts)} have no match by {by}, but strict=True")
    if counts:
        warn(f"{who}{' and '.join(counts)} have no match by {by} and are omitted")
    for link in links:
        a, b = (
            keys.take(pa.array(rows[i])) for keys, i in zip(link.keys, link.tables, strict=True)
        )
        if not a.equals(b):
            names = [tables[i].label for i in link.tables]
            raise DataError(
                f"{who}rows of {names} match in two contradictory ways: by "
                f"{' and by '.join(dict.fromkeys(x.on for x in links))}"
            )
    return Joined(rows, lead)


def _look_up(lead: int, n: int, links: Sequence[Link]) -> dict[int, IntArray]:
    """Return the matching rows of all tables that have at most one match per row."""
    rows = {lead: np.arange(n)}
    changed = True
    while changed:
        changed = False
        for link in links:
            for side, (old, new) in enumerate((link.tables, link.tables[::-1])):
                if old in rows and new not in rows and not link.repeats(1 - side):
                    old_rows, matches = rows[old], link.find(side)
                    rows[new] = np.where(old_rows >= 0, matches[old_rows], -1)
                    changed = True
    return rows


def _to_one_type(
    a: pa.Array, b: pa.Array, shown: str, tables: tuple[Table, Table]
) -> tuple[pa.Array, pa.Array]:
    """Cast keys of two tables to one type; times of two zones are compared as instants."""
    if a.type == b.type:
        return a, b
    zones = [t.tz for t in (a.type, b.type) if pa.types.is_timestamp(t)]
    dated = any(pa.types.is_date(t) for t in (a.type, b.type))
    if zones and len({zone is None for zone in zones} | ({True} if dated else set())) > 1:
        shown_zones = [getattr(t, "tz", None) for t in (a.type, b.type)]
        raise DataError(
            f"rows cannot be joined on {shown}: its times in {tables[0].label!r} have the time "
            f"zone {shown_zones[0]}, and those in {tables[1].label!r} {shown_zones[1]}; give both "
            "one (tz_localize)"
        )
    kinds = {_kind(a.type), _kind(b.type)}
    if kinds == {"integer", "float"}:
        types = [a.type if _kind(a.type) == "integer" else b.type]
    elif len(kinds) == 1:
        wider = {"integer": [pa.int64(), pa.uint64()], "float": [pa.float64()]}
        is_text = _kind(a.type) == "text"
        types = wider.get(kinds.pop(), [a.type, b.type, pa.large_string()][: 3 if is_text else 2])
    else:
        types = []
    for kind in types:
        try:
            return a.cast(kind), b.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    raise DataError(
        f"rows cannot be joined on {shown}: {tables[0].label!r} holds {a.type} and "
        f"{tables[1].label!r} {b.type}, which cannot be compared; cast one of them"
    )


def _kind(kind: pa.DataType) -> str:
    tests: dict[str, Any] = {
        "integer": pa.types.is_integer,
        "float": pa.types.is_floating,
        "text": lambda t: pa.types.is_string(t) or pa.types.is_large_string(t),
        "time": pa.types.is_temporal,
    }
    return next((name for name, fits in tests.items() if fits(kind)), str(kind))
