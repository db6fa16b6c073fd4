"""What the tests ask, through grpcio, tritonclient and curl."""

from __future__ import annotations

import json
import queue
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.proxies.proxies import find

TIMEOUT_S = 30
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def channel(address: str, *options: tuple[str, str]) -> AbstractContextManager[grpc.Channel]:
    return grpc.insecure_channel(address, [*UNLIMITED, *options])


def stub(channel: grpc.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def request(model: str = "identity_fp32", x: Any = None) -> Any:
    """A ModelInferRequest."""
    given = np.ones((1, 1), np.float32) if x is None else np.asarray(x)
    kind = {"f": "FP32", "i": "INT64", "S": "BYTES"}[given.dtype.kind]
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype=kind, shape=given.shape)
    if kind == "BYTES":
        tensor.contents.bytes_contents.extend(given.ravel().tolist())
        return service_pb2.ModelInferRequest(model_name=model, inputs=[tensor])
    return service_pb2.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[given.tobytes()])


def ask_stream(address: str, arrays: Sequence[Any], *, in_turn: bool) -> list[Any]:
    """What one stream of tritonclient gives back for FP32 arrays; `in_turn`: each waits for the answer before it."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    got = []

    def take() -> None:
        result, error = answers.get(timeout=TIMEOUT_S)
        assert error is None, error
        got.append(result.as_numpy("y"))

    with triton.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=TIMEOUT_S)
        for x in arrays:
            tensor = triton.InferInput("x", list(x.shape), "FP32")
            client.async_stream_infer("identity_fp32", [tensor.set_data_from_numpy(x)])
            if in_turn:
                take()
        while len(got) < len(arrays):
            take()
        client.stop_stream()
    return got


class Answer:
    """Status, protocol, fields and body, as curl tells them."""

    def __init__(self, printed: bytes) -> None:
        head, self.body = printed.split(b"\r\n\r\n", 1)
        while head.startswith((b"HTTP/1.1 1", b"HTTP/2 1")):
            head, self.body = self.body.split(b"\r\n\r\n", 1)
        first, *lines = head.decode().split("\r\n")
        self.protocol, status = first.split()[:2]
        self.status = int(status)
        self.fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


def curl(url: str, *arguments: object, body: bytes | None = None) -> Answer:
    """One request."""
    command: list[object] = [find("curl"), "-sS", "-i", "--max-time", TIMEOUT_S, *arguments, url]
    if body is not None:
        command[1:1] = ["--data-binary", "@-"]
    done = subprocess.run([str(word) for word in command], input=body, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return Answer(done.stdout)


def infer_json(values: Sequence[float]) -> bytes:
    """A body for ``identity_fp32``."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(values)], "data": [list(values)]}
    return json.dumps({"inputs": [tensor]}).encode()


def infer_binary(folder: Path, x: Any) -> tuple[Path, int]:
    """A file with a binary request for ``identity_fp32``, and the length of its JSON."""
    data = x.tobytes()
    tensor = {"name": "x", "datatype": "FP32", "shape": x.shape, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    path = folder / "request.bin"
    path.write_bytes(head + data)
    return path, len(head)
