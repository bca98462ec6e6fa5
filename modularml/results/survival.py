"""Scores of survival models."""

from __future__ import annotations

import numpy as np

from modularml._typing import Array

__all__ = ["concordance_index", "risk_concordance_index"]


def concordance_index(true: Array, out: Array) -> float:
    """Return Harrell's concordance index of predicted times.

    Parameters
    ----------
    true : ndarray, shape (n,) or (n, 2)
        Times, or times and whether the event was observed (1) or censored (0).
    out : ndarray, shape (n,) or (n, 1)
        Predicted times, or any number that is greater for later events.

    Returns
    -------
    float
        Share of comparable pairs in the right order, 0 to 1; equal predictions count half. 0.5 is
        chance. A pair is comparable if the earlier time is an observed event; of equal times, an
        observed event is before a censored one.

    Raises
    ------
    ValueError
        If no pair is comparable, an event is neither 0 nor 1, or a number is NaN.

    Notes
    -----
    Harrell, Califf, Pryor, Lee & Rosati 1982, *Evaluating the yield of medical tests*, JAMA 247.

    Examples
    --------
    >>> import numpy as np
    >>> concordance_index(np.array([[1, 1], [2, 0], [3, 1]]), np.array([2.0, 1.0, 3.0]))
    0.5
    """
    wide, predicted = true.reshape(len(true), -1).astype(np.float64), out.astype(np.float64)
    if wide.shape[1] not in (1, 2) or predicted.size != len(true):
        raise ValueError(
            "targets must be times, or times and events (two columns), and outputs one number per "
            f"row, got shapes {true.shape} and {out.shape}"
        )
    time, predicted = wide[:, 0], predicted.ravel()
    event = wide[:, 1] if wide.shape[1] == 2 else np.ones(len(time))
    if not np.isin(event, (0, 1)).all():
        raise ValueError("the second target column must be 1 for observed events, else 0")
    if np.isnan(time).any() or np.isnan(predicted).any():
        raise ValueError("times and outputs must not be NaN")
    right, pairs = 0.0, 0
    for i in np.flatnonzero(event):
        later = (time > time[i]) | ((time == time[i]) & (event == 0))
        pairs += int(later.sum())
        right += (predicted[later] > predicted[i]).sum() + 0.5 * (
            predicted[later] == predicted[i]
        ).sum()
    if not pairs:
        raise ValueError("no two rows are comparable")
    return float(right / pairs)


def risk_concordance_index(true: Array, out: Array) -> float:
    """Return Harrell's concordance index of predicted risks, which are greater for early events.

    The outputs of a Cox model are such risks; see `concordance_index`.
    """
    return concordance_index(true, -out.astype(np.float64))
