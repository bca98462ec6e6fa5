"""How alike rows are: pictures, sequences and numbers."""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.data.ids import IdArray, scramble
from modularml.data.schema import RAW

if TYPE_CHECKING:
    from modularml.data.featureset import FeatureSet


WIDTH, HEIGHT, POINTS = 150, 70, 120


def scatter(x: Array, y: Array) -> str:
    """Draw y against x, 120 points at most.

    Parameters
    ----------
    x, y : ndarray, shape (n,)
    """
    some = np.linspace(0, len(x) - 1, min(len(x), POINTS)).astype(int)
    dots = "".join(
        f'<circle cx="{a:.0f}" cy="{b:.0f}" r="1.5"/>'
        for a, b in zip(_to(x[some], WIDTH), HEIGHT - _to(y[some], HEIGHT), strict=True)
    )
    return _svg(f'<g fill="#2a6f97">{dots}</g>', "target over column")


def pair_of_rows(one: Array, other: Array) -> str:
    """Draw two rows over each other, each from its lowest to its highest value.

    Parameters
    ----------
    one, other : ndarray, shape (d,)
    """
    lines = ""
    for row, colour, width in ((one, "#e07a5f", 4), (other, "#2a6f97", 1.5)):
        some = np.linspace(0, len(row) - 1, min(len(row), POINTS)).astype(int)
        x = np.linspace(3, WIDTH - 3, len(some))
        points = " ".join(
            f"{a:.0f},{b:.0f}" for a, b in zip(x, HEIGHT - _to(row[some], HEIGHT), strict=True)
        )
        style = f'fill="none" stroke="{colour}" stroke-width="{width}"'
        lines += f'<polyline points="{points}" {style}/>'
    return _svg(lines, "two rows over each other")


def _to(values: Array, size: int) -> Array:
    """Return values from 3 to size - 3."""
    values = np.nan_to_num(values.astype(float))
    low, high = values.min(), values.max()
    scaled: Array = 3 + (values - low) / ((high - low) or 1.0) * (size - 6)
    return scaled


def _svg(content: str, label: str) -> str:
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    return f'<svg {size} role="img" aria-label="{label}">{content}</svg>'


ALPHA = 1e-4
"""Chance at which a sign counts, after correction for the tests of its family."""

BLOCK = 8192
"""Rows that are worked on at a time."""


def hashes(values: Array) -> Array:
    """Hash each row to 64 bits, floats as in float32; NaN equals NaN.

    Hashes of several columns add up to the hash of all, so that one can be taken off again.

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    flat = values.reshape(len(values), -1)
    state = np.zeros(len(flat), dtype=np.uint64)
    for at in range(0, len(flat), BLOCK):
        block = flat[at : at + BLOCK]
        if block.dtype.kind == "f":
            with np.errstate(over="ignore"):
                block = (block.astype(np.float32) + 0).astype(np.float64)
            block[np.isnan(block)] = np.nan
        elif block.dtype.kind not in "mM":
            block = block.astype(np.int64)
        part = state[at : at + BLOCK]
        for element in block.view(np.uint64).T:
            part[:] = scramble(part ^ element)
    return scramble(state)


def id_words(ids: IdArray, key: int = 0) -> Array:
    """Hash sample ids to 64 bits with a key.

    Parameters
    ----------
    ids : ndarray, shape (n,), dtype V16

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    words = np.frombuffer(ids.tobytes(), dtype="<u8").reshape(-1, 2)
    return scramble(scramble(words[:, 0] ^ np.uint64(key)) ^ words[:, 1])


