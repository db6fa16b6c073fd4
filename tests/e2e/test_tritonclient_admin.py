"""The real tritonclient against a real server: everything besides inference; and shared memory over a Unix socket."""

from __future__ import annotations

import gc
import http.client
import json
import os
import shutil
import socket
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from salver.server.app import Server
from salver.server.settings import ServeSettings

http_client = pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http]' to run these")


def write_model(path: Path, factor: float) -> bytes:
    """``y = factor * x``, 4 wide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "f"], ["y"])],
        "times",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor("f", TensorProto.FLOAT, [], [factor])],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path):
    write_model(tmp_path / "models" / "times" / "1" / "model.onnx", 2)
    write_model(tmp_path / "models" / "other" / "1" / "model.onnx", 5)
    return tmp_path / "models"


@pytest.fixture
def server(folder):
    settings = ServeSettings(sources=(str(folder),), http="127.0.0.1:0", versions="all", allow_uploads=True)
    with Server(settings) as running:
        yield running
        gc.collect()  # clients that a traceback kept must end in the thread that made them: gevent wants it so


@pytest.fixture
def client(server):
    with http_client.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=30) as client:
        yield client


def ask(client, x, version="", model="times"):
    tensor = http_client.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    return client.infer(model, [tensor], model_version=version).as_numpy("y")


X = np.array([[1, 2, 3, 4]], np.float32)


def test_models_are_loaded_unloaded_and_replaced(client, folder):
    assert ask(client, X).tolist() == (2 * X).tolist()
    client.unload_model("other", unload_dependents=True)
    assert not client.is_model_ready("other")
    with pytest.raises(http_client.InferenceServerException):
        ask(client, X, model="other")
    states = {(e["name"], e["version"]): e["state"] for e in client.get_model_repository_index()}
    assert states["times", "1"] == "READY"
    assert "READY" not in {state for (name, _), state in states.items() if name == "other"}
    client.load_model("other")
    assert ask(client, X, model="other").tolist() == (5 * X).tolist()
    write_model(folder / "times" / "2" / "model.onnx", 3)
    client.load_model("times")
    assert ask(client, X).tolist() == (3 * X).tolist()
    assert ask(client, X, "1").tolist() == (2 * X).tolist()
    with pytest.raises(http_client.InferenceServerException) as caught:
        client.load_model("nothing")
    assert caught.value.status() == "404"


def test_files_may_be_sent(client, tmp_path):
    content = write_model(tmp_path / "sent.onnx", 7)
    client.load_model("times", config="{}", files={"file:1/model.onnx": content})
    assert ask(client, X).tolist() == (7 * X).tolist()


def test_configuration_statistics_and_settings(client):
    config = client.get_model_config("times")
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4], "format": "FORMAT_NONE"}]
    assert config["max_batch_size"] > 1
    ask(client, X)
    [stats] = client.get_inference_statistics("times", "1")["model_stats"]
    assert stats["inference_stats"]["success"]["count"] == 1
    assert client.get_inference_statistics()["model_stats"]
    assert client.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1
    assert client.update_log_settings({"log_verbose_level": 0}) == client.get_log_settings()
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    assert client.update_trace_settings("times", {"trace_level": None}) == client.get_trace_settings("times")
    with pytest.raises(http_client.InferenceServerException) as caught:
        client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})
    assert caught.value.status() == "501"
    with pytest.raises(http_client.InferenceServerException, match="--shared-memory"):
        client.get_system_shared_memory_status()


def test_events_arrive_as_such(server):
    body = json.dumps({"x": [1, 2, 3, 4]}).encode()
    with urlopen(Request(f"{server.url}/v2/models/times/generate_stream", body)) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        text = answer.read().decode()
    assert text.startswith("data: ")
    assert text.endswith("\n\n")
    assert json.loads(text[6:]) == {"model_name": "times", "model_version": "1", "y": [2.0, 4.0, 6.0, 8.0]}


def test_labels_move_while_it_serves(server, client, folder):
    write_model(folder / "times" / "2" / "model.onnx", 3)
    client.load_model("times")
    for version in ("1", "2"):
        body = json.dumps({"label": "stable", "version": version}).encode()
        with urlopen(Request(f"{server.url}/v2/models/times/labels", body)) as answer:
            assert json.load(answer)["labels"] == {"stable": version}
        assert ask(client, X, "stable").tolist() == ((1 + int(version)) * X).tolist()


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(self.path)

    def ask(self, method, path, value=None):
        self.request(method, path, None if value is None else json.dumps(value))
        answer = self.getresponse()
        return answer.status, json.loads(answer.read())


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs /dev/shm, where Linux keeps shared memory")
def test_tensors_in_shared_memory(folder, tmp_path_factory):
    name = f"salver-test-{os.getpid()}"
    path = Path("/dev/shm") / name
    address = tmp_path_factory.mktemp("s") / "http"
    settings = ServeSettings(sources=(str(folder),), http=f"unix:{address}", shared_memory="/salver-test-")
    path.write_bytes(X.tobytes() * 2)
    try:
        with Server(settings):
            connection = UnixConnection(address)
            region = "/v2/systemsharedmemory/region/r"
            assert connection.ask("POST", f"{region}/register", {"key": f"/{name}", "byte_size": 32})[0] == 200
            place = {"shared_memory_region": "r", "shared_memory_byte_size": 16}
            tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": place}
            wanted = {"name": "y", "parameters": {**place, "shared_memory_offset": 16}}
            request = {"inputs": [tensor], "outputs": [wanted]}
            status, answer = connection.ask("POST", "/v2/models/times/infer", request)
            assert (status, "data" in answer["outputs"][0]) == (200, False)
            assert path.read_bytes() == X.tobytes() + (2 * X).tobytes()
            with path.open("r+b") as file:
                file.truncate(8)
            status, answer = connection.ask("POST", "/v2/models/times/infer", request)
            assert status == 400
            assert "byte 16 of its object, which has 8" in answer["error"]
            assert connection.ask("GET", "/v2/health/live") == (200, {"live": True})
            connection.close()
    finally:
        path.unlink()
        shutil.rmtree(address.parent, ignore_errors=True)
