"""A whole server: in a thread, and as a process that is told to stop."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from salver.backends import open_session
from salver.core.errors import CorruptArtifact, FailedPrecondition, InvalidArgument, NotFound, SalverError, Unavailable
from salver.core.model import Model
from salver.server import Server, ServeSettings, serve

SERVE = "import sys, json, salver; salver.serve(*sys.argv[2:], **json.loads(sys.argv[1]))"


def start(*sources: Path, **settings: Any) -> Server:
    data = {"http": "127.0.0.1:0", "sources": [str(source) for source in sources], **settings}
    server = Server(ServeSettings.from_data(data))
    server.start()
    return server


def ask(url: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        is_json = "json" in (answer.getheader("content-type") or "")
        return answer.status, json.loads(text) if is_json else text.decode()
    finally:
        connection.close()


def infer_body(model: Model, rows: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = model.signature.inputs[0]
    shape = [rows, *(d for d in spec.shape[1:] if isinstance(d, int))]
    array = np.random.default_rng(rows).random(shape).astype(np.float32)
    body = {"inputs": [{"name": spec.name, "shape": shape, "datatype": "FP32", "data": array.ravel().tolist()}]}
    return body, {spec.name: array}


def test_a_bundle_is_served_under_its_name_with_its_facts(digits: Model, digits_bundle: Path) -> None:
    server = start(digits_bundle)
    try:
        assert ask(server.url, "/v2/health/ready")[0] == 200
        body, inputs = infer_body(digits, rows=3)
        status, answer = ask(server.url, "/v2/models/numbers/infer", body)
        assert status == 200
        with open_session(digits) as session:
            expected = session.run(inputs)
        for output in answer["outputs"]:
            got = np.array(output["data"], np.float32).reshape(output["shape"])
            np.testing.assert_allclose(got, expected[output["name"]], rtol=1e-5, atol=1e-6)
        (model,) = server.engine.models()
        assert model.metadata["golden_requests"] == 3
        assert model.platform == "onnx_onnxv1"
        status, text = ask(server.url, "/metrics")
        assert 'salver_request_total{code="OK",model="numbers",version="1"} 1.0' in text
        status, stats = ask(server.url, "/v2/models/numbers/stats")
        assert stats["model_stats"][0]["inference_count"] == 3
    finally:
        server.stop()
    with pytest.raises(OSError, match="refused"):
        ask(server.url, "/v2/health/live")


def test_a_raw_file_is_served_and_said_to_be_untested(digits: Model) -> None:
    server = start(digits.path, name="raw")
    try:
        (model,) = server.engine.models()
        assert (model.name, model.tested, model.metadata["tested"]) == ("raw", False, False)
        assert 'salver_model_tested{model="raw",version="1"} 0.0' in ask(server.url, "/metrics")[1]
    finally:
        server.stop()


def test_a_folder_serves_its_versions_with_the_highest_as_default(tmp_path: Path, digits: Model) -> None:
    for version in ("2", "10"):
        (tmp_path / "net" / version).mkdir(parents=True)
        shutil.copy(digits.path, tmp_path / "net" / version / "model.onnx")
    server = start(tmp_path, versions="all", models={"net": {"max_batch": 4}, "extra": {"source": str(digits.path)}})
    try:
        body, _ = infer_body(digits)
        assert ask(server.url, "/v2/models/net/infer", body)[1]["model_version"] == "10"
        assert ask(server.url, "/v2/models/net/versions/2/infer", body)[1]["model_version"] == "2"
        assert ask(server.url, "/v2/models/extra/ready")[0] == 200
        assert server.engine.find("net").metadata["max_batch"] == 4
    finally:
        server.stop()


def test_wrong_golden_answers_stop_the_server_from_starting(wrong_bundle: Path) -> None:
    with pytest.raises(FailedPrecondition, match="golden requests failed"):
        start(wrong_bundle)


def test_one_bad_model_is_told_and_the_others_are_served(
    digits: Model, wrong_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = start(wrong_bundle, digits.path)
    try:
        status, answer = ask(server.url, "/v2/health/ready")
        assert status == 503
        assert "models UNAVAILABLE: 1" in answer["error"]
        assert ask(server.url, "/v2/models/wrong/ready")[0] == 503
        assert ask(server.url, "/v2/models/digits/ready")[0] == 200
        assert ask(server.url, "/v2/models/digits/infer", infer_body(digits)[0])[0] == 200
        with pytest.raises(Unavailable, match="golden requests failed"):
            server.engine.find("wrong")
    finally:
        server.stop()
    assert "cannot be served" in caplog.text


def test_two_bundles_of_one_name_are_refused(digits_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.salver"
    shutil.copy(digits_bundle, copy)
    server = start(digits_bundle, copy)
    try:
        states = [(m.name, m.state) for m in server.engine.models()]
        assert ("numbers", "READY") in states
        assert ("copy", "UNAVAILABLE") in states
        assert not server.engine.ready
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("cut.onnx", b"\x08\x07\x12", CorruptArtifact),
        ("cut.salver", b"not a bundle", CorruptArtifact),
        ("model.h5", b"x", InvalidArgument),
        ("missing.onnx", None, NotFound),
    ],
)
def test_what_cannot_be_served_is_a_typed_error(
    tmp_path: Path, name: str, content: bytes | None, error: type[SalverError]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error):
        start(tmp_path / name)


def test_a_taken_address_is_a_typed_error(digits: Model) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=str(port)):
            start(digits.path, http=f"127.0.0.1:{port}")


def test_a_second_stop_does_no_harm(digits: Model) -> None:
    server = start(digits.path)
    server.stop()
    server.stop()


def test_a_stop_while_loading_ends_the_start(digits: Model) -> None:
    server = Server(ServeSettings(sources=(str(digits.path),), http="127.0.0.1:0"))
    server.request_stop()
    with pytest.raises(Unavailable, match="stopped before its models were loaded"):
        server.start()


def test_serve_refuses_unknown_settings(digits: Model) -> None:
    with pytest.raises(InvalidArgument, match="Did you mean 'max_batch'"):
        serve(digits.path, max_batsh=3)


class Process:
    """`salver.serve` in a process of its own."""

    def __init__(self, *sources: Path, **settings: Any) -> None:
        data = json.dumps({"http": "127.0.0.1:0", **settings})
        command = [sys.executable, "-W", "error", "-c", SERVE, data, *map(str, sources)]
        self.popen = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
        self.lines: list[str] = []
        self._ready: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self._ready.get(timeout=60)

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.lines.append(line)
            if " on http://" in line:
                self._ready.put(line.split()[-1])
        self._ready.put("")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(60)

    def close(self) -> None:
        """Kill it if it lives, and read to the end."""
        self.popen.kill()
        self.popen.wait(60)
        self._reader.join(10)
        assert self.popen.stderr is not None
        self.popen.stderr.close()


@pytest.fixture
def process(digits_bundle: Path) -> Iterator[Process]:
    with contextlib.closing(Process(digits_bundle)) as made:
        yield made


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_0(digits: Model, process: Process, number: signal.Signals) -> None:
    assert any(line.startswith("ready on http://127.0.0.1:") for line in process.lines)
    assert ask(process.url, "/v2/models/numbers/infer", infer_body(digits)[0])[0] == 200
    assert process.end(number) == 0
    assert not [line for line in process.lines if "level=error" in line or "Traceback" in line]


def test_requests_sent_before_the_signal_are_answered(digits: Model, process: Process) -> None:
    body = json.dumps(infer_body(digits)[0])
    with contextlib.ExitStack() as stack:
        host = process.url.removeprefix("http://")
        connections = [stack.enter_context(contextlib.closing(HTTPConnection(host, timeout=30))) for _ in range(8)]
        for connection in connections:
            connection.request("POST", "/v2/models/numbers/infer", body, {"content-type": "application/json"})
        process.popen.send_signal(signal.SIGTERM)
        assert [connection.getresponse().status for connection in connections] == [200] * 8
    assert process.popen.wait(60) == 0


def test_a_server_told_to_stop_says_so_before_it_refuses(digits: Model, digits_bundle: Path) -> None:
    with contextlib.closing(Process(digits_bundle, drain_delay_s=60)) as made:
        made.popen.send_signal(signal.SIGTERM)
        while ask(made.url, "/v2/health/ready")[0] == 200:
            pass
        assert ask(made.url, "/v2/health/ready")[0] == 503
        assert ask(made.url, "/v2/health/live")[0] == 200
        assert ask(made.url, "/v2/models/numbers/infer", infer_body(digits)[0])[0] == 200
        made.popen.send_signal(signal.SIGTERM)  # the second does what it does everywhere
        assert made.popen.wait(60) == -signal.SIGTERM


def test_the_process_fails_when_nothing_can_be_served(wrong_bundle: Path) -> None:
    with contextlib.closing(Process(wrong_bundle)) as failed:
        assert failed.url == ""
        assert failed.popen.wait(60) == 1
        assert "golden requests failed on this machine" in "".join(failed.lines)


def test_a_run_that_outlives_the_drain_does_not_keep_the_process(tmp_path: Path) -> None:
    with contextlib.closing(Process(make_endless(tmp_path / "endless.onnx"), drain_s=0.2)) as made:
        tensors = [
            {"name": "x", "shape": [1, 256], "datatype": "FP32", "data": [1.0] * 256},
            {"name": "times", "shape": [], "datatype": "INT64", "data": [10_000_000]},
        ]
        host = made.url.removeprefix("http://")
        with contextlib.closing(HTTPConnection(host, timeout=30)) as connection:
            body = json.dumps({"inputs": tensors})
            connection.request("POST", "/v2/models/endless/infer", body, {"content-type": "application/json"})
            while 'salver_running_batches{model="endless",version="1"} 1.0' not in ask(made.url, "/metrics")[1]:
                time.sleep(0.01)
            assert made.end() == 1
    assert "a run outlived the drain" in "".join(made.lines)


def make_endless(path: Path) -> Path:
    """A network that multiplies as often as it is told."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("MatMul", ["v", "w"], ["product"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 256]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("product", TensorProto.FLOAT, [1, 256]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)],
        "endless",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 256]),
            helper.make_tensor_value_info("times", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 256])],
        [numpy_helper.from_array(np.eye(256, dtype=np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_both_addresses_are_told(digits_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    server = start(digits_bundle, http=f"unix:{path}", grpc="127.0.0.1:0")
    try:
        assert server.url == f"unix:{path}"
        with grpc.insecure_channel(server.grpc_address) as channel:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert live(b"", timeout=10) == b"\x08\x01"
    finally:
        server.stop()
    assert not path.exists()
