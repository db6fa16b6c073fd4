"""What an operator does over REST: the repository, labels, configuration, log, traces and shared memory."""

from __future__ import annotations

import base64
import json
import logging
import os

import numpy as np
import pytest

from salver.core.errors import FailedPrecondition, InvalidArgument, Unavailable
from salver.server.frontends import FRONTENDS, Services
from salver.server.frontends.access import Peer
from salver.server.frontends.http.exchange import Exchange
from salver.server.frontends.http.router import Router
from salver.server.frontends.oip.server_settings import change_log_settings, log_settings
from salver.server.frontends.shared_memory import SharedMemory
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import ServeSettings
from salver.testing.frontends import Catcher, body_of, call


@pytest.fixture
def frontend(services):
    return FRONTENDS.get("oip-rest")(services)


def post(frontend, path, value=None):
    return call(frontend, "POST", path, b"" if value is None else json.dumps(value).encode())


class TestRepository:
    def test_unload_and_load(self, frontend, services):
        gone = post(frontend, "/v2/repository/models/pair/unload", {"parameters": {"unload_dependents": True}})
        assert (gone.status, body_of(gone)) == (200, {})
        try:
            assert call(frontend, "GET", "/v2/models/pair/ready").status == 503
            index = {e["name"]: e["state"] for e in body_of(post(frontend, "/v2/repository/index", {"ready": True}))}
            assert "pair" not in index
        finally:
            back = post(frontend, "/v2/repository/models/pair/load")
        assert (back.status, body_of(back)) == (200, {})
        assert call(frontend, "GET", "/v2/models/pair/ready").status == 200

    def test_load_carries_configuration_and_files(self, frontend, services):
        parameters = {
            "config": json.dumps({"max_batch_size": 4}),
            "file:1/model.onnx": base64.b64encode(b"\x08\xff").decode(),
        }
        assert post(frontend, "/v2/repository/models/pair/load", {"parameters": parameters}).status == 200
        [loaded] = services.engine.repository.loads
        assert loaded == ("pair", {"max_batch_size": 4}, {"1/model.onnx": b"\x08\xff"})

    def test_a_load_that_fails_says_why(self, frontend, services):
        def refuse(name, done, **more):
            done(FailedPrecondition("golden requests failed"))

        services.engine.repository.load = refuse
        answer = post(frontend, "/v2/repository/models/pair/load")
        assert (answer.status, body_of(answer)) == (400, {"error": "golden requests failed"})

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"config": "{"}, "parameter 'config': not valid JSON"),
            ({"config": "[1]"}, "parameter 'config': Expected `object`"),
            ({"config": {"a": 1}}, "parameter 'config' is dict, expected a text"),
            ({"file:1/model.onnx": "?"}, "parameter 'file:1/model.onnx' is not base64"),
            ({"file:1/model.onnx": "é"}, "is not base64"),
            ({"fiel:1": ""}, "unknown parameter of load 'fiel:1'"),
        ],
    )
    def test_parameters_that_make_no_sense(self, frontend, services, parameters, message):
        answer = post(frontend, "/v2/repository/models/pair/load", {"parameters": parameters})
        assert answer.status == 400
        assert message in body_of(answer)["error"]
        assert services.engine.repository.loads == []

    def test_labels_move_and_answer(self, frontend):
        path = "/v2/models/linear/labels"
        assert body_of(call(frontend, "GET", path)) == {"name": "linear", "labels": {}}
        moved = post(frontend, path, {"label": "stable", "version": 1})
        assert body_of(moved) == {"name": "linear", "labels": {"stable": "1"}}
        generate = post(frontend, "/v2/models/linear/versions/stable/generate", {"x": [1, 2, 3, 4]})
        assert body_of(generate)["model_version"] == "1"
        assert call(frontend, "GET", "/v2/models/linear/versions/stable/ready").status == 200
        [stats] = body_of(call(frontend, "GET", "/v2/models/linear/versions/stable/stats"))["model_stats"]
        assert stats["version"] == "1"
        assert body_of(post(frontend, path, {"label": "stable", "version": None}))["labels"] == {}
        assert call(frontend, "GET", "/v2/models/linear/versions/stable").status == 404

    @pytest.mark.parametrize(
        ("value", "status"),
        [({"label": "1", "version": "1"}, 400), ({"label": "a", "version": "9"}, 404), ({"label": "a"}, 400)],
    )
    def test_labels_that_cannot_be(self, frontend, value, status):
        assert post(frontend, "/v2/models/linear/labels", value).status == status

    def test_a_label_of_a_model_that_is_not_ready_still_names_it(self, frontend, services):
        post(frontend, "/v2/models/linear/labels", {"label": "stable", "version": "1"})
        post(frontend, "/v2/repository/models/linear/unload")
        try:
            described = body_of(call(frontend, "GET", "/v2/models/linear/versions/stable"))
            assert described["parameters"]["state"] == "UNAVAILABLE"
        finally:
            post(frontend, "/v2/repository/models/linear/load")


