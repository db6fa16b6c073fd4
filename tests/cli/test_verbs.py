"""Every verb, on a bundle that the command line itself built."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import salver
from salver.cli import run

VAL = Path(__file__).parents[2] / "examples" / "digits" / "val.npz"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read_json(line: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    assert run(line) == code
    return json.loads(capsys.readouterr().out)


def test_inspect(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = read_json(["inspect", str(bundle), "--json"], capsys)
    assert found["name"] == "digits"
    assert found["tested"] is True
    assert [spec["name"] for spec in found["signature"]["inputs"]] == ["image"]
    assert found["signature"]["outputs"][0]["labels"] == list("0123456789")
    assert found["evaluation"]["candidates"][0]["name"] == "original"
    assert run(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    for expected in (found["digest"], "[batch, 1, 28, 28]", "model.onnx", "original", "Lineage"):
        assert expected in text


def test_verify(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_json(["verify", str(bundle), "--json"], capsys)["ok"] is True
    assert run(["verify", str(bundle)]) == 0
    assert "golden requests gave the stored answers" in capsys.readouterr().out


def test_a_changed_byte_is_refused(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "changed.salver").write_bytes(data)
    assert run(["verify", "changed.salver"]) == 4
    assert capsys.readouterr().err.startswith("error: 'changed.salver'")


def test_keys_sign_verify(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(bundle, tmp_path / "signed.salver")
    assert run(["keys", "-o", "keys"]) == 0
    assert run(["keys", "-o", "other"]) == 0
    assert run(["keys", "-o", "keys"]) == 9
    assert run(["sign", "signed.salver"]) == 2
    assert run(["verify", "signed.salver", "--key", "keys/public.pem"]) == 4
    assert run(["sign", "signed.salver", "--key", "keys/private.pem"]) == 0
    capsys.readouterr()
    report = read_json(["verify", "signed.salver", "--key", "keys/public.pem", "--json"], capsys)
    assert report["verified_key"] in report["signed_by"]
    assert run(["verify", "signed.salver", "--key", "other/public.pem"]) == 4
    assert salver.Bundle.open("signed.salver").digest == salver.Bundle.open(bundle).digest


def test_report(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(bundle)]) == 0
    assert "wrote digits.html" in capsys.readouterr().out
    assert (tmp_path / "digits.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert run(["report", str(bundle), "-o", "no/such/folder.html"]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.html"]


def test_predict(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = np.load(VAL)
    np.savez(tmp_path / "few.npz", image=data["image"][:30])
    logits = np.array(read_json(["predict", str(bundle), "few.npz", "--json"], capsys)["outputs"]["logits"])
    assert (logits.argmax(axis=1) == data["label"][:30]).mean() > 0.9
    assert run(["predict", str(bundle), "few.npz", "-o", "answers.npz"]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "answers.npz", allow_pickle=False)["logits"], logits, rtol=1e-6)
    capsys.readouterr()
    assert run(["predict", str(bundle), "few.npz"]) == 0
    assert "and 10 more" in capsys.readouterr().out
    np.savez(tmp_path / "wrong.npz", image=data["image"][:3, :, :27])
    assert run(["predict", str(bundle), "wrong.npz"]) == 2


def test_serve_answers_and_stops_when_told(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "salver.toml").write_text(f"[models.renamed]\nsource = '{bundle}'\nmax_batch = 4\n", encoding="utf-8")
    command = [sys.executable, "-W", "error", "-m", "salver", "serve", "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = ready_url(server)
            with urllib.request.urlopen(f"{url}/v2/models/renamed", timeout=10) as response:
                assert json.load(response)["inputs"][0]["name"] == "image"
        finally:
            server.send_signal(signal.SIGTERM)
            _, rest = server.communicate(timeout=30)
    assert server.returncode == 0, rest


def ready_url(server: subprocess.Popen[str]) -> str:
    """The address in the line that says that the server is ready."""
    lines = []
    for line in server.stderr or ():
        lines.append(line)
        if line.startswith("ready on "):
            return line.split()[-1]
    raise AssertionError("".join(lines))


def test_a_defect_is_one_sentence(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(salver.Bundle, "sizes", fail)
    assert run(["inspect", str(bundle)]) == 1
    assert "error: ZeroDivisionError: a defect; this is a defect of Salver" in capsys.readouterr().err


def test_ctrl_c_ends_with_130(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(salver.Bundle, "sizes", interrupt)
    assert run(["inspect", str(bundle)]) == 130
    assert capsys.readouterr().err == "interrupted\n"
