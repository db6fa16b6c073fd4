"""A graph as the page shows it. Plain data: where it comes from is somebody else's business."""

from __future__ import annotations

import msgspec


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output of an operator or of the graph.

    Args:
        tensor: the tensor's name; empty for an input left out.
        kind: datatype and shape as text, empty where they are not known.
        weight_bytes: of a weight; -1 for what an operator computes.
    """

    tensor: str
    kind: str = ""
    weight_bytes: int = -1


class GraphNode(msgspec.Struct, frozen=True, kw_only=True):
    """One operator.

    Args:
        name: its own name, perhaps empty.
        op: the operator, with its domain where that is not the default one.
        attributes: name -> value as text.
        inputs, outputs: in order.
        time_ms: of one run of the model, median; None where it was not measured.
        bodies: titles of the views that show its bodies (`If`, `Loop`, `Scan`).
    """

    name: str
    op: str
    attributes: dict[str, str] = {}
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    time_ms: float | None = None
    bodies: tuple[str, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Of the weights that it reads."""
        return sum(max(port.weight_bytes, 0) for port in self.inputs)


class GraphView(msgspec.Struct, frozen=True, kw_only=True):
    """One drawing: the graph, or the body of an operator.

    Args:
        title: unique on the page.
        note: what it shows and how it was measured, in a sentence.
        inputs, outputs: of the graph.
        nodes: in an order in which they can run.
    """

    title: str
    note: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: tuple[GraphNode, ...]


class GraphInfo(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page shows.

    Args:
        name: of the model.
        facts: label -> value, for its head.
        views: the one shown first leads.
    """

    name: str
    facts: dict[str, str]
    views: tuple[GraphView, ...]
