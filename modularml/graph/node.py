"""What every node of a graph is: a label, and what it reads from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from modularml._typing import Shape
from modularml.backends import Backend, BackendAdapter
from modularml.config import Configurable, Stateful, decode
from modularml.context import ExperimentContext, ExperimentNode
from modularml.data import FeatureSet, FeatureSetView
from modularml.data.lineage import ColumnLineage
from modularml.data.references import (
    ExperimentNodeReference,
    FeatureSetReference,
    GraphNodeReference,
)
from modularml.errors import GraphError

__all__ = ["ComputeNode", "GraphNode", "UpstreamLike", "as_reference"]

UpstreamLike: TypeAlias = ExperimentNode | ExperimentNodeReference | str


class GraphNode(ExperimentNode, Configurable, Stateful):
    """A node that reads from FeatureSets or from other nodes.

    Parameters
    ----------
    label : str
    upstream_refs : sequence of FeatureSet, reference, node or label
        What it reads from, in order.
    node_id, register
        Used when a node is rebuilt.
    """

    max_upstream_refs: int | None = None

    def __init__(
        self,
        label: str,
        upstream_refs: Sequence[UpstreamLike],
        *,
        node_id: str | None = None,
        register: bool = True,
    ) -> None:
        ctx = ExperimentContext.get_active()
        refs = [as_reference(ref, ctx, label) for ref in upstream_refs]
        self._check_upstream(label, refs)
        self._upstream_refs = refs
        super().__init__(label, node_id=node_id, register=register)

    @property
    def upstream_refs(self) -> list[ExperimentNodeReference]:
        """References to what this node reads from, in order."""
        return list(self._upstream_refs)

    @property
    def feature_refs(self) -> list[FeatureSetReference]:
        """References into FeatureSets."""
        return [r for r in self._upstream_refs if isinstance(r, FeatureSetReference)]

    @property
    def node_refs(self) -> list[ExperimentNodeReference]:
        """References to other nodes."""
        return [r for r in self._upstream_refs if not isinstance(r, FeatureSetReference)]

    def reference(self) -> GraphNodeReference:
        """Return a reference to this node's output."""
        return GraphNodeReference(self.node_id, self.label)

    def set_upstream_refs(self, refs: Sequence[UpstreamLike]) -> None:
        """Read from something else from now on."""
        found = [as_reference(ref, self.context, self.label) for ref in refs]
        self._check_upstream(self.label, found)
        self._upstream_refs = found

    def relate(self, ref: FeatureSetReference, on: Any) -> None:
        """Let the rows of an input belong to those of other sets by a key, if none is named."""
        self._upstream_refs = [
            replace(mine, on=on)
            if isinstance(mine, FeatureSetReference) and mine == ref and mine.on is None
            else mine
            for mine in self._upstream_refs
        ]

    @classmethod
    def from_config(cls, config: dict[str, Any], *, register: bool = True) -> Any:
        """Make a node from its config; what it has learned is state."""
        return cls(**{name: decode(value) for name, value in config.items()}, register=register)

    def _check_upstream(self, label: str, refs: Sequence[ExperimentNodeReference]) -> None:
        most = self.max_upstream_refs
        if not refs:
            raise GraphError(
                f"node {label!r} reads from nothing; give it an upstream node or FeatureSet"
            )
        if most is not None and len(refs) > most:
            raise GraphError(
                f"node {label!r} takes {most} input(s), got {len(refs)}; put a ConcatNode before it"
            )
        if any(ref.node_label == label for ref in refs):
            raise GraphError(f"node {label!r} cannot read from itself")

    def __repr__(self) -> str:
        sources = ", ".join(ref.node_label for ref in self._upstream_refs)
        return f"{type(self).__name__}({self.label!r} <- {sources})"


class ComputeNode(GraphNode):
    """A node that computes something from what it reads."""

    framework: Backend | None = None
    """What it runs in, once a graph with it has been built."""

    @property
    @abstractmethod
    def output_shape(self) -> Shape | None:
        """Shape of one sample coming out; None before the node is built or an estimator fitted."""

    @property
    @abstractmethod
    def input_shapes(self) -> list[Shape | None]:
        """Shape of one sample of each input, in order; None where it is not known yet."""

    @property
    def is_built(self) -> bool:
        """Whether shapes are known and weights exist."""
        return self.output_shape is not None

    @property
    def backend(self) -> Backend:
        """The framework that it runs in; ``Backend.NONE`` before a graph with it is built."""
        return self.framework or Backend.NONE

    @property
    def reads_flat(self) -> bool:
        """Whether columns of unlike shape are put side by side in one row."""
        return False

    @property
    def is_frozen(self) -> bool:
        """Whether the node stays as it is in training; a node without weights is."""
        return True

    @property
    def has_weights(self) -> bool:
        """Whether training could change this node."""
        return False

    @abstractmethod
    def build_from(
        self, shapes: Sequence[Shape | None], wanted: Shape | None, *, force: bool = False
    ) -> Shape | None:
        """Build for inputs of these shapes and return the output's shape.

        Parameters
        ----------
        shapes : sequence of tuple of int or None
            Of one sample, for each upstream; None where an estimator above has to be fitted first.
        wanted : tuple of int or None
            Shape that a tail would like its output to have.
        """

    @abstractmethod
    def operation(self, adapter: BackendAdapter) -> Callable[..., Any]:
        """Return the function from input tensors (one, or a list of them) to the output tensor."""

    @abstractmethod
    def flow(self, domain: str, parts: Sequence[ColumnLineage]) -> ColumnLineage:
        """Say where this node's targets, tags or features come from, given its upstreams'."""


def as_reference(obj: Any, ctx: ExperimentContext, label: str) -> ExperimentNodeReference:
    """Turn what the user gave as upstream into a reference.

    Raises
    ------
    GraphError
        If it cannot be read from.
    UnknownNameError
        If it is a label that nobody bears.
    """
    if isinstance(obj, str):
        obj = ctx.get_node(obj)
    if isinstance(obj, FeatureSet | GraphNode):
        return obj.reference()
    if isinstance(obj, FeatureSetView):
        raise GraphError(
            f"node {label!r} cannot read from a view; wire it to the FeatureSet "
            f"{obj.source.label!r} "
            "and name the split in the phase"
        )
    if isinstance(obj, FeatureSetReference | GraphNodeReference):
        return obj
    if isinstance(obj, ExperimentNodeReference):
        return as_reference(obj.resolve(ctx), ctx, label)
    raise GraphError(
        f"node {label!r} cannot read from a {type(obj).__name__}; give a FeatureSet, "
        "fs.reference(...), a node or a label"
    )
