"""Batches of single rows."""

from __future__ import annotations

import warnings

import numpy as np

from modularml._typing import Array, Columns, IntArray
from modularml.data import FeatureSet, FeatureSetView
from modularml.samplers.base import DEFAULT, BaseSampler, EpochBatches, cut, sampler_registry

__all__ = ["SimpleSampler"]


class SimpleSampler(BaseSampler):
    """Every row once an epoch, in batches.

    Parameters
    ----------
    batch_size, shuffle, group_by, group_by_role, stratify_by, stratify_by_role, \
strict_stratification, drop_last, seed, show_progress
        See `BaseSampler`.
    source : FeatureSet or FeatureSetView, optional
        What to sample when the sampler is used outside a phase.

    Examples
    --------
    >>> SimpleSampler(batch_size=32, shuffle=True, seed=0)
    SimpleSampler(batch_size=32, shuffle=True, seed=0)
    """

    def __init__(
        self,
        *,
        batch_size: int = 1,
        shuffle: bool = False,
        group_by: Columns = None,
        group_by_role: str = DEFAULT,
        stratify_by: Columns = None,
        stratify_by_role: str = DEFAULT,
        strict_stratification: bool = True,
        drop_last: bool = False,
        seed: int | None = None,
        show_progress: bool = True,
        source: FeatureSet | FeatureSetView | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            shuffle=shuffle,
            group_by=group_by,
            group_by_role=group_by_role,
            stratify_by=stratify_by,
            stratify_by_role=stratify_by_role,
            strict_stratification=strict_stratification,
            drop_last=drop_last,
            seed=seed,
            show_progress=show_progress,
            sources=None if source is None else [source],
        )

    def sample(self, view: FeatureSetView, epoch: int) -> EpochBatches:
        """Return the batches of an epoch."""
        n = len(view)
        rng = self.rng(epoch)
        order = rng.permutation(n) if self.shuffle else np.arange(n)
        if self.group_by is not None:
            codes = self.codes(view, self.group_by)
            order = order[np.argsort(_small(codes[order]), kind="stable")]
            starts, stops = cut(np.bincount(codes), self.batch_size, drop_last=self.drop_last)
            return _in_order(order, starts, stops, rng if self.shuffle else None)
        if self.stratify_by is not None:
            order = self._interleave(order, self.codes(view, self.stratify_by))
        starts, stops = cut([len(order)], self.batch_size, drop_last=self.drop_last)
        bounds = np.append(starts, stops[-1:]) if len(starts) else np.zeros(1, dtype=np.int64)
        return EpochBatches({DEFAULT: order[: bounds[-1]]}, bounds)

    def _interleave(self, order: IntArray, codes: IntArray) -> IntArray:
        """Order rows so that every stretch of them holds every stratum."""
        own = codes[order]
        counts = np.bincount(own)
        by_stratum = np.argsort(_small(own), kind="stable")
        starts = np.cumsum(counts) - counts
        rank = np.empty(len(own), dtype=np.int64)
        rank[by_stratum] = np.arange(len(own)) - np.repeat(starts, counts)
        if not self.strict_stratification:
            share = (rank + 0.5) / counts[own]
            return order[np.lexsort((own, share))]
        fewest = int(counts.min())
        dropped = len(own) - fewest * len(counts)
        if dropped:
            warnings.warn(
                f"strict stratification drops {dropped} of {len(own)} rows: the smallest stratum "
                f"has {fewest}; pass strict_stratification=False to keep them",
                UserWarning,
                stacklevel=5,
            )
        kept = rank < fewest
        found = np.empty(fewest * len(counts), dtype=np.int64)
        found[rank[kept] * len(counts) + own[kept]] = order[kept]
        return found


def _small(codes: IntArray) -> Array:
    """Return codes in the fewest bytes; short integers are sorted by radix."""
    return codes.astype(np.min_scalar_type(int(codes.max(initial=0))), copy=False)


def _in_order(
    order: IntArray, starts: IntArray, stops: IntArray, rng: np.random.Generator | None
) -> EpochBatches:
    """Put batches behind one another, in an order of their own where there is a generator."""
    places = np.arange(len(starts)) if rng is None else rng.permutation(len(starts))
    sizes = (stops - starts)[places]
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    rows = np.arange(bounds[-1]) + np.repeat(starts[places] - bounds[:-1], sizes)
    return EpochBatches({DEFAULT: order[rows]}, bounds)


sampler_registry.register("SimpleSampler", SimpleSampler)
