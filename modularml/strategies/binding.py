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
from modularml.splitters.base import key_list

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
    ) -> None:
        found: Any = fs
        if isinstance(fs, str):
            found = ExperimentContext.get_active().get_node(fs, enforce_type="FeatureSet")
        if not isinstance(found, FeatureSet):
            raise ConfigError(f"fs must be a FeatureSet, its label or id, got {fs!r}")
        if train_split_name == val_split_name:
            raise ConfigError(f"both sides of a fold cannot be called {val_split_name!r}")
        if val_size is not None and not 0 < val_size < 1:
            raise ConfigError(f"val_size must lie between 0 and 1, got {val_size!r}")
        self.featureset, self.source_splits = found, as_list(source_splits)
        self.group_by, self.stratify_by, self.val_size = group_by, stratify_by, val_size
        self.train_split_name, self.val_split_name = train_split_name, val_split_name
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
        shown = {"group_by": self.group_by, "stratify_by": self.stratify_by}
        told = "".join(f", {name}={keys!r}" for name, keys in shown.items() if keys is not None)
        return f"CVBinding({self.featureset.label!r}, {self.source_splits}{told})"
