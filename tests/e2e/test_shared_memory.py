"""Shared memory with the real client, over a Unix socket."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from salver.server import Server, ServeSettings

ROOT = Path(__file__).parents[2]
IMAGE = np.random.default_rng(3).random((2, 1, 28, 28), np.float32)
LOGITS_BYTES = 2 * 10 * 4


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """For sockets, where every user may look; short, because a socket's path must be."""
    folder = Path(tempfile.mkdtemp(prefix="salver-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    settings = ServeSettings(
        sources=(str(ROOT / "examples" / "digits" / "digits.onnx"),),
        http=f"unix:{folder}/http",
        grpc=f"unix:{folder}/grpc",
        shared_memory="/salver-test-",
    )
    with Server(settings) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.settings.grpc) as client:
        yield client
        client.unregister_system_shared_memory()


@contextlib.contextmanager
def block(name: str, size: int) -> Iterator[Any]:
    """A region as tritonclient makes it: the object ``/salver-test-<name>``."""
    region = shm.create_shared_memory_region(name, f"/salver-test-{name}", size)
    try:
        yield region
    finally:
        shm.destroy_shared_memory_region(region)


def given(name: str, size: int = IMAGE.nbytes, offset: int = 0) -> triton.InferInput:
    tensor = triton.InferInput("image", list(IMAGE.shape), "FP32")
    tensor.set_shared_memory(name, size, offset)
    return tensor


def plain(client: triton.InferenceServerClient) -> np.ndarray:
    tensor = triton.InferInput("image", list(IMAGE.shape), "FP32")
    tensor.set_data_from_numpy(IMAGE)
    return client.infer("digits", [tensor]).as_numpy("logits")


def test_tensors_go_in_and_out(client):
    with block("in", IMAGE.nbytes + 64) as source, block("out", 2 * LOGITS_BYTES) as target:
        shm.set_shared_memory_region(source, [IMAGE], offset=64)
        client.register_system_shared_memory("in", "/salver-test-in", IMAGE.nbytes, offset=64)
        client.register_system_shared_memory("out", "/salver-test-out", 2 * LOGITS_BYTES)
        wanted = triton.InferRequestedOutput("logits")
        wanted.set_shared_memory("out", LOGITS_BYTES, LOGITS_BYTES)
        answer = client.infer("digits", [given("in")], outputs=[wanted])
        output = answer.get_output("logits")
        assert list(output.shape) == [2, 10]
        assert output.parameters["shared_memory_region"].string_param == "out"
        assert answer.get_response().raw_output_contents == [b""]
        got = shm.get_contents_as_numpy(target, np.float32, (2, 10), offset=LOGITS_BYTES)
        np.testing.assert_array_equal(got, plain(client))


def test_status_and_unregister(client):
    with block("a", 64):
        client.register_system_shared_memory("a", "/salver-test-a", 32, offset=32)
        (region,) = client.get_system_shared_memory_status(as_json=True)["regions"].values()
        assert region == {"name": "a", "key": "/salver-test-a", "offset": "32", "byte_size": "32"}
        with pytest.raises(InferenceServerException, match="registered already"):
            client.register_system_shared_memory("a", "/salver-test-a", 32)
        client.unregister_system_shared_memory("a")
        assert client.get_system_shared_memory_status(as_json=True) == {}


def test_a_client_that_shrinks_its_object_is_told_and_the_server_lives(client):
    with block("in", IMAGE.nbytes) as source:
        shm.set_shared_memory_region(source, [IMAGE])
        client.register_system_shared_memory("in", "/salver-test-in", IMAGE.nbytes)
        np.testing.assert_array_equal(client.infer("digits", [given("in")]).as_numpy("logits"), plain(client))
        os.truncate("/dev/shm/salver-test-in", 100)
        with pytest.raises(InferenceServerException, match="which has 100 now"):
            client.infer("digits", [given("in")])
        assert plain(client).shape == (2, 10)


@pytest.mark.parametrize(
    ("size", "offset", "text"),
    [
        (IMAGE.nbytes, 4, "not all within it"),
        (IMAGE.nbytes - 4, 0, "bytes"),
        (IMAGE.nbytes + 4, 0, "not all within it"),
    ],
)
def test_sizes_that_lie(client, size, offset, text):
    with block("in", IMAGE.nbytes):
        client.register_system_shared_memory("in", "/salver-test-in", IMAGE.nbytes)
        with pytest.raises(InferenceServerException, match=text):
            client.infer("digits", [given("in", size, offset)])


def test_keys_outside_the_prefix(client):
    with pytest.raises(InferenceServerException, match="does not begin with '/salver-test-'"):
        client.register_system_shared_memory("a", "/another", 1)


def test_over_tcp_it_is_refused(client):
    settings = ServeSettings(
        sources=(str(ROOT / "examples" / "digits" / "digits.onnx"),),
        http="127.0.0.1:0",
        grpc="127.0.0.1:0",
        shared_memory="/salver-test-",
    )
    with (
        block("in", 64),
        Server(settings) as server,
        triton.InferenceServerClient(server.url.removeprefix("http://")) as other,
        pytest.raises(InferenceServerException, match="Unix socket") as caught,
    ):
        other.register_system_shared_memory("in", "/salver-test-in", 64)
    assert caught.value.status() == "StatusCode.PERMISSION_DENIED"


@pytest.mark.skipif(os.geteuid() != 0, reason="acting as another user needs root")
def test_another_user_is_refused_even_on_the_socket(folder, server):
    socket = folder / "http"
    socket.chmod(0o666)
    command = ["curl", "-s", "--unix-socket", str(socket), "-w", "\n%{http_code}", "-d"]
    register = "http://localhost/v2/systemsharedmemory/region/a/register"
    body = json.dumps({"key": "/salver-test-a", "offset": 0, "byte_size": 8})
    with block("a", 8):
        for user, status in ((65534, "403"), (0, "200")):
            done = subprocess.run([*command, body, register], capture_output=True, text=True, check=True, user=user)
            assert done.stdout.splitlines()[-1] == status
        url = "http://localhost/v2/systemsharedmemory/unregister"
        subprocess.run([*command, "", url], capture_output=True, check=True)


def test_the_example_of_the_page_runs(tmp_path, capsys):
    page = (ROOT / "docs" / "server" / "shared-memory.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    target = f"unix:{tmp_path}/grpc"
    source = str(ROOT / "examples" / "digits" / "digits.onnx")
    with Server(ServeSettings(sources=(source,), http="127.0.0.1:0", grpc=target, shared_memory="/clients-")):
        exec(code.replace("unix:/run/salver/grpc.sock", target), {})
    assert capsys.readouterr().out.startswith("[[")
