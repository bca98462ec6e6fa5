"""Records of the rows that weights, estimators and scalers learned from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray
from modularml.audit.audited_table import is_testing, is_training
from modularml.audit.similarity import content_words, id_words
from modularml.data.featureset import FeatureSet
from modularml.data.ids import id_texts, make_ids
from modularml.data.schema import SAMPLE_UUIDS
from modularml.data.view import FeatureSetView

SKETCH = 20_000
"""Maximum number of content hashes stored per FeatureSet: the smallest ones."""


@dataclass(frozen=True, eq=False)
class _Set:
    """Rows of one FeatureSet that a model or scaler learned from.

    Parameters
    ----------
    label : str
    rows : ndarray of bool, shape (n_samples,)
    splits : frozenset of str
        Names of the splits they came from.
    fs : FeatureSet or None
        None if read from a file.
    cached : dict
        ``fingerprint``, the key of the hashes; ``ids``, hashes of user-defined ids; ``content``,
        hashes of row contents.
    """

    label: str
    rows: Array
    splits: frozenset[str]
    fs: FeatureSet | None = None
    cached: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the FeatureSet's raw columns."""
        if "fingerprint" not in self.cached and self.fs is not None:
            self.cached["fingerprint"] = self.fs.collection.fingerprint
        found: str = self.cached["fingerprint"]
        return found

    @property
    def key(self) -> int:
        """Key of the hashes."""
        return int(self.fingerprint[:16], 16)

    def is_of(self, other: _Set) -> bool:
        """Return whether both are rows of the same data."""
        same = self.fs is not None and self.fs is other.fs
        return same or self.fingerprint == other.fingerprint

    def ids(self) -> Array | None:
        """Return hashes of user-defined ids; None if ids are generated."""
        if "ids" not in self.cached and self.fs is not None:
            user_defined = SAMPLE_UUIDS in self.fs.collection.table.column_names
            rows = np.flatnonzero(self.rows)
            words = id_words(self.fs.collection.ids[rows], self.key) if user_defined else None
            self.cached["ids"] = None if words is None else np.sort(words)
        return self.cached.get("ids")

    def content(self) -> Array | None:
        """Return hashes of row contents, at most `SKETCH` of them."""
        if "content" not in self.cached and self.fs is not None and not self.fs.collection.maps:
            words = content_words(self.fs, np.flatnonzero(self.rows), self.key)
            self.cached["content"] = np.unique((words >> np.uint64(32)).astype(np.uint32))[:SKETCH]
        return self.cached.get("content")

    def known(self, fs: FeatureSet, rows: IntArray) -> IntArray:
        """Return which rows of a FeatureSet are among these, by id or by content."""
        if fs is self.fs or fs.collection.fingerprint == self.fingerprint:
            selected: IntArray = rows[self.rows[rows]]
            return selected
        ids = self.ids()
        if ids is None:
            ids = id_words(make_ids(self.fingerprint, len(self.rows))[self.rows], self.key)
        same = np.isin(id_words(fs.collection.ids[rows], self.key), ids)
        content = self.content()
        if content is not None and len(content) and not fs.collection.maps:
            words = (content_words(fs, rows, self.key) >> np.uint64(32)).astype(np.uint32)
            alike = np.isin(words, content)
            by_chance = len(rows) * len(content) / 2**32
            if alike.sum() > 5 * by_chance + 1:  # 32-bit hashes collide now and then
                same |= alike
        return rows[same]


