"""The repository of a real server process, over REST, while clients ask."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.engine.bench import adds
from tests.server.test_app import Process, ask

BODY = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.0, 0.0]}]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    adds(tmp_path / "models" / "m" / "1" / "model.onnx", 1)
    return tmp_path / "models"


@pytest.fixture
def process(root: Path) -> Iterator[Process]:
    with contextlib.closing(Process(root, watch_s=0.02, allow_uploads=True)) as made:
        assert made.url
        yield made


def answer(url: str, path: str = "/v2/models/m") -> float:
    status, body = ask(url, f"{path}/infer", BODY)
    assert status == 200, body
    return float(body["outputs"][0]["data"][0])


def change(url: str, what: str, parameters: dict[str, Any] | None = None) -> tuple[int, Any]:
    return ask(url, f"/v2/repository/models/m/{what}", {"parameters": parameters or {}})


def index(url: str) -> dict[str, str]:
    return {f"{e['name']}:{e['version']}": e["state"] for e in ask(url, "/v2/repository/index", {})[1]}


def test_versions_come_and_go_while_clients_ask(process: Process, root: Path) -> None:
    url, going, seen, failures = process.url, threading.Event(), set(), []

    def client() -> None:
        while not going.is_set():
            try:
                seen.add(answer(url))
            except AssertionError as error:
                failures.append(error)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        adds(root / "m" / "2" / "model.onnx", 2)
        while answer(url) != 2.0:  # the watch takes it up
            time.sleep(0.01)
        adds(root / "m" / "2" / "model.onnx", 22)
        assert change(url, "load")[0] == 200
        while answer(url) != 22.0:
            time.sleep(0.01)
    finally:
        going.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert seen <= {1.0, 2.0, 22.0}
    assert process.end() == 0
    assert not [line for line in process.lines if "level=error" in line]


def test_an_administrator_loads_labels_and_unloads(process: Process, root: Path) -> None:
    url = process.url
    assert index(url) == {"m:1": "READY"}
    assert ask(url, "/v2/models/m/labels", {"label": "stable", "version": "1"})[0] == 200
    adds(root / "m" / "2" / "model.onnx", 2)
    assert change(url, "load")[0] == 200
    assert index(url) == {"m:1": "READY", "m:2": "READY"}
    assert answer(url, "/v2/models/m/versions/stable") == 1.0
    assert change(url, "load", {"config": json.dumps({"max_batch_size": 2})})[0] == 200
    assert ask(url, "/v2/models/m")[1]["parameters"]["max_batch"] == 2
    sent = adds(root.parent / "sent.onnx", 9).read_bytes()
    files = {"file:5/model.onnx": base64.b64encode(sent).decode(), "config": "{}"}
    assert change(url, "load", files)[0] == 200
    assert answer(url) == 9.0
    assert change(url, "load", {"file:../x/model.onnx": ""})[0] == 400
    assert change(url, "unload")[0] == 200
    assert index(url) == {"m:": "UNAVAILABLE"}
    assert ask(url, "/v2/health/ready")[0] == 200
    assert ask(url, "/v2/models/m/ready")[0] in (400, 404, 503)
    assert ask(url, "/v2/repository/models/nothing/load", {})[0] == 404
