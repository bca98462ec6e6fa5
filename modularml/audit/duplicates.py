"""Copies of rows in two splits: equal rows, near ones, and similar sequences and images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from modularml._typing import Array, IntArray
from modularml.audit.audited_table import Column, Pair, Side, Table
from modularml.audit.similarity import (
    hashes,
    near_by_chance,
    pair_of_rows,
    said_times,
    spread_ranks,
)
from modularml.data.audit_report import Finding
from modularml.data.ids import scramble

REMEDY = "drop the copies, or give them a tag in common to group_by"
REFERENCE, JUDGED = 1_500, 300
"""Training rows that the neighbourhood of a row is measured by, and copies that are judged."""

TRIMMED = 40
"""Columns up to which each is left out in turn."""

MANY = 20_000
"""Test rows up to which each is looked up with every column left out."""


def duplicates(t: Table) -> Iterator[Finding]:
    """Find test rows that are nearer to a training row than rows are by chance."""
    copies = _Copies(t)
    names = tuple(c.name for c in t.of_domain("features"))
    for pair, side in zip(t.pairs[:8], t.sides, strict=False):
        train, test = copies.thinned(pair)
        partners = copies.partners(train, test)
        equal, sure = test[partners >= 0], test[:0]
        if copies.may_be_near and len(side.train) >= 20:
            found = list(_near_rows(t, copies, side, equal))
            yield from (f for f, _ in found)
            sure = np.concatenate([rows for _, rows in found] or [sure])
        if not t.is_whole:
            for f, rows in copies.judged(pair, train, test, partners, names):
                if not len(np.intersect1d(rows, sure)):
                    yield f
                sure = np.union1d(sure, rows)
        if not t.quick and t.tolerance is None:
            swapped = test[copies.swapped(train, test)]
            yield t.finding(
                "near_duplicate_rows", "warning", swapped[~np.isin(swapped, sure)],
                f"have the values of a row of {pair.names[0]!r} in other columns", names, pair,
                remedy=REMEDY, measure="three values or more that are rare agree to the last digit",
            )  # fmt: skip
        chance = equal[~np.isin(equal, sure)]
        few = len(side.train) < 20 or t.tolerance is not None
        yield t.finding(
            "duplicate_rows", "warning" if few and not copies.coarse else "info", chance,
            f"have the features of a row of {pair.names[0]!r}", names, pair,
            remedy=REMEDY if few else "it may be by chance, or as the rows are blank",
            measure="they are equal to the last digit of float32",
        )  # fmt: skip


def _near_rows(
    t: Table, copies: _Copies, side: Side, equal: IntArray
) -> Iterator[tuple[Finding, IntArray]]:
    """Yield what is near within the sample, equal rows apart from others."""
    distances = _distances(t.ranks[side.test], t.ranks)
    distances[np.arange(len(side.test)), side.test] = np.inf
    to_train = distances[:, side.train]
    share = len(side.train) / max(1, len(t.rows) - 1)
    near = near_by_chance(to_train.min(axis=1), distances, share=share)
    if near is None:
        return
    hits, times, p = near
    hits = hits[~copies.plain[side.test[hits]]]
    at, partners = side.test[hits], side.train[to_train[hits].argmin(axis=1)]
    is_equal = np.isin(t.rows[at], equal)
    names = tuple(c.name for c in t.of_domain("features"))
    for mine, kind, finding in (
        (is_equal, "duplicate_rows", "have the features of a row of"),
        (~is_equal, "near_duplicate_rows", "are all but copies of a row of"),
    ):
        if mine.any():
            rows = t.rows[at[mine]]
            one, other = at[mine][0], partners[mine][0]
            yield t.finding(
                kind, "warning", rows, f"{finding} {side.pair.names[0]!r}", names, side.pair,
                remedy=REMEDY, measure=said_times(times), p_value=p,
                picture=pair_of_rows(t.ranks[one], t.ranks[other]),
            ), rows  # fmt: skip


def _distances(a: Array, b: Array) -> Array:
    """Return distances of rows, the one column left out in which they differ most.

    Parameters
    ----------
    a, b : ndarray of float32, shape (n, d), (m, d)
        With fewer than 5 or more than 40 columns none is left out.

    Returns
    -------
    ndarray of float32, shape (n, m)
    """
    if not 5 <= a.shape[1] <= TRIMMED:
        square = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * (a @ b.T)
        plain: Array = np.sqrt(np.maximum(square, 1e-9 * a.shape[1]))
        return plain
    total = np.zeros((len(a), len(b)), dtype=np.float32)
    largest = np.zeros_like(total)
    for x, y in zip(a.T, b.T, strict=True):
        apart = x[:, None] - y[None]
        apart *= apart
        total += apart
        np.maximum(largest, apart, out=largest)
    total -= largest
    trimmed: Array = np.sqrt(np.maximum(total, 0, out=total), out=total)
    return trimmed


class _Copies:
    """Rows that agree in all columns, or in all but one, among all rows."""

    def __init__(self, t: Table) -> None:
        self.t = t
        seen = np.zeros(len(t.fs), dtype=bool)
        for pair in t.pairs[:8]:
            for rows in self.thinned(pair):
                seen[rows] = True
        self.every = np.flatnonzero(seen)
        self.at = np.cumsum(seen) - 1
        self.parts: list[Array] = []
        self.bare: list[Array] = []  # of lone numbers, wherever they stand
        for values in self._values(None if seen.all() else self.every) if seen.any() else ():
            flat = values.reshape(len(values), -1)
            for piece in np.hsplit(flat, flat.shape[1]) if 1 < flat.shape[1] <= 8 else [flat]:
                place, words = np.uint64(len(self.parts)), hashes(piece)
                self.parts.append(scramble(words + place))
                if piece.shape[1] == 1 and piece.dtype.kind == "f":
                    self.bare.append(scramble(words))
        self.total = sum(self.parts[1:], start=self.parts[0].copy()) if self.parts else None

    @property
    def may_be_near(self) -> bool:
        """Whether distances are looked at."""
        t = self.t
        return t.tolerance is None and (t.is_whole or not t.quick) and t.ranks.shape[1] >= 2

    def thinned(self, pair: Pair) -> tuple[IntArray, IntArray]:
        """Return the rows of both sides that are looked at."""

        def thin(rows: IntArray) -> IntArray:
            some = self.t.some(len(rows))
            return rows if some is None else rows[some]

        test = thin(pair.test)
        return thin(pair.train), test[~pair.in_train[test]]

    def partners(self, train: IntArray, test: IntArray, but: int | None = None) -> IntArray:
        """Return an equal training row for each test row, -1 where there is none."""
        if self.total is None or not len(train) or not len(test):
            return np.full(len(test), -1)
        code = self.total if but is None else self.total - self.parts[but]
        known, wanted = code[self.at[train]], code[self.at[test]]
        found, ordered = np.full(len(test), -1), np.sort(known)
        order = np.argsort(wanted)
        place = np.searchsorted(ordered, wanted[order])
        hits = order[ordered[np.minimum(place, len(ordered) - 1)] == wanted[order]]
        if len(hits):
            by_code = np.argsort(known, kind="stable")
            found[hits] = train[by_code[np.searchsorted(known, wanted[hits], sorter=by_code)]]
        return found

    def swapped(self, train: IntArray, test: IntArray) -> Array:
        """Tell which test rows have the values of a training row, rare ones, in another order."""
        none = np.zeros(len(test), dtype=bool)
        if len(self.bare) < 3 or not len(train) or not len(test):
            return none
        loose = sum(self.bare[1:], start=self.bare[0].copy())
        ordered = np.sort(loose[self.at[train]])
        wanted = loose[self.at[test]]
        at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
        hits = np.flatnonzero((ordered[at] == wanted) & (self.partners(train, test) < 0))
        if not len(hits):
            return none
        few = np.random.default_rng(0).permutation(len(self.every))[:MANY]
        values, counts = np.unique(
            np.concatenate([part[few] for part in self.bare]), return_counts=True
        )
        common = values[counts > 4 + len(few) // 500]
        own = np.stack([part[self.at[test[hits]]] for part in self.bare], axis=1)
        none[hits] = (~np.isin(own, common)).sum(axis=1) >= 3
        return none

    def judged(
        self,
        pair: Pair,
        train: IntArray,
        test: IntArray,
        equal: IntArray,
        names: tuple[str, ...],
    ) -> Iterator[tuple[Finding, IntArray]]:
        """Yield copies beyond the sample that are none by chance."""
        t = self.t
        some = np.sort(np.random.default_rng(0).permutation(len(test))[:MANY])
        leave_out = range(len(self.parts)) if 5 <= len(self.parts) <= TRIMMED else range(0)
        if t.quick or t.tolerance is not None or (len(train) > MANY and pair is not t.pairs[0]):
            leave_out = range(0)
        for but in (None, *leave_out):
            tested = test if but is None else test[some]
            found = equal if but is None else self.partners(train, tested, but)
            rows, partners = tested[found >= 0], found[found >= 0]
            if not len(rows) or (but is not None and len(rows) < 3):
                continue
            near = self._near(rows[:JUDGED], partners[:JUDGED], train, len(tested), len(rows))
            if near is not None:
                yield t.finding(
                    "duplicate_rows" if but is None else "near_duplicate_rows", "warning", rows,
                    f"have the features of a row of {pair.names[0]!r}"
                    + ("" if but is None else " in all columns but one"), names, pair,
                    remedy=REMEDY, measure=said_times(near[1]), p_value=near[2],
                ), rows  # fmt: skip

    def _near(
        self, rows: IntArray, partners: IntArray, train: IntArray, tested: int, hits: int
    ) -> tuple[IntArray, float, float] | None:
        """Hold copies against the neighbourhood that a sample of training rows gives."""
        few = np.sort(np.random.default_rng(0).permutation(train)[:REFERENCE])
        values = self._values(np.concatenate([few, rows, partners]))
        rng = np.random.default_rng(0)
        ranks = np.concatenate([spread_ranks(v.reshape(len(v), -1), rng) for v in values], axis=1)
        own, theirs = ranks[len(few) :][: len(rows)], ranks[len(few) + len(rows) :]
        others = _distances(own, ranks[: len(few)])
        nearest = np.array(
            [_distances(a[None], b[None])[0, 0] for a, b in zip(own, theirs, strict=True)]
        )
        scale = max(1, round(tested * len(rows) / hits))
        return near_by_chance(nearest, others, share=len(train) / len(few), tested=scale)

    def _values(self, rows: IntArray | None) -> list[Array]:
        """Return the features as numbers, of all rows or some."""
        data = self.t.fs.collection
        found = []
        for c in self.t.of_domain("features"):
            if c.is_number or c.values.dtype.kind in "mM":
                found.append(data.gather([c.name], rows)[:, 0])
            elif c.is_scalar:
                codes = data.codes(c.name)
                found.append(codes if rows is None else codes[rows])
        return found

    @cached_property
    def plain(self) -> Array:
        """Rows of the sample whose wide columns hold next to nothing, shape (n,)."""
        wide = [c.flat for c in self.t.of_domain("features") if c.is_number and c.flat.shape[1] > 7]
        found = np.zeros(len(self.t.rows), dtype=bool)
        for flat in wide:
            found |= (flat != np.median(flat, axis=1)[:, None]).sum(axis=1) < 4
        return found

    @cached_property
    def coarse(self) -> bool:
        """Whether equal rows come by chance: fewer than ``n**2`` are possible (birthdays)."""
        left = float(len(self.every)) ** 2
        for part in self.parts:
            left /= max(1, len(np.unique(part[:10_000])))
        return left > 1


SEQUENCE = 8
"""Elements from which on an array is a sequence; shorter ones are alike by chance."""

LENGTH = 128
"""Steps to which longer sequences are averaged."""

LIKE = 0.85
"""Correlation from which on two sequences may be one."""

DENSE = 0.2
"""Share of a sequence that must differ from its median; others are sparse and agree by that."""

WORK = 1e11
"""Multiplications that are spent on a column; beyond, rows are sampled."""


def sequences(t: Table) -> Iterator[Finding]:
    """Find sequences of test rows that are in the training rows too."""
    if t.quick:
        return
    columns = [c for c in t.of_domain("features") if c.values.dtype.kind in "iuf"]
    for c in (c for c in columns if c.flat.shape[1] >= SEQUENCE):
        for side in t.sides[:6]:
            if t.tolerance is not None:
                if c.flat.dtype.kind == "f" and t.tolerance:
                    rows = t.rows[like_rows(c.flat, side.train, side.test, t.tolerance)]
                    yield t.finding(
                        "similar_sequences", "warning", rows,
                        f"have a {c.key!r} within {t.tolerance:g} standard deviations of one in "
                        f"{side.pair.names[0]!r}", (c.name,), side.pair,
                        remedy="keep what was recorded together in one split (group_by=)",
                    )  # fmt: skip
                continue
            near = _near_sequences(c, side) if min(len(side.train), len(side.test)) >= 10 else None
            if near is not None:
                rows, partners, times, p = near
                yield t.finding(
                    "similar_sequences", "warning", t.rows[rows],
                    f"have a {c.key!r} like one in {side.pair.names[0]!r}, after offset, scale, "
                    "sign and shift", (c.name,), side.pair,
                    remedy="keep what was recorded together in one split (group_by=)",
                    measure=said_times(times), p_value=p,
                    picture=pair_of_rows(c.flat[rows[0]], c.flat[partners[0]]),
                )  # fmt: skip


def _near_sequences(c: Column, side: Side) -> tuple[Array, Array, float, float] | None:
    """Compare by the largest normalised cross-correlation over lags and signs.

    Returns the test rows, the training rows they are like, how near they are and its chance.
    """
    values = c.values
    if values.ndim == 4 and 3 in (values.shape[1], values.shape[3]):  # the colours of images
        values = values.mean(axis=3 if values.shape[3] == 3 else 1, dtype=np.float32)
    values = values.reshape(len(values), -1, values.shape[-1]).astype(np.float32)
    length = values.shape[2]
    if length > LENGTH:
        every = -(-length // LENGTH)
        cut = values[:, :, : length // every * every]
        values = cut.reshape(*cut.shape[:2], -1, every).mean(axis=3)
        length = values.shape[2]
    informative = _telling(values)
    rng = np.random.default_rng(0)
    train, test = (s[informative[s]] for s in (side.train, side.test))
    most = 2 * length // 3 if length >= 72 else length // 2
    lags = range(-most, most + 1) if length >= 32 else range(1)
    shifts = [*((0, lag) for lag in lags), *_moves(values)]
    work = values[0].size * len(shifts) * 0.75
    most = int(np.sqrt(WORK / max(work, 1) / 4))
    train = np.sort(rng.permutation(train)[: 2 * most])
    test = np.sort(rng.permutation(test)[: 2 * most])
    if len(train) < 10 or not len(test):
        return None
    both = np.concatenate([train, test])
    best = _likeness(values[test], values[both], shifts)
    best[np.arange(len(test)), len(train) + np.arange(len(test))] = -np.inf  # itself
    distances = np.sqrt(np.maximum(2 - 2 * best, 1e-6))
    to_train = distances[:, : len(train)]
    near = near_by_chance(to_train.min(axis=1), distances, share=len(train) / len(both))
    if near is None:
        return None
    hits, times, p = near
    partners = to_train[hits].argmin(axis=1)
    like = best[hits, partners] >= LIKE
    if not like.any():
        return None
    return test[hits[like]], train[partners[like]], times, p


def _likeness(a: Array, b: Array, shifts: list[tuple[int, int]]) -> Array:
    """Return the largest correlation over shifts, down and sideways, signs and mirrors.

    Parameters
    ----------
    a, b : ndarray of float32, shape (n, height, length), (m, height, length)

    Returns
    -------
    ndarray of float32, shape (n, m)
    """
    best = np.zeros((len(a), len(b)), dtype=np.float32)
    for down, lag in shifts:
        left, right = _unit(_cut(a, down, lag)), _unit(_cut(b, -down, -lag))
        found = left @ right.T
        np.maximum(best, np.abs(found, out=found), out=best)
    mirrored = _unit(a[:, :, ::-1]) @ _unit(b).T
    np.maximum(best, np.abs(mirrored, out=mirrored), out=best)
    return best


def _cut(values: Array, down: int, lag: int) -> Array:
    """Leave out what another image or curve lacks if it is moved so far."""
    height, length = values.shape[1:]
    rows = slice(max(0, down), height + min(0, down))
    return values[:, rows, max(0, lag) : length + min(0, lag)]


def _moves(values: Array) -> list[tuple[int, int]]:
    """Return the small moves of images, up or down and sideways; none where they are curves."""
    height, length = values.shape[1:]
    if height < SEQUENCE or length < SEQUENCE:
        return []
    sideways = [(0, lag) for lag in (-2, -1, 1, 2)] if length < 32 else []
    return [*sideways, *((down, lag) for down in (-2, -1, 1, 2) for lag in (-2, -1, 0, 1, 2))]


def _telling(values: Array) -> Array:
    """Tell which rows, shape (n, channels, length), are finite and neither blank nor sparse."""
    with np.errstate(all="ignore"):
        flat = values.reshape(len(values), -1).astype(np.float64)
        energy = np.square(flat - np.median(flat, axis=1, keepdims=True))
        spread = energy.sum(axis=1) ** 2 / np.square(energy).sum(axis=1)
        dense = (energy > 0).mean(axis=1) >= DENSE
    informative: Array = np.isfinite(flat).all(axis=1) & (spread >= 4) & dense
    return informative


def _unit(values: Array) -> Array:
    """Return rows of mean 0 in each channel and length 1 in all, shape (n, d)."""
    flat = (values - values.mean(axis=2, keepdims=True)).reshape(len(values), -1)
    size = np.sqrt(np.einsum("ij,ij->i", flat, flat))[:, None]
    unit: Array = flat / np.where(size > 1e-12, size, np.inf)
    return unit


def like_rows(values: Array, train: Array, test: Array, tolerance: float) -> Array:
    """Return the test rows within a distance of a training row.

    Parameters
    ----------
    values : ndarray, shape (n, d)
    train, test : ndarray of int64
    tolerance : float
        Root mean square difference, in standard deviations of all values.
    """
    finite = np.asarray(np.isfinite(values).all(axis=1))
    train, test = train[finite[train]], test[finite[test]]
    if not len(train) or not len(test):
        return test[:0]
    scaled = (values - values[finite].mean()) / (np.std(values[finite], dtype=np.float64) or 1.0)
    found = np.zeros(len(test), dtype=bool)
    reach = tolerance**2 * values.shape[1]
    theirs = scaled[train]
    for place, row in enumerate(scaled[test]):
        apart = theirs - row
        found[place] = (np.einsum("ij,ij->i", apart, apart) <= reach).any()
    return test[found]
