"""What is audited: a FeatureSet, its pairs of splits, its groups and times."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from modularml._typing import Array, Columns, IntArray
from modularml.data.audit.findings import Finding
from modularml.data.audit.pairs import Pair, pairs_of
from modularml.data.ids import id_texts
from modularml.data.schema import RAW
from modularml.data.selectors import as_list, select_one

if TYPE_CHECKING:
    from modularml.data.featureset import FeatureSet

__all__ = ["Subject"]

_GROUPS = re.compile(
    r"(^|_)(group|cell|battery|patient|subject|participant|person|user|donor|animal|specimen"
    r"|machine|device|engine|recording|session|scan|id)(_?(id|no|nr|num|number|name))?$"
)

MAPPED = 100_000
"""The most rows of a split that are looked at in columns that lie in a file."""

RUN = 64
"""Rows in a row, where some are looked at; single ones would bring in a page of a file each."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is audited; groups and times are columns, and how each was guessed."""

    fs: FeatureSet
    pairs: list[Pair]
    groups: Mapping[str, str]
    times: Mapping[str, str]
    tolerance: float
    max_rows: int | None

    @classmethod
    def of(
        cls, fs: FeatureSet, groups: Columns, time: Columns, tolerance: float, max_rows: int | None
    ) -> Subject:
        """Find the pairs, and the groups and times where the user named none."""
        found = _guessed_groups(fs) if groups is None else _named(fs, groups)
        times = _guessed_times(fs) if time is None else _named(fs, time)
        if max_rows is None and fs.collection.is_mapped(fs.collection.names):
            max_rows = MAPPED
        return cls(fs, pairs_of(fs), found, times, tolerance, max_rows)

    def values(self, *domains: str, rows: IntArray | None = None) -> dict[str, Array]:
        """Return the raw columns of domains by full name, text as numbers."""
        data = self.fs.collection
        columns = [s for s in data.schema.columns.values() if s.domain in domains and s.rep == RAW]
        found = {s.name: data.gather([s.name], rows)[:, 0] for s in columns if s.dtype.kind != "O"}
        texts = (s.name for s in columns if s.dtype.kind == "O" and not s.shape)
        return found | {
            name: data.codes(name)[slice(None) if rows is None else rows] for name in texts
        }

    def some(self, n: int) -> IntArray | None:
        """Return which of n rows are looked at, in runs that lie evenly spread; None for all."""
        if self.max_rows is None or n <= self.max_rows:
            return None
        every = -(-n // self.max_rows)
        return np.flatnonzero(np.arange(n) // RUN % every == 0)[: self.max_rows]

    @property
    def rows(self) -> IntArray | None:
        """Rows of the whole set that are looked at; None for all."""
        return self.some(len(self.fs))

    def thinned(self) -> list[Pair]:
        """Return the pairs with the rows that are looked at."""

        def thin(rows: IntArray) -> IntArray:
            some = self.some(len(rows))
            return rows if some is None else rows[some]

        return [replace(p, train=thin(p.train), test=thin(p.test)) for p in self.pairs]

    def finding(
        self,
        kind: str,
        severity: str,
        rows: IntArray,
        said: str,
        columns: tuple[str, ...] = (),
        pair: Pair | None = None,
    ) -> Finding:
        """Return a finding on some rows; where it is on a pair, `said` follows their number."""
        hit = np.zeros(len(self.fs), dtype=bool)
        hit[rows] = True
        rows = np.flatnonzero(hit)
        ids = id_texts(self.fs.collection.ids[rows[:5]]).tolist() if len(rows) else ()
        if pair is not None:
            said = f"{len(rows)} of {len(pair.test)} rows of {pair.names[1]!r} {said}"
        splits = () if pair is None else pair.names
        return Finding(severity, kind, columns, splits, len(rows), said, tuple(ids))


def _named(fs: FeatureSet, wanted: Columns) -> dict[str, str]:
    return {select_one(fs.collection.schema, name): "" for name in as_list(wanted)}


def _guessed_groups(fs: FeatureSet) -> dict[str, str]:
    """Return columns that a split was made by, and tags named like a group that repeat."""
    data, n = fs.collection, len(fs)
    tags = (s for s in data.schema.columns.values() if s.domain == "tags" and not s.shape)
    named = [s.name for s in tags if _GROUPS.search(s.key.lower())]
    repeat = [name for name in named if 1 <= data.codes(name).max(initial=0) < n / 2]
    found = dict.fromkeys(repeat, ", a group by its name and as its values repeat")
    by = [key for r in fs.split_records for key in as_list(getattr(r.splitter, "group_by", None))]
    return found | dict.fromkeys(_named(fs, by), ", by which a split was grouped")


def _guessed_times(fs: FeatureSet) -> dict[str, str]:
    tags = (s for s in fs.collection.schema.columns.values() if s.domain == "tags")
    return {s.name: ", a tag with dates" for s in tags if s.dtype.kind == "M" and not s.shape}
