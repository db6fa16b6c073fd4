"""Models that a framework or a user's own code runs: apart from the start, so that they harm nobody else."""

from __future__ import annotations

import contextlib
import os
from http.client import HTTPConnection
from pathlib import Path

import pytest

from salver.bundle import Contents, generate_keys, seal
from salver.core.model import Blob, Model
from tests.server.engine.bench import adds
from tests.server.processes.served import alive
from tests.server.processes.test_catalog_process import load, post, value
from tests.server.processes.test_forward_process import states

FOREIGN = """
import ctypes, os, time

class Foreign:
    inputs = "x:int64[batch,1]"
    outputs = "y:int64[batch,1]"
    kept = []

    def load(self, folder):
        if (folder / "crash").exists():
            ctypes.string_at(0)

    def predict(self, x):
        if x[0, 0] == -1:
            ctypes.string_at(0)
        if x[0, 0] == -2:
            ctypes.PyDLL(None).sleep(600)
        if x[0, 0] == -3:
            self.kept.append(bytearray(os.urandom(1 << 20)) * 500)
        return x * 0 + os.getpid()
"""
SEGFAULT, HANG, LEAK = -1, -2, -3


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return generate_keys(tmp_path_factory.mktemp("keys") / "maker")


def make(path: Path, key=None, **files: str) -> Path:
    """A bundle of the class above."""
    from salver.backends._python import find_declaration

    main = path.parent / f"{path.stem}.py"
    main.parent.mkdir(parents=True, exist_ok=True)
    main.write_text(FOREIGN)
    blobs = [Blob.of(main, "model.py")]
    for name, text in files.items():
        (path.parent / name).write_text(text)
        blobs.append(Blob.of(path.parent / name))
    signature = find_declaration(FOREIGN.encode(), "model.py").signature
    model = Model(format="python", signature=signature, blobs=tuple(blobs), trusted=True)
    bundle = seal(path, Contents(name=path.stem, model=model))
    if key is not None:
        bundle.sign(key)
    return path


@pytest.fixture
def root(tmp_path, keys):
    """An ONNX model, and a foreign one."""
    adds(tmp_path / "models" / "m" / "1" / "model.onnx", 1)
    make(tmp_path / "models" / "foreign" / "1" / "foreign.salver", keys[0])
    return tmp_path / "models"


def resident_mib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


def ask(served, x, model="foreign"):
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [x]}]}
    status, answer = post(served, f"/v2/models/{model}/infer", body)
    return status, answer["outputs"][0]["data"][0] if status == 200 else answer


@pytest.mark.parametrize("workers", [(), ("--workers", 1), ("--workers", 2)])
def test_it_has_a_process_of_its_own_from_the_start(serve, root, keys, workers) -> None:
    served = serve(root, *workers, "--trusted-key", keys[1])
    assert served.line.startswith("ready on"), served.log
    status, pid = ask(served, 0)
    assert status == 200
    answering = served.answering()
    assert len(answering) == (workers[1] if workers else 1)
    assert pid in served.workers() - answering
    assert value(served) == 1
    assert served.end() == 0
    assert not alive(pid)


def test_what_it_does_hurts_no_other_model(serve, root, keys) -> None:
    served = serve(root, "--workers", 1, "--trusted-key", keys[1], "--max-run", "2s")
    _, first = ask(served, 0)
    (front,) = served.answering()
    with contextlib.closing(HTTPConnection(served.host, timeout=30)) as connection:
        for deed in (SEGFAULT, HANG):
            status, answer = ask(served, deed)
            assert status == 503, answer
            assert value(served, connection=connection) == 1  # on the connection that it had before
            served.until(lambda: ask(served, 0)[0] == 200, "it is back")
    assert ask(served, 0)[1] != first
    assert served.answering() == {front}
    assert served.get("/v2/health/ready") == 200


def test_memory_that_it_keeps_is_its_own_processs(serve, root, keys) -> None:
    served = serve(root, "--workers", 1, "--trusted-key", keys[1])
    (front,) = served.answering()
    before = resident_mib(front)
    status, apart = ask(served, LEAK)
    assert status == 200
    assert resident_mib(apart) > 500
    assert resident_mib(front) < before + 50


def test_one_that_is_loaded_at_run_time_is_apart_too(serve, tmp_path, keys) -> None:
    adds(tmp_path / "models" / "m" / "1" / "model.onnx", 1)
    served = serve(tmp_path / "models", "--workers", 1, "--trusted-key", keys[1])
    make(tmp_path / "models" / "late" / "1" / "late.salver", keys[0])
    assert load(served, "late") == (200, {})
    status, pid = ask(served, 0, "late")
    assert status == 200
    assert pid in served.workers() - served.answering()
    assert ask(served, SEGFAULT, "late")[0] == 503
    assert value(served) == 1


def test_one_that_crashes_while_it_is_loaded_is_refused(serve, tmp_path, keys) -> None:
    adds(tmp_path / "models" / "m" / "1" / "model.onnx", 1)
    make(tmp_path / "models" / "bad" / "1" / "bad.salver", keys[0], crash="yes")
    served = serve(tmp_path / "models", "--workers", 1, "--trusted-key", keys[1])
    assert "NOT ready" in served.line
    assert "the process that tried version 1 of model 'bad' was killed by signal 11" in served.line
    assert value(served) == 1


def test_code_of_nobody_who_is_trusted_is_not_run(serve, tmp_path, keys) -> None:
    adds(tmp_path / "models" / "m" / "1" / "model.onnx", 1)
    make(tmp_path / "models" / "strange" / "1" / "strange.salver", generate_keys(tmp_path / "other")[0], crash="yes")
    for trust in ((), ("--trusted-key", keys[1])):
        served = serve(tmp_path / "models", "--workers", 1, *trust)
        assert "holds a Python class: loading it runs code" in states(served)["strange:1"][1]
        assert value(served) == 1


def test_one_process_refuses_it_at_run_time(serve, tmp_path) -> None:
    adds(tmp_path / "models" / "m" / "1" / "model.onnx", 1)
    served = serve(tmp_path / "models")
    make(tmp_path / "models" / "late" / "1" / "late.salver")
    status, answer = load(served, "late")
    assert status == 400
    assert "start the server with --workers 1 or more" in answer["error"]
    assert value(served) == 1
