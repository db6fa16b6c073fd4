"""Every row of ``docs/server/limits.md``, end to end: what is refused, how each protocol says so, and what is counted.

The expected answers are those of the page, so that page and code cannot drift apart.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from time import sleep
from typing import Any

import grpc
import pytest

import salver
from salver.core.options import OPTIONS
from salver.core.quantities import parse_duration, parse_size
from salver.server import Server, ServeSettings
from salver.server.frontends.shared_memory import MAX_REGIONS
from tests.server.wire import (
    ACK,
    CALL,
    DATA,
    END_STREAM,
    INFER,
    PING,
    RPC,
    RST_STREAM,
    Http1,
    Http2,
    field,
    http1,
    http2,
    running,
    varint,
    write_text_model,
)

PAGE = (Path(__file__).parents[2] / "docs" / "server" / "limits.md").read_text(encoding="utf-8")
SMALL: dict[str, Any] = {
    "max_body_bytes": 20_000,
    "max_decompressed_bytes": 30_000,
    "max_header_bytes": 4096,
    "max_connections": 12,
    "max_streams": 8,
    "max_json_depth": 10,
    "max_string_bytes": 100,
    "idle_timeout_s": 0.5,
}


def rows(heading: str) -> dict[str, list[str]]:
    """A table of the page: first cell -> the others."""
    section = PAGE[PAGE.index(heading) :].split("\n## ", 1)[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {line[0].strip(" `"): [cell.strip() for cell in line[1:]] for line in lines}


SETTABLE = rows("## Limits with a flag")
FIXED = rows("## Fixed limits")
ELSEWHERE = rows("## Limits of the engine")
PROTOCOLS = ("HTTP/1.1", "HTTP/2", "gRPC")
ANSWERS = {name: dict(zip(PROTOCOLS, cells[2:5], strict=True)) for name, cells in SETTABLE.items()} | {
    name: dict(zip(PROTOCOLS, cells[1:4], strict=True)) for name, cells in FIXED.items()
}
SERVERS = {
    "max_incoming_bytes": "tight",
    "shared_memory_regions": "local",
    "resets": "patient",
    "idle_frames": "patient",
}
TRIED_ELSEWHERE = {
    "queued_bytes": "needs 64 MiB of answers: tests/server/frontends/http2",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with running(folder, **SMALL) as server:
        yield server


@pytest.fixture(scope="module")
def patient(folder: Path) -> Iterator[Server]:
    """With the usual patience, which is also how often floods are looked at: each second."""
    with running(folder) as server:
        yield server


@pytest.fixture(scope="module")
def tight(folder: Path) -> Iterator[Server]:
    """With little room for what is still coming in; all of it is there again at the end."""
    with running(folder, max_incoming_bytes=10_000) as server:
        yield server
        while server.metrics.connections:
            sleep(0.01)
        assert server.http.intake.held_bytes == 0


@pytest.fixture(scope="module")
def local(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On a Unix socket, with shared memory."""
    where = tmp_path_factory.mktemp("s")
    with running(folder, http=f"unix:{where}/http", grpc=f"unix:{where}/grpc", shared_memory="/psm_") as server:
        yield server


def strings(*values: str) -> bytes:
    return json.dumps(
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [len(values)], "data": list(values)}]}
    ).encode()


def rpc(server: Server, message: bytes, **options: Any) -> str:
    """Code of a ModelInfer call of the real client; ``OK`` where it is answered."""
    target = server.url.removeprefix("http://")
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(RPC + "ModelInfer")(message, timeout=20, **options)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def infer_message(*values: bytes) -> bytes:
    """ModelInferRequest for the model ``text``, with raw contents."""
    shape = varint(3 << 3 | 2) + b"\x01" + varint(len(values))
    tensor = field(1, b"x") + field(2, b"BYTES") + shape
    raw = b"".join(len(value).to_bytes(4, "little") + value for value in values)
    return field(1, b"text") + field(5, tensor) + field(7, raw)


def deep(depth: int) -> bytes:
    body = strings("a")
    return body[:-1] + b',"parameters":{"p":' + b"[" * (depth - 2) + b"]" * (depth - 2) + b"}}"


