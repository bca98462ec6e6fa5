"""Building of a graph, its steps, and the cache of their plans."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from modularml.backends import PLAIN, Backend, StepOptions, adapter_for
from modularml.context import ExperimentContext
from modularml.data.batch import Batch
from modularml.data.execution_context import ExecutionContext
from modularml.data.lineage import Source
from modularml.data.references import FeatureSetReference
from modularml.errors import ConfigError, LossError
from modularml.graph.build import build_nodes, ready
from modularml.graph.input_tensors import fill, run_step
from modularml.graph.loss_inputs import LossReader
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode, GraphNode
from modularml.graph.node_graph import NodeGraph, Wiring, unchanged_on_error
from modularml.graph.row_matching import check_side_by_side, meetings_of
from modularml.graph.shared_optimizer import SharedOptimizer, only_backend
from modularml.graph.step_compiler import Compiler
from modularml.graph.step_plan import PlanKey, StepPlan
from modularml.graph.topology import tails
from modularml.graph.unscaling import paired
from modularml.graph.weighted_node import (
    WeightedNode,
    check_models,
    check_weights,
    learners,
    no_optimizer,
    nothing_learns,
    to_fit,
)
from modularml.io.randomness import process_randomness
from modularml.training import AppliedLoss, Optimizer

_MAX_PLANS = 8


class GraphSteps(NodeGraph):
    """A graph of nodes that is built, trained, evaluated and fitted in steps."""

    def __init__(
        self,
        nodes: list[str | GraphNode] | None,
        optimizer: Optimizer | None,
        label: str,
        ctx: ExperimentContext | None,
    ) -> None:
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"optimizer must be an Optimizer, got {optimizer!r}; write Optimizer('adam')"
            )
        self._shared = SharedOptimizer(optimizer)
        self._plans: dict[Any, tuple[PlanKey, StepPlan, Callable[..., Any]]] = {}
        super().__init__(nodes, label, ctx)

    def __getstate__(self) -> dict[str, Any]:
        """Drop compiled steps, which are rebuilt on demand."""
        return {**vars(self), "_plans": {}}

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer of all nodes together."""
        return self._shared.optimizer

    @property
    def backend(self) -> Backend | None:
        """The framework of the optimizer; None without one."""
        return None if self.optimizer is None else self._shared.backend(self._nodes.values())

    def build(self, *, force: bool = False) -> None:
        """Infer all shapes, and create all weights and optimizers.

        Parameters
        ----------
        force : bool
            Whether to replace existing weights.

        Raises
        ------
        ShapeError
            If a node does not accept its inputs; the message names both.
        GraphError
            If nodes of several frameworks share one optimizer.

        After an error the graph is unchanged. Nodes that read from an estimator whose output shape
        is unknown before it is fitted are built after the fit.
        """
        if self._built and not force:
            return
        models = self._learning()
        optimizers = [o for o in (self.optimizer, *(n.optimizer for n in models)) if o is not None]
        parts = (part for node in models for part in node.model.parts())
        with (
            self._ctx.activate(),
            process_randomness(),
            unchanged_on_error([*self._nodes.values(), *parts, *optimizers]),
        ):
            unread = set(tails(self._edges()))
            complete = build_nodes(list(self._nodes.values()), unread, force=force)
            self._shared.build(self, force=force)
        self._plans.clear()
        self._built = complete

    def move_to(self, device: str) -> None:
        """Move weights and moments to a device; nodes with their own accelerator stay.

        Raises
        ------
        DeviceError
            If a framework does not have the device; nothing is moved then.
        """
        self.build()
        devices = {b: adapter_for(b).check_device(device) for b in self._backends()}
        for node in self._learning():
            if node.accelerator is None and node.is_built:
                node.move_to(devices[node.backend])
        for optimizer in [self.optimizer, *(n.optimizer for n in self._learning())]:
            if optimizer is not None and optimizer.is_built:
                optimizer.set_state(optimizer.get_state())
        self._plans.clear()

    def get_optimizer_parameters(self) -> dict[str, Any]:
        """Return the parameters of the graph's optimizer.

        Returns
        -------
        dict
            ``backend``, ``contributing_nodes`` (set of node ids) and ``parameters`` (list), or
            ``variables`` in TensorFlow.
        """
        nodes = list(self._nodes.values())
        parameters, backend = self._shared.parameters(nodes), self._shared.backend(nodes)
        models = [n for n in self._learning() if n.backend is backend and n.is_built]
        return {
            "backend": self.backend,
            "contributing_nodes": {n.node_id for n in models if n.parameters()},
            adapter_for(backend).moved if parameters else "parameters": list(parameters.values()),
        }

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
        For `together` and `weighted` see `Compiler`, which raises errors of losses and models.
        """
        self.build()
        with self._ctx_of_run():
            on = [(applied, self.get_node(applied.on)) for applied in losses]
            needed = [*fits, *(node for _, node in on)]
            nodes = ready(self._running(active_nodes), self._nodes, needed, fits)
            frozen = tuple((n.node_id, n.is_frozen) for n in nodes)
            rows = tuple((together or {}).items()), tuple((weighted or {}).items())
            key = (*map(id, losses), training, frozen, tuple(roles), together is None, *rows)
            key = (*key, only, options, chunk, *fits)
            entry = self._plans.get(key)
            if entry is None or entry[0] != self._plan_key(losses, nodes, training):
                on = [(applied, node) for applied, node in on if node in nodes]
                running = [applied for applied, _ in on]
                with paired(nodes, running, roles, training=training):
                    optimizers = self._shared.of_nodes(nodes, on, only, self) if training else {}
                    detached = set[str]()  # after these nodes gradients stop
                    if training and only is not None:
                        detached = {n.node_id for n in nodes if n is not only}
                    elif training and self.optimizer is None:
                        detached = {node.node_id for _, node in on}
                    compiler = Compiler(
                        nodes,
                        roles,
                        training=training,
                        detach_after=detached,
                        learners=learners(nodes if training and only is None else (), fits),
                        weighted=weighted,
                        compiles=options.compile,
                    )
                    plan = compiler.compile(running, optimizers, together)
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
            LossReader(nodes, roles, training=training).check(active_losses)
        models = [n for n in nodes if isinstance(n, ModelNode)]
        if training:
            self.check_weights(active_losses, learners(models, ()))
        check_models(models, training=training, losses=bool(active_losses))
        if not training or any(getattr(n.model, "learns_in_batches", False) for n in models):
            return
        with_gradients = [n for n in models if adapter_for(n.backend).gradients]
        if not with_gradients:
            raise nothing_learns(nodes)
        if self.optimizer is None and all(n.optimizer is None for n in with_gradients):
            raise no_optimizer(with_gradients)

    def check_weights(self, losses: Sequence[AppliedLoss], learn: Mapping[str, Any]) -> None:
        """Refuse sample weights of losses on nodes whose method takes none."""
        for node_id, method in learn.items():
            node_losses = [a for a in losses if self.get_node(a.on).node_id == node_id]
            if any(a.is_weighted for a in node_losses):
                check_weights(self._nodes[node_id], method, node_losses)

    @contextmanager
    def shapes_of_fits(self, nodes: Sequence[WeightedNode]) -> Iterator[None]:
        """Build the nodes whose shapes follow from a fit within the block."""
        before = [n.model.output_shape for n in nodes]
        yield
        if not self._built or before != [n.model.output_shape for n in nodes]:
            self._built = False
            self.build()

    def moving_optimizers(self, active_nodes: Iterable[Any] | None = None) -> list[Optimizer]:
        """Return the optimizers of the running nodes: the graph's, or the nodes'."""
        if (shared := self.optimizer) is not None:
            return [shared]
        nodes = [n for n in self._running(active_nodes) if isinstance(n, ModelNode)]
        return [n.optimizer for n in nodes if n.optimizer is not None and not n.is_frozen]

    # -- internals ----------------------------------------------------------------------------

    def _checked(self, nodes: Sequence[Any]) -> dict[str, ComputeNode]:
        checked = super()._checked(nodes)
        if self.optimizer is not None and self.optimizer.backend is None:
            only_backend(nodes)
        return checked

    def _edited(self, nodes: dict[str, Any], wiring: Wiring) -> Self:
        super()._edited(nodes, wiring)
        self._plans.clear()  # which hold the models of nodes that were removed
        return self

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
            plan, step = self._plan_of_inputs(
                ctx, losses, active_nodes, training=training, only=only, fits=fits
            )
            tensors = fill(plan, ctx)
        with plan.modes():
            run_step(ctx, plan, step, tensors)

    def _plan_of_inputs(
        self,
        ctx: ExecutionContext,
        losses: Sequence[AppliedLoss],
        active_nodes: Iterable[str | GraphNode] | None,
        *,
        training: bool,
        **options: Any,
    ) -> tuple[StepPlan, Callable[..., Any]]:
        """Return the plan and step of inputs that were passed directly, which must match."""
        inputs = {Source(*key): value for key, value in ctx.inputs.items()}
        if len(inputs) > 1:
            nodes = self._running(active_nodes)
            active_losses = [a for a in losses if self.get_node(a.on) in nodes]
            with self._ctx_of_run():
                check_side_by_side(meetings_of(nodes, active_losses), inputs)
        for optimizer in self.moving_optimizers(active_nodes) if training else ():
            if optimizer.steps_every("batch"):
                optimizer.check_begun()
        # inputs with weights or padding; equal numbers share them
        ids = {
            source: id(weights)
            for source, value in inputs.items()
            if (weights := getattr(value, "role_weights", None))
            or getattr(value, "role_masks", None)
        }
        numbers = {weights_id: i for i, weights_id in enumerate(dict.fromkeys(ids.values()))}
        roles = (getattr(value, "roles", None) for value in inputs.values())
        return self.plan(
            losses,
            training=training,
            active_nodes=active_nodes,
            roles=next((tuple(names) for names in roles if names), ("default",)),
            weighted={source: numbers[weights_id] for source, weights_id in ids.items()},
            **options,
        )

    def _plan_key(
        self, losses: Sequence[AppliedLoss], nodes: Sequence[ComputeNode], training: bool
    ) -> PlanKey:
        models = [n for n in nodes if isinstance(n, ModelNode)]
        optimizers = [self.optimizer, *(n.optimizer for n in models)] if training else []
        return PlanKey.of(nodes, losses, [o for o in optimizers if o is not None])
