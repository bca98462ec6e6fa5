"""Rows of several tables that belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modularml._typing import IntArray
from modularml._warning import warn
from modularml.data.ids import id_array
from modularml.data.schema import POSITION, SAMPLE_UUIDS
from modularml.data.selectors import as_list, select_one
from modularml.data.view import FeatureSetView
from modularml.errors import DataError, UnknownNameError

__all__ = ["Joined", "Key", "Link", "Table", "join", "link_by", "link_same", "table_of"]

Key: TypeAlias = str | Sequence[str] | None
"""Columns whose values relate rows."""


@dataclass(frozen=True)
class Table:
    """Rows that may be joined with those of others.

    Parameters
    ----------
    label : str
    n : int
        Number of rows.
    is_sample : bool
        Whether the rows are samples (they have targets) and no mere facts about samples.
    key : callable
        From the name of a column, or ``"sample_uuids"``, to its values as an Arrow array; None
        where there is no such column.
    """

    label: str
    n: int
    is_sample: bool
    key: Callable[[str], pa.Array | None] = field(repr=False)

    def has(self, on: Key) -> bool:
        """Tell whether all columns of a key are there."""
        return all(self.key(name) is not None for name in as_list(on))


class Link(NamedTuple):
    """Two tables, by number, whose rows belong together where their keys are equal.

    `on` says by what, for messages; with `strict` no row of a sample may lack a partner.
    """

    tables: tuple[int, int]
    keys: tuple[pa.Array, pa.Array]
    on: str
    strict: bool = False

    def find(self, side: int) -> IntArray:
        """Return for each row of one side its row on the other, -1 where there is none."""
        found = pc.index_in(self.keys[side], value_set=self.keys[1 - side], skip_nulls=True)
        return pc.fill_null(found, -1).to_numpy().astype(np.int64)  # type: ignore[no-any-return]

    def repeats(self, side: int) -> bool:
        """Tell whether some key stands twice on one side."""
        there = self.keys[side].drop_null()
        return len(pc.unique(there)) < len(there)


class Joined(NamedTuple):
    """Row numbers of each table, side by side, and the number of the table that leads."""

    rows: list[IntArray]
    lead: int


def table_of(view: FeatureSetView, *, is_sample: bool = True, label: str | None = None) -> Table:
    """Return the rows of a view as a table to be joined."""

    def key(name: str) -> pa.Array | None:
        collection, rows = view.collection, view.valid_indices
        if name == SAMPLE_UUIDS:
            return id_array(collection.ids[rows])
        try:
            found = select_one(collection.schema, name)
        except UnknownNameError:
            return None
        if collection.schema[found].shape:
            raise DataError(
                f"rows of {view.source.label!r} cannot be joined on column {found!r}: it holds "
                "arrays, not single values"
            )
        return collection.array(found).take(pa.array(rows))

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
        If values cannot be compared, or rows shall meet by position and are not as many.
    """
    shown = f"{on[0]!r}" if on[0] == on[1] else f"{on[0]!r} and {on[1]!r}"
    a, b = (tables[i] for i in pair)
    if POSITION in on:
        if a.n != b.n:
            raise DataError(
                f"rows of {a.label!r} ({a.n}) and {b.label!r} ({b.n}) are not as many, so they "
                "cannot be paired by position; name a column that both share"
            )
        places = pa.array(np.arange(a.n))
        return Link(pair, (places, places), "position")
    columns = [[_column(t, name) for name in as_list(own)] for t, own in ((a, on[0]), (b, on[1]))]
    if len(columns[0]) != len(columns[1]):
        raise DataError(f"keys of {a.label!r} and {b.label!r} differ in length: {shown}")
    alike = [_one_type(x, y, shown, (a, b)) for x, y in zip(*columns, strict=True)]
    return Link(pair, _combined(alike), shown, strict)


def link_same(tables: Sequence[Table], pair: tuple[int, int]) -> Link | None:
    """Link two tables by sample id, where they hold the same samples; else return None."""
    keys = tables[pair[0]].key(SAMPLE_UUIDS), tables[pair[1]].key(SAMPLE_UUIDS)
    if keys[0] is None or keys[1] is None or len(keys[0]) != len(keys[1]):
        return None
    link = Link(pair, keys, repr(SAMPLE_UUIDS))
    same = keys[0].equals(keys[1]) or not (link.repeats(0) or (link.find(0) < 0).any())
    return link if same else None


