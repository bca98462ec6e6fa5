"""What an estimator has learned, as plain data and back; nothing is pickled.

Attributes are walked. Objects that are neither data nor estimators are written by a closed list of
kinds: decision trees, neighbour trees, losses, sparse matrices, random generators and a few of
scikit-learn's own holders. What is read is held against its structure before it is used.
"""

from __future__ import annotations

from typing import Any

from modularml.io.attributes import check_attributes
from modularml.io.estimator_kinds import is_estimator, parameters, parts_of
from modularml.io.estimator_reader import Reader
from modularml.io.estimator_writer import Writer

__all__ = ["check_parts", "learned", "relearn"]


def learned(estimator: Any, *, check: bool = True) -> dict[str, Any]:
    """Return what an estimator has learned.

    Parameters
    ----------
    estimator : object
        Its attributes are taken, but for the constructor's arguments. Of those, only the ones
        that hold estimators, which may have been fitted inside.
    check : bool
        Whether to hold attributes against the list of `check_attributes`, as reading does.

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
    """Hold an estimator, and all parts within it, against the list of `check_attributes`."""
    for part in parts_of(estimator):
        check_attributes(part, parameters(type(part)) if is_estimator(part) else ())


def relearn(estimator: Any, state: dict[str, Any]) -> None:
    """Give an estimator back what `learned` returned.

    Raises
    ------
    ConfigError
        If the state names a class that is no estimator, or its parts do not fit each other.
    """
    Reader().take(estimator, state)
