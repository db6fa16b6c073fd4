"""`salver bench` against a real server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.cli import run
from salver.cli._bench_input import parse_range, parse_rates, read_arrays
from salver.client import Client
from salver.core.errors import InvalidArgument, NotFound
from salver.core.traces import read_trace
from salver.server.app import Server
from salver.server.settings import ServeSettings

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
SHORT = ["--duration", "300ms", "--warm-up", "0s"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(ServeSettings(sources=(str(DIGITS),), http="127.0.0.1:0", grpc="127.0.0.1:0")) as running:
        yield running


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read_json(line: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert run(line) == 0
    return json.loads(capsys.readouterr().out)


def test_a_closed_loop_for_a_person(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", server.url, *SHORT, "--slo", "10s", "--check"]) == 0
    said = capsys.readouterr().out
    for expected in ("digits at http://", "closed loop, 16 requests in flight", "p99.9", "100.00% of requests within"):
        assert expected in said


def test_an_open_loop_for_a_program(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["bench", f"grpc://{server.grpc_address}", "--rate", "100/s", "--slo", "10s", "--json", *SHORT]
    found = read_json([*line, "--record", "arrivals.jsonl", "--model", "digits/1"], capsys)
    assert found["outcomes"] == {"OK": found["requests"]}
    assert found["latency"]["p99.9"] >= found["latency"]["p50"] > 0
    arrivals = list(read_trace(Path("arrivals.jsonl")))
    assert len(arrivals) == found["requests"]
    again = read_json(["bench", server.url, "--trace", "arrivals.jsonl", "--json"], capsys)
    assert again["outcomes"] == {"OK": len(arrivals)}


def test_a_sweep_and_its_plots(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["bench", server.url, "--rate", "50/s..100/s", "--slo", "10s", *SHORT]
    assert run([*line, "--plot", "sweep.html"]) == 0
    assert "in SLO" in capsys.readouterr().out
    page = Path("sweep.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert "objective: 10000 ms" in page
    assert "http-equiv" in page
    found = read_json([*line, "--json", "--plot", "sweep.svg"], capsys)
    assert len(found) == 2
    assert Path("sweep.svg").read_text(encoding="utf-8").startswith("<svg")
    assert run(["bench", server.url, "--requests", "50", "--plot", "one.html"]) == 0
    assert "Latency by percentile" in Path("one.html").read_text(encoding="utf-8")


def test_the_highest_rate(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    found = read_json(["bench", server.url, "--rate", "max", "--slo", "30s", "--json", *SHORT], capsys)
    assert found["best"]["offered_per_s"] == max(result["offered_per_s"] for result in found["runs"])
    assert run(["bench", server.url, "--rate", "max", *SHORT]) == 2
    assert "latency objective" in capsys.readouterr().err


def test_a_scenario(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["bench", server.url, "--scenario", "single-stream", "--duration", "100ms"]
    found = read_json([*line, "--json"], capsys)
    assert (found["scenario"], found["unit"], found["is_valid"]) == ("single-stream", "ms", False)
    assert run(line) == 0
    assert "does not keep the scenario's rules" in capsys.readouterr().out
    assert run(["bench", server.url, "--scenario", "server"]) == 2


def test_inputs_and_expected_answers(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.random.default_rng(0).random((6, 1, 28, 28)).astype(np.float32)
    np.savez("inputs.npz", image=rows)
    np.savez("zeros.npz", logits=np.zeros((6, 10), np.float32))
    line = ["bench", server.url, "--inputs", "inputs.npz", "--requests", "12", "--rows", "2"]
    assert run([*line, "--check"]) == 0
    assert run([*line, "--expected", "zeros.npz"]) == 1
    assert "12 of 12 answers of model 'digits' are wrong" in capsys.readouterr().err


def asked(server: Server) -> int:
    """Requests that the server has answered."""
    with Client(server.url) as client:
        [found] = client.statistics("digits")
    return int(found["inference_count"])


def test_ctrl_c_ends_the_run_and_shows_what_was_measured(server: Server) -> None:
    before = asked(server)
    line = [sys.executable, "-m", "salver", "bench", server.url, "--warm-up", "0s", "--duration", "1h", "--json"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while asked(server) == before:  # until the run has begun
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            said, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert json.loads(said)["requests"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rate", "fast"], "--rate: got 'fast', expected 500/s"),
        (["--rate", "0/s"], "--rate: got '0/s'"),
        (["--rate", "5/s", "--concurrency", "2"], "give one of them"),
        (["--plot", "x.png"], "ends in .html or .svg"),
        (["--int-range", "9..1"], "--int-range: got '9..1'"),
        (["--expected", "x.npz"], "--inputs, which is not given"),
        (["--wire", "grpc"], "needs a URL that begins with grpc://"),
    ],
)
def test_what_cannot_work_is_said(
    server: Server, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", server.url, *flags]) == 2
    assert message in capsys.readouterr().err


def test_rates_and_ranges() -> None:
    assert parse_rates("") == []
    assert parse_rates("500/s") == [500]
    assert parse_rates("90/m") == [1.5]
    assert parse_rates("100/s,250") == [100, 250]
    assert parse_rates("100/s..500/s") == [100, 200, 400, 500]
    assert parse_range("-3..7") == (-3, 7)


def test_files_of_arrays(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": [[0.5, 1]], "n": [3], "s": ["a"]}')
    found = read_arrays(tmp_path / "a.json")
    assert {name: (array.dtype.str, array.shape) for name, array in found.items()} == {
        "x": ("<f4", (1, 2)),
        "n": ("<i8", (1,)),
        "s": ("|O", (1,)),
    }
    (tmp_path / "b.json").write_text('{"x": [1, 2], "y": [1]}')
    with pytest.raises(InvalidArgument, match="equally many rows, got \\[1, 2\\]"):
        read_arrays(tmp_path / "b.json")
    (tmp_path / "c.npz").write_text("no zip")
    with pytest.raises(InvalidArgument, match=r"c\.npz: expected \.npz"):
        read_arrays(tmp_path / "c.npz")
    with pytest.raises(NotFound):
        read_arrays(tmp_path / "d.npz")
