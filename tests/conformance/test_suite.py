"""The suite itself: it catches servers that are wrong, and never takes an absent client for one that passed."""

from __future__ import annotations

import json
import stat
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.testing.oip import CASES, CLIENTS, GROUPS, Target, drivers, run, write_models
from salver.testing.oip.__main__ import main
from salver.testing.oip.runner import cases_of, judge

Reply = tuple[int, Any]


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's function says."""

    protocol_version = "HTTP/1.1"
    answer: Callable[[str, str, bytes], Reply]

    def do_GET(self) -> None:
        self._respond(b"")

    def do_POST(self) -> None:
        self._respond(self.rfile.read(int(self.headers.get("content-length", 0))))

    def _respond(self, body: bytes) -> None:
        status, value = type(self).answer(self.command, self.path, body)
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        return None


@contextmanager
def server(answer: Callable[[str, str, bytes], Reply]) -> Iterator[Target]:
    handler = type("Answering", (Handler,), {"answer": staticmethod(answer)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Target(http=f"http://127.0.0.1:{httpd.server_port}")
        finally:
            httpd.shutdown()
            thread.join()


def classify(
    _method: str, path: str, body: bytes, change: Callable[[dict[str, Any]], object] = lambda _: None
) -> Reply:
    """A right answer to the right request for the classifier, and a 400 to others."""
    try:
        [given] = json.loads(body)["inputs"]
        values = np.array(given["data"], np.float32).reshape(given["shape"])
        if path != "/v2/models/classifier/infer" or values.shape != (1, 4) or given["datatype"] != "FP32":
            raise ValueError("no such thing")
    except (ValueError, KeyError, TypeError) as error:
        return 400, {"error": repr(error)}
    output = {"name": "scores", "datatype": "FP32", "shape": [1, 4], "data": values.ravel().tolist()}
    answer = {"model_name": "classifier", "id": json.loads(body).get("id", ""), "outputs": [output]}
    change(answer)
    return 200, answer


def failed(target: Target, matching: str) -> set[str]:
    report = run(target, clients=["plain-http"], matching=matching)
    assert report.outcomes
    return {outcome.case for outcome in report.failures}


def test_a_server_that_says_yes_to_everything_fails() -> None:
    with server(lambda *_: (200, {})) as target:
        cases = {case.id for case in cases_of(CLIENTS[0])}
        passed = cases - failed(target, "")
        assert passed <= {
            "rest/health/live",
            "rest/health/ready",
            "rest/health/model",
            "rest/health/version",
            "rest/compression/none-unasked",
            "rest/mlflow/ping",
            "rest/mlflow/version",
            "rest/transport/json-content-type",
        }


def test_a_right_answer_passes() -> None:
    with server(classify) as target:
        assert failed(target, "rest/infer/flat") == set()
        assert failed(target, "rest/infer/id") == set()


@pytest.mark.parametrize(
    ("change", "case"),
    [
        (lambda answer: answer["outputs"][0]["data"].reverse(), "rest/infer/flat"),
        (lambda answer: answer["outputs"][0].update(shape=[4]), "rest/infer/flat"),
        (lambda answer: answer["outputs"][0].update(datatype="FP64"), "rest/infer/flat"),
        (lambda answer: answer["outputs"].append(answer["outputs"][0]), "rest/infer/flat"),
        (lambda answer: answer.pop("outputs"), "rest/infer/flat"),
        (lambda answer: answer.update(id="another"), "rest/infer/id"),
    ],
)
def test_a_wrong_answer_fails(change: Callable[[dict[str, Any]], object], case: str) -> None:
    with server(lambda *request: classify(*request, change)) as target:
        assert failed(target, case) == {case}


def test_errors_need_a_4xx_and_a_text() -> None:
    for reply in ((500, {"error": "no"}), (400, {}), (400, {"error": 5}), (200, {"error": "no"})):
        with server(lambda *_, reply=reply: reply) as target:
            assert failed(target, "rest/errors/no-shape") == {"rest/errors/no-shape"}, reply
    with server(lambda *_: (422, {"error": "no shape"})) as target:
        assert failed(target, "rest/errors/no-shape") == set()


def test_lost_digits_are_seen_by_a_real_client() -> None:
    pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")

    def identity(_method: str, path: str, body: bytes) -> Reply:
        if not body:
            return 200, {"name": "identity_fp64", "inputs": [], "outputs": [{"name": "y"}]}
        [given] = json.loads(body)["inputs"]
        rounded = [float(f"{value:.15g}") for value in given["data"]]
        return 200, {"model_name": "m", "outputs": [{**given, "name": "y", "data": rounded}]}

    with server(identity) as target:
        report = run(target, clients=["tritonclient.http"], matching="numbers/json/fp64-digits")
    [outcome] = report.outcomes
    assert "0.3, expected 0.30000000000000004" in outcome.failure


def test_a_server_that_is_silent_fails_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "_CALL_S", 0.5)
    stop = threading.Event()

    def slow(_method: str, path: str, _body: bytes) -> Reply:
        if path == "/v2/health/live":
            stop.wait(10)
        return 200, {}

    with server(slow) as target:
        report = run(target, clients=["plain-http"], matching="rest/health")
        stop.set()
    assert {o.case: o.failure for o in report.outcomes if o.failure} == {
        "rest/health/live": "got NoAnswer: no answer within 0 s"
    }


def test_a_client_that_dies_and_starts_no_more_fails_its_cases() -> None:
    client = CLIENTS[0]
    with server(classify) as target, drivers.Driver(client, target) as driver:
        assert judge(driver, case := next(c for c in CASES if c.id == "rest/infer/flat")) == ""
        driver._python = "/no/such/python"
        driver.close()
        assert "NoAnswer" in judge(driver, case)
        assert "NoAnswer" in judge(driver, case)


def test_a_client_that_is_not_installed_is_named_and_never_passes(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n', encoding="utf-8")
    bare.chmod(bare.stat().st_mode | stat.S_IXUSR)
    with server(lambda *_: (200, {})) as target:
        report = run(
            target,
            {"kserve": str(bare), "ovmsclient": str(tmp_path / "none")},
            clients=["kserve.http", "ovmsclient.http"],
        )
    assert report.outcomes == ()
    assert report.absent["kserve.http"].startswith("not installed (No module named")
    assert "does not run" in report.absent["ovmsclient.http"]


def test_clients_without_an_address_are_named() -> None:
    report = run(Target(http="http://127.0.0.1:1"), clients=["grpcio"])
    assert report.absent == {"grpcio": "the server's grpc address was not given"}


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with server(classify) as target:
        run_ = ["run", "--http", target.http, "--only", "plain-http", "--matching"]
        assert main([*run_, "rest/infer/flat"]) == 0
        assert main([*run_, "rest/metadata/model"]) == 1
        assert "demand: name, versions" in capsys.readouterr().out.replace("\n", " ")
        assert main([*run_, "no such case"]) == 2
        capsys.readouterr()
        assert main([*run_, "rest/infer/flat", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["outcomes"][0]["case"] == "rest/infer/flat"


def test_the_table_is_sound() -> None:
    assert [case_id for case_id, n in Counter(case.id for case in CASES).items() if n > 1] == []
    assert len(CASES) > 200
    for case in CASES:
        assert case.group in GROUPS, case.id
        assert case.says, case.id
        assert case.source, case.id
        assert "\n" not in case.says, case.id
        assert [client.name for client in CLIENTS if case.wants <= client.can], f"no client runs {case.id}"


@pytest.mark.parametrize("layout", ["salver", "triton", "mlserver"])
def test_models_are_written_in_every_layout(layout: str, tmp_path: Path) -> None:
    assert main(["models", str(tmp_path), "--layout", layout]) == 0
    write_models(tmp_path, layout)  # again, over what is there
    marks = {"salver": "1/model.onnx", "triton": "config.pbtxt", "mlserver": "model-settings.json"}
    asked = {call.arguments.get("model") for case in CASES for call in case.calls} - {None, "", "no_such_model"}
    for model in asked:
        assert (tmp_path / str(model) / marks[layout]).is_file(), model
