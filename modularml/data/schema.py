"""Schema of samples: domain, key, representation, shape and dtype of columns."""

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

DOMAINS = ("features", "targets", "tags")
RAW = "raw"
TRANSFORMED = "transformed"
SAMPLE_UUIDS = "sample_uuids"
POSITION = "position"
"""Key for joining rows by their positions."""

KINDS = ("number", "category", "time", "text", "sequence")

WINDOW = ("series", "loose_series", "source", "start", "stop")
"""Tags of windows: the series (whose windows splits keep together, or not), the first sample, and
the first step and the step behind the last one within the series."""

_METADATA_KEY = b"modularml"
"""Key of the Arrow field metadata that holds kind, unit, elements and window as JSON."""

_FORBIDDEN = re.compile(r"[.:\\/\s]")


@dataclass(frozen=True)
class ColumnSpec:
    """One column: its name and the shape, dtype and meaning of its samples.

    `mask` is the key of the boolean column that is true for data and false for padding; it has the
    shape of the first axes of a sample. `kind` is one of `KINDS`, `unit` the unit of the values,
    `elements` the names of the elements of a one-dimensional sample. `window` marks tags that say
    where a window was cut: one of `WINDOW`.
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
    window: str | None = None

    def __post_init__(self) -> None:
        allowed = {"category": "biuO", "text": "O"}.get(self.kind)
        if self.kind not in KINDS or (allowed is not None and self.dtype.kind not in allowed):
            raise DataError(
                f"column {self.key!r} of {self.dtype} cannot have kind {self.kind!r}; kinds "
                f"are {', '.join(KINDS)}: a category is integers, booleans or text"
            )
        if self.window not in (None, *WINDOW):
            raise DataError(f"column {self.key!r} has the unknown window mark {self.window!r}")
        if self.elements is not None and (len(self.elements),) != self.shape:
            raise DataError(
                f"element_names of {self.key!r} must be {self.shape} names, one per element, got "
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
    """Cache of resolved columns by reference."""

    @classmethod
    def from_arrow(cls, schema: pa.Schema, masks: Mapping[str, str] | None = None) -> SampleSchema:
        """Create a schema from the types of an Arrow schema, without reading data.

        `masks` gives the key of the mask of each padded column by its own key. Masks without a
        column are omitted.

        Raises
        ------
        DataError
            If a name is not ``domain.key.rep``, a key occurs in two domains, or a mask does not
            match its column.
        """
        columns: dict[str, ColumnSpec] = {}
        for column in schema:
            if column.name == SAMPLE_UUIDS:
                continue
            domain, key, rep = parse_name(column.name)
            shape, dtype = sample_shape(column.type), numpy_dtype(column.type)
            metadata = _read_metadata(column)
            metadata.setdefault(
                "kind", {"O": "text", "M": "time", "m": "time"}.get(dtype.kind, KINDS[0])
            )
            columns[column.name] = ColumnSpec(domain, key, rep, shape, dtype, **metadata)
        owner: dict[str, str] = {}
        for spec in columns.values():
            if owner.setdefault(spec.key, spec.domain) != spec.domain:
                raise DataError(
                    f"key {spec.key!r} occurs in {owner[spec.key]!r} and in {spec.domain!r}; "
                    "keys are unique across domains, so rename one of the columns"
                )
        for name, spec in columns.items():
            mask = (masks or {}).get(spec.key)
            if mask in owner:
                of = next(s for s in columns.values() if s.key == mask)
                fits = of.shape and spec.shape[: len(of.shape)] == of.shape and of.rep == RAW
                if of.dtype.kind != "b" or not fits:
                    raise DataError(
                        f"the mask {mask!r} of column {spec.key!r} must be a boolean column with "
                        f"one value for each step of {spec.shape}, true for data (astype(bool)), "
                        f"got {of.dtype} of shape {of.shape}"
                    )
                kind = "sequence" if spec.kind == KINDS[0] else spec.kind
                columns[name] = replace(spec, mask=mask, kind=kind)
        return cls(columns)

    def window_keys(self, *marks: str) -> list[str]:
        """Return the keys of the tags of windows with one of these marks."""
        return [s.key for s in self.columns.values() if s.window in marks and s.rep == RAW]

    @cached_property
    def masks(self) -> dict[str, str]:
        """Key of the mask of each padded column, by its own key."""
        return {s.key: s.mask for s in self.columns.values() if s.mask is not None}

    def mask_of(self, name: str) -> str | None:
        """Return the full name of the mask of a column; None if it has none."""
        key = self[name].mask
        return None if key is None else f"{self.domain_of(key)}.{key}.{RAW}"

    def with_masks(self, names: Iterable[str]) -> list[str]:
        """Return these columns and the masks of padded ones."""
        names = list(names)
        return list(dict.fromkeys([*names, *filter(None, map(self.mask_of, names))]))

    def keys(self, domain: str) -> list[str]:
        """Return the keys of a domain, in order."""
        return list(self._reps.get(domain, ()))

    def domain_of(self, key: str) -> str:
        """Return the domain of a key.

        Raises
        ------
        UnknownNameError
            If no domain has this key.
        """
        for domain, reps in self._reps.items():
            if key in reps:
                return domain
        raise UnknownNameError("column", key, {s.key for s in self.columns.values()})

    @cached_property
    def raw(self) -> dict[str, ColumnSpec]:
        """Raw columns by key."""
        return {spec.key: spec for spec in self.columns.values() if spec.rep == RAW}

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
        reps: dict[str, dict[str, list[str]]] = {}
        for spec in self.columns.values():
            reps.setdefault(spec.domain, {}).setdefault(spec.key, []).append(spec.rep)
        return reps

    def __getitem__(self, name: str) -> ColumnSpec:
        try:
            return self.columns[name]
        except KeyError:
            raise UnknownNameError("column", name, self.columns) from None


def with_metadata(schema: pa.Schema, descriptions: Mapping[str, Mapping[str, Any]]) -> pa.Schema:
    """Return an Arrow schema with kind, unit and elements in the field metadata.

    Parameters
    ----------
    schema : pyarrow.Schema
    descriptions : mapping of str to mapping
        By full name; they replace the existing metadata of the field.
    """
    metadata = {}
    for name, description in descriptions.items():
        values = {field: value for field, value in description.items() if value is not None}
        metadata[name] = {_METADATA_KEY: json.dumps(values)} if values else None
    return pa.schema(f.with_metadata(metadata[f.name]) if f.name in metadata else f for f in schema)


def description_of(spec: ColumnSpec) -> dict[str, Any]:
    """Return what the metadata of a column's field hold."""
    return {name: getattr(spec, name) for name in ("kind", "unit", "elements", "window")}


def _read_metadata(column: pa.Field) -> dict[str, Any]:
    text = (column.metadata or {}).get(_METADATA_KEY)
    try:
        metadata = {} if text is None else json.loads(text)
        invalid = metadata.keys() - {"kind", "unit", "elements", "window"} or not all(
            isinstance(metadata.get(name, ""), str) for name in ("kind", "unit", "window")
        )
        elements = metadata.get("elements")
        if invalid or not all(isinstance(name, str) for name in elements or ()):
            raise ValueError
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"the metadata of column {column.name!r} is invalid") from error
    return metadata if elements is None else {**metadata, "elements": tuple(elements)}


def parse_name(name: str) -> tuple[str, str, str]:
    """Split ``domain.key.rep``; raise a DataError for a name of any other form."""
    parts = name.split(".")
    if len(parts) != 3 or parts[0] not in DOMAINS or not all(parts):
        raise DataError(
            f"column name {name!r} must be <domain>.<key>.<rep> with a domain of "
            f"{', '.join(DOMAINS)}; from_pandas and from_dict name columns for you, as does "
            "from_pyarrow_table with feature_cols=, target_cols= and tag_cols="
        )
    check_keys(parts[1:2])
    return parts[0], parts[1], parts[2]


def check_keys(keys: Iterable[Any]) -> None:
    r"""Refuse keys that would be ambiguous in a selector.

    Raises
    ------
    DataError
        If a key is not a string, is empty, contains ``. : \ /`` or a space, or is repeated.
    """
    seen: set[str] = set()
    for key in keys:
        if key == SAMPLE_UUIDS:
            raise DataError(f"the column key {key!r} is reserved for row ids; rename it")
        if not isinstance(key, str) or not key or _FORBIDDEN.search(key):
            fixed = _FORBIDDEN.sub("_", str(key)) or "column"
            raise DataError(
                f"column key {key!r} must be a string without '.', ':', '\\', '/' and spaces"
                f"; rename it, for example with rename={{{key!r}: {fixed!r}}}"
            ).with_code("MML-208")
        if key in seen:
            raise DataError(
                f"column key {key!r} is repeated; keys are unique across domains. Name it once, as "
                "group_by= and others take features and targets, too"
            )
        seen.add(key)
