"""What importers and passes both do to ONNX graphs."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from onnx import AttributeProto, GraphProto, NodeProto


def sort_nodes(graph: GraphProto) -> bool:
    """Every node after those whose outputs it reads, as ONNX demands (https://onnx.ai/onnx/repo-docs/IR.html) and tools
    that only ONNX Runtime reads leave undone; otherwise in the order given. A graph with a cycle stays as it is, and so
    do bodies of control flow: the runtime takes none that are not sorted.

    Returns:
        Whether anything moved.
    """
    nodes = list(graph.node)
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    waits: list[set[int]] = []
    followers: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        waits.append({maker[name] for name in _reads(node) if name in maker})
        for before in waits[i]:
            followers.setdefault(before, []).append(i)
    ready = [i for i, before in enumerate(waits) if not before]
    done: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        done.append(i)
        for after in followers.get(i, ()):
            waits[after].discard(i)
            if not waits[after]:
                heapq.heappush(ready, after)
    if len(done) < len(nodes) or done == sorted(done):
        return False
    graph.ClearField("node")
    graph.node.extend([nodes[i] for i in done])
    return True


def _reads(node: NodeProto) -> Iterator[str]:
    """Names a node reads, its bodies included: they see the tensors around them."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from _reads(inner)
