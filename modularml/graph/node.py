"""Base classes of graph nodes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from typing import Any, TypeAlias

from modularml._typing import Shape
from modularml.backends import Backend, BackendAdapter
from modularml.config import Configurable, Stateful, decode
from modularml.context import ExperimentContext, ExperimentNode
from modularml.data.featureset import FeatureSet
from modularml.data.lineage import ColumnLineage
from modularml.data.references import (
    ExperimentNodeReference,
    FeatureSetReference,
    GraphNodeReference,
)
from modularml.data.view import FeatureSetView
from modularml.errors import GraphError

UpstreamLike: TypeAlias = ExperimentNode | ExperimentNodeReference | str


class GraphNode(ExperimentNode, Configurable, Stateful):
    """A node that reads from FeatureSets or from other nodes.

    Parameters
    ----------
    label : str
    upstream_refs : sequence of FeatureSet, reference, node or label
        Inputs, in order.
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
        """References to the inputs of this node, in order."""
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
        """Replace the inputs."""
        new_refs = [as_reference(ref, self.context, self.label) for ref in refs]
        self._check_upstream(self.label, new_refs)
        self._upstream_refs = new_refs

    def relate(self, ref: FeatureSetReference, on: Any) -> None:
        """Set the key that relates an input to other FeatureSets, if none is set."""
        self._upstream_refs = [
            replace(own_ref, on=on)
            if isinstance(own_ref, FeatureSetReference) and own_ref == ref and own_ref.on is None
            else own_ref
            for own_ref in self._upstream_refs
        ]

    @classmethod
    def from_config(cls, config: dict[str, Any], *, register: bool = True) -> Any:
        """Build a node from its config; weights are state."""
        return cls(**{name: decode(value) for name, value in config.items()}, register=register)

    def _check_upstream(self, label: str, refs: Sequence[ExperimentNodeReference]) -> None:
        limit = self.max_upstream_refs
        if not refs:
            raise GraphError(f"node {label!r} has no input; pass an upstream node or FeatureSet")
        if limit is not None and len(refs) > limit:
            raise GraphError(
                f"node {label!r} takes {limit} input(s), got {len(refs)}; put a ConcatNode before "
                "it"
            )
        if any(ref.node_label == label for ref in refs):
            raise GraphError(f"node {label!r} cannot read from itself")

    def __repr__(self) -> str:
        sources = ", ".join(ref.node_label for ref in self._upstream_refs)
        return f"{type(self).__name__}({self.label!r} <- {sources})"

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{name}</th><td>{escape(value)}</td></tr>"
            for name, value in self._facts().items()
            if value
        )
        return f"<b>{escape(repr(self))}</b><table>{cells}</table>"

    def _facts(self) -> dict[str, str]:
        """Return what notebooks show, by name."""
        return {"reads": ", ".join(str(ref.node_label) for ref in self._upstream_refs)}


class ComputeNode(GraphNode):
    """A node that computes an output from its inputs."""

    framework: Backend | None = None
    """The framework it runs in, once a graph with it is built."""

    @property
    @abstractmethod
    def output_shape(self) -> Shape | None:
        """Shape of one output sample; None before the node is built, or its estimator fitted."""

    @property
    @abstractmethod
    def input_shapes(self) -> list[Shape | None]:
        """Shape of one sample of each input, in order; None if not known yet."""

    @property
    def is_built(self) -> bool:
        """Whether shapes are known and weights exist."""
        return self.output_shape is not None

    def _facts(self) -> dict[str, str]:
        shape = self.output_shape
        facts = {
            "output": "" if shape is None else " x ".join(map(str, shape)) or "scalar",
            "backend": "" if self.backend is Backend.NONE else self.backend.value,
            "frozen": "yes" if self.is_frozen else "",
        }
        return {**super()._facts(), **facts}

    @property
    def backend(self) -> Backend:
        """The framework it runs in; ``Backend.NONE`` before a graph with it is built."""
        return self.framework or Backend.NONE

    @property
    def reads_flat(self) -> bool:
        """Whether columns of different shapes are concatenated into one row."""
        return False

    @property
    def is_frozen(self) -> bool:
        """Whether the node is excluded from training; true without weights."""
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
            Of one sample, for each input; None if an upstream estimator must be fitted first.
        wanted : tuple of int or None
            Preferred output shape of a tail.
        """

    @abstractmethod
    def operation(self, adapter: BackendAdapter) -> Callable[..., Any]:
        """Return the function from input tensors (one, or a list of them) to the output tensor."""

    @abstractmethod
    def flow(self, domain: str, parts: Sequence[ColumnLineage]) -> ColumnLineage:
        """Return the lineage of this node's values of a domain, given its inputs'."""


def as_reference(obj: Any, ctx: ExperimentContext, label: str) -> ExperimentNodeReference:
    """Convert an input to a reference.

    Raises
    ------
    GraphError
        If it cannot be read from.
    UnknownNameError
        If no node has that label.
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
        f"node {label!r} cannot read from a {type(obj).__name__}; pass a FeatureSet, "
        "fs.reference(...), a node or a label"
    )
