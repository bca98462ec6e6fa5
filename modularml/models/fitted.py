"""Fitted estimators as part of a state."""

from __future__ import annotations

from typing import Any

import sklearn

from modularml._warning import warn
from modularml.config import Configurable
from modularml.errors import ConfigError, MMLError
from modularml.io import limits
from modularml.io.estimators import check_parts, learned, relearn

__all__ = ["FittedEstimator", "become"]


class FittedEstimator(Configurable):
    """A fitted estimator: the object itself in memory, plain data in a file.

    Parameters
    ----------
    estimator : estimator
    """

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def check_storable(self) -> None:
        """Refuse an estimator whose class, arguments or attributes cannot be stored.

        Raises
        ------
        ConfigError
            The message names the class of the part that cannot be stored.
        """
        self.get_config()
        check_parts(self.estimator)

    def _file_state(self) -> dict[str, Any]:
        try:
            return {"sklearn": sklearn.__version__, "learned": learned(self.estimator)}
        except ConfigError as error:
            problem = f"a fitted {type(self.estimator).__name__} cannot be stored as data: {error}"
            hint = "Save it unfitted, and fit it again after loading"
            raise MMLError(limits.NO_PLAIN_DATA, problem=problem, hint=hint) from error

    def _set_file_state(self, state: dict[str, Any]) -> None:
        saved, installed = state["sklearn"], sklearn.__version__
        if saved.split(".")[:2] != installed.split(".")[:2]:
            warn(
                f"this {type(self.estimator).__name__} was saved with scikit-learn {saved}; "
                f"{installed} is installed, and its results may differ"
            )
        relearn(self.estimator, state["learned"])


def become(estimator: Any, other: Any) -> None:
    """Replace the attributes of an estimator in place by those of another."""
    vars(estimator).clear()
    vars(estimator).update(vars(other))
