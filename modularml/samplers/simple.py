"""Batches of single rows."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from modularml._typing import Array, Columns, IntArray
from modularml.data.selectors import as_list, select_one
from modularml.data.view import FeatureSetView
from modularml.errors import DataError
from modularml.samplers.base import BaseSampler, check_known, sampler_registry
from modularml.samplers.batching import DEFAULT, EpochBatches


class SimpleSampler(BaseSampler):
    """Batches of every row once per epoch, or of rows drawn by weight.

    Parameters
    ----------
    weights : str, optional
        Column of non-negative numbers: an epoch then draws as many rows as there are, with
        replacement and probabilities proportional to the weights.
    balance_by : str or list of str, optional
        Columns to balance: rows are drawn with replacement so that every combination of values is
        equally likely; `weights` then apply within each combination.
    **kwargs
        See `BaseSampler`. Draws differ from epoch to epoch, even without `shuffle`.

    Examples
    --------
    >>> SimpleSampler(batch_size=32, shuffle=True, seed=0)
    SimpleSampler(batch_size=32, shuffle=True, seed=0)
    """

    takes_windows = True

    def __init__(
        self,
        *,
        weights: str | None = None,
        balance_by: Columns = None,
        **kwargs: Any,
    ) -> None:
        self.weights, self.balance_by = weights, balance_by
        super().__init__(**kwargs)

    def reads(self) -> list[str]:
        """Return the columns that determine the batches."""
        return [*super().reads(), *as_list(self.weights), *as_list(self.balance_by)]

    def sample(self, view: FeatureSetView, epoch: int) -> EpochBatches:
        """Return the batches of an epoch."""
        n = len(view)
        draws = self.weights is not None or self.balance_by is not None
        if not (draws or self.shuffle or self.stratify_by or self.group_by):
            # cached for moderate n, since every evaluation needs it
            rows = _cached_order(n) if n <= _MAX_CACHED else np.arange(n)
            batches = self.batches(view, {DEFAULT: rows})
            return EpochBatches(batches.rows, batches.bounds, in_order=True)
        rng = self.rng(epoch)
        if draws:
            rows = rng.choice(n, n, p=self._probabilities(view))
        elif self.shuffle:
            rows = self.shuffled(view, rng)
        else:
            rows = np.arange(n)
        return self.batches(view, {DEFAULT: rows}, rng)

    def _probabilities(self, view: FeatureSetView) -> Array:
        """Return the probability of each row to be drawn."""
        probabilities = np.ones(len(view))
        if self.weights is not None:
            name = select_one(view.collection.schema, self.weights)
            column = view.collection.numpy(name)
            is_numeric = column.ndim == 1 and column.dtype.kind in "biuf"
            if not is_numeric or not (np.isfinite(column) & (column >= 0)).all():
                raise DataError(f"weights: column {name!r} must hold finite numbers of at least 0")
            probabilities = column[view.valid_indices].astype(np.float64)
            probabilities /= probabilities.max() or 1.0  # avoids an infinite sum
        if self.balance_by is not None:
            for selector in as_list(self.balance_by):
                name = select_one(view.collection.schema, selector)
                check_known("balance_by", view, name)
            codes = self.codes(view, self.balance_by)
            sums = np.bincount(codes, probabilities)
            probabilities = np.divide(
                probabilities, sums[codes], out=probabilities, where=sums[codes] > 0
            )
        if not probabilities.any():
            raise DataError(
                f"weights: all weights of {view.label!r} are 0; at least one must be positive"
            )
        shares: Array = probabilities / probabilities.sum()
        return shares


@lru_cache(maxsize=4)
def _cached_order(n: int) -> IntArray:
    rows = np.arange(n)
    rows.flags.writeable = False
    return rows


_MAX_CACHED = 2**20

sampler_registry.register("SimpleSampler", SimpleSampler)
