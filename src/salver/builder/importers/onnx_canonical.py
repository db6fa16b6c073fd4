"""Order and names of an ONNX graph that follow from its structure alone: some converters count names on from one run to
the next, and walk through sets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import onnx

_COUNTER: Final = re.compile(r"__\d+")


def canonicalize(model: onnx.ModelProto) -> None:
    """Sort nodes by what the outputs need, in the order they need it, and number names anew; inputs and outputs keep
    theirs. A weight is named after the node that first reads it, and its place there."""
    names = {value.name: value.name for value in (*model.graph.input, *model.graph.output)}
    names[""] = ""
    taken = dict.fromkeys(names, 0)
    _Canon(names, taken).apply(model.graph)


class _Canon:
    """One graph; bodies of control flow see the names of the graph around them."""

    def __init__(self, names: dict[str, str], taken: dict[str, int]) -> None:
        self._names = names
        self._taken = taken

    def apply(self, graph: onnx.GraphProto) -> None:
        _sort(graph)
        del graph.value_info[:]
        weights = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        for value in graph.input:
            self._name(value.name, value.name)
        for node in graph.node:
            node.name = self._fresh(node.name or node.op_type)
            node.doc_string = ""
            for place, name in enumerate(node.input):
                self._name(name, f"{node.name}.{place}" if name in weights else name)
            for name in node.output:
                self._name(name, name)
        for value in graph.output:
            self._name(value.name, value.name)
        for tensor in graph.initializer:
            self._name(tensor.name, "weight")  # read in a body alone
        self._write(graph)
        for node in graph.node:
            for body in _bodies(node):
                _Canon(dict(self._names), self._taken).apply(body)

    def _name(self, old: str, stem: str) -> None:
        if old not in self._names:
            self._names[old] = self._fresh(stem)

    def _fresh(self, name: str) -> str:
        stem = _COUNTER.sub("", name)
        made, count = stem, self._taken.get(stem, 0)
        while made in self._taken:
            count += 1
            made = f"{stem}__{count}"
        self._taken[made] = 0
        self._taken[stem] = count
        return made

    def _write(self, graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for listed in (node.input, node.output):
                listed[:] = [self._names.get(name, name) for name in listed]
        values = [*graph.input, *graph.output, *graph.initializer, *(t.values for t in graph.sparse_initializer)]
        for value in values:
            value.name = self._names[value.name]
        place = {name: i for i, name in enumerate(self._names.values())}
        graph.initializer.sort(key=lambda tensor: place[tensor.name])


def _sort(graph: onnx.GraphProto) -> None:
    producers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    order: list[int] = []
    done: set[int] = set()
    waiting = [(producers[o.name], False) for o in reversed(graph.output) if o.name in producers]
    while waiting:
        place, ready = waiting.pop()
        if place in done:
            continue
        if ready:
            done.add(place)
            order.append(place)
            continue
        waiting.append((place, True))
        needed = [producers[name] for name in _reads(graph.node[place]) if name in producers]
        waiting.extend((other, False) for other in reversed(needed) if other not in done)
    order += [i for i in range(len(graph.node)) if i not in done]
    nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, and what the bodies of its control flow read of the graph around them."""
    yield from node.input
    for body in _bodies(node):
        for inner in body.node:
            yield from _reads(inner)
        yield from (value.name for value in body.output)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs
