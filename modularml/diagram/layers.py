"""Which layer each node stands in, what else stands there, and in what order.

Nodes are put in layers by their longest path from a source. An edge that passes a layer
without ending there holds a place in it, and so does a label, in a layer of its own.
Then items are ordered so that few edges cross.

After Sugiyama, Tagawa & Toda 1981, *Methods for visual understanding of hierarchical
system structures*, IEEE Trans. SMC 11(2).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

__all__ = ["Item", "Link", "Tie", "join", "number_layers", "order", "ranks"]

SWEEPS = 8


class Link(NamedTuple):
    """An edge as the layout sees it: two names, and the size of its label in pixels."""

    source: str
    target: str
    label: tuple[float, float] = (0.0, 0.0)


@dataclass(eq=False)
class Item:
    """What holds a place in a layer: a box, a label, or an edge that passes.

    ``depth`` is its size along the edges, ``span`` across them. ``at`` is where edges
    meet it, across them too; it reaches back from there by ``line``.
    """

    layer: int
    depth: float = 0.0
    span: float = 0.0
    line: float = 0.0
    is_box: bool = False
    at: float = 0.0
    before: list[Tie] = field(default_factory=list, repr=False)
    after: list[Tie] = field(default_factory=list, repr=False)


@dataclass(eq=False)
class Tie:
    """A piece of an edge between neighbouring layers.

    It leaves ``one`` and meets ``two`` as far from their ``at`` as the ports say.
    """

    one: Item
    two: Item
    weight: float
    ports: list[float] = field(default_factory=lambda: [0.0, 0.0])

    @property
    def bend(self) -> float:
        """How far ``two`` stands from where the tie would be straight."""
        return self.two.at + self.ports[1] - self.one.at - self.ports[0]


def ranks(names: Iterable[str], links: Sequence[Link]) -> dict[str, int]:
    """Give each name the length of the longest path that leads to it."""
    path = _forward(names, links)
    place = {name: i for i, name in enumerate(path)}
    after = defaultdict(list)
    for link in links:
        low, high = sorted((link.source, link.target), key=place.__getitem__)
        after[low].append(high)
    longest = dict.fromkeys(path, 0)
    for name in path:
        for target in after[name]:
            longest[target] = max(longest[target], longest[name] + 1)
    return longest


def _forward(names: Iterable[str], links: Sequence[Link]) -> list[str]:
    """Order names so that links point forward, but for those that close a cycle."""
    waits = dict.fromkeys(names, 0)
    after = defaultdict(list)
    for link in links:
        waits[link.target] += 1
        after[link.source].append(link.target)
    ready = deque(n for n, count in waits.items() if not count)
    order = []
    while waits:
        name = ready.popleft() if ready else next(iter(waits))
        order.append(name)
        del waits[name]
        for target in after[name]:
            if target in waits:
                waits[target] -= 1
                if not waits[target]:
                    ready.append(target)
    return order


def number_layers(
    rank: Mapping[str, int], links: Sequence[Link]
) -> tuple[dict[str, int], list[int]]:
    """Say in which layer each node stands, and the label of each link (0 for none).

    Labels stand half way along their edges, in layers put in between where needed.
    """
    gaps = [(rank[link.source] + rank[link.target] - 1) // 2 for link in links]
    used = sorted({gap for gap, link in zip(gaps, links, strict=True) if link.label[0]})
    labels = [
        gap + bisect_left(used, gap) + 1 if link.label[0] else 0
        for gap, link in zip(gaps, links, strict=True)
    ]
    return {name: place + bisect_left(used, place) for name, place in rank.items()}, labels


def join(low: Item, high: Item, label: Item | None) -> list[Tie]:
    """Join two boxes through every layer between them.

    Ties are the stronger the longer an edge runs free of boxes, with the weights of Gansner
    et al. 1993, *A technique for drawing directed graphs*, IEEE Trans. Softw. Eng. 19(3).
    """
    items = [low, *(Item(at) for at in range(low.layer + 1, high.layer)), high]
    if label:
        items[label.layer - low.layer] = label
    chain = [Tie(a, b, (8.0, 2.0, 1.0)[a.is_box + b.is_box]) for a, b in pairwise(items)]
    for tie in chain:
        tie.one.after.append(tie)
        tie.two.before.append(tie)
    return chain


def order(layers: list[list[Item]]) -> None:
    """Order the items of each layer by barycentre sweeps; keep the fewest crossings."""
    for items in layers:
        _number(items)
    best, fewest = [list(items) for items in layers], _crossings(layers)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for items in layers if down else layers[::-1]:
            items.sort(key=lambda item: _barycentre(item, down))
            _number(items)
        if (count := _crossings(layers)) < fewest:
            best, fewest = [list(items) for items in layers], count
    layers[:] = best
    for items in layers:
        _number(items)


def _number(items: Sequence[Item]) -> None:
    """Put items at 0, 1, 2, ... in their order."""
    for i, item in enumerate(items):
        item.at = float(i)


def _barycentre(item: Item, down: bool) -> float:
    """Return the middle of the neighbours on one side, or its own place if none."""
    others = [tie.one.at for tie in item.before] if down else [tie.two.at for tie in item.after]
    return sum(others) / len(others) if others else item.at


def _crossings(layers: Sequence[Sequence[Item]]) -> int:
    """Count the pairs of edges that cross between neighbouring layers."""
    total = 0
    for items in layers:
        seen: list[float] = []
        for _, end in sorted((item.at, tie.two.at) for item in items for tie in item.after):
            total += len(seen) - bisect_right(seen, end)
            insort(seen, end)
    return total
