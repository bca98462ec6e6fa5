"""Building a collection from tables of any kind, of rows or groups of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._optional import require
from modularml._typing import Array, Columns, IntArray
from modularml.data.arrow_columns import to_arrow
from modularml.data.arrow_types import is_category, sample_shape, to_numpy
from modularml.data.collection import SampleCollection
from modularml.data.input_tables import Rename, Stack, as_columns, column_names
from modularml.data.memory_map import Maps
from modularml.data.schema import DOMAINS, RAW, check_keys, description_of
from modularml.errors import DataError, UnknownNameError
from modularml.predicates.value_order import by_meaning
from modularml.splitters.dealing import factorise


def from_columns(
    data: Mapping[str, Any],
    features: Columns,
    targets: Columns,
    tags: Columns,
    *,
    copy: bool = True,
    maps: Maps | None = None,
    mask: str | Mapping[str, str] | None = None,
    sequences: bool = False,
    categories: Iterable[str] = (),
    elements: Mapping[str, Sequence[str]] | None = None,
) -> SampleCollection:
    """Build a collection from columns by key.

    Arrays that are not copied must not be modified later. A column of shape ``(n, 1)`` becomes a
    column of scalars, unless it is padded or all columns are `sequences`. `maps` holds the memory
    maps of columns by key. A `mask` in no domain becomes a tag. Categorical columns, and those in
    `categories`, get the kind ``category``; `elements` names the elements of array columns.

    Raises
    ------
    UnknownNameError
        If a key is not in the data; the message lists the closest.
    DataError
        If columns differ in length, cannot be converted, or a mask does not match.
    """
    domains = dict(zip(DOMAINS, map(column_names, (features, targets, tags)), strict=True))
    named = dict.fromkeys([mask] if isinstance(mask, str) else (mask or {}).values())
    selected = [key for keys in domains.values() for key in keys]
    domains["tags"] = [*domains["tags"], *(key for key in named if key not in selected)]
    check_keys(key for keys in domains.values() for key in keys)
    padded = {*named, *({} if isinstance(mask, str) else mask or {})}
    arrays: dict[str, pa.Array] = {}
    mapped: dict[str, Any] = {}
    for domain, keys in domains.items():
        for key in keys:
            if key not in data:
                raise UnknownNameError("column", key, map(str, data))
            name = f"{domain}.{key}.{RAW}"
            arrays[name] = to_arrow(data[key], key, copy=copy)
            is_column = sample_shape(arrays[name].type) == (1,)
            if is_column and not sequences and key not in padded:
                arrays[name] = arrays[name].flatten()
            mapped |= {name: maps[key]} if maps and key in maps else {}
    check_lengths({name.split(".")[1]: len(array) for name, array in arrays.items()})
    collection = SampleCollection(pa.table(arrays), maps=mapped)
    specs = (s for s in collection.schema.columns.values() if s.dtype.kind in "biuO")
    names = [s.name for s in specs if s.key in categories or is_category(data[s.key])]
    described: dict[str, dict[str, Any]] = {name: {"kind": "category"} for name in names}
    for spec in collection.schema.columns.values():
        if elements and spec.key in elements and spec.shape == (len(elements[spec.key]),):
            described[spec.name] = {
                **described.get(spec.name, description_of(spec)),
                "elements": list(elements[spec.key]),
            }
    if described:
        collection = collection.with_descriptions(described)
    if mask is None:
        return collection
    return SampleCollection(collection.table, maps=mapped, masks=masks_of(collection, mask))


def masks_of(collection: SampleCollection, mask: str | Mapping[str, str]) -> dict[str, str]:
    """Return the mask of each column; a single mask applies to all matching columns.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    DataError
        If a mask matches no column, is not boolean, or a sample has no step with data.
    """
    specs = {spec.key: spec for spec in collection.schema.columns.values()}
    pairs: Mapping[str, str] = {} if isinstance(mask, str) else mask
    for key in [mask] if isinstance(mask, str) else [*pairs, *pairs.values()]:
        if key not in specs:
            raise UnknownNameError("column", key, specs)
    if isinstance(mask, str):
        shape, arrays = specs[mask].shape, (s for s in specs.values() if s.domain != "tags")
        keys = [s.key for s in arrays if s.shape[: len(shape)] == shape and s.key != mask]
        pairs = dict.fromkeys(keys if shape else [], mask)
        if not pairs:
            raise DataError(
                f"mask {mask!r} has shape {shape}, but no feature or target has these steps"
            )
    for key in dict.fromkeys(pairs.values()):
        values = collection.numpy(collection.schema.newest(collection.schema.domain_of(key), key))
        if values.dtype.kind == "b" and values.ndim > 1:
            check_mask(key, values)
    return dict(pairs)


def check_mask(key: str, values: Any) -> None:
    """Refuse a mask with a sample that has no step with data."""
    empty = ~values.reshape(len(values), -1).any(axis=1)
    if empty.any():
        raise DataError(
            f"mask {key!r} is false in all steps of row {int(empty.argmax())} ({empty.sum()} of "
            f"{len(values)} rows); remove samples without data"
        )


def from_frame(
    df: Any,
    features: Columns,
    targets: Columns,
    tags: Columns,
    *,
    group_by: Columns = None,
    sort_by: Columns = None,
    pad: Any = None,
    scalars: Columns = None,
    mask: str | Mapping[str, str] | None = None,
    rename: Rename = None,
    stack: Stack = None,
) -> SampleCollection:
    """Build a collection from any frame that narwhals supports.

    With `group_by`, all rows of a group become one sample: features and targets become array
    columns; tags, group columns and `scalars` stay scalars. With `pad`, shorter groups are padded
    and a column ``mask`` is added that is true for data: a tag, unless it is selected as a feature
    or target. It is the mask of all array columns, unless `mask` names another.

    Raises
    ------
    DataError
        If groups differ in length or a tag changes within a group; the message names the group.
    """
    inner = [*column_names(features), *column_names(targets)]
    scalar_keys, tag_keys = column_names(scalars), column_names(tags)
    groups, order = column_names(group_by), column_names(sort_by)
    if unknown := [name for name in scalar_keys if name not in inner]:
        raise DataError(f"scalar_cols must be among the features and targets, got {unknown}")
    if pad is not None and not groups:
        raise DataError("pad= pads groups to one length, so it requires group_by=")
    allowed = "df must be a table in memory; use from_dict for a dict of columns"
    if isinstance(df, Mapping):
        raise DataError(f"{allowed}, got a dict")
    table = as_columns(df, allowed).renamed(rename)
    columns, elements = table.stacked(stack), table.stack_parts(stack)
    masked = [] if pad is None else [MASK]
    wanted = dict.fromkeys([*inner, *tag_keys, *scalar_keys, *groups, *order])
    for name in wanted:
        if name not in columns and name not in masked:
            raise UnknownNameError("column", name, columns)
    if masked and MASK in columns and MASK in wanted:
        raise DataError(f"pad= adds a column {MASK!r}, but the table already has one; rename it")
    named = [mask] if isinstance(mask, str) else list((mask or {}).values())
    inner += [name for name in named if name in columns and name not in inner]
    wanted |= dict.fromkeys(inner)
    data = {name: columns[name] for name in wanted if name not in masked}
    if not groups:
        return from_columns(data, features, targets, tags, mask=mask, elements=elements)
    arrays = {name: to_numpy(to_arrow(values, name)) for name, values in data.items()}
    grouping = Grouping.of(arrays, groups, order, pad)
    constant_tags = [n for n in tag_keys if n not in inner and grouping.is_constant(n)]
    single = {*scalar_keys, *groups, *constant_tags} - ({*inner} - {*scalar_keys})
    arrays = {
        name: grouping.constant(name) if name in single else grouping.rows_of(name)
        for name in dict.fromkeys([*inner, *tag_keys, *groups])
        if name not in masked
    }
    arrays |= dict.fromkeys(masked, grouping.mask)
    tagged = [n for n in dict.fromkeys([*groups, *tag_keys, *masked]) if n not in inner]
    if masked and mask is None:
        mask = dict.fromkeys((n for n in inner if n not in [*single, MASK]), MASK)
    return from_columns(
        arrays,
        features,
        targets,
        tagged,
        copy=False,
        mask=mask,
        sequences=True,
        categories=[name for name, values in data.items() if is_category(values)],
    )


def check_lengths(lengths: Mapping[str, int]) -> None:
    """Refuse columns whose lengths, by key, differ."""
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key}: {n}" for key, n in lengths.items())
        raise DataError(f"columns differ in length ({shown}); each must have one value per sample")


MASK = "mask"
"""Key of the column that is true for data and false for padding."""


@dataclass(frozen=True)
class Grouping:
    """Rows of a long table by group, with all groups padded to one length.

    Parameters
    ----------
    arrays : mapping of str to ndarray, shape (n, ...)
        Columns of the long table.
    names : list of str
        Columns that define the groups.
    rows : ndarray of int64, shape (n_groups, length)
        Shorter groups are padded with the number of their first row.
    mask : ndarray of bool, shape (n_groups, length)
        False for padding.
    pad : object
        Fill value for padding; a mapping gives one for each column.
    """

    arrays: Mapping[str, Array]
    names: list[str]
    rows: IntArray
    mask: Array
    pad: Any = None

    @classmethod
    def of(
        cls, arrays: Mapping[str, Array], names: list[str], order: list[str], pad: Any
    ) -> Grouping:
        """Sort rows by group, and within a group by the columns of `order`.

        Raises
        ------
        DataError
            If groups differ in length without `pad`, or text has no clear order.
        """
        rows, counts = ordered_rows(arrays, names, order)
        places = np.arange(counts.max(initial=1))
        mask = places < counts[:, None]
        if mask.all():
            return cls(arrays, names, rows.reshape(mask.shape), mask, pad)
        starts = (np.cumsum(counts) - counts)[:, None]
        grouping = cls(arrays, names, rows[starts + np.where(mask, places, 0)], mask, pad)
        if pad is None:
            other = int((counts != counts[0]).argmax())
            raise DataError(
                f"groups differ in length: {grouping.group(0)} has {counts[0]} rows, "
                f"{grouping.group(other)} has {counts[other]}. Truncate them to one length, or "
                "pass pad= (such as pad=0.0) to pad them and add a mask"
            )
        return grouping

    def rows_of(self, name: str) -> Array:
        """Return the values of each group, shape (n_groups, length, *shape)."""
        values = self.arrays[name][self.rows]
        if not self.mask.all():
            values[~self.mask] = fill_value(self.pad, name, values.dtype)
        return values

    def is_constant(self, name: str) -> bool:
        """Check whether a column holds one value within each group."""
        return self.arrays[name].ndim == 1 and not self._varies(name).any()

    def constant(self, name: str) -> Array:
        """Return the single value of each group, shape (n_groups,)."""
        varies = self._varies(name)
        if varies.any():
            raise DataError(
                f"column {name!r} changes within the group {self.group(varies.argmax())}; make it "
                "an array feature, or group by it too"
            )
        return self.arrays[name][self.rows[:, 0]]

    def _varies(self, name: str) -> Array:
        codes = _rank(self.arrays[name], name)[self.rows]
        return np.asarray((codes != codes[:, :1]).any(axis=1))

    def group(self, number: Any) -> str:
        """Return the keys of a group as text for messages."""
        row = self.rows[number, 0]
        keys = ((name, self.arrays[name][row : row + 1].tolist()[0]) for name in self.names)
        return ", ".join(f"{name}={value!r}" for name, value in keys)


def ordered_rows(
    arrays: Mapping[str, Array], names: list[str], order: list[str]
) -> tuple[IntArray, IntArray]:
    """Return rows sorted by group, and by `order` within a group, and the sizes of the groups.

    Raises
    ------
    DataError
        If text has no clear order.
    """
    factor = factorise(names, arrays)
    small = factor.codes.astype(np.min_scalar_type(factor.count), copy=False)  # sorts faster
    if not order:
        return np.argsort(small, kind="stable"), factor.sizes
    keys = [by_meaning(name, arrays[name], DataError) for name in reversed(order)]
    sort_keys = [
        k if k.ndim == 1 and k.dtype.kind != "O" else _rank(k, name)
        for k, name in zip(keys, reversed(order), strict=True)
    ]
    return np.lexsort([*sort_keys, small]), factor.sizes


def fill_value(pad: Any, name: str, dtype: np.dtype[Any]) -> Any:
    """Return the fill value of a column for padding.

    Raises
    ------
    DataError
        If it is not a value of the column's type.
    """
    if isinstance(pad, Mapping) and name not in pad:
        raise DataError(f"pad has no value for column {name!r}, only for {list(pad)}; add one")
    value = pad[name] if isinstance(pad, Mapping) else pad
    kinds = {"b": "b", "i": "biu", "u": "biu", "f": "biuf", "O": "US"}.get(dtype.kind, "")
    fill = np.asarray(value)
    fits = fill.ndim == 0 and fill.dtype.kind in kinds
    if not fits or (dtype.kind in "iu" and fill.astype(dtype) != fill):
        shown = "text" if dtype.kind == "O" else dtype
        raise DataError(
            f"pad={value!r} does not fit column {name!r}, which holds {shown}; pass one value "
            "for each column, such as pad={'v': 0.0, 'mode': ''}, or convert the column"
        )
    return value


def _rank(values: Array, name: str) -> IntArray:
    """Return the rank of each value; equal values share one, missing values are -1."""
    if values.ndim > 1:
        raise DataError(
            f"column {name!r} holds arrays; rows are grouped and sorted by single values"
        )
    codes: IntArray = require("pandas").factorize(values, sort=True)[0]
    return codes
