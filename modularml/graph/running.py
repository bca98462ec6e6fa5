"""Steps of a graph, and the cache of their plans."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from modularml.backends import PLAIN, StepOptions, adapter_for
from modularml.backends.base import NotFiniteError
from modularml.data.batch import Batch, BatchView
from modularml.data.execution import ExecutionContext
from modularml.data.lineage import Source
from modularml.data.references import FeatureSetReference
from modularml.data.view import FeatureSetView
from modularml.errors import LossError, NonFiniteLossError, NotFittedError
from modularml.graph.compiling import check_losses, compile_plan
from modularml.graph.inputs import fill, not_finite
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode, GraphNode
from modularml.graph.node_access import NodeAccess, id_among
from modularml.graph.outputs import pairings
from modularml.graph.plan import StepPlan
from modularml.graph.plan_key import PlanKey
from modularml.graph.relations import check_side_by_side, meetings_of
from modularml.graph.weighted_node import (
    WeightedNode,
    check_weights,
    learners,
    no_optimizer,
    nothing_learns,
    to_fit,
    trainable,
)
from modularml.training import AppliedLoss, Optimizer

__all__ = ["GraphRunning", "run_step"]

_MAX_PLANS = 8


class GraphRunning(NodeAccess):
    """Forward, training, evaluation and fitting steps."""

    def forward(
        self,
        inputs: dict[tuple[str, FeatureSetReference], Any],
        *,
        active_nodes: list[str | GraphNode] | None = None,
    ) -> dict[str, Batch]:
        """Compute outputs of batches, without gradients.

        Parameters
        ----------
        inputs : dict of (str, FeatureSetReference) to Batch, BatchView or SampleData
            Keyed by head node id and reference.
        active_nodes : list, optional
            Nodes to run; their upstream nodes run too.

        Returns
        -------
        dict of str to Batch
            By node id.
        """
        ctx = ExecutionContext(inputs=inputs)
        self.eval_step(ctx, [], active_nodes=active_nodes)
        return ctx.outputs

    def train_step(
        self,
        ctx: ExecutionContext,
        losses: list[AppliedLoss],
        *,
        active_nodes: list[str | GraphNode] | None = None,
    ) -> None:
        """Update the weights once, on the data of a step.

        With a graph optimizer there is one forward pass, one backward pass and one step. Without
        one, each node's own optimizer steps, and gradients stop after nodes with a loss.

        Parameters
        ----------
        ctx : ExecutionContext
            Provides the inputs; receives outputs and losses.
        losses : list of AppliedLoss
        active_nodes : list, optional
            Nodes to run; their upstream nodes run too.

        Raises
        ------
        GraphError
            If every node that runs is frozen.
        OptimizerNotSetError
            If a trainable node has no optimizer.
        NonFiniteLossError
            If a loss is NaN or infinite; weights are unchanged.
        """
        self._step(ctx, losses, active_nodes, training=True)

    def eval_step(
        self,
        ctx: ExecutionContext,
        losses: list[AppliedLoss],
        *,
        active_nodes: list[str | GraphNode] | None = None,
    ) -> None:
        """Compute outputs and losses of a step, in evaluation mode and without gradients."""
        self._step(ctx, losses, active_nodes, training=False)

    def fit_step(
        self,
        ctx: ExecutionContext,
        losses: list[AppliedLoss] | None = None,
        *,
        active_nodes: list[str | GraphNode] | None = None,
        freeze_after_fit: bool = True,
    ) -> None:
        """Fit, in order, the nodes that learn from all rows at once; others are only run.

        Parameters
        ----------
        ctx : ExecutionContext
            Provides all rows; receives outputs and losses.
        losses : list of AppliedLoss, optional
            Computed afterwards.
        active_nodes : list, optional
            Nodes to fit; their upstream nodes run too.
        freeze_after_fit : bool
            Whether fitted nodes are frozen.

        Raises
        ------
        GraphError
            If no node that runs can be fitted.
        """
        nodes = to_fit(self._running(active_nodes))
        with self.shapes_of_fits(nodes):
            self._step(ctx, losses or (), active_nodes, training=False, fits=nodes)
        if freeze_after_fit:
            for node in nodes:
                node.freeze()

    def plan(
        self,
        losses: Sequence[AppliedLoss],
        *,
        training: bool,
        active_nodes: Iterable[str | GraphNode] | None = None,
        roles: Sequence[str] = ("default",),
        together: Mapping[Source, int] | None = None,
        weighted: Mapping[Source, int] | None = None,
        only: ModelNode | None = None,
        options: StepOptions = PLAIN,
        fits: Sequence[WeightedNode] = (),
        chunk: int | None = None,
    ) -> tuple[StepPlan, Callable[..., Any]]:
        """Return the plan for losses, and its step function, cached by arguments.

        Losses on nodes that do not run are omitted; with `only`, no other node learns; nodes in
        `fits` are fitted before they compute outputs; an evaluation runs `chunk` rows at a time.
        See `compile_plan` for other arguments and errors.
        """
        self.build()
        with self._ctx_of_run():
            nodes = self._ready(self._running(active_nodes), losses, fits)
            frozen = tuple((n.node_id, n.is_frozen) for n in nodes)
            rows = tuple((together or {}).items()), tuple((weighted or {}).items())
            key = (*map(id, losses), training, frozen, tuple(roles), together is None, *rows)
            key = (*key, only, options, chunk, *fits)
            entry = self._plans.get(key)
            if entry is None or entry[0] != self._plan_key(losses, nodes, training):
                running = [a for a in losses if self.get_node(a.on) in nodes]
                options_of_plan: dict[str, Any] = {
                    "roles": roles,
                    "together": together,
                    "weighted": weighted,
                }
                options_of_plan |= {"training": training, "compiles": options.compile}
                with self._paired(nodes, running, roles, training=training):
                    plan = self._compile(running, nodes, only, fits, **options_of_plan)
                    plan.losses, plan.fits = tuple(losses), tuple(n.node_id for n in fits)
                    step = plan.train_step(options) if training else plan.eval_step(chunk)
                self._plans.pop(key, None)
                while len(self._plans) >= _MAX_PLANS:
                    del self._plans[next(iter(self._plans))]
                entry = self._plan_key(losses, nodes, training), plan, step
                self._plans[key] = entry
        return entry[1:]

    def check(
        self,
        losses: Sequence[AppliedLoss],
        *,
        training: bool,
        active_nodes: Iterable[str | GraphNode] | None = None,
        roles: Sequence[str] = ("default",),
    ) -> None:
        """Refuse phases that cannot run, whatever is built, fitted or unfrozen before.

        That is a loss that reads unknown values and, in training, nodes that all lack an optimizer
        or weights.
        """
        nodes = self._running(active_nodes)
        active_losses = [a for a in losses if self.get_node(a.on) in nodes]
        if training and not active_losses:
            raise LossError(
                f"no loss of {[a.label for a in losses]} is on a node that runs; those are "
                f"{[n.label for n in nodes]}"
            )
        with self._ctx_of_run():
            check_losses(nodes, active_losses, roles)
        models = [n for n in nodes if isinstance(n, ModelNode)]
        if training:
            self.check_weights(active_losses, learners(models, ()))
        for n in models:
            trains, module = training and not n.is_frozen, n.model.module
            adapter_for(n.backend).check_model(
                module, n.label, training=trains, losses=bool(active_losses)
            )
        if not training or any(getattr(n.model, "learns_in_batches", False) for n in models):
            return
        with_gradients = [n for n in models if adapter_for(n.backend).gradients]
        if not with_gradients:
            raise nothing_learns(nodes)
        if self._optimizer is None and all(n.optimizer is None for n in with_gradients):
            raise no_optimizer(with_gradients)

    def check_weights(self, losses: Sequence[AppliedLoss], learn: Mapping[str, Any]) -> None:
        """Refuse sample weights of losses on nodes whose method takes none."""
        for node_id, method in learn.items():
            node_losses = [a for a in losses if self.get_node(a.on).node_id == node_id]
            if any(a.is_weighted for a in node_losses):
                check_weights(self._nodes[node_id], method, node_losses)

    # -- internals ----------------------------------------------------------------------------

    @contextmanager
    def _paired(
        self,
        nodes: Sequence[ComputeNode],
        losses: Sequence[AppliedLoss],
        roles: Sequence[str],
        *,
        training: bool,
    ) -> Iterator[None]:
        """Record the columns that losses compare nodes with, unless the block fails.

        Training overrides the record; evaluation only sets it if there is none.
        """
        before = [(n, n.paired) for n in nodes if isinstance(n, ModelNode)]
        for node_id, pairing in pairings(nodes, losses, roles).items():
            node = self._nodes[node_id]
            if isinstance(node, ModelNode) and (training or node.paired is None):
                if node.paired != pairing:
                    self._plans.clear()
                node.paired = pairing
        try:
            yield
        except BaseException:
            for node, pairing in before:
                node.paired = pairing
            raise

    def _ready(
        self,
        nodes: Sequence[ComputeNode],
        losses: Sequence[AppliedLoss],
        fits: Sequence[WeightedNode],
    ) -> list[ComputeNode]:
        """Return nodes without those that wait for an estimator fitted in this step.

        Raises
        ------
        NotFittedError
            If a node that must run cannot be built before an upstream estimator is fitted.
        """
        waiting: dict[str, ComputeNode] = {}
        for node in nodes:
            upstream = {id_among(self._nodes, node, ref) for ref in node.node_refs}
            unbuilt = isinstance(node, ModelNode) and not node.is_built
            if unbuilt or not upstream.isdisjoint(waiting):
                waiting[node.node_id] = node
        needed: list[ComputeNode] = [n for n in fits if n.node_id in waiting]
        needed += [n for a in losses if (n := self.get_node(a.on)).node_id in waiting]
        if waiting and (needed or not fits):
            node = next(iter(waiting.values()))
            raise NotFittedError(
                f"node {node.label!r} cannot be built before {node.upstream_refs[0].node_label!r}, "
                "which it reads from, is fitted, as only the fit determines its output shape; "
                "run a FitPhase on that node first"
            )
        return [n for n in nodes if n.node_id not in waiting]

    @contextmanager
    def shapes_of_fits(self, nodes: Sequence[WeightedNode]) -> Iterator[None]:
        """Build the nodes whose shapes follow from a fit within the block."""
        before = [n.model.output_shape for n in nodes]
        yield
        if not self._built or before != [n.model.output_shape for n in nodes]:
            self._built = False
            self.build()

    def _plan_key(
        self, losses: Sequence[AppliedLoss], nodes: Sequence[ComputeNode], training: bool
    ) -> PlanKey:
        models = [n for n in nodes if isinstance(n, ModelNode)]
        optimizers = [self._optimizer, *(n.optimizer for n in models)] if training else []
        return PlanKey.of(nodes, losses, [o for o in optimizers if o is not None])

    def _compile(
        self,
        losses: Sequence[AppliedLoss],
        nodes: Sequence[ComputeNode],
        only: ModelNode | None,
        fits: Sequence[WeightedNode],
        *,
        training: bool,
        **options: Any,
    ) -> StepPlan:
        optimizers = self._optimizers(nodes, losses, only) if training else {}
        detached = (
            {self.get_node(a.on).node_id for a in losses} if self._optimizer is None else set()
        )
        if only is not None:
            detached = {n.node_id for n in nodes if n is not only}
        return compile_plan(
            nodes,
            losses,
            training=training,
            optimizers=optimizers,
            detach_after=detached if training else (),
            learners=learners(nodes if training and only is None else (), fits),
            **options,
        )

    def moving_optimizers(self, active_nodes: Iterable[Any] | None = None) -> list[Optimizer]:
        """Return the optimizers of the running nodes: the graph's, or the nodes'."""
        if self._optimizer is not None:
            return [self._optimizer]
        nodes = [n for n in self._running(active_nodes) if isinstance(n, ModelNode)]
        return [n.optimizer for n in nodes if n.optimizer is not None and not n.is_frozen]

    def _optimizers(
        self,
        nodes: Sequence[ComputeNode],
        losses: Sequence[AppliedLoss],
        only: ModelNode | None = None,
    ) -> dict[str, Optimizer]:
        """Return the optimizer of each trainable node, by id."""
        if not losses:
            raise LossError("training needs at least one loss; pass losses=[AppliedLoss(...)]")
        learning = [n for n in trainable(nodes) if isinstance(n, ModelNode)]
        if not learning and not learners(nodes, ()):
            raise nothing_learns(nodes)
        self._register_losses(losses)
        shared = None if only is not None else self._optimizer
        if only is not None:
            learning = [only]
        elif shared is not None:
            self._build_optimizer(force=False)
        optimizers: dict[str, Optimizer] = {}
        for node in learning:
            by_graph = shared is not None and node.backend is self.backend
            optimizer = shared if by_graph else node.optimizer
            if optimizer is not None:
                optimizers[node.node_id] = optimizer
            if optimizer is not None and not by_graph:
                own = [(k, loss) for k, (loss, on) in self._losses.items() if on == node.node_id]
                node.build_optimizer(
                    {f"losses.{k}.{n}": p for k, loss in own for n, p in loss.parameters().items()}
                )
        if missing := [n for n in learning if n.node_id not in optimizers]:
            raise no_optimizer(missing)
        return optimizers

    def _step(
        self,
        ctx: ExecutionContext,
        losses: Sequence[AppliedLoss],
        active_nodes: Iterable[str | GraphNode] | None,
        *,
        training: bool,
        only: ModelNode | None = None,
        fits: Sequence[WeightedNode] = (),
    ) -> None:
        ids = [n.node_id for n in fits]
        prepared = None if only is not None else ctx.plan
        if prepared is not None and prepared[0].serves(losses, training, ids, prepared[2]):
            plan, step, _ = prepared
            tensors = ctx.tensors
        else:
            self._check_inputs(ctx, losses, active_nodes)
            for optimizer in self.moving_optimizers(active_nodes) if training else ():
                if optimizer.steps_every("batch"):
                    optimizer.check_begun()
            plan, step = self.plan(
                losses,
                training=training,
                active_nodes=active_nodes,
                roles=_roles(ctx),
                weighted=_weighted(ctx),
                only=only,
                fits=fits,
            )
            ctx.layout = replace(plan.layout, views=_views(ctx))
            tensors = fill(plan, ctx)
        with plan.modes():
            run_step(ctx, plan, step, tensors)

    def _check_inputs(
        self,
        ctx: ExecutionContext,
        losses: Sequence[AppliedLoss],
        active_nodes: Iterable[str | GraphNode] | None,
    ) -> None:
        """Refuse rows of several inputs, passed directly, that do not match."""
        inputs = {Source(*key): given for key, given in ctx.inputs.items()}
        if len(inputs) > 1:
            nodes = self._running(active_nodes)
            active_losses = [a for a in losses if self.get_node(a.on) in nodes]
            with self._ctx_of_run():
                check_side_by_side(meetings_of(nodes, active_losses), inputs)


def run_step(
    ctx: ExecutionContext, plan: StepPlan, step: Callable[..., Any], tensors: Any = None
) -> None:
    """Run a step on tensors, by default its own, and write the results to its context.

    Raises
    ------
    NonFiniteLossError
        If a loss is NaN or infinite, with its position in the phase.
    """
    try:
        ctx.values, ctx.outs = step(ctx.tensors if tensors is None else tensors)
    except NotFiniteError as error:
        label, node_id = plan.layout.losses[error.place]
        raise NonFiniteLossError(
            phase=ctx.phase_label,
            epoch=ctx.epoch_idx,
            batch=ctx.batch_idx,
            node=plan.layout.labels[node_id],
            loss=label if error.of == "loss" else f"{label} ({error.of})",
            value=error.value,
            **not_finite(plan, ctx, ctx.batch_idx),
        ) from None
    except Exception as error:
        error.add_note(f"(phase {ctx.phase_label!r}, epoch {ctx.epoch_idx}, batch {ctx.batch_idx})")
        raise
    ctx.layout = ctx.layout or plan.layout


def _views(ctx: ExecutionContext) -> dict[Source, FeatureSetView]:
    """Return the views of inputs that a step got by row number."""
    views = {} if ctx.layout is None else dict(ctx.layout.views)
    given = {Source(*key): value for key, value in ctx.inputs.items()}
    return views | {k: v.source for k, v in given.items() if isinstance(v, BatchView)}


def _roles(ctx: ExecutionContext) -> tuple[str, ...]:
    for value in ctx.inputs.values():
        roles = getattr(value, "roles", None)
        if roles:
            return tuple(roles)
    return ("default",)


def _weighted(ctx: ExecutionContext) -> dict[Source, int]:
    """Return the inputs with weights or padding; equal numbers share them."""
    ids: dict[Source, int] = {}
    for key, value in ctx.inputs.items():
        weights = getattr(value, "role_weights", None)
        if weights or getattr(value, "role_masks", None):
            ids[Source(*key)] = id(weights)
    numbers = {weights_id: i for i, weights_id in enumerate(dict.fromkeys(ids.values()))}
    return {source: numbers[weights_id] for source, weights_id in ids.items()}
