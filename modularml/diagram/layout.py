"""Where the boxes and edges of a layered drawing go: arithmetic only, no drawing.

What stands in one layer never overlaps and edges curve only between layers, so no edge
runs through a box or a label.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

from modularml.diagram.layers import Item, Link, Tie, join, number_layers, order, ranks

__all__ = ["Layout", "Point", "Rect", "Route", "lay_out"]

SETTLES, STRAIGHTENS = 24, 8
STRAIGHT = 0.01
LAYER_GAP, BOX_GAP, BEND_GAP, PORT_GAP = 40.0, 22.0, 14.0, 14.0
LABEL_PAD = 6.0


class Point(NamedTuple):
    """A place in pixels, y downwards."""

    x: float
    y: float


class Rect(NamedTuple):
    """A box in pixels: its upper left corner and its size."""

    x: float
    y: float
    width: float
    height: float


class Route(NamedTuple):
    """The way of an edge: points, even in number, and where its label stands.

    From an even point to the next one the edge curves, from an odd one it runs straight.
    """

    points: tuple[Point, ...]
    label: Rect | None


class Layout(NamedTuple):
    """A drawing: its size, one box a node, one route a link in the order of the links."""

    width: float
    height: float
    boxes: dict[str, Rect]
    routes: list[Route]


def lay_out(
    sizes: Mapping[str, tuple[float, float]],
    links: Sequence[Link],
    direction: Literal["LR", "TB"],
) -> Layout:
    """Place boxes in layers and lead edges between them.

    Parameters
    ----------
    sizes : mapping of str to (width, height)
        Least size of each box, in pixels. A box grows to the depth of its layer.
    links : sequence of Link
        Edges between different names. One that closes a cycle is led backwards.
    direction : {"LR", "TB"}
        Layers follow one another from left to right or from top to bottom.

    Returns
    -------
    Layout
        Boxes do not overlap one another or any label. Starts at the origin, no margin.
    """
    turn = direction == "TB"
    boxes, chains, layers = _fill_layers(sizes, links, turn)
    order(layers)
    _open_ports(chains)
    _settle(layers)
    bands = _stack(layers)
    length = max((end for _, end in bands), default=0.0)
    breadth = max((i.at - i.line + i.span for items in layers for i in items), default=0.0)
    size = (breadth, length) if turn else (length, breadth)
    rects = {name: _box_rect(box, bands[box.layer], turn) for name, box in boxes.items()}
    routes = [
        _route(chain, chain[0].one is boxes[link.source], link.label, bands, turn)
        for link, chain in zip(links, chains, strict=True)
    ]
    return Layout(*size, rects, routes)


def _fill_layers(
    sizes: Mapping[str, tuple[float, float]], links: Sequence[Link], turn: bool
) -> tuple[dict[str, Item], list[list[Tie]], list[list[Item]]]:
    """Make the items: boxes by name, the chain of each link, and the layers of all."""
    columns, label_columns = number_layers(ranks(sizes, links), links)
    boxes = {name: _box(columns[name], size, turn) for name, size in sizes.items()}
    chains = []
    for link, column in zip(links, label_columns, strict=True):
        low, high = sorted((boxes[link.source], boxes[link.target]), key=lambda b: b.layer)
        chains.append(join(low, high, _label(column, link.label, turn) if column else None))
    for box in boxes.values():
        box.span = max(box.span, PORT_GAP * max(len(box.before), len(box.after)))
        box.line = box.span / 2
    items = [*boxes.values(), *(tie.two for chain in chains for tie in chain[:-1])]
    layers: list[list[Item]] = [[] for _ in range(max((i.layer for i in items), default=-1) + 1)]
    for item in items:
        layers[item.layer].append(item)
    return boxes, chains, layers


def _box(layer: int, size: tuple[float, float], turn: bool) -> Item:
    """Make the item of a box; edges meet it in its middle."""
    span, depth = size if turn else size[::-1]
    return Item(layer, depth, span, span / 2, is_box=True)


def _label(layer: int, size: tuple[float, float], turn: bool) -> Item:
    """Make the item of a label: above its line, or right of it where layers go down."""
    width, height = size
    if turn:
        return Item(layer, height + 2 * LABEL_PAD, width + LABEL_PAD, 0.0)
    return Item(layer, width + 2 * LABEL_PAD, height + LABEL_PAD, height + LABEL_PAD)


def _open_ports(chains: Sequence[Sequence[Tie]]) -> None:
    """Spread edges along the side of the box where they meet, ordered by where they lead."""
    sides = defaultdict(list)
    for i, chain in enumerate(chains):
        sides[chain[0].one, 0].append((chain[0].two.at, i, chain[0]))
        sides[chain[-1].two, 1].append((chain[-1].one.at, i, chain[-1]))
    for (_, end), side in sides.items():
        for n, (_, _, tie) in enumerate(sorted(side, key=lambda entry: entry[:2])):
            tie.ports[end] = PORT_GAP * (n - (len(side) - 1) / 2)


def _settle(layers: Sequence[Sequence[Item]]) -> None:
    """Pull items towards those they are tied to, then straighten what is nearly straight."""
    for items in layers:
        _spread(items, [0.0] * len(items))
    for sweep in range(SETTLES):
        for items in layers if sweep % 2 == 0 else layers[::-1]:
            _spread(items, [_wish(item, sweep) for item in items])
    for _ in range(STRAIGHTENS):
        _straighten(layers)
    edge = min((item.at - item.line for items in layers for item in items), default=0.0)
    for items in layers:
        for item in items:
            item.at -= edge


def _wish(item: Item, sweep: int) -> float:
    """Return where an item would like to stand: the weighted mean of what its ties ask.

    Ties to the layer before and after count in turn, in the second half of all sweeps both.
    """
    both = sweep >= SETTLES // 2
    before = item.before if both or sweep % 2 == 0 else []
    after = item.after if both or sweep % 2 else []
    total = sum(tie.weight for tie in before + after)
    pull = sum(t.bend * t.weight for t in after) - sum(t.bend * t.weight for t in before)
    return item.at + pull / total if total else item.at


def _straighten(layers: Sequence[Sequence[Item]]) -> None:
    """Move whole blocks of items that straight ties join, so that more ties get straight.

    A block moves to the weighted median of what its bent ties ask for, which is where the
    sum of all bends is least, as far as the items beside it leave room.
    """
    beside: dict[Item, list[tuple[Item, float]]] = defaultdict(list)
    for items in layers:
        for one, two in pairwise(items):
            beside[one].append((two, _distance(one, two)))
            beside[two].append((one, -_distance(one, two)))
    for block in _blocks(layers):
        ties = [tie for item in block for tie in item.before + item.after]
        outer = [tie for tie in ties if (tie.one in block) != (tie.two in block)]
        low, high = _median([(t.bend if t.one in block else -t.bend, t.weight) for t in outer])
        room = [(o.at - d - i.at, d) for i in block for o, d in beside[i] if o not in block]
        most = min((free for free, d in room if d > 0), default=math.inf)
        least = max((free for free, d in room if d < 0), default=-math.inf)
        move = min(max(low, 0.0) + min(high, 0.0), most)
        for item in block:
            item.at += max(move, least)


def _blocks(layers: Sequence[Sequence[Item]]) -> Iterator[set[Item]]:
    """Group items that straight ties join."""
    seen: set[Item] = set()
    for first in (item for items in layers for item in items):
        block, todo = set(), [first]
        while todo:
            if (item := todo.pop()) not in seen:
                seen.add(item)
                block.add(item)
                todo += [tie.one for tie in item.before if abs(tie.bend) < STRAIGHT]
                todo += [tie.two for tie in item.after if abs(tie.bend) < STRAIGHT]
        if block:
            yield block


def _median(values: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return the lower and the upper weighted median; 0 and 0 for nothing."""
    ranked = sorted(values)
    if not ranked:
        return 0.0, 0.0
    sums = list(accumulate(weight for _, weight in ranked))
    low = bisect_left(sums, sums[-1] / 2)
    high = bisect_right(sums, sums[-1] / 2)
    return ranked[low][0], ranked[high][0]


