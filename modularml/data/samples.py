"""Samples of one role as tensors, and which of their elements are data instead of padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray, Shape
from modularml.backends import Backend, adapter_for, backend_of
from modularml.data.formats import DataFormat, convert_array
from modularml.errors import UnknownNameError


@dataclass(frozen=True)
class SampleShapes:
    """Shape of one sample in each domain; None where the domain is absent."""

    features: Shape | None = None
    outputs: Shape | None = None
    targets: Shape | None = None
    tags: Shape | None = None


@dataclass(frozen=True, eq=False)
class SampleData:
    """Samples of one role; all domains have the same rows.

    Parameters
    ----------
    features, outputs, targets, tags : tensor or ndarray, shape (n, ...), optional
    sample_uuids : ndarray of str, shape (n,), optional
    """

    features: Any = None
    outputs: Any = None
    targets: Any = None
    tags: Any = None
    sample_uuids: Any = None

    @property
    def n_samples(self) -> int:
        """Number of rows."""
        return next((len(value) for value in self.domains().values()), 0)

    def __len__(self) -> int:
        return self.n_samples

    def domains(self) -> dict[str, Any]:
        """Return the domains that are present."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def shapes(self) -> SampleShapes:
        """Shape of one sample in each domain."""
        shapes = {n: tuple(v.shape[1:]) for n, v in self.domains().items() if n != "sample_uuids"}
        return SampleShapes(**shapes)

    def get(self, domain: str) -> Any:
        """Return one domain.

        Raises
        ------
        UnknownNameError
            If the domain is unknown or absent from these samples.
        """
        domains = self.domains()
        if domain not in domains:
            raise UnknownNameError("domain of these samples", domain, domains)
        return domains[domain]

    def with_outputs(self, outputs: Any) -> SampleData:
        """Return the same samples with outputs in place of features."""
        return replace(self, outputs=outputs, features=None)

    def to(self, fmt: str | DataFormat) -> SampleData:
        """Return the same samples with tensors in another array format."""

        def cast(value: Any) -> Any:
            is_text = isinstance(value, np.ndarray) and value.dtype.kind in "OUSM"
            return value if is_text else convert_array(as_numpy(value), fmt)

        return SampleData(**{name: cast(value) for name, value in self.domains().items()})

    def __repr__(self) -> str:
        shown = ", ".join(f"{n}={tuple(np.shape(v))}" for n, v in self.domains().items())
        return f"SampleData({shown})"


def concat_samples(parts: Sequence[SampleData]) -> SampleData:
    """Concatenate samples of one role."""
    return SampleData(
        **{name: concat_tensors([p.get(name) for p in parts]) for name in parts[0].domains()}
    )


def concat_tensors(parts: Sequence[Any]) -> Any:
    """Concatenate arrays or tensors in their framework."""
    backend = backend_of(parts[0])
    if backend is Backend.NONE:
        return np.concatenate(parts)
    return adapter_for(backend).concat(parts, 0)


def as_numpy(value: Any) -> Array:
    """Return an array or a tensor of any framework as an array."""
    backend = backend_of(value)
    return np.asarray(value) if backend is Backend.NONE else adapter_for(backend).to_numpy(value)


def in_steps(mask: Array, shape: tuple[int, ...]) -> Array:
    """Broadcast a mask of steps to all elements, shape (n, *shape)."""
    return np.broadcast_to(mask[(..., *[None] * (len(shape) - mask.ndim))], shape)


def held(table: Any, names: Sequence[str], rows: IntArray | slice | None = None) -> Array | None:
    """Return which elements of stacked columns are data instead of padding.

    Returns
    -------
    ndarray of bool, shape (n, n_columns, *shape), or None
        None if no column is padded.
    """
    masks: Mapping[str, str] = {n: m for n in names if (m := table.schema.mask_of(n)) is not None}
    if not masks:
        return None
    read = {mask: table.gather((mask,), rows)[:, 0] for mask in masks.values()}
    n = len(next(iter(read.values())))
    parts = []
    for name in names:
        shape = (n, *table.schema[name].shape)
        mask = read[masks[name]] if name in masks else np.array(True)
        parts.append(in_steps(mask, shape))
    return np.stack(parts, axis=1)


def step_weights(holds: Array) -> Array:
    """Return element weights: 0 for padding, equal for data, mean 1 in each sample.

    Parameters
    ----------
    holds : ndarray of bool, shape (n, ...)

    Returns
    -------
    ndarray of float32, shape (n, ...)
    """
    flat = holds.reshape(len(holds), -1)
    share = flat.shape[1] / np.maximum(flat.sum(axis=1, keepdims=True), 1)
    weights: Array = (flat * share).astype(np.float32).reshape(holds.shape)
    return weights
