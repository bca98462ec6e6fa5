"""Reads changed states of fitted estimators and uses what was read, in a process of its own.

``python -m tests.fuzz.hostile_estimators FIRST STEP SEED SHARE`` takes every STEP-th estimator of
the zoo from FIRST on. It writes one line before each use, so that a crash has a name, and one line
for each error that is not of the package.
"""

from __future__ import annotations

import random
import resource
import sys
import warnings
from typing import Any

import numpy as np

from modularml.errors import ModularMLError
from modularml.io.estimators import learned, relearn
from modularml.models import ScikitModelWrapper
from tests.io import zoo

ROOM = 6 * 2**30


def hostile(value: Any) -> list[Any]:
    """Return eight values that might stand where one does, arrays of the same dtype if need be."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
        big = np.iinfo(value.dtype).max if value.dtype.kind in "iu" else np.inf
        low = -7 if value.dtype.kind != "u" else 0
        return [
            value[:0],
            np.concatenate([value] * 9) if value.ndim else value,
            value[..., :1] if value.ndim else value,
            np.full_like(value, big),
            np.full_like(value, low),
            np.full_like(value, 10**6 if value.dtype.itemsize > 2 else 99),
            np.zeros((3, *value.shape), value.dtype),
            np.zeros(10**6, value.dtype),
        ]
    if isinstance(value, bool):
        return [not value, None, 7, "x", [], -1, 2.5, np.zeros(3)]
    if isinstance(value, int):
        return [-1, 0, value + 1, 2**31 - 1, 2**40, None, "x", np.zeros(3)]
    if isinstance(value, float):
        return [np.nan, np.inf, -1.0, 0.0, 1e300, None, "x", np.zeros(3)]
    if isinstance(value, list):
        return [[], value * 9, value[:1], [None] * len(value), [-1], [2**40], None, {"$tuple": []}]
    return [None, -1, 2**40, "x", [], np.zeros(0), np.zeros((10**6, 2)), {"$dict": []}]


def places(state: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the ways to everything in a state that can be replaced."""
    items = state.items() if isinstance(state, dict) else enumerate(state)
    found = []
    for key, value in items:
        if str(key).startswith("$") and not isinstance(value, dict | list):
            continue
        found.append((*at, key))
        if isinstance(value, dict | list) and len(at) < 5 and len(value) < 40:
            found += places(value, (*at, key))
    return found


def changed(state: Any, way: tuple[Any, ...], value: Any) -> Any:
    """Return a state with one value replaced; the rest is shared."""
    if not way:
        return value
    copy = dict(state) if isinstance(state, dict) else list(state)
    copy[way[0]] = changed(state[way[0]], way[1:], value)
    return copy


def use(estimator: Any, targets: Any) -> None:
    made = ScikitModelWrapper(estimator)
    rows = zoo.X[:9].copy()
    for method in ("predict_proba", "decision_function", "predict", "transform"):
        if hasattr(type(estimator), method):
            made.method, made._answered = method, True
            made._output_shape = None
            made(rows)
    if hasattr(estimator, "partial_fit") and targets is not None:
        made.partial_fit(rows, np.asarray(targets)[:9])


def main(first: int, step: int, seed: int, share: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
    groups = [(zoo.REGRESSORS, zoo.Y), (zoo.CLASSIFIERS, zoo.KIND), (zoo.OTHERS, zoo.KIND)]
    groups += [(zoo.REST, zoo.Y)]
    pairs = [(e, y) for group, y in groups for e in group]
    n = 0
    for estimator, y in pairs[first::step]:
        dice = random.Random(f"{seed} {estimator}")
        try:
            rows = zoo.CATEGORIES if "categorical" in repr(estimator) else zoo.X
            state = learned(estimator.fit(rows, y))
        except ValueError as error:
            print("unfit", type(estimator).__name__, error, flush=True)
            continue
        ways = places(state)
        top = [way for way in ways if len(way) == 1]
        ways = top + dice.sample(ways, min(len(ways), 40))
        for way in ways:
            value = state
            for key in way:
                value = value[key]
            for i, bad in enumerate(hostile(value)):
                if dice.random() > share:
                    continue
                name = f"{type(estimator).__name__} {way} {i}"
                fresh = type(estimator)(**estimator.get_params(deep=False))
                print("TRY", name, flush=True)
                n += 1
                try:
                    relearn(fresh, changed(state, way, bad))
                except Exception:  # of which `Contents.building` makes an error of the package
                    continue
                try:
                    use(fresh, y)
                except ModularMLError:
                    pass
                except BaseException as error:
                    print("RAW using", name, repr(error)[:200], flush=True)
    print("DONE", n, flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    main(*map(int, sys.argv[1:4]), float(sys.argv[4]))
