"""The execution context: inputs, outputs and losses of one step of a phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from modularml._typing import Array, IntArray
from modularml.backends import BackendAdapter
from modularml.data.batch import DEFAULT_ROLE, Batch, BatchView, RoleData, SampleData
from modularml.data.class_weights import ClassWeights
from modularml.data.formats import stack
from modularml.data.lineage import ColumnLineage, MergedColumns, Source, source_columns_of
from modularml.data.references import FeatureSetReference
from modularml.data.samples import held
from modularml.data.view import FeatureSetView
from modularml.errors import ConfigError, DataError, UnknownNameError

MODEL_LOSSES = "model_losses_"
"""Prefix of a node's label in the label of losses that its model adds itself."""


@dataclass(frozen=True)
class WeightSource:
    """Sample weights of a loss: from a sampler, times a column of `source`, times class weights."""

    source: Source
    role: str
    rows: tuple[tuple[Source, str], ...] = ()
    column: str | None = None
    classes: ClassWeights | None = None

    def values(
        self,
        views: Callable[[Source], FeatureSetView | None],
        rows: Callable[[Source, str], IntArray],
        weights: Callable[[Source, str], Array | None],
    ) -> Array:
        """Return the weight of each sample, shape (n,).

        For a source and a role, `rows` returns the rows read from the FeatureSet and `weights`
        their weights from a sampler; `views` returns the view of a source.
        """
        view, classes = views(self.source), self.classes
        factors = [w for s, r in self.rows if (w := weights(s, r)) is not None]
        if self.column is not None and view is not None:
            factors.append(view.collection.numpy(self.column)[rows(self.source, self.role)])
        if classes is not None and (of_classes := views(classes.source)) is not None:
            factors.append(classes.values(of_classes, rows(classes.source, classes.role)))
        if not factors:
            return np.ones(len(rows(self.source, self.role)))
        product: Array = np.prod(np.stack(factors).astype(np.float64), axis=0)
        return product


class LossRecord(NamedTuple):
    """One loss of one batch.

    Parameters
    ----------
    label : str
        Label of the applied loss.
    node_id : str
        Node that the loss applies to.
    trainable : float
        Weighted contribution to the minimised loss; 0 in evaluation.
    auxiliary : float
        Weighted value that is recorded but not minimised.
    """

    label: str
    node_id: str
    trainable: float
    auxiliary: float = 0.0

    @property
    def value(self) -> float:
        """Sum of the trainable and the auxiliary part."""
        return self.trainable + self.auxiliary


