"""Where rows of several FeatureSets meet, and by what they belong together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from modularml.data.batch import DEFAULT_ROLE, Batch, BatchView, RoleData
from modularml.data.joining import Key, Link, Table, link_by, link_same, table_of
from modularml.data.lineage import Source
from modularml.data.references import FeatureSetReference
from modularml.data.schema import POSITION
from modularml.data.view import FeatureSetView
from modularml.errors import DataError
from modularml.graph.lineage import lineages_of, resolve_id, source_columns_of
from modularml.graph.node import ComputeNode
from modularml.training import AppliedLoss

__all__ = ["Meeting", "check_side_by_side", "links_of", "meetings_of"]


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
    lineages = lineages_of(nodes)
    ids = {name: n.node_id for n in nodes for name in (n.node_id, n.label)}

    def behind(node_id: str) -> tuple[Source, ...]:
        return tuple(leaf.source for leaf in source_columns_of(lineages[node_id, "features"]))

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


def check_side_by_side(meetings: Sequence[Meeting], inputs: Mapping[Source, Any]) -> None:
    """Refuse rows given by hand that stand side by side and do not belong together.

    Parameters
    ----------
    meetings : sequence of Meeting
    inputs : mapping of Source to object
        Batches, views of batches and samples; those that have no sample ids are not looked at.

    Raises
    ------
    DataError
        With the first row that does not fit, or with what is missing to tell.
    """
    views = {s: found for s, given in inputs.items() if (found := _views(s, given))}
    for role in dict.fromkeys(role for own in views.values() for role in own):
        own = {s: found[role] for s, found in views.items() if role in found}
        known = []
        for meeting in meetings:
            branches = (tuple(s for s in branch if s in own) for branch in meeting.branches)
            known.append(replace(meeting, branches=tuple(filter(None, branches))))
        _check_rows([m for m in known if len(m.sources) > 1], own)


def _views(source: Source, given: Any) -> dict[str, FeatureSetView]:
    """Return the rows that an input holds, by role, as far as their sample ids tell."""
    if isinstance(given, BatchView):
        return {role: given.view(role) for role in given.roles}
    data = given.role_data if isinstance(given, Batch) else given
    samples = data if isinstance(data, RoleData) else {DEFAULT_ROLE: data}
    ids = {r: getattr(own, "sample_uuids", None) for r, own in samples.items()}
    fs = source.ref.resolve()
    return {r: fs.take_sample_uuids(own) for r, own in ids.items() if own is not None}


def _check_rows(meetings: Sequence[Meeting], views: Mapping[Source, FeatureSetView]) -> None:
    keys: dict[Any, int] = {}
    of = {
        s: keys.setdefault((v.source.node_id, v.indices.tobytes()), len(keys))
        for s, v in views.items()
    }
    first = {table: views[source] for source, table in reversed(of.items())}
    tables = [table_of(first[i]) for i in range(len(keys))]
    for link in links_of(meetings, tables, of):
        mine, theirs = link.keys
        n = min(len(mine), len(theirs))
        same = pc.fill_null(pc.equal(mine[:n], theirs[:n]), False).to_numpy(zero_copy_only=False)
        if len(mine) == len(theirs) and same.all():
            continue
        row = int(np.argmin([*same, False]))
        a, b = (tables[i].label for i in link.tables)
        raise DataError(
            f"rows of {a!r} ({len(mine)}) and {b!r} ({len(theirs)}) were given side by side that "
            f"do not belong together by {link.on}: row {row} is the first. Take them in one order, "
            "as a phase's iter_execution() does, or say align_on='position'"
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
