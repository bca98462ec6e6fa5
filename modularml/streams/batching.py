"""Tensors in memory as batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from modularml._optional import require
from modularml.streams.checks import check_int, check_tensors

__all__ = ["batches_by_chunk", "iter_batches"]

CHUNK_BYTES = 4 * 2**20
CHUNK_BATCHES = 1024


def iter_batches(
    *tensors: Any, batch_size: int = 1, shuffle: bool = True, generator: Any = None
) -> Iterator[tuple[Any, ...]]:
    """Yield batches of tensors that share their first axis.

    Parameters
    ----------
    *tensors : Tensor, shape (n_samples, ...)
        On one device.
    batch_size : int
        Samples a batch; the last one may be smaller.
    shuffle : bool
        Whether samples are shuffled first, by one ``torch.randperm`` on the first tensor's device.
    generator : torch.Generator, optional
        For ``torch.randperm``.

    Yields
    ------
    tuple of Tensor, shape (batch_size, ...)
        One for each of `tensors`: views of them where nothing is shuffled, else views of a copy
        of some thousand rows.

    Raises
    ------
    ConfigError
        If there is no tensor, or `batch_size` is less than 1.
    ShapeError
        If the tensors differ in length.

    Examples
    --------
    >>> import torch
    >>> features = torch.arange(12).reshape(6, 2)
    >>> targets = torch.arange(6)
    >>> batches = iter_batches(features, targets, batch_size=4, shuffle=False)
    >>> x_batch, y_batch = next(batches)
    >>> x_batch.shape, y_batch.shape
    (torch.Size([4, 2]), torch.Size([4]))
    """
    check_tensors("tensors", tensors)
    check_int("batch_size", batch_size, 1)
    chunks = batches_by_chunk(tensors, batch_size, shuffle, generator)
    return (batch for _, batches in chunks for batch in batches)


def batches_by_chunk(
    tensors: Sequence[Any], batch_size: int, shuffle: bool, generator: Any
) -> Iterator[tuple[int, Iterator[tuple[Any, ...]]]]:
    """Yield chunks of an epoch: how many rows, and their batches.

    Rows are gathered chunk by chunk and batches are slices of a chunk: far fewer copies than one
    gather a batch, and never a copy of everything.
    """
    n = len(tensors[0])
    size = _chunk_size(tensors, batch_size)
    order = None
    if shuffle:
        randperm = require("torch", purpose="to shuffle batches").randperm
        order = randperm(n, generator=generator, device=tensors[0].device)
    for start in range(0, n, size):
        stop = min(start + size, n)
        if order is not None:
            rows = order if size >= n else order[start:stop]
            parts = [tensor.index_select(0, rows) for tensor in tensors]
        else:
            parts = [tensor[start:stop] for tensor in tensors]
        if stop - start <= batch_size:
            yield stop - start, iter((tuple(parts),))
        else:
            yield stop - start, zip(*(part.split(batch_size) for part in parts), strict=True)


def _chunk_size(tensors: Sequence[Any], batch_size: int) -> int:
    """Return the rows of a chunk: whole batches, of a few MB in all."""
    if any(tensor.requires_grad for tensor in tensors):
        return batch_size  # batches of one gather would share a graph, which one backward frees
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    row: int = n_bytes // max(1, len(tensors[0]))
    fitting = CHUNK_BYTES // max(1, row * batch_size)
    return batch_size * max(1, min(fitting, CHUNK_BATCHES))
