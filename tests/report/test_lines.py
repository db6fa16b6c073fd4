"""Line plots: every point has its place, and the page allows its own style and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ET

from salver.report.lines import Axis, Series, draw_lines, render_plots, standalone

X, Y = Axis(label="offered (requests/s)"), Axis(label="latency (ms)", is_log=True, limit=50.0, limit_label="limit <50>")
SERIES = [Series("p50", ((100.0, 1.0), (200.0, 2.0))), Series("p99 & more", ((100.0, 5.0), (200.0, 400.0)))]


def points(svg: str) -> list[list[tuple[float, float]]]:
    found = re.findall(r'<polyline class="series s\d" points="([^"]*)"', svg)
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())] for line in found]


def test_a_plot_is_well_formed_and_keeps_the_order_of_values() -> None:
    svg = draw_lines("Latency", X, Y, SERIES)
    ET.fromstring(svg)
    low, high = points(svg)
    assert low[0][0] < low[1][0]
    assert low[0][1] > low[1][1] > high[1][1]  # up is more
    assert "limit &lt;50&gt;" in svg
    assert "p99 &amp; more" in svg


def test_one_point_and_equal_values_have_a_place() -> None:
    for axis in (Y, Axis(label="y")):
        svg = draw_lines("One", X, axis, [Series("a", ((1.0, 3.0),)), Series("none", ())])
        [[(x, y)]] = points(svg)
        assert 0 < x < 960
        assert 0 < y < 400


def test_the_page_allows_its_own_style_alone() -> None:
    page = render_plots("A & B", [("Latency", draw_lines("Latency", X, Y, SERIES))])
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'\"" in page
    assert "style=" not in page
    assert "<title>A &amp; B</title>" in page


def test_a_plot_of_its_own_brings_its_style() -> None:
    svg = standalone(draw_lines("Latency", X, Y, SERIES))
    assert ET.fromstring(svg)[0].tag.endswith("style")