def hits_after(server: Server, limit: str, before: int) -> int:
    """Hits of a limit, once there are more; the server's thread counts when the answer is on its way already."""
    for _ in range(1000):
        if server.metrics.limits.get(limit, 0) > before:
            break
        sleep(0.005)
    return server.metrics.limits.get(limit, 0)


def test_what_is_within_all_limits_is_answered(server):
    values = ["a" * 100] * 50
    assert http1(server, INFER, strings(*values)) == "200"
    assert http2(server, INFER, strings(*values)) == "200"
    assert rpc(server, infer_message(*(value.encode() for value in values))) == "OK"
    assert http1(server, INFER, gzip.compress(strings(*values)), Content_Encoding="gzip") == "200"
    assert http1(server, INFER, strings("a"), X_Other="a" * 3000) == "200"


def streams(server: Server, path: str = INFER, **fields: str) -> str:
    with Http2(server) as connection:
        for stream in range(1, 2 * SMALL["max_streams"] + 2, 2):
            connection.request(stream, path, None, **fields)
        return connection.outcome()


def buffered(server: Server, path: str = INFER, **fields: str) -> str:
    """Five bodies of 17,000 bytes, of each of which one is still to come."""
    with Http2(server) as connection:
        for stream in range(1, 11, 2):
            connection.request(stream, path, None, **fields)
            connection.send(DATA, 0, stream, b"\0" + (16_996).to_bytes(4, "big") + bytes(11_995))
            connection.send(DATA, 0, stream, bytes(5_000))
        return connection.outcome()


def incoming_http1(server: Server) -> str:
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 18000\r\n\r\n"
    with Http1(server) as connection:
        return connection.outcome(head.encode() + bytes(12_000))


def incoming(server: Server, path: str = INFER, **fields: str) -> str:
    """A body of 17,000 bytes, of which a part is still to come."""
    with Http2(server) as connection:
        connection.request(1, path, None, **fields)
        connection.send(DATA, 0, 1, b"\0" + (16_996).to_bytes(4, "big") + bytes(11_995))
        return connection.outcome()


def connections(server: Server) -> str:
    def all_gone() -> None:
        while server.metrics.connections:
            sleep(0.01)

    all_gone()  # those of the test before
    with contextlib.ExitStack() as stack:
        for _ in range(SMALL["max_connections"]):
            stack.enter_context(Http1(server))
        outcome = stack.enter_context(Http1(server)).outcome(b"")
    all_gone()  # the next test wants one
    return outcome


def stalled_head(server: Server) -> str:
    with Http1(server) as connection:
        return connection.outcome(b"POST / HTTP/1.1\r\nHost: ")


