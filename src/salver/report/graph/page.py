"""The page: a head, the drawing with its controls, details of what is chosen, and tables that say the same in words.

Self-contained: its style sheet and script stand in it and are allowed by hash, nothing else is, and nothing is fetched.
Without scripts it still shows the first drawing and the tables. Everything from a model is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from salver.report import words
from salver.report.graph.drawing import boxes_of, clean, draw, items_of
from salver.report.graph.types import GraphInfo, GraphNode, GraphView, Port

_HERE: Final = Path(__file__).parent
_STYLE: Final = (_HERE / "viewer.css").read_text(encoding="utf-8")
_SCRIPT: Final = (_HERE / "viewer.js").read_text(encoding="utf-8")
MOST_DRAWN: Final = 12_000
"""Items of a view above which it is not drawn, but only told in tables: a browser would stall."""
_SLOWEST: Final = 50


def render_graph(info: GraphInfo) -> str:
    """The page, as text."""
    facts = "".join(f"<div><dt>{clean(k)}</dt><dd>{clean(v)}</dd></div>" for k, v in info.facts.items())
    options = "".join(f'<option value="{i}">{clean(view.title)}</option>' for i, view in enumerate(info.views))
    views = "".join(_view(view, number) for number, view in enumerate(info.views))
    titles = {view.title: number for number, view in enumerate(info.views)}
    data = [_data(view, titles) for view in info.views]
    plain = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src '{_hash(_STYLE)}'; "
        f"script-src '{_hash(_SCRIPT)}'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{clean(info.name)} · Salver graph</title><style>{_STYLE}</style></head>\n<body>"
        f'<header><h1>{clean(info.name)}</h1><dl class="facts">{facts}</dl>'
        '<div class="controls" role="group" aria-label="Drawing" hidden>'
        f'<label>Show <select id="which">{options}</select></label>'
        '<label>Color by <select id="color"><option value="t">time</option><option value="s">size of weights</option>'
        '<option value="">nothing</option></select></label>'
        '<label>Find <input id="find" type="search" placeholder="name, operator or tensor" autocomplete="off"></label>'
        '<button id="next" type="button">Next</button><output id="found" aria-live="polite"></output>'
        '<span class="zoom"><button id="out" type="button" aria-label="Zoom out">&minus;</button>'
        '<button id="fit" type="button">Fit</button>'
        '<button id="one" type="button" aria-label="Actual size">1:1</button>'
        '<button id="in" type="button" aria-label="Zoom in">+</button></span></div></header>'
        f'<main>{views}</main><aside id="details" aria-live="polite" aria-label="Details" hidden></aside>'
        f'<script type="application/json" id="data">{plain}</script><script>{_SCRIPT}</script></body></html>\n'
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _view(view: GraphView, number: int) -> str:
    count = len(view.nodes) + len(view.inputs) + len(view.outputs)
    drawing = (
        f'<div class="scroll">{draw(view, number)}</div>'
        if count <= MOST_DRAWN
        else f"<p>{count:,} boxes are more than a browser draws well (at most {MOST_DRAWN:,}): see the tables.</p>"
    )
    return (
        f'<section class="view" id="v{number}"{" hidden" if number else ""} aria-label="{clean(view.title)}">'
        f"<h2>{clean(view.title)}</h2><p>{clean(view.note)}</p>{drawing}"
        f"{_kinds(view)}{_slowest(view, number)}</section>"
    )


def _kinds(view: GraphView) -> str:
    """By operator: how many, how long, how large."""
    rows: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0])
    for node in view.nodes:
        row = rows[node.op]
        row[0] += 1
        row[1] += node.time_ms or 0.0
        row[2] += node.weight_bytes
    total = sum(row[1] for row in rows.values())
    lines = [
        (op, f"{int(count):,}", words.show_ms(time) if total else words.DASH, _share(time, total), _bytes(size))
        for op, (count, time, size) in sorted(rows.items(), key=lambda item: (-item[1][1], -item[1][2], item[0]))
    ]
    return _table("By operator", ("operator", "how many", "time of a run", "share", "weights"), lines)


def _slowest(view: GraphView, number: int) -> str:
    total = sum(node.time_ms or 0.0 for node in view.nodes)
    order = sorted(range(len(view.nodes)), key=lambda i: (-(view.nodes[i].time_ms or 0.0), -view.nodes[i].weight_bytes))
    first = len(view.inputs)
    lines = []
    for i in order[:_SLOWEST]:
        node = view.nodes[i]
        time = words.DASH if node.time_ms is None else words.show_ms(node.time_ms)
        lines.append((node.op, node.name, time, _share(node.time_ms or 0.0, total), _bytes(node.weight_bytes)))
    keys = [f"n{number}-{first + i}" for i in order[:_SLOWEST]]
    title = "The slowest operators" if total else "The largest operators"
    return _table(title, ("operator", "name", "time of a run", "share", "weights"), lines, keys)


def _share(part: float, total: float) -> str:
    return words.show_share(part / total) if total else words.DASH


def _bytes(size: float) -> str:
    return words.show_bytes(size) if size else words.DASH


def _table(title: str, heads: tuple[str, ...], lines: Sequence[tuple[str, ...]], keys: list[str] | None = None) -> str:
    if not lines:
        return ""
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    body = []
    for i, line in enumerate(lines):
        cells = [clean(cell) for cell in line]
        if keys:
            cells[0] = f'<a href="#{keys[i]}">{cells[0]}</a>'
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _data(view: GraphView, titles: dict[str, int]) -> dict[str, Any]:
    """What the script needs: details and edges by number."""
    items, edges = items_of(view)
    labels = [box.label for box in boxes_of(view)]
    return {"items": [_item(item, titles) for item in items], "labels": labels, "edges": sorted(set(edges))}


def _item(item: GraphNode | Port, titles: dict[str, int]) -> dict[str, Any]:
    if isinstance(item, Port):
        return {"op": "", "name": item.tensor, "rows": [["tensor", item.tensor], ["type", item.kind]]}
    rows = [["operator", item.op], ["name", item.name]]
    rows += [["time of a run", words.show_ms(item.time_ms)]] if item.time_ms is not None else []
    rows += [["weights", words.show_bytes(item.weight_bytes)]] if item.weight_bytes else []
    rows += [["input", _tell(port)] for port in item.inputs]
    rows += [["output", _tell(port)] for port in item.outputs]
    rows += [[name, value] for name, value in item.attributes.items()]
    bodies = [[title, titles[title]] for title in item.bodies if title in titles]
    return {"op": item.op, "name": item.name, "rows": rows, "bodies": bodies}


def _tell(port: Port) -> str:
    size = f", {words.show_bytes(port.weight_bytes)}" if port.weight_bytes >= 0 else ""
    return f"{port.tensor or '(left out)'} {port.kind}{size}".strip()
