"""Writes what fits of every estimator leave behind: ``python -m tests.io.facts``.

The list in ``modularml/io/attributes.json`` grows by what the installed version of scikit-learn
leaves behind; run it on the oldest and on the newest version that is declared. Names of classes
after it gather for these alone.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn
from scipy.sparse import csr_matrix
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.utils import all_estimators

from modularml.config import encode
from modularml.io import estimator_checks, estimators
from modularml.io.estimator_kinds import MADE_AGAIN, parameters, parts_of
from tests.io import zoo

PATH = Path(estimator_checks.__file__).with_name("attributes.json")
Facts = dict[str, dict[str, set[str]]]


def examples() -> list[Any]:
    """Return estimators to fit: those of the zoo, and the others of scikit-learn as they come."""
    found = zoo.examples()
    for _, cls in all_estimators():
        try:
            found.append(_quick(cls()))
        except TypeError:  # it takes an estimator
            continue
    return found


def _quick(estimator: Any) -> Any:
    """Return an estimator that learns little."""
    few = {"n_estimators": 3, "max_iter": 9, "n_init": 1, "cv": 3}
    return estimator.set_params(**{k: v for k, v in few.items() if k in estimator.get_params()})


def fits(estimator: Any) -> Iterator[Any]:
    """Fit an estimator on rows of all forms that it takes."""
    frame = pd.DataFrame(zoo.X, columns=list("abcd"))
    text = np.array(list("abbcc"), dtype=object)[zoo.CATEGORIES.astype(int) % 5]
    rows = [zoo.X, zoo.X.astype(np.float32), frame, zoo.CATEGORIES, csr_matrix(zoo.X), text]
    two = np.where(zoo.KIND == "low", 0, 1)
    labels = [zoo.KIND, two, two.astype(float)]
    numbers = [zoo.Y, np.exp(zoo.Y / 9), np.stack([zoo.Y, zoo.Y**2], 1)]
    if type(estimator).__module__ == "sklearn.preprocessing._label":
        for y in (*labels, zoo.KIND.astype(object)):
            with contextlib.suppress(TypeError):
                yield clone(estimator).fit(y)
        return
    targets = labels if is_classifier(estimator) else numbers
    if not (is_classifier(estimator) or is_regressor(estimator)):
        targets = [zoo.KIND]
    for x, y in [
        *((rows[0], y) for y in targets),
        *((x, targets[0]) for x in rows[1:]),
        (rows[0], np.stack([two, 1 - two], 1)),
    ]:
        made = clone(estimator)
        try:
            made.fit(x, y) if y is not None else made.fit(x)
        except Exception:  # such rows are not for it
            continue
        if hasattr(made, "partial_fit"):
            yield made
            made = clone(estimator)
            try:
                classes = {"classes": np.unique(y)} if is_classifier(made) else {}
                made.partial_fit(x, y, **classes)
                made.partial_fit(x, y)
            except Exception:
                continue
        yield made


def _fits_there_are(estimator: Any, *, of_the_zoo: bool) -> Iterator[Any]:
    if of_the_zoo:
        yield zoo.fitted(estimator)[0]
    with contextlib.suppress(AttributeError, ValueError):  # it lacks an estimator to fit
        yield from fits(estimator)


def gather() -> Facts:
    """Return kinds of values by class and attribute."""
    facts: Facts = defaultdict(lambda: defaultdict(set))
    n, only = 0, [name for name in sys.argv[1:] if name != "--new"]
    of_the_zoo = len(zoo.examples())
    for i, estimator in enumerate(examples()):
        if only and type(estimator).__name__ not in only:
            continue
        for made in _fits_there_are(estimator, of_the_zoo=i < of_the_zoo):
            try:
                estimators.learned(made, check=False)
                encode(type(made))
            except Exception:  # no file holds it
                continue
            n += 1
            for part in parts_of(made):
                cls = type(part)
                if cls.__module__.startswith("sklearn."):
                    given = parameters(cls) if hasattr(part, "get_params") else ()
                    own = facts[cls.__name__]
                    for name in vars(part).keys() - set(given) - set(MADE_AGAIN):
                        own[name].add(estimator_checks.described(vars(part)[name]))
    print(n, "fits of", len(facts), "classes, scikit-learn", sklearn.__version__)
    return facts


def main() -> None:
    facts = gather()
    if PATH.exists() and "--new" not in sys.argv:
        for cls, own in json.loads(PATH.read_text()).items():
            known = facts[cls]  # also where a class learns nothing
            for name, kinds in own.items():
                known[name] |= set(kinds)
    tidy = {c: {n: sorted(k) for n, k in sorted(own.items())} for c, own in sorted(facts.items())}
    lines = ",\n".join(f"{json.dumps(c)}: {json.dumps(own)}" for c, own in tidy.items())
    PATH.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
