"""Class weights of losses, computed from the rows of a phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from modularml._typing import Array, IntArray
from modularml.data.lineage import Source
from modularml.data.view import FeatureSetView
from modularml.errors import DataError, UnknownNameError


@dataclass(frozen=True)
class ClassWeights:
    """Weight of each sample by the class in a column.

    Parameters
    ----------
    loss : str
        Label of the loss, for messages.
    source : Source
    role : str
    column : str
        Column of the source that holds the classes.
    weights : 'balanced' or tuple of (label, float)
        A weight for each class, or ``n_samples / (n_classes * n_samples_of_class)``, as
        `sklearn.utils.class_weight.compute_class_weight`.
    """

    loss: str
    source: Source
    role: str
    column: str
    weights: Any

    def values(self, view: FeatureSetView, rows: IntArray) -> Array:
        """Return the weight of each row, shape (n,).

        Raises
        ------
        DataError
            If the column holds no classes, or a class of the view has no weight.
        """
        known, data = _TABLES.setdefault(view, {}), view.collection
        if self not in known or known[self][0] is not data:  # columns may be replaced
            known[self] = data, *self._table(view)
        _, column, classes, weights = known[self]
        found: Array = weights[np.searchsorted(classes, _labels(view, column)[rows])]
        return found

    def _table(self, view: FeatureSetView) -> tuple[str, Array, Array]:
        """Return the column that holds the classes, the classes, and their weights."""
        drawn = view.valid_indices
        labels = _labels(view, self.column)[drawn]
        is_float = labels.dtype.kind == "f"
        fractions = is_float and not (np.isfinite(labels) & (labels == np.round(labels))).all()
        if labels.ndim != 1 or fractions or labels.dtype.kind not in "biufUSO":
            raise DataError(
                f"class_weight of loss {self.loss!r} needs one class label per sample, but column "
                f"{self.column!r} holds {'fractions or NaN' if fractions else 'several values'}; "
                "use labels instead of one-hot targets, or sample_weight="
            )
        if self.weights == "balanced":
            classes, counts = np.unique(labels, return_counts=True)
            return self.column, classes, len(drawn) / (len(classes) * counts)
        weights: Mapping[Any, float] = dict(self.weights)
        raw = f"{self.column.rpartition('.')[0]}.raw"  # text labels of encoded targets
        columns = [self.column, *([raw] if raw in view.collection.schema.columns else [])]
        for column in columns:
            classes = np.unique(_labels(view, column)[drawn])
            if all(label in weights for label in classes.tolist()):
                known = np.unique(_labels(view, column)).tolist()
                if unknown := [label for label in weights if label not in known]:
                    raise UnknownNameError(
                        f"class in class_weight of loss {self.loss!r}",
                        str(unknown[0]),
                        map(str, known),
                    )
                return column, classes, np.array([weights[label] for label in classes.tolist()])
        missing = [label for label in np.unique(labels).tolist() if label not in weights]
        raise DataError(
            f"class_weight of loss {self.loss!r} has no weight for {missing} of column "
            f"{self.column!r}, only for {list(weights)}; add them, or pass 'balanced'"
        )


def _labels(view: FeatureSetView, column: str) -> Array:
    labels: Array = view.collection.numpy(column)
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


_TABLES = WeakKeyDictionary[FeatureSetView, dict[ClassWeights, tuple[Any, ...]]]()
