"""One clear sentence, the right exit code, and no traceback unless it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from salver.cli import run
from salver.cli._exit_codes import MEANINGS, exit_code
from salver.core.errors import Code, CorruptArtifact, SalverError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        ("build model.onnx", 2, "error: no data: name the validation examples with --data"),
        ("build model.onnx --data no.npz", 3, "no.npz"),
        ("inspect no.salver", 3, "no.salver"),
        ("serve --lanes two", 2, "error: --lanes: got 'two', expected an integer"),
        ("serve --config no.toml", 3, "error: no such configuration file: 'no.toml'"),
        ("report no.salver", 3, "no.salver"),
        ("nonsense", 2, "error: No such command 'nonsense'"),
    ],
)
def test_errors_are_one_sentence(line: str, code: int, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "no.salver", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_debug_can_come_from_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SALVER_DEBUG", "1")
    assert run(["inspect", "no.salver"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_an_unknown_variable_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALVER_HTPP", "x")
    assert run(["doctor"]) == 2
    assert "Did you mean 'SALVER_HTTP'?" in capsys.readouterr().err


def test_every_code_has_an_exit_code_with_a_meaning() -> None:
    for code in Code:
        error = type("Some", (SalverError,), {"code": code})("x")
        assert exit_code(error) in MEANINGS
    assert exit_code(CorruptArtifact("x")) == 4


def salver(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "salver", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def test_the_installed_command_says_its_version() -> None:
    done = salver("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("salver ")


def test_no_verb_shows_the_help() -> None:
    done = salver()
    assert done.returncode == 0
    assert "Usage: salver" in done.stdout


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    code = "import os; r, w = os.pipe(); os.dup2(w, 1); os.close(r); import salver.cli; salver.cli.main()"
    command = [sys.executable, "-c", code, "doctor"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
