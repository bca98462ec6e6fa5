"""Rows of several FeatureSets that belong together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modularml._warning import warn
from modularml.data import FeatureSetView
from modularml.data.ids import id_array
from modularml.data.schema import SAMPLE_UUIDS
from modularml.data.selectors import select_one
from modularml.errors import DataError

__all__ = ["align"]


def align(views: Sequence[FeatureSetView], on: str) -> list[FeatureSetView]:
    """Return views of equal length whose rows have equal values of a column, or equal ids.

    They stand in the order of the first; its rows that lack a partner are left out, and it is said
    how many.

    Raises
    ------
    DataError
        If a value stands twice in another view than the first, or nothing is common, or values
        cannot be compared.
    """
    wanted = _keys(views[0], on)
    places = []
    for view in views[1:]:
        among = _keys(view, on)
        if len(pc.unique(among)) < len(among):
            raise DataError(
                f"align_on={on!r}: values repeat in {view.source.label!r}, so rows of "
                f"{views[0].source.label!r} have several partners; name first the source with the "
                "repeated values, or align on a column whose values differ"
            )
        try:
            found = pc.index_in(wanted.cast(among.type), value_set=among)
        except pa.ArrowInvalid:
            raise DataError(
                f"align_on={on!r}: {views[0].source.label!r} holds {wanted.type} and "
                f"{view.source.label!r} {among.type}, which cannot be compared; cast one of them"
            ) from None
        places.append(pc.fill_null(found, -1).to_numpy().astype(np.int64))
    kept = np.flatnonzero(np.all([p >= 0 for p in places], axis=0)) if places else slice(None)
    aligned = [views[0].take(np.arange(len(wanted))[kept], label=views[0].label)]
    if not len(aligned[0]):
        raise DataError(f"align_on={on!r}: the sources have no value in common")
    if dropped := len(wanted) - len(aligned[0]):
        warn(
            f"{dropped} of {len(wanted)} rows of {views[0].source.label!r} have no partner by "
            f"{on!r} and are left out",
        )
    others = zip(views[1:], places, strict=True)
    return aligned + [view.take(found[kept], label=view.label) for view, found in others]


def _keys(view: FeatureSetView, on: str) -> pa.Array:
    collection, rows = view.collection, view.valid_indices
    if on == SAMPLE_UUIDS:
        return id_array(collection.ids[rows])
    name = select_one(collection.schema, on)
    if collection.schema[name].shape:
        raise DataError(f"align_on={on!r}: column {name!r} holds arrays, not single values")
    return collection.array(name).take(pa.array(rows))
