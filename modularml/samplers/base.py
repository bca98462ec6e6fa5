"""Base class of samplers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from modularml._arguments import at_least, with_arguments_of
from modularml._registry import Registry
from modularml._typing import Array, Columns, IntArray
from modularml._warning import warn
from modularml.config import Configurable, Stateful
from modularml.data.batch import BatchView, SampledView
from modularml.data.featureset import FeatureSet
from modularml.data.selectors import as_list, select_one
from modularml.data.table_join import join, link_by, table_of
from modularml.data.view import FeatureSetView
from modularml.errors import ConfigError, DataError, UnknownNameError
from modularml.io.artifact import Saveable
from modularml.io.randomness import drawn_seed
from modularml.predicates.value_order import is_null
from modularml.samplers.batching import (
    DEFAULT,
    EpochBatches,
    by_groups,
    cut,
    in_windows,
    interleaved,
)
from modularml.splitters.base import check_bins
from modularml.splitters.dealing import binned


class BaseSampler(Configurable, Stateful, Saveable, ABC):
    """Turn rows into batches of indices, which follow from (seed, epoch) alone.

    A subclass whose constructor takes ``**kwargs`` must pass them on and has all arguments of this
    class. Each iteration yields one epoch of batches of `sources` as `BatchView`.

    Parameters
    ----------
    batch_size : int
        Rows (or anchors) per batch, at least 1.
    shuffle : bool
        Whether each epoch has its own order, determined by (seed, epoch) alone.
    group_by : str or list of str, optional
        Columns that define groups; a batch never holds rows of two groups.
    group_by_role, stratify_by_role : str
        Role whose rows the columns are read from.
    stratify_by : str or list of str, optional
        Columns whose values are distributed evenly over the batches.
    strict_stratification : bool
        Whether every stratum has the same share of every batch; surplus rows are dropped with a
        warning that counts them. Otherwise strata keep their own proportions.
    drop_last : bool
        Whether to drop an incomplete last batch.
    seed : int, optional
        At least 0. By default, a run derives it from the seed of its experiment, else from the
        global generator of torch (for a graph with torch nodes) or numpy; outside a run it is
        drawn once from the generator of numpy.
    show_progress : bool
        Whether to show a progress bar when searching for pairs.
    sources : list, optional
        FeatureSets or views to sample outside a phase; `source` is the only one.
    align_on : str or list of str, optional
        Key for sampling matching rows of several FeatureSets: columns or ``"sample_uuids"``, whose
        equal values match one to one or many to one, or ``"position"``, which matches rows by
        position. Rows without a match are omitted. In a phase, the references on the edges of the
        graph use this key unless they have their own: see `FeatureSet.reference`.
    bins : int, optional
        Number of bins, with about equally many rows, for numeric columns in `stratify_by` that
        have more distinct values; by default 10 for columns with fractions.
    shuffle_window : int, optional
        Rows that are shuffled together, at least 1, for data larger than memory: each page of
        their file is then read once an epoch. By default all rows are. A window takes its rows in
        blocks of 1024 consecutive rows, or of a 256th of the window if that is more, from anywhere
        in the data; the windows differ from epoch to epoch. Requires `shuffle` and a sampler that
        draws each row once, without `group_by` and `stratify_by`.

    Attributes
    ----------
    roles : tuple of str
        Roles of rows within a batch.
    gives_weights : bool
        Whether rows may carry weights, or be padding.
    takes_windows : bool
        Whether `sample` honours `shuffle_window`, as by `shuffled`.
    epoch_, batch_ : int
        Position of the iteration, 0-based: the epoch, and the number of batches yielded in it.
    """

    artifact_kind = "sm"
    roles: tuple[str, ...] = (DEFAULT,)
    gives_weights: bool = False
    takes_windows: bool = False
    not_config = frozenset({"sources", "source"})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        with_arguments_of(BaseSampler.__init__, cls.__init__)

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
        align_on: Columns = None,
        bins: int | None = None,
        shuffle_window: int | None = None,
        source: FeatureSet | FeatureSetView | None = None,
    ) -> None:
        at_least(1, batch_size=batch_size)
        at_least(0, seed=seed)
        if group_by is not None and stratify_by is not None:
            raise ConfigError(
                "pass group_by or stratify_by, not both: a batch of one group has no strata"
            )
        self.batch_size, self.shuffle, self.drop_last = int(batch_size), shuffle, drop_last
        self.group_by, self.group_by_role = group_by, group_by_role
        check_bins(bins, stratify_by, ConfigError)
        self.stratify_by, self.stratify_by_role, self.bins = stratify_by, stratify_by_role, bins
        self.strict_stratification = strict_stratification
        at_least(1, shuffle_window=shuffle_window)
        self.shuffle_window = shuffle_window
        self._check_window()
        for role in (group_by_role, stratify_by_role):
            if role not in (DEFAULT, *self.roles):
                raise UnknownNameError(f"role of {type(self).__name__}", role, self.roles)
        if source is not None and sources:
            raise ConfigError("pass source or sources, not both")
        sources = sources if source is None else [source]
        rows: Any = sources if isinstance(sources, list | tuple | None) else [None]
        if not all(isinstance(source, FeatureSet | FeatureSetView) for source in rows or ()):
            raise ConfigError(f"sources must be a list of FeatureSets or views, got {sources!r}")
        self.seed, self.show_progress = seed, show_progress
        self.sources, self.source, self.align_on = sources, source, align_on
        self.seed_ = drawn_seed() if seed is None else int(seed)
        self.epoch_ = self.batch_ = self._first = 0

    @abstractmethod
    def sample(self, view: FeatureSetView, epoch: int) -> EpochBatches:
        """Return the batches of an epoch over the rows of a view."""

    def reads(self) -> list[str]:
        """Return the columns that determine the batches."""
        return [*as_list(self.group_by), *as_list(self.stratify_by)]

    def epoch(self, view: FeatureSetView, epoch: int) -> EpochBatches:
        """Return the batches of an epoch, after checking that there are any.

        Raises
        ------
        DataError
            If the view is empty or yields no batch.
        """
        if not len(view):
            raise DataError(
                f"split {view.label!r} of {view.source.label!r} is empty; nothing to sample"
            )
        batches = self.sample(view, epoch)
        if batches.weights is not None and not self.gives_weights:
            raise ConfigError(
                f"{type(self).__name__} returns weights; set gives_weights = True on the class"
            )
        if not batches.n_batches:
            raise DataError(
                f"the {len(view)} rows of {view.label!r} make no batch with batch_size="
                f"{self.batch_size} and drop_last={self.drop_last}; lower batch_size"
            ).with_code("MML-502")
        return batches

    def rng(self, epoch: int) -> np.random.Generator:
        """Return the counter-based generator of an epoch, independent of other epochs.

        Philox with the key (seed, epoch) (Salmon et al. 2011, *Parallel random numbers: as easy
        as 1, 2, 3*).
        """
        return np.random.Generator(
            np.random.Philox(key=np.array([self.seed_ % 2**64, epoch], dtype=np.uint64))
        )

    def shuffled(self, view: FeatureSetView, rng: np.random.Generator) -> IntArray:
        """Return the positions of all rows of a view, shuffled within windows if there are any."""
        n = len(view)
        if self.shuffle_window is None or self.shuffle_window >= n:
            return rng.permutation(n)
        order, rows = in_windows(n, self.shuffle_window, rng), view.valid_indices
        is_sorted = (rows[1:] >= rows[:-1]).all()
        return order if is_sorted else np.argsort(rows, kind="stable")[order]

    def codes(self, view: FeatureSetView, columns: Columns) -> IntArray:
        """Return a code per row for its combination of values, from 0 in sorted order.

        Raises
        ------
        DataError
            If a column holds arrays.
        """
        collection, rows = view.collection, view.valid_indices
        names = [select_one(collection.schema, selector) for selector in as_list(columns)]
        return _combined([collection.codes(name)[rows] for name in names], len(rows))

    def batches(
        self,
        view: FeatureSetView,
        rows: Mapping[str, IntArray],
        rng: np.random.Generator | None = None,
        weights: Mapping[str, Array] | None = None,
    ) -> EpochBatches:
        """Cut rows of a view, in the order passed, into batches by the settings.

        With `group_by` and `shuffle`, `rng` shuffles the batches.
        """
        at: Any = slice(None)
        n = len(rows[self.roles[0]])
        if self.group_by is not None:
            codes = self.codes(view, self.group_by)[rows[self._role(self.group_by_role)]]
            shuffled = rng if self.shuffle else None
            at, bounds = by_groups(codes, self.batch_size, shuffled, drop_last=self.drop_last)
        else:
            if self.stratify_by is not None:
                codes = self._strata(view)[rows[self._role(self.stratify_by_role)]]
                at = interleaved(codes, strict=self.strict_stratification)
                n = len(at)
            starts, stops = cut([n], self.batch_size, drop_last=self.drop_last)
            bounds = np.append(starts, stops[-1:]) if len(starts) else np.zeros(1, dtype=np.int64)
            at = slice(bounds[-1]) if isinstance(at, slice) else at[: bounds[-1]]
        weights = None if weights is None else {role: w[at] for role, w in weights.items()}
        return EpochBatches({role: r[at] for role, r in rows.items()}, bounds, weights)

    # -- outside a phase ----------------------------------------------------------------------

    def views(self) -> list[FeatureSetView]:
        """Return the rows of `sources`, matched if there are several."""
        if not self.sources:
            raise ConfigError(
                f"{type(self).__name__} has nothing to sample; pass sources=[featureset], or use "
                "InputBinding.for_training(sampler=...)"
            )
        views = [source.to_view() for source in self.sources]
        if len(views) > 1 and self.align_on is None:
            raise ConfigError(
                "several sources require align_on=, the column that matches their rows"
            )
        if len(labels := {view.source.label for view in views}) < len(views):
            raise ConfigError(
                f"sources must be of different FeatureSets, got several of {sorted(labels)}; "
                "copy(label=...) one of them"
            )
        if self.align_on is None or len(views) == 1:
            return views
        tables = [table_of(view) for view in views]
        on = self.align_on, self.align_on
        joined = join(tables, [link_by(tables, (0, i), on) for i in range(1, len(views))])
        return [v.take(rows, label=v.label) for v, rows in zip(views, joined.rows, strict=True)]

    def materialize_batches(self, epoch: int = 0) -> SampledView:
        """Return the batches of `sources` as row numbers, in one stream per source."""
        views = self.views()
        readable = (v for v in views if all(table_of(v).has(name) for name in self.reads()))
        batches = self.epoch(next(readable, views[0]), epoch)
        names = [DEFAULT] if len(views) == 1 else [str(view.source.label) for view in views]
        return SampledView(
            {name: batch_views(batches, v) for name, v in zip(names, views, strict=True)}
        )

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of an epoch: a `BatchView`, or one per source by label.

        An interrupted epoch starts again in the next iteration, unless the state was restored;
        then it resumes at the stored position.
        """
        streams = self.materialize_batches(self.epoch_).streams
        first, self._first = self._first, 0
        for i in range(first, len(next(iter(streams.values())))):
            self.batch_ = i + 1
            by_source = {name: batches[i] for name, batches in streams.items()}
            yield by_source.get(DEFAULT, by_source)
        self.epoch_, self.batch_ = self.epoch_ + 1, 0

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore seed and position; the next iteration resumes there."""
        super().set_state(state)
        self._first = self.batch_

    def _check_window(self) -> None:
        """Refuse a window of rows where batches take rows from everywhere."""
        if self.shuffle_window is None:
            return
        if not self.shuffle:
            raise ConfigError(
                f"shuffle_window={self.shuffle_window} shuffles rows, so it requires shuffle=True; "
                "without shuffle, rows are read in their order"
            )
        problem = f"shuffle_window={self.shuffle_window} reads rows window by window, but "
        remedy = "; leave out shuffle_window, which shuffles all rows"
        if not self.takes_windows:
            name = type(self).__name__
            raise ConfigError(f"{problem}{name} draws its batches from all rows{remedy}")
        for name in ("group_by", "stratify_by", "weights", "balance_by"):
            if getattr(self, name, None) is not None:
                raise ConfigError(f"{problem}{name} draws each batch from all rows{remedy}")

    def _role(self, role: str) -> str:
        return self.roles[0] if role == DEFAULT else role

    def _strata(self, view: FeatureSetView) -> IntArray:
        """Return the stratum of each row of a view, with continuous columns in bins."""
        collection, rows = view.collection, view.valid_indices
        parts = []
        for selector in as_list(self.stratify_by):
            name = select_one(collection.schema, selector)
            check_known("stratify_by", view, name)
            bins = binned(collection.numpy(name)[rows], self.bins)
            parts.append(collection.codes(name)[rows] if bins is None else bins[0])
        codes = _combined(parts, len(rows))
        n_strata = int(codes.max(initial=-1)) + 1
        if n_strata > max(self.batch_size, len(rows) // 2):
            warn(
                f"stratify_by={self.stratify_by!r} makes {n_strata} strata of {len(rows)} rows, "
                "most with one row, which batches cannot share; cut numbers into bins with bins=, "
                "or merge rare classes"
            )
        return codes


def check_known(argument: str, view: FeatureSetView, name: str) -> None:
    """Refuse a column of classes with missing values."""
    if n_missing := int(is_null(view.collection.numpy(name)[view.valid_indices]).sum()):
        raise DataError(
            f"{argument}: column {name!r} of {view.label!r} has {n_missing} missing value(s), "
            "which are not a class; fill them or remove these rows"
        )


def _combined(parts: list[IntArray], n: int) -> IntArray:
    """Return one code per row for its combination of codes."""
    codes = np.zeros(n, dtype=np.int64)
    for part in parts:
        codes = codes * (part.max(initial=0) + 1) + part
        # renumbered without gaps in the same order
        if codes.max(initial=0) > 10 * n:
            codes = np.unique(codes, return_inverse=True)[1].astype(np.int64)
        else:
            is_present = np.zeros(codes.max(initial=-1) + 1, dtype=bool)
            is_present[codes] = True
            codes = (np.cumsum(is_present) - 1)[codes]
    return codes


def batch_views(
    batches: EpochBatches, view: FeatureSetView, stream: str = DEFAULT
) -> list[BatchView]:
    """Return batches as row numbers of a view, with their weights."""
    batches = batches.stream(stream)
    indices = view.valid_indices
    rows = {role: np.where(at < 0, -1, indices[at]) for role, at in batches.rows.items()}
    ends = batches.bounds[1:-1]
    parts = {role: np.split(r, ends) for role, r in rows.items()}
    weights = {role: np.split(w, ends) for role, w in (batches.weights or {}).items()}
    return [
        BatchView(
            view,
            {role: part[i] for role, part in parts.items()},
            {role: part[i] for role, part in weights.items()},
        )
        for i in range(batches.n_batches)
    ]


sampler_registry: Registry[type[BaseSampler]] = Registry("sampler")
