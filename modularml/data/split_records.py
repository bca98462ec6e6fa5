"""Records of splits, and the splitters that make them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from modularml._typing import IntArray
from modularml.errors import SplitError
from modularml.splitters import BaseSplitter, KFoldSplitter, RandomSplitter

__all__ = ["SplitRecord", "check_split_name", "with_series"]


@dataclass(frozen=True)
class SplitRecord:
    """A record of a split: the splitter, its input rows and the names of the parts.

    Parameters
    ----------
    splitter : BaseSplitter
    names : tuple of str
    source : str or None
        Name of the split that was split; None for all rows or an unnamed view.
    rows : ndarray of int64, shape (n,), or None
        Input rows; None for all.
    """

    splitter: BaseSplitter
    names: tuple[str, ...]
    source: str | None = None
    rows: IntArray | None = field(default=None, repr=False, compare=False)


def with_series(splitter: Any, keys: list[str]) -> Any:
    """Return a random splitter that keeps these columns together, unless it has groups."""
    is_random = isinstance(splitter, RandomSplitter | KFoldSplitter)
    if not (keys and is_random and splitter.group_by is None):
        return splitter
    return type(splitter).from_config({**splitter.get_config(), "group_by": list(keys)})


def check_split_name(name: str, taken: Iterable[str]) -> None:
    """Refuse a split name that is taken or empty."""
    if not isinstance(name, str) or not name:
        raise SplitError(f"split name must be a non-empty string, got {name!r}")
    if name in taken:
        raise SplitError(
            f"split name {name!r} is taken; choose another, or call clear_splits() first"
        ).with_code("MML-203")
