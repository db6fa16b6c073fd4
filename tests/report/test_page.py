from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
import pytest

from salver.core.model import Step
from salver.report import render_page

EVIL = "<script>alert('x')</script>\"&"
VOID = {"meta", "br", "link", "img"}


class Checker(HTMLParser):
    """Every element is closed in order; collects tags and attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_the_page_is_well_formed_and_tells_everything(record):
    step = Step(
        action="pass", name="int8-static", output_digest="sha256:ef", config={"k": 1}, tools={"onnxruntime": "1"}
    )
    page = render_page(record, title="digits", lineage=(step,), digests={"bundle": "sha256:12"})
    checker = parse(page)
    text = " ".join(checker.text)
    for candidate in record.candidates:
        assert candidate.name in text
        assert candidate.verdict.reason in text
    for word in (
        "1.98\N{MULTIPLICATION SIGN}",
        "3.69\N{MULTIPLICATION SIGN}",
        "allowed: 1 pp",
        "804",
        "AMD EPYC 9R14",
        "sha256:12",
        "Holm",
        "Suissa and Shuster",
    ):
        assert word in text
    assert page.count('<circle class="ring"') == 1


def test_the_page_needs_nothing_from_outside(record):
    page = render_page(record, title="digits")
    checker = parse(page)
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(checker.tags)
    assert not {"src", "href", "style", "action"} & {name for name, _ in checker.attributes}
    assert not any(name.startswith("on") for name, _ in checker.attributes)
    assert not re.search(r"@import|url\(|https?://", page)
    assert "default-src 'none'; style-src 'sha256-" in page


def test_whatever_comes_from_outside_is_escaped(record):
    candidates = tuple(
        msgspec.structs.replace(
            c,
            name=EVIL + c.name,
            origin=c.origin if c.origin == "baseline" else EVIL,
            recipe=({"pass": EVIL, "config": {EVIL: EVIL}},),
            verdict=msgspec.structs.replace(c.verdict, reason=EVIL),
        )
        for c in record.candidates
    )
    evil = msgspec.structs.replace(
        record, candidates=candidates, chosen=EVIL + record.chosen, why=(EVIL,), tools={EVIL: EVIL}, hints={EVIL: EVIL},
        splits={EVIL: 3}, settings=record.settings | {EVIL: EVIL},
        host=msgspec.structs.replace(record.host, cpu=EVIL, os=EVIL),
    )  # fmt: skip
    step = Step(action=EVIL, name=EVIL, output_digest=EVIL, config={EVIL: EVIL}, tools={EVIL: EVIL})
    checker = parse(render_page(evil, title=EVIL, lineage=(step,), digests={EVIL: EVIL}))
    assert "script" not in checker.tags


def test_a_record_read_back_from_json_gives_the_same_page(record):
    again = msgspec.json.decode(msgspec.json.encode(record), type=type(record))
    assert render_page(again, title="digits") == render_page(record, title="digits")


def test_nothing_but_the_original_is_still_a_page(record):
    bare = msgspec.structs.replace(record.candidates[0], evaluation=None)
    empty = msgspec.structs.replace(
        record, candidates=(bare,), chosen="original", splits={}, settings={}, tools={}, hints={}
    )
    text = " ".join(parse(render_page(empty, title="digits")).text)
    assert "the original, unchanged" in text
    assert "<svg" not in render_page(empty, title="digits")


@pytest.mark.parametrize("chosen", ["original", "fp16"])
def test_any_candidate_may_be_the_chosen_one(record, chosen):
    assert parse(render_page(msgspec.structs.replace(record, chosen=chosen), title="digits"))
