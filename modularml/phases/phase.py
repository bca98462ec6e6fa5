"""The base class of phases."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, TypedDict

from modularml._arguments import with_arguments_of
from modularml.backends import PLAIN, StepOptions
from modularml.backends.accelerator import Accelerator
from modularml.config import Configurable
from modularml.context import ExperimentContext, is_run_again
from modularml.data.execution_context import ExecutionContext
from modularml.data.lineage import Source
from modularml.engine.batch_feed import BatchFeed
from modularml.engine.batch_schedule import BatchSchedulingPolicy
from modularml.engine.binding import InputBinding, bind, binding_for, keep_keys, roles_of
from modularml.engine.callback import Callback
from modularml.engine.display import Display, check_flags
from modularml.engine.loop import iterate
from modularml.engine.run_state import RunState
from modularml.errors import ConfigError, GraphError, RegistrationError, UnknownNameError
from modularml.graph.files import ContextYaml
from modularml.graph.input_tensors import run_step
from modularml.graph.model_graph import ModelGraph
from modularml.graph.node import GraphNode
from modularml.results.phase_results import PhaseResults
from modularml.results.recording import ResultRecording
from modularml.samplers import BaseSampler
from modularml.training import AppliedLoss
from modularml.viz import Diagram, DiagramEdge, DiagramNode


class PhaseOptions(TypedDict, total=False):
    """Arguments of every phase that may be omitted."""

    active_nodes: list[Any] | None
    callbacks: list[Callback] | None
    accelerator: Accelerator | str | None


class ExperimentPhase(Configurable, ContextYaml):
    """Base class of phases: one pass or training on the graph of an experiment.

    Parameters
    ----------
    label : str
    input_sources : list of InputBinding
        One for each input of each head node.
    losses : list of AppliedLoss, optional
    active_nodes : list of node or label, optional
        Nodes that run; their upstream nodes run too. None runs all.
    callbacks : list of Callback, optional
    accelerator : Accelerator or str, optional
        Device and processes the phase runs on.

    Notes
    -----
    Inputs, losses and optimizers are checked against the graph of the active context at once. Nodes
    may be frozen or fitted later; that is checked when the run starts.
    """

    results_class: ClassVar[type[PhaseResults]] = PhaseResults
    training: ClassVar[bool] = False
    logs_losses: ClassVar[bool] = False
    on_nonfinite: str = "raise"
    n_epochs: int = 1
    freeze: list[str] | None = None
    limit_batches: float | None = None
    position: RunState
    """Position of the phase: epoch (1-based) and iteration; set when it starts."""
    batch_size: int | None = None
    recording = ResultRecording.ALL
    policy = BatchSchedulingPolicy.ZIP_STRICT

    def __init__(
        self,
        label: str,
        *,
        input_sources: list[InputBinding],
        losses: list[AppliedLoss] | None = None,
        active_nodes: list[Any] | None = None,
        callbacks: list[Callback] | None = None,
        accelerator: Accelerator | str | None = None,
    ) -> None:
        self.label = label
        self.input_sources = all_of(InputBinding, "input_sources", input_sources)
        self.losses = all_of(AppliedLoss, "losses", [] if losses is None else losses)
        self.active_nodes = labels_of("active_nodes", active_nodes)
        self.accelerator = Accelerator.from_value(accelerator)
        self.callbacks: list[Callback] = []
        for callback in all_of(Callback, "callbacks", [] if callbacks is None else callbacks):
            self._check_callback(callback)
            self.callbacks.append(callback)
        labels = [applied.label for applied in self.losses]
        if twice := [label for i, label in enumerate(labels) if label in labels[:i]]:
            raise ConfigError(f"several losses have the labels {twice}; pass label= to AppliedLoss")
        graph = ExperimentContext.get_active().model_graph
        if graph is not None and graph.has_nodes(b.node_id for b in self.input_sources):
            self.check(graph)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        with_arguments_of(ExperimentPhase.__init__, cls.__init__)
        if made := vars(cls).get("from_split"):
            with_arguments_of(cls.__init__, made.__func__, without=["input_sources"])

    def __getstate__(self) -> dict[str, Any]:
        """Omit the position of a run."""
        return {k: v for k, v in vars(self).items() if k != "position"}

    def check(self, graph: ModelGraph) -> None:
        """Check that all inputs are bound, and run `ModelGraph.check`.

        The keys of samplers that align several FeatureSets are stored on the edges of the graph.
        """
        edges = [(node, ref) for node in self.heads(graph) for ref in node.feature_refs]
        bound = [binding_for(self.input_sources, *edge, self.label) for edge in edges]
        graph.check(
            self.losses,
            training=self.training,
            active_nodes=self.active_nodes,
            roles=roles_of(bound),
        )
        sources = [Source(node.node_id, ref) for node, ref in edges]
        keep_keys(graph, dict(zip(sources, bound, strict=True)))

    def add_callback(self, callback: Callback) -> None:
        """Add a callback; in IPython, one of the same type and label is replaced.

        Raises
        ------
        TypeError
            If it is not a `Callback`.
        RegistrationError
            If there is one of the same type and label already.
        """
        if not isinstance(callback, Callback):
            raise TypeError(f"callback must be a Callback, got a {type(callback).__name__}")
        places = [i for i, other in enumerate(self.callbacks) if _are_alike(callback, other)]
        if places and is_run_again(f"{callback.label!r} of phase {self.label!r}"):
            self.callbacks[places[0]] = callback
            return
        self._check_callback(callback)
        self.callbacks.append(callback)

    def _check_callback(self, callback: Callback) -> None:
        """Refuse a callback of the same type and label as another."""
        if any(_are_alike(callback, other) for other in self.callbacks):
            raise RegistrationError(
                f"phase {self.label!r} has a {type(callback).__name__} {callback.label!r} already; "
                "give this one another label"
            )

    def request_stop(self) -> None:
        """Stop the phase after the current epoch."""
        if hasattr(self, "position"):
            self.position.stop = True

    def progress(self) -> dict[str, Any] | None:
        """Return the next epoch and batch (0-based), and the losses of the epoch.

        None before the first epoch. After an epoch's last batch, ``batch`` is their number.
        """
        if not hasattr(self, "position") or not self.position.epoch:
            return None
        record = self.position.record("")
        losses = record["losses"]
        return {"epoch": record["epoch"], "batch": len(losses), "losses": losses}

    @property
    def has_no_pending_gradients(self) -> bool:
        """Whether no accumulated gradients wait for the next optimizer step."""
        step = getattr(self.position.feed, "step", None)
        return not getattr(step, "n_batches", 0)

    def flatten(self) -> list[ExperimentPhase]:
        """Return this phase alone; see `PhaseGroup.flatten`."""
        return [self]

    def paths(self, above: str = "") -> list[tuple[str, ExperimentPhase]]:
        """Return this phase with its path; see `PhaseGroup.paths`."""
        return [(above + self.label, self)]

    def state_parts(self) -> dict[str, Any]:
        """Return the samplers and callbacks whose states are saved, by name."""
        samplers = [b.sampler for b in self.input_sources if b.sampler is not None]
        parts: dict[str, Any] = {f"{type(s).__name__} {i}": s for i, s in enumerate(samplers)}
        return parts | {f"{type(c).__name__} {c.label!r}": c for c in self.callbacks}

    def check_ready(self, experiment: Any) -> None:
        """Raise an error for what is bound to fail, before a run starts."""
        for callback in self.callbacks:
            callback.check_ready(experiment, self)

    def all_callbacks(self) -> list[Callback]:
        """Return all callbacks of this phase."""
        return list(self.callbacks)

    def graph(self) -> ModelGraph:
        """Return the graph of the active context.

        Raises
        ------
        GraphError
            If it has none.
        """
        return active_graph(self.label)

    def heads(self, graph: ModelGraph) -> list[GraphNode]:
        """Return the head nodes that run."""
        running = {n.node_id for n in graph._running(self.active_nodes)}
        return [node for node_id, node in graph.head_nodes.items() if node_id in running]

    def feed(self, *, live: bool = False) -> BatchFeed:
        """Create the batch feed of a run; for `live` see `BatchFeed`."""
        graph = self.graph()
        graph.build()
        over_batch = any(applied.loss.over == "batch" for applied in self.losses)
        bound = bind(
            self.input_sources,
            graph,
            graph._running(self.active_nodes),
            [] if self.policy.alternates else self.losses,  # alternating inputs are never combined
            batch_size=None if over_batch else self.batch_size,
            phase=self.label,
        )
        accelerator, processes, options = self.accelerator, None, self.step_options()
        if accelerator is not None:
            accelerator.place(graph)
            processes = accelerator.processes(graph) if self.training else None
        if processes is not None:
            options = replace(options, parallel=True)
            for sampler in {id(b.sampler): b.sampler for b in bound}.values():
                sampler.seed_ = processes.gather(sampler.seed_)[0]
        return BatchFeed(
            self.label,
            graph,
            bound,
            self.losses,
            self.active_nodes,
            training=self.training,
            policy=self.policy,
            options=options,
            pin_memory=accelerator is not None and accelerator.pin_memory,
            processes=processes,
            fits=self.to_fit(graph),
            live=live,
            chunk=self.batch_size if over_batch else None,
            limit=self.limit_batches,
        )

    def learn_from(self, feed: BatchFeed, *, live: bool = False) -> list[tuple[Any, Any]]:
        """Record the rows that trained nodes learn from; see `ModelGraph.learn_from`."""
        fits = self.to_fit(feed.graph)
        if not (self.training or fits):
            return []
        views = [b.view for b in feed.bound.values()]
        return feed.graph.learn_from(views, self.active_nodes, fits, even_frozen=live)

    def log_scores(self, results: PhaseResults) -> None:
        """Log metrics of recorded outputs at the end of an epoch; none by default."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and draws progress bars."""
        return self.accelerator is None or self.accelerator.is_main

    def step_options(self) -> StepOptions:
        """Return the options of a training step."""
        return PLAIN

    def to_fit(self, graph: ModelGraph) -> list[Any]:
        """Return the nodes fitted on all rows at once; only a `FitPhase` has any."""
        return []

    def step_of(self, feed: BatchFeed) -> Callable[[ExecutionContext], None]:
        """Return the function that runs one batch."""
        return partial(run_step, plan=feed.plan, step=feed.step)

    def iter_execution(
        self, *, results: Any | None = None, **flags: Any
    ) -> Iterator[ExecutionContext]:
        """Return the steps of all epochs, to run by hand.

        A step is run with ``train_step``, ``eval_step`` or ``fit_step`` of the graph.

        Parameters
        ----------
        results : PhaseResults, optional
            Of this kind of phase; every step is added once it has run.
        **flags
            ``show_sampler_progress``, ``show_training_progress``, ``persist_progress``,
            ``persist_epoch_progress`` and ``val_loss_metric`` of a training, ``show_eval_progress``
            and ``persist_progress`` of another phase: which progress bars are drawn, which stay,
            and the metric shown beside them.
        """
        chosen = check_flags({"persist_progress": False, **flags})
        return iterate(self, Display.from_flags(chosen, training=self.training), results)

    def visualize(self) -> Diagram:
        """Draw the inputs of the phase as a diagram."""
        nodes: dict[str, DiagramNode] = {
            "phase": DiagramNode("phase", self.label, (type(self).__name__,), kind="phase")
        }
        edges = []
        for i, binding in enumerate(self.input_sources):
            rows = f"{binding.split or 'all rows'}"
            name = f"{binding.upstream_ref.node_label}"
            nodes[f"in{i}"] = DiagramNode(f"in{i}", name, (rows,), kind="split")
            sampler = "" if binding.sampler is None else type(binding.sampler).__name__
            edges.append(DiagramEdge(f"in{i}", "phase", sampler))
        return Diagram(self.label, tuple(nodes.values()), tuple(edges), direction="LR")

    def _repr_html_(self) -> str:
        return f"<b>{html.escape(repr(self))}</b>{self.visualize()._repr_html_()}"

    def __repr__(self) -> str:
        splits = ", ".join(dict.fromkeys(str(b.split) for b in self.input_sources))
        return (
            f"{type(self).__name__}({self.label!r} on {splits}, "
            f"losses={[a.label for a in self.losses]})"
        )

    __eq__ = object.__eq__
    __hash__ = object.__hash__


