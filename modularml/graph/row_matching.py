"""Row matching: where rows of several FeatureSets are combined, and by which keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow.compute as pc

from modularml.data.batch import DEFAULT_ROLE, Batch, BatchView, RoleData
from modularml.data.lineage import Source
from modularml.data.references import FeatureSetReference
from modularml.data.schema import POSITION
from modularml.data.table_join import Key, Link, Table, link_by, link_same, table_of
from modularml.data.view import FeatureSetView
from modularml.errors import DataError
from modularml.graph.lineage import lineages_of, resolve_id, source_columns_of
from modularml.graph.node import ComputeNode
from modularml.training import AppliedLoss


@dataclass(frozen=True)
class Meeting:
    """Inputs whose rows are combined.

    Parameters
    ----------
    who : str
        Name of the node, loss or sampler that combines them.
    branches : tuple of tuple of Source
        Sources of each input.
    align_on : str or list of str, optional
        Key columns that match the rows; None leaves this to the references.
    strict : bool
        Whether a row without a match is an error.
    """

    who: str
    branches: tuple[tuple[Source, ...], ...]
    align_on: Key = None
    strict: bool = False

    @property
    def sources(self) -> list[Source]:
        """All sources, each once."""
        return list(dict.fromkeys(s for branch in self.branches for s in branch))


def meetings_of(nodes: Sequence[ComputeNode], losses: Iterable[AppliedLoss]) -> list[Meeting]:
    """Return the nodes and losses that combine rows of several sources."""
    lineages = lineages_of(nodes)
    ids = {name: n.node_id for n in nodes for name in (n.node_id, n.label)}

    def sources_of(node_id: str) -> tuple[Source, ...]:
        return tuple(leaf.source for leaf in source_columns_of(lineages[node_id, "features"]))

    meetings = []
    for node in nodes:
        branches = [
            (Source(node.node_id, ref),)
            if isinstance(ref, FeatureSetReference)
            else sources_of(resolve_id(ref))
            for ref in node.upstream_refs
        ]
        key, strict = getattr(node, "align_on", None), getattr(node, "strict", False)
        meetings.append(Meeting(f"node {node.label!r}", tuple(branches), key, strict))
    for applied in losses:
        names = dict.fromkeys([applied.on, *(i.node for i in applied.parsed if i.node)])
        branches = [sources_of(ids[name]) for name in names if name in ids]
        meetings.append(Meeting(f"loss {applied.label!r}", tuple(branches)))
    return [m for m in meetings if len(m.sources) > 1]


def links_of(
    meetings: Sequence[Meeting], tables: Sequence[Table], table_of: Mapping[Source, int]
) -> list[Link]:
    """Return the links between tables that are combined.

    Keys of samplers and merge nodes take precedence over those of references; without either, two
    tables must hold the same samples.

    Parameters
    ----------
    meetings : sequence of Meeting
    tables : sequence of Table
    of : mapping of Source to int
        Index of the table that each source reads.

    Raises
    ------
    DataError
        If no key relates the rows.
    """
    links: list[Link] = []
    group = list(range(len(tables)))  # connected tables share a number

    def connect(link: Link) -> None:
        links.append(link)
        one, other = (group[i] for i in link.tables)
        group[:] = [other if number == one else number for number in group]

    for meeting in (m for m in meetings if m.align_on is not None):
        first, *others = dict.fromkeys(_with_key(meeting, tables, table_of))
        for other in others:
            on = meeting.align_on, meeting.align_on
            connect(link_by(tables, (first, other), on, strict=meeting.strict))
    unaligned = [_KeyedMeeting(m, tables, table_of) for m in meetings if m.align_on is None]
    for keyed in unaligned:
        for pair, keys in keyed.pairs():
            if group[pair[0]] != group[pair[1]]:
                connect(link_by(tables, pair, keys, strict=keyed.strict))
    for keyed in unaligned:
        # the first of those tables that are connected, in order
        first, *others = list({group[i]: i for i in reversed(keyed.tables)}.values())[::-1]
        for other in others:
            pair = first, other
            if (both := keyed.keys_of(pair)) is not None:
                connect(link_by(tables, pair, both, strict=keyed.strict))
            elif (link := link_same(tables, pair)) is not None:
                connect(link)
            else:
                raise keyed.unrelated(pair)
    return links


class _KeyedMeeting:
    """A meeting whose keys are named by its references."""

    def __init__(
        self, meeting: Meeting, tables: Sequence[Table], table_of: Mapping[Source, int]
    ) -> None:
        self.meeting, self._all = meeting, tables
        self.tables = list(dict.fromkeys(table_of[s] for s in meeting.sources))
        self.on: dict[int, list[Key]] = {i: [] for i in self.tables}
        for source in meeting.sources:
            if source.ref.on is not None and source.ref.on not in self.on[table_of[source]]:
                self.on[table_of[source]].append(source.ref.on)
        self.strict = any(s.ref.strict for s in meeting.sources)

    def pairs(self) -> Iterable[tuple[tuple[int, int], tuple[Key, Key]]]:
        """Iterate over pairs of tables with a shared key, those by position last."""
        pairs = combinations(self.tables, 2)
        keyed = [(pair, on) for pair in pairs for i in pair for on in self.on[i]]
        for pair, on in sorted(keyed, key=lambda item: item[1] == POSITION):
            if on == POSITION or all(self._all[i].has(on) for i in pair):
                yield pair, (on, on)

    def keys_of(self, pair: tuple[int, int]) -> tuple[Key, Key] | None:
        """Return the keys of two tables if each has one, under different names."""
        keys_of_each = [[on for on in self.on[i] if self._all[i].has(on)] for i in pair]
        if len(self.tables) == 2 and all(len(keys) == 1 for keys in keys_of_each):
            return keys_of_each[0][0], keys_of_each[1][0]
        return None

    def unrelated(self, pair: tuple[int, int]) -> DataError:
        """Return the error that no key relates two tables."""
        a, b = (self._all[i] for i in pair)
        keys = {f"{on!r} of {self._all[i].label!r}" for i in self.tables for on in self.on[i]}
        hint = f" (the references name {', '.join(sorted(keys))}, which only one of them has)"
        return DataError(
            f"{self.meeting.who} combines rows of {a.label!r} ({a.n}) and {b.label!r} ({b.n}), "
            f"which are not the same samples, and no key relates them{hint if keys else ''}. Name "
            "the key column: fs.reference(..., on='machine'), or align_on='machine' of the node "
            "that combines them, such as ConcatNode(..., align_on='machine'); "
            "align_on='position' pairs them row by row"
        )


def check_side_by_side(meetings: Sequence[Meeting], inputs: Mapping[Source, Any]) -> None:
    """Refuse rows passed directly to a step that do not match.

    Parameters
    ----------
    meetings : sequence of Meeting
    inputs : mapping of Source to object
        Batches, batch views and samples; those without sample ids are not checked.

    Raises
    ------
    DataError
        With the first row that does not match, or the missing key.
    """
    views: dict[Source, dict[str, FeatureSetView]] = {}  # by role, as far as ids identify rows
    for source, value in inputs.items():
        if isinstance(value, BatchView):
            views[source] = {role: value.view(role) for role in value.roles}
            continue
        data = value.role_data if isinstance(value, Batch) else value
        samples = data if isinstance(data, RoleData) else {DEFAULT_ROLE: data}
        ids = {r: getattr(own, "sample_uuids", None) for r, own in samples.items()}
        fs = source.ref.resolve()
        views[source] = {r: fs.take_sample_uuids(i) for r, i in ids.items() if i is not None}
    for role in dict.fromkeys(role for by_role in views.values() for role in by_role):
        of_role = {s: by_role[role] for s, by_role in views.items() if role in by_role}
        restricted = []
        for meeting in meetings:
            branches = (tuple(s for s in branch if s in of_role) for branch in meeting.branches)
            restricted.append(replace(meeting, branches=tuple(filter(None, branches))))
        _check_rows([m for m in restricted if len(m.sources) > 1], of_role)


def _check_rows(meetings: Sequence[Meeting], views: Mapping[Source, FeatureSetView]) -> None:
    keys: dict[Any, int] = {}
    table_of_source = {
        s: keys.setdefault((v.source.node_id, v.indices.tobytes()), len(keys))
        for s, v in views.items()
    }
    first = {table: views[source] for source, table in reversed(table_of_source.items())}
    tables = [table_of(first[i]) for i in range(len(keys))]
    for link in links_of(meetings, tables, table_of_source):
        left, right = link.keys
        n = min(len(left), len(right))
        same = pc.fill_null(pc.equal(left[:n], right[:n]), False).to_numpy(zero_copy_only=False)
        if len(left) == len(right) and same.all():
            continue
        row = int(np.argmin([*same, False]))
        a, b = (tables[i].label for i in link.tables)
        raise DataError(
            f"rows of {a!r} ({len(left)}) and {b!r} ({len(right)}) do not match by {link.on}; "
            f"the first mismatch is row {row}. Pass them in the same order, as a phase's "
            "iter_execution() does, or set align_on='position'"
        )


def _with_key(
    meeting: Meeting, tables: Sequence[Table], table_of: Mapping[Source, int]
) -> list[int]:
    """Return the first table with the key, for each branch."""
    chosen = []
    for branch in meeting.branches:
        candidates = list(dict.fromkeys(table_of[s] for s in branch))
        key = meeting.align_on
        with_key = candidates if key == POSITION else [i for i in candidates if tables[i].has(key)]
        if not with_key:
            raise DataError(
                f"{meeting.who} aligns rows on {key!r}, but "
                f"{[tables[i].label for i in candidates]} has no such column; add it, or set the "
                "key with fs.reference(on=...)"
            )
        chosen.append(with_key[0])
    return chosen
