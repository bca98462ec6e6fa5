"""How one FeatureSet takes part in a cross-validation."""

from __future__ import annotations

from typing import Any

import numpy as np

from modularml._arguments import Checked
from modularml._typing import Columns
from modularml.context import ExperimentContext
from modularml.data import FeatureSet, FeatureSetView
from modularml.data.selectors import as_list, select_one
from modularml.errors import ConfigError
from modularml.splitters.base import check_bins, key_list

__all__ = ["CVBinding"]


class CVBinding(Checked):
    """Which rows of a FeatureSet are cut into folds, by what, and how the parts are named.

    Parameters
    ----------
    fs : FeatureSet or str
        The set, its label or id.
    source_splits : list of str
        Splits whose rows make the pool; a row in several of them counts once.
    group_by : str or list of str, optional
        Rows that agree in these columns are never on both sides of a fold.
    stratify_by : str or list of str, optional
        Folds keep the proportions of these columns, as far as groups allow.
    train_split_name, val_split_name : str
        What the two sides of each fold are called there; splits of these names are replaced
        within the fold, all others stay.
    val_size : float, optional
        Share of the pool that each fold validates on; ``1 / n_folds`` where none is given.
        What no fold validates on is trained on in all of them.
    stop_size : float, optional
        Share of each fold's training rows that is held back, by the same groups and strata (the
        latest rows, where a `TimeSeriesSplitter` makes the folds), for what chooses while it
        trains: early stopping and learning-rate schedules. Where these watch a metric of an
        `Evaluation` on the validation split, they watch the same metric of the rows held back,
        which is logged as ``stop_val_loss`` and so on. Scalers are not fitted on these rows.
    stop_split_name : str
        What the rows held back are called in each fold.
    bins : int, optional
        Bins for `stratify_by`; see `KFoldSplitter`.

    Raises
    ------
    UnknownNameError
        If there is no such FeatureSet, split or column.
    ConfigError
        If another argument cannot be used.
    """

    def __init__(
        self,
        fs: str | FeatureSet,
        source_splits: str | list[str],
        *,
        group_by: Columns = None,
        stratify_by: Columns = None,
        train_split_name: str = "train",
        val_split_name: str = "val",
        val_size: float | None = None,
        stop_size: float | None = None,
        stop_split_name: str = "stop",
        bins: int | None = None,
    ) -> None:
        found: Any = fs
        if isinstance(fs, str):
            found = ExperimentContext.get_active().get_node(fs, enforce_type="FeatureSet")
        if not isinstance(found, FeatureSet):
            raise ConfigError(f"fs must be a FeatureSet, its label or id, got {fs!r}")
        names = [train_split_name, val_split_name, *[stop_split_name] * (stop_size is not None)]
        if len(set(names)) < len(names):
            raise ConfigError(f"the parts of a fold need names of their own, got {names}")
        for name, size in (("val_size", val_size), ("stop_size", stop_size)):
            if size is not None and not 0 < size < 1:
                raise ConfigError(f"{name} must lie between 0 and 1, got {size!r}")
        check_bins(bins, stratify_by, ConfigError)
        self.featureset, self.source_splits = found, as_list(source_splits)
        self.group_by, self.stratify_by, self.val_size = group_by, stratify_by, val_size
        self.train_split_name, self.val_split_name = train_split_name, val_split_name
        self.stop_size, self.stop_split_name, self.bins = stop_size, stop_split_name, bins
        if not len(self.pool()):
            raise ConfigError(f"source_splits {self.source_splits} of {found.label!r} hold no rows")
        for key in key_list(group_by, stratify_by):
            select_one(found.collection.schema, key)

    def pool(self) -> FeatureSetView:
        """Return the rows that are cut into folds, in the order of the FeatureSet."""
        fs = self.featureset
        rows = [fs.get_split(name).valid_indices for name in self.source_splits]
        return fs.take(np.unique(np.concatenate([np.empty(0, dtype=np.int64), *rows])), "pool")

    def __repr__(self) -> str:
        names = ("group_by", "stratify_by", "stop_size")
        shown = {name: getattr(self, name) for name in names}
        told = "".join(f", {name}={keys!r}" for name, keys in shown.items() if keys is not None)
        return f"CVBinding({self.featureset.label!r}, {self.source_splits}{told})"
