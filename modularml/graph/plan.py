"""The step plan: everything that can be known before the first batch.

A plan turns nodes, losses and who is frozen into a function from input tensors to losses and
outputs. A step is then slice, forward, loss, backward, optimizer, with no look-up in between.
Where nodes belong to several frameworks the plan has several segments, each of one framework:
they run one after another, and what passes between them is converted and carries no gradient.
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
from modularml.data.execution import Layout, WeightSource
from modularml.data.lineage import Source
from modularml.errors import BackendNotSupportedError, ShapeError
from modularml.training import AppliedLoss

__all__ = ["Crossing", "InputSlot", "LossOp", "Op", "OutputMemory", "Segment", "StepPlan"]

StepFunction: TypeAlias = Callable[[Sequence[Any]], tuple[Sequence[Any], Sequence[Any]]]


@dataclass(frozen=True)
class InputSlot:
    """One tensor that a step is given.

    Parameters
    ----------
    role : str
    source : Source or None
        Where the rows come from.
    columns : tuple of str
        Columns that are stacked.
    dtype : object
        Of the framework; None keeps the column's own.
    shape : tuple of int or None
        Shape of one sample; None keeps that of the stack.
    node_id : str or None
        A frozen node whose outputs stand in for columns.
    weight_source : WeightSource or None
        Weights of the samples of a loss stand in for columns.
    normalized : bool
        Whether weights have mean 1 in each batch, or are as they were given.
    padding : str
        Padded columns as they are (``"kept"``), with 0 for padding (``"blank"``), or in their place
        what each element counts (``"weights"``).
    adapter : BackendAdapter
        Of the framework that reads it.
    device : object
        Where it lies; None where that need not be known.
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
    """The output of a node of another segment, as an input of this one."""

    node_id: str
    role: str
    dtype: Any = None


@dataclass(frozen=True)
class Op:
    """A function from some slots to another."""

    fn: Callable[..., Any]
    args: tuple[int, ...]
    out: int
    many: bool
    writes: bool = False
    """Whether it may change what it is given in place."""


@dataclass(frozen=True)
class LossOp:
    """A loss of some slots."""

    fn: Callable[..., Any]
    args: tuple[int, ...]


