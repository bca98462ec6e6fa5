"""Which rows weights, estimators and scalers have learned from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray
from modularml.audit.identity import content_words, id_words
from modularml.audit.pairs import is_testing, is_training
from modularml.data import FeatureSet, FeatureSetView
from modularml.data.ids import id_texts, make_ids
from modularml.data.schema import SAMPLE_UUIDS

__all__ = ["LearnedRows", "said_of"]

SKETCH = 20_000
"""The most rows of a set of which a file keeps a hash of what they hold: the smallest hashes."""


@dataclass(frozen=True, eq=False)
class _Set:
    """Rows of one FeatureSet that something learned from.

    Parameters
    ----------
    label : str
    rows : ndarray of bool, shape (n_samples,)
    splits : frozenset of str
        Names of the splits that they were.
    fs : FeatureSet or None
        None where it came from a file.
    cached : dict
        ``fingerprint``, which is the key of the hashes; ``ids``, hashes of ids that are the
        user's own; ``content``, hashes of what rows hold.
    """

    label: str
    rows: Array
    splits: frozenset[str]
    fs: FeatureSet | None = None
    cached: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Of the set's raw columns."""
        if "fingerprint" not in self.cached and self.fs is not None:
            self.cached["fingerprint"] = self.fs.collection.fingerprint
        found: str = self.cached["fingerprint"]
        return found

    @property
    def key(self) -> int:
        """Of the hashes."""
        return int(self.fingerprint[:16], 16)

    def is_of(self, other: _Set) -> bool:
        """Tell whether both are rows of the same data."""
        same = self.fs is not None and self.fs is other.fs
        return same or self.fingerprint == other.fingerprint

    def ids(self) -> Array | None:
        """Return hashes of ids where these are the user's own; else None."""
        if "ids" not in self.cached and self.fs is not None:
            own = SAMPLE_UUIDS in self.fs.collection.table.column_names
            rows = np.flatnonzero(self.rows)
            words = id_words(self.fs.collection.ids[rows], self.key) if own else None
            self.cached["ids"] = None if words is None else np.sort(words)
        return self.cached.get("ids")

    def content(self) -> Array | None:
        """Return hashes of what the rows hold, a sketch of them where they are many."""
        if "content" not in self.cached and self.fs is not None and not self.fs.collection.maps:
            words = content_words(self.fs, np.flatnonzero(self.rows), self.key)
            self.cached["content"] = np.unique((words >> np.uint64(32)).astype(np.uint32))[:SKETCH]
        return self.cached.get("content")

    def known(self, fs: FeatureSet, rows: IntArray) -> IntArray:
        """Return which rows of a set are among mine, by id or by what they hold."""
        if fs is self.fs or fs.collection.fingerprint == self.fingerprint:
            found: IntArray = rows[self.rows[rows]]
            return found
        ids = self.ids()
        if ids is None:
            ids = id_words(make_ids(self.fingerprint, len(self.rows))[self.rows], self.key)
        same = np.isin(id_words(fs.collection.ids[rows], self.key), ids)
        content = self.content()
        if content is not None and len(content) and not fs.collection.maps:
            words = (content_words(fs, rows, self.key) >> np.uint64(32)).astype(np.uint32)
            alike = np.isin(words, content)
            by_chance = len(rows) * len(content) / 2**32
            if alike.sum() > 5 * by_chance + 1:  # hashes of 32 bits agree now and then
                same |= alike
        return rows[same]


