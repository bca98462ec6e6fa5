"""Class labels: names of score columns, and decoding of scores to labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml.data.lineage import ColumnLineage, SourceColumns
from modularml.errors import ConfigError
from modularml.graph.lineage import source_columns_of

__all__ = [
    "class_labels",
    "decoded",
    "gives_labels",
    "is_encoded",
    "learned_classes",
    "score_names",
]

_CODES = ("LabelEncoder", "OneHotEncoder", "OrdinalEncoder")


def is_encoded(leaf: SourceColumns) -> bool:
    """Return whether a target is encoded as class numbers, so outputs are class scores."""
    return any(_encoder(leaf.source.ref.resolve(), name) for name in leaf.columns)


def gives_labels(node: Any) -> bool:
    """Return whether a node's outputs are labels predicted by a classifier of scikit-learn."""
    model = getattr(node, "model", None)
    estimator = getattr(model, "inner", None)
    if getattr(model, "method", "") != "predict" or not hasattr(estimator, "get_params"):
        return False
    return bool(require("sklearn.base").is_classifier(estimator))


def class_labels(flow: ColumnLineage) -> Array | None:
    """Return the labels of one target column, in the order of the score columns.

    The order is the encoder's if the column was encoded, else sorted, as in scikit-learn. None
    unless there is exactly one column of scalars.
    """
    sources = source_columns_of(flow)
    if len(sources) != 1 or len(sources[0].columns) != 1:
        return None
    fs, name = sources[0].source.ref.resolve(), sources[0].columns[0]
    if (encoder := _encoder(fs, name)) is not None:
        classes: Array = (
            encoder.classes_ if hasattr(encoder, "classes_") else encoder.categories_[0]
        )
        return classes
    values = fs.collection.numpy(name)
    return np.unique(values) if values.ndim == 1 else None


def learned_classes(node: Any, flow: ColumnLineage) -> Array | None:
    """Return the class labels of a node's score columns, also if the rows are not here.

    They are the encoder's, those of a fitted estimator, or else as in `class_labels`; None if they
    are unknown.
    """
    known = getattr(getattr(getattr(node, "model", None), "inner", None), "classes_", None)
    encoded = any(map(is_encoded, source_columns_of(flow)))
    if not encoded and isinstance(known, np.ndarray) and known.ndim == 1:
        return known
    sets = [leaf.source.ref.resolve() for leaf in source_columns_of(flow)]
    if not encoded and any(fs.collection.n_absent for fs in sets):
        return None
    return class_labels(flow)


def score_names(flow: ColumnLineage | None, width: int, *, method: str = "") -> list[str] | None:
    """Return the class names of score columns; None if the columns are not scores.

    They are scores if the target was encoded, or if `method` of an estimator returns them.
    """
    scores = method in ("predict_proba", "decision_function")
    if flow is None or not (scores or any(map(is_encoded, source_columns_of(flow)))):
        return None
    labels = class_labels(flow)
    return None if labels is None or len(labels) != width else [str(label) for label in labels]


def decoded(label: str, flow: ColumnLineage, values: Array) -> Array:
    """Return the most likely class of each row, shape (n,); missing where scores are NaN.

    Parameters
    ----------
    label : str
        Of the node.
    flow : ColumnLineage
        Its targets.
    values : ndarray, shape (n, n_classes), or (n,) or (n, 1)
        Scores, or class numbers, which are returned as their labels.

    Raises
    ------
    ConfigError
        If the outputs are neither.
    """
    labels = class_labels(flow)
    flat = values.reshape(len(values), -1)
    if flat.dtype.kind == "f" and (lacks := np.isnan(flat).any(axis=1)).any():
        is_number = labels is not None and labels.dtype.kind in "biuf"
        filled = np.full(len(flat), np.nan if is_number else None, float if is_number else object)
        filled[~lacks] = decoded(label, flow, flat[~lacks])
        return filled
    if labels is None:
        raise ConfigError(
            f"decode needs one target column of classes, and node {label!r} has none; pass "
            "decode=False"
        )
    if flat.shape[1] == len(labels) > 1:
        predicted: Array = labels[flat.argmax(axis=1)]
        return predicted
    column = flat[:, 0]
    if flat.shape[1] == 1 and np.isin(column, labels).all():
        return column
    if flat.shape[1] == 1 and any(map(is_encoded, source_columns_of(flow))):
        codes = column.astype(np.int64)
        if np.array_equal(codes, column) and np.isin(codes, np.arange(len(labels))).all():
            return np.asarray(labels[codes])
    raise ConfigError(
        f"decode needs {len(labels)} class scores or one class per row, and node {label!r} gives "
        f"{flat.shape[1]} value(s); pass decode=False"
    )


def _encoder(fs: Any, name: str) -> Any:
    """Return the encoder of a target column; None if it was not encoded."""
    _, key, rep = name.split(".")
    scalers = [r.scaler for r in fs.scaler_records if r.domain == "targets" and key in r.keys]
    encoded = rep != "raw" and scalers and scalers[0].scaler_name in _CODES
    return scalers[0].wrapped if encoded else None
