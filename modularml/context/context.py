"""Experiment context: nodes by id and label.

A context is made on first use, one for each thread and asyncio task. Nodes register in the
active context when they are made, and stay bound to it.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from operator import attrgetter
from typing import Any, ClassVar

from modularml._warning import warn
from modularml.config import config_registry
from modularml.context.registration import RegistrationPolicy, RegistrationWarning
from modularml.errors import ConfigError, RegistrationError, UnknownNameError


class ExperimentNode:
    """Anything with a label that an experiment can look up: a FeatureSet, a graph node.

    Parameters
    ----------
    label : str
        Unique within the context.
    node_id : str, optional
        Given only when a node is rebuilt from a config.
    register : bool
        Whether to enter the active context.
    """

    not_config: ClassVar[frozenset[str]] = frozenset({"node_id", "register"})
    # read at every step, therefore without a function of Python
    node_id: str = property(  # type: ignore[assignment]
        attrgetter("_node_id"), doc="Identifier of this node in this process."
    )

    @property
    def has_rows(self) -> bool:
        """Whether nothing that it reads is missing."""
        return True

    def __init__(self, label: str, *, node_id: str | None = None, register: bool = True) -> None:
        self._label = _checked_label(label)
        self._node_id = node_id or str(uuid.uuid4())
        self._context = ExperimentContext.get_active()
        if register:
            self._context.register_experiment_node(self)

    @property
    def label(self) -> str:
        """Name of this node, unique within its context."""
        return self._label

    @label.setter
    def label(self, new: str) -> None:
        if self._context.has_node(node_id=self.node_id):
            self._context.update_node_label(self.node_id, new)
        self._label = _checked_label(new)

    @property
    def context(self) -> ExperimentContext:
        """The context that this node was made in."""
        return self._context

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class ExperimentContext:
    """Registry of the nodes, the graph and the experiment that belong together.

    Parameters
    ----------
    experiment : Experiment, optional
        The experiment that runs in this context.
    registration_policy : RegistrationPolicy or str, optional
        What happens when a label is taken.

    Examples
    --------
    >>> with ExperimentContext().activate() as ctx:
    ...     len(ctx.available_nodes)
    0
    """

    def __init__(
        self,
        *,
        experiment: Any = None,
        registration_policy: RegistrationPolicy | str | None = None,
    ) -> None:
        self._experiment = experiment
        self._policy = RegistrationPolicy.from_value(registration_policy)
        self._nodes: dict[str, ExperimentNode] = {}
        self._graph: Any = None
        _contexts.add(self)

    @classmethod
    def get_active(cls) -> ExperimentContext:
        """Return the active context of this thread or task, made on first use."""
        active = _active.get()
        if active is None:
            active = cls()
            _active.set(active)
        return active

    def make_active(self) -> None:
        """Make this the active context of this thread or task from now on."""
        _active.set(self)

    @contextmanager
    def activate(self) -> Iterator[ExperimentContext]:
        """Make this the active context within a ``with`` block."""
        token = _active.set(self)
        try:
            yield self
        finally:
            _active.reset(token)

    @contextmanager
    def temporary(self) -> Iterator[ExperimentContext]:
        """Activate this context and undo, on exit, all that was changed in it."""
        state = self.get_state()
        with self.activate():
            try:
                yield self
            finally:
                self.set_state(state)

    @classmethod
    @contextmanager
    def dont_register(cls) -> Iterator[None]:
        """Let nodes that are made within the block stay out of every context."""
        token = _registering.set(False)
        try:
            yield
        finally:
            _registering.reset(token)

    @property
    def available_nodes(self) -> dict[str, ExperimentNode]:
        """All registered nodes, keyed by node id."""
        return dict(self._nodes)

    @property
    def available_featuresets(self) -> dict[str, Any]:
        """All registered FeatureSets, keyed by node id."""
        return self._of_type("FeatureSet")

    @property
    def available_computenodes(self) -> dict[str, Any]:
        """All registered compute nodes, keyed by node id."""
        return self._of_type("ComputeNode")

    def has_node(self, *, node_id: str | None = None, label: str | None = None) -> bool:
        """Tell whether a node with this id, or with this label, is registered."""
        return self._find(node_id=node_id, label=label) is not None

    def get_node(
        self,
        val: str | None = None,
        *,
        node_id: str | None = None,
        label: str | None = None,
        enforce_type: str = "ExperimentNode",
    ) -> ExperimentNode:
        """Return a node by id or label.

        Parameters
        ----------
        val : str, optional
            An id or a label; ids are tried first.
        node_id, label : str, optional
            Given instead of `val`.
        enforce_type : str
            Name of a class that the node must be an instance of.

        Raises
        ------
        UnknownNameError
            If there is no such node; the closest labels are listed.
        ConfigError
            If not exactly one of `val`, `node_id` and `label` is given.
        TypeError
            If the node is of another type.
        """
        if [val, node_id, label].count(None) != 2:
            raise ConfigError("give exactly one of val, node_id and label")
        node = self._find(node_id=node_id or val, label=label or val)
        if node is None:
            raise self._unknown(next(x for x in (val, node_id, label) if x is not None))
        if enforce_type != "ExperimentNode" and not _is_a(node, enforce_type):
            raise TypeError(f"node {node.label!r} is a {type(node).__name__}, not a {enforce_type}")
        return node

    def register_experiment_node(
        self, node: ExperimentNode, *, check_label_collision: bool = True
    ) -> None:
        """Enter a node under its id and label.

        Raises
        ------
        TypeError
            If `node` is not an `ExperimentNode`.
        RegistrationError
            If its id or label is taken and the policy is ``error``.
        """
        if not isinstance(node, ExperimentNode):
            raise TypeError(f"node must be an ExperimentNode, got a {type(node).__name__}")
        if self._policy is RegistrationPolicy.NO_REGISTER or not _registering.get():
            return
        found = [self._nodes.get(node.node_id)]
        if check_label_collision:
            found.append(self._find(label=node.label))
        taken = {t.node_id: t for t in found if t is not None and t is not node}
        if any(not t.has_rows for t in taken.values()):
            return  # a loaded set waits for these rows: see `FeatureSet.attach`
        if taken:
            first = next(iter(taken.values()))
            self._replace(
                _taken_error(first, node.label),
                f"node {node.label!r} replaces another with that label",
            )
        for other in taken.values():
            del self._nodes[other.node_id]
        self._nodes[node.node_id] = node
        node._context = self

    def remove_node(
        self, *, node_id: str | None = None, label: str | None = None, error_if_missing: bool = True
    ) -> ExperimentNode | None:
        """Remove a node, by id or by label, and return it.

        Raises
        ------
        ConfigError
            If not exactly one of `node_id` and `label` is given.
        UnknownNameError
            If there is no such node and `error_if_missing` is true.
        """
        if (node_id is None) == (label is None):
            raise ConfigError("give exactly one of node_id and label")
        node = self._find(node_id=node_id, label=label)
        if node is None and error_if_missing:
            raise self._unknown(node_id if label is None else label)
        return None if node is None else self._nodes.pop(node.node_id)

    def update_node_label(
        self, node_id: str, new_label: str, *, check_label_collision: bool = True
    ) -> None:
        """Give a registered node another label.

        Raises
        ------
        UnknownNameError
            If no node has this id.
        RegistrationError
            If the label is taken and `check_label_collision` is true.
        """
        node = self.get_node(node_id=node_id)
        _checked_label(new_label)
        taken = self._find(label=new_label)
        if check_label_collision and taken is not None and taken is not node:
            raise _taken_error(taken, new_label)
        node._label = new_label

    @property
    def model_graph(self) -> Any:
        """The graph of this context, or None."""
        return self._graph

    def register_model_graph(self, graph: Any) -> None:
        """Make a graph the graph of this context.

        Raises
        ------
        TypeError
            If `graph` is not a ModelGraph.
        RegistrationError
            If there is another graph and the policy is ``error``.
        """
        if not _is_a(graph, "ModelGraph"):
            kind = f"{type(graph).__module__}.{type(graph).__qualname__}"
            raise TypeError(f"graph must be a modularml.ModelGraph, got a {kind}")
        if self._policy is RegistrationPolicy.NO_REGISTER or not _registering.get():
            return
        if self._graph is not None and self._graph is not graph:
            self._replace(
                RegistrationError(
                    f"this context has the graph {self._graph.label!r} already; start another "
                    "Experiment, pass register=False, or set the policy to 'overwrite'"
                ),
                f"graph {graph.label!r} replaces {self._graph.label!r} in its context",
            )
        self._graph = graph

    def get_experiment(self) -> Any:
        """Return the experiment of this context, or None."""
        return self._experiment

    def set_experiment(self, experiment: Any, *, reset_registries: bool = False) -> None:
        """Make an experiment the experiment of this context."""
        if reset_registries:
            self._nodes, self._graph = {}, None
        self._experiment = experiment

    @contextmanager
    def beside(
        self, *, overwrite: bool = False, see_sets: bool = False
    ) -> Iterator[ExperimentContext]:
        """Build nodes in a context beside this one, and take them over at the end, all at once.

        Parameters
        ----------
        overwrite : bool
            Whether nodes and a graph with the same ids or labels are removed. Where they do not,
            the new ones stay together in the context beside.
        see_sets : bool
            Whether references to the FeatureSets of this context resolve.
        """
        other = ExperimentContext(registration_policy=RegistrationPolicy.ERROR)
        if see_sets:
            other._nodes = dict(self.available_featuresets)
        seen = set(other._nodes)
        token = _registering.set(True)
        try:
            with other.activate():
                yield other
        finally:
            _registering.reset(token)
        new = {node_id: node for node_id, node in other._nodes.items() if node_id not in seen}
        labels = {node.label for node in new.values()}
        taken = [i for i, n in self._nodes.items() if i in new or n.label in labels]
        graphs = self._graph is not None and other._graph is not None
        silent = self._policy is RegistrationPolicy.NO_REGISTER or not _registering.get()
        if silent or ((taken or graphs) and not overwrite):
            return
        self._nodes = {i: n for i, n in self._nodes.items() if i not in taken} | new
        for node in new.values():
            node._context = self
        for owner in (other._graph, other._experiment):
            if owner is not None:
                owner._ctx = self
        self._graph = other._graph or self._graph
        self._experiment = other._experiment or self._experiment

    def free_ids(self, ids: Mapping[str, str], *, overwrite: bool = False) -> dict[str, str]:
        """Return ids by label for nodes that come in: their own, or new ones if those are taken."""
        taken = set() if overwrite else set(self._nodes)
        return {
            label: str(uuid.uuid4()) if node_id in taken else node_id
            for label, node_id in ids.items()
        }

    @property
    def registration_policy(self) -> RegistrationPolicy:
        """What happens when a label is taken."""
        return self._policy

    def set_registration_policy(self, policy: str | RegistrationPolicy) -> None:
        """Set what happens when a label is taken, from now on."""
        self._policy = RegistrationPolicy.from_value(policy)

    def get_state(self) -> dict[str, Any]:
        """Return a snapshot of what is registered (the objects themselves, not copies)."""
        return {
            "nodes": {node_id: (node, node.label) for node_id, node in self._nodes.items()},
            "model_graph": self._graph,
            "experiment": self._experiment,
            "registration_policy": self._policy.value,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to a snapshot made by `get_state`."""
        self._nodes = {}
        for node_id, (node, label) in state["nodes"].items():
            node._label = label
            self._nodes[node_id] = node
        self._graph = state["model_graph"]
        self._experiment = state["experiment"]
        self._policy = RegistrationPolicy.from_value(state["registration_policy"])

    def __repr__(self) -> str:
        labels = [node.label for node in self._nodes.values()]
        return f"ExperimentContext(nodes={labels}, policy={self._policy.value!r})"

    def _find(
        self, *, node_id: str | None = None, label: str | None = None
    ) -> ExperimentNode | None:
        if node_id is not None and node_id in self._nodes:
            return self._nodes[node_id]
        named = (node for node in self._nodes.values() if node._label == label)
        return None if label is None else next(named, None)

    def _of_type(self, name: str) -> dict[str, Any]:
        return {node_id: node for node_id, node in self._nodes.items() if _is_a(node, name)}

    def _replace(self, error: RegistrationError, warning: str) -> None:
        """Refuse a replacement, warn of it, or allow it, as the policy says."""
        if self._policy is RegistrationPolicy.ERROR:
            raise error
        if self._policy is RegistrationPolicy.OVERWRITE_WARN:
            warn(warning, RegistrationWarning)

    def _unknown(self, name: str | None) -> UnknownNameError:
        known = [node.label for node in self._nodes.values()]
        others = [c for c in list(_contexts) if c is not self]
        found = [n for c in others for n in (c._find(node_id=name), c._find(label=name)) if n]
        if not found:
            return UnknownNameError("node", name, known)
        what = f"{type(found[0]).__name__} {found[0].label!r}"
        return UnknownNameError(
            "node",
            name,
            known,
            f"{what} belongs to another context: it was made before Experiment(...), which opens a "
            "context of its own, or for another experiment. Make it after the experiment, or make "
            "the experiment with Experiment.from_active_context(...)",
        )


_active: ContextVar[ExperimentContext | None] = ContextVar("modularml_context", default=None)
_contexts: weakref.WeakSet[ExperimentContext] = weakref.WeakSet()
_registering: ContextVar[bool] = ContextVar("modularml_registering", default=True)


def _is_a(obj: object, name: str) -> bool:
    cls = ExperimentNode if name == "ExperimentNode" else config_registry.get(name)
    return cls is not None and isinstance(obj, cls)


def _checked_label(label: object) -> str:
    if not isinstance(label, str) or not label.strip():
        raise ConfigError(f"label must be a non-empty string, got {label!r}")
    return label


def _taken_error(taken: ExperimentNode, label: str) -> RegistrationError:
    return RegistrationError(
        f"label {label!r} is taken by a {type(taken).__name__} in this context; choose another "
        f"label, or make room by ExperimentContext.get_active().remove_node(label={label!r}) or "
        "set_registration_policy('overwrite')"
    ).with_code("MML-401")