class LearnedRows:
    """Rows that weights, estimators or scalers have learned from, by FeatureSet.

    Ids of rows are known as long as the set is there, or follow from its fingerprint. A file holds
    one bit a row, and keyed hashes of ids that are the user's own and of what rows hold, so that
    rows are recognised without being in it.

    Examples
    --------
    >>> LearnedRows()
    LearnedRows(nothing yet)
    """

    def __init__(self, sets: Iterable[_Set] = ()) -> None:
        self._sets = tuple(sets)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows of which FeatureSet, by label."""
        found: dict[str, int] = {}
        for s in self._sets:
            found[s.label] = found.get(s.label, 0) + int(s.rows.sum())
        return found

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Ids of the rows as UUID text, where they are known."""
        found: list[str] = []
        for s in self._sets:
            if s.fs is not None:
                found += id_texts(s.fs.collection.ids[s.rows]).tolist()
            elif s.ids() is None:
                found += id_texts(make_ids(s.fingerprint, len(s.rows))[s.rows]).tolist()
        return tuple(found)

    def known(self, data: FeatureSet | FeatureSetView) -> IntArray:
        """Return the rows of a set or view that were learned from, as positions in its set.

        They are recognised by id, and in another set by all that their raw features and targets
        hold too.

        Returns
        -------
        ndarray of int64, ascending
        """
        view = data.to_view() if isinstance(data, FeatureSet) else data
        rows = np.unique(view.valid_indices)
        found = [s.known(view.source, rows) for s in self._sets]
        known: IntArray = np.unique(np.concatenate(found)) if found else rows[:0]
        return known

    def taken_for_unseen(self, fs: FeatureSet, split: str | None) -> IntArray:
        """Return rows that I know and that an evaluation would take for new ones.

        A split that is named for training, or that was learned from under this very name and is
        not named for testing, is not taken for new, and neither are all rows of a set at once.

        Parameters
        ----------
        fs : FeatureSet
        split : str or None
            None for all rows.
        """
        mine = [s for s in self._sets if s.label == fs.label]
        if not self._sets or (split is None and mine) or (split and is_training(split)):
            return np.zeros(0, dtype=np.int64)
        view = fs.to_view() if split is None else fs.get_split(split)
        known = self.known(view)
        own = any(split in s.splits for s in mine) and len(known) == len(
            np.unique(view.valid_indices)
        )
        return known[:0] if split and own and not is_testing(split) else known

    def with_rows(self, views: Iterable[FeatureSetView]) -> LearnedRows:
        """Return these rows and those of views."""
        return self.joined([LearnedRows([_of_view(view)]) for view in views])

    def joined(self, others: Sequence[LearnedRows]) -> LearnedRows:
        """Return these rows and those of others."""
        found = list(self._sets)
        for s in (s for other in others for s in other._sets):
            place = next((i for i, mine in enumerate(found) if mine.is_of(s)), None)
            if place is None:
                found.append(s)
                continue
            mine = found[place]
            if (s.rows & ~mine.rows).any() or s.splits - mine.splits:
                splits = mine.splits | s.splits
                found[place] = _Set(mine.label, mine.rows | s.rows, splits, mine.fs or s.fs)
                if found[place].fs is None:
                    found[place].cached.update(_merged(mine.cached, s.cached))
        return LearnedRows(found)

    def get_state(self) -> list[dict[str, Any]]:
        """Return bits and hashes as plain data."""
        return [
            {
                "label": s.label,
                "fingerprint": s.fingerprint,
                "n_samples": len(s.rows),
                "rows": np.packbits(s.rows),
                "splits": sorted(s.splits),
                "ids": s.ids(),
                "content": s.content(),
            }
            for s in self._sets
        ]

    @classmethod
    def from_state(cls, state: Sequence[Mapping[str, Any]]) -> LearnedRows:
        """Read what `get_state` returned."""
        return cls(
            _Set(
                s["label"],
                np.unpackbits(s["rows"], count=s["n_samples"]).astype(bool),
                frozenset(s["splits"]),
                cached={name: s[name] for name in ("fingerprint", "ids", "content")},
            )
            for s in state
        )

    def restored(self, state: Sequence[Mapping[str, Any]]) -> LearnedRows:
        """Read a state; sets that I know stay at hand."""
        at_hand = {s.fingerprint: s.fs for s in self._sets if s.fs is not None}
        read = LearnedRows.from_state(state)._sets
        return LearnedRows(replace(s, fs=at_hand.get(s.fingerprint)) for s in read)

    def __deepcopy__(self, memo: Any) -> LearnedRows:
        return self  # it never changes

    def __reduce__(self) -> Any:
        return LearnedRows.from_state, (self.get_state(),)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __repr__(self) -> str:
        shown = ", ".join(f"{n} rows of {label!r}" for label, n in self.counts.items())
        return f"LearnedRows({shown or 'nothing yet'})"


def said_of(fs: FeatureSet, split: str | None, rows: IntArray, node: str) -> str:
    """Say that rows are taken for new ones though weights learned from them."""
    view = fs.to_view() if split is None else fs.get_split(split)
    what = f"{fs.label!r}" if split is None else f"split {split!r} of {fs.label!r}"
    first = ", ".join(id_texts(fs.collection.ids[rows[:3]]).tolist())
    return (
        f"{len(rows)} of {len(view)} rows of {what} are among those that {node} learned from "
        f"(first: {first}), so figures on them say how well they are remembered. Take rows "
        "that nothing learned from, or train anew (graph.build(force=True))"
    )


def _of_view(view: FeatureSetView) -> _Set:
    fs = view.source
    rows = np.zeros(len(fs), dtype=bool)
    rows[view.valid_indices] = True
    names = [str(view.label)] if view.label in fs.available_splits else []
    return _Set(fs.label, rows, frozenset(names), fs)


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hashes of two sets of rows together."""

    def both(name: str) -> Array | None:
        parts = [part for part in (one[name], other[name]) if part is not None]
        return np.unique(np.concatenate(parts)) if parts else None

    content = both("content")
    content = None if content is None else content[:SKETCH]
    return {"fingerprint": one["fingerprint"], "ids": both("ids"), "content": content}
