"""Nodes with weights: how they are built and frozen, and which learn by gradients or by a fit."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from modularml._typing import Shape
from modularml._warning import warn
from modularml.backends import Backend, BackendAdapter, adapter_for
from modularml.backends.accelerator import Accelerator
from modularml.backends.layouts import InputShape
from modularml.errors import ConfigError, GraphError, LossError, OptimizerNotSetError, ShapeError
from modularml.graph.learned_rows import LearnedRows
from modularml.graph.node import ComputeNode
from modularml.models.base import BaseModel, renamed_in_order
from modularml.training import AppliedLoss, Optimizer


def trainable(nodes: Iterable[ComputeNode]) -> list[ComputeNode]:
    """Return the trainable nodes."""
    return [n for n in nodes if n.has_weights and not n.is_frozen]


@dataclass(frozen=True)
class Reach:
    """Reach of gradients: up the edges, within a segment, to detached nodes.

    Parameters
    ----------
    edges : mapping of str to sequence of str
        Inputs of each node.
    home : mapping of str to int
        Number of the segment of each node.
    detached : collection of str
        Nodes whose output is detached.
    """

    edges: Mapping[str, Sequence[str]]
    home: Mapping[str, int]
    detached: Collection[str]

    def behind(self, node_ids: Iterable[str]) -> set[str]:
        """Return the nodes that gradients of these nodes' outputs reach."""
        reached, pending = set[str](), list(node_ids)
        while pending:
            node_id = pending.pop()
            if node_id not in reached:
                reached.add(node_id)
                home = self.home[node_id]
                within = (a for a in self.edges[node_id] if self.home.get(a) == home)
                pending += [a for a in within if a not in self.detached]
        return reached

    def warn(self, by_id: Mapping[str, ComputeNode], unreached: set[str]) -> None:
        """Warn of nodes cut off from gradients by an edge between frameworks."""
        for node_id, home in self.home.items():
            for above in set(self.edges[node_id]) & self.home.keys():
                cut = self.behind([above]) & unreached if self.home[above] != home else ()
                if cut:
                    warn(
                        f"nodes {sorted(by_id[i].label for i in cut)} do not learn: gradients stop "
                        f"between {by_id[above].label!r} and {by_id[node_id].label!r}, where "
                        "frameworks meet; give them a loss of their own, or freeze() them",
                    )


def nothing_learns(nodes: Iterable[ComputeNode]) -> GraphError:
    """Return the error that no node is trainable."""
    return GraphError(
        f"nothing can be trained: the nodes {[n.label for n in nodes]} are frozen or have no "
        "weights; unfreeze() one, or run a FitPhase on nodes that learn from all rows at once"
    ).with_code("MML-407")


def no_optimizer(nodes: Iterable[ComputeNode]) -> OptimizerNotSetError:
    """Return the error that trainable nodes have no optimizer."""
    return OptimizerNotSetError(
        f"the trainable nodes {[n.label for n in nodes]} have no optimizer; give one to the "
        "graph, or to each of them"
    ).with_code("MML-406")


