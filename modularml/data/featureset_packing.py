"""Files of FeatureSets: their state as plain data and back, with checks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._typing import IntArray
from modularml.data.collection import SampleCollection
from modularml.data.scaler_fitting import UNSEEN
from modularml.data.scaling import ScalerRecord
from modularml.data.schema import DOMAINS
from modularml.data.split_records import DroppedRows, SplitRecord, check_split_name
from modularml.errors import DataError
from modularml.io.artifact import write_artifact
from modularml.io.jsontext import dump_json
from modularml.io.values import Packer
from modularml.scalers.flattening import Flattening
from modularml.scalers.scaler import Scaler
from modularml.splitters import BaseSplitter

_OF_GROUPS = ("per", "unseen", "groups", "group_scalers")


def save(
    self: Any, filepath: str | Path, *, overwrite: bool = False, package_code: bool = False
) -> Path:
    """Write rows, splits, scalers and their records to a file ``name.fs.mml``.

    Raises
    ------
    MMLExistsError
        If the file exists and `overwrite` is false.
    MMLError
        If a part cannot be stored as data or the file cannot be written.
    """
    return write_artifact(
        filepath,
        "fs",
        "FeatureSet",
        self.get_config,
        lambda: packed(self.get_state()),
        overwrite=overwrite,
        ids={self.node_id: self.label},
        package_code=package_code,
    )


def packed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the state of `FeatureSet.get_state` to data that a file can hold."""
    collection: SampleCollection = state["collection"]
    data = {
        "table": collection.table,
        **({"masks": masks} if (masks := collection.schema.masks) else {}),
        "splits": dict(state["splits"]),
        "split_records": [_as_dict(r) for r in state["split_records"]],
        "scaler_records": [_scaler_dict(r) for r in state["scaler_records"]],
        **({"audit_allowed": list(allowed)} if (allowed := state["audit_allowed"]) else {}),
    }
    if dropped := state.get("dropped"):
        data["dropped"] = {
            name: [{"reason": p.reason, "ids": p.ids.view(np.uint8).reshape(-1, 16)} for p in parts]
            for name, parts in dropped.items()
        }
    if collection.n_absent:
        data["absent"] = {"rows": collection.n_absent, "fingerprint": collection.fingerprint}
    return data