def _distance(one: Item, two: Item) -> float:
    """Return the least distance between neighbours in a layer."""
    gap = BOX_GAP if one.is_box and two.is_box else BEND_GAP
    return one.span - one.line + gap + two.line


def _spread(items: Sequence[Item], wanted: Sequence[float]) -> None:
    """Move items as close to the wanted places as the room between them allows.

    Least squares under an order and least distances: isotonic regression by pooling
    neighbours that are too close (Barlow et al. 1972).
    """
    offsets = list(accumulate((_distance(a, b) for a, b in pairwise(items)), initial=0.0))
    pools: list[tuple[float, float, int]] = []
    for item, want, offset in zip(items, wanted, offsets, strict=False):
        mean, count = want - offset, 1
        weight = 1.0 + sum(tie.weight for tie in item.before + item.after)
        while pools and pools[-1][0] >= mean:
            other, more, n = pools.pop()
            mean = (mean * weight + other * more) / (weight + more)
            weight, count = weight + more, count + n
        pools.append((mean, weight, count))
    means = [mean for mean, _, count in pools for _ in range(count)]
    for item, mean, offset in zip(items, means, offsets, strict=False):
        item.at = mean + offset


def _stack(layers: Sequence[Sequence[Item]]) -> list[tuple[float, float]]:
    """Return where each layer starts and ends; gaps with steep edges are made wider."""
    bands, start = [], 0.0
    for items in layers:
        end = start + max(item.depth for item in items)
        bands.append((start, end))
        jump = max((abs(tie.bend) for item in items for tie in item.after), default=0.0)
        start = end + LAYER_GAP + min(jump * 0.15, LAYER_GAP)
    return bands


def _box_rect(box: Item, band: tuple[float, float], turn: bool) -> Rect:
    """Place a box in its layer, as deep as the layer."""
    start, depth, edge = band[0], band[1] - band[0], box.at - box.line
    return Rect(edge, start, box.span, depth) if turn else Rect(start, edge, depth, box.span)


def _route(
    chain: Sequence[Tie],
    onward: bool,
    label_size: tuple[float, float],
    bands: Sequence[tuple[float, float]],
    turn: bool,
) -> Route:
    """Lead an edge along its chain, or back along it if it closes a cycle."""
    first, last, label = chain[0], chain[-1], None
    places = [(bands[first.one.layer][1], first.one.at + first.ports[0])]
    for bend in (tie.two for tie in chain[:-1]):
        places += [(edge, bend.at) for edge in bands[bend.layer]]
        if bend.span:
            label = _label_rect(bend, label_size, bands[bend.layer], turn)
    places.append((bands[last.two.layer][0], last.two.at + last.ports[1]))
    points = [Point(b, a) if turn else Point(a, b) for a, b in places]
    return Route(tuple(points if onward else points[::-1]), label)


def _label_rect(
    bend: Item, size: tuple[float, float], band: tuple[float, float], turn: bool
) -> Rect:
    """Place a label in the middle of its layer, beside its line."""
    width, height = size
    middle = (band[0] + band[1]) / 2
    if turn:
        return Rect(bend.at + LABEL_PAD, middle - height / 2, width, height)
    return Rect(middle - width / 2, bend.at - LABEL_PAD / 2 - height, width, height)
