"""Splitters, which assign rows to splits as arrays of row numbers."""

from modularml._registry import Registry
from modularml.splitters.base import (
    BaseSplitter,
    SplitOverlapWarning,
    SplitRatioWarning,
    StrataWarning,
)
from modularml.splitters.condition import ConditionSplitter
from modularml.splitters.folds import (
    FoldSplitter,
    KFoldSplitter,
    LeaveOneGroupOutSplitter,
    ScikitSplitter,
)
from modularml.splitters.random import RandomSplitter
from modularml.splitters.time_series import TimeSeriesSplitter

__all__ = [
    "BaseSplitter",
    "ConditionSplitter",
    "FoldSplitter",
    "KFoldSplitter",
    "LeaveOneGroupOutSplitter",
    "RandomSplitter",
    "ScikitSplitter",
    "SplitOverlapWarning",
    "SplitRatioWarning",
    "StrataWarning",
    "TimeSeriesSplitter",
    "splitter_registry",
]

splitter_registry: Registry[type[BaseSplitter]] = Registry(
    "splitter",
    {
        splitter.__name__: splitter
        for splitter in (
            RandomSplitter,
            ConditionSplitter,
            KFoldSplitter,
            TimeSeriesSplitter,
            LeaveOneGroupOutSplitter,
        )
    },
)
"""Splitters by name; add one with ``register(name, cls)``."""
