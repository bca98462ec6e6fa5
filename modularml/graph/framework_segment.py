"""The segments of a step, each run by one framework, and the program that builds one.

Slots of inputs are counted from 0, and those of results of operations backwards from -1, so that
both are places in one list of values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from modularml._typing import Shape
from modularml.backends import PLAIN, BackendAdapter, StepOptions
from modularml.backends.step_options import StackMember
from modularml.data.execution_context import WeightSource
from modularml.data.lineage import Source
from modularml.errors import ShapeError

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
        values = [*inputs, *[None] * len(self._ops)]
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
        values, derived = [*inputs, *[None] * len(self._ops)], set(self._out_slots)
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

            def run(inputs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
                with self.adapter.no_grad():
                    return self.compute(inputs)[1:]

            return run
        if chunk is None:
            return self.adapter.eval_step(self.compute)
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


class Program:
    """Collects inputs, operations and losses of nodes of one framework.

    Input ``i`` has slot ``i``, and the result of operation ``i`` slot ``-1 - i``, counted from the
    end of all values of a step, as more inputs may follow.

    Parameters
    ----------
    adapter : BackendAdapter
    device : object
        Device of columns and losses; None if irrelevant.
    """

    def __init__(self, adapter: BackendAdapter, device: Any = None) -> None:
        self.adapter, self.device = adapter, device
        self._where: dict[int, Any] = {}
        self._copies: dict[tuple[int, Any], int] = {}
        self.inputs: dict[InputSlot | Crossing, int] = {}
        self.ops: list[Op] = []

    def slot(
        self,
        role: str,
        source: Source,
        columns: tuple[str, ...] = (),
        dtype: Any = None,
        shape: Shape | None = None,
        **options: Any,
    ) -> InputSlot:
        """Return an input of columns on the program's device."""
        options |= {"adapter": self.adapter, "device": self.device}
        return InputSlot(role, source, columns, dtype, shape, **options)

    def moved(self, arg: int, device: Any) -> int:
        """Return the slot of a value on a device, copied there at most once."""
        if self._where.get(arg, self.device) == device:
            return arg
        if (arg, device) not in self._copies:
            move = partial(self.adapter.to_device, device=device)
            self._copies[arg, device] = self.op(move, [arg], many=False, device=device)
        return self._copies[arg, device]

    def input(self, slot: InputSlot | Crossing) -> int:
        """Return the slot of an input, the same for equal ones."""
        return self.inputs.setdefault(slot, len(self.inputs))

    def op(
        self,
        fn: Callable[..., Any],
        args: Sequence[int],
        *,
        many: bool,
        device: Any = None,
        writes: bool = False,
    ) -> int:
        """Add an operation and return the slot of its result.

        An operation that `writes` to its inputs gets copies of those with other readers.
        """
        out = -1 - len(self.ops)
        self._where[out] = self.device if device is None else device
        self.ops.append(Op(fn, tuple(args), out, many, writes))
        return out

    def segment(
        self,
        models: Iterable[tuple[Any, bool]],
        optimizers: Iterable[Any],
        takes: Iterable[tuple[int, Callable[[Any], Any] | None]],
        losses: Sequence[tuple[int, LossOp]],
        outputs: Sequence[tuple[int, str, Shape | None]],
        *,
        eager: bool,
    ) -> Segment:
        """Return the segment; operations that write to what others read get copies."""
        n_readers = Counter(arg for op in self.ops for arg in op.args)
        n_readers.update(arg for _, op in losses for arg in op.args)
        n_readers.update(slot for slot, *_ in outputs)
        ops = [
            replace(op, fn=self.on_copies(op.fn, many=op.many))
            if op.writes and any(n_readers[arg] > 1 for arg in op.args)
            else op
            for op in self.ops
        ]
        return Segment(
            self.adapter,
            list(models),
            list(optimizers),
            list(takes),
            [i for i, _ in losses],
            ops,
            [op for _, op in losses],
            [slot for slot, *_ in outputs],
            [(label, shape) for _, label, shape in outputs],
            eager,
        )

    def on_copies(self, fn: Callable[..., Any], *, many: bool) -> Callable[..., Any]:
        """Return a function that may write to its inputs as one that gets copies of them."""
        concat = self.adapter.concat
        if many:
            return lambda values: fn([concat([v], 0) for v in values])
        return lambda value: fn(concat([value], 0))


def converted(
    source: BackendAdapter, target: BackendAdapter, dtype: Any, device: Any = None
) -> Callable[[Any], Any]:
    """Return the conversion of detached tensors from one framework to another."""
    if source is target:
        return target.detach
    return lambda tensor: target.from_numpy(source.to_numpy(tensor), dtype=dtype, device=device)
