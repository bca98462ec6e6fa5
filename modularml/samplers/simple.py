"""Batches of single rows."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from modularml._typing import Array, Columns, IntArray
from modularml.data import FeatureSet, FeatureSetView
from modularml.data.selectors import as_list, select_one
from modularml.errors import ConfigError, DataError
from modularml.samplers.base import BaseSampler, check_known, sampler_registry
from modularml.samplers.epoch import DEFAULT, EpochBatches

__all__ = ["SimpleSampler"]


class SimpleSampler(BaseSampler):
    """Every row once an epoch, or rows drawn by weight, in batches.

    Parameters
    ----------
    weights : str, optional
        Column of numbers that are not negative: an epoch then is as many draws as there are rows,
        with replacement, each row as likely as its weight says.
    balance_by : str or list of str, optional
        Columns: rows are drawn with replacement so that every combination of values is equally
        likely; `weights`, where given too, decide within each.
    source : FeatureSet or FeatureSetView, optional
        What to sample when the sampler is used outside a phase.
    **kwargs
        See `BaseSampler`. Draws differ from epoch to epoch, whatever `shuffle` says.

    Examples
    --------
    >>> SimpleSampler(batch_size=32, shuffle=True, seed=0)
    SimpleSampler(batch_size=32, shuffle=True, seed=0)
    """

    def __init__(
        self,
        *,
        weights: str | None = None,
        balance_by: Columns = None,
        source: FeatureSet | FeatureSetView | None = None,
        **kwargs: Any,
    ) -> None:
        if source is not None:
            if kwargs.get("sources"):
                raise ConfigError("give source or sources, not both")
            kwargs["sources"] = [source]
        super().__init__(**kwargs)
        self.weights, self.balance_by, self.source = weights, balance_by, source

    def reads(self) -> list[str]:
        """Return the columns that decide about batches."""
        return [*super().reads(), *as_list(self.weights), *as_list(self.balance_by)]

    def sample(self, view: FeatureSetView, epoch: int) -> EpochBatches:
        """Return the batches of an epoch."""
        n = len(view)
        drawn = self.weights is not None or self.balance_by is not None
        if not (drawn or self.shuffle or self.stratify_by or self.group_by):
            cut = self.batches(view, {DEFAULT: _order(n)})
            return EpochBatches(cut.rows, cut.bounds, in_order=True)
        rng = self.rng(epoch)
        rows = np.arange(n)
        if drawn:
            rows = rng.choice(n, n, p=self._chances(view))
        elif self.shuffle:
            rows = rng.permutation(n)
        return self.batches(view, {DEFAULT: rows}, rng)

    def _chances(self, view: FeatureSetView) -> Array:
        """Return how likely each row is to be drawn."""
        chances = np.ones(len(view))
        if self.weights is not None:
            name = select_one(view.collection.schema, self.weights)
            column = view.collection.numpy(name)
            numbers = column.ndim == 1 and column.dtype.kind in "biuf"
            if not numbers or not (np.isfinite(column) & (column >= 0)).all():
                raise DataError(f"weights: column {name!r} must hold numbers of at least 0")
            chances = column[view.valid_indices].astype(np.float64)
            chances /= chances.max() or 1.0  # so that no sum of them is infinite
        if self.balance_by is not None:
            for selector in as_list(self.balance_by):
                name = select_one(view.collection.schema, selector)
                check_known("balance_by", view, name)
            codes = self.codes(view, self.balance_by)
            sums = np.bincount(codes, chances)
            chances = np.divide(chances, sums[codes], out=chances, where=sums[codes] > 0)
        if not chances.any():
            raise DataError(f"weights: every row of {view.label!r} weighs 0")
        shares: Array = chances / chances.sum()
        return shares


def _order(n: int) -> IntArray:
    """Return 0 to n - 1; kept, where they are not too many, as each evaluation asks for them."""
    return _kept_order(n) if n <= _MOST_KEPT else np.arange(n)


@lru_cache(maxsize=4)
def _kept_order(n: int) -> IntArray:
    rows = np.arange(n)
    rows.flags.writeable = False
    return rows


_MOST_KEPT = 2**20

sampler_registry.register("SimpleSampler", SimpleSampler)