class WeightedNode(ComputeNode):
    """A node with a model, whose weights may be frozen."""

    _model: BaseModel
    _optimizer: Optimizer | None
    _framework_optimizer: Any
    accelerator: Accelerator | None
    _freeze: bool
    """Whether the user froze it."""
    _held: bool
    """Whether a phase froze it for its duration."""

    @property
    def model(self) -> BaseModel:
        """The wrapped model."""
        return self._model

    @property
    def backend(self) -> Backend:
        """The framework of the model."""
        return self._model.backend

    @property
    def is_built(self) -> bool:
        """Whether shapes are known and weights exist."""
        return self._model.is_built

    @property
    def is_frozen(self) -> bool:
        """Whether the node is excluded from training."""
        return self._freeze or self._held

    @property
    def learned_from(self) -> LearnedRows:
        """Rows that the weights or the estimator learned from, including before a load."""
        return self._model.learned_from or LearnedRows()

    @property
    def has_weights(self) -> bool:
        """Whether training could change this node."""
        return bool(self.parameters())

    def parameters(self) -> dict[str, Any]:
        """Return the parameters by name that are trainable if the node is not frozen."""
        return adapter_for(self.backend).parameters(self._model.module)

    def move_to(self, device: Any) -> None:
        """Move weights to a device."""
        adapter_for(self.backend).move(self._model.module, device)

    def build_model(
        self,
        input_shape: InputShape | None = None,
        output_shape: Shape | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Build the model's layers, and the node's own optimizer.

        Raises
        ------
        ShapeError
            If the model does not accept samples of this shape; the message names the node.
        """
        try:
            self._model.build(input_shape, output_shape, force=force)
        except ShapeError as error:
            raise ShapeError(f"node {self.label!r}: {error}") from error
        if self.is_frozen:
            adapter_for(self.backend).set_frozen(self._model.module, True)
        if self.accelerator is not None:
            self.move_to(self.accelerator.resolve(self.backend))
        if force:
            self._model.learned_from = None
            if self._optimizer is not None:
                self._optimizer.reset()
        self.build_optimizer()

    def build_optimizer(self, more: Mapping[str, Any] | None = None) -> None:
        """Build the node's own optimizer for its parameters, unless it is built.

        It also trains the parameters `more`, by name: those of the losses on this node.
        """
        optimizer = self._optimizer
        if optimizer is None:
            return
        all_parameters = adapter_for(self.backend).all_parameters(self._model.module)
        trainable = {id(p) for p in self.parameters().values()} | optimizer.held
        selected = {name: p for name, p in all_parameters.items() if id(p) in trainable}
        if selected := {**selected, **(more or {})}:
            owner = f"node {self.label!r}"
            optimizer.build_for(
                selected, self.backend, owner, self._framework_optimizer, list(all_parameters)
            )
            self._framework_optimizer = optimizer.instance

    def reset_weights(self, seed: int | None = None) -> None:
        """Reinitialize the weights and reset the optimizer's moments."""
        self._model.reset_weights(seed)
        self._model.learned_from = None
        if self._optimizer is not None:
            self._optimizer.reset()
            self.build_optimizer()

    def load_weights(self, source: Any) -> None:
        """Copy the weights of another node or model; build for its shapes if need be.

        Parameters
        ----------
        source : WeightedNode, BaseModel, or dict of str to array
            Such as ``ModelGraph.load("old.mg.mml").get_node("encoder")``. Between two sequences of
            layers the names may differ: weights then go from layer to layer, in order, such as
            ``fc.0.weight`` to ``layers.0.weight``.

        Raises
        ------
        ConfigError, ShapeError
            If names or shapes of weights differ from this model's; nothing is changed then.
        """
        model = source.model if isinstance(source, WeightedNode) else source
        learned = getattr(model, "learned_from", None)
        if isinstance(model, BaseModel):
            if not self.is_built:
                self.build_model(model.input_shape, model.output_shape)
            model = model.get_weights()
        if not isinstance(model, Mapping):
            raise TypeError(f"source must be a node, model or dict of weights, got {source!r}")
        if not self.is_built:
            raise GraphError(f"node {self.label!r} has not been built; call graph.build() first")
        own = self._model.get_weights()
        weights = model if own.keys() == model.keys() else renamed_in_order(own, model)
        self._model.set_weights(dict(weights))
        self._model.learned_from = learned

    def freeze(self) -> None:
        """Exclude the node from training; it then runs in evaluation mode."""
        self._set_frozen(True, self._held)

    def unfreeze(self) -> None:
        """Include the node in training again, once no phase freezes it."""
        self._set_frozen(False, self._held)

    @contextmanager
    def frozen_within(self) -> Iterator[None]:
        """Freeze the node within a block; its own flag and its state are not changed."""
        before = self._held
        self._set_frozen(self._freeze, True)
        try:
            yield
        finally:
            self._set_frozen(self._freeze, before)

    def _set_frozen(self, own: bool, held: bool) -> None:
        self._freeze, self._held = own, held
        if self.is_built:
            adapter_for(self.backend).set_frozen(self._model.module, self.is_frozen)


Learn = Callable[[Any, Any], Any]


def is_fittable(model: Any) -> bool:
    """Return whether a model learns from all rows at once.

    It has ``fit(features, targets)``, which takes ``(n, *input_shape)`` and ``(n, *target_shape)``;
    targets may be None. A model with ``partial_fit`` and ``learns_in_batches`` set learns from each
    batch. Sample weights are passed to methods that take ``sample_weight``.
    """
    return hasattr(model, "fit")


def learners(nodes: Iterable[Any], fits: Iterable[WeightedNode]) -> dict[str, Learn]:
    """Return the fit or partial_fit method of each node that learns, by id.

    Parameters
    ----------
    nodes : iterable of ComputeNode
        Of a training phase; frozen ones learn nothing.
    fits : iterable of ModelNode
        Nodes that are fitted on all rows.
    """
    methods: dict[str, Learn] = {}
    for node in nodes:
        if not isinstance(node, WeightedNode) or node.is_frozen:
            continue
        model: Any = node.model
        if getattr(model, "learns_in_batches", False):
            methods[node.node_id] = model.partial_fit
    for node in fits:
        model = node.model
        if is_fittable(model):
            methods[node.node_id] = model.fit
    return methods


def to_fit(nodes: Iterable[Any], *, even_frozen: bool = False) -> list[WeightedNode]:
    """Return the nodes that can be fitted on all rows.

    Raises
    ------
    GraphError
        If there are none.
    """
    models = [n for n in nodes if isinstance(n, WeightedNode)]
    fittable = [n for n in models if is_fittable(n.model) and (even_frozen or not n.is_frozen)]
    if not fittable:
        raise GraphError(
            f"none of the nodes {[n.label for n in models]} can be fitted: each is frozen, or its "
            "model has no fit(features, targets); train it with a TrainPhase"
        )
    return fittable


def check_models(nodes: Iterable[WeightedNode], *, training: bool, losses: bool) -> None:
    """Refuse models that cannot run in a training or an evaluation, with or without losses."""
    for node in nodes:
        trains = training and not node.is_frozen
        adapter = adapter_for(node.backend)
        adapter.check_model(node.model.module, node.label, training=trains, losses=losses)


def check_weights(node: Any, learn: Learn, losses: Sequence[AppliedLoss]) -> None:
    """Refuse sample weights for a model whose method takes none.

    Parameters
    ----------
    node : ModelNode
    learn : callable
        Its ``fit`` or ``partial_fit``.
    losses : sequence of AppliedLoss
        Those on this node.

    Raises
    ------
    ConfigError
        If the method takes no ``sample_weight``.
    LossError
        If losses weight the samples differently.
    """
    columns = list(dict.fromkeys(a.sample_weight for a in losses))
    if len(columns) > 1 or any(a.class_weight != losses[0].class_weight for a in losses):
        raise LossError(
            f"node {node.label!r} learns with one weight per sample, but its losses have "
            f"different ones, {columns} and {[a.class_weight for a in losses]}; give them the same "
            "sample_weight and class_weight"
        )
    name, model = learn.__name__, node.model
    takes_argument = getattr(model, "takes", None)
    takes_weights = (
        takes_argument(name)
        if takes_argument
        else "sample_weight" in inspect.signature(learn).parameters
    )
    if not takes_weights:
        source = f"column {columns[0]!r}" if columns and columns[0] is not None else "its sampler"
        source = "class_weight" if losses and losses[0].class_weight is not None else source
        raise ConfigError(
            f"node {node.label!r}: {name} of {model.shown_name} takes no sample_weight, but its "
            f"samples are weighted by {source}; omit the weights, or choose an estimator that "
            "takes them"
        )


def fit_then_predict(
    learn: Learn, fn: Callable[[Any], Any], adapter: BackendAdapter, names: Sequence[str]
) -> Callable[[Sequence[Any]], Any]:
    """Return a function that fits a model, then computes its outputs.

    It takes features, followed by the arguments in `names`: 'targets', 'sample_weight' or 'groups'.
    """

    def run(values: Sequence[Any]) -> Any:
        features, *rest = values
        kwargs = dict(zip(names, rest, strict=True))
        learn(adapter.to_numpy(features), kwargs.pop("targets", None), **kwargs)
        with adapter.checked_rows():
            return fn(features)

    return run
