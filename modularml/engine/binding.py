"""Which rows feed which head node, and through which sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np

from modularml.config import Configurable
from modularml.context import ExperimentContext
from modularml.data import FeatureSet, FeatureSetView
from modularml.data.batch import BatchView
from modularml.data.joining import join, table_of
from modularml.data.lineage import Source
from modularml.data.references import FeatureSetReference
from modularml.errors import ConfigError, GraphError, SplitError, UnknownNameError, expect
from modularml.graph.model_graph import ModelGraph
from modularml.graph.node import ComputeNode, GraphNode
from modularml.graph.relations import Meeting, links_of, meetings_of
from modularml.samplers import BaseSampler, SimpleSampler
from modularml.samplers.base import batch_views
from modularml.samplers.epoch import DEFAULT
from modularml.training import AppliedLoss

__all__ = ["Bound", "InputBinding", "bind", "binding_for", "roles_of"]


@dataclass(frozen=True)
class InputBinding(Configurable):
    """Rows of a FeatureSet, bound to an edge into a head node for one phase.

    Parameters
    ----------
    node_id : str
        Id or label of the head node.
    upstream_ref : FeatureSetReference
        Which of the node's inputs.
    split : str, optional
        Rows of this split alone.
    sampler : BaseSampler, optional
        Makes the batches.
    stream : str
        Which of the sampler's streams: ``"default"`` gives every role; the name of a role gives
        its rows alone, as the default role, so that one head node reads anchors and another pairs.
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
            Which FeatureSet; None where the node reads only one.
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
        return cls._made(node, upstream, split, sampler, stream)

    @classmethod
    def for_evaluation(
        cls,
        *,
        node: GraphNode | str,
        upstream: FeatureSet | FeatureSetView | str | None,
        split: str | None = None,
    ) -> InputBinding:
        """Bind an input without a sampler: every row once, in order; see `for_training`."""
        return cls._made(node, upstream, split, None, DEFAULT)

    @classmethod
    def _made(
        cls, node: Any, upstream: Any, split: str | None, sampler: BaseSampler | None, stream: str
    ) -> InputBinding:
        found = node if isinstance(node, GraphNode) else _graph_node(node)
        if isinstance(upstream, FeatureSetView):
            split = split or _split_of(upstream)
            upstream = upstream.source
        ref = _edge(found, upstream)
        binding = cls(found.node_id, ref, split, sampler, stream)
        if split is not None:
            ref.resolve(found.context).get_split(split)
        return binding

    def get_config(self) -> dict[str, Any]:
        """Return the fields as plain data; the node goes by its label."""
        config = super().get_config()
        ctx = ExperimentContext.get_active()
        if ctx.has_node(node_id=self.node_id):
            config["node_id"] = ctx.get_node(node_id=self.node_id).label
        return config

    def resolve_input_view(self) -> FeatureSetView:
        """Return the rows that are bound, in the active context.

        Raises
        ------
        SplitError
            If there are none.
        """
        fs: FeatureSet = self.upstream_ref.resolve()
        view = fs.to_view() if self.split is None else fs.get_split(self.split)
        if not len(view):
            raise SplitError(
                f"split {self.split!r} of {fs.label!r} is empty; there is nothing to feed"
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
        Bindings with equal numbers are read row by row together; the one that leads comes first.
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
    """Resolve bindings in the active context: one for each edge into a head node that runs.

    Rows of several FeatureSets that meet in a node or a loss are brought side by side, by the key
    of their sampler, merge node or references; edges keep the key of a sampler from then on.

    Parameters
    ----------
    bindings : sequence of InputBinding
    graph : ModelGraph
    nodes : sequence of ComputeNode
        Those that run.
    losses : sequence of AppliedLoss
    batch_size : int or None
        Where a binding has no sampler; None takes all rows at once.
    phase : str
        Label, for messages.

    Raises
    ------
    GraphError
        If an edge into a head node has no binding.
    DataError
        If nothing tells which rows belong together, or they cannot be joined.
    ConfigError
        If inputs that meet are read through samplers that make different batches.
    """
    edges = [Source(node.node_id, ref) for node in nodes for ref in node.feature_refs]
    by_id = {node.node_id: node for node in nodes}
    own = {s: binding_for(bindings, by_id[s.node_id], s.ref, phase) for s in edges}
    views = {source: binding.resolve_input_view() for source, binding in own.items()}
    asked = [a for a in losses if graph.get_node(a.on) in nodes]
    found = [*keep_keys(graph, own), *meetings_of(nodes, asked)]
    rows, leads = _side_by_side(found, views, f"phase {phase!r}: ")
    groups: dict[Any, int] = {}
    bound: list[Bound] = []
    for source in sorted(edges, key=lambda s: leads.get(s, s) != s):
        view, binding = rows[source], own[source]
        key: Any = leads.get(source) or (id(binding.sampler), view.source.node_id, binding.split)
        group = groups.setdefault(key, len(groups))
        first = next((b.sampler for b in bound if b.group == group), None)
        given = binding.sampler if source not in leads else _one_sampler(found, own, source, phase)
        sampler = first or given or SimpleSampler(batch_size=batch_size or len(view), seed=0)
        drawn = source not in leads or all(table_of(view).has(n) for n in sampler.reads())
        bound.append(Bound(source, view, sampler, group, binding.stream, drawn))
    return bound


def keep_keys(graph: ModelGraph, own: Mapping[Source, InputBinding]) -> list[Meeting]:
    """Return what samplers align, and let the edges keep the key where they have none.

    So evaluations, folds, files and predictions relate rows as the training does.

    Raises
    ------
    UnknownNameError
        If a FeatureSet lacks the column.
    """
    fed: dict[int, list[Source]] = {}
    for source, binding in own.items():
        if binding.sampler is not None and binding.sampler.align_on is not None:
            fed.setdefault(id(binding.sampler), []).append(source)
    found = [
        Meeting(type(sampler).__name__, tuple((s,) for s in sources), sampler.align_on)
        for sources in fed.values()
        if (sampler := own[sources[0]].sampler) is not None
        and len({s.ref.resolve() for s in sources}) > 1
    ]
    for meeting in found:
        keys = {s: s.ref.resolve()._key(meeting.align_on) for s in meeting.sources}
        for source, key in keys.items():
            graph.get_node(source.node_id).relate(source.ref, key)
    return found


def _side_by_side(
    meetings: Sequence[Meeting],
    views: Mapping[Source, FeatureSetView],
    who: str,
) -> tuple[dict[Source, FeatureSetView], dict[Source, Source]]:
    """Return the rows of each input, joined where they meet, and of these which one leads."""
    keys: dict[Any, int] = {}
    of = {
        s: keys.setdefault((v.source.node_id, v.indices.tobytes()), len(keys))
        for s, v in views.items()
    }
    first = {table: source for source, table in reversed(of.items())}
    targets = {of[s] for s in views if s.ref.targets}
    tables = [table_of(views[first[i]], is_sample=i in targets) for i in range(len(keys))]
    links = links_of(meetings, tables, of)
    rows, leads = dict(views), dict[Source, Source]()
    for sources in _together(meetings):
        numbers = list(dict.fromkeys(of[s] for s in sources))
        place = {number: i for i, number in enumerate(numbers)}
        mine = [
            x._replace(tables=(place[x.tables[0]], place[x.tables[1]]))
            for x in links
            if x.tables[0] in place
        ]
        joined = join([tables[i] for i in numbers], mine, who=who)
        for s in sources:
            found, view = joined.rows[place[of[s]]], views[s]
            if not np.array_equal(found, np.arange(len(view))):
                rows[s] = view.take(found, label=view.label)
        leads |= dict.fromkeys(sources, first[numbers[joined.lead]])
    return rows, leads


def _together(meetings: Sequence[Meeting]) -> list[list[Source]]:
    """Return inputs in lists of those that meet, directly or through others."""
    found: list[list[Source]] = []
    for meeting in meetings:
        mine = [own for own in found if not set(own).isdisjoint(meeting.sources)]
        found = [own for own in found if own not in mine]
        joined = [s for own in mine for s in own]
        found.append(list(dict.fromkeys([*joined, *meeting.sources])))
    return found


def _one_sampler(
    meetings: Sequence[Meeting], own: Mapping[Source, InputBinding], source: Source, phase: str
) -> BaseSampler | None:
    """Return the sampler of inputs that meet, after checking that there is only one."""
    meet = next(sources for sources in _together(meetings) if source in sources)
    given = [sampler for s in meet if (sampler := own[s].sampler) is not None]
    if other := next((s for s in given[1:] if s is not given[0] and s != given[0]), None):
        labels = list(dict.fromkeys(s.ref.node_label for s in meet))
        raise ConfigError(
            f"phase {phase!r} puts rows of {labels} side by side, and reads them through two "
            f"samplers, which make different batches: {given[0]!r} and {other!r}. Give all of "
            "these inputs one sampler"
        )
    return given[0] if given else None


def binding_for(
    bindings: Sequence[InputBinding], node: GraphNode, ref: FeatureSetReference, phase: str
) -> InputBinding:
    """Return what feeds an input of a head node; GraphError where nothing does."""
    for binding in bindings:
        if binding.node_id in (node.node_id, node.label) and _same_set(binding.upstream_ref, ref):
            return binding
    raise GraphError(
        f"phase {phase!r} has no input for head node {node.label!r} from {ref.node_label!r}; add "
        "an InputBinding for it to input_sources. A phase belongs to the experiment that was "
        "active when it was made: make it within `with experiment.ctx.activate():`"
    )


def roles_of(bindings: Sequence[InputBinding | Bound]) -> tuple[str, ...]:
    """Return the roles that samplers give; ConfigError where they differ."""
    streams = ((b.sampler, b.stream) for b in bindings)
    roles = {s.roles if s and stream == DEFAULT else (DEFAULT,) for s, stream in streams}
    if len(roles) > 1:
        raise ConfigError(f"samplers of one phase must give the same roles, got {sorted(roles)}")
    return next(iter(roles), (DEFAULT,))


def _same_set(a: FeatureSetReference, b: FeatureSetReference) -> bool:
    return a.node_id == b.node_id or a.node_label == b.node_label


def _graph_node(name: str) -> GraphNode:
    node = ExperimentContext.get_active().get_node(name)
    if not isinstance(node, GraphNode):
        raise GraphError(f"{name!r} is a {type(node).__name__}; bind a head node of the graph")
    return node


def _edge(node: GraphNode, upstream: Any) -> FeatureSetReference:
    """Return the one input of a node that comes from a FeatureSet."""
    refs = node.feature_refs
    if not refs:
        raise GraphError(f"node {node.label!r} is no head node: it reads from no FeatureSet")
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


def _split_of(view: FeatureSetView) -> str | None:
    """Return the split that a view is, None where it is all rows."""
    fs = view.source
    name = str(view.label)
    if name in fs.available_splits and np.array_equal(fs[name].indices, view.indices):
        return name
    if len(view) == len(fs):
        return None
    raise SplitError(
        f"view {view.label!r} is no split of {fs.label!r}; keep it with fs.add_split(view) first"
    )
