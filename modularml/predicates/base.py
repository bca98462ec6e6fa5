"""Base class of predicates, and their combinations."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import reduce
from typing import Any, ClassVar, Self

from modularml._typing import Array
from modularml.config import Configurable, decode
from modularml.errors import ConfigError
from modularml.predicates.value_order import Mask


class Predicate(Configurable, ABC):
    """A condition on one column that can be stored with a split and read again.

    Join predicates with ``&``, ``|`` and ``~``. A predicate of your own stores its constructor's
    arguments under their own names and defines ``__call__``.

    Examples
    --------
    >>> import numpy as np
    >>> from modularml.predicates import GT, LT
    >>> cold_or_hot = LT(10) | GT(40)
    >>> cold_or_hot(np.array([5, 25, 45])).tolist()
    [True, False, True]
    """

    @abstractmethod
    def __call__(self, values: Array) -> Mask:
        """Tell for each row whether the condition holds.

        Parameters
        ----------
        values : ndarray, shape (n_samples,)
            One column. May be empty; is not changed.

        Returns
        -------
        ndarray of bool, shape (n_samples,)

        Raises
        ------
        DataError
            If the column's type or shape does not suit the condition.
        """

    def __and__(self, other: Predicate) -> Predicate:
        return And(self, other)

    def __or__(self, other: Predicate) -> Predicate:
        return Or(self, other)

    def __invert__(self) -> Predicate:
        return Not(self)

    def __bool__(self) -> bool:
        raise ConfigError(
            "a predicate is neither true nor false by itself; join predicates with & | ~, "
            "not with and, or, not"
        )


class _Joined(Predicate):
    """Several predicates made into one."""

    _sign: ClassVar[str]
    _join: ClassVar[Callable[[Any, Any], Any]]

    def __init__(self, *conditions: Predicate) -> None:
        if not conditions:
            raise ConfigError(f"{type(self).__name__} takes at least one predicate, got none")
        for condition in conditions:
            _require_predicate(condition, type(self).__name__)
        self.conditions = conditions

    def __call__(self, values: Array) -> Mask:
        """Tell for which rows the joined predicates hold."""
        join = type(self)._join  # on the class: a plain function there would become a method
        masks = [condition(values) for condition in self.conditions]
        return reduce(join, masks)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make an object from `get_config` output."""
        return cls(*decode(config["conditions"]))

    def _params(self) -> dict[str, Any]:
        return {"conditions": list(self.conditions)}

    def __repr__(self) -> str:
        return f"({f' {self._sign} '.join(map(repr, self.conditions))})"


class And(_Joined):
    """Hold where every one of the given predicates holds.

    Examples
    --------
    >>> import numpy as np
    >>> from modularml.predicates import EQ, GT, LT
    >>> And(GT(1), LT(3))(np.array([1, 2, 3])).tolist()
    [False, True, False]
    """

    _sign = "&"
    _join = operator.and_


class Or(_Joined):
    """Hold where at least one of the given predicates holds.

    Examples
    --------
    >>> import numpy as np
    >>> from modularml.predicates import EQ, GT, LT
    >>> Or(LT(2), GT(2))(np.array([1, 2, 3])).tolist()
    [True, False, True]
    """

    _sign = "|"
    _join = operator.or_


class Not(Predicate):
    """Hold where the given predicate does not; so missing values may be among them.

    Examples
    --------
    >>> import numpy as np
    >>> from modularml.predicates import EQ, GT, LT
    >>> Not(EQ(2))(np.array([1, 2, 3])).tolist()
    [True, False, True]
    """

    def __init__(self, condition: Predicate) -> None:
        _require_predicate(condition, "Not")
        self.condition = condition

    def __call__(self, values: Array) -> Mask:
        """Tell for which rows the given predicate does not hold."""
        return ~self.condition(values)

    def __repr__(self) -> str:
        return f"~{self.condition!r}"


def _require_predicate(condition: object, where: str) -> None:
    if not isinstance(condition, Predicate):
        raise ConfigError(
            f"{where} takes predicates, got {condition!r}; wrap values as EQ(value) or In(values)"
        )
