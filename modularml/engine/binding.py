"""Input bindings: the rows and the sampler of each head node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np

from modularml.config import Configurable
from modularml.context import ExperimentContext
from modularml.data.batch import BatchView
from modularml.data.featureset import FeatureSet
from modularml.data.lineage import Source
from modularml.data.references import FeatureSetReference, join_key
from modularml.data.table_join import join, table_of
from modularml.data.view import FeatureSetView
from modularml.errors import ConfigError, GraphError, SplitError, UnknownNameError, expect
from modularml.graph.model_graph import ModelGraph
from modularml.graph.node import ComputeNode, GraphNode
from modularml.graph.row_matching import Meeting, links_of, meetings_of
from modularml.samplers import BaseSampler, SimpleSampler
from modularml.samplers.base import batch_views
from modularml.samplers.batching import DEFAULT
from modularml.training import AppliedLoss


@dataclass(frozen=True)
class InputBinding(Configurable):
    """Rows of a FeatureSet, bound to an edge into a head node for one phase.

    Parameters
    ----------
    node_id : str
        Id or label of the head node.
    upstream_ref : FeatureSetReference
        The input of the node that is bound.
    split : str, optional
        Use only the rows of this split.
    sampler : BaseSampler, optional
        Draws the batches.
    stream : str
        Stream of the sampler: ``"default"`` gives every role; the name of a role gives only its
        rows, as the default role, so that one head node reads anchors and another pairs.

    Examples
    --------
    >>> import numpy as np
    >>> from modularml import FeatureSet, InputBinding, SimpleSampler
    >>> fs = FeatureSet.from_dict("rows", {"x": np.zeros(5), "y": np.zeros(5)}, "x", "y")
    >>> binding = InputBinding("net", fs.reference(), None, SimpleSampler(batch_size=2))
    >>> binding.stream
    'default'
    """

    node_id: str
    upstream_ref: FeatureSetReference
    split: str | None = None
    sampler: BaseSampler | None = None
    stream: str = DEFAULT

    def __post_init__(self) -> None:
        allowed = "a reference to a FeatureSet, such as fs.reference()"
        expect("upstream_ref", self.upstream_ref, FeatureSetReference, allowed)
        expect("sampler", self.sampler, (BaseSampler, NoneType), "a sampler or None")

    @classmethod
    def for_training(
        cls,
        *,
        node: GraphNode | str,
        sampler: BaseSampler,
        upstream: FeatureSet | FeatureSetView | str | None,
        split: str | None = None,
        stream: str = DEFAULT,
    ) -> InputBinding:
        """Bind an input through a sampler.

        Parameters
        ----------
        node : GraphNode or str
            The head node, its label or id.
        sampler : BaseSampler
        upstream : FeatureSet, FeatureSetView, str or None
            Which FeatureSet; may be None if the node reads only one.
        split : str, optional
        stream : str

        Raises
        ------
        GraphError
            If the node does not read from that FeatureSet, or from several and none is named.
        UnknownNameError
            If there is no such node or split.
        """
        if not isinstance(sampler, BaseSampler):
            raise ConfigError(f"sampler must be a sampler such as SimpleSampler, got {sampler!r}")
        if stream not in (DEFAULT, *sampler.roles):
            known = dict.fromkeys((DEFAULT, *sampler.roles))
            raise UnknownNameError(f"stream of {type(sampler).__name__}", stream, known)
        return cls._bind(node, upstream, split, sampler, stream)

    @classmethod
    def for_evaluation(
        cls,
        *,
        node: GraphNode | str,
        upstream: FeatureSet | FeatureSetView | str | None,
        split: str | None = None,
    ) -> InputBinding:
        """Bind an input without a sampler: every row once, in order; see `for_training`."""
        return cls._bind(node, upstream, split, None, DEFAULT)

    @classmethod
    def _bind(
        cls, node: Any, upstream: Any, split: str | None, sampler: BaseSampler | None, stream: str
    ) -> InputBinding:
        head = node
        if not isinstance(node, GraphNode):
            head = ExperimentContext.get_active().get_node(node)
            if not isinstance(head, GraphNode):
                raise GraphError(
                    f"{node!r} is a {type(head).__name__}; bind a head node of the graph"
                )
        if isinstance(upstream, FeatureSetView):
            view, upstream, name = upstream, upstream.source, str(upstream.label)
            splits = upstream.available_splits
            if (
                not split
                and name in splits
                and np.array_equal(upstream[name].indices, view.indices)
            ):
                split = name
            elif not split and len(view) != len(upstream):
                raise SplitError(
                    f"view {view.label!r} is not a split of {upstream.label!r}; add it with "
                    "fs.add_split(view) first"
                )
        ref = _edge(head, upstream)
        binding = cls(head.node_id, ref, split, sampler, stream)
        if split is not None:
            ref.resolve(head.context).get_split(split)
        return binding

    def get_config(self) -> dict[str, Any]:
        """Return the fields as plain data; the node is named by its label."""
        config = super().get_config()
        ctx = ExperimentContext.get_active()
        if ctx.has_node(node_id=self.node_id):
            config["node_id"] = ctx.get_node(node_id=self.node_id).label
        return config

    def resolve_input_view(self) -> FeatureSetView:
        """Return the bound rows, in the active context.

        Raises
        ------
        SplitError
            If there are none.
        """
        fs: FeatureSet = self.upstream_ref.resolve()
        view = fs.to_view() if self.split is None else fs.get_split(self.split)
        if not len(view):
            raise SplitError(
                f"split {self.split!r} of {fs.label!r} is empty; bind a split that has rows"
            )
        return view

    def materialize_batches(self, *, show_progress: bool = True) -> list[BatchView]:
        """Return the batches of epoch 0 as row numbers.

        Parameters
        ----------
        show_progress : bool
            Whether a search for pairs shows a progress bar.
        """
        view = self.resolve_input_view()
        sampler = self.sampler or SimpleSampler(batch_size=len(view), seed=0)
        if not show_progress and sampler.show_progress:
            sampler = copy(sampler)
            sampler.show_progress = False
        return batch_views(sampler.epoch(view, 0), view, self.stream)


@dataclass(frozen=True)
class Bound:
    """A binding resolved for one run.

    Parameters
    ----------
    source : Source
    view : FeatureSetView
    sampler : BaseSampler
    group : int
        Bindings of one group share their batches row by row; the leading one comes first.
    stream : str
    drawn : bool
        Whether the sampler may draw from this view.
    """

    source: Source
    view: FeatureSetView
    sampler: BaseSampler
    group: int
    stream: str = DEFAULT
    drawn: bool = True


def bind(
    bindings: Sequence[InputBinding],
    graph: ModelGraph,
    nodes: Sequence[ComputeNode],
    losses: Sequence[AppliedLoss],
    *,
    batch_size: int | None,
    phase: str,
) -> list[Bound]:
    """Resolve the bindings of active head nodes, one per edge.

    Rows of several FeatureSets that a node or a loss combines are joined by the key of their
    sampler, merge node or references. Edges keep the key of a sampler for later phases.

    Parameters
    ----------
    bindings : sequence of InputBinding
    graph : ModelGraph
    nodes : sequence of ComputeNode
        The nodes that run.
    losses : sequence of AppliedLoss
    batch_size : int or None
        Used for bindings without a sampler; None takes all rows at once.
    phase : str
        Label, for messages.

    Raises
    ------
    GraphError
        If an edge into a head node has no binding.
    DataError
        If no key says which rows belong together, or they cannot be joined.
    ConfigError
        If combined inputs are read through samplers that make different batches.
    """
    edges = [Source(node.node_id, ref) for node in nodes for ref in node.feature_refs]
    by_id = {node.node_id: node for node in nodes}
    binding_of = {s: binding_for(bindings, by_id[s.node_id], s.ref, phase) for s in edges}
    views = {source: binding.resolve_input_view() for source, binding in binding_of.items()}
    meetings: list[Meeting] = []
    if len(edges) > 1:  # else there is nothing to combine
        active_losses = [a for a in losses if graph.get_node(a.on) in nodes]
        meetings = [*keep_keys(graph, binding_of), *meetings_of(nodes, active_losses)]
    rows, leads = _joined_rows(meetings, views, f"phase {phase!r}: ") if meetings else (views, {})
    groups: dict[Any, int] = {}
    bound: list[Bound] = []
    for source in sorted(edges, key=lambda s: leads.get(s, s) != s):
        view, binding = rows[source], binding_of[source]
        key: Any = leads.get(source) or (id(binding.sampler), view.source.node_id, binding.split)
        group = groups.setdefault(key, len(groups))
        first = next((b.sampler for b in bound if b.group == group), None)
        chosen = binding.sampler
        if source in leads:
            chosen = _one_sampler(meetings, binding_of, source, phase)
        sampler = first or chosen or SimpleSampler(batch_size=batch_size or len(view), seed=0)
        drawn = source not in leads or all(table_of(view).has(n) for n in sampler.reads())
        bound.append(Bound(source, view, sampler, group, binding.stream, drawn))
    return bound


def keep_keys(graph: ModelGraph, bindings: Mapping[Source, InputBinding]) -> list[Meeting]:
    """Return the inputs that samplers align; store the key on edges without one.

    Evaluations, folds, files and predictions then relate rows as the training does.

    Raises
    ------
    UnknownNameError
        If a FeatureSet lacks the column.
    """
    sources_of: dict[int, list[Source]] = {}
    for source, binding in bindings.items():
        if binding.sampler is not None and binding.sampler.align_on is not None:
            sources_of.setdefault(id(binding.sampler), []).append(source)
    meetings = [
        Meeting(type(sampler).__name__, tuple((s,) for s in sources), sampler.align_on)
        for sources in sources_of.values()
        if (sampler := bindings[sources[0]].sampler) is not None
        and len({s.ref.resolve() for s in sources}) > 1
    ]
    for meeting in meetings:
        on: Any = meeting.align_on
        keys = {s: join_key(s.ref.resolve().collection.schema, on) for s in meeting.sources}
        for source, key in keys.items():
            graph.get_node(source.node_id).relate(source.ref, key)
    return meetings


def _joined_rows(
    meetings: Sequence[Meeting],
    views: Mapping[Source, FeatureSetView],
    who: str,
) -> tuple[dict[Source, FeatureSetView], dict[Source, Source]]:
    """Return the joined rows of each input, and the leading input of each join."""
    keys: dict[Any, int] = {}
    table_index = {
        s: keys.setdefault((v.source.node_id, v.indices.tobytes()), len(keys))
        for s, v in views.items()
    }
    first = {table: source for source, table in reversed(table_index.items())}
    targets = {table_index[s] for s in views if s.ref.targets}
    tables = [table_of(views[first[i]], is_sample=i in targets) for i in range(len(keys))]
    links = links_of(meetings, tables, table_index)
    rows, leads = dict(views), dict[Source, Source]()
    for sources in _connected(meetings):
        numbers = list(dict.fromkeys(table_index[s] for s in sources))
        position = {number: i for i, number in enumerate(numbers)}
        own_links = [
            x._replace(tables=(position[x.tables[0]], position[x.tables[1]]))
            for x in links
            if x.tables[0] in position
        ]
        joined = join([tables[i] for i in numbers], own_links, who=who)
        for s in sources:
            row_numbers, view = joined.rows[position[table_index[s]]], views[s]
            if not np.array_equal(row_numbers, np.arange(len(view))):
                rows[s] = view.take(row_numbers, label=view.label)
        leads |= dict.fromkeys(sources, first[numbers[joined.lead]])
    return rows, leads


def _connected(meetings: Sequence[Meeting]) -> list[list[Source]]:
    """Group inputs that are combined, directly or through others."""
    groups: list[list[Source]] = []
    for meeting in meetings:
        overlapping = [group for group in groups if not set(group).isdisjoint(meeting.sources)]
        groups = [group for group in groups if group not in overlapping]
        joined = [s for group in overlapping for s in group]
        groups.append(list(dict.fromkeys([*joined, *meeting.sources])))
    return groups


def _one_sampler(
    meetings: Sequence[Meeting], bindings: Mapping[Source, InputBinding], source: Source, phase: str
) -> BaseSampler | None:
    """Return the one sampler of combined inputs; refuse several."""
    connected = next(sources for sources in _connected(meetings) if source in sources)
    samplers = [sampler for s in connected if (sampler := bindings[s].sampler) is not None]
    if other := next((s for s in samplers[1:] if s is not samplers[0] and s != samplers[0]), None):
        labels = list(dict.fromkeys(s.ref.node_label for s in connected))
        raise ConfigError(
            f"phase {phase!r} combines rows of {labels}, but reads them through two samplers, "
            f"which make different batches: {samplers[0]!r} and {other!r}. Give all of these "
            "inputs one sampler"
        )
    return samplers[0] if samplers else None


def binding_for(
    bindings: Sequence[InputBinding], node: GraphNode, ref: FeatureSetReference, phase: str
) -> InputBinding:
    """Return the binding of a head node's input; GraphError if there is none."""
    for binding in bindings:
        upstream = binding.upstream_ref
        is_upstream = upstream.node_id == ref.node_id or upstream.node_label == ref.node_label
        if is_upstream and binding.node_id in (node.node_id, node.label):
            return binding
    raise GraphError(
        f"phase {phase!r} has no input for head node {node.label!r} from {ref.node_label!r}; add "
        "an InputBinding for it to input_sources. A phase belongs to the experiment that was "
        "active when it was made: make it within `with experiment.ctx.activate():`"
    )