class LearnedRows:
    """Rows that weights, estimators or scalers have learned from, by FeatureSet.

    Row ids are known while the FeatureSet exists, or follow from its fingerprint. A file holds one
    bit per row, and keyed hashes of user-defined ids and of row contents, so that rows are
    recognised without being stored.

    Examples
    --------
    >>> LearnedRows()
    LearnedRows(nothing yet)
    """

    def __init__(self, sets: Iterable[_Set] = ()) -> None:
        self._sets = tuple(sets)

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows by FeatureSet label."""
        counts: dict[str, int] = {}
        for s in self._sets:
            counts[s.label] = counts.get(s.label, 0) + int(s.rows.sum())
        return counts

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Ids of the rows as UUID text, as far as known."""
        ids: list[str] = []
        for s in self._sets:
            if s.fs is not None:
                ids += id_texts(s.fs.collection.ids[s.rows]).tolist()
            elif s.ids() is None:
                ids += id_texts(make_ids(s.fingerprint, len(s.rows))[s.rows]).tolist()
        return tuple(ids)

    def known(self, data: FeatureSet | FeatureSetView) -> IntArray:
        """Return the rows of a FeatureSet or view that were learned from, as positions.

        Rows are recognised by id and, in another FeatureSet, also by the values of their raw
        features and targets.

        Returns
        -------
        ndarray of int64, ascending
        """
        view = data.to_view() if isinstance(data, FeatureSet) else data
        rows = np.flatnonzero(_mask_of(view))
        known = np.zeros(len(view.source), dtype=bool)
        for s in self._sets:
            known[s.known(view.source, rows)] = True
        return np.flatnonzero(known)

    def taken_for_unseen(self, fs: FeatureSet, split: str | None) -> IntArray:
        """Return learned rows that an evaluation would treat as unseen.

        A split named for training does not count as unseen, nor one that was learned from under the
        same name and is not named for testing, nor a whole FeatureSet.

        Parameters
        ----------
        fs : FeatureSet
        split : str or None
            None for all rows.
        """
        same_label = [s for s in self._sets if s.label == fs.label]
        if not self._sets or (split is None and same_label) or (split and is_training(split)):
            return np.zeros(0, dtype=np.int64)
        view = fs.to_view() if split is None else fs.get_split(split)
        known = self.known(view)
        all_known = (
            any(split in s.splits for s in same_label) and len(known) == _mask_of(view).sum()
        )
        return known[:0] if split and all_known and not is_testing(split) else known

    def with_rows(self, views: Iterable[FeatureSetView]) -> LearnedRows:
        """Return the union with the rows of views."""
        return self.joined([LearnedRows([_of_view(view)]) for view in views])

    def joined(self, others: Sequence[LearnedRows]) -> LearnedRows:
        """Return the union with other records."""
        merged = list(self._sets)
        for s in (s for other in others for s in other._sets):
            index = next((i for i, existing in enumerate(merged) if existing.is_of(s)), None)
            if index is None:
                merged.append(s)
                continue
            existing = merged[index]
            if (s.rows & ~existing.rows).any() or s.splits - existing.splits:
                splits = existing.splits | s.splits
                merged[index] = _Set(
                    existing.label, existing.rows | s.rows, splits, existing.fs or s.fs
                )
                if merged[index].fs is None:  # only the hashes of the rows are known
                    union = merged[index].cached
                    union["fingerprint"] = existing.cached["fingerprint"]
                    for name, limit in (("ids", None), ("content", SKETCH)):
                        both = (existing.cached[name], s.cached[name])
                        parts = [part for part in both if part is not None]
                        union[name] = np.unique(np.concatenate(parts))[:limit] if parts else None
        return LearnedRows(merged)

    def get_state(self) -> list[dict[str, Any]]:
        """Return row masks and hashes as plain data."""
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
        """Build records from the return value of `get_state`."""
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
        """Build records from a state, linked to the FeatureSets known here."""
        featuresets = {s.fingerprint: s.fs for s in self._sets if s.fs is not None}
        sets = LearnedRows.from_state(state)._sets
        return LearnedRows(replace(s, fs=featuresets.get(s.fingerprint)) for s in sets)

    def __deepcopy__(self, memo: Any) -> LearnedRows:
        return self  # immutable

    def __reduce__(self) -> Any:
        return LearnedRows.from_state, (self.get_state(),)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __repr__(self) -> str:
        shown = ", ".join(f"{n} rows of {label!r}" for label, n in self.counts.items())
        return f"LearnedRows({shown or 'nothing yet'})"


def fit_rows_of(fs: FeatureSet, rows: IntArray | None) -> LearnedRows:
    """Return the rows a scaler was fitted on; None for all. The FeatureSet may lack its rows."""
    collection = fs.collection
    if not collection.n_absent:
        return LearnedRows([_of_view(fs.to_view() if rows is None else fs.take(rows))])
    mask = np.zeros(collection.n_absent, dtype=bool)
    mask[slice(None) if rows is None else rows] = True
    known = {"fingerprint": collection.fingerprint, "ids": None, "content": None}
    return LearnedRows([_Set(str(fs.label), mask, frozenset(), cached=known)])


def leakage_message(view: FeatureSetView, rows: IntArray, name: str, node: str) -> str:
    """Return the warning that a node learned from rows to be evaluated.

    Parameters
    ----------
    view : FeatureSetView
        The rows to be evaluated.
    rows : ndarray of int
        Those among them that were learned from, as `LearnedRows.known` returns them.
    name, node : str
        Describe the rows and the node.
    """
    first = ", ".join(id_texts(view.collection.ids[rows[:3]]).tolist())
    return (
        f"{len(rows)} of {len(view)} rows of {name} are among those that {node} learned from "
        f"(first: {first}), so metrics on them measure memorization. Use unseen rows, or retrain "
        "from new weights (graph.build(force=True))"
    )


def _mask_of(view: FeatureSetView) -> Array:
    """Return which rows of its FeatureSet a view holds: bool, shape (n_samples,)."""
    rows = np.zeros(len(view.source), dtype=bool)
    rows[view.valid_indices] = True
    return rows


def _of_view(view: FeatureSetView) -> _Set:
    fs, rows = view.source, _mask_of(view)
    names = [str(view.label)] if view.label in fs.available_splits else []
    return _Set(fs.label, rows, frozenset(names), fs)
