"""A trained network in, a tasted, sealed, served endpoint out: by the command line, with nothing in between."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import salver as salver_package
from salver.core.errors import CorruptArtifact
from tests.e2e.conftest import DIGITS, build_digits, salver, serving


def test_the_candidate_is_faster_smaller_and_certified(digits_bundle: Path) -> None:
    shown = json.loads(salver("inspect", digits_bundle, "--json").stdout)
    record = shown["evaluation"]
    chosen = next(c for c in record["candidates"] if c["name"] == record["chosen"])
    assert chosen["verdict"]["outcome"] == "accepted"
    assert chosen["name"] != "original"
    assert chosen["evaluation"]["certify"][0]["p_value"] <= 0.05
    assert chosen["evaluation"]["size_bytes"] * 2 < chosen["evaluation"]["baseline_size_bytes"]
    names = {c["name"] for c in record["candidates"]}
    assert {"runtime default: quantize_dynamic", "runtime default: quantize_static"} <= names
    assert all(c["verdict"]["reason"] for c in record["candidates"])
    data = [step["name"] for step in shown["lineage"] if step["action"] == "data"]
    assert data == ["calibrate: val.npz", "steer: val.npz", "certify: val.npz"]


def test_verify_replays_the_golden_requests(digits_bundle: Path) -> None:
    done = salver("verify", digits_bundle)
    assert done.returncode == 0, done.stderr


def test_one_changed_byte_is_refused_with_a_sentence(digits_bundle: Path, tmp_path: Path) -> None:
    data = bytearray(digits_bundle.read_bytes())
    data[len(data) // 2] ^= 1
    broken = tmp_path / "broken.salver"
    broken.write_bytes(data)
    done = salver("verify", broken)
    assert done.returncode == 4
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    with pytest.raises(CorruptArtifact):
        salver_package.Bundle.open(broken)


def test_the_model_blob_is_a_plain_onnx_file(digits_bundle: Path, tmp_path: Path) -> None:
    with salver_package.Bundle.open(digits_bundle) as bundle:
        blob = bundle.model.blobs[0].read()
    path = tmp_path / "model.onnx"
    path.write_bytes(blob)
    onnx.checker.check_model(path)


def test_report_is_one_page_without_references(digits_bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = salver("report", digits_bundle, "-o", page)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "quantize_dynamic" in text
    assert "src=" not in text
    assert 'href="http' not in text


def test_served_answers_equal_the_runtime(digits_bundle: Path) -> None:
    rows = np.load(DIGITS / "val.npz")
    images, labels = rows["image"][:32].astype(np.float32), rows["label"][:32]
    with salver_package.Bundle.open(digits_bundle) as bundle:
        session = ort.InferenceSession(bundle.model.blobs[0].read())
    expected = session.run(None, {"image": images})[0]
    with serving(digits_bundle) as server:
        tensor = {"name": "image", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
        status, answer = server.call("/v2/models/digits/infer", {"inputs": [tensor]})
        assert status == 200, answer
        got = np.array(answer["outputs"][0]["data"], np.float32).reshape(expected.shape)
        assert np.allclose(got, expected, atol=1e-3)
        assert np.mean(got.argmax(1) == labels) > 0.9
        status, answer = server.call("/predict", {"instances": images[:2].tolist()})
        assert status == 200, answer
        assert [p["label"] for p in answer["predictions"]] == [str(d) for d in got[:2].argmax(1)]


def test_drain_on_sigterm_ends_with_zero(digits_bundle: Path) -> None:
    with serving(digits_bundle) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0


def test_a_raw_model_is_served_as_untested(tmp_path: Path) -> None:
    with serving(DIGITS / "digits.onnx", "--name", "raw") as server:
        status, answer = server.call("/v2/models/raw")
    assert status == 200
    assert answer["parameters"]["tested"] is False


def test_a_second_build_resumes_from_the_cache(digits_bundle: Path, cache: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.salver"
    build_digits(again, cache)
    with salver_package.Bundle.open(again) as second, salver_package.Bundle.open(digits_bundle) as first:
        assert second.record is not None
        assert first.record is not None
        tried = {c.name: c for c in first.record.candidates}
        repeated = [c for c in second.record.candidates if c.name in tried]
        assert len(repeated) == len(tried)
        # Spared the trials of before, it has time for more, so the finalists may differ: only steering is the same.
        for c in repeated:
            before = tried[c.name].evaluation
            assert (c.evaluation and c.evaluation.steer) == (before and before.steer), c.name


def test_ctrl_c_keeps_the_best_so_far(tmp_path: Path) -> None:
    target = tmp_path / "digits.salver"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "salver",
            "build",
            DIGITS / "digits.onnx",
            "--data",
            DIGITS / "val.npz",
            "--max-drop",
            "1pp",
            "--budget",
            "10m",
            "--cache",
            tmp_path / "cache",
            "-o",
            target,
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    if process.stderr is None:
        pytest.fail("no stderr")
    seen = ""
    for line in process.stderr:
        seen += line
        if "int8-static" in line and "default" not in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.communicate(timeout=200)[1]
    assert process.returncode == 0, seen + rest
    with salver_package.Bundle.open(target) as bundle:
        assert bundle.record is not None
        assert any("interrupted" in reason for reason in bundle.record.why)
        assert len(bundle.record.candidates) < 12
