from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from salver.report import print_terminal


@pytest.mark.parametrize("width", [80, 140])
def test_every_candidate_its_verdict_and_its_reason_are_printed(record, width):
    console = Console(file=io.StringIO(), width=width)
    print_terminal(record, console)
    text = console.file.getvalue()
    flat = "".join(text.split()).replace("│", "")
    for candidate in record.candidates:
        assert "".join(candidate.verdict.reason.split()) in flat
    for word in (
        "original",
        "chosen",
        "undecided",
        "not applicable",
        "failed",
        "1.98\N{MULTIPLICATION SIGN}",
        "3.69\N{MULTIPLICATION SIGN}",
        "19.3 ms",
    ):
        assert word in text
    assert max(len(line.rstrip("\n")) for line in text.splitlines()) <= width


def test_names_with_markup_are_printed_as_they_are(record):
    odd = msgspec.structs.replace(record.candidates[5], name="[bold]x[/nothing]")
    candidates = (*record.candidates[:5], odd, *record.candidates[6:])
    console = Console(file=io.StringIO(), width=140)
    print_terminal(msgspec.structs.replace(record, candidates=candidates, chosen=odd.name), console)
    assert "[bold]x[/nothing]" in console.file.getvalue()
