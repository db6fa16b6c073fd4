"""The pages for people, in a real browser: what a click, a key or a search does, and that no policy is broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import Page, browsing, path_of_browser
from tests.e2e.conftest import DIGITS, salver, serving


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    program = path_of_browser()
    if program is None:
        pytest.skip("Chromium is not here; `make browser` installs it")
    with browsing(program, tmp_path / "profile") as page:
        yield page
        assert page.faults == []


CHOSEN = "document.querySelector('.chosen')?.id"
DETAILS = "document.querySelector('#details')"


def test_a_graph_can_be_looked_at(page: Page, tmp_path: Path) -> None:
    written = tmp_path / "graph.html"
    made = salver("inspect", DIGITS / "digits.onnx", "--graph", "-o", written)
    assert made.returncode == 0, made.stderr
    page.open(written.as_uri())
    assert page.ask("document.querySelectorAll('section.view:not([hidden])').length") == 1
    count = page.ask("document.querySelectorAll('#g0 .op').length")
    assert count > 3

    # A click on a box tells what it is; another where nothing is takes that away.
    page.click("#g0 .op .box")
    first = page.ask(CHOSEN)
    assert first == page.ask("document.querySelector('#g0 .op').id")
    told = page.text("#details")
    assert "operator" in told
    assert "time of a run" in told
    assert page.ask("document.querySelectorAll('.near').length") > 0
    page.press("Escape")
    assert page.ask(f"{DETAILS}.hidden")

    # Arrows walk along the edges.
    page.click("#g0 .op .box")
    page.press("ArrowDown")
    second = page.ask(CHOSEN)
    assert second != first
    page.press("ArrowUp")
    assert page.ask(CHOSEN) == first

    # A search marks what it finds, and Enter goes from one to the next.
    page.click("#find")
    page.write("relu")
    found = page.ask("document.querySelectorAll('#g0 .match').length")
    assert 0 < found < count
    assert page.text("#found") == f"{found} found"
    page.press("Enter")
    assert page.text("#found") == f"1 of {found}"
    assert "relu" in page.text("#details").lower()

    # Colors are by time, by size or none.
    heats = "[...document.querySelectorAll('#g0 .heat')].map(heat => heat.getAttribute('fill-opacity'))"
    by_time = page.ask(heats)
    page.choose("#color", "size")
    by_size = page.ask(heats)
    page.choose("#color", "nothing")
    assert set(page.ask(heats)) == {"0"}
    assert len({tuple(by_time), tuple(by_size)}) == 2

    # Zoom.
    width = "document.querySelector('#g0').getBoundingClientRect().width"
    page.click("#one")
    whole = page.ask(width)
    page.click("#in")
    assert page.ask(width) > whole
    page.click("#fit")
    assert page.ask("document.querySelector('#g0').parentElement.clientWidth") + 1 >= page.ask(width)

    # The graph as stored has boxes of its own, and the table of the slowest leads to them.
    page.choose("#which", "as stored")
    assert page.ask("document.querySelector('#v0').hidden")
    assert not page.ask("document.querySelector('#v1').hidden")
    page.click("#v1 table a")
    link = page.ask("location.hash")
    assert page.wait(CHOSEN) == link.removeprefix("#")


def test_requests_can_be_tried(page: Page) -> None:
    with serving(DIGITS / "digits.onnx") as server:
        page.open(f"{server.url}/docs")
        page.wait("document.querySelector('#models tr') !== null")
        assert "digits" in page.text("#models")
        assert "untested" in page.text("#models")
        page.choose("#operation", "POST /v2/models/digits/infer")
        body = page.ask("document.querySelector('#body').value")
        assert json.loads(body)["inputs"][0]["datatype"] == "FP32"
        assert f"{server.url}/v2/models/digits/infer" in page.text("#curl")
        page.click("#send")
        page.wait("document.querySelector('#status').className === 'good'")
        assert page.text("#status").startswith("200 OK in ")
        assert json.loads(page.text("#answer"))["model_name"] == "digits"

        page.choose("#operation", "POST /predict/digits")
        page.click("#send")
        page.wait("document.querySelector('#answer').innerText.includes('predictions')")

        # What is wrong is said where the answer would be.
        page.click("#body")
        page.ask("document.querySelector('#body').value = ''")
        page.write('{"instances": 1')
        page.click("#send")
        page.wait("document.querySelector('#status').className === 'bad'")
        assert page.text("#status").startswith("400 ")
        while not page.faults:  # the console may say it later than the page
            page.ask("0")
        assert page.faults.pop().startswith("Failed to load resource: the server responded with a status of 400")
