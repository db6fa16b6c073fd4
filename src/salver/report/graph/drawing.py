"""One view as SVG."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

from salver.report import words
from salver.report.graph.layout import Layout, lay_out
from salver.report.graph.types import GraphNode, GraphView, Port

_CHARACTER: Final = 7.2
_MOST_CHARACTERS: Final = 30
_HEIGHT: Final = 62.0
_END_HEIGHT: Final = 46.0
_PITCH: Final = 96.0
_MARGIN: Final = 24.0
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Box(NamedTuple):
    """What is drawn of one node; ``lines`` are its texts, the first bold."""

    kind: str
    lines: tuple[str, ...]
    label: str
    time: float
    size: float


def clean(text: str) -> str:
    """Escaped for text and attributes; control characters replaced."""
    return escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text), quote=True)


def items_of(view: GraphView) -> tuple[list[GraphNode | Port], list[tuple[int, int]]]:
    """Graph inputs, operators and graph outputs, numbered, and the edges between them."""
    items: list[GraphNode | Port] = [*view.inputs, *view.nodes, *view.outputs]
    maker = {port.tensor: number for number, port in enumerate(view.inputs)}
    edges = []
    for number, node in enumerate(view.nodes, len(view.inputs)):
        edges += [(maker[port.tensor], number) for port in node.inputs if port.tensor in maker]
        maker.update({port.tensor: number for port in node.outputs if port.tensor})
    for number, port in enumerate(view.outputs, len(view.inputs) + len(view.nodes)):
        edges += [(maker[port.tensor], number)] if port.tensor in maker else []
    return items, edges


def boxes_of(view: GraphView) -> list[Box]:
    """What is written in each item's box; time and size as shares of the largest."""
    most_time = max((node.time_ms or 0.0 for node in view.nodes), default=0.0)
    most_size = max((node.weight_bytes for node in view.nodes), default=0)
    total = sum(node.time_ms or 0.0 for node in view.nodes)
    ends = [Box("end", ("input", _short(p.tensor)), f"input {p.tensor} {p.kind}", 0.0, 0.0) for p in view.inputs]
    for node in view.nodes:
        facts = [words.show_bytes(node.weight_bytes)] if node.weight_bytes else []
        if node.time_ms is not None:
            facts += [words.show_ms(node.time_ms), words.show_share(node.time_ms / total if total else 0.0)]
        lines = (_short(node.op), _short(node.name), " · ".join(facts))
        time = (node.time_ms or 0.0) / most_time if most_time else 0.0
        size = node.weight_bytes / most_size if most_size else 0.0
        ends.append(Box("op", lines, ", ".join(part for part in (node.op, node.name, *facts) if part), time, size))
    ends += [Box("end", ("output", _short(p.tensor)), f"output {p.tensor} {p.kind}", 0.0, 0.0) for p in view.outputs]
    return ends


def draw(view: GraphView, number: int) -> str:
    """The SVG of a view.

    Args:
        number: of the view, which makes ids unique: node 3 of view 0 is ``n0-3``.
    """
    items, edges = items_of(view)
    boxes = boxes_of(view)
    widths = [max(90.0, 24 + _CHARACTER * max(map(len, box.lines))) for box in boxes]
    layout = lay_out(widths, edges)
    width = layout.right - layout.left + 2 * _MARGIN
    height = layout.layers * _PITCH + 2 * _MARGIN
    lines = "".join(_edge(layout, boxes, a, b, xs) for a, b, xs in layout.edges)
    nodes = "".join(
        _node(box, f"n{number}-{i}", layout.x[i] - layout.left + _MARGIN, _top(layout.layer[i]), widths[i])
        for i, box in enumerate(boxes)
    )
    return (
        f'<svg class="graph" id="g{number}" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" tabindex="0" role="listbox" '
        f'aria-label="{clean(view.title)}: {len(items)} boxes; arrow keys follow the edges">'
        f'<g class="edges" aria-hidden="true">{lines}</g>{nodes}</svg>'
    )


def _top(layer: int) -> float:
    return _MARGIN + layer * _PITCH


def _tall(box: Box) -> float:
    return _HEIGHT if box.kind == "op" else _END_HEIGHT


def _edge(layout: Layout, boxes: Sequence[Box], a: int, b: int, xs: list[float]) -> str:
    shift = _MARGIN - layout.left
    x, y = layout.x[a] + shift, _top(layout.layer[a]) + _tall(boxes[a])
    path = [f"M{x:.0f} {y:.0f}"]
    stops = [(at + shift, _top(layout.layer[a] + i)) for i, at in enumerate(xs, 1)]
    for next_x, top in [*stops, (layout.x[b] + shift, _top(layout.layer[b]))]:
        middle = (y + top) / 2
        path.append(f"C{x:.0f} {middle:.0f} {next_x:.0f} {middle:.0f} {next_x:.0f} {top:.0f}")
        x, y = next_x, top
        if (next_x, top) in stops:
            y = top + _HEIGHT
            path.append(f"V{y:.0f}")
    return f'<path d="{"".join(path)}"/>'


def _node(box: Box, key: str, x: float, y: float, width: float) -> str:
    tall = _tall(box)
    left = x - width / 2
    texts = "".join(
        f'<text x="{x:.0f}" y="{y + 18 + 17 * i:.0f}"{" class=b" if i == 0 else ""}>{clean(line)}</text>'
        for i, line in enumerate(box.lines)
        if line
    )
    heat = "" if box.kind == "end" else f' data-t="{box.time:.3f}" data-s="{box.size:.3f}"'
    hot = f'<rect class="heat" x="{left:.0f}" y="{y:.0f}" width="{width:.0f}" height="{tall:.0f}" rx="7" fill-opacity="'
    hot += f'{box.time:.3f}"{heat}/>'
    return (
        f'<g class="{box.kind}" id="{key}" role="option" aria-label="{clean(box.label)}">'
        f'<rect class="box" x="{left:.0f}" y="{y:.0f}" width="{width:.0f}" height="{tall:.0f}" rx="7"/>'
        f"{hot if box.kind == 'op' else ''}{texts}</g>"
    )


def _short(text: str) -> str:
    """The end of a long name, which tells more than its beginning."""
    return text if len(text) <= _MOST_CHARACTERS else "…" + text[-_MOST_CHARACTERS + 1 :]
