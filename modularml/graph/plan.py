"""The step plan: everything that can be known before the first batch.

A plan turns nodes, losses and who is frozen into a function from input tensors to losses and
outputs. A step is then slice, forward, loss, backward, optimizer, with no look-up in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import is_
from typing import Any

from modularml._typing import Shape
from modularml.backends import PLAIN, BackendAdapter, StepOptions
from modularml.data.execution import Layout, Source, Weighing
from modularml.training import AppliedLoss

__all__ = ["InputSlot", "LossOp", "Op", "StepPlan"]


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
    weighing : Weighing or None
        Weights of the samples of a loss, of mean 1 in each batch, stand in for columns.
    """

    role: str
    source: Source
    columns: tuple[str, ...] = ()
    dtype: Any = None
    shape: Shape | None = None
    node_id: str | None = None
    weighing: Weighing | None = None


@dataclass(frozen=True)
class Op:
    """A function from some slots to another."""

    fn: Callable[..., Any]
    args: tuple[int, ...]
    out: int
    many: bool


@dataclass(frozen=True)
class LossOp:
    """A loss of some slots."""

    fn: Callable[..., Any]
    args: tuple[int, ...]


@dataclass
class StepPlan:
    """What a step does, resolved.

    Attributes
    ----------
    slots : list of InputSlot
        The tensors a step is given, in order.
    layout : Layout
        What its outputs and losses mean.
    modes : list of (module, bool)
        Which models run in training mode.
    optimizers : list of Optimizer
        What moves the weights.
    static : StepPlan or None
        The frozen part that is computed once a phase; its outputs stand in `slots`.
    losses : sequence of AppliedLoss
        What it was made for.
    options : StepOptions
        What a training step does beside.
    device : object
        Where the tensors of `slots` lie; None where that need not be known.
    """

    adapter: BackendAdapter
    slots: list[InputSlot]
    layout: Layout
    modes: list[tuple[Any, bool]]
    optimizers: list[Any] = field(default_factory=list)
    static: StepPlan | None = None
    losses: Sequence[AppliedLoss] = ()
    _ops: list[Op] = field(default_factory=list)
    _losses: list[LossOp] = field(default_factory=list)
    _out_slots: list[int] = field(default_factory=list)
    _n_slots: int = 0
    options: StepOptions = PLAIN
    device: Any = None

    def compute(self, inputs: Sequence[Any]) -> tuple[Any, Sequence[Any], Sequence[Any]]:
        """Return (total loss, each loss, each output) for the tensors of `slots`."""
        values = [*inputs, *[None] * self._n_slots]
        for op in self._ops:
            args = op.args
            values[op.out] = op.fn([values[i] for i in args] if op.many else values[args[0]])
        losses = [op.fn(*[values[i] for i in op.args]) for op in self._losses]
        outputs = [values[i] for i in self._out_slots]
        if len(losses) == 1:
            return losses[0], losses, outputs
        return (sum(losses[1:], losses[0]) if losses else None), losses, outputs

    def serves(self, losses: Sequence[AppliedLoss], training: bool) -> bool:
        """Tell whether this is the plan for these losses."""
        same = len(losses) == len(self.losses) and all(map(is_, losses, self.losses))
        return same and self.layout.training is training

    def train_step(self) -> Callable[[Sequence[Any]], tuple[Sequence[Any], Sequence[Any]]]:
        """Return the function that computes a batch's losses and moves the weights."""
        instances = [o.instance for o in self.optimizers]
        options = replace(
            self.options,
            clips=tuple((o.clip_norm, o.clip_value) for o in self.optimizers),
            schedules=tuple(o.scheduler for o in self.optimizers if o.goes_on_every("batch")),
        )
        if options.parallel:
            options = replace(options, models=tuple(model for model, _ in self.modes))
        if options.is_plain:
            return self.adapter.train_step(self.compute, instances)
        return self.adapter.train_step(self.compute, instances, options)

    def eval_step(self) -> Callable[[Sequence[Any]], tuple[Sequence[Any], Sequence[Any]]]:
        """Return the function that computes a batch's losses and outputs without gradients."""
        return self.adapter.eval_step(self.compute)
