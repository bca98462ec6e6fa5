"""Inputs of losses: outputs, targets and weights, in the right dtype and shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from modularml._typing import Shape
from modularml.backends import Backend, BackendAdapter
from modularml.data.class_weights import ClassWeights
from modularml.data.execution_context import WeightSource
from modularml.data.lineage import ColumnLineage, MergedColumns, Source, SourceColumns
from modularml.errors import (
    ConfigError,
    DataError,
    GraphError,
    LossError,
    NotFittedError,
    ShapeError,
    UnknownNameError,
    closest,
)
from modularml.graph.framework_segment import Crossing, LossOp, Program
from modularml.graph.lineage import (
    is_integer,
    lineages_of,
    loss_inputs,
    masks_of,
    pick_column,
    source_columns_of,
)
from modularml.graph.loss_calls import (
    Padding,
    check_call,
    check_numbers,
    check_values,
    mean_over_samples,
    misfit,
    padding_of,
    squeezed,
)
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode
from modularml.graph.topology import backends_of
from modularml.training import AppliedLoss, LossInput
from modularml.training.loss_kinds import (
    CLASS_INDEX,
    CLASS_LAST,
    CLASS_SET,
    ELEMENTWISE,
    ONE_A_SAMPLE,
    SHARES,
    TAKES_SHARES,
)


class Read(NamedTuple):
    """One input of a loss: outputs of a node, or columns."""

    node: ComputeNode
    role: str
    flow: ColumnLineage
    """None for outputs."""


class LossReader:
    """Programs of a step, and the losses that read values of them.

    Parameters
    ----------
    nodes : sequence of ComputeNode
    roles : sequence of str
    training : bool
    backends : mapping of str to Backend, optional
        Frameworks of the nodes, by id, if decided elsewhere.
    """

    def __init__(
        self,
        nodes: Sequence[ComputeNode],
        roles: Sequence[str],
        *,
        training: bool,
        backends: Mapping[str, Backend] | None = None,
    ) -> None:
        self.nodes, self.roles, self.training = list(nodes), tuple(roles), training
        self.by_id = {node.node_id: node for node in nodes}
        self.lineages = lineages_of(nodes)
        self.backends = dict(backends_of(nodes) if backends is None else backends)
        if not self.backends:
            raise GraphError("a graph needs at least one ModelNode to run")
        self.programs: list[Program] = []
        self.home: dict[str, int] = {}
        """Number of each node's program."""
        self.places: dict[tuple[str, str], int] = {}
        """Slot of each node's output in its program, by id and role."""
        self.weighted: Mapping[Source, int] = {}
        self.weight_sources: list[WeightSource | None] = []
        self.padded: set[str] = set()

    def check(self, losses: Sequence[AppliedLoss]) -> None:
        """Refuse losses that name unknown nodes, roles or values.

        The graph need not be built. Columns are not checked, as scalers may add them later.
        """
        for applied in losses:
            on = self.node_named(applied.on, applied)
            check_call(applied, applied.loss.resolve(self.backends[on.node_id]))
            for item in self._inputs(applied):
                self._role(applied, item.role)
                node = on if item.node is None else self.node_named(item.node, applied)
                if item.domain != "outputs" and item.column is None:
                    self._asked(applied, node, item)

    def read_loss(self, applied: AppliedLoss) -> LossOp:
        """Return a loss that reads slots of its node's program."""
        on = self.node_named(applied.on, applied)
        program = self.program(on.node_id)
        adapter = program.adapter
        check_call(applied, applied.loss.resolve(adapter.backend))
        reads = self.reads(applied)
        padding = padding_of(applied, [(read.flow, read.role) for read in reads])
        if padding is not None:
            if applied.loss.labels:
                raise LossError(
                    f"loss {applied.label!r} reads the padded column {padding.column!r}, whose "
                    f"padding must not count; {applied.loss.name!r} is not supported for padded "
                    "targets"
                )
            self.padded.add(applied.label)
        args = self._args(applied, on, reads, padding)
        classes = self.class_weights(applied, reads) if self.training else None
        source = self.weight_source(applied, [reads[0]._replace(node=on), *reads], classes)
        over_batch = applied.loss.over == "batch"
        if over_batch:
            if source is not None:
                raise LossError(
                    f"loss {applied.label!r} is over the batch and gets no sample weights, but "
                    "samples have weights; add the weights to its inputs"
                )
            if applied.loss.weight_by is not None:  # its sum weights a batch
                leaf = self._weight_column(applied, "weight_by", applied.loss.weight_by, on)
                source = WeightSource(leaf.source, reads[0].role, (), leaf.columns[0])
        self.weight_sources.append(source)
        weighed = source is not None and not over_batch
        fn = mean_over_samples(applied, adapter, weighed=weighed, padding=padding)
        if source is not None and weighed:
            dtype = adapter.loss_dtype("float", _module_of(on))
            slot = program.slot(source.role, source.source, dtype=dtype, weight_source=source)
            args.append(program.input(slot))
        if applied.weight != 1.0:
            unweighted, weight = fn, applied.weight
            fn = lambda *args: unweighted(*args) * weight  # noqa: E731
        return LossOp(fn, tuple(program.moved(arg, program.device) for arg in args))

    def reads(self, applied: AppliedLoss) -> list[Read]:
        """Return what a loss reads, in order."""
        on = self.node_named(applied.on, applied)
        reads = []
        for item in self._inputs(applied):
            node = on if item.node is None else self.node_named(item.node, applied)
            flow = None
            if item.domain != "outputs":
                flow = self._asked(applied, node, item)
                if item.column is not None:
                    flow = pick_column(applied, item, self.lineages, node)
            reads.append(Read(node, self._role(applied, item.role), flow))
        return reads

    def class_weights(self, applied: AppliedLoss, reads: Sequence[Read]) -> ClassWeights | None:
        """Return the class weights of a loss, whose classes are its only target.

        Raises
        ------
        ConfigError
            If it does not read exactly one column.
        """
        if applied.class_weight is None:
            return None
        flows = [read.flow for read in reads if read.flow is not None]
        columns = [
            (read.flow, read.role)
            for read in reads
            if isinstance(read.flow, SourceColumns) and len(read.flow.columns) == 1
        ]
        if len(flows) != 1 or not columns:
            raise ConfigError(
                f"class_weight of loss {applied.label!r} needs one column of class labels, but the "
                f"loss reads {[list(getattr(f, 'columns', ['merged columns'])) for f in flows]}; "
                "name one in inputs=, such as ['outputs', 'targets.label'], or pass sample_weight="
            )
        (leaf, role), given = columns[0], applied.class_weight
        weights = given if isinstance(given, str) else tuple(given.items())
        return ClassWeights(applied.label, leaf.source, role, leaf.columns[0], weights)

    def weight_source(
        self, applied: AppliedLoss | None, reads: Sequence[Read], classes: ClassWeights | None
    ) -> WeightSource | None:
        """Return the source of a loss's sample weights; None if unweighted.

        `reads` begins with the loss's own node. Rows of `weighted` sources have weights, which
        sources with equal numbers share; without a loss only these count. `classes` are its class
        weights, where they apply.

        Raises
        ------
        DataError
            If the weight column does not hold numbers of at least 0.
        """
        rows: dict[tuple[int, str], Source] = {}
        for node, role, _ in reads:
            for leaf in source_columns_of(self.lineages[node.node_id, "features"]):
                if leaf.source in self.weighted:
                    rows.setdefault((self.weighted[leaf.source], role), leaf.source)
        weights = tuple((source, role) for (_, role), source in rows.items())
        node, role, _ = reads[0]
        if applied is None or applied.sample_weight is None:
            if not weights and classes is None:
                return None
            first = weights[0] if classes is None else (classes.source, classes.role)
            return WeightSource(*first, weights, classes=classes)
        leaf = self._weight_column(applied, "sample_weight", applied.sample_weight, node)
        return WeightSource(leaf.source, role, weights, leaf.columns[0], classes)

    def _weight_column(
        self, applied: AppliedLoss, argument: str, item: Any, node: ComputeNode
    ) -> SourceColumns:
        is_name = isinstance(item, str)
        loss_input = LossInput(None, "tags", None, item) if is_name else LossInput.parse(item)
        leaf: Any = pick_column(applied, loss_input, self.lineages, node)
        fs = leaf.source.ref.resolve()
        values = fs.collection.numpy(leaf.columns[0])
        numbers = values.ndim == 1 and values.dtype.kind in "biuf"
        if not numbers or not (np.isfinite(values) & (values >= 0)).all():
            raise DataError(
                f"{argument} of loss {applied.label!r}: column {leaf.columns[0]!r} of {fs.label!r} "
                "must hold one non-negative number per sample"
            )
        return leaf  # type: ignore[no-any-return]

    def _args(
        self,
        applied: AppliedLoss,
        on: ComputeNode,
        reads: Sequence[Read],
        padding: Padding | None,
    ) -> list[int]:
        """Return the slots of a loss's inputs, reshaped so that none broadcast.

        Values that differ from the node's output only by axes of length 1 get its shape. Columns of
        one number per sample next to class numbers become one-dimensional, as these are. With
        `padding`, the weights of the elements come last.
        """
        program, out = self.program(on.node_id), on.output_shape or ()
        if program.adapter.gradients:
            for read in reads:
                check_numbers(applied, read.flow)
        fits = [None if r.flow is None else self._fit(applied, on, r.flow) for r in reads]
        flat = any(fit is not None and fit[1] == () for fit in fits)
        as_float = program.adapter.loss_dtype("float", _module_of(on))
        args, weights = [], []
        for (node, role, flow), fit in zip(reads, fits, strict=True):
            if flow is not None and fit is not None:
                dtype, shape = fit
                if flat and shape is None and math.prod(self._flow_shape(flow)) == 1:
                    shape = ()
                masked = isinstance(flow, SourceColumns) and bool(masks_of(flow))
                mode = "blank" if padding is not None and masked else "kept"
                args.append(self.read_flow(program, flow, role, (dtype, shape), padding=mode))
                if padding is not None and (flow, role) == (padding.leaf, padding.role):
                    own = as_float, shape
                    weights.append(self.read_flow(program, flow, role, own, padding="weights"))
                continue
            place = self.output(program, node.node_id, role, as_float, self.places)
            shape = node.output_shape or ()
            same_size = squeezed(shape) == squeezed(out)
            if not same_size and applied.loss.kind in ELEMENTWISE:
                raise misfit(applied, on, out, shape, "equal shapes")
            if shape != out and same_size:
                reshape = partial(program.adapter.reshape, shape=out)
                place = program.op(reshape, [place], many=False)
            args.append(place)
        return [*args, *weights[:1]]

    def _inputs(self, applied: AppliedLoss) -> list[LossInput]:
        nodes = {name: n for n in self.nodes for name in (n.label, n.node_id)}
        return loss_inputs(applied, self.roles, nodes, self.lineages)

    def _asked(self, applied: AppliedLoss, node: ComputeNode, item: LossInput) -> ColumnLineage:
        """Return the lineage of the values that a loss reads."""
        flow = self.lineages[node.node_id, item.domain]
        if flow is None and item.column is None:
            raise LossError(
                f"loss {applied.label!r} reads {item.domain} of node {node.label!r}, which has "
                "none; add them to the FeatureSet reference"
            )
        return flow

    def _fit(
        self, applied: AppliedLoss, on: ComputeNode, flow: ColumnLineage
    ) -> tuple[Any, Shape | None]:
        """Return the dtype and shape in which a loss needs its target."""
        if on.output_shape is None:
            raise NotFittedError(
                f"loss {applied.label!r} is on node {on.label!r}, whose output shape is unknown "
                "before it is fitted; fit it in a phase without losses first"
            )
        shape, out = self._flow_shape(flow), on.output_shape
        adapter = self.program(on.node_id).adapter
        name = applied.loss.kind
        like = _module_of(on)
        integer = is_integer(flow)
        if name in CLASS_INDEX and integer:
            axis = -1 if name in CLASS_LAST else 0
            rest = out[:-1] if name in CLASS_LAST else out[1:]
            if math.prod(shape) != math.prod(rest):
                raise misfit(applied, on, out, shape, "one class number per sample")
            wants = f"class numbers 0 to {out[axis] - 1}, one for each output of {on.label!r}"
            hint = "Number the classes from 0, or widen output_shape"
            check_values(applied, flow, (0, out[axis] - 1), wants, hint)
            return adapter.loss_dtype("index", like), tuple(rest)
        if name in SHARES:
            hint = "Choose another loss, such as 'mse', or leave these targets unscaled"
            check_values(applied, flow, (0, 1), "targets from 0 to 1", hint)
        if name in CLASS_INDEX and math.prod(out) == 1:  # a single class always has probability 1
            raise misfit(
                applied, on, out, shape, "one output per class; for a single output use 'bce'"
            )
        if name in CLASS_INDEX - TAKES_SHARES:
            raise misfit(
                applied, on, out, shape, "class numbers of an integer dtype, one per sample"
            )
        if applied.loss.labels and len(applied.parsed) == 2:
            labels, n = applied.loss.labels, math.prod(shape)
            if math.prod(out) != len(labels) * n:
                wants = f"{len(labels)} outputs for each target ({', '.join(labels)})"
                raise misfit(applied, on, out, shape, wants)
            return adapter.loss_dtype("float", like), (n,)
        if squeezed(shape) == squeezed(out):
            kind = "index" if integer and (not name or name in CLASS_SET) else "float"
            return adapter.loss_dtype(kind, like), tuple(out)
        if name in ELEMENTWISE:
            raise misfit(applied, on, out, shape, "equal shapes")
        if name in CLASS_INDEX:
            wants = "class numbers of an integer dtype (cast them, or number the classes)"
            raise misfit(applied, on, out, shape, f"{wants} or class probabilities")
        one = math.prod(shape) == 1 and (integer or name in ONE_A_SAMPLE)
        kind = "index" if integer and name not in ONE_A_SAMPLE else "float"
        return adapter.loss_dtype(kind, like), () if one else None

    def _flow_shape(self, flow: ColumnLineage) -> Shape:
        if isinstance(flow, SourceColumns):
            fs = flow.source.ref.resolve()
            shapes = [fs.collection.schema[name].shape for name in flow.columns]
            if len(set(shapes)) > 1:
                raise ShapeError(f"columns {list(flow.columns)} differ in shape: {shapes}")
            return (len(shapes), *shapes[0])
        assert isinstance(flow, MergedColumns)
        blank = [np.zeros((1, *self._flow_shape(part))) for part in flow.parts]
        return tuple(flow.merge(blank).shape[1:])

    def read_flow(
        self,
        program: Program,
        flow: ColumnLineage,
        role: str,
        fit: tuple[Any, Shape | None],
        adapter: BackendAdapter | None = None,
        padding: str = "kept",
    ) -> int:
        """Return the slot of columns in a program, in a dtype and shape."""
        dtype, shape = fit
        if isinstance(flow, SourceColumns):
            slot = program.slot(role, flow.source, flow.columns, dtype, shape, padding=padding)
            foreign = None if adapter is None else replace(slot, adapter=adapter, device=None)
            return program.input(foreign or slot)
        assert isinstance(flow, MergedColumns)
        parts = [self.read_flow(program, part, role, (dtype, None), adapter) for part in flow.parts]
        merged = program.op(flow.merge, parts, many=True)
        if shape is None:
            return merged
        reshape = program.adapter.reshape
        return program.op(lambda t: reshape(t, shape), [merged], many=False)

    def output(
        self, program: Program, node_id: str, role: str, dtype: Any, places: Mapping[Any, int]
    ) -> int:
        """Return the slot of a node's output in a program, converted if need be."""
        if self.program(node_id) is program:
            return places[node_id, role]
        return program.input(Crossing(node_id, role, dtype))

    def program(self, node_id: str) -> Program:
        """Return the program that runs a node."""
        return self.programs[self.home[node_id]]

    def read_by(self, applied: AppliedLoss) -> list[str]:
        """Return the ids of nodes whose outputs a loss reads."""
        return [
            self.node_named(item.node or applied.on, applied).node_id
            for item in applied.parsed
            if item.domain == "outputs" and item.column is None
        ]

    def node_named(self, name: str, applied: AppliedLoss) -> ComputeNode:
        """Return a node that a loss names by label or id."""
        for node in self.nodes:
            if name in (node.label, node.node_id):
                return node
        raise UnknownNameError(
            f"node of loss {applied.label!r}", name, [n.label for n in self.nodes]
        )

    def _role(self, applied: AppliedLoss, role: str | None) -> str:
        if role is None:
            if len(self.roles) > 1 and "default" not in self.roles:
                raise LossError(
                    f"loss {applied.label!r} must name a role: one of {list(self.roles)}"
                )
            return self.roles[0]
        if role not in self.roles:
            raise LossError(
                f"loss {applied.label!r} on node {applied.on!r} reads the role {role!r}, which "
                f"the sampler does not have; {closest(role, self.roles)}"
            )
        return role


def _module_of(node: ComputeNode) -> Any:
    """Return the model whose dtype the values of a loss get; None for a merge."""
    return node.model.module if isinstance(node, ModelNode) else None
