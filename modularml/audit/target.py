"""Features that reveal the target, by copies of it and by prediction on held-out rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.audit.audited_table import Column, Table
from modularml.audit.groups import readings
from modularml.audit.similarity import ALPHA, average_ranks, scatter
from modularml.data.audit_report import Finding

EXACT = 1e-5
"""A copy in float32 is this near, as a share of the target's standard deviation."""

TOLERANCE = 1e-3
"""What a straight line may leave of a target that a feature all but repeats."""

TELLS = 0.985
"""Share of the target, on held-out rows, that one column explains in no honest table."""

SURE = 0.998
"""Share below which three or more features that tell the target are taken for its sensors."""

TELLS_CLASS = 0.97
"""The same for classes, as Cohen's kappa."""

CURVE = 8
"""Elements from which on an array may be a curve, several elements of which tell one thing."""

FEWEST = 10
"""Rows below which a straight line fits by chance."""


def target_in_feature(t: Table) -> Iterator[Finding]:
    """Find features that alone predict a target, in whatever form."""
    features = [c for c in t.of_domain("features") if c.flat.shape[1]]
    width = sum(c.flat.shape[1] for c in features)
    if len(t.rows) < FEWEST:
        return
    for y, wanted in _targets(t):
        goal = standardised(y.flat.astype(np.float64)) if y.is_number else None
        found: list[tuple[float, Finding]] = []
        for c in features if wanted is None else _worth_a_look(features, wanted):
            left = 1.0
            if goal is not None and c.is_number:
                left = _left_by_a_line(c.flat, y.flat, goal)
            elif not c.is_number and not y.is_number and (c.codes == y.codes).all():
                left = 0.0
            limit = TOLERANCE if t.tolerance is None else max(t.tolerance, EXACT)
            if left <= limit:
                sure = "error" if left <= EXACT else "warning"
                yield t.finding(
                    "target_copy", sure if _is_telling(c, y, width) else "info", None,
                    f"feature {c.key!r} repeats target {y.key!r}, up to an offset, a factor and "
                    f"{left:.1g} standard deviations", (c.name, y.name), remedy="leave it out",
                    measure=f"a straight line leaves {left:.1g} of its standard deviation",
                    picture=_picture(c, y),
                )  # fmt: skip
            elif t.tolerance is None and wanted is not None:
                found = [*found, *_function(t, c, y, wanted, width)]
        if t.tolerance is None and wanted is not None:
            yield from _by_count_missing(t, features, y, wanted)
        redundant = len(found) >= 3 and all(share < SURE for share, _ in found)
        for _, finding in found:
            yield replace(finding, severity="info") if redundant else finding


def _by_count_missing(
    t: Table, features: list[Column], y: Column, wanted: Wanted
) -> Iterator[Finding]:
    """Yield a finding where the number of missing values in a row tells the target."""
    empty = [c for c in features if c.flat.dtype.kind == "f" and np.isnan(c.flat).any()]
    if sum(c.flat.shape[1] for c in empty) < 2:
        return
    share = explained(sum(np.isnan(c.flat).sum(axis=1) for c in empty).astype(float), wanted)
    if share >= wanted.told:
        keys = ", ".join(repr(c.key) for c in empty[:4])
        yield t.finding(
            "target_in_features", "warning", None,
            f"how many values of {keys} are missing in a row says what target {y.key!r} is",
            [*(c.name for c in empty), y.name], remedy="find out why they are missing; a model "
            "must not learn it, unless it is known before the target is",
            measure=f"it explains {share:.1%} of the target on rows held out",
        )  # fmt: skip


def _worth_a_look(features: list[Column], y: Wanted) -> list[Column]:
    """Leave out lone columns of numbers that a look at neighbours rules out, all at once."""
    lone = [c for c in features if c.is_number and c.flat.shape[1] == 1]
    if not lone:
        return features
    flat = np.concatenate([c.flat for c in lone], axis=1)
    kept = {lone[i].name for i in likely(flat.astype(np.float64, copy=False), y)}
    ruled_out = {c.name for c in lone} - kept
    return [c for c in features if c.name not in ruled_out]


def _left_by_a_line(flat: Array, target: Array, goal: Array) -> float:
    """Return what a straight line leaves of a target, by the rows where a lone column is known."""
    known = np.isfinite(flat).all(axis=1) if flat.shape[1] == 1 and flat.dtype.kind == "f" else None
    if known is None or known.all() or known.sum() < max(FEWEST, 0.3 * len(flat)):
        return float(affine_residuals(flat, goal).min())
    return float(affine_residuals(flat[known], standardised(target[known].astype(float))).min())


