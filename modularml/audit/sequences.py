"""Curves, spectra and images that are in two splits: shifted, scaled, offset, flipped or noisy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from modularml._typing import Array
from modularml.audit.likeness import near_by_chance, said_times
from modularml.audit.pictures import pair_of_rows
from modularml.audit.report import Finding
from modularml.audit.table import Column, Side, Table

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
    values = c.values.reshape(len(c.values), -1, c.values.shape[-1]).astype(np.float32)
    length = values.shape[2]
    if length > LENGTH:
        every = -(-length // LENGTH)
        cut = values[:, :, : length // every * every]
        values = cut.reshape(*cut.shape[:2], -1, every).mean(axis=3)
        length = values.shape[2]
    told = _telling(values)
    rng = np.random.default_rng(0)
    train, test = (s[told[s]] for s in (side.train, side.test))
    most = 2 * length // 3 if length >= 72 else length // 2
    lags = range(-most, most + 1) if length >= 32 else range(1)
    work = values[0].size * len(lags) * 0.75
    most = int(np.sqrt(WORK / max(work, 1) / 4))
    train = np.sort(rng.permutation(train)[: 2 * most])
    test = np.sort(rng.permutation(test)[: 2 * most])
    if len(train) < 10 or not len(test):
        return None
    both = np.concatenate([train, test])
    a, b = values[test], values[both]
    best = np.zeros((len(test), len(both)), dtype=np.float32)
    for lag in lags:
        left = a[:, :, max(0, lag) : length + min(0, lag)]
        right = b[:, :, max(0, -lag) : length + min(0, -lag)]
        found = _unit(left) @ _unit(right).T
        np.maximum(best, np.abs(found, out=found), out=best)
    mirrored = _unit(a[:, :, ::-1]) @ _unit(b).T
    np.maximum(best, np.abs(mirrored, out=mirrored), out=best)
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


def _telling(values: Array) -> Array:
    """Tell which rows, shape (n, channels, length), are finite and neither blank nor sparse."""
    with np.errstate(all="ignore"):
        flat = values.reshape(len(values), -1).astype(np.float64)
        energy = np.square(flat - np.median(flat, axis=1, keepdims=True))
        spread = energy.sum(axis=1) ** 2 / np.square(energy).sum(axis=1)
        dense = (energy > 0).mean(axis=1) >= DENSE
    told: Array = np.isfinite(flat).all(axis=1) & (spread >= 4) & dense
    return told


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
