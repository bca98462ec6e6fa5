"""Groups, such as patients or machines, that occur in two splits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from modularml._typing import Array, IntArray
from modularml.audit.audited_table import Column, Pair, Side, Table, joined
from modularml.audit.similarity import ALPHA, scores, within, z_to_p
from modularml.audit.time import as_times
from modularml.data.audit_report import Finding

_NAMED = re.compile(
    r"(^|_)(group|cell|battery|patient|subject|participant|person|user|donor|animal|specimen"
    r"|machine|device|engine|recording|session|scan|id)(_?(id|no|nr|num|number|name))?$"
)

CLASSES = 9
"""Values up to which a column tells classes apart, not groups."""

ALIKE = 0.2
"""Share of a column's variance that rows of a group must have in common."""


@dataclass(frozen=True, eq=False)
class _Group:
    """A way to read a column as groups, why it is one, and how sure that is."""

    columns: tuple[str, ...]
    codes: IntArray
    why: str
    measure: str = ""
    p_value: float | None = None
    exact: bool = False

    @property
    def keys(self) -> str:
        keys = [name.split(".")[1] for name in self.columns]
        return repr(keys[0] if len(keys) == 1 else keys)


def shared_groups(t: Table) -> Iterator[Finding]:
    """Find groups that have rows in two splits which should have nothing in common."""
    named = _named(t) if t.groups is not None else []
    why = ", by which a split was grouped"
    measure = "rows of one value were kept together elsewhere"
    by_splits = dict.fromkeys(t.grouped_by(record.splitter) for record in t.fs.split_records)
    made_by = {i: _made_by(t, pair) for i, pair in enumerate(t.pairs)}
    reported = set[tuple[tuple[str, ...], int, bytes]]()
    guessed = (
        []
        if t.groups is not None
        else [
            *(_Group(names, t.codes(names), why, measure) for names in by_splits if names),
            *_alike(t),
        ]
    )
    for group in (*named, *guessed):
        for i, pair in enumerate(t.pairs):
            if not group.exact and set(group.columns) & set(made_by[i]):
                continue  # the split was made by it, alone or together with others
            if made_by[i] and group.why and not group.measure:
                continue  # named like a group, which alone says little where others were kept whole
            rows = _with_code(group.codes, pair)
            if (fact := (group.columns, i, rows.tobytes())) in reported:
                continue  # the same rows by the same column, for another reason
            reported.add(fact)
            n, of = (len(np.unique(group.codes[part])) for part in (rows, pair.test))
            yield t.finding(
                "shared_groups", pair.severity if group.exact else "warning", rows,
                f"share their {group.keys} with {pair.names[0]!r} ({n} of {of} values{group.why})",
                group.columns, pair, remedy=f"split with group_by={group.keys}",
                measure=group.measure, p_value=group.p_value,
            )  # fmt: skip


def partners_of(
    z: Array, train: IntArray, codes: IntArray, wanted: IntArray
) -> tuple[Array, Array]:
    """Return means and mean squares of the training rows that have the wanted codes.

    Parameters
    ----------
    z : ndarray, shape (n, d)
    train : ndarray of int64
        Rows to train on.
    codes : ndarray of int64, shape (n,)
    wanted : ndarray of int64, shape (m,)
        Codes that training rows have.

    Returns
    -------
    tuple of ndarray, shape (m, d)
    """
    known, place = np.unique(codes[train], return_inverse=True)
    n = np.bincount(place)[:, None]
    sums, squares = (
        np.stack([np.bincount(place, w) for w in part.T], axis=1) / n
        for part in (z[train], np.square(z[train]))
    )
    at = np.searchsorted(known, wanted)
    return sums[at], squares[at]


