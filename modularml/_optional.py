"""Lazy imports of optional packages."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from modularml.errors import MissingDependencyError

EXTRAS = {
    "torch": "torch",
    "tensorflow": "tensorflow",
    "keras": "tensorflow",
    "jinja2": "report",
    "markupsafe": "report",
    "matplotlib": "plot",
    "optuna": "sweep",
    "mlflow": "track",
    "tensorboard": "track",
    "wandb": "track",
    "distributed": "cluster",
    "ray": "cluster",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "xgboost": "boost",
    "lightgbm": "boost",
    "polars": "polars",
    "torchmetrics": "metrics",
}


def require(name: str, *, purpose: str = "") -> ModuleType:
    """Import an optional package; if it is missing, raise an error with a hint.

    Parameters
    ----------
    name : str
        Module to import, dots allowed (``"matplotlib.pyplot"``).
    purpose : str
        Purpose of the package, such as ``"to draw figures"``.

    Returns
    -------
    module
        The imported module.

    Raises
    ------
    MissingDependencyError
        If the package is not installed.
    """
    root = name.split(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] != root:
            raise
        extra = EXTRAS.get(root)
        how = f"pip install '.[{extra}]' in the checkout" if extra else f"pip install {root}"
        raise MissingDependencyError(
            f"{root} is not installed{' and is needed ' + purpose if purpose else ''}; run: {how}",
            name=root,
        ) from error


def has(name: str) -> bool:
    """Check whether a package can be imported, without importing it."""
    return name in sys.modules or importlib.util.find_spec(name) is not None


def loaded(name: str) -> ModuleType | None:
    """Return a module if it is already imported, else None.

    An object of a framework can only exist once that framework is loaded, so
    ``isinstance`` checks use this function and never import a framework.
    """
    return sys.modules.get(name)