def stalled_body(server: Server) -> str:
    with Http1(server) as connection:
        return connection.outcome(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n1".encode())


def long_target(server: Server) -> str:
    return http1(server, "/" + "a" * 9000, b"")


def resets(server: Server, path: str = INFER, **fields: str) -> str:
    with Http2(server) as connection:
        for stream in range(1, 10_001, 2):
            connection.request(stream, path, None, **fields)
            connection.send(RST_STREAM, 0, stream, bytes(4))
        return connection.outcome()


def pings(server: Server) -> str:
    with Http2(server) as connection:
        for _ in range(25_000):
            connection.send(PING, ACK, 0, bytes(8))
        return connection.outcome()


def regions(speak: Callable[[Server, str], str]) -> Callable[[Server], str]:
    """One more than there may be; then all are forgotten."""

    def probe(server: Server) -> str:
        block = shared_memory.SharedMemory(create=True, size=16)
        try:
            body = json.dumps({"key": block.name, "offset": 0, "byte_size": 16}).encode()
            for number in range(MAX_REGIONS):
                assert http1(server, f"/v2/systemsharedmemory/region/{number}/register", body) == "200"
            return speak(server, block.name)
        finally:
            assert http1(server, "/v2/systemsharedmemory/unregister", b"") == "200"
            block.close()
            block.unlink()

    return probe


def one_more_http1(server: Server, key: str) -> str:
    body = json.dumps({"key": key, "offset": 0, "byte_size": 16}).encode()
    return http1(server, "/v2/systemsharedmemory/region/more/register", body)


def one_more_http2(server: Server, key: str) -> str:
    body = json.dumps({"key": key, "offset": 0, "byte_size": 16}).encode()
    return http2(server, "/v2/systemsharedmemory/region/more/register", body)


def one_more_call(server: Server, key: str) -> str:
    message = field(1, b"more") + field(2, key.encode()) + varint(4 << 3) + b"\x10"
    body = b"\0" + len(message).to_bytes(4, "big") + message
    return http2(server, RPC + "SystemSharedMemoryRegister", body, **CALL)


def lying_frame(server: Server) -> str:
    with Http2(server) as connection:
        connection.send(DATA, END_STREAM, 1, b"x")
        return connection.outcome()


# One probe per limit and protocol.

PROBES: dict[str, dict[str, Callable[[Server], str]]] = {
    "max_body_bytes": {
        "HTTP/1.1": lambda server: http1(server, INFER, bytes(20_001)),
        "HTTP/2": lambda server: http2(server, INFER, bytes(20_001)),
        "gRPC": lambda server: rpc(server, bytes(20_001)),
    },
    "max_decompressed_bytes": {
        "HTTP/1.1": lambda server: http1(server, INFER, gzip.compress(bytes(1 << 20)), Content_Encoding="gzip"),
        "HTTP/2": lambda server: http2(server, INFER, gzip.compress(bytes(1 << 20)), content_encoding="gzip"),
        "gRPC": lambda server: rpc(server, bytes(1 << 20), compression=grpc.Compression.Gzip),
    },
    "max_header_bytes": {
        "HTTP/1.1": lambda server: http1(server, INFER, b"", X_Other="a" * 4096),
        "HTTP/2": lambda server: http2(server, INFER, b"", x_other="a" * 4096),
        "gRPC": lambda server: http2(server, RPC + "ModelInfer", b"", x="a" * 4096, **CALL),
    },
    "max_json_depth": {
        "HTTP/1.1": lambda server: http1(server, INFER, deep(11)),
        "HTTP/2": lambda server: http2(server, INFER, deep(11)),
    },
    "max_string_bytes": {
        "HTTP/1.1": lambda server: http1(server, INFER, strings("a" * 101)),
        "HTTP/2": lambda server: http2(server, INFER, strings("a" * 101)),
        "gRPC": lambda server: rpc(server, infer_message(b"a" * 101)),
    },
    "max_connections": {"HTTP/1.1": connections},
    "max_streams": {
        "HTTP/2": streams,
        "gRPC": lambda server: streams(server, RPC + "ModelInfer", **CALL),
    },
    "buffered_bytes": {
        "HTTP/2": buffered,
        "gRPC": lambda server: buffered(server, RPC + "ModelInfer", **CALL),
    },
    "max_incoming_bytes": {
        "HTTP/1.1": incoming_http1,
        "HTTP/2": incoming,
        "gRPC": lambda server: incoming(server, RPC + "ModelInfer", **CALL),
    },
    "idle_timeout_s": {
        "HTTP/1.1": stalled_body,
        "HTTP/2": lambda server: http2(server, INFER, None),
        "gRPC": lambda server: http2(server, RPC + "ModelInfer", None, **CALL),
    },
    "target_bytes": {"HTTP/1.1": long_target},
    "resets": {"HTTP/2": resets, "gRPC": lambda server: resets(server, RPC + "ModelInfer", **CALL)},
    "idle_frames": {"HTTP/2": pings, "gRPC": pings},
    "shared_memory_regions": {
        "HTTP/1.1": regions(one_more_http1),
        "HTTP/2": regions(one_more_http2),
        "gRPC": regions(one_more_call),
    },
    "http2_errors": {"HTTP/2": lying_frame, "gRPC": lying_frame},
}


@pytest.mark.parametrize(("limit", "protocol"), [(limit, name) for limit, probes in PROBES.items() for name in probes])
def test_what_is_over_a_limit_is_refused_as_the_page_says_and_counted(request, limit, protocol):
    server = request.getfixturevalue(SERVERS.get(limit, "server"))
    before = server.metrics.limits.get(limit, 0)
    outcome = PROBES[limit][protocol](server)
    assert outcome == ANSWERS[limit][protocol]
    assert hits_after(server, limit, before) == before + 1


@pytest.mark.parametrize("limit", ANSWERS)
def test_every_answer_of_the_page_is_tried(limit):
    tried = {protocol for protocol, answer in ANSWERS[limit].items() if answer != "-"}
    assert tried == set(PROBES.get(limit, ())) or (limit in TRIED_ELSEWHERE and limit not in PROBES)


@pytest.mark.parametrize("path", ["/predict/text", "/v1/models/text:predict", "/invocations/text"])
@pytest.mark.parametrize("speak", [http1, http2])
@pytest.mark.parametrize("limit", ["max_json_depth", "max_string_bytes"])
def test_every_frontend_has_the_limits_of_json(server, path, speak, limit):
    value = '"' + "a" * 101 + '"' if limit == "max_string_bytes" else "[" * 9 + "]" * 9
    body = b'{"instances":[' + value.encode() + b"]}"
    before = server.metrics.limits.get(limit, 0)
    assert speak(server, path, body, content_type="application/json") == "413"
    assert hits_after(server, limit, before) == before + 1


def test_hits_are_exported(server):
    http1(server, INFER, bytes(20_001))
    with urllib.request.urlopen(server.url + "/metrics", timeout=10) as answer:
        text = answer.read().decode()
    hits = server.metrics.limits["max_body_bytes"]
    assert f'salver_limit_hits_total{{limit="max_body_bytes"}} {float(hits)}' in text


def constant(name: str) -> int:
    """The value of a constant, which is the same wherever it is defined."""
    texts = (path.read_text(encoding="utf-8") for path in Path(salver.__file__).parent.rglob("*.py"))
    found = {text for code in texts for text in re.findall(rf"^{name}: Final = ([\d_ <]+)$", code, re.MULTILINE)}
    (value,) = found
    return int(eval(value))


class TestPage:
    @pytest.mark.parametrize(("name", "cells"), [*SETTABLE.items(), *ELSEWHERE.items()])
    def test_flag_and_default_are_those_of_the_code(self, name, cells):
        option = next(option for option in OPTIONS if option.key == name)
        assert cells[0] == f"`{option.flag}`"
        default = getattr(ServeSettings(), name)
        if cells[1] == "none":
            assert not default
        elif option.kind == "size":
            assert parse_size(cells[1].replace(" ", "")) == default
        elif option.kind == "duration":
            assert parse_duration(cells[1].replace(" ", "")) == default
        else:
            assert int(cells[1]) == default

    def test_fixed_values_are_those_of_the_code(self):
        assert {name: cells[0] for name, cells in FIXED.items()} == {
            "target_bytes": f"{constant('MAX_TARGET_BYTES') >> 10} KiB",
            "buffered_bytes": f"{constant('MAX_BUFFERED_BODIES')} times `max_body_bytes`",
            "queued_bytes": f"{constant('MAX_QUEUED_BYTES') >> 20} MiB",
            "resets": f"{constant('MAX_RESETS')} a second",
            "idle_frames": f"{constant('MAX_IDLE_FRAMES')} a second",
            "http2_errors": "0",
            "shared_memory_regions": str(constant("MAX_REGIONS")),
        }
        assert f"from {constant('MAX_REFUSED')} over it on" in PAGE
        assert f"{constant('MAX_PIPELINED')} requests of one HTTP/1.1" in PAGE
        assert f"and {constant('MAX_UNANSWERED')} messages of one gRPC" in PAGE

    def test_every_limit_of_the_settings_is_on_the_page(self):
        names = {name for name in ServeSettings.__struct_fields__ if name.startswith("max_")}
        assert names - {"max_batch"} <= {*SETTABLE, *ELSEWHERE}


def test_a_server_that_ends_closes_the_shared_memory_it_opened(folder, tmp_path):
    block = shared_memory.SharedMemory(create=True, size=16)
    name = block.name
    block.close()

    def is_open() -> bool:
        links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return any(link.name == name for link in links)

    try:
        with running(folder, http=f"unix:{tmp_path}/http", grpc="", shared_memory="/psm_") as server:
            body = json.dumps({"key": name, "offset": 0, "byte_size": 16}).encode()
            assert http1(server, "/v2/systemsharedmemory/region/a/register", body) == "200"
            assert is_open()
        assert not is_open()
    finally:
        block.unlink()
