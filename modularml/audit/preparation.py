"""Preprocessing fitted on all rows, such as scaling, imputation or PCA."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from modularml._typing import Array
from modularml.audit.likeness import ALPHA, at_least
from modularml.audit.table import Table
from modularml.data.audit_report import Finding

__all__ = ["prepared_before", "uncorrelated"]

EVEN = 0.12
"""Kolmogorov's distance, times the root of n, that drawn values reach once in 10^20 draws."""

VALUES = 12
"""Different values from which on a column counts as measured."""


def prepared_before(t: Table) -> Iterator[Finding]:
    """Find columns whose statistics are exact over all rows, not over the training rows."""
    if not t.pairs or len(t.fs) < 20:
        return
    data, n = t.fs.collection, len(t.fs)
    every = [c for c in t.of_domain("features") if c.values.dtype.kind == "f" and c.flat.shape[1]]
    kept = [c for c in every if t.is_whole or (not t.quick and c.flat.shape[1] * n < 4e7)]
    arrays = {c.name: data.numpy(c.name).reshape(n, -1) for c in kept}
    names = [name for name, flat in arrays.items() for _ in range(flat.shape[1])]
    if not names:
        return
    pair = max(t.pairs, key=lambda p: len(p.train))
    moments = _Moments(np.concatenate(list(arrays.values()), axis=1), pair.train)
    remedy = "do it after the split, fitted on the training rows (fit_transform, fit_to_split=)"
    for how, measured in _SIGNS.items():
        hits = measured(moments)
        if not hits.any():
            continue
        columns = dict.fromkeys(n for n, hit in zip(names, hits, strict=True) if hit)
        rows = pair.test[~pair.in_train[pair.test]]
        keys = ", ".join(repr(name.split(".")[1]) for name in list(columns)[:4])
        yield t.finding(
            "prepared_before", "warning", rows,
            f"had a part in how {keys} "
            f"{'were' if len(columns) > 1 else 'was'} {how} over all rows", columns, pair,
            remedy=remedy, p_value=ALPHA,
            measure="it is exact over all rows and not over the training rows",
        )  # fmt: skip


