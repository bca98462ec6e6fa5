"""Results of evaluation and fit phases, which run over their rows once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml._warning import warn
from modularml.data.batch import Batch, as_numpy, concat_tensors
from modularml.data.execution import MODEL_LOSSES
from modularml.data.formats import DataFormat, convert_array
from modularml.data.selectors import select_one
from modularml.errors import ConfigError, UnknownNameError
from modularml.graph import topology
from modularml.graph.labels import class_labels, is_encoded
from modularml.graph.lineage import source_columns_of
from modularml.graph.node import GraphNode
from modularml.results.padding import blanked, real_steps, target_steps
from modularml.results.phase_results import Domain, PhaseResults
from modularml.results.scores import Meaning, Score, find_scores
from modularml.viz.predictions import confusion_matrix, parity

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EvalResults", "FitResults", "by_column"]

Reducer = Literal["mean", "sum"]


class _SinglePassResults(PhaseResults):
    """Results of a phase that runs over its rows once."""

    def stacked_tensors(
        self,
        node: str | GraphNode,
        domain: Domain,
        *,
        role: str = "default",
        fmt: str | DataFormat | None = None,
        unscale: bool = False,
    ) -> Any:
        """Return one domain of a node for all rows, shape (n_rows, ...); see `tensors`."""
        self._recorded()
        parts = self.tensors(node, domain, role=role, unscale=unscale).values()
        stacked = concat_tensors(parts)
        return stacked if fmt is None else convert_array(as_numpy(stacked), fmt)

    def stacked_batches(
        self, node: str | GraphNode, *, fmt: str | DataFormat | None = None
    ) -> Batch:
        """Return outputs, targets, tags and ids of all rows as one batch."""
        self._recorded()
        batch = Batch.concat(self.batches(node).values())
        return batch if fmt is None else batch.to(fmt)

    def scores(
        self,
        names: Sequence[str] | Mapping[str, Score],
        node: str | GraphNode | None = None,
        *,
        role: str | None = None,
        group_by: str | None = None,
        unscale: bool = True,
        outputs: Meaning = "auto",
    ) -> pd.DataFrame:
        """Return scores over all rows, for each role and each group.

        Of padded targets, only the steps with data are compared, each as one row.

        Parameters
        ----------
        names : sequence of str, or mapping of str to function
            Names from scikit-learn or torchmetrics, see `find_score`, or functions of targets and
            outputs by name.
        node : str or GraphNode, optional
            By default the only tail node of the graph.
        role : str, optional
            By default all roles.
        group_by : str, optional
            A column of the FeatureSet: each of its values gets a separate row, besides the row for
            all. If the score of a group is undefined, such as ``roc_auc`` for a single class, it is
            NaN, and a warning names the group.
        unscale : bool
            Whether outputs and targets are converted to the target's original units.
        outputs : {'auto', 'values', 'logits', 'probabilities'}
            What the outputs are; see `find_score`.

        Returns
        -------
        DataFrame
            Columns ``score``, ``role``, ``group`` (missing for all rows), ``value``, ``n_rows``.
        """
        scores = find_scores(names, outputs)
        rows = self.scored(scores, node, role=role, group_by=group_by, unscale=unscale)
        columns = ["score", "role", "group", "value", "n_rows"]
        frame: pd.DataFrame = require("pandas").DataFrame(rows, columns=columns)
        return frame

    def scored(
        self,
        scores: Mapping[str, Score],
        node: str | GraphNode | None = None,
        *,
        role: str | None = None,
        group_by: str | None = None,
        unscale: bool = True,
    ) -> list[tuple[str, str, Any, float, int]]:
        """Return the rows of `scores` as tuples, with group None for all rows."""
        node_id = self._node_id(self._tail() if node is None else node)
        undefined: list[str] = []
        rows, roles = [], self._recorded()[0].roles(node_id)
        if role not in (None, *roles):
            raise UnknownNameError("role", role, roles)
        for current_role in roles if role is None else [role]:
            true, out = (
                as_numpy(self.stacked_tensors(node_id, domain, role=current_role, unscale=unscale))
                for domain in ("targets", "outputs")
            )
            true = self._class_numbers(node_id, current_role, true, out)
            padding_mask = target_steps(self._recorded(), node_id, current_role)
            for group, mask in self._groups(node_id, current_role, group_by):
                targets, outputs = true[mask], out[mask]
                n = len(targets)
                if padding_mask is not None:
                    targets, outputs = real_steps(targets, outputs, padding_mask[mask])
                for name, score in scores.items():
                    value, reason = _score_or_nan(score, targets, outputs, required=group is None)
                    rows.append((name, current_role, group, value, n))
                    if reason:
                        undefined.append(f"{name} of {group_by}={group!r} ({reason})")
        if undefined:
            warn(f"these scores are undefined and returned as NaN: {'; '.join(undefined)}")
        return rows

    def _class_numbers(self, node_id: str, role: str, true: Array, out: Array) -> Array:
        """Return labels as column indices of class scores; other targets unchanged."""
        width = out[0].size if len(out) else 0
        if true.dtype.kind == "f" or out.dtype.kind not in "biuf" or width < 2:
            return true
        encoded, labels = self._classes(node_id)
        if true.dtype.kind not in "biu" and encoded:
            return as_numpy(self.stacked_tensors(node_id, "targets", role=role))
        if labels is None or len(labels) != width or labels.tolist() == list(range(width)):
            return true
        return np.asarray(np.searchsorted(labels, true))

    def _classes(self, node_id: str) -> tuple[bool, Array | None]:
        """Return whether a node's targets are class indices, and the class labels."""
        layout = self._recorded()[0]._layout()
        lineage = layout.lineages.get((node_id, "targets"))
        if lineage is None:
            return False, None
        with next(iter(layout.views.values())).source.context.activate():
            return any(map(is_encoded, source_columns_of(lineage))), class_labels(lineage)

    def _groups(
        self, node_id: str, role: str, group_by: str | None
    ) -> Iterator[tuple[Any, Array | slice]]:
        """Yield groups with their rows: None for all, then each value of a column."""
        yield None, slice(None)
        if group_by is None:
            return
        parts = []
        for ctx in self._execution:
            source = ctx.sources(node_id)[0]
            collection = ctx._layout().views[source].collection
            column = collection.numpy(select_one(collection.schema, group_by))
            parts.append(column[ctx.indices(source)[role]])
        values = np.concatenate(parts)
        for value in np.unique(values):
            mask = values == value if value == value else np.isnan(values)  # noqa: PLR0124
            yield value.item() if hasattr(value, "item") else value, mask

    def to_pandas(
        self, node: str | GraphNode | None = None, *, role: str = "default", unscale: bool = True
    ) -> pd.DataFrame:
        """Return one row per sample: id, outputs and targets, in the target's units.

        Padding, and predictions for it, are NaN.

        Parameters
        ----------
        node : str or GraphNode, optional
            By default the only tail node of the graph.
        role : str
        unscale : bool
        """
        node_id = self._node_id(self._tail() if node is None else node)
        read = partial(self.stacked_tensors, node_id, role=role)
        mask = target_steps(self._recorded(), node_id, role)
        out = as_numpy(read("outputs", unscale=unscale))
        columns = by_column("prediction", blanked(out, mask))
        if self._recorded()[0]._layout().lineages.get((node_id, "targets")) is not None:
            true = as_numpy(read("targets", unscale=unscale))
            columns |= by_column("target", blanked(true, mask))
        index = require("pandas").Index(read("sample_uuids"), name="sample_uuid")
        frame: pd.DataFrame = require("pandas").DataFrame(columns, index=index)
        return frame

    def plot(self, node: str | GraphNode | None = None, *, path: Any = None, **kwargs: Any) -> Any:
        """Plot predictions over targets, or a confusion matrix; return the figure.

        Parameters
        ----------
        node : str or GraphNode, optional
            By default the only tail node of the graph.
        path : path-like, optional
            Where to save the figure.
        **kwargs
            Passed to `modularml.plotting.parity` or `confusion_matrix`.
        """
        plotted = self._tail() if node is None else node
        read = partial(self.stacked_tensors, plotted, unscale=True)
        true, out = as_numpy(read("targets")), as_numpy(read("outputs"))
        title = kwargs.pop("title", self.label)
        mask = target_steps(self._recorded(), self._node_id(plotted))
        if mask is not None:
            true, out = real_steps(true, out, mask)
        if true[0].size == 1 and out[0].size > 1:
            classes = out.reshape(len(out), -1).argmax(axis=1)
            labels = self._classes(self._node_id(plotted))[1]
            if labels is not None and len(labels) == out[0].size and true.dtype.kind != "f":
                classes = labels[classes]
            return confusion_matrix(true.ravel(), classes, title=title, path=path, **kwargs)
        return parity(true.ravel(), out.ravel(), title=title, path=path, **kwargs)

    def _tail(self) -> str:
        """Return the id of the graph's only tail node that ran."""
        layout = self._recorded()[0]._layout()
        graph = next(iter(layout.views.values())).source.context.model_graph
        tails = [] if graph is None else [i for i in graph.tail_nodes if i in layout.labels]
        if len(tails) != 1:
            raise ConfigError(
                f"node must be given unless there is one tail node, there are "
                f"{[layout.labels[i] for i in tails]}; pass node="
            )
        return str(tails[0])

    def aggregated_losses(
        self, node: str | GraphNode, *, reducer: Reducer = "mean"
    ) -> dict[str, float]:
        """Return each loss on a node over all rows, by label.

        Parameters
        ----------
        node : str or GraphNode
        reducer : {'mean', 'sum'}
            ``mean`` is over samples, so it does not depend on the batch size; ``sum`` is over
            batches. A mean over samples whose weights are all 0 is NaN.
        """
        if reducer not in ("mean", "sum"):
            raise ConfigError(f"reducer must be 'mean' or 'sum', got {reducer!r}")
        node_id = self._node_id(node)
        total: dict[str, float] = {}
        count: dict[str, float] = {}
        for layout, _, table, totals in self._execution.tables():
            weights = totals if reducer == "mean" else np.ones_like(totals)
            for i, (label, on) in enumerate(layout.losses):
                if on == node_id:
                    loss_weights = weights[:, i]
                    total[label] = total.get(label, 0.0) + float(loss_weights @ table[:, i])
                    count[label] = count.get(label, 0.0) + float(loss_weights.sum())
        if reducer == "sum":
            return total
        return {label: value / (count[label] or np.nan) for label, value in total.items()}

    def model_losses(self, node: str | GraphNode, *, reducer: Reducer = "mean") -> float:
        """Return the losses that Keras models add, of a node and its ancestors."""
        labels = [label for run, *_ in self._execution.tables() for label, _ in run.losses]
        if not any(label.startswith(MODEL_LOSSES) for label in labels):
            return 0.0
        layout = self._recorded()[0]._layout()
        graph: Any = next(iter(layout.views.values())).source.context.model_graph
        total = 0.0
        for above in topology.ancestors(graph._edges(), [self._node_id(node)]):
            losses = self.aggregated_losses(above, reducer=reducer)
            total += sum(v for label, v in losses.items() if label.startswith(MODEL_LOSSES))
        return total


class EvalResults(_SinglePassResults):
    """Results of an evaluation phase."""

    @property
    def batch_indices(self) -> list[int]:
        """Numbers of the batches, ascending."""
        return sorted({c.batch_idx for c in self._execution})

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return len(self.batch_indices)


class FitResults(_SinglePassResults):
    """Results of a fit phase."""


def _score_or_nan(score: Score, true: Array, out: Array, *, required: bool) -> tuple[float, str]:
    """Return a score and ""; or NaN and the reason, if it may be undefined."""
    if required:
        return score(true, out), ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value, reason = score(true, out), ""
        except ConfigError as error:
            value, reason = float("nan"), str(error.__cause__ or error)
    messages = " ".join(str(w.message) for w in caught)
    if np.isnan(value):
        return value, reason or messages or "it is NaN"
    for w in caught:
        warn(str(w.message), w.category)
    return value, ""


def by_column(name: str, values: Array) -> dict[str, Array]:
    """Return the numbers of each sample, one column each."""
    flat = values.reshape(len(values), -1)
    if flat.shape[1] == 1:
        return {name: flat[:, 0]}
    return {f"{name}_{i}": flat[:, i] for i in range(flat.shape[1])}
