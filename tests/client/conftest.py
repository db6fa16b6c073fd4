"""A real server with a model for each datatype, and servers that say what a test tells them to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from salver.server.app import Server
from salver.server.settings import ServeSettings
from tests.server.frontends.conftest import ONNX_TYPES


def save_identity(path: Path, elem_type: int) -> None:
    """A model that returns its input ``x`` as ``y``, of shape [batch, n]."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", elem_type, ["batch", "n"])],
        [helper.make_tensor_value_info("y", elem_type, ["batch", "n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.parent.mkdir(parents=True)
    onnx.save(model, path)


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with ``identity_fp32`` and so on."""
    root = tmp_path_factory.mktemp("identities")
    for name, elem_type in ONNX_TYPES.items():
        save_identity(root / f"identity_{name.lower()}" / "1" / "model.onnx", elem_type)
    return root


@pytest.fixture(scope="session")
def server(identities: Path) -> Iterator[Server]:
    with Server(ServeSettings(sources=(str(identities),), http="127.0.0.1:0", grpc="127.0.0.1:0")) as running:
        yield running


Script = Callable[[str, int], tuple[int, dict[str, str], Any]]
"""Path and number of the request -> status, header fields and what is sent as JSON; None to say nothing, ever."""


class Scripted:
    """A server that follows a script."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[str] = []


@pytest.fixture
def scripted() -> Callable[[Script], Any]:
    """``with scripted(script) as server``."""

    @contextmanager
    def run(script: Script) -> Iterator[Scripted]:
        release = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                found.requests.append(self.path)
                status, fields, body = script(self.path, len(found.requests))
                if body is None:
                    release.wait(20)
                    self.close_connection = True
                    return
                data = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"content-length": str(len(data)), **fields}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
                if fields.get("x-hang-up"):
                    self.close_connection = True

            do_GET = do_POST = answer  # noqa: N815  # http.server's names

            def log_message(self, format: str, *args: object) -> None:
                """Not on the terminal."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
            found = Scripted(f"http://127.0.0.1:{listener.server_address[1]}")
            thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
            thread.start()
            yield found
            release.set()
            listener.shutdown()
            thread.join()

    return run
