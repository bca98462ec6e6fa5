"""Columns and splits to audit, in full or as a sample of rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.audit.similarity import scores, spread_ranks
from modularml.data.audit_report import Finding
from modularml.data.ids import id_texts
from modularml.data.schema import RAW
from modularml.data.selectors import as_list, select_one
from modularml.splitters import BaseSplitter
from modularml.splitters.folds import FoldSplitter

if TYPE_CHECKING:
    from modularml.data.featureset import FeatureSet

MAPPED = 100_000
"""The most rows of a split that are looked at in columns that lie in a file."""

SAMPLE, QUICK = 4_000, 1_200
"""Rows that statistics are computed on, in full and before a training."""

MOST = 512
"""Columns that near rows are looked for in."""

RUN = 64
"""Rows in a row, where some are looked at; single ones would bring in a page of a file each."""


Mask = np.ndarray[Any, np.dtype[np.bool_]]
_TESTING = re.compile("test|val|dev|hold|exam|check|eval|final|unseen|blind|score|verif|probe")
_Call = tuple[tuple[str, ...], str | None, BaseSplitter | None]
_Apart = tuple[str, str, BaseSplitter | None, str | None]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two splits that should have nothing in common: names and rows, the training side first."""

    names: tuple[str, str]
    train: IntArray
    test: IntArray
    in_train: Mask
    splitter: BaseSplitter | None = None  # that made both
    origin: str | None = None  # split that both were cut from

    @property
    def severity(self) -> str:
        """Error where the first is for training by its name, else warning."""
        return "error" if is_training(self.names[0]) else "warning"

    @property
    def shared(self) -> IntArray:
        """Rows that are in both."""
        return self.test[self.in_train[self.test]]

    @cached_property
    def tested(self) -> IntArray:
        """Rows of the second that are not in the first."""
        return self.test[~self.in_train[self.test]]


def pairs_of(fs: FeatureSet) -> list[Pair]:
    """Return all pairs of splits that should have nothing in common.

    Left out are two splits for training, sides of different folds, a split and what was cut from
    it, splits of two calls that divide the same rows in two ways, and a part of a split that is
    not named for testing, where another split is left to test on.
    """
    rows = {name: view.valid_indices for name, view in fs.splits.items()}

    def mask(names: Sequence[str]) -> Mask:
        found = np.zeros(len(fs), dtype=bool)
        for name in names:
            found[rows[name]] = True
        return found

    def divide_alike(one: Sequence[str], other: Sequence[str]) -> bool:
        a, b = mask(one), mask(other)
        half = min(a.sum(), b.sum()) / 2
        return len(one) > 1 and len(other) > 1 and bool((a & b).sum() > half)

    def is_part(name: str) -> bool:
        wholes = [k for k in rows if len(rows[k]) > len(rows[name]) and mask([k])[rows[name]].all()]
        apart = [k for w in wholes for k in rows if len(rows[k]) and not mask([w])[rows[k]].any()]
        return not is_testing(name) and bool(apart)

    calls: list[_Call] = [(r.names, r.source, r.splitter) for r in fs.split_records]
    made = {name for names, *_ in calls for name in names}
    calls.append((tuple(k for k in rows if k not in made and not is_part(k)), None, None))
    found: list[_Apart] = []
    for names, source, splitter in calls:
        folds = isinstance(splitter, FoldSplitter)
        within = zip(names[::2], names[1::2], strict=True) if folds else combinations(names, 2)
        found += [(*pair, splitter, source) for pair in within]
    for (one, source, _), (other, its, _) in combinations(calls, 2):
        if source == its and not divide_alike(one, other):
            found += [(a, b, None, source) for a, b in product(one, other)]
    pairs = []
    for one_name, other_name, splitter, source in found:
        a, b = sorted((one_name, other_name), key=is_training, reverse=True)
        pairs.append(Pair((a, b), rows[a], rows[b], mask([a]), splitter, source))
    return [pair for pair in pairs if not is_training(pair.names[1])]


def is_testing(name: str) -> bool:
    """Tell whether a split is for testing or validation, by its name."""
    return bool(_TESTING.search(name.lower()))


def is_training(name: str) -> bool:
    """Tell whether a split is for training, by its name."""
    return bool(re.search("train|(^|[^a-z])fit", name.lower()))


