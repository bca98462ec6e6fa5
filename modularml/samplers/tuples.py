"""Pairs, triplets and longer tuples of rows that fulfil conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modularml._arguments import at_least
from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml._warning import warn
from modularml.data import FeatureSetView
from modularml.data.selectors import select_one
from modularml.errors import ConfigError, DataError
from modularml.samplers.base import BaseSampler, sampler_registry
from modularml.samplers.condition import SimilarityCondition
from modularml.samplers.epoch import DEFAULT, EpochBatches
from modularml.samplers.search import Partners, Rule, find_partners, pair_weights

__all__ = ["NSampler", "PairedSampler", "TripletSampler"]

ANCHOR = "anchor"
_SEARCHED = {"_found", "_anchors"}
Conditions = Mapping[str, SimilarityCondition]


@dataclass(frozen=True)
class _Role:
    """Who can have a role: matches, and others where these are too few."""

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
    """Anchors with partners in other roles, each found by conditions.

    Parameters
    ----------
    condition_mapping : dict of str to dict of str to SimilarityCondition
        For each role by column what relates a partner to its anchor; all must hold. The weight of
        a row is the product of its conditions' weights, that of an anchor is 1.
    max_samples_per_anchor : int
        Tuples of an anchor in an epoch, at least 1; their partners are drawn without replacement,
        and repeat only in a role that has fewer than another.
    choose_best_only : bool
        Whether the partners that weigh most are taken instead.
    **kwargs
        See `BaseSampler`; ``batch_size`` counts tuples, and ``"default"`` roles mean the anchor.
        Without `shuffle` every epoch has the same tuples, in the order of the anchors. An
        anchor that has no partner for some role is left out, and it is said how many are.

    Attributes
    ----------
    n_dropped : int
        Anchors left out of the rows sampled last.

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
        _check(condition_mapping)
        at_least(1, max_samples_per_anchor=max_samples_per_anchor)
        self.roles = (ANCHOR, *condition_mapping)
        super().__init__(**kwargs)
        self.condition_mapping = condition_mapping
        self.max_samples_per_anchor = max_samples_per_anchor
        self.choose_best_only = choose_best_only
        self.gives_weights = any(
            c.gives_weights for own in condition_mapping.values() for c in own.values()
        )
        self.n_dropped = 0
        self._key: tuple[int, int, bytes] | None = None

    def reads(self) -> list[str]:
        """Return the columns that decide about batches."""
        return [*super().reads(), *(c for own in self.condition_mapping.values() for c in own)]

    def sample(self, view: FeatureSetView, epoch: int) -> EpochBatches:
        """Return the batches of an epoch; a row that stands twice is no partner of itself."""
        of, first = _distinct(view)
        repeats = len(first) < len(view)
        if repeats:
            view = view.take(first)
        key = (self.seed_, view.collection.version, view.indices.tobytes())
        if key != self._key:
            self._search(view)
            self._key = key
        rng = self.rng(epoch if self.shuffle else 0)
        anchors = of[np.isin(of, self._anchors)] if repeats else self._anchors
        rows = self._tuples(anchors, rng)
        if self.shuffle:
            order = rng.permutation(len(rows[ANCHOR]))
            rows = {role: own[order] for role, own in rows.items()}
        batches = self.batches(view, rows, rng)
        weights = {
            role: pair_weights(own.rules, batches.rows[ANCHOR], batches.rows[role])
            for role, own in self._found.items()
            if self.gives_weights
        }
        there = {role: first[own] if repeats else own for role, own in batches.rows.items()}
        return EpochBatches(there, batches.bounds, weights or None)

    def _tuples(self, anchors: IntArray, rng: np.random.Generator) -> dict[str, IntArray]:
        """Draw partners for all anchors and put them side by side."""
        there_are = max(
            int((own.others or own.matches).counts.max()) for own in self._found.values()
        )
        k = min(self.max_samples_per_anchor, there_are)
        picks = {role: own.draw(anchors, k, rng) for role, own in self._found.items()}
        counts = {role: (found >= 0).sum(axis=1)[:, None] for role, found in picks.items()}
        there = np.arange(k) < np.max(list(counts.values()), axis=0)
        rows = {ANCHOR: np.broadcast_to(anchors[:, None], there.shape)[there]}
        for role, found in picks.items():
            again = np.arange(k) % counts[role]
            rows[role] = np.take_along_axis(found, again, axis=1)[there]
        return rows

    def _search(self, view: FeatureSetView) -> None:
        """Find who can be whose partner, which does not change from epoch to epoch."""
        n, rng = len(view), self.rng(0)
        best = self.max_samples_per_anchor if self.choose_best_only else None
        roles = {}
        for role, conditions in self.condition_mapping.items():
            rules = [self._rule(view, column, c) for column, c in conditions.items()]
            found = find_partners(rules, n, rng, best=best, show=self.show_progress)
            firm = [r for r in rules if not r.condition.allow_fallback]
            softens = best is None and len(firm) < len(rules)
            others = find_partners(firm, n, rng, show=self.show_progress) if softens else None
            roles[role] = _Role(rules, found, others)
        counts = [(own.others or own.matches).counts for own in roles.values()]
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
        self._found, self._anchors = roles, anchors

    def _rule(self, view: FeatureSetView, column: str, condition: SimilarityCondition) -> Rule:
        collection, rows = view.collection, view.valid_indices
        name = select_one(collection.schema, column)
        if collection.schema.mask_of(name) is not None:
            raise DataError(
                f"column {name!r} of {view.label!r} is padded, and padding would count in the "
                "distance of rows; compare rows by a column of one number a sample, such as an id "
                "or what you compute from the steps that hold data"
            )
        values: Array = collection.numpy(name)[rows]
        numeric = values.dtype.kind in "iuf"
        if values.dtype.kind == "f" and np.isinf(values).any():
            row = int(np.argwhere(np.isinf(values))[0, 0])
            raise DataError(
                f"column {name!r} of {view.label!r} holds an infinite value in row {row}, whose "
                "distance to other rows is no number; replace it, or leave the row out"
            )
        if values.dtype.kind in "iu" and condition.metric is None:  # no digit is lost
            values = values.astype(np.uint64) - values.min().astype(np.uint64)
        if condition.metric is not None or (numeric and values.ndim == 1):
            return Rule(condition, values, by_equality=False)
        if condition.tolerance > 0 and values.dtype.kind in "mM":
            raise ConfigError(
                f"tolerance={condition.tolerance:g} needs numbers, and column {name!r} holds "
                f"{values.dtype}; pass metric=, or a column of numbers"
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
    """Anchors and their pairs.

    Parameters
    ----------
    conditions : dict of str to SimilarityCondition
        By column; all must hold.
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
    """Anchors with a positive and a negative each.

    Parameters
    ----------
    pos_conditions, neg_conditions : dict of str to SimilarityCondition
        By column what relates positives, and negatives, to their anchor; all must hold.
    max_samples_per_anchor : int
    **kwargs
        See `NSampler`; the roles are ``anchor``, ``positive`` and ``negative``.

    Examples
    --------
    >>> alike = {"digit": SimilarityCondition()}
    >>> unlike = {"digit": SimilarityCondition("dissimilar")}
    >>> TripletSampler(alike, unlike, batch_size=32).roles
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


def _distinct(view: FeatureSetView) -> tuple[IntArray, IntArray]:
    """Return the number of each row's sample, and where each sample first stands."""
    of = require("pandas").factorize(view.valid_indices)[0]
    return of, np.unique(of, return_index=True)[1]


def _check(mapping: Any) -> None:
    """Refuse what is no mapping of roles and columns to conditions."""
    if not isinstance(mapping, Mapping) or not mapping:
        raise ConfigError(f"condition_mapping must be {{role: {{column: ...}}}}, got {mapping!r}")
    for role, own in mapping.items():
        sound = isinstance(own, Mapping) and own
        if not sound or not all(isinstance(c, SimilarityCondition) for c in own.values()):
            raise ConfigError(
                f"conditions of role {role!r} must map columns to SimilarityCondition, got {own!r}"
            )
        if role in (ANCHOR, DEFAULT) or not isinstance(role, str) or not role.isidentifier():
            raise ConfigError(
                f"a role must be a name other than 'anchor' and 'default', got {role!r}"
            )


for _cls in (NSampler, PairedSampler, TripletSampler):
    sampler_registry.register(_cls.__name__, _cls)
