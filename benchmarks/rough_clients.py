"""Clients that a server had better survive, each of which knows what it should get: a step of each is one encounter.

A step gives a word: `right`, `refused` (and was to be), `interrupted` (503, 429, a closed connection: the server may),
`gone` (the client left first), or one that begins with `WRONG`.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

RIGHT, REFUSED, INTERRUPTED, GONE = "right", "refused", "interrupted", "gone"
PATIENCE_S = 15.0
TABLE = [0.5, 1.5, 2.5]
BUSY = (429, 503)

Step = Callable[[str, random.Random], str]


def write_models(folder: Path) -> None:
    """`accumulate`, whose state the server keeps, and `gather`, which raises for an index past the end of its table."""
    real, whole = TensorProto.FLOAT, TensorProto.INT64
    value = helper.make_tensor_value_info
    accumulate = helper.make_graph(
        [helper.make_node("Add", ["x", "state"], ["y"]), helper.make_node("Identity", ["y"], ["next"])],
        "accumulate",
        [value("x", real, ["batch", 1]), value("state", real, ["batch", 1])],
        [value("y", real, ["batch", 1]), value("next", real, ["batch", 1])],
    )
    table = helper.make_tensor("table", real, [len(TABLE)], TABLE)
    gather = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        "gather",
        [value("x", whole, ["batch"])],
        [value("y", real, ["batch"])],
        [table],
    )
    for graph in (accumulate, gather):
        (folder / graph.name / "1").mkdir(parents=True)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, folder / graph.name / "1" / "model.onnx")
    told = '[sequence]\nstates = [{input = "state", output = "next"}]\n'
    (folder / "accumulate" / "model.toml").write_text(told, encoding="utf-8")


def tensor(values: list[float], datatype: str = "FP32", shape: tuple[int, ...] = ()) -> dict[str, Any]:
    """An input `x`."""
    return {"name": "x", "datatype": datatype, "shape": list(shape or (len(values), 1)), "data": values}


def post(connection: http.client.HTTPConnection, model: str, body: Any) -> tuple[int, Any]:
    """Status and JSON of an answer; status 503 where there was none."""
    try:
        connection.request("POST", f"/v2/models/{model}/infer", json.dumps(body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException):
        connection.close()
        return 503, None


def expect(got: tuple[int, Any], wanted: list[float]) -> str:
    """A word for an answer that is to have these values."""
    status, said = got
    if status != 200:
        return INTERRUPTED if status in BUSY else f"WRONG: {status} {said}"
    values = said["outputs"][0]["data"]
    return RIGHT if values == wanted else f"WRONG: {values} for {wanted}"


def sequence(address: str, rng: random.Random) -> str:
    """A sequence, whose answers are the sums so far; one whose worker dies is over for good."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)
    identity, length, total = rng.getrandbits(60) + 1, rng.randrange(2, 12), 0
    for i in range(length):
        value = rng.randrange(1000)
        total += value
        told = {"sequence_id": identity, "sequence_start": i == 0, "sequence_end": i == length - 1}
        status, said = post(connection, "accumulate", {"inputs": [tensor([value])], "parameters": told})
        if status in BUSY or (status == 400 and i):  # not alive any more, which only a death of its worker may cause
            return INTERRUPTED
        if (word := expect((status, said), [total])) != RIGHT:
            return word
        time.sleep(rng.random() * 0.05)
    connection.close()
    return RIGHT