def packed_without_rows(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a state without values of rows: columns, scalers, row numbers of splits.

    Split records are omitted because their conditions hold values.
    """
    return packed({**state, "collection": state["collection"].without_rows(), "split_records": []})


def scalers_fingerprint(records: Iterable[ScalerRecord]) -> str:
    """Return a hash of fitted scalers and their columns."""
    packer = Packer()
    data = [_scaler_dict(replace(record, fit_rows=None)) for record in records]
    digest = hashlib.sha256(dump_json(packer.pack(data)))
    for member in packer.members().values():
        for part in member:
            digest.update(part)
    return digest.hexdigest()


def unpacked(data: Mapping[str, Any]) -> dict[str, Any]:
    """Convert data from a file to a state for `FeatureSet.set_state`.

    Raises
    ------
    DataError
        If rows, columns or names are inconsistent.
    """
    _check(isinstance(data["table"], pa.Table), "its rows are not a table")
    masks = data.get("masks", {})
    is_text = isinstance(masks, dict) and all(isinstance(v, str) for v in masks.values())
    _check(is_text, "its masks are not names of columns")
    collection = SampleCollection(data["table"], masks=masks)
    _check(collection.schema.masks == masks, "a mask belongs to columns that do not exist")
    if "absent" in data:
        absent, digest = data["absent"]["rows"], data["absent"]["fingerprint"]
        fits = type(absent) is int and absent > 0 and isinstance(digest, str) and len(digest) == 32
        _check(fits, "its record of omitted rows is invalid")
        collection = collection.without_rows(absent, digest)
    n = collection.n_absent or collection.n_samples
    splits: dict[str, IntArray] = {}
    for name, rows in data["splits"].items():
        check_split_name(name, splits)
        splits[name] = _rows(rows, n)
    split_records = []
    for record in data["split_records"]:
        names, rows = tuple(record["names"]), record["rows"]
        _check(isinstance(record["splitter"], BaseSplitter), "a split record has no splitter")
        _check(set(names) <= set(splits), "a split record names a split that does not exist")
        rows = None if rows is None else _rows(rows, n)
        split_records.append(SplitRecord(**{**record, "names": names, "rows": rows}))
    return {
        "collection": collection,
        "splits": splits,
        "split_records": split_records,
        "scaler_records": [_scaler_record(r, collection) for r in data["scaler_records"]],
        "audit_allowed": tuple(map(str, data.get("audit_allowed", ()))),
        "dropped": _dropped(data.get("dropped", {}), splits),
    }


def _dropped(data: Any, splits: Mapping[str, Any]) -> dict[str, tuple[DroppedRows, ...]]:
    """Return the dropped rows by split; parts that several splits share are shared again."""
    seen: dict[tuple[str, bytes], DroppedRows] = {}
    dropped: dict[str, tuple[DroppedRows, ...]] = {}
    _check(isinstance(data, dict) and not data.keys() - {"", *splits}, "its drops name no split")
    for name, parts in data.items():
        for part in parts:
            reason, ids = part["reason"], part["ids"]
            fits = isinstance(ids, np.ndarray) and ids.dtype == np.uint8 and ids.shape[1:] == (16,)
            _check(
                fits and isinstance(reason, str) and bool(reason), "a record of drops is invalid"
            )
            key = reason, ids.tobytes()
            rows = seen.setdefault(key, DroppedRows(reason, np.frombuffer(key[1], dtype="V16")))
            dropped[name] = (*dropped.get(name, ()), rows)
    return dropped


def _as_dict(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _scaler_dict(record: ScalerRecord) -> dict[str, Any]:
    """Return the fields of a record, those of groups only if it has any."""
    data = _as_dict(record)
    if not record.per:
        return {name: value for name, value in data.items() if name not in _OF_GROUPS}
    lists = {"per": list(record.per), "groups": list(map(list, record.groups))}
    return {**data, **lists, "group_scalers": list(record.group_scalers)}


def _scaler_record(data: dict[str, Any], collection: SampleCollection) -> ScalerRecord:
    _check(isinstance(data["scaler"], Scaler), "a scaler record has no scaler")
    _check(isinstance(data["flattening"], Flattening), "a scaler record has no flattening")
    _check(data["domain"] in DOMAINS, "a scaler record has an unknown domain")
    known = collection.schema.keys(data["domain"])
    _check(set(data["keys"]) <= set(known), "a scaler record names columns that do not exist")
    rows = data["fit_rows"]
    rows = None if rows is None else _rows(rows, collection.n_absent or collection.n_samples)
    targets, outputs = tuple(data.get("targets", ())), data.get("outputs")
    schema = collection.schema.columns
    _check(all(name in schema for name in targets), "a scaler record has unknown targets")
    if outputs is not None:
        lists = isinstance(outputs, list | tuple) and all(
            isinstance(places, list | tuple) and all(type(i) is int for i in places)
            for places in outputs
        )
        _check(lists, "a scaler record has columns that belong to no key")
        outputs = tuple(map(tuple, outputs))
        places = sorted(place for places in outputs for place in places)
        fits = len(outputs) == len(data["keys"]) and places == list(range(len(places)))
        _check(fits and all(outputs), "a scaler record has columns that belong to no key")
    seed = data.get("seed")
    _check(seed is None or type(seed) is int, "the seed of a scaler record is not an integer")
    checked = {"keys": tuple(data["keys"]), "targets": targets, "outputs": outputs}
    record = ScalerRecord(**{**data, **checked, "fit_rows": rows})
    if "per" not in data:
        return record
    per, groups, scalers = (data[name] for name in ("per", "groups", "group_scalers"))
    fits = bool(per) and all(isinstance(name, str) and name.count(".") == 2 for name in per)
    fits = fits and len(groups) == len(scalers) and all(len(g) == len(per) for g in groups)
    fits = fits and all(isinstance(scaler, Scaler) for scaler in scalers)
    plain = all(isinstance(v, str | int | float | bool) for group in groups for v in group)
    _check(fits and plain and data["unseen"] in UNSEEN, "a scaler record has invalid groups")
    labels = tuple(map(tuple, groups))
    return replace(record, per=tuple(per), groups=labels, group_scalers=tuple(scalers))


def _rows(rows: Any, n: int) -> IntArray:
    fits = isinstance(rows, np.ndarray) and rows.ndim == 1 and rows.dtype == np.int64
    inside = fits and (not len(rows) or (rows.min() >= -1 and rows.max() < n))  # -1 is padding
    _check(inside, "row numbers are out of range")
    checked: IntArray = rows
    return checked


def _check(fits: bool, problem: str) -> None:
    if not fits:
        raise DataError(problem)
