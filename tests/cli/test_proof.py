"""What the command line shows of the proof: parity, and the graph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from salver.bundle import seal
from salver.cli import run
from salver.testing.bundles import tiny_contents

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seal(tmp_path / "tiny.salver", tiny_contents(tmp_path))


def test_verify_tells_how_far_the_answers_are_from_the_originals(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "tiny.salver"]) == 0
    text = capsys.readouterr().out
    assert "4 recorded runs of the original" in text
    assert "scores: max" in text
    assert run(["verify", "tiny.salver", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["parity"]["runs"], found["parity"]["judged_by"], found["parity"]["failures"]) == (4, "tolerance", [])


def test_a_tolerance_that_is_no_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "tiny.salver", "--tolerance", "narrow"]) == 2
    assert "expected a number such as 1e-4" in capsys.readouterr().err


def test_inspect_shows_the_certificate_without_its_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "tiny.salver"]) == 0
    text = capsys.readouterr().out
    assert "Against onnx as given, on 4 examples (your data)." in text
    assert "4 runs of the original are recorded" in text
    assert run(["inspect", "tiny.salver", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parity"]["recorded"] == {"runs": 4, "bytes": 112}


@pytest.mark.parametrize("source", ["tiny.salver", str(DIGITS)])
def test_the_graph_of_a_bundle_or_a_bare_model_is_drawn(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", source, "--graph", "-o", "graph.html"]) == 0
    assert "wrote graph.html" in capsys.readouterr().out
    page = Path("graph.html").read_text(encoding="utf-8")
    assert page.count('class="op"') >= 2
    assert ("golden inputs" if source == "tiny.salver" else "made-up inputs") in page


def test_an_output_without_a_graph_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "tiny.salver", "-o", "x.html"]) == 2
    assert "--graph" in capsys.readouterr().err
