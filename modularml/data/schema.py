"""What columns there are: domain, key, representation, shape and dtype of each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._typing import Shape
from modularml.data.arrow_types import numpy_dtype, sample_shape
from modularml.errors import DataError, UnknownNameError

__all__ = [
    "DOMAINS",
    "POSITION",
    "RAW",
    "SAMPLE_UUIDS",
    "TRANSFORMED",
    "ColumnSpec",
    "SampleSchema",
]

DOMAINS = ("features", "targets", "tags")
RAW = "raw"
TRANSFORMED = "transformed"
SAMPLE_UUIDS = "sample_uuids"
POSITION = "position"
"""What rows are joined on that belong together by their places alone."""

KINDS = ("number", "category", "time", "text", "sequence")

_FACTS = b"modularml"
"""The key of a field's metadata in Arrow that holds kind, unit and elements as JSON."""

_FORBIDDEN = re.compile(r"[.:\\/\s]")


@dataclass(frozen=True)
class ColumnSpec:
    """One column: where it stands and what one sample of it looks like.

    `mask` is the key of the boolean column that is true where its samples hold data; the rest is
    padding. Its shape is that of the first axes of a sample. `kind` is one of `KINDS`, `unit` that
    of the values, `elements` the names of the elements of a sample of one axis.
    """

    domain: str
    key: str
    rep: str
    shape: Shape
    dtype: np.dtype[Any]
    mask: str | None = None
    kind: str = "number"
    unit: str | None = None
    elements: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        held = {"category": "biuO", "text": "O"}.get(self.kind)
        if self.kind not in KINDS or (held is not None and self.dtype.kind not in held):
            raise DataError(
                f"column {self.key!r} of {self.dtype} cannot be of the kind {self.kind!r}; kinds "
                f"are {', '.join(KINDS)}: categories are integers, flags or text, and text is text"
            )
        if self.elements is not None and (len(self.elements),) != self.shape:
            raise DataError(
                f"element_names of {self.key!r} must be {self.shape} names, one an element, got "
                f"{len(self.elements)}"
            )

    @property
    def name(self) -> str:
        """Full name, ``domain.key.rep``."""
        return f"{self.domain}.{self.key}.{self.rep}"


