"""Rows that were left out of a view, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from modularml.data.ids import IdArray, id_texts
from modularml.errors import ConfigError

__all__ = ["DroppedRows", "count_by_reason", "described_drops"]


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
