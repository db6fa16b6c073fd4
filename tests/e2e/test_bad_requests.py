"""What bad input gets from a server in a process of its own: a typed error or an answer, and nobody else is harmed."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.e2e.conftest import Server, serving

WIDTH = 512
MAX_BODY = 1 << 20
CONNECTIONS, REQUESTS = 200, 50


def write(folder: Path, name: str, nodes: Any, inputs: Any, outputs: Any, weights: Any = ()) -> None:
    path = folder / name / "1"
    path.mkdir(parents=True)
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(*given) for given in inputs],
        [helper.make_tensor_value_info(*given) for given in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path / "model.onnx")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """``rows`` and ``text`` give their input back, ``pick`` fails on an index out of range, ``slow`` takes
    milliseconds per row and gives the row's number back, so that a mix-up shows."""
    folder = tmp_path_factory.mktemp("models")
    ragged = ["batch", "width"]
    for name, kind in (("rows", TensorProto.FLOAT), ("text", TensorProto.STRING)):
        write(folder, name, [helper.make_node("Identity", ["x"], ["y"])], [("x", kind, ragged)], [("y", kind, ragged)])
    write(
        folder,
        "pick",
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [("x", TensorProto.INT64, ["batch"])],
        [("y", TensorProto.FLOAT, ["batch"])],
        [("table", np.arange(10, dtype=np.float32))],
    )
    layers = [f"h{i}" for i in range(24)]
    write(
        folder,
        "slow",
        [
            helper.make_node("Expand", ["x", "wide"], [layers[0]]),
            *(helper.make_node("MatMul", [a, "w"], [b]) for a, b in pairwise(layers)),
            helper.make_node("ReduceSum", [layers[-1], "axis"], ["sum"], keepdims=1),
            helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "x"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["batch", 1])],
        [("y", TensorProto.FLOAT, ["batch", 1])],
        [
            ("wide", np.array([1, WIDTH])),
            ("w", np.full((WIDTH, WIDTH), 1 / WIDTH, np.float32)),
            ("axis", np.array([1])),
            ("zero", np.zeros(1, np.float32)),
        ],
    )
    with serving(folder, "--max-body", MAX_BODY) as running:
        yield running
        assert running.process.poll() is None


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0], **changes}


def post(path: str, body: Any, fields: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {len(data)}\r\n\r\n".encode() + data


def binary(shape: list[int], size: int, blob: bytes, datatype: str = "FP32") -> tuple[bytes, str]:
    given = {"name": "x", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [given]}).encode()
    return head + blob, f"Inference-Header-Content-Length: {len(head)}\r\n"


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


async def read(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], Any]:
    """Status, fields and parsed JSON of the next answer."""
    line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    fields = {name: value for name, _, value in (field.partition(": ") for field in lines)}
    body = await reader.readexactly(int(fields.get("content-length", 0)))
    return int(line.split()[1]), fields, json.loads(body) if body else None


def talk(server: Server, *requests: bytes) -> list[tuple[int, dict[str, str], Any]]:
    """The answers to requests sent in one write on one connection."""

    async def run() -> list[tuple[int, dict[str, str], Any]]:
        reader, writer = await asyncio.open_connection(*server.url.removeprefix("http://").split(":"))
        writer.write(b"".join(requests))
        answers = [await asyncio.wait_for(read(reader), 20) for _ in requests]
        writer.close()
        await writer.wait_closed()
        return answers

    return asyncio.run(run())


GOOD = post("/v2/models/rows/infer", {"inputs": [tensor()]})


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        ("rows", {"inputs": [tensor(name="z")]}, "unknown input 'z'; missing input 'x'"),
        ("rows", {"inputs": [tensor(datatype="FP64")]}, "got datatype FP64, expected FP32"),
        ("rows", {"inputs": [tensor(shape=[2])]}, "got shape [2], expected [batch, width]"),
        ("rows", {"inputs": [tensor(shape=[2, 2])]}, "got 2 elements, expected 4"),
        ("rows", {"inputs": [tensor(shape=[-1, -2])]}, "cannot be negative"),
        ("rows", {"inputs": [tensor(shape=[0, 2], data=[])]}, "at least one row"),
        ("rows", {"inputs": [tensor(shape=[0, 1 << 63], data=[])]}, "larger than an array can be"),
        ("rows", {"inputs": [tensor(shape=[1.5, 2])]}, "Expected `int`, got `float`"),
        ("rows", {"inputs": [tensor(), tensor()]}, "given twice"),
        ("rows", {"inputs": [tensor()], "outputs": [{"name": "q"}]}, "unknown output 'q'"),
        ("rows", {"inputs": [tensor()], "outputs": [{"name": "y"}, {"name": "y"}]}, "asked for twice"),
        ("rows", {"inputs": [tensor()], "parameters": {"timeout": 10**400}}, "parameter 'timeout'"),
        ("rows", b'{"inputs": [', "not valid JSON"),
        ("rows", b"", "it is empty"),
        ("rows", b'{"inputs":[{"name":"\xff"}]}', "not UTF-8: byte 0xff at position"),
        ("rows", b"[" * 200_000, "nested more than 100 deep"),
        ("text", {"inputs": [tensor(datatype="BYTES")]}, "Expected `str`"),
        ("pick", {"inputs": [tensor(shape=[1], datatype="INT64", data=[10])]}, "out of"),
    ],
)
def test_bad_json_is_named_and_the_next_is_answered(server: Server, model: str, body: Any, message: str) -> None:
    bad, good = talk(server, post(f"/v2/models/{model}/infer", body), GOOD)
    assert 400 <= bad[0] <= 500
    assert message in bad[2]["error"]
    assert "Traceback" not in bad[2]["error"]
    assert good[0] == 200
    assert good[2]["outputs"][0]["data"] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("model", "shape", "size", "blob", "message"),
    [
        ("rows", [1, 2], 8, b"1234", "4 bytes are left"),
        ("rows", [1, 2], 4, b"1234", "got 4 bytes, expected 8"),
        ("rows", [1, 1], 4, b"12345", "belong to no input"),
        ("rows", [0, 1 << 62, 1 << 62], 0, b"", "larger than an array can be"),
        ("text", [1, 1], 8, struct.pack("<I", 0xFFFFFFFF) + b"abcd", "claims more bytes than the 8"),
        ("text", [1, 2], 8, struct.pack("<I", 4) + b"abcd", "got 1 elements, expected 2"),
        ("text", [1, 1], 8, struct.pack("<II", 0, 0), "more than 1 elements"),
        ("text", [1, 1], 5, struct.pack("<I", 1) + b"\xff", "element 0 is not UTF-8"),
    ],
)
def test_binary_lengths_that_lie(
    server: Server, model: str, shape: list[int], size: int, blob: bytes, message: str
) -> None:
    body, fields = binary(shape, size, blob, "BYTES" if model == "text" else "FP32")
    bad, good = talk(server, post(f"/v2/models/{model}/infer", body, fields), GOOD)
    assert bad[0] == 400
    assert message in bad[2]["error"]
    assert good[0] == 200


