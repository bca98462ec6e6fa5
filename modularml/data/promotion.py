"""One type for a column that several files hold, without loss."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from modularml.errors import DataError

__all__ = ["cast_column", "common_type", "stored_type"]


def common_type(key: str, types: Mapping[str, pa.DataType]) -> pa.DataType:
    """Return the narrowest type that may hold the values of all files.

    Whether it does hold them is known when they are cast; see `cast_column`.

    Parameters
    ----------
    key : str
        Name of the column, for messages.
    types : mapping of str to pyarrow.DataType
        What each file holds, by its path.

    Raises
    ------
    DataError
        If there is none, as for numbers and text. Two of the files are named with their types.
    """
    first, found = next(iter(types.items()))
    found = stored_type(found)
    for path, given in types.items():
        kind = stored_type(given)
        if kind == found:
            continue
        if {pa.string(), pa.binary()} != {kind, found}:
            try:
                schemas = [pa.schema({key: kind}), pa.schema({key: found})]
                found = pa.unify_schemas(schemas, promote_options="permissive").field(key).type
                continue
            except pa.ArrowTypeError:
                pass
        raise DataError(
            f"column {key!r} holds {stored_type(types[first])} in {first!r} and {kind} in "
            f"{path!r}, and no type holds both; convert one of the files"
        )
    return found


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values behind encodings of categories and text."""
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
    """Cast values of one file to the type of all.

    Raises
    ------
    DataError
        If a value would change; file and both types are named.
    """
    if array.type == kind:
        return array
    try:
        return array.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"column {key!r} of {path!r} holds {array.type}, other files make it {kind}, and a "
            f"value would change ({error}); convert the files to one type"
        ) from error
