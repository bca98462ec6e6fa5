"""Where rows of several FeatureSets meet, and by what they belong together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from modularml.data.execution import Source
from modularml.data.joining import Key, Link, Table, link_by, link_same
from modularml.data.references import FeatureSetReference
from modularml.data.schema import POSITION
from modularml.errors import DataError
from modularml.graph.flows import flows_of, leaves, resolve_id
from modularml.graph.node import ComputeNode
from modularml.training import AppliedLoss

__all__ = ["Meeting", "links_of", "meetings_of"]


@dataclass(frozen=True)
class Meeting:
    """Inputs whose rows are put side by side.

    Parameters
    ----------
    who : str
        The node, loss or sampler that does it.
    branches : tuple of tuple of Source
        What each input reads.
    align_on : str or list of str, optional
        Column by which they belong together; where it is None the references say so.
    strict : bool
        Whether a row without a partner is refused.
    """

    who: str
    branches: tuple[tuple[Source, ...], ...]
    align_on: Key = None
    strict: bool = False

    @property
    def sources(self) -> list[Source]:
        """All of them, each once."""
        return list(dict.fromkeys(s for branch in self.branches for s in branch))


def meetings_of(nodes: Sequence[ComputeNode], losses: Iterable[AppliedLoss]) -> list[Meeting]:
    """Return where rows of several edges meet: in nodes of several inputs, and in losses."""
    flows = flows_of(nodes)
    ids = {name: n.node_id for n in nodes for name in (n.node_id, n.label)}

    def behind(node_id: str) -> tuple[Source, ...]:
        return tuple(leaf.source for leaf in leaves(flows[node_id, "features"]))

    found = []
    for node in nodes:
        branches = [
            (Source(node.node_id, ref),)
            if isinstance(ref, FeatureSetReference)
            else behind(resolve_id(ref))
            for ref in node.upstream_refs
        ]
        on, strict = getattr(node, "align_on", None), getattr(node, "strict", False)
        found.append(Meeting(f"node {node.label!r}", tuple(branches), on, strict))
    for applied in losses:
        read = dict.fromkeys([applied.on, *(i.node for i in applied.parsed if i.node)])
        branches = [behind(ids[name]) for name in read if name in ids]
        found.append(Meeting(f"loss {applied.label!r}", tuple(branches)))
    return [m for m in found if len(m.sources) > 1]


def links_of(
    meetings: Sequence[Meeting], tables: Sequence[Table], of: Mapping[Source, int]
) -> list[Link]:
    """Return what relates the tables that meet.

    Keys of samplers and merge nodes come first, then those of references; where neither is given,
    two tables must hold the same samples.

    Parameters
    ----------
    meetings : sequence of Meeting
    tables : sequence of Table
    of : mapping of Source to int
        Which table each source reads.

    Raises
    ------
    DataError
        If nothing tells which rows belong together.
    """
    web = _Web(tables)
    for meeting in meetings:
        if (on := meeting.align_on) is not None:
            chosen = _with_key(meeting, tables, of)
            for other in dict.fromkeys(chosen[1:]):
                if other != chosen[0]:
                    pair = chosen[0], other
                    web.add(link_by(tables, pair, (on, on), strict=meeting.strict))
    named = [_Named(m, tables, of) for m in meetings if m.align_on is None]
    for own in named:
        for pair, keys in own.pairs():
            if web.group(pair[0]) != web.group(pair[1]):
                web.add(link_by(tables, pair, keys, strict=own.strict))
    for own in named:
        first, *others = web.apart(own.tables)
        for other in others:
            pair = first, other
            if (both := own.keys_of(pair)) is not None:
                web.add(link_by(tables, pair, both, strict=own.strict))
            elif (link := link_same(tables, pair)) is not None:
                web.add(link)
            else:
                raise own.unrelated(pair)
    return web.links


class _Web:
    """Links, and which tables they connect."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.links: list[Link] = []
        self._root = list(range(len(tables)))

    def group(self, i: int) -> int:
        """Return a number that connected tables share."""
        while self._root[i] != i:
            i = self._root[i]
        return i

    def add(self, link: Link) -> None:
        """Connect two tables."""
        self.links.append(link)
        self._root[self.group(link.tables[0])] = self.group(link.tables[1])

    def apart(self, tables: Sequence[int]) -> list[int]:
        """Return the first of those tables that are connected, in order."""
        return list({self.group(i): i for i in reversed(tables)}.values())[::-1]


class _Named:
    """A meeting whose references name the keys, as far as they do."""

    def __init__(self, meeting: Meeting, tables: Sequence[Table], of: Mapping[Source, int]) -> None:
        self.meeting, self._all = meeting, tables
        self.tables = list(dict.fromkeys(of[s] for s in meeting.sources))
        self.on: dict[int, list[Key]] = {i: [] for i in self.tables}
        for source in meeting.sources:
            if source.ref.on is not None and source.ref.on not in self.on[of[source]]:
                self.on[of[source]].append(source.ref.on)
        self.strict = any(s.ref.strict for s in meeting.sources)

    def pairs(self) -> Iterable[tuple[tuple[int, int], tuple[Key, Key]]]:
        """Iterate over pairs that share a key of one of them, those by position last."""
        both = [(a, b) for at, a in enumerate(self.tables) for b in self.tables[at + 1 :]]
        asked = [(pair, on) for pair in both for i in pair for on in self.on[i]]
        for pair, on in sorted(asked, key=lambda item: item[1] == POSITION):
            if on == POSITION or all(self._all[i].has(on) for i in pair):
                yield pair, (on, on)

    def keys_of(self, pair: tuple[int, int]) -> tuple[Key, Key] | None:
        """Return the keys of two tables alone, of unlike names, where each has one."""
        own = [[on for on in self.on[i] if self._all[i].has(on)] for i in pair]
        if len(self.tables) == 2 and all(len(keys) == 1 for keys in own):
            return own[0][0], own[1][0]
        return None

    def unrelated(self, pair: tuple[int, int]) -> DataError:
        """Return the error that says what is missing."""
        a, b = (self._all[i] for i in pair)
        keys = {f"{on!r} of {self._all[i].label!r}" for i in self.tables for on in self.on[i]}
        known = f" (the references name {', '.join(sorted(keys))}, which not both have)"
        return DataError(
            f"{self.meeting.who} puts rows of {a.label!r} ({a.n}) and {b.label!r} ({b.n}) side by "
            "side, which are not the same samples, and nothing says which of them belong together"
            f"{known if keys else ''}. Name the column that relates them: "
            "fs.reference(..., on='machine'), or align_on='machine' of the node where they meet, "
            "such as ConcatNode(..., align_on='machine'); align_on='position' pairs them row by row"
        )


def _with_key(meeting: Meeting, tables: Sequence[Table], of: Mapping[Source, int]) -> list[int]:
    """Return of each branch the first table that has the key."""
    found = []
    for branch in meeting.branches:
        own = list(dict.fromkeys(of[s] for s in branch))
        on = meeting.align_on
        having = own if on == POSITION else [i for i in own if tables[i].has(on)]
        if not having:
            raise DataError(
                f"{meeting.who} shall align rows on {on!r}, and "
                f"{[tables[i].label for i in own]} has no such column; add it, or relate the sets "
                "with fs.reference(on=...)"
            )
        found.append(having[0])
    return found