@dataclass(frozen=True)
class Layout:
    """Description of the tensors of a step, shared by all steps of a phase.

    Parameters
    ----------
    outputs : tuple of (str, str)
        Node id and role of each output tensor.
    losses : tuple of (str, str)
        Label and node id of each loss.
    lineages : mapping of (str, str) to ColumnLineage
        Lineage of each domain of a node, by (node id, domain); for ``outputs`` the targets whose
        units they have, for ``truth`` the targets that they are compared with.
    adapters : tuple of BackendAdapter
        Adapter of the framework of each output's node.
    labels : mapping of str to str
        Node labels by id.
    views : mapping of Source to FeatureSetView
        Rows that each source reads; among sources read together, the one whose rows are the
        samples comes first.
    training : bool
    weight_sources : tuple of (WeightSource or None)
        Sample weights of each loss, if any; for a loss over a batch, the column whose sum is the
        weight of the batch.
    over_batch : tuple of bool
        Whether each loss is a value of the whole batch instead of a mean over samples.
    padded : frozenset of str
        Labels of losses that ignore padding.
    """

    outputs: tuple[tuple[str, str], ...]
    losses: tuple[tuple[str, str], ...]
    lineages: Mapping[tuple[str, str], ColumnLineage]
    adapters: tuple[BackendAdapter, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    views: Mapping[Source, FeatureSetView] = field(default_factory=dict)
    training: bool = True
    weight_sources: tuple[WeightSource | None, ...] = ()
    over_batch: tuple[bool, ...] = ()
    padded: frozenset[str] = frozenset()

    @property
    def adapter(self) -> BackendAdapter:
        """First adapter; losses of several frameworks are numbers that any adapter reads."""
        return self.adapters[0]

    def adapter_of(self, node_id: str) -> BackendAdapter:
        """Return the adapter for a node's outputs."""
        return self.adapters[[name for name, _ in self.outputs].index(node_id)]


class ExecutionContext:
    """One batch of a phase: its position, inputs and outputs.

    Parameters
    ----------
    phase_label : str
    epoch_idx, batch_idx : int
        Position in the phase, both 0-based.
    inputs : mapping of (str, FeatureSetReference) to Batch, BatchView or SampleData, optional
        By head node id and reference; pass them to run a step manually.
    """

    __slots__ = (
        "_inputs",
        "batch_idx",
        "epoch_idx",
        "layout",
        "outs",
        "phase_label",
        "plan",
        "rows",
        "tensors",
        "totals",
        "values",
    )

    def __init__(
        self,
        phase_label: str = "",
        epoch_idx: int = 0,
        batch_idx: int = 0,
        inputs: Mapping[tuple[str, FeatureSetReference], Any] | None = None,
    ) -> None:
        self.phase_label, self.epoch_idx, self.batch_idx = phase_label, epoch_idx, batch_idx
        self._inputs = inputs
        self.totals: list[float] | None = None
        self.layout: Layout | None = None
        self.plan: Any = None
        self.rows: Callable[[Source, int], Mapping[str, IntArray]] | None = None
        self.tensors: Sequence[Any] | None = None
        self.outs: Sequence[Any] = ()
        self.values: Sequence[Any] = ()

    # -- inputs -----------------------------------------------------------------------------

    @property
    def inputs(self) -> dict[tuple[str, FeatureSetReference], Any]:
        """Batches by (head node id, reference), as passed or as row numbers."""
        if self._inputs is not None:
            return dict(self._inputs)
        sources = self._layout().views
        return {(s.node_id, s.ref): self.batch_view(s) for s in sources}

    def batch_view(self, source: Source) -> BatchView:
        """Return the rows that a source read in this step."""
        return BatchView(self._layout().views[source], self.indices(source), self.weights(source))

    def indices(self, source: Source) -> Mapping[str, IntArray]:
        """Return the rows of the FeatureSet that a source read, by role."""
        if self.rows is None:
            batch = self.inputs[(source.node_id, source.ref)]
            if not isinstance(batch, BatchView):
                raise ConfigError("the inputs of this step have no row numbers; pass a BatchView")
            return batch.role_indices
        return self.rows(source, self.batch_idx)

    def rows_of(self, source: Source, batch: int) -> Mapping[str, IntArray]:
        """Return the rows that a source read in a batch; empty without row numbers."""
        if self.rows is not None:
            return self.rows(source, batch)
        inputs = (self._inputs or {}).get((source.node_id, source.ref))
        return inputs.role_indices if isinstance(inputs, BatchView) else {}

    def weights(self, source: Source) -> Mapping[str, Array]:
        """Return the sampler's weights for the rows of a source, by role."""
        if self.rows is not None:
            row_weights = getattr(self.rows, "weights", None)
            return {} if row_weights is None else row_weights(source, self.batch_idx)
        batch = (self._inputs or {}).get((source.node_id, source.ref))
        weights, masks = (getattr(batch, f"role_{name}", {}) for name in ("weights", "masks"))
        return {r: weights.get(r, 1.0) * masks.get(r, 1.0) for r in {**weights, **masks}}

    def sample_weights(self, weight_source: WeightSource) -> Array:
        """Return the weight of each sample of a loss in this step."""
        views = self._layout().views
        return weight_source.values(
            views.get, lambda s, r: self.indices(s)[r], lambda s, r: self.weights(s).get(r)
        )

    def loss_totals(self) -> list[float]:
        """Return the denominator of each loss: sum of weights, number of rows, or 1."""
        if self.totals is None:
            layout = self._layout()
            self.totals = [
                float(self.sample_weights(weight_source).sum())
                if weight_source is not None
                else 1.0
                if whole
                else len(self.output(node_id, self.roles(node_id)[0]))
                for (_, node_id), weight_source, whole in zip(
                    layout.losses, layout.weight_sources, layout.over_batch, strict=True
                )
            ]
        return self.totals

    @property
    def context(self) -> Any:
        """Experiment context of the FeatureSets that were read."""
        return next(iter(self._layout().views.values())).source.context

    @property
    def n_samples(self) -> int:
        """Rows in this batch."""
        if self.outs:
            return len(self.outs[0])
        first = next(iter(self.inputs.values()))
        return int(first.batch_size)

    # -- outputs -----------------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Batch]:
        """Batches by node id, with outputs, targets, tags and sample ids."""
        nodes = dict.fromkeys(node_id for node_id, _ in self._layout().outputs)
        return {node_id: self.batch(node_id) for node_id in nodes}

    @property
    def losses(self) -> list[LossRecord]:
        """One record per loss."""
        layout = self._layout()
        numbers = layout.adapter.floats(self.values)
        return [
            LossRecord(
                label, node_id, value if layout.training else 0.0, 0.0 if layout.training else value
            )
            for (label, node_id), value in zip(layout.losses, numbers, strict=True)
        ]

    def output(self, node_id: str, role: str = DEFAULT_ROLE) -> Any:
        """Return the output tensor of a node.

        Raises
        ------
        UnknownNameError
            If the node did not run in this step or has no such role.
        """
        names = self._layout().outputs
        if (node_id, role) not in names:
            roles = [r for n, r in names if n == node_id]
            if roles:
                raise UnknownNameError("role", role, roles)
            raise UnknownNameError("node of this step", node_id, {n for n, _ in names})
        return self.outs[names.index((node_id, role))]

    def roles(self, node_id: str) -> list[str]:
        """Return the roles for which a node has outputs."""
        return [role for node, role in self._layout().outputs if node == node_id]

    def domain(self, node_id: str, domain: str, role: str = DEFAULT_ROLE) -> Array | None:
        """Return targets or tags of a node's rows; None if it has none.

        Returns
        -------
        ndarray, shape (n, ...), or None
        """
        if domain == "targets":
            return self.column_values(self.compared_with(node_id), role)
        return self.column_values(self._layout().lineages.get((node_id, domain)), role)

    def held(self, lineage: ColumnLineage, role: str = DEFAULT_ROLE) -> Array | None:
        """Return which elements of stacked columns are data; None without padding.

        Returns
        -------
        ndarray of bool, shape (n, n_columns, *shape), or None

        Raises
        ------
        DataError
            If padded columns are merged with others.
        """
        views, mask = self._layout().views, None
        for columns in source_columns_of(lineage):
            source = columns.source
            if source not in views:  # a step run manually, without row numbers
                continue
            mask = held(views[source].collection, columns.columns, self.indices(source)[role])
            if mask is not None and columns is not lineage:
                raise DataError(
                    f"padded columns {list(columns.columns)} are merged with others, so padding "
                    "cannot be located; merge targets by 'first' (target_strategy, "
                    "concat_axis_targets), or select them with ModelNode(targets=)"
                )
        return mask

    def compared_with(self, node_id: str) -> ColumnLineage:
        """Return the targets that a node's outputs are compared with."""
        lineages = self._layout().lineages
        return lineages.get((node_id, "truth"), lineages.get((node_id, "targets")))

    def batch(self, node_id: str) -> Batch:
        """Return outputs, targets, tags and ids of a node's rows as one batch."""
        data = {}
        for role in self.roles(node_id):
            outputs = self.output(node_id, role)
            targets, tags = (self.domain(node_id, d, role) for d in ("targets", "tags"))
            ids = self.sample_uuids(node_id, role)
            data[role] = SampleData(outputs=outputs, targets=targets, tags=tags, sample_uuids=ids)
        source = next(iter(self.sources(node_id)), None)
        weights = {} if source is None else self.weights(source)
        if source is None or not weights:
            return Batch(RoleData(data))
        masks = self.inputs[(source.node_id, source.ref)].role_masks
        return Batch(RoleData(data), weights, masks)

    def sample_uuids(self, node_id: str, role: str = DEFAULT_ROLE) -> Array | None:
        """Return the sample ids of a node's rows, as UUID text; see `sources`."""
        source = next(iter(self.sources(node_id)), None)
        if source is None or self._layout().views.get(source) is None:
            return None
        view = BatchView(self._layout().views[source], self.indices(source)).view(role)
        ids: Array = view.get_sample_uuids()
        return ids

    def sources(self, node_id: str) -> list[Source]:
        """Return the sources that feed a node, directly or through other nodes.

        If the rows of one source look up rows of another, the former comes first.
        """
        layout = self._layout()
        lineage = layout.lineages.get((node_id, "features"))
        sources = dict.fromkeys(columns.source for columns in source_columns_of(lineage))
        return [s for s in layout.views if s in sources] or list(sources)

    def __getstate__(self) -> Any:
        """Omit the compiled step and the input tensors."""
        state = {name: getattr(self, name) for name in self.__slots__}
        return None, {**state, "plan": None, "tensors": None}

    def release(self) -> None:
        """Drop the input tensors and move the outputs off the graph and the device."""
        self.tensors = self.plan = None
        if self.layout is not None:
            outputs = zip(self.layout.adapters, self.outs, strict=True)
            self.outs = [adapter.to_host(out) for adapter, out in outputs]

    def column_values(self, lineage: ColumnLineage, role: str = DEFAULT_ROLE) -> Array | None:
        """Return the values of columns in this step; None without row numbers.

        Returns
        -------
        ndarray, shape (n, n_columns, ...), or None
        """
        if lineage is None:
            return None
        if isinstance(lineage, MergedColumns):
            parts = [self.column_values(part, role) for part in lineage.parts]
            return np.asarray(lineage.merge([p for p in parts if p is not None]))
        if self.rows is None:
            batch = self.inputs[(lineage.source.node_id, lineage.source.ref)]
            if not isinstance(batch, BatchView):
                return None
        view = self._layout().views[lineage.source]
        rows = self.indices(lineage.source)[role]
        return stack({name: view.collection.numpy(name)[rows] for name in lineage.columns})

    def _layout(self) -> Layout:
        if self.layout is None:
            raise ConfigError("this step has not run yet; pass it to graph.train_step or eval_step")
        return self.layout

    def __repr__(self) -> str:
        return (
            f"ExecutionContext(phase={self.phase_label!r}, epoch={self.epoch_idx}, "
            f"batch={self.batch_idx})"
        )
