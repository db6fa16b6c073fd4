"""Places nodes in layers, so that edges go down and few cross (Sugiyama, Tagawa and Toda, "Methods for visual
understanding of hierarchical system structures", IEEE Transactions on Systems, Man, and Cybernetics 11(2), 1981).

Layers by the longest path; an edge over several layers passes an empty place in each; the order within a layer by the
barycenter heuristic in sweeps; positions by least squares under that order, exactly, with the pool-adjacent-violators
algorithm. Work grows with nodes and places, not with their square: thousands take a second or two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

_SWEEPS: Final = 8
_PASSES: Final = 6
_MOST_PLACES: Final = 20_000
_STRAIGHT: Final = 8.0  # how much more a long edge resists a bend than a node does
_GAP: Final = 26.0
_EDGE_WIDTH: Final = 10.0


class Layout(NamedTuple):
    """Where things are.

    Attributes:
        x: center of each node.
        layer: its layer, from 0 at the top.
        edges: ``(from, to, xs)``: the x at each layer that it passes between the two.
        left, right: how far the drawing reaches.
        layers: how many.
    """

    x: list[float]
    layer: list[int]
    edges: list[tuple[int, int, list[float]]]
    left: float
    right: float
    layers: int


def lay_out(widths: Sequence[float], edges: Iterable[tuple[int, int]]) -> Layout:
    """Lay out a graph without cycles.

    Args:
        widths: of the nodes, which are numbered in an order in which every edge leads to a higher number.
        edges: pairs of nodes.
    """
    unique = sorted(set(edges))
    layer = _layers(len(widths), unique)
    places, chains = _chains(len(widths), layer, unique)
    all_layers = layer + places
    rows: list[list[int]] = [[] for _ in range(max(all_layers, default=-1) + 1)]
    for item, at in enumerate(all_layers):
        rows[at].append(item)
    up: list[list[int]] = [[] for _ in all_layers]
    down: list[list[int]] = [[] for _ in all_layers]
    for a, b in sorted({pair for chain in chains.values() for pair in pairwise(chain)}):
        down[a].append(b)
        up[b].append(a)
    _order(rows, up, down)
    wide = [*widths, *([_EDGE_WIDTH] * len(places))]
    x = _positions(rows, up, down, wide, len(widths))
    routes = [(a, b, [x[i] for i in chain[1:-1]]) for (a, b), chain in chains.items()]
    ends = [(x[i] - wide[i] / 2, x[i] + wide[i] / 2) for i in range(len(wide))]
    left, right = min((e[0] for e in ends), default=0.0), max((e[1] for e in ends), default=0.0)
    return Layout(x[: len(widths)], layer, routes, left, right, len(rows))


def _layers(count: int, edges: list[tuple[int, int]]) -> list[int]:
    layer = [0] * count
    has_above = [False] * count
    below: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:  # sorted by their origin, which comes before its end
        layer[b] = max(layer[b], layer[a] + 1)
        has_above[b] = True
        below[a].append(b)
    for node in range(count):  # what starts by itself stands right above its first reader
        if not has_above[node] and below[node]:
            layer[node] = min(layer[reader] for reader in below[node]) - 1
    return layer


def _chains(
    count: int, layer: list[int], edges: list[tuple[int, int]]
) -> tuple[list[int], dict[tuple[int, int], list[int]]]:
    """Places for edges that pass layers, shortest edges first while there is room; longer ones go straight. Edges from
    one node run together as far as they go the same way."""
    places: list[int] = []
    shared: dict[int, list[int]] = {}
    chains: dict[tuple[int, int], list[int]] = {}
    for a, b in sorted(edges, key=lambda edge: layer[edge[1]] - layer[edge[0]]):
        passed, lane = layer[b] - layer[a] - 1, shared.setdefault(a, [])
        missing = passed - len(lane)
        if missing > 0 and len(places) + missing > _MOST_PLACES:
            chains[a, b] = [a, b]
            continue
        for at in range(layer[a] + 1 + len(lane), layer[b]):
            lane.append(count + len(places))
            places.append(at)
        chains[a, b] = [a, *lane[:passed], b]
    return places, chains


def _order(rows: list[list[int]], up: list[list[int]], down: list[list[int]]) -> None:
    position: dict[int, float] = {}
    for row in rows:
        _number(row, position)
    for sweep in range(_SWEEPS):
        downward = sweep % 2 == 0
        for row in rows if downward else reversed(rows):
            near = up if downward else down
            keys = {item: _mean([position[other] for other in near[item]], position[item]) for item in row}
            row.sort(key=keys.__getitem__)
            _number(row, position)


def _number(row: list[int], position: dict[int, float]) -> None:
    for number, item in enumerate(row):
        position[item] = number - len(row) / 2


def _positions(
    rows: list[list[int]], up: list[list[int]], down: list[list[int]], wide: list[float], nodes: int
) -> list[float]:
    x = [0.0] * len(wide)
    for row in rows:
        _spread(row, [0.0] * len(row), x, wide, nodes)
    for number in range(_PASSES):
        downward = number % 2 == 0
        for row in rows if downward else reversed(rows):
            near = up if downward else down
            last = number == _PASSES - 1
            wanted = [_mean([x[o] for o in (up[i] + down[i] if last else near[i])], x[i]) for i in row]
            _spread(row, wanted, x, wide, nodes)
    return x


def _spread(row: list[int], wanted: list[float], x: list[float], wide: list[float], nodes: int) -> None:
    """Nearest to where they want to be, in their order, without overlap: isotonic regression."""
    offsets, at = [], 0.0
    for before, item in zip([None, *row], row, strict=False):
        at += 0.0 if before is None else (wide[before] + wide[item]) / 2 + _GAP
        offsets.append(at)
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for item, want, offset in zip(row, wanted, offsets, strict=True):
        pool = (want - offset, 1.0 if item < nodes else _STRAIGHT, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, weight, members = pools.pop()
            total = weight + pool[1]
            pool = ((mean * weight + pool[0] * pool[1]) / total, total, members + pool[2])
        pools.append(pool)
    means = [mean for mean, _, members in pools for _ in range(members)]
    for item, mean, offset in zip(row, means, offsets, strict=True):
        x[item] = mean + offset


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
