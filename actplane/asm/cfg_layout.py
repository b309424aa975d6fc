"""
Where to draw the nodes and edges of a directed graph: layers from top to bottom, on a grid.

The classic four steps (Sugiyama, Tagawa, Toda, 1981): nodes get layers by their longest path from the
entry; edges over several layers get a dummy node in each; the nodes of a layer are ordered by the
mean place of their neighbours; then each gets the x nearest to its neighbours that its order allows.
Edges run down, across and down again, each across part in a row of its own where it would touch
another. Edges that go back up run around the right side.

Units: columns and rows of characters; (0, 0) is the top left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

GAP = 3
"""Columns left free between two nodes."""
SWEEPS = 8
DUMMY_WEIGHT = 8.0
"""How much more the bends of long edges pull at each other than nodes do: it keeps long edges straight."""

Point = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Box:
    """Where a node lies."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Route:
    """An edge: the corners of its line from below its source to above its target."""

    source: int
    target: int
    points: tuple[Point, ...]
    is_back: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """A finished drawing plan."""

    boxes: Mapping[int, Box]
    routes: tuple[Route, ...]
    width: int
    height: int


@dataclass(slots=True, eq=False)
class _Node:
    """A node or the place where a long edge crosses a layer (`name` is None then)."""

    name: int | None
    layer: int
    width: int
    height: int
    x: float = 0.0
    above: list[_Node] = field(default_factory=list)
    below: list[_Node] = field(default_factory=list)
    ports_above: dict[object, int] = field(default_factory=dict)
    ports_below: dict[object, int] = field(default_factory=dict)

    @property
    def center(self) -> float:
        return self.x + self.width / 2


@dataclass(slots=True, eq=False)
class _Edge:
    """One edge of the graph: the nodes it passes from layer to layer."""

    source: int
    target: int
    is_back: bool
    chain: list[_Node]
    lane: int = 0


@dataclass(slots=True, eq=False)
class _Segment:
    """The part of an edge between two layers: it enters at column `top`, leaves at column `bottom`."""

    edge: _Edge
    top: int
    bottom: int
    row: int = 0

    @property
    def span(self) -> tuple[int, int]:
        return min(self.top, self.bottom), max(self.top, self.bottom)


def lay_out(sizes: Mapping[int, tuple[int, int]], edges: Iterable[tuple[int, int]], entry: int) -> Layout:
    """
    Return a drawing plan for the nodes reachable from an entry.

    Shape:  `sizes` maps each node to its (width, height); edges to unknown nodes are not allowed.

    >>> plan = lay_out({0: (5, 3), 1: (5, 3)}, [(0, 1)], 0)
    >>> plan.boxes[0].y < plan.boxes[1].y
    True
    """
    pairs = list(edges)
    back = _back_edges(sizes, pairs, entry)
    layers, chains = _layers(sizes, pairs, back)
    _order(layers)
    _place(layers)
    right = max(round(node.x) + node.width for layer in layers for node in layer)
    for number, edge in enumerate(edge for edge in chains if edge.is_back):
        edge.lane = right + GAP * (number + 1)
    _ports(chains, right)
    return _route(layers, chains)


def _back_edges(sizes: Mapping[int, tuple[int, int]], pairs: Sequence[tuple[int, int]], entry: int) -> set[int]:
    """Return the positions in `pairs` of the edges that a depth-first walk finds to close a cycle."""
    outgoing: dict[int, list[int]] = {name: [] for name in sizes}
    for position, (source, _) in enumerate(pairs):
        outgoing[source].append(position)
    found: set[int] = set()
    open_nodes: set[int] = set()
    seen: set[int] = set()
    starts: list[int] = [entry, *sizes]
    for start in starts:
        if start in seen:
            continue
        stack = [(start, iter(outgoing[start]))]
        seen.add(start)
        open_nodes.add(start)
        while stack:
            node, positions = stack[-1]
            following = next(positions, None)
            if following is None:
                open_nodes.discard(node)
                stack.pop()
                continue
            target = pairs[following][1]
            if target in open_nodes:
                found.add(following)
            elif target not in seen:
                seen.add(target)
                open_nodes.add(target)
                stack.append((target, iter(outgoing[target])))
    return found


