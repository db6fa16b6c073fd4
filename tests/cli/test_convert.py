"""`salver convert` and the flags that come with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from salver.cli import run
from salver.cli._explain import explain
from salver.cli._parse import parse
from salver.cli._verbs import Invocation

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["convert", str(DIGITS / "digits.onnx"), "--to", "onnx", "-o", "out.onnx", "--data", str(DIGITS / "val.npz")]
    assert run(line) == 0
    text = capsys.readouterr().out
    for expected in ("digits.onnx → imported", "imported → onnx", "100.00%", "route", "wrote out.onnx", "(data)"):
        assert expected in text


def test_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", str(DIGITS / "digits.onnx"), "--to", "ort", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["path"], found["format"]) == ("digits.ort", "ort")
    assert found["export_parity"]["outputs"][0]["max_abs"] < 1e-4
    assert found["files"][0]["size_bytes"] == Path("digits.ort").stat().st_size


def test_what_is_missing_or_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", str(DIGITS / "digits.onnx")]) == 2
    assert "name it with --to; valid: onnx, ort" in capsys.readouterr().err
    assert run(["convert", str(DIGITS / "digits.onnx"), "--to", "tflight"]) == 2
    assert "unknown format 'tflight'" in capsys.readouterr().err
    assert run(["convert", "gone.onnx", "--to", "onnx"]) == 3
    assert "gone.onnx" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("read", [parse, explain])
def test_a_flag_that_is_given_twice_counts_twice_where_it_may(read: object) -> None:
    line = ["convert", "m.pt2", "--input", "a:int64[n]", "--input", "b:int64[n]", "--to", "onnx"]
    found = read(line)  # type: ignore[operator]  # both read a command line
    assert isinstance(found, Invocation)
    assert found.flags["input"] == "a:int64[n]; b:int64[n]"
    assert found.flags["to"] == "onnx"