def _is_telling(c: Column, y: Column, width: int) -> bool:
    """Tell whether one of so many columns would not agree with the target by chance."""
    log_gamma = require("scipy.special").gammaln
    arrangements = []
    for column in (c, y):
        flat = column.flat[:, 0]
        counts = np.unique(flat[np.isfinite(flat)], return_counts=True)[1]
        arrangements.append(log_gamma(counts.sum() + 1) - log_gamma(counts + 1).sum())
    return bool(min(arrangements) > np.log(width / ALPHA))


def _function(
    t: Table, c: Column, y: Column, wanted: Wanted, width: int
) -> Iterator[tuple[float, Finding]]:
    flat = c.flat if c.flat.dtype.kind == "f" else c.flat.astype(np.float64)
    if not c.is_number and c.flat.max(initial=0) > len(t.rows) / 4:
        return  # its parts are looked at, see target_in_id
    found = dict.fromkeys([0], 0.0) | {
        i: explained(flat[:, i], wanted) for i in likely(flat, wanted)
    }
    what = "says"
    missing = np.isnan(flat)
    if missing.any():
        some = np.flatnonzero(missing.any(axis=0))
        empty = {i: explained(missing[:, i].astype(float), wanted) for i in some}
        if max(empty.values()) > max(found.values()):
            found, what = empty, "says by its missing values"
    best = int(max(found, key=lambda i: found[i]))
    if found[best] < wanted.told:
        return
    element = f"element {best} of " if flat.shape[1] > 1 else ""
    plain = width == 1 or not _is_telling(c, y, width)
    if flat.shape[1] >= CURVE and not wanted.is_class and c.values.dtype.kind == "f":
        plain |= sum(share >= TELLS for share in found.values()) >= 3  # as a peak does
    yield found[best], t.finding(
        "target_in_feature", "info" if plain else "warning", None,
        f"{element}feature {c.key!r} alone {what} what target {y.key!r} is", (c.name, y.name),
        remedy="leave it out, unless it is known before the target is",
        measure=f"it explains {found[best]:.1%} of the target, or the target of it, on rows held "
        "out", picture=_picture(c, y, best),
    )  # fmt: skip


def target_in_features(t: Table) -> Iterator[Finding]:
    """Find two or three features whose weighted sum, or product, is the target."""
    if t.quick or t.tolerance is not None:
        return
    scalars = [
        c
        for c in t.of_domain("features")
        if (c.is_number or c.values.dtype.kind in "mM") and c.flat.shape[1] <= 8
    ]
    labels = [c for c in scalars for _ in range(c.flat.shape[1])]
    for y, wanted in _targets(t):
        if wanted is None or wanted.is_class or not 3 <= len(labels) <= 200:
            continue
        x = np.concatenate([c.flat for c in scalars], axis=1).astype(np.float64)
        goal = y.flat[:, 0].astype(np.float64)
        forms = [("sum", x, goal)]
        if (goal > 0).all():
            with np.errstate(all="ignore"):
                positive = (x > 0).all(axis=0)
                forms.append(("product", np.log(np.where(positive, x, 1.0)), np.log(goal)))
        for form, a, b in forms:
            parts = _parts(a, b, wanted.train, wanted.test)
            if parts is None:
                continue
            columns = dict.fromkeys(labels[i] for i in parts)
            keys = ", ".join(repr(c.key) for c in columns)
            yield t.finding(
                "target_in_features", "warning", None,
                f"target {y.key!r} is a weighted {form} of features {keys}",
                [*(c.name for c in columns), y.name],
                remedy="leave one of them out, unless all are known before the target is",
                measure="together they leave less than 2 % of its standard deviation on rows "
                "held out",
            )  # fmt: skip
            break


def _parts(x: Array, y: Array, train: IntArray, test: IntArray) -> list[int] | None:
    """Return the 2 or 3 columns that make up y, None where there are none."""
    kept = np.flatnonzero(np.isfinite(x).all(axis=0) & (x.std(axis=0) > 0))
    if len(kept) < 2 or len(train) < 3 * len(kept) + 10 or not y.std():
        return None
    scaled = (x[:, kept] - x[:, kept].mean(axis=0)) / x[:, kept].std(axis=0)
    goal = (y - y.mean()) / y.std()

    def fit(some: Array) -> tuple[Array, float]:
        design = np.concatenate([scaled[:, some], np.ones((len(y), 1))], axis=1)
        weights = np.linalg.lstsq(design[train], goal[train], rcond=None)[0]
        left = goal[test] - design[test] @ weights
        return weights[:-1], float(np.sqrt(np.mean(left**2)))

    weights, left = fit(np.arange(len(kept)))
    some = np.flatnonzero(np.abs(weights) > 0.03)
    if left > 0.02 or not 2 <= len(some) <= 3 or fit(some)[1] > 0.02:
        return None
    return [int(i) for i in kept[some]]