def _layers(
    sizes: Mapping[int, tuple[int, int]], pairs: Sequence[tuple[int, int]], back: set[int]
) -> tuple[list[list[_Node]], list[_Edge]]:
    forward = [pair for position, pair in enumerate(pairs) if position not in back]
    depth = dict.fromkeys(sizes, 0)
    waiting = dict.fromkeys(sizes, 0)
    for _, target in forward:
        waiting[target] += 1
    ready = [name for name in sizes if not waiting[name]]
    below: dict[int, list[int]] = {name: [] for name in sizes}
    for source, target in forward:
        below[source].append(target)
    while ready:
        name = ready.pop()
        for target in below[name]:
            depth[target] = max(depth[target], depth[name] + 1)
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    nodes = {name: _Node(name, depth[name], *size) for name, size in sizes.items()}
    layers: list[list[_Node]] = [[] for _ in range(max(depth.values()) + 1)]
    for node in nodes.values():
        layers[node.layer].append(node)
    chains = []
    for position, (source, target) in enumerate(pairs):
        chain = [nodes[source]]
        if position not in back:
            for layer in range(depth[source] + 1, depth[target]):
                dummy = _Node(None, layer, 1, 0)
                layers[layer].append(dummy)
                chain.append(dummy)
        chain.append(nodes[target])
        chains.append(_Edge(source, target, position in back, chain))
        if position not in back:
            for upper, lower in pairwise(chain):
                upper.below.append(lower)
                lower.above.append(upper)
    return layers, chains


def _order(layers: list[list[_Node]]) -> None:
    """Order each layer by the mean place of the neighbours, going down and up in turn."""
    place: dict[_Node, float] = {}
    for layer in layers:
        place.update((node, float(number)) for number, node in enumerate(layer))
    for sweep in range(SWEEPS):
        downward = sweep % 2 == 0
        for layer in layers if downward else layers[::-1]:

            def mean(node: _Node, downward: bool = downward) -> float:
                neighbours = node.above if downward else node.below
                return sum(place[each] for each in neighbours) / len(neighbours) if neighbours else place[node]

            layer.sort(key=mean)
            place.update((node, float(number)) for number, node in enumerate(layer))


def _place(layers: list[list[_Node]]) -> None:
    """Give every node the x nearest to its neighbours that keeps the order and the gaps."""
    for layer in layers:
        at = 0.0
        for node in layer:
            node.x = at
            at += node.width + GAP
    for sweep in range(SWEEPS):
        downward = sweep % 2 == 0
        for layer in layers if downward else layers[::-1]:
            wanted = [_wanted_center(node, node.above if downward else node.below) for node in layer]
            _fit(layer, wanted)
    left = min(node.x for layer in layers for node in layer)
    for layer in layers:
        for node in layer:
            node.x = round(node.x - left)


def _wanted_center(node: _Node, neighbours: list[_Node]) -> tuple[float, float]:
    """Return where a node's centre should be, and how much that matters."""
    if not neighbours:
        return node.center, 0.5
    weights = [DUMMY_WEIGHT if node.name is None and each.name is None else 1.0 for each in neighbours]
    total = sum(weights)
    center = sum(weight * each.center for weight, each in zip(weights, neighbours, strict=True)) / total
    return center, total


def _fit(layer: list[_Node], wanted: list[tuple[float, float]]) -> None:
    """
    Move the nodes of a layer to the wanted centres as nearly as order and gaps allow.

    Least squares under `x[i+1] >= x[i] + width[i] + GAP`: after subtracting the room each node's
    left neighbours take, it is isotonic regression, solved by pooling neighbours that are out of order.
    """
    pools: list[tuple[float, float, int]] = []  # (mean, weight, number of nodes)
    room = 0.0
    rooms = []
    for node, (center, weight) in zip(layer, wanted, strict=True):
        rooms.append(room)
        pools.append((center - node.width / 2 - room, weight, 1))
        room += node.width + GAP
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (mean, weight, count), (other_mean, other_weight, other_count) = pools.pop(), pools.pop()
            total = weight + other_weight
            pools.append(((mean * weight + other_mean * other_weight) / total, total, count + other_count))
    places = (mean for mean, _, count in pools for _ in range(count))
    for node, place, offset in zip(layer, places, rooms, strict=True):
        node.x = place + offset


def _ports(chains: list[_Edge], right: int) -> None:
    """Spread the ends of edges along the lower and the upper side of their nodes, ordered by where they go."""
    leaving: dict[_Node, list[tuple[float, _Edge]]] = {}
    arriving: dict[_Node, list[tuple[float, _Edge]]] = {}
    for edge in chains:
        if edge.is_back:
            leaving.setdefault(edge.chain[0], []).append((right + edge.lane, edge))
            arriving.setdefault(edge.chain[-1], []).append((right + edge.lane, edge))
            continue
        for upper, lower in pairwise(edge.chain):
            leaving.setdefault(upper, []).append((lower.center, edge))
            arriving.setdefault(lower, []).append((upper.center, edge))
    for ends, is_below in ((leaving, True), (arriving, False)):
        for node, edges in ends.items():
            edges.sort(key=lambda end: end[0])
            for number, (_, edge) in enumerate(edges, 1):
                column = round(node.x) + node.width * number // (len(edges) + 1)
                (node.ports_below if is_below else node.ports_above)[edge] = column
    _straighten(chains)


