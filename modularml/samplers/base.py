"""What a sampler is: an epoch's batches from (seed, epoch), as indices alone."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modularml._registry import Registry
from modularml._typing import Array, Columns, IntArray
from modularml.config import Configurable, Stateful
from modularml.data import FeatureSet, FeatureSetView
from modularml.data.selectors import as_list, select_one
from modularml.errors import ConfigError, DataError
from modularml.io.saveable import Saveable

__all__ = ["DEFAULT", "BaseSampler", "EpochBatches", "sampler_registry"]

DEFAULT = "default"


@dataclass(frozen=True)
class EpochBatches:
    """All batches of one epoch, behind one another.

    Parameters
    ----------
    rows : mapping of str to ndarray of int64, shape (n,)
        Positions within the sampled view, by role.
    bounds : ndarray of int64, shape (n_batches + 1,)
        Batch ``i`` is ``rows[bounds[i]:bounds[i + 1]]``.
    weights : mapping of str to ndarray, shape (n,), optional
        Weight of each row, by role.
    """

    rows: Mapping[str, IntArray]
    bounds: IntArray
    weights: Mapping[str, Array] | None = None

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return len(self.bounds) - 1

    @property
    def sizes(self) -> list[int]:
        """Rows in each batch."""
        sizes: list[int] = np.diff(self.bounds).tolist()
        return sizes

    def batch(self, i: int, role: str = DEFAULT) -> IntArray:
        """Return the positions of one batch."""
        return self.rows[role][self.bounds[i] : self.bounds[i + 1]]


class BaseSampler(Configurable, Stateful, Saveable, ABC):
    """Rows to batches of indices; nothing but indices is ever made.

    Parameters
    ----------
    batch_size : int
        Rows (or anchors) in a batch, at least 1.
    shuffle : bool
        Whether every epoch has an order of its own, given by (seed, epoch) alone.
    group_by : str or list of str, optional
        Columns whose equal rows may share a batch; rows of two groups never do.
    group_by_role, stratify_by_role : str
        Role that the columns are read for.
    stratify_by : str or list of str, optional
        Columns whose values are spread evenly over the batches.
    strict_stratification : bool
        Whether every stratum has the same share of every batch; rows that do not fit are
        dropped, and it is said how many. Otherwise strata keep their own proportions.
    drop_last : bool
        Whether a last batch that is not full is left out.
    seed : int, optional
        Drawn once where it is not given.
    show_progress : bool
        Whether a search for pairs shows a progress bar.
    sources : list, optional
        FeatureSets or views to sample when the sampler is used outside a phase.
    """

    artifact_kind = "sm"
    roles: tuple[str, ...] = (DEFAULT,)
    not_config = frozenset({"sources", "source"})

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
        sources: list[FeatureSet | FeatureSetView] | None = None,
    ) -> None:
        if (
            isinstance(batch_size, bool)
            or not isinstance(batch_size, int | np.integer)
            or batch_size < 1
        ):
            raise ConfigError(f"batch_size must be an int of at least 1, got {batch_size!r}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer)):
            raise ConfigError(f"seed must be an int or None, got {seed!r}")
        if group_by is not None and stratify_by is not None:
            raise ConfigError(
                "give group_by or stratify_by, not both: a batch of one group has no strata"
            )
        flags = {"shuffle": shuffle, "drop_last": drop_last}
        for name, flag in flags.items():
            if not isinstance(flag, bool | np.bool_):
                raise ConfigError(f"{name} must be True or False, got {flag!r}")
        self.batch_size, self.shuffle, self.drop_last = int(batch_size), shuffle, drop_last
        self.group_by, self.group_by_role = group_by, group_by_role
        self.stratify_by, self.stratify_by_role = stratify_by, stratify_by_role
        self.strict_stratification = strict_stratification
        self.seed, self.show_progress, self.sources = seed, show_progress, sources
        self.seed_ = secrets.randbits(63) if seed is None else int(seed)

    @abstractmethod
    def sample(self, view: FeatureSetView, epoch: int) -> EpochBatches:
        """Return the batches of an epoch over the rows of a view."""

    def epoch(self, view: FeatureSetView, epoch: int) -> EpochBatches:
        """Return the batches of an epoch, after checking that there are any.

        Raises
        ------
        DataError
            If the view is empty, or no batch is left of it.
        """
        if not len(view):
            raise DataError(
                f"split {view.label!r} of {view.source.label!r} is empty; nothing to sample"
            )
        batches = self.sample(view, epoch)
        if not batches.n_batches:
            raise DataError(
                f"no batch is left of the {len(view)} rows of {view.label!r} with batch_size="
                f"{self.batch_size} and drop_last={self.drop_last}; lower batch_size"
            )
        return batches

    def rng(self, epoch: int) -> np.random.Generator:
        """Return the generator of an epoch: counter-based, so any epoch stands alone.

        Philox with the key (seed, epoch) (Salmon et al. 2011, *Parallel random numbers: as easy
        as 1, 2, 3*).
        """
        return np.random.Generator(
            np.random.Philox(key=np.array([self.seed_ % 2**64, epoch], dtype=np.uint64))
        )

    def codes(self, view: FeatureSetView, columns: Columns) -> IntArray:
        """Return the number of each row's combination of values, from 0 in sorted order.

        Raises
        ------
        DataError
            If a column holds arrays.
        """
        collection, rows = view.collection, view.valid_indices
        codes = np.zeros(len(rows), dtype=np.int64)
        for selector in as_list(columns):
            own = collection.codes(select_one(collection.schema, selector))[rows]
            codes = _packed(codes * (own.max(initial=0) + 1) + own)
        return codes


def _packed(codes: IntArray) -> IntArray:
    """Close the gaps between numbers and keep their order."""
    if codes.max(initial=0) > 10 * len(codes):
        return np.unique(codes, return_inverse=True)[1].astype(np.int64)
    there = np.zeros(codes.max(initial=-1) + 1, dtype=bool)
    there[codes] = True
    found: IntArray = (np.cumsum(there) - 1)[codes]
    return found


def cut(
    lengths: Sequence[int] | IntArray, size: int, *, drop_last: bool
) -> tuple[IntArray, IntArray]:
    """Cut runs of rows into batches.

    Parameters
    ----------
    lengths : sequence of int
        Rows in each run; a batch never spans two runs.
    size : int
    drop_last : bool
        Whether a batch that is not full is left out.

    Returns
    -------
    starts, stops : ndarray of int64, shape (n_batches,)
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    counts = sizes // size if drop_last else -(-sizes // size)
    ends = np.cumsum(sizes)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(ends - sizes, counts) + place * size
    return starts, np.minimum(starts + size, np.repeat(ends, counts))


sampler_registry: Registry[type[BaseSampler]] = Registry("sampler")
