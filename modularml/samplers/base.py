"""What a sampler is: an epoch's batches from (seed, epoch), as indices alone."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from modularml._arguments import at_least
from modularml._registry import Registry
from modularml._typing import Array, Columns, IntArray
from modularml._warning import warn
from modularml.config import Configurable, Stateful
from modularml.data import BatchView, FeatureSet, FeatureSetView, SampledView
from modularml.data.joining import join, link_by, table_of
from modularml.data.selectors import as_list, select_one
from modularml.errors import ConfigError, DataError, UnknownNameError
from modularml.io.randomness import drawn_seed
from modularml.io.saveable import Saveable
from modularml.predicates.compare import is_null
from modularml.samplers.arranging import by_groups, interleaved
from modularml.samplers.epoch import DEFAULT, EpochBatches, cut
from modularml.splitters.base import check_bins
from modularml.splitters.strata import binned

__all__ = ["BaseSampler", "check_known", "sampler_registry"]


class BaseSampler(Configurable, Stateful, Saveable, ABC):
    """Rows to batches of indices; nothing but indices is ever made.

    A subclass whose constructor takes ``**kwargs`` passes them on and has all arguments of this
    one. Iterating gives the batches of `sources` as `BatchView`, each time a new epoch.

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
        At least 0. Where it is not given, a run takes it from the seed of its experiment, or else
        from the global generator of torch (for a graph with torch nodes) or numpy; elsewhere it is
        drawn once from numpy's.
    show_progress : bool
        Whether a search for pairs shows a progress bar.
    sources : list, optional
        FeatureSets or views to sample when the sampler is used outside a phase.
    align_on : str or list of str, optional
        Sample several FeatureSets in step, a row of each: the columns, or ``"sample_uuids"``,
        whose equal values belong together, one to one or many to one; ``"position"`` pairs rows by
        their places. Rows without a partner are left out. In a phase the edges of the graph keep
        this key: see `FeatureSet.reference`, which can name it itself.
    bins : int, optional
        Columns of numbers in `stratify_by` with more distinct values are cut into so many bins of
        about equally many rows; columns of fractions into 10 where it is not given.

    Attributes
    ----------
    roles : tuple of str
        Who a row can be within a batch.
    gives_weights : bool
        Whether rows may carry weights, or be padding.
    epoch_, batch_ : int
        Position of the iteration, 0-based: epoch, and batches given of it.
    """

    artifact_kind = "sm"
    roles: tuple[str, ...] = (DEFAULT,)
    gives_weights: bool = False
    not_config = frozenset({"sources", "source"})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own, every = (inspect.signature(c.__init__) for c in (cls, BaseSampler))
        named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        if len(named) < len(own.parameters):
            rest = [p for name, p in every.parameters.items() if name not in own.parameters]
            cls.__init__.__signature__ = own.replace(parameters=[*named, *rest])  # type: ignore[attr-defined]

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
    ) -> None:
        at_least(1, batch_size=batch_size)
        at_least(0, seed=seed)
        if group_by is not None and stratify_by is not None:
            raise ConfigError(
                "give group_by or stratify_by, not both: a batch of one group has no strata"
            )
        self.batch_size, self.shuffle, self.drop_last = int(batch_size), shuffle, drop_last
        self.group_by, self.group_by_role = group_by, group_by_role
        check_bins(bins, stratify_by, ConfigError)
        self.stratify_by, self.stratify_by_role, self.bins = stratify_by, stratify_by_role, bins
        self.strict_stratification = strict_stratification
        for role in (group_by_role, stratify_by_role):
            if role not in (DEFAULT, *self.roles):
                raise UnknownNameError(f"role of {type(self).__name__}", role, self.roles)
        rows: Any = sources if isinstance(sources, list | tuple | None) else [None]
        if not all(isinstance(source, FeatureSet | FeatureSetView) for source in rows or ()):
            raise ConfigError(f"sources must be a list of FeatureSets or views, got {sources!r}")
        self.seed, self.show_progress = seed, show_progress
        self.sources, self.align_on = sources, align_on
        self.seed_ = drawn_seed() if seed is None else int(seed)
        self.epoch_ = self.batch_ = self._first = 0

    @abstractmethod
    def sample(self, view: FeatureSetView, epoch: int) -> EpochBatches:
        """Return the batches of an epoch over the rows of a view."""

    def reads(self) -> list[str]:
        """Return the columns that decide about batches."""
        return [*as_list(self.group_by), *as_list(self.stratify_by)]

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
        if batches.weights is not None and not self.gives_weights:
            raise ConfigError(
                f"{type(self).__name__} gives weights; set gives_weights = True on the class"
            )
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
        names = [select_one(collection.schema, selector) for selector in as_list(columns)]
        return _combined([collection.codes(name)[rows] for name in names], len(rows))

    def batches(
        self,
        view: FeatureSetView,
        rows: Mapping[str, IntArray],
        rng: np.random.Generator | None = None,
        weights: Mapping[str, Array] | None = None,
    ) -> EpochBatches:
        """Cut rows of a view, each role in the order given, into batches as asked for.

        Batches of groups are put into an order by `rng` where `shuffle` is set.
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
        found = None if weights is None else {role: w[at] for role, w in weights.items()}
        return EpochBatches({role: own[at] for role, own in rows.items()}, bounds, found)

    # -- outside a phase ----------------------------------------------------------------------

    def views(self) -> list[FeatureSetView]:
        """Return the rows of `sources`, side by side where they are several."""
        if not self.sources:
            raise ConfigError(
                f"{type(self).__name__} has nothing to sample; pass sources=[featureset], or bind "
                "it with InputBinding.for_training(sampler=...)"
            )
        views = [source.to_view() for source in self.sources]
        if len(views) > 1 and self.align_on is None:
            raise ConfigError("several sources need align_on=, the column that relates their rows")
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
        """Return the batches of `sources` as row numbers: one stream, or one a source by label."""
        views = self.views()
        able = (v for v in views if all(table_of(v).has(name) for name in self.reads()))
        batches = self.epoch(next(able, views[0]), epoch)
        names = [DEFAULT] if len(views) == 1 else [str(view.source.label) for view in views]
        return SampledView(
            {name: batch_views(batches, v) for name, v in zip(names, views, strict=True)}
        )

    def __iter__(self) -> Iterator[Any]:
        """Give the batches of an epoch: a `BatchView`, or one for each source by label.

        An epoch that was left early begins again the next time; one whose state was restored
        goes on where it was.
        """
        streams = self.materialize_batches(self.epoch_).streams
        first, self._first = self._first, 0
        for i in range(first, len(next(iter(streams.values())))):
            self.batch_ = i + 1
            found = {name: batches[i] for name, batches in streams.items()}
            yield found.get(DEFAULT, found)
        self.epoch_, self.batch_ = self.epoch_ + 1, 0

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over seed and position; the next iteration goes on from there."""
        super().set_state(state)
        self._first = self.batch_

    def _role(self, role: str) -> str:
        return self.roles[0] if role == DEFAULT else role

    def _strata(self, view: FeatureSetView) -> IntArray:
        """Return the stratum of each row of a view; those of continuous columns are bins."""
        collection, rows = view.collection, view.valid_indices
        parts = []
        for selector in as_list(self.stratify_by):
            name = select_one(collection.schema, selector)
            check_known("stratify_by", view, name)
            cut = binned(collection.numpy(name)[rows], self.bins)
            parts.append(collection.codes(name)[rows] if cut is None else cut[0])
        codes = _combined(parts, len(rows))
        strata = int(codes.max(initial=-1)) + 1
        if strata > max(self.batch_size, len(rows) // 2):
            warn(
                f"stratify_by={self.stratify_by!r} makes {strata} strata of {len(rows)} rows, most "
                "of one row, which batches cannot share; cut numbers into bins with bins=, or "
                "merge rare classes"
            )
        return codes


def check_known(argument: str, view: FeatureSetView, name: str) -> None:
    """Refuse a column of classes with missing values."""
    if lacking := int(is_null(view.collection.numpy(name)[view.valid_indices]).sum()):
        raise DataError(
            f"{argument}: column {name!r} of {view.label!r} has {lacking} missing value(s), which "
            "are no class; fill them, or leave these rows out"
        )


def _combined(parts: list[IntArray], n: int) -> IntArray:
    """Return the number of each row's combination of codes."""
    codes = np.zeros(n, dtype=np.int64)
    for own in parts:
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


def batch_views(
    batches: EpochBatches, view: FeatureSetView, stream: str = DEFAULT
) -> list[BatchView]:
    """Return batches as row numbers of a view, with the weights of the rows."""
    own = batches.stream(stream)
    every = view.valid_indices
    rows = {role: np.where(at < 0, -1, every[at]) for role, at in own.rows.items()}
    ends = own.bounds[1:-1]
    parts = {role: np.split(found, ends) for role, found in rows.items()}
    weights = {role: np.split(w, ends) for role, w in (own.weights or {}).items()}
    return [
        BatchView(
            view,
            {role: found[i] for role, found in parts.items()},
            {role: found[i] for role, found in weights.items()},
        )
        for i in range(own.n_batches)
    ]


sampler_registry: Registry[type[BaseSampler]] = Registry("sampler")