@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
def test_a_body_over_the_limit_is_413_before_it_is_sent(server: Server, expect: str) -> None:
    head = f"POST /v2/models/rows/infer HTTP/1.1\r\nHost: localhost\r\n{expect}Content-Length: {MAX_BODY + 1}\r\n\r\n"
    [(status, fields, answer)] = talk(server, head.encode())
    assert status == 413
    assert f"over the limit of {MAX_BODY} bytes" in answer["error"]
    assert fields["connection"] == "close"


def test_100_continue_is_honored(server: Server) -> None:
    head, _, body = post("/v2/models/rows/infer", {"inputs": [tensor()]}, "Expect: 100-continue\r\n").partition(
        b"\r\n\r\n"
    )
    with connect(server) as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")


def test_half_requests_leave_nothing_behind(server: Server) -> None:
    for cut in range(1, len(GOOD), 7):
        with connect(server) as sock:
            sock.sendall(GOOD[:cut])
    assert talk(server, GOOD)[0][0] == 200


@pytest.mark.parametrize(
    "smuggled",
    [
        GOOD.replace(b"Content-Length", b"Transfer-Encoding: chunked\r\nContent-Length"),
        GOOD.replace(b"Content-Length", b"Content-Length: 5\r\nContent-Length"),
        GOOD.replace(b"Content-Length:", b"Content-Length:\r\n"),
        GOOD.replace(b"Content-Length", b"Content-Length "),
        GOOD.replace(b"Content-Length", b"X: a\nContent-Length"),
    ],
)
def test_a_request_of_unclear_length_ends_its_connection_after_the_answers_before_it(
    server: Server, smuggled: bytes
) -> None:
    with connect(server) as sock:
        sock.sendall(GOOD + smuggled + GOOD)
        seen = b""
        while data := sock.recv(65536):
            seen += data
    first, second = seen.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200 ")
    assert second.startswith(b"400 ")
    assert b"connection: close" in second


def test_ten_thousand_requests_at_once_are_answered_or_told_to_come_back(server: Server) -> None:
    """Each exactly once, in order, with its own answer; a neighbor that asks another model waits for none of them."""

    async def flood(number: int) -> list[tuple[int, dict[str, str], Any]]:
        reader, writer = await asyncio.open_connection(*server.url.removeprefix("http://").split(":"))
        for i in range(REQUESTS):
            row = tensor(shape=[1, 1], data=[float(number * REQUESTS + i)])
            writer.write(post("/v2/models/slow/infer", {"id": f"{number}-{i}", "inputs": [row]}))
        answers = [await read(reader) for _ in range(REQUESTS)]
        writer.close()
        await writer.wait_closed()
        return answers

    async def run() -> tuple[list[list[tuple[int, dict[str, str], Any]]], int]:
        floods = [asyncio.create_task(flood(number)) for number in range(CONNECTIONS)]
        asked = 0
        reader, writer = await asyncio.open_connection(*server.url.removeprefix("http://").split(":"))
        while not all(task.done() for task in floods):
            writer.write(GOOD)
            assert (await read(reader))[0] == 200
            asked += 1
        writer.close()
        await writer.wait_closed()
        return await asyncio.gather(*floods), asked

    floods, asked = asyncio.run(asyncio.wait_for(run(), 120))
    assert asked > 1
    answered = refused = 0
    for number, answers in enumerate(floods):
        for i, (status, fields, answer) in enumerate(answers):
            if status == 200:
                answered += 1
                assert answer["id"] == f"{number}-{i}"
                assert answer["outputs"][0]["data"] == [float(number * REQUESTS + i)]
            else:
                refused += 1
                assert status == 429
                assert int(fields["retry-after"]) >= 1
                assert "the queue is full: 1024 requests" in answer["error"]
    assert answered + refused == CONNECTIONS * REQUESTS
    assert answered > 1024
    assert refused > 0
    [stats] = server.call("/v2/models/slow/stats")[1]["model_stats"]
    assert stats["inference_stats"]["success"]["count"] == answered
    assert stats["inference_stats"]["fail"]["count"] == refused
