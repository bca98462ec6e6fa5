"""Argument checks."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from modularml.errors import ConfigError, ShapeError


def check_callable(name: str, value: Any) -> None:
    """Refuse values that are not callable.

    Raises
    ------
    ConfigError
        If `value` is not callable.
    """
    if not callable(value):
        raise ConfigError(f"{name} must be callable, got {value!r:.200}")


def check_int(name: str, value: Any, least: int, *, or_inf: bool = False) -> None:
    """Refuse values that are not integers, or too small.

    Raises
    ------
    ConfigError
        If `value` is not an int of at least `least` nor, with `or_inf`, infinite.
    """
    if or_inf and isinstance(value, float) and value == math.inf:
        return
    try:
        enough = operator.index(value) >= least
    except TypeError:
        enough = False
    if not enough:
        also = ", or inf" if or_inf else ""
        raise ConfigError(f"{name} must be an int of at least {least}{also}, got {value!r}")


def check_module(name: str, value: Any) -> None:
    """Refuse values that are not torch modules.

    Raises
    ------
    ConfigError
        If `value` is not callable, or has no modules.
    """
    if not (callable(value) and hasattr(value, "modules")):
        raise ConfigError(f"{name} must be a torch.nn.Module, got a {type(value).__name__}")


def check_tensors(name: str, tensors: Any, *, least: int = 1) -> None:
    """Refuse values that are not sequences of tensors of one length.

    Raises
    ------
    ConfigError
        If there are too few, or other values.
    ShapeError
        If they differ in length.
    """
    if hasattr(tensors, "index_select") or not isinstance(tensors, Sequence):
        raise ConfigError(f"{name} must be a tuple of tensors, got a {type(tensors).__name__}")
    for place, tensor in enumerate(tensors):
        if not hasattr(tensor, "index_select"):
            raise ConfigError(f"{name}[{place}] must be a tensor, got a {type(tensor).__name__}")
        if tensor.ndim == 0:
            raise ShapeError(f"{name}[{place}] must have a first axis of samples, got a scalar")
    if len(tensors) < least:
        hint = "; with last_label=True the last is the label" if least > 1 else ""
        raise ConfigError(f"{name} must have at least {least} tensors{hint}, got {len(tensors)}")
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) > 1:
        raise ShapeError(f"{name} must have the same number of samples each, got {lengths}")


def length_of(iterable: Any) -> int | None:
    """Return the length of an iterable; None if unknown."""
    try:
        return len(iterable)
    except TypeError:
        return None
