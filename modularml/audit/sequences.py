"""Similar sequences and images in two splits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from modularml._typing import Array
from modularml.audit.likeness import near_by_chance, pair_of_rows, said_times
from modularml.audit.table import Column, Side, Table
from modularml.data.audit_report import Finding

__all__ = ["SEQUENCE", "like_rows", "sequences"]

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
                yield from _within_tolerance(t, c, side)
                continue
            near = _near(c, side) if min(len(side.train), len(side.test)) >= 10 else None
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


def _near(c: Column, side: Side) -> tuple[Array, Array, float, float] | None:
    """Compare by the largest normalised cross-correlation over lags and signs.

    Returns the test rows, the training rows they are like, how near they are and its chance.
    """
    values = _without_colours(c.values)
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


def _without_colours(values: Array) -> Array:
    """Average the colours of images, shape (n, height, width, 3) or (n, 3, height, width)."""
    if values.ndim != 4 or 3 not in (values.shape[1], values.shape[3]):
        return values
    grey: Array = values.mean(axis=3 if values.shape[3] == 3 else 1, dtype=np.float32)
    return grey


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


def _within_tolerance(t: Table, c: Column, side: Side) -> Iterator[Finding]:
    if c.flat.dtype.kind == "f" and t.tolerance:
        rows = t.rows[like_rows(c.flat, side.train, side.test, t.tolerance)]
        yield t.finding(
            "similar_sequences", "warning", rows,
            f"have a {c.key!r} within {t.tolerance:g} standard deviations of one in "
            f"{side.pair.names[0]!r}", (c.name,), side.pair,
            remedy="keep what was recorded together in one split (group_by=)",
        )  # fmt: skip


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
