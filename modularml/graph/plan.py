"""The step plan: everything that is resolved before the first batch.

A plan turns nodes, losses and frozen flags into a function from input tensors to losses and
outputs. A step is then slice, forward, loss, backward, optimizer, with no look-up in between.
If nodes belong to several frameworks, the plan has several segments, each of one framework, which
run in sequence; outputs passed between them are converted and carry no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from operator import is_
from typing import Any, Literal, TypeAlias

import numpy as np

from modularml._typing import Shape
from modularml.backends import PLAIN, BackendAdapter, StepOptions
from modularml.backends.base import NotFiniteError
from modularml.backends.options import NotStackableError, StackMember
from modularml.data.execution import Layout, WeightSource
from modularml.data.lineage import Source
from modularml.errors import BackendNotSupportedError, ShapeError
from modularml.training import AppliedLoss

__all__ = ["Crossing", "InputSlot", "LossOp", "Op", "OutputMemory", "Segment", "StepPlan"]

StepFunction: TypeAlias = Callable[[Sequence[Any]], tuple[Sequence[Any], Sequence[Any]]]


@dataclass(frozen=True)
class InputSlot:
    """One input tensor of a step.

    Parameters
    ----------
    role : str
    source : Source or None
        Where the rows come from.
    columns : tuple of str
        Columns that are stacked.
    dtype : object
        Of the framework; None keeps the column's dtype.
    shape : tuple of int or None
        Shape of one sample; None keeps the shape of the stacked columns.
    node_id : str or None
        A frozen node whose outputs replace columns.
    weight_source : WeightSource or None
        Source of the sample weights of a loss, which replace columns.
    normalized : bool
        Whether weights are scaled to mean 1 in each batch.
    padding : str
        Padded columns as they are (``"kept"``), with 0 for padding (``"blank"``), or the weight of
        each element instead (``"weights"``).
    adapter : BackendAdapter
        Adapter of the framework that reads it.
    device : object
        Device of the tensor; None if irrelevant.
    """

    role: str
    source: Source
    columns: tuple[str, ...] = ()
    dtype: Any = None
    shape: Shape | None = None
    node_id: str | None = None
    weight_source: WeightSource | None = None
    normalized: bool = True
    padding: Literal["kept", "blank", "weights"] = "kept"
    adapter: Any = None
    device: Any = None


@dataclass(frozen=True)
class Crossing:
    """The output of a node of another segment as an input of this one."""

    node_id: str
    role: str
    dtype: Any = None


@dataclass(frozen=True)
class Op:
    """An operation that reads some slots and writes another."""

    fn: Callable[..., Any]
    args: tuple[int, ...]
    out: int
    many: bool
    writes: bool = False
    """Whether it may change its inputs in place."""


@dataclass(frozen=True)
class LossOp:
    """A loss that reads some slots."""

    fn: Callable[..., Any]
    args: tuple[int, ...]


@dataclass
class Segment:
    """The part of a step that one framework runs.

    Attributes
    ----------
    adapter : BackendAdapter
    modes : list of (module, bool)
        Models, and whether each runs in training mode.
    optimizers : list of Optimizer
        Optimizers of the weights; empty if no loss of this segment reaches them.
    takes : list of (int, callable or None)
        Its inputs: the index of a tensor of the plan's slots, or that of an output of an earlier
        segment and its conversion.
    places : list of int
        Indices of its losses among the plan's.
    eager : bool
        Whether a node is fitted in the step, so that the step cannot be traced.
    """

    adapter: BackendAdapter
    modes: list[tuple[Any, bool]]
    optimizers: list[Any]
    takes: list[tuple[int, Callable[[Any], Any] | None]]
    places: list[int]
    _ops: list[Op] = field(default_factory=list)
    _losses: list[LossOp] = field(default_factory=list)
    _out_slots: list[int] = field(default_factory=list)
    _promised: list[tuple[str, Shape | None]] = field(default_factory=list)
    _n_slots: int = 0
    eager: bool = False
    _shapes: list[Any] = field(default_factory=list)

    def compute(self, inputs: Sequence[Any]) -> tuple[Any, Sequence[Any], Sequence[Any]]:
        """Return (total loss, losses, outputs); ShapeError if samples change shape."""
        values = self._forward(inputs)
        outputs = [values[i] for i in self._out_slots]
        shapes = [out.shape for out in outputs]
        if shapes != self._shapes:
            self._check(shapes)
        losses = [op.fn(*[values[i] for i in op.args]) for op in self._losses]
        if len(losses) == 1:
            return losses[0], losses, outputs
        return (sum(losses[1:], losses[0]) if losses else None), losses, outputs

    def _forward(self, inputs: Sequence[Any]) -> list[Any]:
        """Return all values of a step, by slot."""
        values = [*inputs, *[None] * self._n_slots]
        for op in self._ops:
            args = op.args
            values[op.out] = op.fn([values[i] for i in args] if op.many else values[args[0]])
        return values

    def losses_of_part(self, inputs: Sequence[Any], outputs: Sequence[Any], n: slice) -> list[Any]:
        """Return the losses of some rows of a step that has run, from its inputs and outputs."""
        values, _ = self._after(inputs, outputs)
        return [op.fn(*[values[i][n] for i in op.args]) for op in self._losses]

    def _after(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> tuple[list[Any], set[int]]:
        """Return all values of a completed step, and the slots derived from outputs."""
        values, derived = [*inputs, *[None] * self._n_slots], set(self._out_slots)
        for place, out in zip(self._out_slots, outputs, strict=True):
            values[place] = out
        for op in self._ops:  # those between outputs and losses, which are no models
            if values[op.out] is None:
                args = [values[i] for i in op.args]
                values[op.out] = op.fn(args if op.many else args[0])
                derived |= {op.out} if derived & set(op.args) else set()
        return values, derived

    def pairs_ignored(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> list[bool]:
        """Return for each loss whether it ignores which target belongs to which output.

        The loss is computed with targets in place of outputs, once aligned and once shifted.
        """
        values, derived = self._after(inputs, outputs)
        return [self._ignores_pairs(op, values, derived) for op in self._losses]

    def _ignores_pairs(self, op: LossOp, values: Sequence[Any], derived: set[int]) -> bool:
        args, out = [values[i] for i in op.args], [i in derived for i in op.args]
        if len(args) != 2 or sum(out) != 1:
            return False
        at = out.index(True)
        output, target = args[at], args[1 - at]
        if math.prod(output.shape[1:]) != 1 or math.prod(target.shape[1:]) != 1:
            return False
        if output.dtype != target.dtype or len(target) < 2:
            return False
        like = self.adapter.reshape(target, tuple(output.shape[1:]))
        rolled = self.adapter.gather(like, np.roll(np.arange(len(target)), 1))
        calls = [[t, target] if at == 0 else [target, t] for t in (like, rolled)]
        aligned, shifted = self.adapter.floats([op.fn(*args) for args in calls])
        spread = np.ptp(self.adapter.to_numpy(target))
        return bool(spread > 0) and math.isclose(aligned, shifted, rel_tol=1e-6, abs_tol=1e-9)

    def _check(self, shapes: list[Any]) -> None:
        for (label, expected), shape in zip(self._promised, shapes, strict=True):
            actual = tuple(shape)[1:]
            if not tuple(shape):
                raise ShapeError(
                    f"node {label!r} returned a single number for a batch, which may hold one "
                    "sample; return one row a sample, for example with squeeze(-1) instead of "
                    "squeeze()"
                )
            if expected is None:
                continue
            # a size that is None is unknown
            matching = (n in (m, None) for n, m in zip(actual, expected, strict=False))
            if len(actual) != len(expected) or not all(matching):
                raise ShapeError(
                    f"node {label!r} returned samples of shape {actual}, but the graph was built "
                    f"for {expected}; a model must return samples of one shape"
                )
        self._shapes = shapes

    def train_step(self, options: StepOptions = PLAIN) -> StepFunction:
        """Return the function that computes a batch's losses and updates the weights."""
        if not self.optimizers:
            return self.eval_step()
        instances = [o.instance for o in self.optimizers]
        return self.adapter.train_step(self.compute, instances, self._completed(options))

    def _completed(self, options: StepOptions) -> StepOptions:
        """Return the options of a step with those of its optimizers and models."""
        options = replace(
            options,
            clips=tuple((o.clip_norm, o.clip_value) for o in self.optimizers),
            schedules=tuple(
                o.scheduler
                for o in self.optimizers
                if o.scheduler is not None and o.steps_every("batch")
            ),
            models=tuple(model for model, _ in self.modes),
        )
        return self.adapter.options_for(options)

    def stack_member(
        self, options: StepOptions, weights: Sequence[float], losses: Sequence[Any]
    ) -> StackMember:
        """Return what trains this segment as one with those of other graphs."""
        models = [model for model, _ in self.modes]
        indices = [i for i, _ in self.takes]
        return StackMember(
            lambda tensors: self.compute([tensors[i] for i in indices]),
            models,
            [o.instance for o in self.optimizers],
            self._completed(options),
            tuple(weights),
            self.adapter.kind_of(models),
            self,
            losses,
        )

    def eval_step(self, chunk: int | None = None) -> StepFunction:
        """Return the function that computes a batch's losses and outputs without gradients.

        With `chunk`, nodes get that many rows at a time, and losses all of them.
        """
        if self.eager:
            return self._run
        return self.adapter.eval_step(self.compute) if chunk is None else self._in_chunks(chunk)

    def _in_chunks(self, chunk: int) -> StepFunction:
        adapter, first = self.adapter, len(self.takes)
        forward = adapter.eval_step(lambda inputs: (None, (), self._forward(inputs)[first:]))

        def last(values: Sequence[Any]) -> tuple[Any, Sequence[Any], Sequence[Any]]:
            losses = [op.fn(*[values[i] for i in op.args]) for op in self._losses]
            return None, losses, [values[i] for i in self._out_slots]

        losses_of = adapter.eval_step(last)

        def step(inputs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
            pieces = zip(*(adapter.chunks(t, chunk) for t in inputs), strict=True)
            chunk_outputs = [forward(piece)[1] for piece in pieces]
            outputs = [adapter.concat(parts, 0) for parts in zip(*chunk_outputs, strict=True)]
            return losses_of([*inputs, *outputs])

        return step

    def _run(self, inputs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        with self.adapter.no_grad():
            return self.compute(inputs)[1:]


class OutputMemory:
    """Detects whether the steps of a plan overwrite the outputs of the previous step.

    Some models reuse an output buffer. The first two recorded steps show it; until then, and if so,
    outputs are copied.

    Attributes
    ----------
    is_shared : bool or None
        None until known.
    """

    def __init__(self) -> None:
        self.is_shared: bool | None = None
        self._last: list[Any] = []

    def own(self, adapters: Sequence[BackendAdapter], outs: Sequence[Any]) -> Sequence[Any]:
        """Return outputs that no later step overwrites."""
        both = [(a, out) for a, out in zip(adapters, outs, strict=True) if a.may_reuse_outputs]
        if self.is_shared is None:
            arrays = [adapter.to_numpy(out) for adapter, out in both]
            if not both or [o.shape for o in arrays] == [o.shape for o in self._last]:
                again = [adapter.to_numpy(out) for adapter, out in both]
                hidden = not all(map(np.may_share_memory, arrays, again))  # numpy has no such type
                self.is_shared = hidden or any(map(np.may_share_memory, arrays, self._last))
                arrays = []
            self._last = arrays
        if self.is_shared is False:
            return outs
        copied = {id(out): adapter.concat([out], 0) for adapter, out in both}
        return [copied.get(id(out), out) for out in outs]


@dataclass
class StepPlan:
    """A resolved step.

    Attributes
    ----------
    segments : list of Segment
        In the order in which they run; nearly always one.
    slots : list of InputSlot
        The input tensors of a step, in order.
    layout : Layout
        Meaning of its outputs and losses.
    static : StepPlan or None
        The frozen part, which is computed once per phase; its outputs are among `slots`.
    losses : sequence of AppliedLoss
        The losses it was compiled for.
    fits : tuple of str
        Ids of nodes that are fitted on the rows of the step before they compute outputs.
    """

    segments: list[Segment]
    slots: list[InputSlot]
    layout: Layout
    static: StepPlan | None = None
    losses: Sequence[AppliedLoss] = ()
    fits: tuple[str, ...] = ()
    memory: OutputMemory = field(default_factory=OutputMemory)

    @property
    def optimizers(self) -> list[Any]:
        """Optimizers of the weights, each once."""
        return list({id(o): o for segment in self.segments for o in segment.optimizers}.values())

    @contextmanager
    def modes(self) -> Iterator[None]:
        """Set the mode of all models within a block, and restore it afterwards."""
        with ExitStack() as stack:
            for segment in self.segments:
                stack.enter_context(segment.adapter.modes(segment.modes))
            yield

    def static_version(self) -> Hashable:
        """Return the version of the weights of the frozen part."""
        segments = () if self.static is None else self.static.segments
        return tuple(s.adapter.weights_version(model) for s in segments for model, _ in s.modes)

    def serves(
        self,
        losses: Sequence[AppliedLoss],
        training: bool,
        fits: Sequence[str],
        version: Hashable = (),
    ) -> bool:
        """Return whether this plan is valid for these losses, fits and frozen weights."""
        same = len(losses) == len(self.losses) and all(map(is_, losses, self.losses))
        same_mode = same and self.layout.training is training and self.fits == tuple(fits)
        return same_mode and (self.static is None or version == self.static_version())

    def finish(self) -> None:
        """Run what optimizers do at the end of training."""
        for segment in self.segments:
            for optimizer in segment.optimizers:
                segment.adapter.finish_training(optimizer.instance)

    def train_step(self, options: StepOptions = PLAIN) -> StepFunction:
        """Return the function that computes a batch's losses and updates the weights.

        Raises
        ------
        BackendNotSupportedError
            If gradients are accumulated, or run in parallel, over several segments.
        """
        if len(self.segments) > 1 and (options.accumulate > 1 or options.parallel):
            raise BackendNotSupportedError(
                "accumulate and data_parallel need nodes of one framework; select them with "
                "active_nodes="
            )
        options = replace(options, losses=tuple(a.loss._holder for a in self.losses))
        return self._through([segment.train_step(options) for segment in self.segments])

    def eval_step(self, chunk: int | None = None) -> StepFunction:
        """Return the function that computes a batch's losses and outputs; see `Segment`."""
        return self._through([segment.eval_step(chunk) for segment in self.segments])

    def outputs(self, tensors: Sequence[Any]) -> list[Any]:
        """Return the outputs of a plan of one segment, for tensors of any kind."""
        (segment,) = self.segments
        values = segment._forward([tensors[i] for i, _ in segment.takes])
        return [values[i] for i in segment._out_slots]

    def stack_member(self, options: StepOptions) -> StackMember:
        """Return what trains this graph as one with others; see `TorchStack`.

        Raises
        ------
        NotStackableError
            If it cannot be trained so.
        """
        first, *others = self.segments
        if others:
            raise NotStackableError("the graph has models of several frameworks")
        if first.eager or not first.optimizers:
            raise NotStackableError("nodes are fitted, not trained by gradients")
        for name in ("accumulate", "precision", "compile", "on_nonfinite"):
            if getattr(options, name) != getattr(PLAIN, name):
                raise NotStackableError(f"{name}={getattr(options, name)!r} is not supported")
        if options.squares is not None:
            raise NotStackableError("norms of gradients are logged")
        weights = [applied.weight for applied in self.losses]
        weights += [1.0] * (len(self.layout.losses) - len(weights))  # losses of models
        return first.stack_member(options, weights, [a.loss._holder for a in self.losses])

    def losses_of_part(
        self, tensors: Sequence[Any], outs: Sequence[Any], rows: slice
    ) -> list[float]:
        """Return the losses of some rows of a step that has run, in the order of the layout."""
        values = [0.0] * len(self.layout.losses)
        for segment, inputs, outputs in self._parts_of(tensors, outs):
            with segment.adapter.no_grad():
                losses = segment.losses_of_part(inputs, outputs, rows)
            for place, loss in zip(segment.places, segment.adapter.floats(losses), strict=True):
                values[place] = loss
        return values

    def pairs_ignored(self, tensors: Sequence[Any], outs: Sequence[Any]) -> set[int]:
        """Return the indices of losses that ignore pairs of outputs and targets."""
        indices = set()
        for segment, inputs, outputs in self._parts_of(tensors, outs):
            with segment.adapter.no_grad():
                ignored = segment.pairs_ignored(inputs, outputs)
            indices |= {
                place
                for place, is_ignored in zip(segment.places, ignored, strict=True)
                if is_ignored
            }
        return indices

    def _parts_of(
        self, tensors: Sequence[Any], outs: Sequence[Any]
    ) -> Iterator[tuple[Segment, list[Any], Sequence[Any]]]:
        """Yield each segment with its inputs and outputs in a completed step."""
        at = 0
        for segment in self.segments:
            outputs = outs[at : at + len(segment._out_slots)]
            at += len(outputs)
            yield (
                segment,
                [
                    tensors[i] if convert is None else convert(outs[i])
                    for i, convert in segment.takes
                ],
                outputs,
            )

    def _through(self, steps: Sequence[StepFunction]) -> StepFunction:
        """Return one step that chains those of the segments, with losses as floats."""
        if len(steps) == 1:
            return steps[0]
        parts, n_losses = list(zip(self.segments, steps, strict=True)), len(self.layout.losses)

        def step(tensors: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
            losses, outs = [0.0] * n_losses, list[Any]()
            for segment, run in parts:
                inputs = [
                    tensors[i] if convert is None else convert(outs[i])
                    for i, convert in segment.takes
                ]
                try:
                    values, outputs = run(inputs)
                except NotFiniteError as error:
                    place = segment.places[error.place]
                    raise NotFiniteError(place, error.value, error.of) from None
                numbers = segment.adapter.floats(values)
                for place, value in zip(segment.places, numbers, strict=True):
                    losses[place] = value
                outs += outputs
            return losses, outs

        return step
