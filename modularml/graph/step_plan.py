"""The step plan: everything that is resolved before the first batch.

A plan turns nodes, losses and frozen flags into a function from input tensors to losses and
outputs. A step is then slice, forward, loss, backward, optimizer, with no look-up in between.
If nodes belong to several frameworks, the plan has several segments, each of one framework, which
run in sequence; outputs passed between them are converted and carry no gradient.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from operator import is_
from typing import Any

import numpy as np

from modularml.backends import PLAIN, BackendAdapter, StepOptions, adapter_for
from modularml.backends.base import NotFiniteError
from modularml.backends.fingerprint import Identity, fingerprint
from modularml.backends.step_options import NotStackableError, StackMember
from modularml.data.execution_context import Layout
from modularml.errors import BackendNotSupportedError
from modularml.graph.framework_segment import InputSlot, Segment, StepFunction
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode
from modularml.training import AppliedLoss, Optimizer


@dataclass(frozen=True)
class PlanKey:
    """What a step plan was compiled from; a plan whose key no longer matches is outdated.

    Values of weights are not part of it: `StepPlan.static_version` shows whether cached outputs of
    the frozen part are still valid.

    Attributes
    ----------
    columns : tuple
        Columns that each reference currently denotes.
    models : tuple
        For each model: its object, whether it is fitted, the shape of its outputs, and
        `BackendAdapter.signature`: layers
        and parameters with their shapes, dtypes and whether they are trainable.
    losses : tuple
        Weight, function and arguments of each loss.
    optimizers : tuple
        The framework's object and the arguments of each optimizer.
    """

    columns: tuple[Hashable, ...]
    models: tuple[Hashable, ...]
    losses: tuple[Hashable, ...]
    optimizers: tuple[Hashable, ...]

    @classmethod
    def of(
        cls,
        nodes: Sequence[ComputeNode],
        losses: Iterable[AppliedLoss],
        optimizers: Iterable[Optimizer],
    ) -> PlanKey:
        """Return the key of a plan compiled now."""
        refs = [ref for node in nodes for ref in node.feature_refs]
        models = [node for node in nodes if isinstance(node, ModelNode)]
        return cls(
            tuple((ref.resolve().node_id, *ref.all_columns()) for ref in refs),
            tuple(
                (
                    Identity(n.model.module),
                    n.model.is_fitted,
                    n.model.output_shape,
                    n.paired,
                    adapter_for(n.backend).signature(n.model.module),
                )
                for n in models
            ),
            tuple(
                (a.weight, a.sample_weight, fingerprint(a.class_weight), a.loss.signature())
                for a in losses
            ),
            tuple((Identity(o.instance), Identity(o.scheduler), o.signature()) for o in optimizers),
        )


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
