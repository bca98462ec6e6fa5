"""What scikit-learn does not make public, and the public ways."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np

from modularml._private import PUBLIC_ONLY


def may_take(cls: type, name: str, value: Any) -> bool | None:
    """Return whether an argument of an estimator may have a value; None if nothing tells.

    Nothing public does.
    """
    allowed = None if PUBLIC_ONLY else getattr(cls, "_parameter_constraints", {}).get(name)
    if allowed is None or allowed == "no_validation":
        return None
    rule = sys.modules["sklearn.utils._param_validation"].make_constraint
    return any(rule(each).is_satisfied_by(value) for each in allowed)


def scorer_parts(scorer: Any) -> tuple[Any, dict[str, Any], dict[str, Any]] | None:
    """Return the function of a scorer, its arguments, and those of `make_scorer`.

    None where only what is public is used, which calls a scorer as a whole.
    """
    if PUBLIC_ONLY:
        return None
    made = {"greater_is_better": scorer._sign > 0, "response_method": scorer._response_method}
    return scorer._score_func, dict(scorer._kwargs), made


def standardization(transformer: Any) -> tuple[Any, Any]:
    """Return means and scales by which a fitted `PowerTransformer` standardizes."""
    if not PUBLIC_ONLY:
        return transformer._scaler.mean_, transformer._scaler.scale_
    plain = copy.copy(transformer).set_params(standardize=False)
    ends = np.repeat([[1.0], [2.0]], len(plain.lambdas_), axis=1)
    raised, standardized = plain.transform(ends), transformer.transform(ends)
    scales = (raised[1] - raised[0]) / (standardized[1] - standardized[0])
    return raised[0] - standardized[0] * scales, scales
