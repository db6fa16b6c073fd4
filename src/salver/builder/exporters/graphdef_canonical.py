"""A frozen graph in one form: TensorFlow numbers its functions by what the process did before, and lists nodes in the
order in which its threads came by."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

_NUMBERED: Final = re.compile(r"(_frozen)?_\d+$")


def canonicalize(graph: Any) -> None:
    """Sort the nodes of a ``GraphDef`` and name its functions.

    Each node comes after those it reads, by name where that leaves a choice; placeholders stay first, in their order.
    A function is named by what it is and holds: a process refuses a second graph with another function of that name.
    """
    _sort(graph.node, first="Placeholder")
    functions = {function.signature.name: function for function in graph.library.function}
    names: dict[str, str] = {}
    _rename_called(graph.node, functions, names)
    kept = {names[name]: functions[name].SerializeToString(deterministic=True) for name in names}
    del graph.library.function[:]
    for _, content in sorted(kept.items()):
        graph.library.function.add().MergeFromString(content)


def _rename_called(nodes: Sequence[Any], functions: dict[str, Any], names: dict[str, str]) -> None:
    for node in nodes:
        if node.op in functions:
            node.op = _rename(node.op, functions, names)
        for call in _calls(node):
            if call.name in functions:
                call.name = _rename(call.name, functions, names)


def _rename(name: str, functions: dict[str, Any], names: dict[str, str]) -> str:
    if name not in names:
        function = functions[name]
        _number_arguments(function)
        _sort(function.node_def)
        _rename_called(function.node_def, functions, names)
        function.attr.pop("_original_func_name", None)
        function.signature.name = _stem(name)
        digest = hashlib.sha256(function.SerializeToString(deterministic=True)).hexdigest()[:16]
        names[name] = function.signature.name = f"{_stem(name)}_{digest}"
    return names[name]


def _number_arguments(function: Any) -> None:
    """Arguments by their places: some are named by the number of a function."""
    taken = {node.name for node in function.node_def}
    names = {arg.name: f"argument_{i}" for i, arg in enumerate(function.signature.input_arg)}
    if taken & set(names.values()):
        return
    for arg in function.signature.input_arg:
        arg.name = names[arg.name]
    for node in function.node_def:
        node.input[:] = [names.get(reference, reference) for reference in node.input]
    for output, reference in list(function.ret.items()):
        function.ret[output] = names.get(reference, reference)


def _stem(name: str) -> str:
    while _NUMBERED.search(name):
        name = _NUMBERED.sub("", name)
    return name


def _calls(node: Any) -> Iterator[Any]:
    for _, value in sorted(node.attr.items()):
        if value.HasField("func"):
            yield value.func
        yield from value.list.func


def _sort(nodes: Any, first: str = "") -> None:
    """Sort nodes in place; those of an operator ``first`` keep their places among each other, before all others."""
    by_name = {node.name: node for node in nodes}
    rank = {n.name: (0, f"{i:09}") if n.op == first else (1, n.name) for i, n in enumerate(nodes)}
    missing = {n.name: {source for i in n.input if (source := _source(i)) in by_name} for n in nodes}
    readers: dict[str, list[str]] = {}
    for name, sources in missing.items():
        for source in sources:
            readers.setdefault(source, []).append(name)
    ready = [(rank[name], name) for name, sources in missing.items() if not sources]
    heapq.heapify(ready)
    order = []
    while ready:
        _, name = heapq.heappop(ready)
        order.append(name)
        for reader in readers.get(name, ()):
            missing[reader].discard(name)
            if not missing[reader]:
                heapq.heappush(ready, (rank[reader], reader))
    order += sorted(name for name, sources in missing.items() if sources)  # loops of TensorFlow 1 read what comes later
    found = [type(nodes[0]).FromString(by_name[name].SerializeToString()) for name in order]
    del nodes[:]
    nodes.extend(found)


def _source(reference: str) -> str:
    """The node that an input such as ``^a``, ``a:1`` or ``a:output:0`` names."""
    return reference.removeprefix("^").partition(":")[0]
