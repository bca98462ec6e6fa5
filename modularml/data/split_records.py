"""Records of how rows were split, and of rows that were left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from modularml._typing import IntArray
from modularml.data.ids import IdArray, id_texts
from modularml.errors import ConfigError, SplitError
from modularml.splitters import BaseSplitter, KFoldSplitter, RandomSplitter


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


@dataclass(frozen=True, eq=False)
class DroppedRows:
    """Rows left out for one reason.

    Parameters
    ----------
    reason : str
    ids : ndarray of void, shape (n,)
        Sample ids of 16 bytes.
    """

    reason: str
    ids: IdArray

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str) or not self.reason.strip():
            raise ConfigError(f"reason must say why rows are dropped, got {self.reason!r}")

    @property
    def sample_uuids(self) -> list[str]:
        """Sample ids as UUID text."""
        texts: list[str] = id_texts(self.ids).tolist()
        return texts

    def __repr__(self) -> str:
        return f"DroppedRows({self.reason!r}, {len(self.ids)} rows)"


def count_by_reason(dropped: Iterable[DroppedRows]) -> dict[str, int]:
    """Return the number of dropped rows by reason, in the order of the drops."""
    counts = Counter[str]()
    for part in dropped:
        counts[part.reason] += len(part.ids)
    return dict(counts)


def described_drops(dropped: Iterable[DroppedRows]) -> str:
    """Return the drops as text, such as ``3 dropped (spike: 2, no current: 1)``; "" for none."""
    counts = count_by_reason(dropped)
    shown = ", ".join(f"{reason}: {n}" for reason, n in counts.items())
    return f"{sum(counts.values())} dropped ({shown})" if counts else ""