def content_words(fs: FeatureSet, rows: IntArray, key: int = 0) -> Array:
    """Hash what rows hold in their raw features and targets to 64 bits, with a key.

    Floats count as in float32, columns by their key, so that order and type of columns do not
    matter. Text counts by its characters.

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    total = np.zeros(len(rows), dtype=np.uint64)
    for spec in fs.collection.schema.columns.values():
        if spec.domain == "tags" or spec.rep != RAW:
            continue
        values = fs.collection.gather([spec.name], rows)[:, 0]
        if values.dtype.kind == "O":
            texts, place = np.unique(values.astype(str), return_inverse=True)
            coded = np.array([_text_word(str(text)) for text in texts.ravel()], dtype=np.uint64)
            values = coded[place].view(np.int64)
        elif values.dtype.kind in "biu":
            values = values.astype(np.float64)
        word = np.uint64(key) ^ _text_word(f"{spec.domain}.{spec.key}")
        total += scramble(hashes(values) ^ word) if len(rows) else total
    return scramble(total ^ np.uint64(key))


def shared(fs: FeatureSet, rows: IntArray, other: FeatureSet, others: IntArray) -> IntArray:
    """Return which of `rows` are among `others` of the same or another set.

    In another set they are the same by id, or by all that they hold.
    """
    if fs is other:
        seen = np.zeros(len(fs), dtype=bool)
        seen[others] = True
        return rows[seen[rows]]
    mine, theirs = id_words(fs.collection.ids[rows]), id_words(other.collection.ids[others])
    same = np.isin(mine, theirs)
    keys = [
        {s.key for s in f.collection.schema.columns.values() if s.domain != "tags"}
        for f in (fs, other)
    ]
    if keys[0] == keys[1]:
        same |= np.isin(content_words(fs, rows), content_words(other, others))
    return rows[same]


def _text_word(text: str) -> np.uint64:
    return np.uint64(
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    )


def spread_ranks(values: Array, rng: np.random.Generator) -> Array:
    """Replace values by their ranks within their column, from 0 to 1.

    Equal values get ranks in random order, so that they are as far apart as they are frequent:
    to agree in a rare value brings two rows together, to agree in a frequent one hardly does.

    Parameters
    ----------
    values : ndarray, shape (n, d)
        NaN is one more value.

    Returns
    -------
    ndarray of float32, shape (n, d)
    """
    mix = rng.permutation(len(values))
    order = mix[np.argsort(values[mix], axis=0, kind="stable")]
    ranks = np.empty(values.shape, dtype=np.float32)
    steps = np.arange(len(values), dtype=np.float32)[:, None] / np.float32(len(values))
    np.put_along_axis(ranks, order, np.broadcast_to(steps, values.shape), axis=0)
    return ranks


def average_ranks(values: Array) -> Array:
    """Return ranks within columns from 1, equal values sharing theirs; NaN stays NaN."""
    ranks: Array = require("pandas").DataFrame(values).rank().to_numpy()
    return ranks


def scores(values: Array) -> Array:
    """Return normal scores of columns: ranks at the quantiles of a normal distribution.

    Parameters
    ----------
    values : ndarray, shape (n, d)
        Equal values get one score; what is not finite gets 0.
    """
    rank = average_ranks(values)
    known = np.isfinite(rank)
    counts = np.maximum(known.sum(axis=0), 1)
    found, quantile = np.empty(rank.shape), NormalDist().inv_cdf
    for size in np.unique(counts):  # quantiles at (rank - 0.5) / size, each once; 0 for NaN
        columns = counts == size  # by the standard library, as importing scipy takes longer
        halves = np.nan_to_num(2 * rank[:, columns], nan=size + 1).astype(np.int64)
        places = np.flatnonzero(np.bincount(halves.ravel()))
        table = np.zeros(2 * size + 2)
        table[places] = [quantile(p) for p in ((places - 1) / (2 * size)).tolist()]
        found[:, columns] = table[halves]
    spread = found.std(axis=0)
    return found / np.where(spread > 0, spread, 1.0)


def near_by_chance(
    nearest: Array, reference: Array, *, share: float, tested: int | None = None
) -> tuple[IntArray, float, float] | None:
    """Find rows whose nearest partner is too near to be one by chance.

    Around each row, others lie about evenly on the scale of the k-th nearest one, at the distance
    r_k, in as many dimensions d as the ratio r_2k / r_k shows, there or in the median, whichever
    are fewer. The number of partners that chance puts within r is then k s (r / r_k)^d, with s
    partners for each row of reference. Rows where it is small are counted, and the count is held
    against the Poisson law.

    Parameters
    ----------
    nearest : ndarray, shape (n,)
        Distance of each row to its nearest partner.
    reference : ndarray, shape (n, m)
        Distances to rows like the partners; infinite to itself.
    share : float
        How many partners there are for each of the m.
    tested : int, optional
        How many rows were looked at, where the n were chosen for being near.

    Returns
    -------
    tuple of ndarray of int64, float and float, or None
        The rows, the surest first; how many times closer they are than others; the chance of so
        many. None where there are no more than by chance.
    """
    n, m = reference.shape
    n_tested = tested or n
    k = int(np.clip(m // 60, 5, 40))
    if m < 3 * k or not n:
        return None
    part = np.partition(reference, (k - 1, 2 * k - 1), axis=1)[:, [k - 1, 2 * k - 1]]
    kth, twice = part.T.astype(np.float64)
    fine = np.isfinite(twice) & (kth > 0)
    if not fine.any():
        return None
    safe = np.where(fine, kth, 1.0)
    growth = np.where(fine, np.log(np.where(fine, twice, 2.0) / safe), np.log(2))
    growth = np.maximum(growth, max(float(np.median(growth[fine])), 1e-3))
    ratio = np.where(fine, nearest / safe, 1.0)
    chance = k * share * ratio ** np.maximum(np.log(2) / growth, 0.5)
    limits = 10.0 ** -np.arange(1.5, 9.1, 0.5)
    for limit in limits:
        count = int((chance < limit).sum())
        p = at_least(count, n_tested * limit) * len(limits)
        if p <= ALPHA and n_tested * limit <= 0.03 * count:
            break
    else:
        return None
    hits = np.flatnonzero(chance < limit)
    hits = hits[np.argsort(chance[hits], kind="stable")]
    usual = float(np.median(nearest[chance >= limit] if len(hits) < n else kth))
    times = usual / max(float(np.median(nearest[hits])), usual * 1e-6, 1e-12)
    return (hits, times, p) if times >= 2 else None


def said_times(times: float) -> str:
    """Say how near rows are."""
    return (
        f"the nearest test rows are {times:.3g} times closer to a training row than other rows are"
    )


def within(z: Array, partner: tuple[Array, Array], rng: np.random.Generator) -> tuple[Array, Array]:
    """Compare rows with partners of their own against partners of other rows.

    Parameters
    ----------
    z : ndarray, shape (n, d)
        Rows, in normal scores.
    partner : tuple of ndarray, shape (n, d)
        Mean and mean square of each row's partners.

    Returns
    -------
    share : ndarray, shape (d,)
        Of each column's variance, how much rows and their partners have in common.
    sigmas : ndarray, shape (d,)
        How many standard deviations of random partners that lies above 0.
    """
    mean, square = partner

    def distance(order: IntArray) -> Array:
        found: Array = (z * z - 2 * z * mean[order] + square[order]).mean(axis=0)
        return found

    null = np.stack([distance(rng.permutation(len(z))) for _ in range(24)])
    usual, spread = null.mean(axis=0), null.std(axis=0, ddof=1)
    own = distance(np.arange(len(z)))
    safe = np.where(usual > 0, usual, 1.0)
    return (usual - own) / safe, (usual - own) / np.where(spread > 0, spread, np.inf)


def z_to_p(sigmas: Any) -> float:
    """Return the chance of so many standard deviations; Student's t of 23 degrees.

    It is 1 below 3 deviations, which are too few for `ALPHA` however many tests there are.
    """
    if sigmas < 3:
        return 1.0
    return float(require("scipy.special").stdtr(23, -sigmas))


def at_least(count: int, expected: float) -> float:
    """Return the chance of a count or more where so many are expected (Poisson).

    It is 1 up to the expected number, where it is more than a third.
    """
    if count <= expected or expected <= 0:
        return float(count <= expected)
    chance = math.exp(count * math.log(expected) - expected - math.lgamma(count + 1))
    rest = total = 1.0  # by the chance of the count itself, which is the largest
    while rest > 1e-17 * total:
        count += 1
        rest *= expected / count
        total += rest
    return total * chance