@dataclass
class Segment:
    """The part of a step that one framework does.

    Attributes
    ----------
    adapter : BackendAdapter
    modes : list of (module, bool)
        Which models run in training mode.
    optimizers : list of Optimizer
        What moves the weights; empty where no loss of this segment could.
    takes : list of (int, callable or None)
        Its inputs: a tensor of the plan's slots, or an output of an earlier segment and what
        converts it.
    places : list of int
        Which of the plan's losses are its own.
    eager : bool
        Whether some node is fitted in the step, so that it is no graph that could be traced.
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
        """Return (total loss, each loss, each output); ShapeError where samples change shape."""
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
        """Return all values of a step, in their places."""
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
        """Return all values of a step that has run, and the places of what comes of outputs."""
        values, derived = [*inputs, *[None] * self._n_slots], set(self._out_slots)
        for place, out in zip(self._out_slots, outputs, strict=True):
            values[place] = out
        for op in self._ops:  # those between outputs and losses; no model is among them
            if values[op.out] is None:
                args = [values[i] for i in op.args]
                values[op.out] = op.fn(args if op.many else args[0])
                derived |= {op.out} if derived & set(op.args) else set()
        return values, derived

    def pairs_ignored(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> list[bool]:
        """Tell of each loss of outputs and targets whether it matters not which belongs to which.

        Targets take the place of outputs, once as they are and once each in the place of another.
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
        given = [[t, target] if at == 0 else [target, t] for t in (like, rolled)]
        own, other = self.adapter.floats([op.fn(*args) for args in given])
        spread = np.ptp(self.adapter.to_numpy(target))
        return bool(spread > 0) and math.isclose(own, other, rel_tol=1e-6, abs_tol=1e-9)

    def _check(self, shapes: list[Any]) -> None:
        for (label, wanted), shape in zip(self._promised, shapes, strict=True):
            found = tuple(shape)[1:]
            if wanted is None:
                continue
            alike = (n in (m, None) for n, m in zip(found, wanted, strict=False))  # None: unknown
            if len(found) != len(wanted) or not all(alike):
                raise ShapeError(
                    f"node {label!r} gives samples of shape {found}, and the graph was built for "
                    f"{wanted}; a model must give every batch the same shape"
                )
        self._shapes = shapes

    def train_step(self, options: StepOptions = PLAIN) -> StepFunction:
        """Return the function that computes a batch's losses and moves the weights."""
        if not self.optimizers:
            return self.eval_step()
        instances = [o.instance for o in self.optimizers]
        options = replace(
            options,
            clips=tuple((o.clip_norm, o.clip_value) for o in self.optimizers),
            schedules=tuple(o.scheduler for o in self.optimizers if o.goes_on_every("batch")),
            models=tuple(model for model, _ in self.modes),
        )
        options = self.adapter.options_for(options)
        if options.is_plain:
            return self.adapter.train_step(self.compute, instances)
        return self.adapter.train_step(self.compute, instances, options)

    def eval_step(self, chunk: int | None = None) -> StepFunction:
        """Return the function that computes a batch's losses and outputs without gradients.

        With `chunk`, nodes get so many rows at once, and losses all of them.
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
            made = [forward(piece)[1] for piece in pieces]
            whole = [adapter.concat(parts, 0) for parts in zip(*made, strict=True)]
            return losses_of([*inputs, *whole])

        return step

    def _run(self, inputs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        with self.adapter.no_grad():
            return self.compute(inputs)[1:]


class OutputMemory:
    """Whether the steps of a plan write their outputs over those of the step before.

    Some models fill a buffer of their own each time. The first two steps that are kept tell; until
    then, and where it is so, outputs are copied.

    Attributes
    ----------
    is_shared : bool or None
        None while it is not known.
    """

    def __init__(self) -> None:
        self.is_shared: bool | None = None
        self._last: list[Any] = []

    def own(self, adapters: Sequence[BackendAdapter], outs: Sequence[Any]) -> Sequence[Any]:
        """Return outputs that no later step changes."""
        both = [(a, out) for a, out in zip(adapters, outs, strict=True) if a.may_reuse_outputs]
        if self.is_shared is None:
            found = [adapter.to_numpy(out) for adapter, out in both]
            if not both or [o.shape for o in found] == [o.shape for o in self._last]:
                seen = [adapter.to_numpy(out) for adapter, out in both]
                hidden = not all(map(np.may_share_memory, found, seen))  # numpy has no such type
                self.is_shared = hidden or any(map(np.may_share_memory, found, self._last))
                found = []
            self._last = found
        if self.is_shared is False:
            return outs
        copied = {id(out): adapter.concat([out], 0) for adapter, out in both}
        return [copied.get(id(out), out) for out in outs]


@dataclass
class StepPlan:
    """What a step does, resolved.

    Attributes
    ----------
    segments : list of Segment
        In the order in which they run; nearly always one.
    slots : list of InputSlot
        The tensors a step is given, in order.
    layout : Layout
        What its outputs and losses mean.
    static : StepPlan or None
        The frozen part that is computed once a phase; its outputs stand in `slots`.
    losses : sequence of AppliedLoss
        What it was made for.
    fits : tuple of str
        Ids of nodes that are fitted on the rows of the step before they are asked for outputs.
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
        """What moves the weights, each once."""
        return list({id(o): o for segment in self.segments for o in segment.optimizers}.values())

    @contextmanager
    def modes(self) -> Iterator[None]:
        """Put all models into training or evaluation mode within a block, then back."""
        with ExitStack() as stack:
            for segment in self.segments:
                stack.enter_context(segment.adapter.modes(segment.modes))
            yield

    def static_version(self) -> Hashable:
        """Return the version of the weights that the outputs of the frozen part are made with."""
        segments = () if self.static is None else self.static.segments
        return tuple(s.adapter.weights_version(model) for s in segments for model, _ in s.modes)

    def serves(
        self,
        losses: Sequence[AppliedLoss],
        training: bool,
        fits: Sequence[str],
        version: Hashable = (),
    ) -> bool:
        """Tell whether this is the plan for these losses, nodes to fit and frozen weights."""
        same = len(losses) == len(self.losses) and all(map(is_, losses, self.losses))
        asked = same and self.layout.training is training and self.fits == tuple(fits)
        return asked and (self.static is None or version == self.static_version())

    def finish(self) -> None:
        """Let optimizers do what they do at the end of a training."""
        for segment in self.segments:
            for optimizer in segment.optimizers:
                segment.adapter.finish_training(optimizer.instance)

    def train_step(self, options: StepOptions = PLAIN) -> StepFunction:
        """Return the function that computes a batch's losses and moves the weights.

        Raises
        ------
        BackendNotSupportedError
            If batches shall be put together and there are several segments.
        """
        if len(self.segments) > 1 and (options.accumulate > 1 or options.parallel):
            raise BackendNotSupportedError(
                "accumulate and data_parallel need nodes of one framework; use active_nodes= to "
                "train those of one"
            )
        return self._through([segment.train_step(options) for segment in self.segments])

    def eval_step(self, chunk: int | None = None) -> StepFunction:
        """Return the function that computes a batch's losses and outputs; see `Segment`."""
        return self._through([segment.eval_step(chunk) for segment in self.segments])

    def losses_of_part(
        self, tensors: Sequence[Any], outs: Sequence[Any], rows: slice
    ) -> list[float]:
        """Return the losses of some rows of a step that has run, in the order of the layout."""
        found = [0.0] * len(self.layout.losses)
        for segment, given, mine in self._parts_of(tensors, outs):
            with segment.adapter.no_grad():
                losses = segment.losses_of_part(given, mine, rows)
            for place, loss in zip(segment.places, segment.adapter.floats(losses), strict=True):
                found[place] = loss
        return found

    def pairs_ignored(self, tensors: Sequence[Any], outs: Sequence[Any]) -> set[int]:
        """Return the places of losses that read pairs as they read any others; see `Segment`."""
        found = set()
        for segment, given, mine in self._parts_of(tensors, outs):
            with segment.adapter.no_grad():
                ignored = segment.pairs_ignored(given, mine)
            found |= {place for place, is_so in zip(segment.places, ignored, strict=True) if is_so}
        return found

    def _parts_of(
        self, tensors: Sequence[Any], outs: Sequence[Any]
    ) -> Iterator[tuple[Segment, list[Any], Sequence[Any]]]:
        """Yield each segment with its inputs and outputs in a step that has run."""
        at = 0
        for segment in self.segments:
            mine = outs[at : at + len(segment._out_slots)]
            at += len(mine)
            yield (
                segment,
                [tensors[i] if how is None else how(outs[i]) for i, how in segment.takes],
                mine,
            )

    def _through(self, steps: Sequence[StepFunction]) -> StepFunction:
        """Return one step from those of the segments; losses come out as numbers."""
        if len(steps) == 1:
            return steps[0]
        parts, n_losses = list(zip(self.segments, steps, strict=True)), len(self.layout.losses)

        def step(tensors: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
            losses, outs = [0.0] * n_losses, list[Any]()
            for segment, run in parts:
                given = [
                    tensors[i] if convert is None else convert(outs[i])
                    for i, convert in segment.takes
                ]
                try:
                    values, outputs = run(given)
                except NotFiniteError as error:
                    place = segment.places[error.place]
                    raise NotFiniteError(place, error.value, error.of) from None
                numbers = segment.adapter.floats(values)
                for place, value in zip(segment.places, numbers, strict=True):
                    losses[place] = value
                outs += outputs
            return losses, outs

        return step
