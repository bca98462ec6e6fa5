"""Prediction: outputs of a graph for any rows, in the units of the targets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray
from modularml._warning import warn
from modularml.data.batch import as_numpy
from modularml.data.formats import ARRAY_FORMATS, DataFormat, convert
from modularml.data.lineage import ColumnLineage, MergedColumns, SourceColumns
from modularml.data.schema import RAW
from modularml.errors import ConfigError, DataError, NotFittedError, UnknownNameError
from modularml.graph.lineage import source_columns_of
from modularml.graph.prediction_inputs import RowReader, readers_of, row_columns
from modularml.graph.steps import GraphSteps
from modularml.graph.unscaling import (
    check_clear,
    class_labels,
    decoded,
    gives_labels,
    group_columns,
    invert_leaf,
    needs_rows,
    scaled_target,
    score_names,
)

ROWS = 8192


def format_of(fmt: str | DataFormat, **options: Any) -> DataFormat:
    """Return a format; refuse one without column names if any option needs them."""
    form = DataFormat.from_value(fmt)
    needing = [f"{k}={v!r}" for k, v in options.items() if v is not None and v is not False]
    if needing and form in ARRAY_FORMATS:
        raise ConfigError(
            f"{needing[0]} needs a format with named columns, such as fmt='pandas', 'polars', "
            f"'arrow' or 'dict', got fmt={form.value!r}"
        )
    return form


def predictions(
    graph: GraphSteps,
    data: Any,
    *,
    node: Any = None,
    batch_size: int | None = None,
    allow_missing: bool = False,
    warn_missing: bool = True,
) -> list[Prediction]:
    """Run a graph on rows; return the outputs of a node, or of each tail node.

    With `allow_missing`, outputs are NaN for rows that a node rejects because inputs are NaN; with
    `warn_missing`, a warning counts them then.
    """
    if not graph.is_built:
        raise NotFittedError("the graph has not been built; train it, or call graph.build()")
    nodes: list[Any] = list(graph.tail_nodes.values()) if node is None else [graph.get_node(node)]
    plan, step = graph.plan((), training=False, active_nodes=nodes)
    sets = {slot.source.ref.resolve(): None for slot in plan.slots}
    column_groups = {slot.columns for slot in plan.slots}
    if isinstance(data, np.ndarray) and len(column_groups) > 1:
        raise DataError(
            "a bare array has no column names, and inputs of the graph read "
            f"{sorted(column_groups)} separately; pass a frame, a dict of columns or a FeatureSet"
        )
    readers, lead = readers_of(data, list(sets), graph._running(nodes))
    size = ROWS if batch_size is None else batch_size
    if not isinstance(size, Integral) or size < 1:
        raise ConfigError(f"batch_size must be an int of at least 1 or None, got {batch_size!r}")
    places = {name: i for i, (name, _) in enumerate(plan.layout.outputs)}
    columns = [readers[slot.source.ref.node_label].column(slot) for slot in plan.slots]

    def run(inputs: list[Array]) -> list[Array]:
        tensors = [
            slot.adapter.from_numpy(values, dtype=slot.dtype, device=slot.device)
            for values, slot in zip(inputs, plan.slots, strict=True)
        ]
        outs = step(tensors)[1]
        return [as_numpy(outs[places[target.node_id]]) for target in nodes]

    parts: list[list[Array]] = []
    with plan.modes():
        for at in range(0, max(lead.n_rows, 1), size):
            inputs = [read(at, at + size) for read in columns]
            parts.append(_run_present(run, inputs) if allow_missing else run(inputs))
    chunks = [np.concatenate([part[i] for part in parts]) for i in range(len(nodes))]
    for target, out in zip(nodes, chunks, strict=True) if allow_missing and warn_missing else ():
        if out.dtype.kind == "f" and np.isnan(out).any():
            n = int(np.isnan(out).reshape(len(out), -1).any(axis=1).sum())
            warn(
                f"{n} of {len(out)} predictions of {target.label!r} are NaN, as values of these "
                "rows are missing or unknown, or weights are not finite; fill missing features "
                "with a recorded step, such as fs.fit_transform('SimpleImputer', domain='features')"
            )
    lineages = plan.layout.lineages
    return [
        Prediction(lineages, n, out, readers, lead) for n, out in zip(nodes, chunks, strict=True)
    ]


def _run_present(run: Callable[[list[Array]], list[Array]], inputs: list[Array]) -> list[Array]:
    """Run on all rows or, if a node rejects missing values, on those without; others get NaN."""
    try:
        return run(inputs)
    except DataError:
        lacks = np.zeros(len(inputs[0]), dtype=bool)
        for values in inputs:
            if values.dtype.kind == "f":
                lacks |= np.isnan(values).reshape(len(values), -1).any(axis=1)
        if not lacks.any():
            raise
    outputs = []
    for present in run([values[~lacks] for values in inputs]):
        dtype = present.dtype if present.dtype.kind in "fO" else np.float64
        missing = None if present.dtype.kind == "O" else np.nan
        outputs.append(np.full((len(lacks), *present.shape[1:]), missing, dtype=dtype))
        outputs[-1][~lacks] = present
    return outputs


class Prediction:
    """Outputs of a node for some rows, and the columns of these rows.

    Works in the context that was active when it was created.
    """

    def __init__(
        self,
        lineages: Mapping[Any, Any],
        node: Any,
        outputs: Array,
        readers: Mapping[str, RowReader],
        lead: RowReader,
    ) -> None:
        self.label: str = node.label
        self.node, self._lineages, self._readers, self._lead = node, lineages, readers, lead
        # two axes, as targets have, so that differences never broadcast
        self._outputs = outputs[:, None] if outputs.ndim == 1 else outputs
        self._replaced: Array | None = None

    def replaced(self, values: Array) -> Prediction:
        """Return a prediction of other values for the same rows, in the units of their targets."""
        new = copy.copy(self)
        new._replaced = values
        return new

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self._lead.n_rows

    @property
    def compared(self) -> ColumnLineage:
        """Lineage of the targets that the outputs are compared with."""
        node_id = self.node.node_id
        return self._lineages.get((node_id, "truth")) or self._lineages.get((node_id, "targets"))

    @property
    def is_scores(self) -> bool:
        """Whether the outputs are scores of classes."""
        paired = getattr(self.node, "paired", None)
        width = self._outputs.shape[1]
        return bool(self._score_names(width) or (paired is not None and paired[1]))

    @property
    def labels(self) -> tuple[str, ...]:
        """What each block of the outputs predicts, such as mean and variance; else empty."""
        flow = self._lineages.get((self.node.node_id, "outputs"))
        return flow.labels if isinstance(flow, SourceColumns) else ()

    @property
    def class_labels(self) -> Array | None:
        """Labels of the classes that the outputs are scores of; None if there are none."""
        if self.compared is None or not self.is_scores:
            return None
        return class_labels(self.compared)

    @property
    def gives_labels(self) -> bool:
        """Whether the outputs are labels predicted by a classifier of scikit-learn."""
        return gives_labels(self.node)

    @property
    def source_rows(self) -> tuple[str, IntArray]:
        """Label of the FeatureSet that the rows are of, and their row numbers."""
        view = self._lead.view
        if view is None:
            raise DataError("the rows are not rows of a FeatureSet; pass a split or a view")
        return str(view.source.label), view.valid_indices

    def _score_names(self, width: int) -> list[str] | None:
        method = getattr(self.node.model, "method", "") if hasattr(self.node, "model") else ""
        return score_names(self.compared, width, method=method)

    def values(self, *, unscale: bool = True, decode: bool = False) -> Array:
        """Return the outputs in the units of their targets, or class labels."""
        if self._replaced is not None:
            return self._replaced
        values = self._outputs
        if decode:
            return decoded(self.label, self.compared, values)[:, None]
        leaf = None
        if unscale:
            leaf = scaled_target(self.predicted)
        if leaf is None:
            return values
        reader = self._readers.get(leaf.source.ref.node_label, self._lead)
        ids = reader.ids(leaf) if needs_rows(leaf) else None
        columns = {name: reader.named(name) for name in group_columns(leaf)}
        groups = {name: known for name, known in columns.items() if known is not None}
        return invert_leaf(leaf, values, ids, groups=groups)

    @property
    def has_unknown_units(self) -> bool:
        """Whether the outputs have the units of no column."""
        return self._lineages[self.node.node_id, "outputs"] is None

    @property
    def predicted(self) -> ColumnLineage:
        """Lineage of the targets whose units the outputs have; None if unknown.

        Raises
        ------
        ScalerError
            If the units are ambiguous.
        """
        check_clear(self._lineages, self.node.node_id, self.label)
        predicted: ColumnLineage = self._lineages[self.node.node_id, "outputs"]
        return predicted

    @property
    def target_keys(self) -> list[str]:
        """Keys of the targets that the outputs predict, or are compared with."""
        flow = self._lineages[self.node.node_id, "outputs"] or self.compared
        return [name.split(".")[1] for leaf in source_columns_of(flow) for name in leaf.columns]

    @property
    def width(self) -> int:
        """Number of outputs of a row along the first axis."""
        return int(self._outputs.shape[1])

    def reader(self, label: str) -> RowReader:
        """Return the reader of the rows of a FeatureSet."""
        return self._readers[label]

    def reader_of(self, leaf: SourceColumns) -> RowReader:
        """Return the reader of the rows that columns come from."""
        return self._readers.get(leaf.source.ref.node_label, self._lead)

    def compared_values(self, *, raw: bool) -> Array:
        """Return the targets that outputs are compared with, shape (n, n_columns, ...).

        Parameters
        ----------
        raw : bool
            Whether in their original units; else as the model gets them. Missing values of a
            table are NaN in floats, else None.
        """
        return self._column_values(self.compared, raw)

    def _column_values(self, flow: Any, raw: bool) -> Array:
        if isinstance(flow, MergedColumns):
            parts = [self._column_values(part, raw) for part in flow.parts if part is not None]
            return np.asarray(flow.merge(parts))
        names = flow.columns
        if raw:
            names = tuple(f"{name.rpartition('.')[0]}.{RAW}" for name in names)
        return self.reader_of(flow).values(flow.source.ref.resolve(), names)

    def compared_mask(self) -> Array | None:
        """Return which elements of the targets are data; None without padding.

        Raises
        ------
        DataError
            If padded columns are merged with others, or the rows lack the mask.
        """
        for leaf in source_columns_of(self.compared):
            mask = self.reader_of(leaf).mask(leaf.source.ref.resolve(), leaf.columns)
            if mask is not None and leaf is not self.compared:
                raise DataError(
                    f"padded columns {list(leaf.columns)} are merged with others, so padding "
                    "cannot be located; merge targets by 'first', or select them with "
                    "ModelNode(targets=)"
                )
            if mask is not None:
                return mask
        return None

    def by_row(self, name: str, argument: str = "group_by") -> Array:
        """Return a column of the rows, such as a tag; DataError if there is none."""
        others = [reader for reader in self._readers.values() if reader is not self._lead]
        for reader in (self._lead, *others):
            if (values := reader.named(name)) is not None:
                return values
        known = {key: None for reader in self._readers.values() for key in reader.column_names}
        raise UnknownNameError(f"{argument} column", name, known)

    def named(self, values: Array, *, decode: bool = False) -> dict[str, Array]:
        """Return the columns of outputs, named after their targets or classes."""
        truth, width = self.compared, values.shape[1]
        predicted = self._lineages.get((self.node.node_id, "outputs"))
        if decode or predicted is None:
            predicted = truth if decode else self._lineages.get((self.node.node_id, "truth"))
        names = [
            column.split(".")[1] for part in source_columns_of(predicted) for column in part.columns
        ]
        if width > 1 and (classes := self._score_names(width)) is not None:
            names = classes
        elif labels := [label for p in source_columns_of(predicted) for label in p.labels]:
            names = [f"{name}_{label}" for label in labels for name in names]
        elif len(names) == 1 and width > 1:
            names = [f"{names[0]}_{i}" for i in range(width)]
        if len(set(names)) != width:
            names = [f"column_{i}" for i in range(width)]
        return {name: values[:, i] for i, name in enumerate(names)}

    def table(self, columns: Mapping[str, Array], form: DataFormat, *, tags: bool) -> Any:
        """Return columns in a format with names, after ids and tags of the rows if asked."""
        known = row_columns(self._readers, self._lead) if tags else {}
        before = {k if k not in columns else f"tags.{k}": column for k, column in known.items()}
        table = convert({**before, **columns}, form)
        if form is DataFormat.PANDAS and self._lead.index is not None:
            return table.set_axis(self._lead.index, axis=0)
        if form is DataFormat.PANDAS and "sample_uuid" in before:
            return table.set_index("sample_uuid")
        return table
