"""The way of requests over HTTP/1.1, through servers that do what servers do."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.client.load import run
from salver.client.load.http1 import read_head
from salver.client.load.plan import CUT_OFF, TIMED_OUT, UNREACHABLE
from salver.core.errors import NotFound, Unavailable
from salver.core.traces import Arrival
from tests.client.load.conftest import OK, answering, plan_for, read_request

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [OK, CHUNKED, b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"HTTP/1.1 204 No Content\r\n\r\n"],
    ids=["length", "chunks", "continue", "empty"],
)
def test_answers_are_read_whole(listening: Any, answer: bytes) -> None:
    with listening(answering(answer)) as listener:
        result = run(plan_for(listener.url))
    assert result.outcomes == {"OK": 20}
    assert result.generator.connections == listener.connections == 4


@pytest.mark.parametrize("answer", [OK, CHUNKED])
def test_answers_may_come_in_pieces(listening: Any, answer: bytes) -> None:
    def session(connected: socket.socket, number: int) -> None:
        while True:
            read_request(connected)
            for at in range(len(answer)):
                connected.sendall(answer[at : at + 1])

    with listening(session) as listener:
        assert run(plan_for(listener.url)).outcomes == {"OK": 20}


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nConnection: close\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
    ],
    ids=["close", "1.0", "until closed"],
)
def test_a_connection_that_ends_is_replaced_and_nothing_is_lost(listening: Any, answer: bytes) -> None:
    def session(connected: socket.socket, number: int) -> None:
        read_request(connected)
        connected.sendall(answer)

    with listening(session) as listener:
        result = run(plan_for(listener.url))
    assert result.outcomes == {"OK": 20}
    assert listener.connections >= 20


def test_a_request_that_met_a_closed_connection_was_not_sent(listening: Any) -> None:
    def session(connected: socket.socket, number: int) -> None:
        read_request(connected)
        connected.sendall(OK)

    trace = tuple(Arrival(at_s / 10) for at_s in range(5))
    with listening(session) as listener:
        result = run(plan_for(listener.url, trace=trace, connections=1))
    assert result.outcomes == {"OK": 5}


def test_refusals_are_counted_by_status_with_their_retry_after(listening: Any) -> None:
    answer = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nretry-after: 3\r\n\r\n"
    with listening(answering(answer)) as listener:
        result = run(plan_for(listener.url, slo_s=1.0))
    assert result.outcomes == {"429": 20}
    assert (result.ok, result.failed, result.goodput_per_s, result.latency) == (0, 20, 0.0, None)
    assert (result.retry_after, result.retry_after_mean_s) == (20, 3.0)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\ncontent-le", b"not HTTP at all\r\n\r\n"])
def test_a_connection_that_closes_without_an_answer_is_counted(listening: Any, said: bytes) -> None:
    def session(connected: socket.socket, number: int) -> None:
        read_request(connected)
        connected.sendall(said)

    with listening(session) as listener:
        result = run(plan_for(listener.url))
    assert result.outcomes == {CUT_OFF: 20}


def test_a_request_that_is_never_answered_is_given_up(listening: Any) -> None:
    def session(connected: socket.socket, number: int) -> None:
        for _ in range(3):
            read_request(connected)
            connected.sendall(OK)
        read_request(connected)
        read_request(connected)

    with listening(session) as listener:
        result = run(plan_for(listener.url, concurrency=2, max_requests=8, patience_s=0.3))
    assert result.outcomes == {"OK": 6, TIMED_OUT: 2}


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_requests_that_no_server_takes_any_more_are_unreachable(family: socket.AddressFamily, tmp_path: Path) -> None:
    is_unix = family == socket.AF_UNIX
    listener = socket.socket(family)
    listener.bind(str(tmp_path / "s") if is_unix else ("127.0.0.1", 0))
    listener.listen()
    name = listener.getsockname()

    def serve_once() -> None:
        connected, _ = listener.accept()
        with connected:
            read_request(connected)
            listener.close()
            connected.sendall(OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))

    thread = threading.Thread(target=serve_once)
    thread.start()
    url = f"http+unix://{name}" if is_unix else f"http://127.0.0.1:{name[1]}"
    result = run(plan_for(url, concurrency=1, max_requests=3, patience_s=0.2))
    thread.join()
    assert result.outcomes == {"OK": 1, UNREACHABLE: 2}
    assert result.generator.connections < 20


def test_a_server_that_comes_back_gets_the_requests_that_were_not_sent() -> None:
    found: list[bytes] = []
    port = 0
    began = threading.Event()

    def serve_twice() -> None:
        nonlocal port
        for _ in range(2):
            with socket.create_server(("127.0.0.1", port), reuse_port=True) as listener:
                port = listener.getsockname()[1]
                began.set()
                connected, _ = listener.accept()
                with connected:
                    listener.close()
                    for _ in range(3):
                        found.append(read_request(connected))
                        close = b"\r\nconnection: close\r\n\r\n" if len(found) % 3 == 0 else b"\r\n\r\n"
                        connected.sendall(OK.replace(b"\r\n\r\n", close))

    thread = threading.Thread(target=serve_twice)
    thread.start()
    assert began.wait(10)
    result = run(plan_for(f"http://127.0.0.1:{port}", concurrency=1, max_requests=6))
    thread.join()
    assert result.outcomes == {"OK": 6}
    assert len(found) == 6


def test_a_server_that_is_not_there_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unavailable, match="cannot reach"):
        run(plan_for(f"http://127.0.0.1:{port}", patience_s=0.2))


def test_the_body_of_a_request_larger_than_the_sockets_buffers_arrives(listening: Any) -> None:
    sizes: list[int] = []

    def session(connected: socket.socket, number: int) -> None:
        while True:
            sizes.append(len(read_request(connected)))
            connected.sendall(OK)

    inputs = {"x": np.zeros((1, 4 << 20), np.float32)}
    with listening(session) as listener:
        result = run(plan_for(listener.url, inputs=inputs, concurrency=2, max_requests=4, variants=1))
    assert result.outcomes == {"OK": 4}
    assert min(sizes) > 16 << 20


def test_heads() -> None:
    head = read_head(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length:12")
    assert head is not None
    assert (head.verdict.outcome, head.verdict.ok, head.verdict.retry_after_s, head.length) == ("503", False, 7.0, 12)
    assert head.stays
    assert read_head(b"SSH-2.0-OpenSSH") is None
    old = read_head(b"HTTP/1.0 200 OK\r\nconnection: Keep-Alive\r\ncontent-length: 0")
    assert old is not None
    assert old.stays


def test_the_only_model_is_found_or_must_be_named(listening: Any) -> None:
    def answer(names: list[str]) -> bytes:
        body = str([{"name": name, "state": "READY"} for name in names]).replace("'", '"').encode()
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    with listening(answering(answer(["m"]))) as listener:
        assert run(plan_for(listener.url, model="")).model == "m"
    with (
        listening(answering(answer(["a", "b"]))) as listener,
        pytest.raises(NotFound, match="2 models \\(a, b\\); name the one"),
    ):
        run(plan_for(listener.url, model=""))


def test_a_model_that_is_still_loading_is_not_asked(listening: Any) -> None:
    body = b'{"name":"m","versions":["1"],"platform":"","inputs":[],"outputs":[]}'

    def session(connected: socket.socket, number: int) -> None:
        while connected.recv(65536):
            connected.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    with listening(session) as listener, pytest.raises(Unavailable, match="'m' takes; wait until it is ready"):
        run(plan_for(listener.url, inputs={}))
