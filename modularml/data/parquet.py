"""Parquet files, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from modularml._optional import require

__all__ = ["parquet_bytes", "parquet_pieces"]

PIECE_BYTES = 16 * 2**20
PIECE_ROWS = 8192
"""A piece is never longer: values that come many times take more room than their file tells."""


def parquet_bytes(data: Any) -> int:
    """Return how many bytes the files of a ParquetDataset hold, unpacked."""
    return sum(
        _width(fragment.metadata) * fragment.metadata.num_rows for fragment in data.fragments
    )


def parquet_pieces(data: Any, columns: Sequence[str]) -> Iterator[Mapping[str, pa.Array]]:
    """Yield the columns of a ParquetDataset, some thousand rows at a time."""
    types = {name: data.schema.field(name).type for name in columns}
    types = {n: t.value_type if pa.types.is_dictionary(t) else t for n, t in types.items()}
    if not sum(fragment.metadata.num_rows for fragment in data.fragments):
        yield {name: pa.array([], type=kind) for name, kind in types.items()}
    open_file, keys_of = (
        require("pyarrow.parquet").ParquetFile,
        require("pyarrow.dataset").get_partition_keys,
    )
    for fragment in data.fragments:
        constant = keys_of(fragment.partition_expression)  # told by the names of folders
        size = max(1, min(PIECE_ROWS, PIECE_BYTES // max(1, _width(fragment.metadata))))
        with open_file(fragment.path, buffer_size=2**20, pre_buffer=False) as file:
            stored = [name for name in types if name not in constant]
            for batch in file.iter_batches(size, columns=stored, use_threads=False):
                held = {
                    name: pa.repeat(constant[name], len(batch))
                    for name in constant
                    if name in types
                }
                held |= {name: batch.column(name) for name in stored}
                yield {name: held[name].cast(kind) for name, kind in types.items()}


def _width(metadata: Any) -> int:
    """Return the bytes of a row, unpacked."""
    groups = (metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return int(sum(groups) // max(1, metadata.num_rows))