def raising(address: str, rng: random.Random) -> str:
    """Asks a model that raises for some inputs."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)
    index = rng.randrange(2 * len(TABLE))
    status, said = post(connection, "gather", {"inputs": [tensor([index], "INT64", (1,))]})
    connection.close()
    if index < len(TABLE):
        return expect((status, said), [TABLE[index]])
    return REFUSED if status == 400 else INTERRUPTED if status in BUSY else f"WRONG: {status} {said} for index {index}"


def bad_bytes(rng: random.Random) -> bytes:
    """A request that nobody should answer well."""
    good = json.dumps({"inputs": [tensor([1, 2, 3])]}).encode()
    one, infer = b"Host: localhost\r\nConnection: close\r\n", b"POST /v2/models/slow/infer HTTP/1.1\r\n"

    def request(body: bytes, start: bytes = infer, more: bytes = b"") -> bytes:
        return start + one + more + b"Content-Length: %d\r\n\r\n" % len(body) + body

    return rng.choice(
        [
            lambda: rng.randbytes(rng.randrange(1, 2000)) + b"\r\n\r\n",
            lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(300),
            lambda: request(good[: rng.randrange(len(good))]),
            lambda: request(b"[" * 5000),
            lambda: request(good.replace(b"FP32", b"BF99")),
            lambda: request(good.replace(b"[3, 1]", b"[99999999999, 1]")),
            lambda: request(good.replace(b"[3, 1]", b"[-3, 1]")),
            lambda: request(good.replace(b'"x"', b'"z"')),
            lambda: request(good, b"POST /v2/models/nothing/infer HTTP/1.1\r\n"),
            lambda: request(good, b"POST /v2/models/slow/versions/99/infer HTTP/1.1\r\n"),
            lambda: request(good, b"DELETE /v2/models/slow/infer HTTP/1.1\r\n"),
            lambda: request(good, more=b"Inference-Header-Content-Length: 99999\r\n"),
            lambda: request(good, more=b"Content-Encoding: gzip\r\n"),
            lambda: request(good, more=b"X: " + b"x" * 100_000 + b"\r\n"),
            lambda: infer + one + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            lambda: infer + one + b"Content-Length: 99999999999\r\n\r\n" + good,
        ]
    )()


def bad(address: str, rng: random.Random) -> str:
    """Sends nonsense, reads what comes."""
    sent = bad_bytes(rng)
    with connected(address) as sock:
        try:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            said = sock.recv(100)
        except OSError:
            return REFUSED
    if not said.startswith(b"HTTP/1.1 "):
        return REFUSED
    status = int(said[9:12])
    if 400 <= status <= 501 and status != 500:  # 501: no method of that name
        return REFUSED
    return INTERRUPTED if status == 503 else f"WRONG: {status} for {sent[:150]!r}"


def vanishing(address: str, rng: random.Random) -> str:
    """Leaves in the middle of its request, or right after it."""
    body = json.dumps({"inputs": [tensor([1.0])]}).encode()
    head = b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connected(address) as sock:
        whole = head + body
        sock.sendall(whole[: rng.choice([len(whole), rng.randrange(1, len(whole))])])
        if rng.random() < 0.5:
            time.sleep(rng.random() * 0.1)
        if rng.random() < 0.5:  # with a reset
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return GONE


def slow(address: str, rng: random.Random) -> str:
    """Sends its request a few bytes at a time, and takes the answer so too."""
    index = rng.randrange(len(TABLE))
    body = json.dumps({"inputs": [tensor([index], "INT64", (1,))]}).encode()
    head = (
        b"POST /v2/models/gather/infer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    )
    whole, said = head % len(body) + body, b""
    with connected(address) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        try:
            while whole:
                sock.sendall(whole[:10])
                whole = whole[10:]
                time.sleep(0.02)
            while part := sock.recv(7):
                said += part
                time.sleep(0.005)
        except OSError:
            return INTERRUPTED
    top, _, answer = said.partition(b"\r\n\r\n")
    if not top.startswith(b"HTTP/1.1 200") or not answer.endswith(b"}"):
        return INTERRUPTED if not top or top[9:12] in (b"503", b"429") else f"WRONG: {said!r}"
    return expect((200, json.loads(answer)), [TABLE[index]])


def connected(address: str) -> socket.socket:
    """A connection."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


STEPS: dict[str, Step] = {step.__name__: step for step in (sequence, raising, bad, vanishing, slow)}