def test_config(frontend):
    config = body_of(call(frontend, "GET", "/v2/models/linear/config"))
    assert (config["name"], config["input"][0]["dims"]) == ("linear", [4])
    assert call(frontend, "GET", "/v2/models/linear/versions/1/config").status == 200
    assert call(frontend, "GET", "/v2/models/linear/versions/7/config").status == 404


@pytest.fixture
def log():
    return logging.getLogger("salver")


class TestLog:
    def test_levels_follow(self, frontend, log):
        log.setLevel("INFO")
        settings = body_of(call(frontend, "GET", "/v2/logging"))
        assert settings == {
            "log_file": "",
            "log_info": True,
            "log_warning": True,
            "log_error": True,
            "log_verbose_level": 0,
            "log_format": "default",
        }
        for change, level in (
            ({"log_verbose_level": 3}, logging.DEBUG),
            ({"log_verbose_level": 0}, logging.INFO),
            ({"log_info": False}, logging.WARNING),
            ({"log_warning": False, "log_file": ""}, logging.ERROR),
            ({"log_error": False}, logging.CRITICAL + 1),
            ({"log_verbose_level": 1}, logging.DEBUG),
            ({}, logging.DEBUG),
        ):
            answer = post(frontend, "/v2/logging", change)
            assert (answer.status, log.level) == (200, level)
            assert body_of(answer) == log_settings()

    @pytest.mark.parametrize(
        ("change", "status", "message"),
        [
            ({"log_warning": False}, 400, "includes those above it"),
            ({"log_infos": True}, 400, "Did you mean 'log_info'?"),
            ({"log_info": 1}, 400, "log setting 'log_info' is 1"),
            ({"log_verbose_level": -1}, 400, "is -1"),
            ({"log_verbose_level": True}, 400, "is True"),
            ({"log_file": "/etc/passwd"}, 501, "stderr"),
            ({"log_format": "ISO8601"}, 501, "one format"),
            ([], 400, "Expected `object`"),
        ],
    )
    def test_what_cannot_be_set(self, frontend, log, change, status, message):
        log.setLevel("INFO")
        answer = post(frontend, "/v2/logging", change)
        assert (answer.status, log.level) == (status, logging.INFO)
        assert message in body_of(answer)["error"]

    def test_nothing_changes_when_one_of_several_is_wrong(self, log):
        log.setLevel("INFO")
        with pytest.raises(InvalidArgument):
            change_log_settings({"log_info": False, "log_error": "yes"})
        assert log.level == logging.INFO


def test_traces_are_off_and_stay_off(frontend):
    settings = body_of(call(frontend, "GET", "/v2/trace/setting"))
    assert settings["trace_level"] == ["OFF"]
    assert body_of(post(frontend, "/v2/trace/setting", {"trace_level": ["OFF"], "trace_rate": None})) == settings
    assert body_of(call(frontend, "GET", "/v2/models/linear/trace/setting")) == settings
    assert post(frontend, "/v2/trace/setting", {"trace_level": ["TIMESTAMPS"]}).status == 501
    assert post(frontend, "/v2/trace/setting", {"trace": 1}).status == 400


class Client:
    """A client of the same user on a Unix socket."""

    def __init__(self, services, folder):
        self.services = services
        services.shared_memory = SharedMemory("/salver-", folder=folder)
        self.frontend = FRONTENDS.get("oip-rest")(services)
        self.router = Router()
        for route in self.frontend.routes():
            self.router.add(route.method, route.path, route.handle, route.scope)
        self.peer = Peer(uid=os.geteuid())

    def ask(self, method, path, value=None, **fields):
        body = b"" if value is None else json.dumps(value).encode()
        match = self.router.find(path.encode())
        exchange = Exchange(Catcher(self.peer), method.encode(), path.encode(), match, fields, body, 0.0)
        exchange.attempt(match.handlers[method.encode()], exchange)
        return exchange