def join(tables: Sequence[Table], links: Sequence[Link], *, who: str = "") -> Joined:
    """Bring the rows of tables side by side: one to one, or many to one.

    The table whose keys repeat leads; where none do it is the first that holds samples. Its rows
    keep their order, and those without a partner are left out with a warning that counts them, as
    are samples of another table that nobody looks up. Facts that nobody looks up do no harm.

    Parameters
    ----------
    tables : sequence of Table
    links : sequence of Link
        They connect all tables.
    who : str
        What joins them, for messages.

    Raises
    ------
    DataError
        If a key repeats on both sides, nothing is left, a row lacks a partner where that is
        refused, or links contradict each other.
    """
    for lead in sorted(range(len(tables)), key=lambda i: not tables[i].is_sample):
        found = _looked_up(lead, tables[lead].n, links)
        if len(found) == len(tables):
            break
    else:
        link = next((x for x in links if x.repeats(0) and x.repeats(1)), links[0])
        a, b = (tables[i].label for i in link.tables)
        raise DataError(
            f"{who}values of {link.on} repeat in {a!r} and in {b!r}, so rows have several "
            "partners; join on columns that together differ in one of them, such as "
            "['machine', 'date'], or take one row of each value"
        )
    kept = np.all([rows >= 0 for rows in found.values()], axis=0)
    rows = [found[i][kept] for i in range(len(tables))]
    _check_left_out(tables, links, rows, lead, who)
    for link in links:
        a, b = (
            keys.take(pa.array(rows[i])) for keys, i in zip(link.keys, link.tables, strict=True)
        )
        if not a.equals(b):
            names = [tables[i].label for i in link.tables]
            raise DataError(
                f"{who}rows of {names} belong together in two ways that contradict each other: by "
                f"{' and by '.join(dict.fromkeys(x.on for x in links))}"
            )
    return Joined(rows, lead)


def _looked_up(lead: int, n: int, links: Sequence[Link]) -> dict[int, IntArray]:
    """Return the rows that belong to those of a table, in all tables where there is one each."""
    rows = {lead: np.arange(n)}
    grows = True
    while grows:
        grows = False
        for link in links:
            for side, (old, new) in enumerate((link.tables, link.tables[::-1])):
                if old in rows and new not in rows and not link.repeats(1 - side):
                    at, places = rows[old], link.find(side)
                    rows[new] = np.where(at >= 0, places[at], -1)
                    grows = True
    return rows


def _check_left_out(
    tables: Sequence[Table], links: Sequence[Link], rows: list[IntArray], lead: int, who: str
) -> None:
    """Count the samples that have no partner, or refuse them."""
    by = " and ".join(dict.fromkeys(link.on for link in links))
    if not len(rows[lead]) and tables[lead].n:
        names = [table.label for table in tables]
        raise DataError(f"{who}rows of {names} have no value of {by} in common")
    lost = {
        i: tables[i].n - len(np.unique(rows[i]))
        for i in range(len(tables))
        if i == lead or tables[i].is_sample
    }
    told = [f"{k} of {tables[i].n} rows of {tables[i].label!r}" for i, k in lost.items() if k]
    if not told:
        return
    if any(link.strict for link in links):
        raise DataError(f"{who}{' and '.join(told)} have no partner by {by}, and strict=True")
    warn(
        f"{who}{' and '.join(told)} have no partner by {by} and are left out",
    )


def _column(table: Table, name: str) -> pa.Array:
    found = table.key(name)
    if found is None:
        raise DataError(
            f"{table.label!r} has no column {name!r}, on which its rows shall be joined; add it, "
            "or name the column of each set with fs.reference(on=...)"
        )
    if pa.types.is_dictionary(found.type):
        found = found.dictionary_decode()
    if pa.types.is_floating(found.type):  # NaN is no key
        found = pc.if_else(pc.is_nan(found), pa.scalar(None, found.type), found)
    return found


def _one_type(
    a: pa.Array, b: pa.Array, shown: str, tables: tuple[Table, Table]
) -> tuple[pa.Array, pa.Array]:
    """Return values of one type, so that they compare."""
    if a.type == b.type:
        return a, b
    kinds = {_kind(a.type), _kind(b.type)}
    if kinds == {"integer", "float"}:
        wanted = [a.type if _kind(a.type) == "integer" else b.type]
    elif len(kinds) == 1:
        wider = {"integer": [pa.int64(), pa.uint64()], "float": [pa.float64()]}
        wanted = wider.get(kinds.pop(), [a.type, b.type, pa.large_string()][: 3 if _text(a) else 2])
    else:
        wanted = []
    for kind in wanted:
        try:
            return a.cast(kind), b.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    raise DataError(
        f"rows cannot be joined on {shown}: {tables[0].label!r} holds {a.type} and "
        f"{tables[1].label!r} {b.type}, which cannot be compared; cast one of them"
    )


def _text(values: pa.Array) -> bool:
    return _kind(values.type) == "text"


def _kind(kind: pa.DataType) -> str:
    tests: dict[str, Any] = {
        "integer": pa.types.is_integer,
        "float": pa.types.is_floating,
        "text": lambda t: pa.types.is_string(t) or pa.types.is_large_string(t),
        "time": pa.types.is_temporal,
    }
    return next((name for name, fits in tests.items() if fits(kind)), str(kind))


def _combined(columns: Sequence[tuple[pa.Array, pa.Array]]) -> tuple[pa.Array, pa.Array]:
    """Return one key of several columns on each side."""
    if len(columns) == 1:
        return columns[0]
    n, codes, missing = len(columns[0][0]), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool)
    for a, b in columns:
        both = pa.concat_arrays([a, b]).dictionary_encode()
        own = pc.fill_null(both.indices, 0).to_numpy().astype(np.int64)
        codes = codes * (len(both.dictionary) + 1) + own
        codes = np.unique(codes, return_inverse=True)[1].astype(np.int64)
        missing = missing | both.indices.is_null().to_numpy(zero_copy_only=False)
    keys = pa.array(codes, mask=missing)
    return keys[:n], keys[n:]
