"""What phases leave behind that pass over their rows once."""

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
from modularml.results.phase_results import Domain, PhaseResults, TrainResults
from modularml.results.real_steps import blanked, real_steps, target_steps
from modularml.results.scores import Meaning, Score, find_scores
from modularml.viz.predictions import confusion_matrix, parity

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EvalResults", "FitResults", "PhaseResults", "TrainResults", "by_column"]

Reducer = Literal["mean", "sum"]


class _OnePass(PhaseResults):
    """Results of a phase that passes over its rows once."""

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
        """Return all that belongs to a node's rows as one batch."""
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
        """Return metrics by name over all rows, for each role and each group.

        Of padded targets the steps that hold data are compared, each once, as one row each.

        Parameters
        ----------
        names : sequence of str, or mapping of str to function
            Names of scikit-learn or torchmetrics, see `find_score`, or functions of targets and
            outputs by name.
        node : str or GraphNode, optional
            The graph's only tail node where none is given.
        role : str, optional
            Every role where none is given.
        group_by : str, optional
            A column of the FeatureSet: each of its values gets a row of its own, besides the row
            for all. A group that has no answer, such as one of a single class for ``roc_auc``, is
            NaN, and a warning names it.
        unscale : bool
            Whether outputs and targets are brought back to the target's own units.
        outputs : {'auto', 'values', 'logits', 'probabilities'}
            What the outputs are; see `find_score`.

        Returns
        -------
        DataFrame
            Columns ``score``, ``role``, ``group`` (missing for all rows), ``value``, ``n_rows``.
        """
        found = find_scores(names, outputs)
        rows = self.scored(found, node, role=role, group_by=group_by, unscale=unscale)
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
        """Return the rows of `scores`: score, role, group (None for all rows), value, n_rows."""
        node_id = self._node_id(self._tail() if node is None else node)
        unanswered: list[str] = []
        rows, roles = [], self._recorded()[0].roles(node_id)
        if role not in (None, *roles):
            raise UnknownNameError("role", role, roles)
        for own in roles if role is None else [role]:
            true, out = (
                as_numpy(self.stacked_tensors(node_id, domain, role=own, unscale=unscale))
                for domain in ("targets", "outputs")
            )
            true = self._class_numbers(node_id, own, true, out)
            holds = target_steps(self._recorded(), node_id, own)
            for group, mask in self._groups(node_id, own, group_by):
                some, answers = true[mask], out[mask]
                n = len(some)
                if holds is not None:
                    some, answers = real_steps(some, answers, holds[mask])
                for name, score in scores.items():
                    value, why = _answer(score, some, answers, must=group is None)
                    rows.append((name, own, group, value, n))
                    if why:
                        unanswered.append(f"{name} of {group_by}={group!r} ({why})")
        if unanswered:
            warn(f"these scores have no answer and are NaN: {'; '.join(unanswered)}")
        return rows

    def _class_numbers(self, node_id: str, role: str, true: Array, out: Array) -> Array:
        """Return labels as numbers of the columns of scores; other targets as they are."""
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
        """Return whether a node's targets are held as numbers of classes, and their labels."""
        layout = self._recorded()[0]._layout()
        flow = layout.lineages.get((node_id, "targets"))
        if flow is None:
            return False, None
        with next(iter(layout.views.values())).source.context.activate():
            return any(map(is_encoded, source_columns_of(flow))), class_labels(flow)

    def _groups(
        self, node_id: str, role: str, group_by: str | None
    ) -> Iterator[tuple[Any, Array | slice]]:
        """Iterate over the groups of all rows: None for all, then each value of a column."""
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
        """Return one row a sample: id, outputs and targets of a node, in the target's own units.

        Padding, and what is predicted for it, is NaN.

        Parameters
        ----------
        node : str or GraphNode, optional
            The graph's only tail node where none is given.
        role : str
        unscale : bool
        """
        node_id = self._node_id(self._tail() if node is None else node)
        read = partial(self.stacked_tensors, node_id, role=role)
        holds = target_steps(self._recorded(), node_id, role)
        out = as_numpy(read("outputs", unscale=unscale))
        columns = by_column("prediction", blanked(out, holds))
        if self._recorded()[0]._layout().lineages.get((node_id, "targets")) is not None:
            true = as_numpy(read("targets", unscale=unscale))
            columns |= by_column("target", blanked(true, holds))
        index = require("pandas").Index(read("sample_uuids"), name="sample_uuid")
        frame: pd.DataFrame = require("pandas").DataFrame(columns, index=index)
        return frame

    def plot(self, node: str | GraphNode | None = None, *, path: Any = None, **kwargs: Any) -> Any:
        """Draw predictions over targets, or which class was taken for which, and return the figure.

        Parameters
        ----------
        node : str or GraphNode, optional
            The graph's only tail node where none is given.
        path : path-like, optional
            Where to save the figure.
        **kwargs
            Passed to `modularml.plotting.parity` or `confusion_matrix`.
        """
        chosen = self._tail() if node is None else node
        read = partial(self.stacked_tensors, chosen, unscale=True)
        true, out = as_numpy(read("targets")), as_numpy(read("outputs"))
        title = kwargs.pop("title", self.label)
        holds = target_steps(self._recorded(), self._node_id(chosen))
        if holds is not None:
            true, out = real_steps(true, out, holds)
        if true[0].size == 1 and out[0].size > 1:
            classes = out.reshape(len(out), -1).argmax(axis=1)
            labels = self._classes(self._node_id(chosen))[1]
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
                f"there is not one tail node but {[layout.labels[i] for i in tails]}; name a node"
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
            batches. A mean over samples that all weigh 0 is NaN.
        """
        if reducer not in ("mean", "sum"):
            raise ConfigError(f"reducer must be 'mean' or 'sum', got {reducer!r}")
        node_id = self._node_id(node)
        total: dict[str, float] = {}
        count: dict[str, float] = {}
        for layout, _, table, totals in self._execution.tables():
            weights = totals if reducer == "mean" else np.ones_like(totals)
            for place, (label, on) in enumerate(layout.losses):
                if on == node_id:
                    own = weights[:, place]
                    total[label] = total.get(label, 0.0) + float(own @ table[:, place])
                    count[label] = count.get(label, 0.0) + float(own.sum())
        if reducer == "sum":
            return total
        return {label: value / (count[label] or np.nan) for label, value in total.items()}

    def model_losses(self, node: str | GraphNode, *, reducer: Reducer = "mean") -> float:
        """Return what Keras models add to the losses of a node: its own and those it depends on."""
        if not any(label.startswith(MODEL_LOSSES) for label in self._loss_labels()):
            return 0.0
        layout = self._recorded()[0]._layout()
        graph: Any = next(iter(layout.views.values())).source.context.model_graph
        total = 0.0
        for above in topology.ancestors(graph._edges(), [self._node_id(node)]):
            found = self.aggregated_losses(above, reducer=reducer)
            total += sum(v for label, v in found.items() if label.startswith(MODEL_LOSSES))
        return total

    def _loss_labels(self) -> set[str]:
        tables = self._execution.tables()
        return {label for layout, *_ in tables for label, _ in layout.losses}


class EvalResults(_OnePass):
    """What an evaluation left behind."""

    @property
    def batch_indices(self) -> list[int]:
        """Numbers of the batches, ascending."""
        return sorted({c.batch_idx for c in self._execution})

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return len(self.batch_indices)


class FitResults(_OnePass):
    """What a fit left behind."""


def _answer(score: Score, true: Array, out: Array, *, must: bool) -> tuple[float, str]:
    """Return a score; NaN, and why, where some rows have none and need not."""
    if must:
        return score(true, out), ""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            value, why = score(true, out), ""
        except ConfigError as error:
            value, why = float("nan"), str(error.__cause__ or error)
    said_of_it = " ".join(str(w.message) for w in said)
    if np.isnan(value):
        return value, why or said_of_it or "it is NaN"
    for w in said:
        warn(str(w.message), w.category)
    return value, ""


def by_column(name: str, values: Array) -> dict[str, Array]:
    """Return the numbers of each sample, one column each."""
    flat = values.reshape(len(values), -1)
    if flat.shape[1] == 1:
        return {name: flat[:, 0]}
    return {f"{name}_{i}": flat[:, i] for i in range(flat.shape[1])}
