"""Features computed over all rows: scaled, imputed, rotated, or encoded by the target."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from modularml._typing import Array, IntArray
from modularml.audit.audited_table import Pair, Side, Table
from modularml.audit.similarity import ALPHA, at_least
from modularml.data.audit_report import Finding

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
    for how, measured in _SIGNS.items():
        hits = measured(moments)
        if not hits.any():
            continue
        columns = dict.fromkeys(n for n, hit in zip(names, hits, strict=True) if hit)
        measure = "it is exact over all rows and not over the training rows"
        yield _prepared(t, pair, list(columns), how, measure, ALPHA)


def _prepared(
    t: Table, pair: Pair, names: list[str], how: str, measure: str, p_value: float
) -> Finding:
    """Return the finding that test rows had a part in how columns were computed."""
    keys = ", ".join(repr(name.split(".")[1]) for name in names[:4])
    return t.finding(
        "prepared_before", "warning", pair.tested,
        f"had a part in how {keys} {'were' if len(names) > 1 else 'was'} {how} over all rows",
        names, pair, measure=measure, p_value=p_value,
        remedy="do it after the split, fitted on the training rows (fit_transform, fit_to_split=)",
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
    yield _prepared(
        t, pair, list(dict.fromkeys(labels[i].name for i in hits)),
        "rotated to principal components",
        "columns are uncorrelated to the last digit over all rows and not over the training rows",
        p,
    )  # fmt: skip


LAGS = (1, 2, 3)
"""Rows before or behind whose targets are looked for."""


def target_of_neighbour(t: Table) -> Iterator[Finding]:
    """Find features that are the target of the row before or behind."""
    features = [c for c in t.of_domain("features") if c.is_number and c.is_scalar]
    orders = {"": np.arange(len(t.rows))}
    for c in t.of_domain("tags", "features"):
        if c.is_scalar and c.values.dtype.kind in "mM" and c.n_values == len(t.rows):
            orders[f" by {c.key!r}"] = np.argsort(c.codes)
    for y in t.of_domain("targets") if t.is_whole else ():
        if not (y.is_number and y.is_scalar and np.isfinite(y.values).all()) or y.n_values < 20:
            continue
        for how, order in orders.items():
            goal = y.values[order].astype(np.float64)
            apart = 1e-7 * float(np.median(np.abs(goal - np.median(goal))))
            for c in features:
                x = c.values[order].astype(np.float64)
                for lag in (*LAGS, *(-k for k in LAGS)):
                    mine, theirs = (x[lag:], goal[:-lag]) if lag > 0 else (x[:lag], goal[-lag:])
                    few = np.isclose(mine[:64], theirs[:64], rtol=1e-5, atol=apart)
                    if few.mean() < 0.5:
                        continue
                    same = np.isclose(mine, theirs, rtol=1e-5, atol=apart)
                    if (
                        len(same) < 20
                        or same.mean() < 0.9
                        or np.isclose(x, goal, rtol=1e-5, atol=apart).mean() > 0.5
                    ):
                        continue
                    rows = order[lag:] if lag > 0 else order[:lag]
                    before = order[:-lag] if lag > 0 else order[-lag:]
                    reached = rows if lag < 0 else _told(t, rows, before)
                    if len(reached):
                        where = f"{abs(lag)} {'before' if lag > 0 else 'behind'}"
                        yield t.finding(
                            "target_of_neighbour", "warning", t.rows[np.sort(reached)],
                            f"feature {c.key!r} is target {y.key!r} of the row {where}{how}, and "
                            "such rows are in other splits", (c.name, y.name),
                            remedy="split by time, so that what is tested comes last",
                            measure=f"{same.mean():.0%} of the values are equal",
                        )  # fmt: skip
                        break


def _told(t: Table, rows: IntArray, before: IntArray) -> IntArray:
    """Return training rows that hold the target of a test row, where these are many."""
    found: set[int] = set()
    for side in t.sides:
        train, test = np.zeros(len(t.rows), dtype=bool), np.zeros(len(t.rows), dtype=bool)
        train[side.train], test[side.test] = True, True
        matched = rows[train[rows] & test[before]]
        if len(matched) > max(3, 0.1 * len(side.test)):
            found |= set(matched.tolist())
    return np.array(sorted(found), dtype=np.int64)


def target_encoding(t: Table) -> Iterator[Finding]:
    """Find features that are means of the target by category, test rows included."""
    if t.quick and not t.is_whole:
        return
    data = t.fs.collection
    targets = [c for c in t.of_domain("targets") if c.is_scalar and c.is_number]
    features = [
        c
        for c in t.of_domain("features")
        if c.is_scalar and c.values.dtype.kind == "f" and c.n_values >= 5
    ]
    keys = [
        c
        for c in t.of_domain("features", "tags")
        if c.is_scalar and 5 <= c.n_values <= 0.5 * len(t.rows)
    ]
    for y in targets:
        for c in features:
            by = [c] * (c in keys) + [k for k in keys if k is not c]
            x, goal = (data.numpy(column.name).astype(np.float64) for column in (c, y))
            if not (by and np.isfinite(x).all() and np.isfinite(goal).all()):
                continue
            for name in (k.name for k in by):
                codes = data.codes(name)
                found = next(
                    (found for side in t.main_sides if (found := _encodes(codes, x, goal, side))),
                    "",
                )
                if found:
                    key = name.split(".")[1]
                    of = "its own values" if name == c.name else repr(key)
                    yield t.finding(
                        "target_encoding", "warning", None,
                        f"feature {c.key!r} is the mean of target {y.key!r} by {of} over all rows, "
                        "those that are tested on too", (c.name, y.name),
                        remedy="encode with the means of the training rows (TargetEncoder as a "
                        "recorded step)", measure=found,
                    )  # fmt: skip
                    break


def _encodes(codes: IntArray, x: Array, y: Array, side: Side) -> str:
    """Tell in words how x is a mean of y by category over all rows, else return an empty text."""
    n, sums = np.bincount(codes), np.bincount(codes, y)
    if len(n) > len(y) / 2:
        return ""
    train = np.zeros(len(y), dtype=bool)
    train[side.pair.train] = True
    means = np.bincount(codes, x) / np.maximum(n, 1)
    if np.abs(x - means[codes]).max() > 1e-6 * (x.std() or 1.0):
        many = n[codes] > 2
        if many.sum() < 20:
            return ""
        own = x[many] * (n[codes][many] - 1) + y[many] - sums[codes][many]
        nothing = 1e-5 * (y.std() or 1.0) * max(1, len(y) ** 0.5)
        return "it leaves each row's own target out" if np.abs(own).max() < nothing else ""
    n_train = np.bincount(codes[train], minlength=len(n))
    s_train = np.bincount(codes[train], y[train], minlength=len(n))
    both = (n_train > 0) & (n_train < n)
    if both.sum() < 5:
        return ""

    def left(count: IntArray, total: Array) -> float:
        """Return what ``x (n + m) = S + m c`` leaves, for the best m and c."""
        rest = (means[both] * count[both] - total[both]) / y.std()
        design = np.stack([means[both], np.ones(int(both.sum()))], axis=1)
        weights = np.linalg.lstsq(design, rest, rcond=None)[0]
        return float(np.abs(rest - design @ weights).max())

    if left(n, sums) < 1e-4 and left(n_train, s_train) > 1e-2:
        return "the means of all rows fit to the last digit, those of the training rows do not"

    def between(count: IntArray, total: Array) -> float:
        """Return the share of categories whose x lies between their mean and the mean of all."""
        middle = total.sum() / count.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            pull = (means[both] - middle) / (total[both] / count[both] - middle)
        return float(((pull > 0) & (pull <= 1 + 1e-9)).mean())

    if both.sum() >= 15 and between(n, sums) > 0.98 and between(n_train, s_train) < 0.9:
        return "it lies between the mean of all rows and that of the category, for all categories"
    return ""