class _Moments:
    """Columns, over all rows and over the training rows."""

    def __init__(self, flat: Array, train: Array) -> None:
        self.flat, self.part = flat, flat[train]
        self.exact = 1e-6 if flat.dtype.itemsize < 8 else 1e-9
        few = flat[:: max(1, len(flat) // 2000)]
        varied = np.array([len(np.unique(v)) for v in few.T]) >= min(VALUES, len(few))
        self.finite = np.isfinite(flat).all(axis=0) & varied
        with np.errstate(all="ignore"):
            self.mean = flat.mean(axis=0, dtype=np.float64)
            self.std = flat.std(axis=0, dtype=np.float64)
            self.part_mean = self.part.mean(axis=0, dtype=np.float64)

    def is_standardised(self) -> Array:
        """Mean 0 and deviation 1, or median 0 and a span of quartiles of 1."""
        n = len(self.flat)
        near = np.abs(np.stack([self.std, self.std * np.sqrt(n / (n - 1))]) - 1).min(axis=0)
        close = 3e-4 / np.sqrt(n) if n > 100 else 1e-5
        centred = (np.abs(self.mean) < close) & (near < 2e-3 / np.sqrt(n))
        of_part = np.abs(self.part_mean) > 20 * np.maximum(np.abs(self.mean), 1e-12)
        found = centred & of_part
        rest = np.flatnonzero(self.finite & ~found)
        if len(rest) and len(rest) * n < 4e6:
            low, middle, high = np.quantile(self.flat[:, rest], (0.25, 0.5, 0.75), axis=0)
            robust = (np.abs(middle) < 1e-9) & (np.abs(high - low - 1) < 1e-9)
            own = np.quantile(self.part[:, rest], 0.5, axis=0)
            found[rest] |= robust & (np.abs(own) > 1e-6)
        sure: Array = found & self.finite
        return sure

    def is_ranged(self) -> Array:
        """From exactly 0 or -1 to exactly 1, each reached by one row, not both in training."""
        found = np.zeros(self.flat.shape[1], dtype=bool)
        sure = 0
        for i in np.flatnonzero(self.finite):
            v, part = self.flat[:, i], self.part[:, i]
            low, high = v.min(), v.max()
            if low in (0, -1) and abs(high - 1) < 1e-6:
                once = (v == low).sum() <= 2 and (v == high).sum() <= 2
                found[i] = once and len(np.unique(v)) > 0.9 * len(v)
                sure += bool(found[i]) and (part.min() > low or part.max() < high)
            elif abs(max(abs(low), abs(high)) - 1) < 1e-9 and low < 0:
                at = np.abs(v).max()
                found[i] = (np.abs(v) == at).sum() == 1 and len(np.unique(v)) > 0.9 * len(v)
                sure += bool(found[i]) and np.abs(part).max() < at
        return found if sure and (found.sum() > 1) else np.zeros_like(found)

    def is_ranked(self) -> Array:
        """Quantiles of a uniform or normal distribution, far more evenly than drawn values are."""
        found, normal = (np.zeros(self.flat.shape[1], dtype=bool) for _ in range(2))
        few = np.sort(self.flat[:: max(1, len(self.flat) // 2000)], axis=0)
        for i in np.flatnonzero(self.finite) if len(self.flat) >= 50 else ():
            inside = few[0, i] >= 0 and few[-1, i] <= 1
            as_unit = (lambda v: v) if inside else normal_share
            if _unevenness(as_unit(few[:, i])) > 0.7:
                continue
            u, part = as_unit(self.flat[:, i]), as_unit(self.part[:, i])
            found[i] = _unevenness(np.sort(u)) < EVEN and _unevenness(np.sort(part)) > 2 * EVEN
            normal[i] = found[i] and not inside
        return found if found.sum() > 1 or normal.any() else np.zeros_like(found)

    def is_filled(self) -> Array:
        """One value comes again and again, the mean or median of all others."""
        found = np.zeros(self.flat.shape[1], dtype=bool)
        if len(found) > 300:
            return found
        for i in np.flatnonzero(self.finite):
            few = np.sort(self.flat[:: max(1, len(self.flat) // 8000), i])
            if len(few) >= 4000 and (np.diff(few) != 0).all():
                continue  # no value comes again in a hundred rows
            v, part = self.flat[:, i].astype(np.float64), self.part[:, i].astype(np.float64)
            values, counts = np.unique(v, return_counts=True)
            top = int(counts.argmax())
            others = np.sort(counts)[-2] if len(counts) > 1 else 0
            if counts[top] < max(3, 0.005 * len(v)) or counts[top] < 3 * others:
                continue
            fill = values[top]
            rest, own = v[v != fill], part[part != fill]
            if not len(own):
                continue
            close = max(self.exact, 1e-9) * (np.abs(rest).max() + 1e-12)
            for middle in (np.mean, np.median):
                by_all, by_part = abs(middle(rest) - fill), abs(middle(own) - fill)
                found[i] |= by_all <= close and by_part > 100 * close
            if (v == np.round(v)).all():
                found[i] = False
        return found


def normal_share(values: Array) -> Array:
    """Return the share of a normal distribution below values, to 1e-7.

    Abramowitz & Stegun 1964, *Handbook of Mathematical Functions*, 7.1.26; importing scipy for
    more digits takes longer than most audits.
    """
    x = np.minimum(np.abs(values.astype(np.float64)) / np.sqrt(2), 40.0)  # where it is 0 or 1
    t = 1 / (1 + 0.3275911 * x)
    terms = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0.0]
    above: Array = np.polyval(terms, t) * np.exp(-x * x) / 2
    return np.where(values < 0, above, 1 - above)


def _unevenness(ordered: Array) -> float:
    """Return Kolmogorov's distance of sorted values to a uniform law, times the root of n."""
    n = len(ordered)
    even = (np.arange(n) + 0.5) / n
    return float(np.abs(ordered - even).max() * np.sqrt(n))


_SIGNS: dict[str, Callable[[_Moments], Array]] = {
    "standardised": _Moments.is_standardised,
    "scaled to a range": _Moments.is_ranged,
    "replaced by quantiles": _Moments.is_ranked,
    "filled with the mean or median": _Moments.is_filled,
}


def uncorrelated(t: Table) -> Iterator[Finding]:
    """Find columns that are uncorrelated to the last digit over all rows: principal components."""
    columns = [
        c
        for c in t.of_domain("features")
        if c.values.dtype.kind == "f" and 1 <= c.flat.shape[1] <= 256
    ]
    if not t.pairs or len(t.rows) < 20 or not columns or not t.is_whole:
        return
    flat = np.concatenate([c.flat for c in columns], axis=1).astype(np.float64)
    labels = [c for c in columns for _ in range(c.flat.shape[1])]
    pair = max(t.pairs, key=lambda p: len(p.train))
    few = flat[:2000]
    use = np.array(
        [
            bool(np.isfinite(v).all()) and len(np.unique(f)) >= VALUES
            for v, f in zip(flat.T, few.T, strict=True)
        ]
    )  # fmt: skip
    if not 2 <= use.sum() <= 512:
        return
    at = np.flatnonzero(use)
    exact = 1e-5 if any(c.values.dtype.itemsize < 8 for c in columns) else 1e-8
    with np.errstate(all="ignore"):
        whole = np.abs(np.corrcoef(flat[:, at].T))
        part = np.abs(np.corrcoef(flat[pair.train][:, at].T))
    none = (whole < exact) & (part > 100 * exact)
    usual = len(at) * (len(at) - 1) / 2 * exact * np.sqrt(len(flat))
    p = at_least(int(none.sum()) // 2, usual)
    hits = at[none.any(axis=1)]
    if not len(hits) or p > ALPHA / 10:
        return
    names = dict.fromkeys(labels[i].name for i in hits)
    rows = pair.test[~pair.in_train[pair.test]]
    keys = ", ".join(repr(name.split(".")[1]) for name in list(names)[:4])
    yield t.finding(
        "prepared_before", "warning", rows,
        f"had a part in how {keys} {'were' if len(names) > 1 else 'was'} rotated to principal "
        "components over all rows", names, pair,
        remedy="do it after the split, fitted on the training rows (fit_transform, fit_to_split=)",
        measure="columns are uncorrelated to the last digit over all rows and not over the "
        "training rows", p_value=p,
    )  # fmt: skip
