"""The builder of a plan's segment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from modularml._typing import Shape
from modularml.backends import BackendAdapter
from modularml.data.lineage import Source
from modularml.graph.plan import Crossing, InputSlot, LossOp, Op, Segment

__all__ = ["Program", "converted"]


class Program:
    """Collects inputs, operations and losses of nodes of one framework.

    While compiling, input ``i`` has slot ``i`` and the result of operation ``i`` has slot ``-1 -
    i``; once all inputs are known the results get the slots after them.

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
        slot = InputSlot(role, source, columns, dtype, shape, **options)
        return replace(slot, adapter=self.adapter, device=self.device)

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
        """Return the segment, with the final slot of every value; see `Segment`."""
        place = self._place
        n_readers = Counter(arg for op in self.ops for arg in op.args)
        n_readers.update(arg for _, op in losses for arg in op.args)
        n_readers.update(slot for slot, *_ in outputs)
        ops = [
            self._on_copies(op) if any(n_readers[a] > 1 for a in op.args) else op for op in self.ops
        ]
        return Segment(
            self.adapter,
            list(models),
            list(optimizers),
            list(takes),
            [i for i, _ in losses],
            [Op(op.fn, tuple(map(place, op.args)), place(op.out), op.many) for op in ops],
            [LossOp(op.fn, tuple(map(place, op.args))) for _, op in losses],
            [place(slot) for slot, *_ in outputs],
            [(label, shape) for _, label, shape in outputs],
            len(self.ops),
            eager,
        )

    def _on_copies(self, op: Op) -> Op:
        if not op.writes:
            return op
        fn, concat = op.fn, self.adapter.concat
        if op.many:
            return replace(op, fn=lambda values: fn([concat([v], 0) for v in values]))
        return replace(op, fn=lambda value: fn(concat([value], 0)))

    def _place(self, slot: int) -> int:
        return slot if slot >= 0 else len(self.inputs) - 1 - slot


def converted(
    source: BackendAdapter, target: BackendAdapter, dtype: Any, device: Any = None
) -> Callable[[Any], Any]:
    """Return the conversion of detached tensors from one framework to another."""
    if source is target:
        return target.detach
    return lambda tensor: target.from_numpy(source.to_numpy(tensor), dtype=dtype, device=device)
