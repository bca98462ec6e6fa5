"""Bindings of FeatureSets to a cross-validation."""

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
    """Which rows of a FeatureSet are split into folds, how, and the split names.

    Parameters
    ----------
    fs : FeatureSet or str
        The FeatureSet, its label or id.
    source_splits : list of str
        Splits whose rows form the pool; a row in several of them counts once.
    group_by : str or list of str, optional
        Rows with equal values in these columns are never on both sides of a fold; by default
        the windows of one series, if the rows are windows.
    stratify_by : str or list of str, optional
        Folds preserve the proportions of these columns, as far as groups allow.
    train_split_name, val_split_name : str
        Names of the two sides of each fold; splits with these names are replaced within the fold,
        others are unchanged.
    val_size : float, optional
        Share of the pool that each fold validates on; by default ``1 / n_folds``. Rows that no fold
        validates on are trained on in all folds.
    stop_size : float, optional
        Share of each fold's training rows that is held out, by the same groups and strata (the
        latest rows with a `TimeSeriesSplitter`), for early stopping and learning-rate schedules. If
        these monitor a metric of an `Evaluation` on the validation split, they monitor the same
        metric on the held-out rows instead, logged as ``stop_val_loss`` and so on. Scalers are not
        fitted on these rows.
    stop_split_name : str
        Name of the split of these rows in each fold.
    bins : int, optional
        Number of bins for `stratify_by`; see `KFoldSplitter`.

    Raises
    ------
    UnknownNameError
        If there is no such FeatureSet, split or column.
    ConfigError
        If another argument is not as described.

    Examples
    --------
    >>> from modularml import FeatureSet
    >>> rows = {"x": [1.0, 2.0], "y": [1.0, 2.0], "cell": ["a", "b"]}
    >>> fs = FeatureSet.from_dict("rows", rows, "x", "y", "cell", register=False)
    >>> fs.split_random({"train": 0.5, "val": 0.5})
    >>> CVBinding(fs, ["train", "val"], group_by="cell").group_by
    'cell'
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
        featureset: Any = fs
        if isinstance(fs, str):
            featureset = ExperimentContext.get_active().get_node(fs, enforce_type="FeatureSet")
        if not isinstance(featureset, FeatureSet):
            raise ConfigError(f"fs must be a FeatureSet, its label or id, got {fs!r}")
        names = [train_split_name, val_split_name, *[stop_split_name] * (stop_size is not None)]
        if len(set(names)) < len(names):
            raise ConfigError(f"the splits of a fold need distinct names, got {names}")
        for name, size in (("val_size", val_size), ("stop_size", stop_size)):
            if size is not None and not 0 < size < 1:
                raise ConfigError(f"{name} must be between 0 and 1, exclusive, got {size!r}")
        check_bins(bins, stratify_by, ConfigError)
        self.featureset, self.source_splits = featureset, as_list(source_splits)
        self.group_by, self.stratify_by, self.val_size = group_by, stratify_by, val_size
        self.train_split_name, self.val_split_name = train_split_name, val_split_name
        self.stop_size, self.stop_split_name, self.bins = stop_size, stop_split_name, bins
        if not len(self.pool()):
            raise ConfigError(
                f"source_splits {self.source_splits} of {featureset.label!r} hold no rows"
            )
        for key in key_list(group_by, stratify_by):
            select_one(featureset.collection.schema, key)

    @property
    def groups(self) -> Columns:
        """Columns of `group_by`; by default the series of windows."""
        return self.group_by or self.featureset.kept_together or None

    def pool(self) -> FeatureSetView:
        """Return the rows that are split into folds, in the order of the FeatureSet."""
        fs = self.featureset
        rows = [fs.get_split(name).valid_indices for name in self.source_splits]
        return fs.take(np.unique(np.concatenate([np.empty(0, dtype=np.int64), *rows])), "pool")

    def __repr__(self) -> str:
        names = ("group_by", "stratify_by", "stop_size")
        shown = {name: getattr(self, name) for name in names}
        options = "".join(f", {name}={keys!r}" for name, keys in shown.items() if keys is not None)
        return f"CVBinding({self.featureset.label!r}, {self.source_splits}{options})"
