"""Sequences, models that crash, and shared memory, in a server of several processes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from http.client import HTTPConnection

from salver.server.frontends.shared_memory import FOLDER
from tests.server.engine.bench import adds
from tests.server.processes import rogue
from tests.server.processes.served import Clients
from tests.server.processes.test_catalog_process import post, value
from tests.server.processes.test_forward import sums


def states(served):
    """Name and version -> state and reason."""
    return {f"{e['name']}:{e['version']}": (e["state"], e["reason"]) for e in post(served, "/v2/repository/index")[1]}


def step(served, x, sequence, **parameters):
    """One step of a sequence, on a connection of its own; the sum."""
    parameters = {f"sequence_{name}": value for name, value in parameters.items()}
    body = {
        "parameters": {"sequence_id": sequence, **parameters},
        "inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [x]}],
    }
    status, answer = post(served, "/v2/models/sums/infer", body)
    assert status == 200, answer
    return answer["outputs"][0]["data"][0]


def test_a_sequence_goes_on_over_any_connection(serve, tmp_path):
    sums(tmp_path / "models" / "sums")
    served = serve(tmp_path / "models", "--workers", 2)
    for sequence in (1, 2):
        for x in range(1, 13):
            assert step(served, x, sequence, start=x == 1, end=x == 12) == x * (x + 1) / 2
    assert served.end() == 0
    assert "level=error" not in served.log


def test_a_model_that_crashes_takes_no_other_with_it(serve, tmp_path):
    root = tmp_path / "models"
    adds(root / "m" / "1" / "model.onnx", 1)
    (root / "rogue" / "1").mkdir(parents=True)
    rogue.make_bundle(root / "rogue" / "1" / "rogue.salver")
    served = serve(root, "--workers", 2)
    assert served.ask(rogue.SEGFAULT)[0] == 0
    served.see("model 'rogue' made a worker end: it gets a process of its own")
    served.until(lambda: served.log.count("takes requests") == 4, "a third worker and one apart")
    served.until(lambda: len({served.ask(rogue.PID)[1] for _ in range(10)}) == 1, "one process that runs it")
    apart = served.ask(rogue.PID)[1]
    with contextlib.closing(HTTPConnection(served.host, timeout=30)) as connection:
        for times in (2, 3):
            status, answer = post(served, "/v2/models/rogue/infer", body(rogue.SEGFAULT))
            assert status == 503, answer
            assert value(served, connection=connection) == 1.0  # on the connection that it had
            served.until(lambda times=times: f"crashed {times} times" in str(states(served)), "its state")
            assert states(served)["m:1"] == ("READY", "")
            assert served.get("/v2/health/ready") == 200
            served.until(lambda: served.ask(1) == (200, 2), "an answer from a fresh one")
    assert served.ask(rogue.PID)[1] != apart
    clients = Clients(served, 2)
    served.until(lambda: clients.ends.get("ok", 0) > 50, "50 answers")
    assert set(clients.stop()) == {"ok"}
    assert served.end() == 0


def body(x):
    return {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [x]}]}


def test_shared_memory_is_registered_once_for_all_workers(serve, rogue_bundle, tmp_path):
    path = FOLDER / f"salver-test-{uuid.uuid4()}"
    path.write_bytes(bytes(64))
    address = tmp_path / "http"
    served = serve(rogue_bundle, "--workers", 2, "--shared-memory", "/salver-test-", http=f"unix:{address}")
    where = "/v2/systemsharedmemory/region/a"
    try:
        assert over_unix(address, "POST", f"{where}/register", {"key": f"/{path.name}", "byte_size": 64})[0] == 200
        path.unlink()
        os.kill(min(served.workers()), 9)
        served.until(lambda: served.log.count("takes requests") == 3, "a third start")
        seen = [over_unix(address, "GET", f"{where}/status") for _ in range(12)]
        assert all(status == 200 and answer[0]["name"] == "a" for status, answer in seen)
        assert over_unix(address, "POST", f"{where}/unregister")[0] == 200
        assert {over_unix(address, "GET", f"{where}/status")[0] for _ in range(12)} == {404}
    finally:
        path.unlink(missing_ok=True)
    assert served.end() == 0


def over_unix(path, method, target, body=None):
    """Status and answer, on a connection of its own."""
    connection = HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    with contextlib.closing(connection):
        connection.sock.connect(str(path))
        connection.request(method, target, json.dumps({} if body is None else body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