def _straighten(chains: list[_Edge]) -> None:
    """Where an edge is the only one on a side of its node, move its end to where the line is straight."""
    for edge in chains:
        if edge.is_back:
            continue
        for upper, lower in pairwise(edge.chain):
            if len(lower.ports_above) == 1:
                lower.ports_above[edge] = _clamp(upper.ports_below[edge], lower)
            if len(upper.ports_below) == 1:
                upper.ports_below[edge] = _clamp(lower.ports_above[edge], upper)


def _clamp(column: int, node: _Node) -> int:
    """Return the column of a node's side nearest to one; corners are not part of the side."""
    if node.name is None:
        return round(node.x)
    return min(max(column, round(node.x) + 1), round(node.x) + node.width - 2)


def _route(layers: list[list[_Node]], chains: list[_Edge]) -> Layout:
    # Channel n is the space above layer n; the last one is below the last layer.
    channels: list[list[_Segment]] = [[] for _ in range(len(layers) + 1)]
    parts: dict[_Edge, list[tuple[int, _Segment]]] = {edge: [] for edge in chains}
    for edge in chains:
        steps: list[tuple[int, _Segment]] = []
        first, last = edge.chain[0], edge.chain[-1]
        if edge.is_back:
            steps.append((first.layer + 1, _Segment(edge, first.ports_below[edge], edge.lane)))
            steps.append((last.layer, _Segment(edge, edge.lane, last.ports_above[edge])))
        else:
            for upper, lower in pairwise(edge.chain):
                steps.append((lower.layer, _Segment(edge, upper.ports_below[edge], lower.ports_above[edge])))
        for number, segment in steps:
            channels[number].append(segment)
        parts[edge] = steps
    tops, heights = [], []
    y = 0
    for number, channel in enumerate(channels):
        tops.append(y)
        rows = _assign_rows(channel)
        y += rows + 2 if channel else 0
        if number < len(layers):
            heights.append(y)
            y += max((node.height for node in layers[number]), default=0)
    boxes = {
        node.name: Box(round(node.x), heights[node.layer], node.width, node.height)
        for layer in layers
        for node in layer
        if node.name is not None
    }
    routes = tuple(_points(edge, parts[edge], tops, heights, boxes) for edge in chains)
    width = max([box.x + box.width for box in boxes.values()] + [edge.lane + 1 for edge in chains if edge.is_back])
    return Layout(boxes, routes, width, y)


def _assign_rows(segments: list[_Segment]) -> int:
    """
    Give each segment that moves sideways a row in its channel; return how many rows there are.

    Two segments share a row only if they do not touch. A segment that comes down in the column where
    another goes on must run above that one, or the two would seem to be one line.
    """
    moving = [segment for segment in segments if segment.top != segment.bottom]
    must_be_above: dict[_Segment, list[_Segment]] = {segment: [] for segment in moving}
    by_bottom = {segment.bottom: segment for segment in moving}
    for segment in moving:
        other = by_bottom.get(segment.top)
        if other is not None and other is not segment:
            must_be_above[other].append(segment)
    rows: list[list[tuple[int, int]]] = []
    done: set[_Segment] = set()
    left = sorted(moving, key=lambda segment: segment.span)
    while left:
        # What waits for nobody goes first; a circle of waiting is broken at its leftmost segment.
        free = [each for each in left if all(upper in done for upper in must_be_above[each])]
        for segment in free or left[:1]:
            lowest = max((upper.row + 1 for upper in must_be_above[segment] if upper in done), default=0)
            row = next((n for n in range(lowest, len(rows)) if _is_free(rows[n], segment.span)), None)
            if row is None:
                row = max(len(rows), lowest)
                rows.extend([] for _ in range(row + 1 - len(rows)))
            rows[row].append(segment.span)
            segment.row = row
            done.add(segment)
        left = [each for each in left if each not in done]
    return len(rows)


def _is_free(row: list[tuple[int, int]], span: tuple[int, int]) -> bool:
    return all(span[1] < low - 1 or high + 1 < span[0] for low, high in row)


def _points(
    edge: _Edge,
    steps: Sequence[tuple[int, _Segment]],
    tops: Sequence[int],
    heights: Sequence[int],
    boxes: Mapping[int, Box],
) -> Route:
    box = boxes[edge.source]
    points: list[Point] = [(steps[0][1].top, box.y + box.height)]
    for channel, segment in steps:
        row = tops[channel] + 1 + segment.row
        if segment.top != segment.bottom:
            points += [(segment.top, row), (segment.bottom, row)]
    points.append((steps[-1][1].bottom, heights[edge.chain[-1].layer] - 1))
    return Route(edge.source, edge.target, tuple(points), edge.is_back)
