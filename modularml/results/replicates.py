"""Replicates of one sample, brought to one row before scoring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml.errors import ConfigError, DataError

__all__ = ["Reduce", "Replicates", "aggregated", "check_reduce"]

Reduce: TypeAlias = Literal["mean", "median", "min", "max"]


class Replicates(NamedTuple):
    """A column whose equal values are replicates of one sample.

    Parameters
    ----------
    name : str
    values : ndarray, shape (n,)
    reduce : {'mean', 'median', 'min', 'max'}
    """

    name: str
    values: Array
    reduce: Reduce


def check_reduce(reduce: str, per: str | None) -> None:
    """Refuse an unknown reduction, and one without a column of samples."""
    if reduce not in get_args(Reduce):
        raise ConfigError(f"reduce must be one of {get_args(Reduce)}, got {reduce!r}")
    if per is None and reduce != "mean":
        raise ConfigError(f"reduce={reduce!r} applies to replicates; pass per= too")


def aggregated(
    replicates: Replicates,
    true: Array,
    out: Array,
    has_target: Array,
    groups: Array | None,
) -> tuple[Array, Array, Array, Array | None]:
    """Reduce targets and outputs of each sample to one row, in the order of the values.

    Rows without a target are left out of their sample. Numbers with fractions are reduced; other
    targets must be equal within a sample.

    Parameters
    ----------
    replicates : Replicates
    true, out : ndarray, shape (n, ...)
    has_target : ndarray of bool, shape (n,)
    groups : ndarray, shape (n,), optional
        Must be equal within a sample.

    Returns
    -------
    tuple of ndarray
        Targets, outputs, whether a sample has a target, and groups, one row per sample.

    Raises
    ------
    DataError
        If a target of classes or a group differs within a sample, or a row belongs to none.
    ConfigError
        If outputs are not numbers with fractions, or samples are not single values.
    """
    name, values, reduce = replicates
    if values.ndim != 1:
        raise ConfigError(
            f"per must name a column of one value per row, but {name!r} has values of shape "
            f"{values.shape[1:]}"
        )
    if out.dtype.kind != "f":
        raise ConfigError(
            f"outputs of {out.dtype} cannot be averaged over replicates (per={name!r}); score "
            "probabilities (output_method='predict_proba') or numbers"
        )
    codes = require("pandas").factorize(values, sort=True)[0]
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        raise DataError(f"row {row} has no value of {name!r}, so its sample is unknown (per=)")
    rows = [np.flatnonzero(codes == code) for code in range(codes.max(initial=-1) + 1)]
    scored = [part[has_target[part]] if has_target[part].any() else part for part in rows]
    known = np.array([has_target[part].any() for part in rows], dtype=bool)
    function: Callable[..., Any] = getattr(np, reduce)
    outputs = _reduced(out, scored, function)
    if true.dtype.kind == "f":
        targets = _reduced(true, scored, function)
    else:
        targets = _constant(true, scored, "targets", name)
    of_samples = None if groups is None else _constant(groups, rows, "group_by", name)
    return targets, outputs, known, of_samples


def _reduced(values: Array, rows: list[Array], function: Callable[..., Any]) -> Array:
    wide = values.astype(np.float64)
    return np.stack([np.asarray(function(wide[part], axis=0)) for part in rows])


def _constant(values: Array, rows: list[Array], what: str, per: str) -> Array:
    """Return the value of each sample; refuse one that differs within it."""
    for part in rows:
        own = values[part]
        if (own != own[:1]).any() and len({str(v) for v in own.reshape(len(own), -1).tolist()}) > 1:
            raise DataError(
                f"{what} differ within a sample of {per!r}, as in rows {part[:5].tolist()}; they "
                "must be equal for replicates"
            )
    first: Array = values[np.array([part[0] for part in rows])]
    return first
