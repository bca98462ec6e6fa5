"""Fingerprints: hashable values that are equal while an object is unchanged."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np


class Identity:
    """A key by the identity of objects; holds them so that their ids are not reused."""

    __slots__ = ("held",)

    def __init__(self, *held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Identity)
            and len(self.held) == len(other.held)
            and all(map(operator.is_, self.held, other.held))
        )

    def __hash__(self) -> int:
        return hash(tuple(map(id, self.held)))


def checksum(array: Any) -> int:
    """Return the CRC-32 of the bytes of an array."""
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def fingerprint(value: Any) -> Hashable:
    """Return a fingerprint of an argument: its contents, or its identity.

    Containers and arrays, including tensors, count by their contents. Any other object counts by
    identity, as do variables, whose values compiled steps read each time.
    """
    kind = type(value)
    if isinstance(value, Mapping):
        return kind, tuple((key, fingerprint(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return kind, tuple(map(fingerprint, value))
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return kind, repr(value)
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    if hasattr(value, "__array__") and not isinstance(value, type) and not hasattr(value, "assign"):
        array = np.asarray(value)
        if array.dtype.kind in "biufc":
            return kind, array.shape, array.dtype.str, checksum(array)
    return Identity(value)
