"""Promotion of the types of a column in several files without loss."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from modularml.errors import DataError

__all__ = ["cast_column", "common_type", "stored_type"]


def common_type(key: str, types: Mapping[str, pa.DataType]) -> pa.DataType:
    """Return the narrowest type that may hold the values of all files.

    Whether it holds them is only known when they are cast; see `cast_column`.

    Parameters
    ----------
    key : str
        Name of the column, for messages.
    types : mapping of str to pyarrow.DataType
        Type of the column in each file, by path.

    Raises
    ------
    DataError
        If there is none, as for numbers and text; the message names two files and their types.
    """
    first, first_type = next(iter(types.items()))
    common = stored_type(first_type)
    for path, file_type in types.items():
        kind = stored_type(file_type)
        if kind == common:
            continue
        if {pa.date32(), pa.date64()} & {kind, common} and _are_naive_times(kind, common):
            fine = [t for t in (kind, common) if pa.types.is_timestamp(t)]
            common = pa.timestamp("s") if not fine else fine[0]
            continue
        if {pa.string(), pa.binary()} != {kind, common}:
            try:
                schemas = [pa.schema({key: kind}), pa.schema({key: common})]
                common = pa.unify_schemas(schemas, promote_options="permissive").field(key).type
                continue
            except pa.ArrowTypeError:
                pass
        raise DataError(
            f"column {key!r} holds {stored_type(types[first])} in {first!r} and {kind} in "
            f"{path!r}, but no type holds both; {_remedy(key, {kind, common})}"
        )
    return common


def _are_naive_times(*kinds: pa.DataType) -> bool:
    return all(
        pa.types.is_date(kind) or (pa.types.is_timestamp(kind) and kind.tz is None)
        for kind in kinds
    )


def _remedy(key: str, kinds: set[pa.DataType]) -> str:
    if pa.string() in kinds:
        return (
            f"convert one of the files, or read both as text: of CSV, read={{'dtype': {{{key!r}: "
            "str}}, and numbers whose missing values have a sign, read={'na_values': [...]}"
        )
    if any(pa.types.is_timestamp(kind) for kind in kinds):
        return "give the times of both files a time zone, or those of none"
    return "convert one of the files"


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values without encodings of categories and text."""
    if pa.types.is_dictionary(kind):
        return stored_type(kind.value_type)
    if pa.types.is_large_string(kind) or kind == pa.string_view():
        return pa.string()
    if pa.types.is_large_binary(kind) or kind == pa.binary_view():
        return pa.binary()
    return kind


def cast_column(
    array: pa.Array | pa.ChunkedArray, kind: pa.DataType, key: str, path: str
) -> pa.Array | pa.ChunkedArray:
    """Cast values of one file to the common type of all files.

    Raises
    ------
    DataError
        If a value would change; the message names the file and both types.
    """
    if array.type == kind:
        return array
    try:
        return array.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"column {key!r} of {path!r} holds {array.type}; casting it to {kind}, the type of "
            f"all files, would change a value ({error}); convert the files to one type"
        ) from error