def target_in_id(t: Table) -> Iterator[Finding]:
    """Find names of rows that tell the target by their parts, numbers or order."""
    for y, wanted in _targets(t):
        if wanted is None:
            continue
        for c in t.of_domain("features", "tags"):
            if not c.is_scalar or c.n_values < 0.9 * len(t.rows):
                continue
            if c.is_number and c.domain == "features":
                continue  # it has been looked at
            if c.is_number:  # a tag that is no count of rows, all different and evenly spaced
                steps = np.diff(np.sort(c.values.astype(np.float64)))
                if not (len(steps) and steps.min() > 0 and steps.max() <= 3 * np.median(steps)):
                    continue
            for how, (codes, _) in readings(c.values).items():
                share = explained(codes.astype(float), wanted)
                if share >= wanted.told:
                    yield t.finding(
                        "target_in_id", "warning", None,
                        f"{c.key!r} names rows by their target {y.key!r}{how}", (c.name, y.name),
                        remedy="leave it out, and do not split or sort by it",
                        measure=f"it explains {share:.1%} of the target on rows held out",
                    )  # fmt: skip
                    break


def _targets(t: Table) -> Iterator[tuple[Column, Wanted | None]]:
    """Yield targets, scalar ones with the rows that predictions are tested on."""
    n = len(t.rows)
    if t.main_sides:
        train, test = t.main_sides[0].train, t.main_sides[0].test
    else:
        mix = np.random.default_rng(0).permutation(n)
        train, test = mix[: n // 2], mix[n // 2 :]
    for c in t.of_domain("targets"):
        wanted = None
        if c.is_scalar and len(test) >= 8 and (not c.is_number or np.isfinite(c.values).all()):
            is_class = not c.is_number or (c.values.dtype.kind in "biu" and c.n_values <= FEW)
            if c.n_values > 1:
                wanted = Wanted(c.flat[:, 0].astype(np.float64), train, test, is_class)
        if c.flat.shape[1]:
            yield c, wanted


def _picture(c: Column, y: Column, element: int = 0) -> str:
    return scatter(c.flat[:, element], y.flat[:, 0]) if y.flat.shape[1] and len(c.flat) else ""


def affine_residuals(values: Array, targets: Array) -> Array:
    """Return what the best column leaves of each standardised target, by offset and factor.

    Returns
    -------
    ndarray, shape (n_targets,)
        In standard deviations of the target: 0 for a copy, 1 for no relation.
    """
    best = np.abs(standardised(values).T @ targets).max(axis=0)
    left: Array = np.sqrt(np.clip(1.0 - np.square(best), 0.0, 1.0))
    return left


def standardised(values: Array) -> Array:
    """Return columns of mean 0 and length 1; 0 where they are constant or not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        found = np.subtract(values, values.mean(axis=0, dtype=np.float64), dtype=np.float64)
        length = np.sqrt(np.einsum("ij,ij->j", found, found))
    known = np.isfinite(length) & (length > 0)
    return np.where(known, found, 0.0) / np.where(known, length, 1.0)


SCREENED, SCREEN_ROWS, LIKELY = 8, 800, 0.6
"""Columns from which on they are screened, on how many rows, and the share they must reach."""

FEW = 20
"""Values up to which whole numbers may be classes."""


class Wanted:
    """A column that is to be predicted, and the rows to learn from and to test on.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Numbers or codes.
    train, test : ndarray of int64
    is_class : bool
        Whether the values are classes without an order.
    """

    def __init__(self, values: Array, train: IntArray, test: IntArray, is_class: bool) -> None:
        self.values, self.train, self.test, self.is_class = values, train, test, is_class
        self.codes = np.unique(values, return_inverse=True)[1]
        self.ranks = average_ranks(values)[:, 0] / len(values)
        self.n_values = int(self.codes.max(initial=-1)) + 1
        self.told = TELLS_CLASS if is_class else TELLS  # share from which on a column tells it


def likely(flat: Array, y: Wanted) -> IntArray:
    """Return the columns that may tell y, after a look at neighbours alone.

    Along y, and along the column itself, the other must change little from row to row (von
    Neumann's ratio). Columns with missing values are always returned.

    Parameters
    ----------
    flat : ndarray, shape (n, d)
    """
    if flat.shape[1] < SCREENED:
        return np.arange(flat.shape[1])
    some = np.concatenate([y.train, y.test])[-SCREEN_ROWS:]
    goal = y.codes[some] if y.is_class else y.ranks[some]
    part = flat[some]

    def smooth(values: Array, spread: Array) -> Array:
        steps = np.square(np.diff(values, axis=0)).mean(axis=0)
        found: Array = steps < (1 - LIKELY) * 2 * spread
        return found

    with np.errstate(all="ignore"):
        by_y = part[np.argsort(goal, kind="stable")]
        found = smooth(by_y, part.var(axis=0)) | ~np.isfinite(part).all(axis=0)
        along = goal[np.argsort(part, axis=0)]
        if y.is_class:
            changes = (np.diff(along, axis=0) != 0).mean(axis=0)
            usual = 1 - np.square(np.bincount(goal) / len(goal)).sum()
            found |= changes < (1 - LIKELY) * usual
        else:
            found |= smooth(along, goal.var())
    return np.flatnonzero(found)


def explained(x: Array, y: Wanted) -> float:
    """Return how much of y x explains, or y of x, on the rows held out.

    Nearest training rows by x predict y, so the relation may have any form; in return those by y
    predict x, so that a coarse or binned y is recognised.

    Parameters
    ----------
    x : ndarray, shape (n,)
        Numbers or codes; rows that are not finite are left out.

    Returns
    -------
    float
        The share of variance of ranks, or of classes Cohen's kappa; 0 where too few rows are known.
    """
    known = np.isfinite(x)
    train, test = y.train[known[y.train]], y.test[known[y.test]]
    if len(train) < 20 or len(test) < 8 or len(train) + len(test) < 0.3 * known.size:
        return 0.0
    there = x[np.concatenate([train, test])]
    levels = np.unique(there)
    if len(levels) < 2:
        return 0.0
    few = len(levels) <= max(FEW, len(there) / 8)
    codes = np.searchsorted(levels, x)
    if few and np.sort(np.bincount(np.minimum(codes[test], len(levels))))[-1] > 0.98 * len(test):
        return 0.0  # nearly constant
    if y.is_class:
        forth = _kappa(codes if few else x, y.codes, train, test, few)
        back = _kappa(y.codes, codes, train, test, True) if few else 0.0
        return max(forth, back)
    ranks = np.zeros(len(x))
    some = np.concatenate([train, test])
    ranks[some] = average_ranks(x[some])[:, 0] / len(some)
    forth = _share(codes if few else x, y.ranks, train, test, few)
    y_few = y.n_values <= max(FEW, len(there) / 8)
    back = _share(y.codes if y_few else y.ranks, ranks, train, test, y_few)
    return max(forth, back)


def _share(x: Array, y: Array, train: IntArray, test: IntArray, few: bool) -> float:
    if few:
        n = np.bincount(x[train], minlength=int(x.max()) + 1)
        mean = np.bincount(x[train], y[train], minlength=len(n)) / np.maximum(n, 1)
        guess, factor = np.where(n[x[test]] > 0, mean[x[test]], y[train].mean()), 1.0
    else:
        left, right = _neighbours(x, train, test)
        guess, factor = (y[left] + y[right]) / 2, 1.5
    spread = float(np.var(y[test]))
    return 1 - float(np.mean(np.square(y[test] - guess))) / factor / spread if spread else 0.0


def _kappa(x: Array, y: IntArray, train: IntArray, test: IntArray, few: bool) -> float:
    if few:
        n_x, n_y = int(x.max()) + 1, int(y.max()) + 1
        counts = np.bincount(x[train] * n_y + y[train], minlength=n_x * n_y).reshape(n_x, n_y)
        guess = counts.argmax(axis=1)[x[test]]
        guess[counts.sum(axis=1)[x[test]] == 0] = -1
    else:
        left, right = _neighbours(x, train, test)
        nearer = np.abs(x[left] - x[test]) < np.abs(x[right] - x[test])
        guess = y[np.where(nearer, left, right)]
    n = len(test)
    agree = float((guess == y[test]).mean())
    top = max(int(y.max()), int(guess.max())) + 1
    shares = [np.bincount(v[v >= 0], minlength=top) / n for v in (guess, y[test])]
    chance = float((shares[0] * shares[1]).sum())
    return (agree - chance) / (1 - chance) if chance < 1 else 0.0


def _neighbours(x: Array, train: IntArray, test: IntArray) -> tuple[IntArray, IntArray]:
    """Return the training rows next to each test row on either side."""
    order = train[np.argsort(x[train], kind="stable")]
    place = np.searchsorted(x[order], x[test])
    return order[np.maximum(place - 1, 0)], order[np.minimum(place, len(order) - 1)]