@dataclass(frozen=True)
class SampleSchema:
    """The columns of a FeatureSet, by full name and in order.

    Parameters
    ----------
    columns : mapping of str to ColumnSpec
        Keyed by ``domain.key.rep``.
    """

    columns: Mapping[str, ColumnSpec]
    resolved: dict[Any, tuple[str, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Columns that references to these have been found to mean."""

    @classmethod
    def from_arrow(cls, schema: pa.Schema, masks: Mapping[str, str] | None = None) -> SampleSchema:
        """Read names, shapes and dtypes from the types alone, never from the data.

        Columns are padded as `masks` says: the key of a mask by the key of a column. Masks of
        which there is no column are left out.

        Raises
        ------
        DataError
            If a name is not ``domain.key.rep``, a key stands in two domains, or a mask does not
            fit its column.
        """
        columns: dict[str, ColumnSpec] = {}
        for column in schema:
            if column.name == SAMPLE_UUIDS:
                continue
            domain, key, rep = parse_name(column.name)
            shape, dtype = sample_shape(column.type), numpy_dtype(column.type)
            facts = _facts(column)
            facts.setdefault(
                "kind", {"O": "text", "M": "time", "m": "time"}.get(dtype.kind, KINDS[0])
            )
            columns[column.name] = ColumnSpec(domain, key, rep, shape, dtype, **facts)
        owner: dict[str, str] = {}
        for spec in columns.values():
            if owner.setdefault(spec.key, spec.domain) != spec.domain:
                raise DataError(
                    f"key {spec.key!r} stands in {owner[spec.key]!r} and in {spec.domain!r}; "
                    "keys are unique across domains, rename one of the columns"
                )
        for name, spec in columns.items():
            mask = (masks or {}).get(spec.key)
            if mask in owner:
                of_mask = next(s for s in columns.values() if s.key == mask)
                _check_mask(spec, of_mask)
                kind = "sequence" if spec.kind == KINDS[0] else spec.kind
                columns[name] = replace(spec, mask=mask, kind=kind)
        return cls(columns)

    @property
    def masks(self) -> dict[str, str]:
        """Key of the mask of each padded column, by its own key."""
        return {s.key: s.mask for s in self.columns.values() if s.mask is not None}

    def mask_of(self, name: str) -> str | None:
        """Return the full name of the mask of a column; None where it has none."""
        key = self[name].mask
        return None if key is None else f"{self.domain_of(key)}.{key}.{RAW}"

    def with_masks(self, names: Iterable[str]) -> list[str]:
        """Return these columns, and the masks of those that are padded."""
        listed = list(names)
        return list(dict.fromkeys([*listed, *filter(None, map(self.mask_of, listed))]))

    def keys(self, domain: str) -> list[str]:
        """Return the keys of a domain, in order."""
        return list(self._reps.get(domain, ()))

    def domain_of(self, key: str) -> str:
        """Return the domain that a key stands in.

        Raises
        ------
        UnknownNameError
            If no domain has this key.
        """
        for domain, reps in self._reps.items():
            if key in reps:
                return domain
        raise UnknownNameError("column", key, {s.key for s in self.columns.values()})

    def reps(self, domain: str, key: str) -> list[str]:
        """Return the representations of a column, oldest first."""
        return list(self._reps.get(domain, {}).get(key, ()))

    def newest(self, domain: str, key: str) -> str:
        """Return the full name of the newest representation of a column.

        Raises
        ------
        UnknownNameError
            If there is no such column.
        """
        reps = self.reps(domain, key)
        if not reps:
            raise UnknownNameError(f"column of {domain}", key, self.keys(domain))
        return f"{domain}.{key}.{TRANSFORMED if TRANSFORMED in reps else reps[-1]}"

    @cached_property
    def _reps(self) -> dict[str, dict[str, list[str]]]:
        """Representations by domain and key."""
        found: dict[str, dict[str, list[str]]] = {}
        for spec in self.columns.values():
            found.setdefault(spec.domain, {}).setdefault(spec.key, []).append(spec.rep)
        return found

    def __getitem__(self, name: str) -> ColumnSpec:
        try:
            return self.columns[name]
        except KeyError:
            raise UnknownNameError("column", name, self.columns) from None


def _check_mask(spec: ColumnSpec, mask: ColumnSpec) -> None:
    fits = mask.shape and spec.shape[: len(mask.shape)] == mask.shape and mask.rep == RAW
    if mask.dtype.kind != "b" or not fits:
        raise DataError(
            f"the mask {mask.key!r} of column {spec.key!r} must be a boolean column with one value "
            f"for each step of {spec.shape}, got {mask.dtype} of shape {mask.shape}; true is where "
            "there is data (astype(bool))"
        )


def described(schema: pa.Schema, facts: Mapping[str, Mapping[str, Any]]) -> pa.Schema:
    """Return an Arrow schema whose fields hold facts on columns: kind, unit, elements.

    Parameters
    ----------
    schema : pyarrow.Schema
    facts : mapping of str to mapping
        By full name; they replace those that the field holds.
    """
    kept = {
        name: {what: value for what, value in own.items() if value is not None}
        for name, own in facts.items()
    }
    held = {name: {_FACTS: json.dumps(own)} if own else None for name, own in kept.items()}
    return pa.schema(f.with_metadata(held[f.name]) if f.name in held else f for f in schema)


def _facts(column: pa.Field) -> dict[str, Any]:
    held = (column.metadata or {}).get(_FACTS)
    try:
        found = {} if held is None else json.loads(held)
        odd = found.keys() - {"kind", "unit", "elements"} or not all(
            isinstance(found.get(name, ""), str) for name in ("kind", "unit")
        )
        elements = found.get("elements")
        if odd or not all(isinstance(name, str) for name in elements or ()):
            raise ValueError
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"what column {column.name!r} says of itself is unclear") from error
    return found if elements is None else {**found, "elements": tuple(elements)}


def parse_name(name: str) -> tuple[str, str, str]:
    """Split ``domain.key.rep``; a name of any other form is a DataError."""
    parts = name.split(".")
    if len(parts) != 3 or parts[0] not in DOMAINS or not all(parts):
        raise DataError(
            f"column name {name!r} must be <domain>.<key>.<rep> with a domain of "
            f"{', '.join(DOMAINS)}; from_pandas and from_dict name columns for you, and "
            "from_pyarrow_table does with feature_cols=, target_cols= and tag_cols="
        )
    check_keys(parts[1:2])
    return parts[0], parts[1], parts[2]


def check_keys(keys: Iterable[Any]) -> None:
    r"""Refuse keys that would be ambiguous in a selector.

    Raises
    ------
    DataError
        If a key is no string, is empty, holds ``. : \ /`` or a space, or comes twice.
    """
    seen: set[str] = set()
    for key in keys:
        if key == SAMPLE_UUIDS:
            raise DataError(f"the column key {key!r} is reserved for the ids of rows; rename it")
        if not isinstance(key, str) or not key or _FORBIDDEN.search(key):
            fixed = _FORBIDDEN.sub("_", str(key)) or "column"
            raise DataError(
                f"column key {key!r} must be a string without '.', ':', '\\', '/' and spaces"
                f"; rename it with rename={{{key!r}: {fixed!r}}}, say"
            )
        if key in seen:
            raise DataError(f"column key {key!r} is given twice; keys are unique across domains")
        seen.add(key)