def _are_alike(one: Callback, other: Callback) -> bool:
    return type(one) is type(other) and one.label == other.label


def active_graph(label: str) -> ModelGraph:
    """Return the graph of the active context, for the phase with this label."""
    graph: ModelGraph | None = ExperimentContext.get_active().model_graph
    if graph is None:
        raise GraphError(
            f"phase {label!r} finds no ModelGraph in the active context; create one first, and "
            "create the experiment with Experiment.from_active_context"
        )
    return graph


def bindings_from_split(
    label: str, split: str, sampler: BaseSampler | None, active_nodes: Sequence[Any] | None
) -> list[InputBinding]:
    """Bind all inputs of the active head nodes to one split."""
    graph = active_graph(label)
    running = {n.node_id for n in graph._running(labels_of("active_nodes", active_nodes))}
    bindings = []
    for node_id, node in graph.head_nodes.items():
        if node_id not in running:
            continue
        for ref in node.feature_refs:
            fs = ref.resolve()
            if split not in fs.splits:
                hint = f"{fs.label}.split_like(other, on=) gives it the splits of another set"
                raise UnknownNameError(f"split of {fs.label!r}", split, fs.splits, hint)
            bindings.append(InputBinding(node_id, ref, split, sampler))
    return bindings


def all_of(cls: type, name: str, value: Any) -> list[Any]:
    """Return one object or several as a list; refuse other classes."""
    if not isinstance(value, cls | list | tuple):
        raise TypeError(f"{name} must be a list of {cls.__name__}, got {value!r}")
    objects: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    for obj in objects:
        if not isinstance(obj, cls):
            raise TypeError(f"{name} must hold {cls.__name__} objects, got a {type(obj).__name__}")
    return objects


def labels_of(argument: str, nodes: Any) -> list[str] | None:
    """Return the labels of nodes; ConfigError unless it is a list, or None."""
    if nodes is None:
        return None
    if not isinstance(nodes, list | tuple) or not nodes:
        raise ConfigError(f"{argument} must be a list of nodes or labels, or None, got {nodes!r}")
    return [node.label if isinstance(node, GraphNode) else str(node) for node in nodes]