class TestSharedMemory:
    @pytest.fixture
    def client(self, models, engine, tmp_path):
        services = Services(engine, Metrics(engine.models), ServeSettings(shared_memory="/salver-"))
        return Client(services, tmp_path)

    def test_off_unless_asked_for(self, frontend):
        assert "system_shared_memory" not in body_of(call(frontend, "GET", "/v2"))["extensions"]
        answer = call(frontend, "GET", "/v2/systemsharedmemory/status")
        assert answer.status == 400
        assert "--shared-memory" in body_of(answer)["error"]

    def test_inputs_and_outputs_go_through_it(self, client, models, tmp_path):
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        (tmp_path / "salver-in").write_bytes(b"\0" * 16 + x.tobytes())
        (tmp_path / "salver-out").write_bytes(b"\xee" * 64)
        base = "/v2/systemsharedmemory"
        for name, size, offset in (("in", 32, 16), ("out", 64, 0)):
            wanted = {"key": f"/salver-{name}", "byte_size": size, "offset": offset}
            assert client.ask("POST", f"{base}/region/{name}/register", wanted).status == 200
        assert "system_shared_memory" in body_of(client.ask("GET", "/v2"))["extensions"]
        status = body_of(client.ask("GET", f"{base}/status"))
        assert status[0] == {"name": "in", "key": "/salver-in", "offset": 16, "byte_size": 32}
        assert [s["name"] for s in body_of(client.ask("GET", f"{base}/region/out/status"))] == ["out"]
        place = {"shared_memory_region": "out", "shared_memory_byte_size": 40, "shared_memory_offset": 8}
        request = {
            "inputs": [
                {
                    "name": "x",
                    "shape": [2, 4],
                    "datatype": "FP32",
                    "parameters": {"shared_memory_region": "in", "shared_memory_byte_size": 32},
                }
            ],
            "outputs": [{"name": "scores", "parameters": place}],
        }
        answer = client.ask("POST", "/v2/models/linear/infer", request)
        [output] = body_of(answer)["outputs"]
        assert "data" not in output
        assert output["parameters"]["shared_memory_byte_size"] == 24
        expected = [m for m in models if m.name == "linear"][-1].session.run({"x": x})["scores"]
        written = (tmp_path / "salver-out").read_bytes()
        assert written == b"\xee" * 8 + expected.tobytes() + b"\xee" * 32
        assert client.ask("POST", f"{base}/region/in/unregister").status == 200
        assert client.ask("POST", "/v2/models/linear/infer", request).status == 404
        assert client.ask("POST", f"{base}/unregister").status == 200
        assert body_of(client.ask("GET", f"{base}/status")) == []

    def test_others_may_not(self, client):
        client.peer = Peer()
        answer = client.ask("GET", "/v2/systemsharedmemory/status")
        assert (answer.status, "Unix socket" in body_of(answer)["error"]) == (403, True)

    def test_a_registration_that_another_process_refuses_is_refused(self, client, monkeypatch):
        refused = Unavailable("the supervisor is gone")
        memory = client.services.shared_memory
        monkeypatch.setattr(memory, "unregister", lambda *given: given[-1](refused))
        answer = client.ask("POST", "/v2/systemsharedmemory/unregister")
        assert (answer.status, body_of(answer)["error"]) == (503, "the supervisor is gone")

    def test_cuda_is_said_to_be_missing(self, frontend):
        base = "/v2/cudasharedmemory"
        assert body_of(call(frontend, "GET", f"{base}/status")) == []
        assert call(frontend, "GET", f"{base}/region/r/status").status == 404
        assert post(frontend, f"{base}/unregister").status == 200
        wanted = {"raw_handle": {"b64": ""}, "device_id": 0, "byte_size": 8}
        assert post(frontend, f"{base}/region/r/register", wanted).status == 501
        assert post(frontend, f"{base}/region/r/register", {}).status == 400