def readings(values: Array) -> dict[str, tuple[Array, bool]]:
    """Read texts in several ways: as written, spelt alike, by their number and by their parts.

    Returns
    -------
    dict of str to (ndarray of int64, bool)
        How it was read, the codes, and whether their order means something.
    """
    if values.dtype.kind != "O" or values.ndim > 1:
        known = (
            np.isfinite(values) if values.dtype.kind == "f" else np.ones(len(values), dtype=bool)
        )
        codes = np.full(len(values), -1)
        codes[known] = np.unique(values[known], return_inverse=True)[1]
        return {"": (codes, True)}
    texts, place = np.unique(values.astype(str), return_inverse=True)
    spelt = [re.sub(r"\.0+$", "", text.strip().casefold()) for text in texts]
    parts = [re.findall(r"[^\W_]+", text) or [""] for text in spelt]
    plain = ["".join(p.lstrip("0") if p.isdigit() else p for p in each) for each in parts]
    ways = {
        "": list(texts),
        ", read without case, blanks and punctuation": plain,
        ", by the number in it": [
            "-".join(d.lstrip("0") for d in re.findall(r"\d+", text)) for text in spelt
        ],
        ", by its first part": [p[0] for p in parts],
        ", without its last part": [" ".join(p[:-1]) for p in parts],
        ", by its last part": [p[-1] for p in parts],
    }
    found: dict[str, tuple[Array, bool]] = {}
    seen: set[tuple[int, ...]] = set()
    for how, read in ways.items():
        if "" in read and how:
            continue
        codes = np.unique(np.array(read), return_inverse=True)[1]
        if (key := tuple(np.unique(codes, return_index=True)[1][codes])) not in seen:
            seen.add(key)
            found[how] = codes[place], False
    return found


def _named(t: Table) -> list[_Group]:
    """Return the columns that the user named, as one key; spelling does not part ids."""
    if not t.groups:
        return []
    data = t.fs.collection
    exact = t.codes(t.groups)
    found = [_Group(tuple(t.groups), exact, "", exact=True)]
    if not any(len(_with_code(exact, pair)) for pair in t.pairs):
        ways = [readings(data.numpy(name)) for name in t.groups]
        how = ", read without case, blanks and punctuation"
        if any(how in way for way in ways):
            codes = joined([way.get(how, way[""])[0] for way in ways])
            found.append(_Group(tuple(t.groups), codes, how))
    return found


def _alike(t: Table) -> Iterator[_Group]:
    """Yield columns whose rows are alike across splits, or that are named like a group."""
    by_splits = {n for i, pair in enumerate(t.pairs) for n in _made_by(t, pair)}
    schema = t.fs.collection.schema
    for c in map(_as_scalar, t.of_domain("tags", "features")):
        if schema[c.name].window in ("start", "stop"):
            continue  # places within a series are no groups
        if not c.is_scalar:
            continue
        if c.values.dtype.kind == "f":  # whole, or repeated as coordinates of a place are
            known = c.values[np.isfinite(c.values)]
            whole = len(known) and (known == np.round(known)).all()
            if not whole and 2 * c.n_values > len(known):
                continue
        found = _best_reading(t, c)
        if found is not None:
            yield found
        elif c.domain == "tags" and _NAMED.search(c.key.lower()) and c.name not in by_splits:
            codes = t.fs.collection.codes(c.name)
            n = codes.max(initial=0) + 1
            if CLASSES < n < len(codes):
                yield _Group((c.name,), codes, ", a group by its name and as its values repeat")


def _best_reading(t: Table, c: Column) -> _Group | None:
    if c.n_values <= (CLASSES if c.domain == "tags" else 2 * CLASSES):
        return None
    z = t.bearing_without(c.name)
    ways = _readings(c.values)
    for how, (codes, ordered) in ways.items():
        for side in t.main_sides:
            whole = _made_by(t, side.pair)
            if c.name in whole:
                continue
            rows, known, beside = _independent(t, z, codes, side, whole)
            found = _likeness(known, rows, beside, ordered, len(ways), c.domain == "features")
            if found is not None:
                share, p = found
                every = _readings(_as_scalar(Column(c.name, t.fs.collection.numpy(c.name))).values)[
                    how
                ][0]
                finding = f"rows of one {c.key} have {share:.0%} of a column's variance in common"
                return _Group((c.name,), every, f"{how}, whose rows are alike", finding, p)
    return None


