"""Ordering of values, including numbers and dates stored as text."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array

__all__ = ["by_meaning"]


def by_meaning(name: str | None, values: Array, error: type[Exception]) -> Array:
    """Return values that sort by what they mean.

    Parameters
    ----------
    name : str or None
        Of the column, for messages; None where the caller adds it.
    values : ndarray, shape (n,)
        Not changed.
    error : type of Exception
        What is raised.

    Returns
    -------
    ndarray, shape (n,)
        Text of numbers as numbers, text of ISO 8601 dates as times in UTC; missing values are NaN
        and NaT there. Other text comes back as it is where its order is beyond doubt: it holds no
        digits, or one number each, written with as many digits, between the same words.

    Raises
    ------
    Exception
        Of the type `error`, if text holds digits in another way, such as ``13/01/2024``.
    """
    if values.dtype.kind not in "OUS":
        return values
    pandas = require("pandas")
    missing = pandas.isna(values)
    texts = [v for v in values[~missing].tolist() if isinstance(v, str)]
    plain = all(not re.search(r"\d", text) for text in texts)
    if plain or len(texts) < (~missing).sum():
        return values
    for read in (pandas.to_numeric, _iso_times):
        try:
            found = read(pandas.Series(texts))
        except (ValueError, TypeError, OverflowError):
            continue
        if not missing.any():
            return np.asarray(found)
        return np.asarray(pandas.Series(found.to_numpy(), np.flatnonzero(~missing)).reindex(
            range(len(values))
        ))  # fmt: skip
    frames = {re.sub(r"\d", "0", text) for text in texts}
    if len(frames) == 1 and len(re.findall("0+", next(iter(frames)))) == 1:
        return values
    odd = next(text for text in texts if re.search(r"\d", text))
    holder = "it" if name is None else f"column {name!r}"
    raise error(
        f"{holder} holds text such as {odd!r}, whose order as text may not be the one that it "
        "means; make it numbers or dates first, such as with pandas.to_datetime(column, "
        "format='%d/%m/%Y') or pandas.to_numeric"
    )


def _iso_times(texts: Any) -> Any:
    return require("pandas").to_datetime(texts, format="ISO8601", utc=True).dt.tz_localize(None)
