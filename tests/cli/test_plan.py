"""`salver plan`, on a bundle and a small load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from salver.cli import run
from salver.core.traces import Arrival, write_trace


def test_a_plan_as_a_table_and_as_json(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plan", "--bundle", str(bundle), "--rate", "20/s", "--slo", "2s", "--cores", "1"]
    assert run([*line, "--availability", "n-1", "--price", "0.04", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["demand"]["rate_per_s"] == 20
    plan = found["plan"]
    assert plan["nodes"] == 2
    assert plan["layout"] == {"workers": 1, "lanes": 1, "threads": 1, "cores": 1}
    assert plan["degraded"]["good"] > 0.99 * plan["degraded"]["offered"]
    assert plan["cost_per_million"] == pytest.approx(2 * 0.04 / (20 * 3600) * 1e6)
    assert run(line) == 0
    text = capsys.readouterr().out
    for expected in (
        "Measured here",
        "1 of each node",
        "p99",
        "binds",
        "--workers 1 --lanes 1 --threads 1",
        "--slo 2s",
    ):
        assert expected in text
    assert "cost" not in text


def test_a_trace_is_planned_for(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "arrivals.jsonl"
    write_trace(trace, (Arrival(i / 10, model="digits") for i in range(1, 101)))
    line = ["plan", "--bundle", str(bundle), "--trace", str(trace), "--slo", "2s", "--cores", "1", "--json"]
    assert run(line) == 0
    assert json.loads(capsys.readouterr().out)["demand"]["rate_per_s"] == pytest.approx(10)
    assert run([*line, "--rate", "40/s"]) == 0
    assert json.loads(capsys.readouterr().out)["demand"]["arrivals"]["speed"] == pytest.approx(4)


def test_what_no_node_can_do_is_said(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--bundle", str(bundle), "--rate", "5/s", "--slo", "0.01ms", "--cores", "1"]) == 5
    assert "the latency objective of 0.01 ms is too tight" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        ("", 2, "plan needs --bundle, --slo and --rate or --trace"),
        ("--bundle B --rate 5/s", 2, "plan needs"),
        ("--bundle B --slo 1s", 2, "plan needs"),
        ("--bundle B --slo 1s --rate 5/s,6/s", 2, "expected one rate"),
        ("--bundle B --slo 1s --rate fast", 2, "--rate: got 'fast'"),
        ("--bundle B --slo 1s --rate 5/s --availability 99%", 2, "--availability: got '99%'"),
        ("--bundle B --slo 1s --rate 5/s --price dear", 2, "--price: got 'dear'"),
        ("--bundle B --slo 1s --rate 5/s --price nan", 2, "--price: got 'nan'"),
        ("--bundle B --slo 1s --rate 5/s --rows 0", 2, "--rows: got 0"),
        ("--bundle none.salver --slo 1s --rate 5/s", 3, "none.salver"),
        ("--bundle B --slo 1s --trace none.jsonl", 3, "none.jsonl"),
    ],
)
def test_what_is_wrong_with_the_line(
    line: str, code: int, told: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(bundle) if word == "B" else word for word in line.split()]
    assert run(["plan", *words]) == code
    assert told in capsys.readouterr().err
