"""Layered layout of the boxes, labels and edges of a diagram.

Each node stands in the layer of its longest path from a source. An edge that passes a layer
holds a place in it, and so does a label, in a layer of its own; then items are ordered so that
few edges cross. What stands in one layer never overlaps and edges curve only between layers, so
no edge runs through a box or a label.

After Sugiyama, Tagawa & Toda 1981, *Methods for visual understanding of hierarchical system
structures*, IEEE Trans. SMC 11(2).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

import numpy as np

ORDER_SWEEPS, PLACE_SWEEPS = 8, 16
LAYER_GAP, ITEM_GAP, LABEL_PAD = 40.0, 20.0, 6.0


class Point(NamedTuple):
    """A position in pixels, y downwards."""

    x: float
    y: float


class Rect(NamedTuple):
    """A box in pixels: its upper left corner and its size."""

    x: float
    y: float
    width: float
    height: float


class Link(NamedTuple):
    """An edge: the names of two nodes, and the size of its label in pixels."""

    source: str
    target: str
    label: tuple[float, float] = (0.0, 0.0)


class Route(NamedTuple):
    """The route of an edge: an even number of points, and the position of its label.

    From an even point to the next one the edge curves, from an odd one it runs straight.
    """

    points: tuple[Point, ...]
    label: Rect | None


class Layout(NamedTuple):
    """A drawing: its size, one box per node, one route per link in their order."""

    width: float
    height: float
    boxes: dict[str, Rect]
    routes: list[Route]


@dataclass(eq=False)
class _Item:
    """An item in a layer: a box, a label, or an edge that passes through.

    ``depth`` is its size along the edges, ``span`` across them. ``at`` is where edges meet it,
    across them too; it reaches back from there by ``line``.
    """

    layer: int
    depth: float = 0.0
    span: float = 0.0
    line: float = 0.0
    at: float = 0.0
    before: list[_Item] = field(default_factory=list, repr=False)
    after: list[_Item] = field(default_factory=list, repr=False)


def lay_out(
    sizes: Mapping[str, tuple[float, float]],
    links: Sequence[Link],
    direction: Literal["LR", "TB"],
) -> Layout:
    """Place boxes in layers and route edges between them.

    Parameters
    ----------
    sizes : mapping of str to (width, height)
        Minimum size of each box, in pixels. A box grows to the depth of its layer.
    links : sequence of Link
        Edges between different names. One that closes a cycle is routed backwards.
    direction : {"LR", "TB"}
        Layers follow one another from left to right or from top to bottom.

    Returns
    -------
    Layout
        Boxes do not overlap one another or any label. Starts at the origin, no margin.
    """
    turned = direction == "TB"
    boxes, chains = _items(sizes, links, turned)
    layers: dict[int, list[_Item]] = defaultdict(list)
    for item in [*boxes.values(), *(item for chain in chains for item in chain[1:-1])]:
        layers[item.layer].append(item)
    rows = _ordered([layers[number] for number in sorted(layers)])
    _place(rows)
    # where each layer starts and ends; gaps with steep edges are made wider
    bands: list[tuple[float, float]] = []
    start = 0.0
    for row in rows:
        end = start + max(item.depth for item in row)
        bands.append((start, end))
        jump = max((abs(o.at - item.at) for item in row for o in item.after), default=0.0)
        start = end + LAYER_GAP + min(jump * 0.15, LAYER_GAP)
    length = max((end for _, end in bands), default=0.0)
    breadth = max((item.at - item.line + item.span for row in rows for item in row), default=0.0)
    rects = {}
    for name, box in boxes.items():
        (start, end), edge = bands[box.layer], box.at - box.line
        across = Rect(start, edge, end - start, box.span)
        rects[name] = Rect(edge, start, box.span, end - start) if turned else across
    routes = [
        _route(chain, chain[0] is boxes[link.source], link.label, bands, turned)
        for link, chain in zip(links, chains, strict=True)
    ]
    return Layout(*((breadth, length) if turned else (length, breadth)), rects, routes)


def _items(
    sizes: Mapping[str, tuple[float, float]], links: Sequence[Link], turned: bool
) -> tuple[dict[str, _Item], list[list[_Item]]]:
    """Create the items: boxes by name, and for each link the items from box to box."""
    rank = _ranks(sizes, links)
    pairs = Counter(frozenset(link[:2]) for link in links)
    gaps = [  # half way, odd: for labels, and to lead edges that join the same two boxes apart
        rank[link.source] + rank[link.target] - 1 | 1
        if link.label[0] or pairs[frozenset(link[:2])] > 1
        else 0
        for link in links
    ]
    places = sorted({2 * place for place in rank.values()} | set(filter(None, gaps)))
    layer = {place: number for number, place in enumerate(places)}
    boxes = {}
    for name, size in sizes.items():
        span, depth = size if turned else size[::-1]
        boxes[name] = _Item(layer[2 * rank[name]], depth, span, span / 2)
    chains = []
    for link, gap in zip(links, gaps, strict=True):
        low, high = sorted((boxes[link.source], boxes[link.target]), key=lambda box: box.layer)
        chain = [low, *(_Item(number) for number in range(low.layer + 1, high.layer)), high]
        if gap:
            # a label stands above its line, or right of it if layers go down
            width, height = link.label
            room = (height, width, 0.0) if turned else (width, height, height + LABEL_PAD)
            label = _Item(layer[gap], room[0] + 2 * LABEL_PAD, room[1] + LABEL_PAD, room[2])
            chain[layer[gap] - low.layer] = label
        for one, two in pairwise(chain):
            one.after.append(two)
            two.before.append(one)
        chains.append(chain)
    return boxes, chains


def _ranks(names: Iterable[str], links: Sequence[Link]) -> dict[str, int]:
    """Give each name the length of the longest path to it; cycles are cut where they close."""
    waits = Counter(link.target for link in links)
    after, beside = defaultdict(list), defaultdict(list)
    for link in links:
        after[link.source].append(link.target)
        beside[link.source].append(link.target)
        beside[link.target].append(link.source)
    rank = dict.fromkeys(names, 0)
    rest = dict.fromkeys(rank)
    ready = deque(name for name in rest if not waits[name])
    while rest:
        name = ready.popleft() if ready else next(iter(rest))
        del rest[name]
        for other in beside[name]:
            if other in rest:
                rank[other] = max(rank[other], rank[name] + 1)
        for target in after[name]:
            waits[target] -= 1
            if target in rest and not waits[target]:
                ready.append(target)
    return rank


def _ordered(rows: list[list[_Item]]) -> list[list[_Item]]:
    """Order the items of each layer by barycentre sweeps; return those with fewest crossings."""
    best, fewest = rows, float("inf")
    for sweep in range(ORDER_SWEEPS + 1):
        down = sweep % 2 == 1
        for row in rows if down else rows[::-1]:
            if sweep:
                row.sort(key=lambda item: _mean(item.before if down else item.after, item.at))
            for number, item in enumerate(row):
                item.at = float(number)
        count = 0  # pairs of edges that cross between neighbouring layers
        for row in rows:
            seen: list[float] = []
            for _, end in sorted((item.at, other.at) for item in row for other in item.after):
                count += len(seen) - bisect_right(seen, end)
                insort(seen, end)
        if count < fewest:
            best, fewest = [list(row) for row in rows], count
    return best


def _mean(others: Sequence[_Item], default: float) -> float:
    return sum(item.at for item in others) / len(others) if others else default


def _place(rows: Sequence[Sequence[_Item]]) -> None:
    """Move items towards their neighbours, as far as the items next to them allow.

    Under an order and least distances, the mean of the running maximum from one side and the
    running minimum from the other moves no item further from its target than needed.
    """
    offsets = []
    for row in rows:
        steps = (one.span - one.line + ITEM_GAP + two.line for one, two in pairwise(row))
        offsets.append(np.fromiter(accumulate(steps, initial=0.0), float, len(row)))
        for item, offset in zip(row, offsets[-1], strict=True):
            item.at = float(offset - offsets[-1][-1] / 2)
    for sweep in range(PLACE_SWEEPS):
        down = sweep % 2 == 0
        for row, offset in list(zip(rows, offsets, strict=True))[:: 1 if down else -1]:
            wish = [_mean(item.before if down else item.after, item.at) for item in row]
            free = np.array(wish) - offset
            low, high = np.maximum.accumulate(free), np.minimum.accumulate(free[::-1])[::-1]
            for item, at in zip(row, offset + (low + high) / 2, strict=True):
                item.at = float(at)
    edge = min((item.at - item.line for row in rows for item in row), default=0.0)
    for row in rows:
        for item in row:
            item.at -= edge


def _route(
    chain: Sequence[_Item],
    onward: bool,
    label_size: tuple[float, float],
    bands: Sequence[tuple[float, float]],
    turned: bool,
) -> Route:
    """Route an edge along its items, or backwards if it closes a cycle."""
    places = [(edge, item.at) for item in chain for edge in bands[item.layer]][1:-1]
    points = [Point(at, edge) if turned else Point(edge, at) for edge, at in places]
    label = None
    for item in chain[1:-1]:
        if item.span:
            width, height = label_size
            middle = sum(bands[item.layer]) / 2
            x, y = middle - width / 2, item.at - LABEL_PAD / 2 - height
            if turned:
                x, y = item.at + LABEL_PAD, middle - height / 2
            label = Rect(x, y, width, height)
    return Route(tuple(points if onward else points[::-1]), label)
