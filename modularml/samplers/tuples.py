"""Samplers of pairs, triplets and longer tuples of rows that fulfil conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modularml._arguments import at_least
from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml._warning import warn
from modularml.data.selectors import select_one
from modularml.data.view import FeatureSetView
from modularml.errors import ConfigError, DataError
from modularml.samplers.base import BaseSampler, sampler_registry
from modularml.samplers.batching import DEFAULT, EpochBatches
from modularml.samplers.search import (
    Partners,
    Rule,
    SimilarityCondition,
    find_partners,
    pair_weights,
)

ANCHOR = "anchor"
_SEARCHED = {"_candidates", "_anchors"}
Conditions = Mapping[str, SimilarityCondition]


@dataclass(frozen=True)
class _Candidates:
    """Candidates for a role: matches, and other rows if there are too few."""

    rules: list[Rule]
    matches: Partners
    others: Partners | None

    def draw(self, rows: IntArray, k: int, rng: np.random.Generator) -> IntArray:
        """Return up to `k` partners of each row, shape (n, k), matches first; -1 at the end."""
        picks = self.matches.draw(rows, k, rng)
        if self.others is None:
            return picks
        more = self.others.draw(rows, 2 * k, rng)
        more[(more[:, :, None] == picks[:, None, :]).any(axis=2)] = -1
        both = np.concatenate([picks, more], axis=1)
        first = np.argsort(both < 0, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(both, first, axis=1)


class NSampler(BaseSampler):
    """Sample anchors with partners in other roles, selected by conditions.

    Parameters
    ----------
    condition_mapping : dict of str to dict of str to SimilarityCondition
        For each role, conditions by column that relate a partner to its anchor; all must hold. The
        weight of a row is the product of the weights of its conditions; for an anchor it is 1.
    max_samples_per_anchor : int
        Tuples per anchor and epoch, at least 1; partners are drawn without replacement and repeat
        only in a role that has fewer partners than another.
    choose_best_only : bool
        Whether to use the partners with the largest weights instead.
    **kwargs
        See `BaseSampler`; ``batch_size`` counts tuples, and the role ``"default"`` is the anchor.
        Without `shuffle` every epoch has the same tuples, in the order of the anchors. Anchors
        without a partner for some role are dropped with a warning that counts them.

    Attributes
    ----------
    n_dropped : int
        Anchors dropped from the rows sampled last.

    Examples
    --------
    >>> same = {"tags.cell": SimilarityCondition()}
    >>> NSampler({"twin": same}, batch_size=32).roles
    ('anchor', 'twin')
    """

    def __init__(
        self,
        condition_mapping: Mapping[str, Conditions],
        *,
        max_samples_per_anchor: int = 3,
        choose_best_only: bool = False,
        **kwargs: Any,
    ) -> None:
        mapping: Any = condition_mapping
        if not isinstance(mapping, Mapping) or not mapping:
            raise ConfigError(
                f"condition_mapping must be {{role: {{column: ...}}}}, got {mapping!r}"
            )
        for role, by_column in mapping.items():
            conditions = by_column.values() if isinstance(by_column, Mapping) else ()
            if not conditions or not all(isinstance(c, SimilarityCondition) for c in conditions):
                raise ConfigError(
                    f"conditions of role {role!r} must map columns to SimilarityCondition, "
                    f"got {by_column!r}"
                )
            if role in (ANCHOR, DEFAULT) or not isinstance(role, str) or not role.isidentifier():
                raise ConfigError(
                    f"a role must be a name other than 'anchor' and 'default', got {role!r}"
                )
        at_least(1, max_samples_per_anchor=max_samples_per_anchor)
        self.roles = (ANCHOR, *condition_mapping)
        super().__init__(**kwargs)
        self.condition_mapping = condition_mapping
        self.max_samples_per_anchor = max_samples_per_anchor
        self.choose_best_only = choose_best_only
        self.gives_weights = any(
            c.gives_weights for by_column in condition_mapping.values() for c in by_column.values()
        )
        self.n_dropped = 0
        self._key: tuple[int, int, bytes] | None = None

    def reads(self) -> list[str]:
        """Return the columns that determine the batches."""
        return [
            *super().reads(),
            *(c for by_column in self.condition_mapping.values() for c in by_column),
        ]

    def sample(self, view: FeatureSetView, epoch: int) -> EpochBatches:
        """Return the batches of an epoch; a repeated row is not a partner of itself."""
        # a number for the sample of each row, and the first row of each sample
        numbers = require("pandas").factorize(view.valid_indices)[0]
        first = np.unique(numbers, return_index=True)[1]
        repeats = len(first) < len(view)
        if repeats:
            view = view.take(first)
        key = (self.seed_, view.collection.version, view.indices.tobytes())
        if key != self._key:
            self._search(view)
            self._key = key
        rng = self.rng(epoch if self.shuffle else 0)
        anchors = numbers[np.isin(numbers, self._anchors)] if repeats else self._anchors
        rows = self._tuples(anchors, rng)
        if self.shuffle:
            order = rng.permutation(len(rows[ANCHOR]))
            rows = {role: r[order] for role, r in rows.items()}
        batches = self.batches(view, rows, rng)
        weights = {
            role: pair_weights(candidates.rules, batches.rows[ANCHOR], batches.rows[role])
            for role, candidates in self._candidates.items()
            if self.gives_weights
        }
        rows = {role: first[r] if repeats else r for role, r in batches.rows.items()}
        return EpochBatches(rows, batches.bounds, weights or None)

    def _tuples(self, anchors: IntArray, rng: np.random.Generator) -> dict[str, IntArray]:
        """Draw partners for all anchors and combine them into tuples."""
        candidates = self._candidates
        most = max(int((c.others or c.matches).counts.max()) for c in candidates.values())
        k = min(self.max_samples_per_anchor, most)
        picks = {role: c.draw(anchors, k, rng) for role, c in candidates.items()}
        counts = {role: (pick >= 0).sum(axis=1)[:, None] for role, pick in picks.items()}
        is_tuple = np.arange(k) < np.max(list(counts.values()), axis=0)
        rows = {ANCHOR: np.broadcast_to(anchors[:, None], is_tuple.shape)[is_tuple]}
        for role, pick in picks.items():
            cycled = np.arange(k) % counts[role]
            rows[role] = np.take_along_axis(pick, cycled, axis=1)[is_tuple]
        return rows

    def _search(self, view: FeatureSetView) -> None:
        """Find the possible partners of all rows, which are the same in every epoch."""
        n, rng = len(view), self.rng(0)
        best = self.max_samples_per_anchor if self.choose_best_only else None
        roles = {}
        for role, conditions in self.condition_mapping.items():
            rules = [self._rule(view, column, c) for column, c in conditions.items()]
            matches = find_partners(rules, n, rng, best=best, show=self.show_progress)
            strict = [r for r in rules if not r.condition.allow_fallback]
            falls_back = best is None and len(strict) < len(rules)
            others = find_partners(strict, n, rng, show=self.show_progress) if falls_back else None
            roles[role] = _Candidates(rules, matches, others)
        counts = [(c.others or c.matches).counts for c in roles.values()]
        anchors = np.flatnonzero(np.min(counts, axis=0))
        self.n_dropped = n - len(anchors)
        if not len(anchors):
            raise DataError(
                f"none of the {n} rows of {view.label!r} has a partner for each of "
                f"{list(roles)}; widen a tolerance or pass allow_fallback=True to a condition"
            )
        if self.n_dropped:
            warn(
                f"{type(self).__name__} drops {self.n_dropped} of {n} anchors of {view.label!r}: "
                "they have no partner for some role",
            )
        self._candidates, self._anchors = roles, anchors

    def _rule(self, view: FeatureSetView, column: str, condition: SimilarityCondition) -> Rule:
        collection, rows = view.collection, view.valid_indices
        name = select_one(collection.schema, column)
        if collection.schema.mask_of(name) is not None:
            raise DataError(
                f"column {name!r} of {view.label!r} is padded, and padding would affect the "
                "distance of rows; compare rows by a column with one value per sample, such as an "
                "id or a statistic of the unpadded steps"
            )
        values: Array = collection.numpy(name)[rows]
        numeric = values.dtype.kind in "iuf"
        if values.dtype.kind == "f" and np.isinf(values).any():
            row = int(np.argwhere(np.isinf(values))[0, 0])
            raise DataError(
                f"column {name!r} of {view.label!r} holds an infinite value in row {row}, whose "
                "distance to other rows is undefined; replace it or remove the row"
            )
        if values.dtype.kind in "iu" and condition.metric is None:  # exact for large integers
            values = values.astype(np.uint64) - values.min().astype(np.uint64)
        if condition.metric is not None or (numeric and values.ndim == 1):
            return Rule(condition, values, by_equality=False)
        if condition.tolerance > 0 and values.dtype.kind in "mM":
            raise ConfigError(
                f"tolerance={condition.tolerance:g} requires numbers, but column {name!r} holds "
                f"{values.dtype}; pass metric=, or use a numeric column"
            )
        if values.ndim == 1:
            return Rule(condition, self.codes(view, name), by_equality=True)
        if numeric and (condition.tolerance > 0 or condition.mode == "dissimilar"):
            return Rule(condition, values, by_equality=False)
        flat = values.reshape(len(values), -1)
        return Rule(condition, np.unique(flat, axis=0, return_inverse=True)[1], by_equality=True)

    def __getstate__(self) -> dict[str, Any]:
        return {k: None if k == "_key" else v for k, v in vars(self).items() if k not in _SEARCHED}


class PairedSampler(NSampler):
    """Sample anchors, each with a matching row.

    Parameters
    ----------
    conditions : dict of str to SimilarityCondition
        Conditions by column; all must hold.
    max_pairs_per_anchor : int
    **kwargs
        See `NSampler`; the roles are ``anchor`` and ``pair``.

    Examples
    --------
    >>> PairedSampler({"soc": SimilarityCondition(tolerance=0.05)}, batch_size=32).roles
    ('anchor', 'pair')
    """

    def __init__(
        self,
        conditions: Conditions,
        *,
        max_pairs_per_anchor: int = 3,
        choose_best_only: bool = False,
        **kwargs: Any,
    ) -> None:
        at_least(1, max_pairs_per_anchor=max_pairs_per_anchor)
        kwargs |= {"choose_best_only": choose_best_only}
        super().__init__(
            {"pair": conditions}, max_samples_per_anchor=max_pairs_per_anchor, **kwargs
        )
        self.conditions, self.max_pairs_per_anchor = conditions, max_pairs_per_anchor


class TripletSampler(NSampler):
    """Sample anchors, each with a positive and a negative.

    Parameters
    ----------
    pos_conditions, neg_conditions : dict of str to SimilarityCondition
        Conditions by column that relate positives, or negatives, to their anchor; all must hold.
    max_samples_per_anchor : int
    **kwargs
        See `NSampler`; the roles are ``anchor``, ``positive`` and ``negative``.

    Examples
    --------
    >>> same = {"digit": SimilarityCondition()}
    >>> different = {"digit": SimilarityCondition("dissimilar")}
    >>> TripletSampler(same, different, batch_size=32).roles
    ('anchor', 'positive', 'negative')
    """

    def __init__(
        self,
        pos_conditions: Conditions,
        neg_conditions: Conditions,
        *,
        max_samples_per_anchor: int = 3,
        choose_best_only: bool = False,
        **kwargs: Any,
    ) -> None:
        mapping = {"positive": pos_conditions, "negative": neg_conditions}
        kwargs |= {"choose_best_only": choose_best_only}
        super().__init__(mapping, max_samples_per_anchor=max_samples_per_anchor, **kwargs)
        self.pos_conditions, self.neg_conditions = pos_conditions, neg_conditions


for _cls in (NSampler, PairedSampler, TripletSampler):
    sampler_registry.register(_cls.__name__, _cls)
