"""Fitted state of estimators as plain data, without pickle.

Attributes are traversed. Objects that are neither data nor estimators must be on a closed list of
kinds: decision trees, neighbour trees, losses, sparse matrices, random generators and a few classes
of scikit-learn. Data that is read is validated before it is used.
"""

from __future__ import annotations

from typing import Any

from modularml.io.attributes import check_attributes
from modularml.io.estimator_kinds import is_estimator, parameters, parts_of
from modularml.io.estimator_reader import Reader
from modularml.io.estimator_writer import Writer

__all__ = ["check_parts", "learned", "relearn"]


def learned(estimator: Any, *, check: bool = True) -> dict[str, Any]:
    """Return the fitted state of an estimator.

    Parameters
    ----------
    estimator : object
        Its attributes are stored, except for constructor arguments. Of those, only the ones
        that hold estimators, which may have been fitted in place.
    check : bool
        Whether to check attributes with `check_attributes`, as reading does.

    Returns
    -------
    dict of str to object
        Numbers, strings, arrays, lists and dicts; arrays are copies.

    Raises
    ------
    ConfigError
        If an attribute is none of these, or not on the list.
    """
    if check:
        check_parts(estimator)
    return Writer().state(estimator)


def check_parts(estimator: Any) -> None:
    """Check an estimator and all its parts with `check_attributes`."""
    for part in parts_of(estimator):
        check_attributes(part, parameters(type(part)) if is_estimator(part) else ())


def relearn(estimator: Any, state: dict[str, Any]) -> None:
    """Restore the fitted state that `learned` returned.

    Raises
    ------
    ConfigError
        If the state names a class that is not an estimator, or its parts do not fit each other.
    """
    Reader().take(estimator, state)