def _readings(values: Array) -> dict[str, tuple[Array, bool]]:
    """Read a column as `readings` does, but dates in text as times, which have no parts."""
    times = as_times(values) if values.dtype.kind == "O" else None
    return readings(values if times is None else times)


def _independent(
    t: Table, z: Array, codes: IntArray, side: Side, whole: tuple[str, ...]
) -> tuple[IntArray, Array, Side]:
    """Return codes, scores and rows that are independent of each other, as far as is known.

    Where groups were kept whole their rows are no independent witnesses. What a code says of whole
    groups is then judged by their means, and what it says within groups by the rest.
    """
    if not whole:
        return codes, z, side
    group = np.unique(t.codes(whole)[t.rows], return_inverse=True)[1]
    n = np.bincount(group)
    means = np.stack([np.bincount(group, column) for column in z.T], axis=1) / n[:, None]
    first = np.unique(group, return_index=True)[1]
    if (codes[first][group] != codes).any():
        return codes, scores(z - means[group]), side
    train, test = (np.unique(group[rows]) for rows in (side.train, side.test))
    return codes[first], scores(means), replace(side, train=train, test=test)


def _likeness(
    z: Array, codes: IntArray, side: Side, ordered: bool, tests: int, is_feature: bool
) -> tuple[float, float] | None:
    """Return the share of variance that test rows have in common with training rows, and its p."""
    n_values = len(np.unique(codes))
    if not z.shape[1] or not CLASSES < n_values < len(codes):
        return None
    test = side.test[np.isin(codes[side.test], codes[side.train]) & (codes[side.test] >= 0)]
    if len(test) < 8:
        return None
    rng = np.random.default_rng(0)
    share, sigmas = within(z[test], partners_of(z, side.train, codes, codes[test]), rng)
    if ordered:  # a measurement is as much alike to its next value
        known = np.unique(codes[side.train])
        place = np.searchsorted(known, codes[test])
        nearby = [known[np.clip(place + step, 0, len(known) - 1)] for step in (-1, 1)]
        beside = [
            within(z[test], partners_of(z, side.train, codes, codes_), rng)[0] for codes_ in nearby
        ]
        share = share - np.maximum(np.maximum(*beside), 0)
        sigmas = np.where(share > 0.1, sigmas, 0)
    best = int(np.argmax(sigmas))
    several = (share >= ALIKE).sum() >= min(3, len(share)) if is_feature else True
    if share[best] < ALIKE or not several:
        return None
    p = z_to_p(sigmas[best]) * len(sigmas) * tests
    return None if p > ALPHA else (float(share[best]), p)


def _as_scalar(c: Column) -> Column:
    """Return a one-hot column as the places of its ones, in words as they have no order."""
    flat = c.flat
    if c.is_scalar or not c.is_number or not CLASSES < flat.shape[1] <= 4096 or not len(flat):
        return c
    if not (flat[0].max() == 1 and ((flat == 0) | (flat == 1)).all()):
        return c
    if not (flat.sum(axis=1, dtype=np.int64) == 1).all():
        return c
    return Column(c.name, np.array([f"flag {i}" for i in flat.argmax(axis=1)], dtype=object))


def _made_by(t: Table, pair: Pair) -> tuple[str, ...]:
    """Return the columns that both splits were grouped by, unless their rows say otherwise.

    A fold of a cross-validation has other rows under the names of the splits that it was cut from.
    """
    names = t.grouped_by(pair.splitter)
    return () if names and len(_with_code(t.codes(names), pair)) else names


def _with_code(codes: IntArray, pair: Pair) -> IntArray:
    """Return the test rows whose code comes in the training rows."""
    seen = np.zeros(codes.max(initial=0) + 2, dtype=bool)
    seen[codes[pair.train]] = True
    seen[-1] = False
    return pair.test[seen[codes[pair.test]]]
