"""Reads changed states of fitted estimators and uses what was read, in a process of its own.

``python -m tests.fuzz.hostile_estimators FIRST STEP SEED SHARE`` takes every STEP-th estimator of
the zoo from FIRST on. Some of the changed states go through a file as well. It writes one line
before each use, so that a crash has a name, and one line for each error that is not of the package.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from modularml.errors import ConfigError, ModularMLError
from modularml.io.estimators import learned, relearn
from modularml.io.jsontext import dump_json
from modularml.io.values import Packer
from modularml.models import ScikitModelWrapper
from tests.io import things, zoo

ROOM = 6 * 2**30
IN_FILES = 0.1
"""The part of the changed states that also goes through a file."""


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


def use(made: ScikitModelWrapper, rows: Any, targets: Any) -> None:
    """Ask a model for every kind of output, and let it learn on."""
    if isinstance(rows, pd.DataFrame):
        made._place = replace(made._place, columns=tuple(rows))
    for method in ("predict_proba", "decision_function", "predict", "transform"):
        if hasattr(type(made.inner), method):
            made.method, made._answered = method, True
            made._output_shape = None
            made(np.array(rows)[:9])
    if hasattr(made.inner, "partial_fit"):
        made.partial_fit(np.array(rows)[:9], np.asarray(targets)[:9])


def from_memory(fitted: Any, rows: Any, state: Any) -> ScikitModelWrapper:
    """Return a model of the same arguments that has read a state."""
    fresh = type(fitted)(**fitted.get_params(deep=False))
    try:
        relearn(fresh, state)
        return ScikitModelWrapper(fresh)
    except Exception as error:  # of which `Contents.building` makes an error of the package
        raise ConfigError(str(error)) from error


def from_file(fitted: Any, rows: Any, state: Any, folder: Path) -> ScikitModelWrapper:
    """Return the model of a file whose hashes are right and whose state is this one."""
    model = ScikitModelWrapper(fitted)
    model.build(np.shape(rows)[1:])
    good = model.save(folder / "good")

    def edit(found: dict[str, bytes]) -> None:
        packer, tree = Packer(), json.loads(found["state.json"])
        tree["estimator"]["state"]["learned"] = packer.pack(state, ("estimator", "learned"))
        found |= {"state.json": dump_json(tree), **packer.members()}

    path = things.resealed(good, folder / "bent.md.mml", edit)
    return ScikitModelWrapper.load(path)


def attempt(name: str, read: Callable[..., ScikitModelWrapper], *facts: Any) -> None:
    """Read and use a changed state, and report an error that is not of the package."""
    fitted, rows, targets, *state = facts
    print("TRY", name, flush=True)
    stage = "reading"
    try:
        made = read(fitted, rows, *state)
        stage = "using"
        use(made, rows, targets)
    except ModularMLError:
        pass
    except BaseException as error:
        print("RAW", stage, name, repr(error)[:200], flush=True)


def main(first: int, step: int, seed: int, share: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
    count = dict.fromkeys(("estimators", "attributes", "values", "files"), 0)
    for estimator in zoo.examples()[first::step]:
        dice = random.Random(f"{seed} {estimator}")
        fitted, rows, targets = zoo.fitted(estimator)
        state = learned(fitted)
        ways = places(state)
        top = [way for way in ways if len(way) == 1]
        deeper = [way for way in ways if len(way) > 1]
        count["estimators"] += 1
        for way in top + dice.sample(deeper, min(len(deeper), 40)):
            count["attributes"] += 1
            value = state
            for key in way:
                value = value[key]
            for i, bad in enumerate(hostile(value)):
                if dice.random() > share:
                    continue
                name = f"{type(fitted).__name__} {way} {i}"
                bent = changed(state, way, bad)
                count["values"] += 1
                attempt(name, from_memory, fitted, rows, targets, bent)
                if dice.random() < IN_FILES:
                    count["files"] += 1
                    with TemporaryDirectory() as folder:
                        name += " in a file"
                        attempt(name, from_file, fitted, rows, targets, bent, Path(folder))
    print("DONE", json.dumps(count), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    main(*map(int, sys.argv[1:4]), float(sys.argv[4]))
