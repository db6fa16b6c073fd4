"""The repository of a server of several processes, changed over REST while clients ask."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import threading
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from tests.server.engine.bench import adds
from tests.server.processes import rogue

BODY = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.0, 0.0]}]}


@pytest.fixture
def root(tmp_path):
    adds(tmp_path / "models" / "m" / "1" / "model.onnx", 1)
    return tmp_path / "models"


def post(served, path, body=None, connection=None):
    """Status and answer, on a connection of its own where none is given."""
    own = connection or HTTPConnection(served.host, timeout=60)
    with contextlib.closing(own) if connection is None else contextlib.nullcontext():
        own.request("POST", path, json.dumps({} if body is None else body), {"content-type": "application/json"})
        answer = own.getresponse()
        return answer.status, json.loads(answer.read())


def value(served, path="/v2/models/m", connection=None):
    """What the model adds to 0."""
    status, body = post(served, f"{path}/infer", BODY, connection)
    assert status == 200, body
    return body["outputs"][0]["data"][0]


def load(served, name="m", parameters=None):
    return post(served, f"/v2/repository/models/{name}/load", {"parameters": parameters or {}})


def index(served):
    return {f"{e['name']}:{e['version']}": e["state"] for e in post(served, "/v2/repository/index")[1]}


class Asking:
    """Threads that ask model ``m`` all the time, and keep their connections."""

    def __init__(self, served, count=3):
        self.values, self.errors = [], []
        self._served, self._stop = served, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self):
        with contextlib.closing(HTTPConnection(self._served.host, timeout=60)) as connection:
            while not self._stop.is_set():
                try:
                    self.values.append(value(self._served, connection=connection))
                except (OSError, AssertionError, HTTPException) as error:
                    self.errors.append(error)
                    return


def test_once_a_load_has_returned_no_worker_answers_with_the_old_version(serve, root):
    served = serve(root, "--workers", 2)
    asking = Asking(served)
    for version in range(2, 5):
        adds(root / "m" / str(version) / "model.onnx", version)
        assert load(served) == (200, {})
        assert {value(served) for _ in range(30)} == {float(version)}
    asking.stop()
    assert asking.errors == []
    assert set(asking.values) <= {1.0, 2.0, 3.0, 4.0}
    assert served.end() == 0
    assert "level=error" not in served.log


def test_what_cannot_be_served_is_refused_and_the_old_serves_on(serve, root):
    served = serve(root, "--workers", 2, "--load-timeout", "2s")
    workers = served.workers()
    folder = root / "m" / "2"
    for told, expected in (
        ("corrupt", "the rogue model is corrupt"),
        ("segfault", "was killed by signal 11 (SIGSEGV)"),
        ("hang", "was not ready within 2 s"),
    ):
        folder.mkdir()
        rogue.make_bundle(folder / "model.salver", told)
        status, answer = load(served)
        assert status in (400, 409, 412, 422, 500, 503)
        assert expected in json.dumps(answer)
        assert {value(served) for _ in range(10)} == {1.0}
        assert index(served) == {"m:1": "READY", "m:2": "UNAVAILABLE"}
        shutil.rmtree(folder)
    adds(folder / "model.onnx", 2)
    assert load(served) == (200, {})
    assert {value(served) for _ in range(10)} == {2.0}
    assert served.workers() == workers
    assert served.end() == 0


def test_a_fresh_worker_serves_what_was_loaded_at_run_time(serve, root):
    folder = root.parent / "temporary"
    folder.mkdir()
    served = serve(root, "--workers", 2, "--allow-uploads", env={"TMPDIR": str(folder)})
    sent = adds(root.parent / "sent.onnx", 9).read_bytes()
    assert load(served, "m", {"file:5/model.onnx": base64.b64encode(sent).decode(), "config": "{}"}) == (200, {})
    assert post(served, "/v2/models/m/labels", {"label": "stable", "version": "5"})[0] == 200
    os.kill(min(served.workers()), 9)
    served.until(lambda: served.log.count("takes requests") == 3, "a third start")
    assert {value(served, "/v2/models/m/versions/stable") for _ in range(20)} == {9.0}
    assert served.end() == 0
    assert not list(folder.glob("salver-*"))


def test_swaps_leave_nothing_behind(serve, root):
    served = serve(root, "--workers", 2)

    def holdings():
        workers = sorted(served.workers())
        return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in (served.popen.pid, *workers)]

    def swap(times):
        for step in range(times):
            adds(root / "m" / "1" / "model.onnx", step)
            assert load(served) == (200, {})

    swap(2)
    value(served)
    before = holdings()
    swap(4)
    value(served)
    served.until(lambda: sum(holdings()) <= sum(before), "as many open files as before")
    assert len(served.workers()) == 2
    assert served.end() == 0


def test_the_folders_are_watched_by_the_supervisor(serve, root):
    served = serve(root, "--workers", 2, "--watch", "0.1s")
    adds(root / "m" / "2" / "model.onnx", 2)
    served.until(lambda: {value(served) for _ in range(8)} == {2.0}, "version 2 from both")
    assert served.log.count("model 'm' version 2 is ready") == 2
    assert served.end() == 0
