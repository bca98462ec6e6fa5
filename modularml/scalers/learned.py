"""What an estimator has learned, as plain data and back; nothing is pickled."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from modularml.config import encode, find_code
from modularml.errors import ConfigError, ScalerError

__all__ = ["learned", "parameters", "relearn"]


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Return what a class's constructor takes, by name."""
    try:
        return dict(inspect.signature(cls).parameters)
    except ValueError:  # some classes written in C do not tell
        return {}


def learned(estimator: Any) -> dict[str, Any]:
    """Return what an estimator has learned.

    Parameters
    ----------
    estimator : object
        Its attributes are taken, but for the constructor's arguments. Of those, only the ones
        that hold estimators, which may have been fitted inside.

    Returns
    -------
    dict of str to object
        Numbers, strings, arrays, lists and dicts; arrays are copies.

    Raises
    ------
    ScalerError
        If an attribute is none of these.
    """
    given = parameters(type(estimator))
    return {
        name: _plain(value, f"{type(estimator).__name__}.{name}")
        for name, value in vars(estimator).items()
        if name not in given or _holds_estimator(value)
    }


def relearn(estimator: Any, state: dict[str, Any]) -> None:
    """Give an estimator back what `learned` returned.

    Raises
    ------
    ScalerError
        If the state names a class that is no estimator.
    """
    for name, value in state.items():
        if not isinstance(getattr(type(estimator), name, None), property):
            setattr(estimator, name, _revived(value))


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return value
    if isinstance(value, np.ndarray):
        return _plain_array(value, where)
    if isinstance(value, list):
        return [_plain(item, where) for item in value]
    if isinstance(value, tuple):
        return {"$tuple": [_plain(item, where) for item in value]}
    if isinstance(value, dict):
        pairs = value.items()
        return {"$dict": [[_plain(k, where), _plain(v, where)] for k, v in pairs]}
    if isinstance(value, np.dtype):
        return {"$dtype": value.str}
    if _is_estimator(value):
        params = {k: _plain(v, f"{where}.{k}") for k, v in value.get_params(deep=False).items()}
        return {"$fitted": encode(type(value))["$code"], "params": params, "state": learned(value)}
    try:
        return {"$config": encode(value)}
    except ConfigError as error:
        raise ScalerError(
            f"{where} is a {type(value).__name__} and cannot be stored as plain data; "
            "give the class get_state() and set_state(state)"
        ) from error


def _plain_array(value: np.ndarray[Any, Any], where: str) -> Any:
    if value.dtype.hasobject:
        items = [_plain(item, where) for item in value.ravel()]
        return {"$objects": items, "shape": list(value.shape)}
    if value.flags.f_contiguous and not value.flags.c_contiguous:
        return {"$columns_first": value.T.copy()}  # products differ by an ulp in another order
    return value.copy()


def _revived(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list):
        return [_revived(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$objects" in value:
        return _object_array([_revived(item) for item in value["$objects"]], value["shape"])
    if "$columns_first" in value:
        return value["$columns_first"].copy().T
    if "$tuple" in value:
        return tuple(_revived(item) for item in value["$tuple"])
    if "$dict" in value:
        return {_revived(key): _revived(item) for key, item in value["$dict"]}
    if "$dtype" in value:
        return np.dtype(value["$dtype"])
    if "$fitted" in value:
        return _revived_estimator(value)
    return find_code(value["$config"]["$code"])


def _revived_estimator(value: dict[str, Any]) -> Any:
    cls = find_code(value["$fitted"])
    if not (isinstance(cls, type) and hasattr(cls, "fit") and hasattr(cls, "get_params")):
        raise ScalerError(f"{value['$fitted']!r} is no estimator, so it cannot be part of a state")
    estimator = cls(**{name: _revived(item) for name, item in value["params"].items()})
    relearn(estimator, value["state"])
    return estimator


def _object_array(items: list[Any], shape: list[int]) -> np.ndarray[Any, Any]:
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out.reshape(shape)


def _is_estimator(value: Any) -> bool:
    return hasattr(value, "get_params") and hasattr(value, "fit") and not isinstance(value, type)


def _holds_estimator(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_estimator(item) for item in value)
    return _is_estimator(value)
