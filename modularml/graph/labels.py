"""Class labels: what the columns of a node's scores mean, and labels in place of scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from modularml._typing import Array
from modularml.data.lineage import ColumnLineage, SourceColumns
from modularml.errors import ConfigError
from modularml.graph.lineage import source_columns_of

__all__ = ["class_labels", "decoded", "is_encoded", "score_names"]

_CODES = ("LabelEncoder", "OneHotEncoder", "OrdinalEncoder")


def is_encoded(leaf: SourceColumns) -> bool:
    """Tell whether a target is held as numbers of classes, so that outputs are scores of them."""
    return any(_encoder(leaf.source.ref.resolve(), name) for name in leaf.columns)


def class_labels(flow: ColumnLineage) -> Array | None:
    """Return the labels of one target column in the order of the columns of scores.

    That of the encoder where it was encoded, else sorted, as in scikit-learn. None where there is
    not one column of scalars.
    """
    found = source_columns_of(flow)
    if len(found) != 1 or len(found[0].columns) != 1:
        return None
    fs, name = found[0].source.ref.resolve(), found[0].columns[0]
    if (encoder := _encoder(fs, name)) is not None:
        known: Array = encoder.classes_ if hasattr(encoder, "classes_") else encoder.categories_[0]
        return known
    values = fs.collection.numpy(name)
    return np.unique(values) if values.ndim == 1 else None


def score_names(flow: ColumnLineage | None, width: int, *, method: str = "") -> list[str] | None:
    """Return the classes that columns of scores are of, as names; None where they are no scores.

    They are where the target was encoded, or where an estimator gives them by that `method`.
    """
    scores = method in ("predict_proba", "decision_function")
    if flow is None or not (scores or any(map(is_encoded, source_columns_of(flow)))):
        return None
    labels = class_labels(flow)
    return None if labels is None or len(labels) != width else [str(label) for label in labels]


def decoded(label: str, flow: ColumnLineage, values: Array) -> Array:
    """Return the most likely class of each row in place of scores, shape (n,).

    Parameters
    ----------
    label : str
        Of the node.
    flow : ColumnLineage
        Its targets.
    values : ndarray, shape (n, n_classes), or (n,) or (n, 1)
        Scores, or classes, which are returned by their labels.

    Raises
    ------
    ConfigError
        If the outputs are neither.
    """
    labels = class_labels(flow)
    flat = values.reshape(len(values), -1)
    if labels is None:
        raise ConfigError(
            f"decode needs one target column of classes, and node {label!r} has none; pass "
            "decode=False"
        )
    if flat.shape[1] == len(labels) > 1:
        found: Array = labels[flat.argmax(axis=1)]
        return found
    own = flat[:, 0]
    if flat.shape[1] == 1 and np.isin(own, labels).all():
        return own
    if flat.shape[1] == 1 and any(map(is_encoded, source_columns_of(flow))):
        codes = own.astype(np.int64)
        if np.array_equal(codes, own) and np.isin(codes, np.arange(len(labels))).all():
            return np.asarray(labels[codes])
    raise ConfigError(
        f"decode needs a score for each of the {len(labels)} classes of a row, or its class, and "
        f"node {label!r} gives {flat.shape[1]} value(s); pass decode=False"
    )


def _encoder(fs: Any, name: str) -> Any:
    """Return what made class numbers of a target column; None where nothing did."""
    _, key, rep = name.split(".")
    own = [r.scaler for r in fs.scaler_records if r.domain == "targets" and key in r.keys]
    made = rep != "raw" and own and own[0].scaler_name in _CODES
    return own[0].wrapped if made else None