@dataclass(frozen=True, eq=False)
class Column:
    """A raw column, of the sampled rows.

    Parameters
    ----------
    name : str
        Full name.
    values : ndarray, shape (n, *shape)
        Text as text, times as they are.
    """

    name: str
    values: Array

    @property
    def key(self) -> str:
        """Name within the domain."""
        return self.name.split(".")[1]

    @property
    def domain(self) -> str:
        """``features``, ``targets`` or ``tags``."""
        return self.name.split(".")[0]

    @property
    def is_number(self) -> bool:
        """Whether the values can be reckoned with."""
        return self.values.dtype.kind in "biuf"

    @property
    def is_scalar(self) -> bool:
        """Whether a sample is one value."""
        return self.values.ndim == 1

    @cached_property
    def flat(self) -> Array:
        """Numbers, shape (n, d); text and times as codes in sorted order."""
        if self.is_number:
            return self.values.reshape(len(self.values), -1)
        if self.values.dtype.kind in "mM":
            return self.values.reshape(len(self.values), -1).astype(np.int64)
        return self.codes[:, None] if self.is_scalar else np.zeros((len(self.values), 0))

    @cached_property
    def n_values(self) -> int:
        """How many different scalar values there are; missing ones are one value."""
        if self.values.dtype.kind != "f":
            return int(self.codes.max(initial=-1)) + 1
        known = self.values[~np.isnan(self.values)]
        ordered = np.sort(known)
        steps = int((ordered[1:] != ordered[:-1]).sum())
        return steps + bool(len(known)) + (len(known) < len(self.values))

    @cached_property
    def codes(self) -> IntArray:
        """Scalar values as numbers from 0, in sorted order; missing ones are one value."""
        found = require("pandas").factorize(self.values, sort=True, use_na_sentinel=False)[0]
        return np.asarray(found, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Side:
    """A pair of splits within the sample: positions there."""

    pair: Pair
    train: IntArray
    test: IntArray


@dataclass(frozen=True, eq=False)
class Table:
    """What is audited.

    Parameters
    ----------
    fs : FeatureSet
    pairs : list of Pair
        Splits that should have nothing in common.
    groups, times : list of str or None
        Full names of columns that the user named; None where they are to be found.
    tolerance : float or None
        How near counts; None where statistics decide.
    max_rows : int or None
        The most rows of a split that are looked at for copies.
    quick : bool
        Whether little time is to be spent.
    """

    fs: FeatureSet
    pairs: list[Pair]
    groups: list[str] | None
    times: list[str] | None
    tolerance: float | None
    max_rows: int | None
    quick: bool = False

    # -- rows and columns -----------------------------------------------------------------

    @cached_property
    def rows(self) -> IntArray:
        """The rows that statistics are computed on, ascending."""
        n = len(self.fs)
        most = QUICK if self.quick else SAMPLE
        if self.max_rows is not None:
            most = min(most, self.max_rows)
        if n <= most:
            return np.arange(n)
        if self.fs.collection.is_mapped(self.fs.collection.names):
            every = -(-n // most)
            return np.flatnonzero(np.arange(n) // RUN % every == 0)[:most]
        return np.sort(np.random.default_rng(0).choice(n, most, replace=False))

    def codes(self, names: Sequence[str]) -> IntArray:
        """Give all rows with equal values in these columns equal numbers from 0."""
        return joined([self.fs.collection.codes(name) for name in names])

    def grouped_by(self, splitter: Any) -> tuple[str, ...]:
        """Return the columns whose equal values a splitter keeps together, by full name."""
        by = as_list(getattr(splitter, "group_by", None))
        return tuple(select_one(self.fs.collection.schema, key) for key in by)

    @property
    def is_whole(self) -> bool:
        """Whether the sample is all rows."""
        return len(self.rows) == len(self.fs)

    @cached_property
    def columns(self) -> dict[str, Column]:
        """Raw columns of the sample by full name."""
        data = self.fs.collection
        specs = [s for s in data.schema.columns.values() if s.rep == RAW]
        some = None if self.is_whole else self.rows
        return {s.name: Column(s.name, data.gather([s.name], some)[:, 0]) for s in specs}

    def of_domain(self, *domains: str) -> list[Column]:
        """Return the columns of domains."""
        return [c for c in self.columns.values() if c.domain in domains]

    @cached_property
    def sides(self) -> list[Side]:
        """The pairs within the sample, rows of both sides left out of the second."""
        place = np.full(len(self.fs), -1)
        place[self.rows] = np.arange(len(self.rows))

        def inside(rows: IntArray) -> IntArray:
            found = place[rows]
            return found[found >= 0]

        return [Side(p, inside(p.train), inside(p.tested)) for p in self.pairs]

    @cached_property
    def main_sides(self) -> list[Side]:
        """Two pairs at most for tests of columns: those with the most rows to test on."""
        large = [s for s in self.sides if len(s.train) >= 20 and len(s.test) >= 10]
        return sorted(large, key=lambda s: -min(len(s.train), len(s.test)))[:2]

    @cached_property
    def ranks(self) -> Array:
        """Ranks of features that vary, shape (n, d), equal values in random order.

        Of a column of more than 256 elements these are 256, and of more than 512 columns 512, drawn
        from a seed.
        """
        rng = np.random.default_rng(0)
        flats = [c.flat for c in self.of_domain("features")]
        if len(flats) > MOST:
            flats = [flats[i] for i in np.sort(rng.permutation(len(flats))[:MOST])]
        flats = [
            f if f.shape[1] <= 256 else f[:, np.sort(rng.permutation(f.shape[1])[:256])]
            for f in flats
        ]
        varied = [f for f in flats if f.shape[1] and len(f) and (f != f[0]).any()]
        found = [spread_ranks(f, rng) for f in varied]
        empty = np.zeros((len(self.rows), 0), dtype=np.float32)
        return np.concatenate(found, axis=1) if found else empty

    @cached_property
    def bearing(self) -> dict[str, Array]:
        """Normal scores of what rows can be alike in, by full name, shape (n, d <= 8).

        Of a wide column these are its first principal components; of more than 512 columns,
        512 that are drawn from a seed.
        """
        found = {}
        columns = self.of_domain("targets", "features")
        if len(columns) > MOST:
            some = np.random.default_rng(1).permutation(len(columns))[:MOST]
            columns = [columns[i] for i in np.sort(some)]
        for c in columns:
            flat = c.flat
            if c.is_number and flat.shape[1] > 8:
                finite = np.nan_to_num(flat.astype(np.float32), posinf=0, neginf=0)
                finite = finite - finite.mean(axis=0)
                basis = np.random.default_rng(0).normal(size=(finite.shape[1], 16))
                rough = np.linalg.qr(finite.T @ (finite @ basis.astype(np.float32)))[0]
                flat = np.linalg.svd(finite @ rough, full_matrices=False)[0][:, :8]
            elif not (c.is_number or len(np.unique(c.codes[:2000])) <= 2):
                continue  # text has no order
            if flat.shape[1]:
                found[c.name] = scores(np.where(np.isfinite(flat), flat, np.nan))
        return found

    def bearing_without(self, *names: str) -> Array:
        """Return what rows can be alike in side by side, shape (n, d), some columns left out."""
        kept = [z for name, z in self.bearing.items() if name not in names]
        return np.concatenate(kept, axis=1) if kept else np.zeros((len(self.rows), 0))

    def some(self, n: int) -> IntArray | None:
        """Return which of n rows are looked at for copies, in runs evenly spread; None for all."""
        if self.max_rows is None or n <= self.max_rows:
            return None
        every = -(-n // self.max_rows)
        return np.flatnonzero(np.arange(n) // RUN % every == 0)[: self.max_rows]

    # -- findings -------------------------------------------------------------------------

    def finding(
        self,
        kind: str,
        severity: str,
        rows: IntArray | None,
        finding: str,
        columns: Iterable[str] = (),
        pair: Pair | None = None,
        *,
        remedy: str = "",
        measure: str = "",
        p_value: float | None = None,
        picture: str = "",
    ) -> Finding:
        """Return a finding on some rows of the set, the surest first.

        Without `rows` it is on all. Where it is on a pair, `finding` follows their number.
        """
        columns = tuple(columns)
        rows = np.arange(len(self.fs)) if rows is None else rows
        rows = rows[np.sort(np.unique(rows, return_index=True)[1])]
        ids = id_texts(self.fs.collection.ids[rows[:5]]).tolist() if len(rows) else ()
        if pair is not None:
            finding = f"{len(rows)} of {len(pair.test)} rows of {pair.names[1]!r} {finding}"
        if remedy:
            finding = f"{finding}; {remedy}"
        key = f":{columns[0].split('.')[1]}" if columns else ""
        splits = () if pair is None else pair.names
        return Finding(
            severity, kind, columns, splits, len(rows), finding, tuple(ids), measure, p_value,
            remedy, f"{kind}{key}", picture,
        )  # fmt: skip


def joined(codes: Sequence[IntArray]) -> IntArray:
    """Give equal combinations of codes equal numbers from 0."""
    combined = codes[0]
    for more in codes[1:]:
        combined = combined * (more.max(initial=0) + 1) + more
    found: IntArray = np.unique(combined, return_inverse=True)[1]
    return found