def roles_of(bindings: Sequence[InputBinding | Bound]) -> tuple[str, ...]:
    """Return the roles of the samplers; ConfigError if they differ."""
    streams = ((b.sampler, b.stream) for b in bindings)
    roles = {s.roles if s and stream == DEFAULT else (DEFAULT,) for s, stream in streams}
    if len(roles) > 1:
        raise ConfigError(f"all samplers of a phase must give the same roles, got {sorted(roles)}")
    return next(iter(roles), (DEFAULT,))


def _edge(node: GraphNode, upstream: Any) -> FeatureSetReference:
    """Return the one input of a node that comes from a FeatureSet."""
    refs = node.feature_refs
    if not refs:
        raise GraphError(
            f"node {node.label!r} is not a head node: it does not read from a FeatureSet"
        )
    if upstream is None:
        if len(refs) > 1:
            raise GraphError(
                f"node {node.label!r} reads from {[r.node_label for r in refs]}; name one with "
                "upstream="
            )
        return refs[0]
    name = upstream.label if isinstance(upstream, FeatureSet) else str(upstream)
    for ref in refs:
        if (
            name in (ref.node_label, ref.node_id)
            or getattr(upstream, "node_id", None) == ref.node_id
        ):
            return ref
    raise UnknownNameError(f"FeatureSet of node {node.label!r}", name, [r.node_label for r in refs])
