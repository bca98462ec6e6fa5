"""Results of evaluation and fit phases, which run over their rows once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from modularml._typing import Array
from modularml._warning import warn
from modularml.data.batch import Batch, as_numpy, concat_tensors
from modularml.data.execution_context import MODEL_LOSSES, ExecutionContext
from modularml.data.formats import DataFormat, convert_array
from modularml.data.lineage import SourceColumns, column_named
from modularml.data.selectors import select_one
from modularml.errors import ConfigError, UnknownNameError
from modularml.graph import topology
from modularml.graph.lineage import source_columns_of
from modularml.graph.node import GraphNode
from modularml.graph.unscaling import class_labels, is_encoded
from modularml.results.phase_results import Domain, PhaseResults
from modularml.results.result_tables import ComparedRows, plot_rows
from modularml.results.scores import Meaning, Score, find_scores
from modularml.results.scoring import (
    Reduce,
    Replicates,
    ScoredGroup,
    blanked,
    check_reduce,
    class_numbers,
    logged_scores,
    score_groups,
    target_steps,
)

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
        per: str | None = None,
        reduce: Reduce = "mean",
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
        per : str, optional
            A column whose equal values are replicates of one sample: their outputs and targets are
            reduced to one row before scoring, and rows are then samples. Class scores are averaged
            as the node gives them.
        reduce : {'mean', 'median', 'min', 'max'}
            How replicates are reduced.

        Returns
        -------
        DataFrame
            Columns ``score``, ``role``, ``group`` (missing for all rows), ``value``, ``n_rows``,
            and ``n_missing``, the rows left out because a target is missing.
        """
        scores = find_scores(names, outputs)
        how: dict[str, Any] = {"per": per, "reduce": reduce}
        rows = self.scored(scores, node, role=role, group_by=group_by, unscale=unscale, **how)
        return pd.DataFrame(rows, columns=ScoredGroup._fields)

    def scored(
        self,
        scores: Mapping[str, Score],
        node: str | GraphNode | None = None,
        *,
        role: str | None = None,
        group_by: str | None = None,
        unscale: bool = True,
        per: str | None = None,
        reduce: Reduce = "mean",
    ) -> list[ScoredGroup]:
        """Return the rows of `scores` as tuples, with group None for all rows.

        Warns
        -----
        UserWarning
            If rows are left out because a target is missing.
        """
        check_reduce(reduce, per)
        node_id = self._node_or_tail(node)
        rows: list[ScoredGroup] = []
        roles = self._recorded()[0].roles(node_id)
        if role not in (None, *roles):
            raise UnknownNameError("role", role, roles)
        for current_role in roles if role is None else [role]:
            true, out = (
                as_numpy(self.stacked_tensors(node_id, domain, role=current_role, unscale=unscale))
                for domain in ("targets", "outputs")
            )
            samples, groups = (
                None if name is None else self._column(node_id, current_role, name)
                for name in (per, group_by)
            )
            rows += score_groups(
                scores,
                true,
                out,
                mask=target_steps(self._recorded(), node_id, current_role),
                groups=groups,
                group_by=group_by,
                role=current_role,
                who=f"phase {self.label!r}",
                prepared=partial(self._class_numbers, node_id),
                replicates=None if samples is None else Replicates(str(per), samples, reduce),
            )
        if n := sum(row.n_missing for row in rows if row.group is None and row.score in scores):
            n //= len(scores)
            noun = "rows" if per is None else "samples"
            warn(f"{n} {noun} of phase {self.label!r} lack a target and are left out of its scores")
        return rows

    def _class_numbers(self, node_id: str, true: Array, out: Array) -> Array:
        """Return labels as column indices of class scores; other targets unchanged."""
        first = self._recorded()[0]
        lineage = first.compared_with(node_id)
        if true.dtype.kind == "f" or lineage is None:
            return true
        with first.context.activate():
            encoded = any(map(is_encoded, source_columns_of(lineage)))
            labels = class_labels(lineage)
        return class_numbers(true, out, labels, encoded=encoded)

    def _column(self, node_id: str, role: str, name: str) -> Array:
        """Return the value of a column for each row, from the first FeatureSet that has it."""
        first = self._recorded()[0]
        views, sources = first._layout().views, first.sources(node_id)
        source = next(
            (s for s in sources if column_named(name, views[s].collection.schema)), sources[0]
        )
        collection = views[source].collection
        column = collection.numpy(select_one(collection.schema, name))
        return np.concatenate([column[c.indices(source)[role]] for c in self._execution])

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
        node_id = self._node_or_tail(node)
        read = partial(self.stacked_tensors, node_id, role=role)
        mask = target_steps(self._recorded(), node_id, role)
        out = as_numpy(read("outputs", unscale=unscale))
        labels = output_labels(self._recorded()[0], node_id)
        columns = by_column("prediction", blanked(out, mask), labels)
        if self._recorded()[0]._layout().lineages.get((node_id, "targets")) is not None:
            true = as_numpy(read("targets", unscale=unscale))
            columns |= by_column("target", blanked(true, mask))
        index = pd.Index(read("sample_uuids"), name="sample_uuid")
        return pd.DataFrame(columns, index=index)

    def plot(
        self,
        node: str | GraphNode | None = None,
        kind: str | None = None,
        *,
        role: str = "default",
        target: str | None = None,
        group_by: str | None = None,
        over: str | None = None,
        weight_by: str | None = None,
        outputs: Meaning | None = None,
        per: str | None = None,
        reduce: Reduce = "mean",
        path: Any = None,
        **options: Any,
    ) -> Any:
        """Draw outputs against targets, in original units, and return the figure.

        Steps of padded targets that are no data are not drawn. Rows without a target are omitted
        and counted.

        Parameters
        ----------
        node : str or GraphNode, optional
            By default the only tail node of the graph.
        kind : str, optional
            Of numbers ``parity`` (the default) or ``residuals``; of classes ``confusion`` (the
            default), ``roc``, ``precision_recall`` or ``calibration``. See `modularml.plotting`.
        role : str
        target : str, optional
            Key of the target to draw, of several that are numbers.
        group_by : str, optional
            A column: a box of residuals, or a curve of one class, for each of its values.
        over : str, optional
            A column of numbers or times that residuals are drawn over.
        weight_by : str, optional
            A column with the weight of each row, for ``roc`` and ``precision_recall``.
        outputs : {'auto', 'logits', 'probabilities'}, optional
            What class scores are; see `scores`.
        per, reduce : str, optional
            Column of replicates that are reduced to one row; see `scores`.
        path : path-like, optional
            Where to save the figure.
        **options
            Passed to the function of `modularml.plotting`, such as ``normalize=True`` for
            ``confusion`` or ``positive="worn"`` for ``roc``.

        Raises
        ------
        UnknownNameError
            If there is no such kind, option, target or column.
        ConfigError
            If the kind does not fit the targets, or an option does not fit the kind.

        Examples
        --------
        ``results.plot(kind="residuals", group_by="cell")``
        """
        rows = self.compared_rows(self._node_or_tail(node), role)
        how: dict[str, Any] = {"target": target, "group_by": group_by, "over": over}
        how |= {"weight_by": weight_by, "outputs": outputs, "per": per, "reduce": reduce}
        return plot_rows(rows, kind, path=path, **{"title": self.label, **how, **options})

    def compared_rows(self, node: str | GraphNode, role: str = "default") -> ComparedRows:
        """Return targets and outputs of a node in original units, for plots."""
        node_id = self._node_id(node)
        first, read = self._recorded()[0], partial(self.stacked_tensors, role=role, unscale=True)
        if role not in first.roles(node_id):
            raise UnknownNameError("role", role, first.roles(node_id))
        true, out = (as_numpy(read(node_id, domain)) for domain in ("targets", "outputs"))
        graph = first.context.model_graph
        known = {} if graph is None else graph.nodes
        node = known.get(node_id, first._layout().labels[node_id])
        with first.context.activate():
            return ComparedRows.of(
                node,
                first.compared_with(node_id),
                true,
                out,
                output_labels(first, node_id),
                mask=target_steps(self._recorded(), node_id, role),
                column=lambda name, _: self._column(node_id, role, name),
            )

    def _tails(self) -> dict[str, str]:
        """Return the labels of the nodes that ran and that no running node reads, by id."""
        layout, graph = self._recorded()[0]._layout(), self._recorded()[0].context.model_graph
        ran = {node_id for node_id, _ in layout.outputs}
        edges = {} if graph is None else graph._edges()
        running = {i: above for i, above in edges.items() if i in ran}
        return {i: layout.labels[i] for i in topology.tails(running)}

    def _node_or_tail(self, node: str | GraphNode | None) -> str:
        """Return the id of a node, by default of the only tail node that ran."""
        if node is not None:
            return self._node_id(node)
        tails = self._tails()
        if len(tails) != 1:
            raise ConfigError(
                f"node must be given unless there is one tail node, there are "
                f"{list(tails.values())}; pass node="
            )
        return next(iter(tails))

    def log_scores(
        self, scores: Mapping[str, Score], group_by: str | None = None, **replicates: Any
    ) -> None:
        """Log scores of all rows and of each group as metrics, such as ``r2[cell_1]``.

        If several tail nodes ran, those with targets are scored, as ``label.r2``. Replicates
        (`per`, `reduce`) are as in `scores`.

        Raises
        ------
        ConfigError
            If no tail node has targets.
        """
        first, tails = self._recorded()[0], self._tails()
        scored = {i: label for i, label in tails.items() if first.compared_with(i) is not None}
        if not scored:
            raise ConfigError(
                f"metrics of phase {self.label!r} compare outputs with targets, and its tail nodes "
                f"{list(tails.values())} have none; select targets in the references of its "
                "FeatureSets, or omit metrics"
            )
        for node_id, label in scored.items():
            rows = self.scored(scores, node_id, group_by=group_by, **replicates)
            prefix = f"{label}." if len(tails) > 1 else ""
            for name, value in logged_scores(rows, prefix).items():
                self._metrics.log(name, value, epoch=0)

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
        total, count = defaultdict[str, float](float), defaultdict[str, float](float)
        for layout, _, table, totals in self._execution.tables():
            weights = totals if reducer == "mean" else np.ones_like(totals)
            for i, (label, on) in enumerate(layout.losses):
                if on == node_id:
                    total[label] += float(weights[:, i] @ table[:, i])
                    count[label] += float(weights[:, i].sum())
        if reducer == "sum":
            return dict(total)
        return {label: value / (count[label] or np.nan) for label, value in total.items()}

    def model_losses(self, node: str | GraphNode, *, reducer: Reducer = "mean") -> float:
        """Return the losses that Keras models add, of a node and its ancestors."""
        labels = [label for run, *_ in self._execution.tables() for label, _ in run.losses]
        if not any(label.startswith(MODEL_LOSSES) for label in labels):
            return 0.0
        graph: Any = self._recorded()[0].context.model_graph
        total = 0.0
        for above in topology.ancestors(graph._edges(), [self._node_id(node)]):
            losses = self.aggregated_losses(above, reducer=reducer)
            total += sum(v for label, v in losses.items() if label.startswith(MODEL_LOSSES))
        return total


