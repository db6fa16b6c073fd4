"""`salver tune` with real servers, ended by Ctrl-C: the best so far is written down, and obeyed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from salver.bundle import Bundle, seal
from salver.cli import run
from salver.client.load.tuning import DEFAULT
from salver.server.tuned import read_tuned
from salver.testing.bundles import tiny_contents


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.salver"
    seal(path, tiny_contents(tmp_path))
    return path


def test_ctrl_c_keeps_the_best_so_far(tiny: Path) -> None:
    line = [sys.executable, "-m", "salver", "tune", str(tiny), "--slo", "5s", "--json"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "within 5e+03 ms" in process.stderr.readline()
            assert DEFAULT.name in process.stderr.readline()  # the first trial is over
            process.send_signal(signal.SIGINT)
            said, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    found = json.loads(said)
    assert found["choice"]["winner"]["candidate"]["max_batch"] == found["settings"]["max_batch"]
    tuned = read_tuned(tiny, Bundle.open(tiny).digest)
    assert tuned is not None
    assert (tuned.settings.slo_s, tuned.settings.threads) == (5.0, found["settings"]["threads"])
    assert tuned.measured[0]["rate_per_s"] > 0
    assert tuned.why[0] == "objective: 99 % of requests within 5e+03 ms"


def test_the_budget_ends_it_and_the_file_may_be_named(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "elsewhere.toml"
    assert run(["tune", str(tiny), "--slo", "5s", "--budget", "5s", "--cores", "1", "-o", str(target)]) == 0
    said = capsys.readouterr().out
    assert "99 % within the objective up to" in said
    assert "wrote" in said
    document = tomllib.loads(target.read_text(encoding="utf-8"))
    assert document["cores"] == 1
    assert document["settings"]["slo_s"] == 5.0


def test_what_cannot_work_is_said(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tune", str(tiny), "--cores", "100000"]) == 2
    assert "--cores: got 100000" in capsys.readouterr().err
    assert run(["tune", "nobody.salver"]) == 3
