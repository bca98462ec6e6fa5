"""Files of every estimator of the zoo, written on one version of scikit-learn and read on another.

``python -m tests.io.across write FOLDER`` on one, ``python -m tests.io.across read FOLDER`` on the
other. It prints a line for each file that gives other outputs, or an error that does not name both
versions.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import sklearn

from modularml.errors import MMLError, ModularMLError
from modularml.models import ScikitModelWrapper
from modularml.models.sklearn_estimators import dense
from tests.io import zoo

METHODS = ("predict_proba", "decision_function", "predict", "transform")


def outputs(made: Any, rows: Any) -> dict[str, Any]:
    """Return what each method of an estimator gives, where it has it with these arguments."""
    found = {}
    for method in (m for m in METHODS if hasattr(made, m)):
        try:
            found[method] = dense(getattr(made, method)(rows))
        except (NotImplementedError, ValueError):
            continue
    return found


def write(folder: Path) -> int:
    """Save every example with its outputs."""
    for i, estimator in enumerate(zoo.examples()):
        made, rows, _ = zoo.fitted(estimator)
        model = ScikitModelWrapper(made)
        model.build(np.shape(rows)[1:])
        try:
            model.save(folder / f"{i}-{type(made).__name__}")
        except MMLError as error:  # an argument of it is no data
            print("not stored:", error)
            continue
        found = outputs(made, rows)
        np.savez(folder / f"{i}.npz", **found)
    (folder / "version").write_text(sklearn.__version__)
    return 0


def read(folder: Path) -> int:
    """Load every file, and say where outputs differ or an error does not name both versions."""
    bad, alike, refused, wrote = [], 0, 0, (folder / "version").read_text()
    for path in sorted(folder.glob("*.mml")):
        try:
            made = ScikitModelWrapper.load(path).inner
        except ModularMLError as error:
            refused += 1
            print("refused", path.name, error)
            if wrote not in str(error) or sklearn.__version__ not in str(error):
                bad.append(f"{path.name}: {error}")
            continue
        with np.load(folder / f"{path.name.partition('-')[0]}.npz", allow_pickle=False) as right:
            _, rows, _ = zoo.fitted(made)
            found = outputs(made, rows)
            close = (np.allclose(found[k], right[k]) for k in right if right[k].dtype.kind in "if")
            if found.keys() != set(right) or not all(close):
                bad.append(f"{path.name}: other outputs")
        alike += 1
    print(*bad, f"{wrote} on {sklearn.__version__}: {alike} alike, {refused} refused", sep="\n")
    return len(bad)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit({"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2])))