class EvalResults(_SinglePassResults):
    """Results of an evaluation phase.

    Examples
    --------
    >>> import numpy as np
    >>> import modularml as mml
    >>> from modularml.models.torch import SequentialMLP
    >>> experiment = mml.Experiment("demo", seed=0)
    >>> a, b, noise = np.random.default_rng(0).normal(size=(3, 60)).astype("float32")
    >>> rows = {"a": a, "b": b, "y": a + b + noise}
    >>> fs = mml.FeatureSet.from_dict("rows", rows, ["a", "b"], "y")
    >>> fs.split_random({"train": 0.8, "test": 0.2})
    >>> net = mml.ModelNode("net", SequentialMLP(), fs)
    >>> graph = mml.ModelGraph([net], mml.Optimizer("adam"))
    >>> mse = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
    >>> graph.build()
    >>> phase = mml.EvalPhase.from_split("test", split="test", losses=[mse])
    >>> results = experiment.run_phase(phase)
    >>> results.tensors("net", "outputs", fmt="numpy").one().shape
    (12, 1)
    """

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


def by_column(name: str, values: Array, labels: Sequence[str] = ()) -> dict[str, Array]:
    """Return the numbers of each sample, one column each; `labels` are those of blocks."""
    flat = values.reshape(len(values), -1)
    if flat.shape[1] == 1:
        return {name: flat[:, 0]}
    ends = [str(i) for i in range(flat.shape[1])]
    if labels:
        n = flat.shape[1] // len(labels)
        ends = [label if n == 1 else f"{i}_{label}" for label in labels for i in range(n)]
    return {f"{name}_{end}": flat[:, i] for i, end in enumerate(ends)}


def output_labels(ctx: ExecutionContext, node_id: str) -> tuple[str, ...]:
    """Return what each block of a node's outputs predicts, such as mean and variance."""
    flow = ctx._layout().lineages.get((node_id, "outputs"))
    return flow.labels if isinstance(flow, SourceColumns) else ()
