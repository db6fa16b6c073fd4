"""The page that shows a graph: what it draws, that nothing escapes, that thousands of nodes are no trouble."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from salver.report.graph import GraphInfo, GraphNode, GraphView, Port, render_graph
from salver.report.graph.layout import lay_out
from salver.report.graph.page import MOST_DRAWN


def chain(count: int, *, name: str = "node") -> GraphView:
    """Operators one after another, each third also reading what stands two before it."""
    nodes = []
    for i in range(count):
        reads = [f"t{i}"] + ([f"t{i - 2}"] if i > 2 and i % 3 == 0 else [])
        ports = [*(Port(tensor=t) for t in reads), Port(tensor=f"w{i}", kind="float [8, 8]", weight_bytes=256 * i)]
        out = (Port(tensor=f"t{i + 1}"),)
        nodes.append(GraphNode(name=f"{name}{i}", op="Add", inputs=tuple(ports), outputs=out, time_ms=0.01 * i))
    end = (Port(tensor=f"t{count}", kind="float [batch, 8]"),)
    return GraphView(title="as stored", note="a test", inputs=(Port(tensor="t0"),), outputs=end, nodes=tuple(nodes))


def page_of(*views: GraphView, name: str = "tiny") -> str:
    return render_graph(GraphInfo(name=name, facts={"size": "1 kB"}, views=views))


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for seen, attrs in self.seen if seen == tag]


def data_of(page: str) -> list[dict[str, object]]:
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_every_operator_has_a_box_with_its_size_and_time() -> None:
    page = page_of(chain(5))
    labels = [attrs["aria-label"] for attrs in Tags(page).all("g") if attrs.get("role") == "option"]
    assert labels[0] == "input t0 "
    assert labels[5] == "Add, node4, 1.02 kB, 40 µs, 40 %"
    assert labels[-1] == "output t5 float [batch, 8]"
    assert data_of(page)[0]["edges"] == [[0, 1], [1, 2], [1, 4], [2, 3], [3, 4], [4, 5], [5, 6]]


def test_names_from_a_model_are_only_ever_text() -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00\x1b"
    view = chain(3, name=evil)
    page = page_of(view, name=evil)
    tags = Tags(page)
    assert not tags.all("img")
    assert len(tags.all("script")) == 2
    assert "\x00" not in page
    assert "\x1b" not in page
    items = data_of(page)[0]["items"]
    assert isinstance(items, list)
    assert items[1]["name"] == evil + "0"


def test_the_page_fetches_nothing_and_runs_only_its_own_script() -> None:
    page = page_of(chain(3))
    policy = next(a["content"] for a in Tags(page).all("meta") if a.get("http-equiv"))
    assert policy is not None
    assert re.fullmatch(r"default-src 'none'; style-src 'sha256-[^']+'; script-src 'sha256-[^']+'", policy)
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert " style=" not in page
    assert not re.search(r"\son\w+=", page.partition("<script>")[0])


def test_what_is_drawn_is_also_said_in_tables_that_lead_to_the_boxes() -> None:
    tags = Tags(page_of(chain(5)))
    targets = [attrs["href"] for attrs in tags.all("a")]
    assert targets[0] == "#n0-5"
    ids = {attrs["id"] for _, attrs in tags.seen if attrs.get("id")}
    assert {str(target)[1:] for target in targets} <= ids


@pytest.mark.parametrize("count", [1, 40, 3000])
def test_boxes_do_not_overlap_and_edges_go_down(count: int) -> None:
    edges = [(i, i + 1) for i in range(count - 1)] + [(i, min(i + 40, count - 1)) for i in range(0, count - 1, 7)]
    edges += [(0, i) for i in range(1, count, 5)]
    layout = lay_out([100.0] * count, edges)
    assert all(layout.layer[a] < layout.layer[b] for a, b in edges)
    rows: dict[int, list[float]] = {}
    for x, layer in zip(layout.x, layout.layer, strict=True):
        rows.setdefault(layer, []).append(x)
    for row in rows.values():
        row.sort()
        assert all(b - a >= 100.0 for a, b in pairwise(row))
    assert {(a, b) for a, b, _ in layout.edges} == set(edges)


def test_a_straight_chain_is_drawn_straight() -> None:
    assert len(set(lay_out([80.0, 120.0, 90.0], [(0, 1), (1, 2)]).x)) == 1


def test_a_graph_too_large_to_draw_is_told_in_tables() -> None:
    nodes = tuple(GraphNode(name=f"n{i}", op="Add", inputs=(), outputs=()) for i in range(MOST_DRAWN + 1))
    page = page_of(GraphView(title="all", note="", inputs=(), outputs=(), nodes=nodes))
    assert "are more than a browser draws well" in page
    assert not Tags(page).all("svg")
    assert "12,001" in page
