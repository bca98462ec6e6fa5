"""Inputs of losses: outputs, targets and weights, in the right dtype and shape."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from modularml._typing import Shape
from modularml.backends import Backend, BackendAdapter
from modularml.data.class_weights import ClassWeights
from modularml.data.execution import WeightSource
from modularml.data.lineage import ColumnLineage, MergedColumns, Source, SourceColumns
from modularml.errors import LossError, NotFittedError, ShapeError, UnknownNameError, closest
from modularml.graph.lineage import is_integer, loss_inputs, masks_of, pick_column
from modularml.graph.loss_calls import (
    Padding,
    check_call,
    check_numbers,
    check_values,
    mean_over_samples,
    misfit,
    padding_of,
    squeezed,
    weighted,
)
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode
from modularml.graph.plan import LossOp
from modularml.graph.program import Program
from modularml.graph.sample_weights import batch_weight_source, class_weights_of, weight_source_of
from modularml.training import AppliedLoss, LossInput
from modularml.training.loss import (
    CLASS_INDEX,
    CLASS_LAST,
    CLASS_SET,
    ELEMENTWISE,
    ONE_A_SAMPLE,
    SHARES,
    TAKES_SHARES,
)

__all__ = ["LossReading"]


class LossReading(ABC):
    """The part of the compiler that turns losses into operations of programs."""

    nodes: list[ComputeNode]
    roles: tuple[str, ...]
    training: bool
    lineages: dict[tuple[str, str], ColumnLineage]
    backends: dict[str, Backend]
    places: dict[tuple[str, str], int]
    weighted: Mapping[Source, int]
    weight_sources: list[WeightSource | None]
    padded: set[str]

    @abstractmethod
    def _program(self, node_id: str) -> Program:
        """Return the program that runs a node."""

    @abstractmethod
    def _output(
        self, program: Program, node_id: str, role: str, dtype: Any, places: Mapping[Any, int]
    ) -> int:
        """Return the slot of a node's output in a program."""

    def _loss(self, applied: AppliedLoss) -> LossOp:
        node = self._node_named(applied.on, applied)
        program = self._program(node.node_id)
        adapter = program.adapter
        check_call(applied, applied.loss.resolve(adapter.backend))
        padding = self._padding(applied, node)
        args = self._loss_args(applied, node, padding)
        weight_source = self._weight_source(applied, node)
        weighed = weight_source is not None and applied.loss.over != "batch"
        fn = mean_over_samples(applied, adapter, weighed=weighed, padding=padding)
        if weight_source is not None and weighed:
            like = node.model.module if isinstance(node, ModelNode) else None
            dtype = adapter.loss_dtype("float", like)
            slot = program.slot(
                weight_source.role, weight_source.source, dtype=dtype, weight_source=weight_source
            )
            args.append(program.input(slot))
        if applied.weight != 1.0:
            fn = weighted(fn, applied.weight)
        return LossOp(fn, tuple(program.moved(arg, program.device) for arg in args))

    def _padding(self, applied: AppliedLoss, on: ComputeNode) -> Padding | None:
        """Return the padded columns of a loss, and record that it skips padding."""
        inputs = [
            (self._loss_flow(applied, on, i), self._role(applied, i.role))
            for i in self._inputs(applied)
        ]
        padding = padding_of(applied, inputs)
        if padding is not None and applied.loss.labels:
            raise LossError(
                f"loss {applied.label!r} reads the padded column {padding.column!r}, whose padding "
                f"must not count; {applied.loss.name!r} is not supported for padded targets"
            )
        if padding is not None:
            self.padded.add(applied.label)
        return padding

    def _weight_source(self, applied: AppliedLoss, on: ComputeNode) -> WeightSource | None:
        """Return the weights of a loss's samples or batches, and record them."""
        reads = [
            (self._node_named(i.node or applied.on, applied), self._role(applied, i.role))
            for i in self._inputs(applied)
        ]
        reads = [(on, reads[0][1]), *reads]
        classes = self._class_weights(applied, on) if self.training else None
        source = weight_source_of(applied, reads, self.lineages, self.weighted, classes)
        if applied.loss.over == "batch":
            if source is not None:
                raise LossError(
                    f"loss {applied.label!r} is over the batch and gets no sample weights, but "
                    "samples have weights; add the weights to its inputs"
                )
            source = batch_weight_source(applied, reads, self.lineages)
        self.weight_sources.append(source)
        return source

    def _class_weights(self, applied: AppliedLoss, on: ComputeNode) -> ClassWeights | None:
        flows = [(self._loss_flow(applied, on, i), i.role) for i in self._inputs(applied)]
        read = [(flow, self._role(applied, role)) for flow, role in flows if flow is not None]
        return class_weights_of(applied, read)

    def _loss_args(
        self, applied: AppliedLoss, on: ComputeNode, padding: Padding | None
    ) -> list[int]:
        """Return the slots of a loss's inputs, reshaped so that none broadcast.

        Values that differ from the node's output only by axes of length 1 get its shape. Columns of
        one number per sample next to class numbers become one-dimensional, as these are. With
        `padding`, the weights of the elements come last.
        """
        program, out = self._program(on.node_id), on.output_shape or ()
        inputs = self._inputs(applied)
        lineages = [self._loss_flow(applied, on, item) for item in inputs]
        if program.adapter.gradients:
            for flow in lineages:
                check_numbers(applied, flow)
        fits = [None if flow is None else self._fit(applied, on, flow) for flow in lineages]
        flat = any(fit is not None and fit[1] == () for fit in fits)
        args, weights = [], []
        for item, flow, fit in zip(inputs, lineages, fits, strict=True):
            role = self._role(applied, item.role)
            if flow is not None and fit is not None:
                dtype, shape = fit
                if flat and shape is None and math.prod(self._flow_shape(flow)) == 1:
                    shape = ()
                blank = (
                    padding is not None and isinstance(flow, SourceColumns) and bool(masks_of(flow))
                )
                padding_mode = "blank" if blank else "kept"
                args.append(self._flow(program, flow, role, (dtype, shape), padding=padding_mode))
                if padding is not None and (flow, role) == (padding.leaf, padding.role):
                    like = on.model.module if isinstance(on, ModelNode) else None
                    weight_fit = program.adapter.loss_dtype("float", like), shape
                    weights.append(self._flow(program, flow, role, weight_fit, padding="weights"))
                continue
            node = on if item.node is None else self._node_named(item.node, applied)
            like = on.model.module if isinstance(on, ModelNode) else None
            dtype = program.adapter.loss_dtype("float", like)
            place = self._output(program, node.node_id, role, dtype, self.places)
            shape = node.output_shape or ()
            same_size = squeezed(shape) == squeezed(out)
            if not same_size and applied.loss.kind in ELEMENTWISE:
                raise misfit(applied, on, out, shape, "equal shapes")
            if shape != out and same_size:
                reshape = partial(program.adapter.reshape, shape=out)
                place = program.op(reshape, [place], many=False)
            args.append(place)
        return [*args, *weights[:1]]

    def _loss_flow(self, applied: AppliedLoss, on: ComputeNode, item: LossInput) -> ColumnLineage:
        """Return the lineage of an input; None for an output."""
        if item.domain == "outputs":
            return None
        node = on if item.node is None else self._node_named(item.node, applied)
        flow = self._asked(applied, node, item)
        return flow if item.column is None else pick_column(applied, item, self.lineages, node)

    def check(self, losses: Sequence[AppliedLoss]) -> None:
        """Refuse losses that name unknown nodes, roles or values.

        The graph need not be built. Columns are not checked, as scalers may add them later.
        """
        for applied in losses:
            on = self._node_named(applied.on, applied)
            check_call(applied, applied.loss.resolve(self.backends[on.node_id]))
            for item in self._inputs(applied):
                self._role(applied, item.role)
                node = on if item.node is None else self._node_named(item.node, applied)
                if item.domain != "outputs" and item.column is None:
                    self._asked(applied, node, item)

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
        adapter = self._program(on.node_id).adapter
        name = applied.loss.kind
        like = on.model.module if isinstance(on, ModelNode) else None
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

    def _flow(
        self,
        program: Program,
        flow: ColumnLineage,
        role: str,
        fit: tuple[Any, Shape | None],
        adapter: BackendAdapter | None = None,
        padding: str = "kept",
    ) -> int:
        dtype, shape = fit
        if isinstance(flow, SourceColumns):
            slot = program.slot(role, flow.source, flow.columns, dtype, shape, padding=padding)
            foreign = None if adapter is None else replace(slot, adapter=adapter, device=None)
            return program.input(foreign or slot)
        assert isinstance(flow, MergedColumns)
        parts = [self._flow(program, part, role, (dtype, None), adapter) for part in flow.parts]
        merged = program.op(flow.merge, parts, many=True)
        if shape is None:
            return merged
        reshape = program.adapter.reshape
        return program.op(lambda t: reshape(t, shape), [merged], many=False)

    def _read_by(self, applied: AppliedLoss) -> list[str]:
        """Return the ids of nodes whose outputs a loss reads."""
        return [
            self._node_named(item.node or applied.on, applied).node_id
            for item in applied.parsed
            if item.domain == "outputs" and item.column is None
        ]

    def _node_named(self, name: str, applied: AppliedLoss) -> ComputeNode:
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
