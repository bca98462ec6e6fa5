"""Tables of any kind to one collection: what stands behind the constructors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from modularml._typing import Columns
from modularml.data.arrow_types import is_category, sample_shape, to_numpy
from modularml.data.collection import SampleCollection
from modularml.data.columns import to_arrow
from modularml.data.frames import Rename, Stack, as_columns, column_names
from modularml.data.grouping import MASK, Grouping
from modularml.data.mapping import Maps
from modularml.data.schema import DOMAINS, RAW, check_keys
from modularml.errors import DataError, UnknownNameError

__all__ = ["check_lengths", "from_columns", "from_frame", "masks_of"]


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
) -> SampleCollection:
    """Build a collection from columns by key, whose arrays are copied unless nobody writes to them.

    A column of shape ``(n, 1)`` is one of scalars, unless it is padded or all are `sequences`.

    Columns that lie in files have their `maps` by key. A `mask` is a tag where it is in no domain.
    Those that are categoricals of their library, and `categories`, are of the kind ``category``.

    Raises
    ------
    UnknownNameError
        If a key is not in the data; the closest are listed.
    DataError
        If columns differ in length, or one cannot be a column; if a mask does not fit.
    """
    domains = dict(zip(DOMAINS, map(column_names, (features, targets, tags)), strict=True))
    named = dict.fromkeys([mask] if isinstance(mask, str) else (mask or {}).values())
    known = [key for keys in domains.values() for key in keys]
    domains["tags"] = [*domains["tags"], *(key for key in named if key not in known)]
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
            one = not sequences and key not in padded and sample_shape(arrays[name].type) == (1,)
            if one:
                arrays[name] = arrays[name].flatten()
            mapped |= {name: maps[key]} if maps and key in maps else {}
    check_lengths({name.split(".")[1]: len(array) for name, array in arrays.items()})
    made = SampleCollection(pa.table(arrays), maps=mapped)
    given = (s for s in made.schema.columns.values() if s.dtype.kind in "biuO")
    told = [s.name for s in given if s.key in categories or is_category(data[s.key])]
    made = made.described({name: {"kind": "category"} for name in told}) if told else made
    if mask is None:
        return made
    return SampleCollection(made.table, maps=mapped, masks=masks_of(made, mask))


def masks_of(made: SampleCollection, mask: str | Mapping[str, str]) -> dict[str, str]:
    """Return which mask is of which column; one that is given alone is of all that it fits.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    DataError
        If a mask fits no column, is not of booleans, or a sample has no step that holds data.
    """
    specs = {spec.key: spec for spec in made.schema.columns.values()}
    pairs: Mapping[str, str] = {} if isinstance(mask, str) else mask
    for key in [mask] if isinstance(mask, str) else [*pairs, *pairs.values()]:
        if key not in specs:
            raise UnknownNameError("column", key, specs)
    if isinstance(mask, str):
        shape, arrays = specs[mask].shape, (s for s in specs.values() if s.domain != "tags")
        fits = [s.key for s in arrays if s.shape[: len(shape)] == shape and s.key != mask]
        pairs = dict.fromkeys(fits if shape else [], mask)
        if not pairs:
            raise DataError(
                f"mask {mask!r} has shape {shape}, and no feature or target has such steps"
            )
    for key in dict.fromkeys(pairs.values()):
        values = made.numpy(made.schema.newest(made.schema.domain_of(key), key))
        if values.dtype.kind == "b" and values.ndim > 1:
            check_mask(key, values)
    return dict(pairs)


def check_mask(key: str, values: Any) -> None:
    """Refuse a mask with a sample that has no step that holds data."""
    empty = ~values.reshape(len(values), -1).any(axis=1)
    if empty.any():
        raise DataError(
            f"mask {key!r} is false in all steps of row {int(empty.argmax())} ({empty.sum()} of "
            f"{len(values)} rows); leave out samples without data"
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
    """Build a collection from any frame that narwhals understands.

    With `group_by`, all rows of one group become one sample: features and targets become array
    columns, and tags, the group's own columns and `scalars` among them, stay scalars. With `pad`,
    shorter groups are filled up, and a column ``mask`` tells what was there: a tag, unless it is
    asked for as a feature or target. It is the mask of all array columns, unless `mask` names it.

    Raises
    ------
    DataError
        If groups differ in length or a tag changes within a group; the group is named.
    """
    inner = [*column_names(features), *column_names(targets)]
    scalar_keys, tag_keys = column_names(scalars), column_names(tags)
    groups, order = column_names(group_by), column_names(sort_by)
    if unknown := [name for name in scalar_keys if name not in inner]:
        raise DataError(f"scalar_cols must be among the features and targets, got {unknown}")
    if pad is not None and not groups:
        raise DataError("pad fills groups up to one length; it needs group_by=")
    allowed = "df must be a table in memory; from_dict takes a dict of columns"
    if isinstance(df, Mapping):
        raise DataError(f"{allowed}, got a dict")
    table = as_columns(df, allowed)
    columns = table.renamed(rename).stacked(stack)
    masked = [] if pad is None else [MASK]
    wanted = dict.fromkeys([*inner, *tag_keys, *scalar_keys, *groups, *order])
    for name in wanted:
        if name not in columns and name not in masked:
            raise UnknownNameError("column", name, columns)
    if masked and MASK in columns and MASK in wanted:
        raise DataError(f"pad makes a column {MASK!r}, and the table has one; rename it")
    named = [mask] if isinstance(mask, str) else list((mask or {}).values())
    inner += [name for name in named if name in columns and name not in inner]
    wanted |= dict.fromkeys(inner)
    data = {name: columns[name] for name in wanted if name not in masked}
    if not groups:
        return from_columns(data, features, targets, tags, mask=mask)
    arrays = {name: to_numpy(to_arrow(values, name)) for name, values in data.items()}
    grouping = Grouping.of(arrays, groups, order, pad)
    steady = [n for n in tag_keys if n not in inner and grouping.is_constant(n)]
    single = {*scalar_keys, *groups, *steady} - ({*inner} - {*scalar_keys})
    found = {
        name: grouping.constant(name) if name in single else grouping.rows_of(name)
        for name in dict.fromkeys([*inner, *tag_keys, *groups])
        if name not in masked
    }
    found |= dict.fromkeys(masked, grouping.mask)
    tagged = [n for n in dict.fromkeys([*groups, *tag_keys, *masked]) if n not in inner]
    if masked and mask is None:
        mask = dict.fromkeys((n for n in inner if n not in [*single, MASK]), MASK)
    return from_columns(
        found,
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
        raise DataError(f"columns differ in length ({shown}); give one value a sample in each")
