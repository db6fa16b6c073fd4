"""HTTP/1.1 on raw sockets: framing, order, limits, bad input, and clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import re
import socket
import time
import weakref
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from salver.core.errors import ResourceExhausted
from salver.server.frontends.http import _connection, listener
from salver.testing.frontends import InlineEngine

BODY = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}'


def post(body=BODY, path="/v2/models/linear/infer", fields="", length=None):
    size = len(body) if length is None else length
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {size}\r\n\r\n".encode() + body


def get(path="/v2/health/live", fields=""):
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode()


def chunked(*parts, path="/v2/models/linear/infer", fields=""):
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{fields}Transfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts if p) + b"0\r\n\r\n"


def wait_for(condition, timeout_s=5.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


def lives(server):
    assert server.ask("POST", "/v2/models/linear/infer", BODY).status == 200


class TestFraming:
    def test_keep_alive_serves_many_requests_on_one_connection(self, server):
        with server.connect() as sock:
            for _ in range(3):  # the second and third by the head that the first left behind
                for request, method in ((post(), "POST"), (get(), "GET")):
                    sock.sendall(request)
                    answer, rest = server.read_answer(sock, method)
                    assert (answer.status, rest) == (200, b"")
                    assert "connection" not in answer.fields
                    assert answer.fields["content-type"] == "application/json"
                    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", answer.fields["date"])

    def test_a_known_head_with_another_body_is_another_request(self, server):
        other = BODY.replace(b"1,2,3,4", b"4,3,2,1")
        with server.connect() as sock:
            answers = []
            for body in (BODY, other, BODY):
                sock.sendall(post(body))
                answers.append(server.read_answer(sock)[0].body)
        assert answers[0] == answers[2] != answers[1]

    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            (post().replace(b"localhost", b"evil.example"), 403),
            (post(fields="Origin: http://evil.example\r\n"), 403),
            (post(BODY + b" "), 200),
        ],
    )
    def test_a_known_head_decides_for_no_other(self, server, request_, status):
        with server.connect() as sock:
            for request, expected in ((post(), 200), (post(), 200), (request_, status), (post(), 200)):
                sock.sendall(request)
                assert server.read_answer(sock)[0].status == expected

    @pytest.mark.parametrize("known", [False, True])
    def test_split_at_every_byte(self, server, known):
        request = post()
        if known:
            lives(server)
        with server.connect() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if known:
                sock.sendall(request)
                server.read_answer(sock)
            for cut in range(1, len(request), 3):
                sock.sendall(request[:cut])
                time.sleep(0.001)
                sock.sendall(request[cut:])
                answer, _ = server.read_answer(sock)
                assert answer.status == 200, (cut, answer.body)

    def test_byte_by_byte(self, server):
        with server.connect() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in chunked(BODY[:30], BODY[30:]):
                sock.sendall(bytes([byte]))
            assert server.read_answer(sock)[0].status == 200

    @pytest.mark.parametrize("size", [1, 2, 7, 1000])
    def test_chunked_bodies(self, server, size):
        parts = [BODY[i : i + size] for i in range(0, len(BODY), size)]
        data = server.raw(chunked(*parts) + chunked(BODY, fields="Connection: close\r\n"))
        assert [a.status for a in server.parse_answers(data, ["POST", "POST"])] == [200, 200]

    def test_trailers_are_ignored(self, server):
        request = chunked(BODY, fields="Connection: close\r\n")[:-2] + b"Host: evil.example\r\nX: 9\r\n\r\n"
        assert server.parse_answers(server.raw(request), ["POST"])[0].status == 200

    def test_pipelined_answers_come_in_order(self, server, engine):
        paths = ["/v2/models/linear", "/nope", "/v2/models/pair", "/v2/health/live", "/v2/models/linear/ready"]
        with server.connect() as sock:
            sock.sendall(b"".join(get(p) for p in paths) + post(fields="Connection: close\r\n"))
            data = b""
            while part := sock.recv(65536):
                data += part
        answers = server.parse_answers(data, ["GET"] * 5 + ["POST"])
        assert [a.status for a in answers] == [200, 404, 200, 200, 200, 200]
        assert [a.json().get("name") for a in answers[:5]] == ["linear", None, "pair", None, "linear"]

    def test_answers_wait_for_those_before_them(self, server, engine):
        engine.held = []
        with server.connect() as sock:
            sock.sendall(
                post(BODY.replace(b"{", b'{"id":"a",', 1)) + post(BODY.replace(b"{", b'{"id":"b",', 1)) + get()
            )
            wait_for(lambda: len(engine.held) == 2)
            server.call(engine.release, 1)
            sock.settimeout(0.1)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            sock.settimeout(5)
            server.call(engine.release, 0)
            first, rest = server.read_answer(sock)
            second, rest = server.read_answer(sock, "POST", rest)
            third, rest = server.read_answer(sock, "GET", rest)
        assert (first.json()["id"], second.json()["id"], third.json(), rest) == ("a", "b", {"live": True}, b"")

    def test_thousands_of_pipelined_requests_are_all_answered(self, server):
        count = 2000
        with server.connect() as sock:
            sock.sendall(get() * count + get(fields="Connection: close\r\n"))
            data = b""
            while part := sock.recv(1 << 20):
                data += part
        assert data.count(b"HTTP/1.1 200 OK") == count + 1

    def test_head_and_options(self, server):
        head = server.ask("HEAD", "/v2/models/linear")
        whole = server.ask("GET", "/v2/models/linear")
        assert (head.status, head.body, head.fields["content-length"]) == (200, b"", str(len(whole.body)))
        options = server.ask("OPTIONS", "/v2/models/linear/infer")
        assert (options.status, options.fields["allow"], options.body) == (204, "OPTIONS, POST", b"")

    def test_absolute_form_and_percent_encoding(self, server):
        assert server.ask("GET", "http://localhost/v2/models/linear").status == 200
        assert server.ask("GET", "/v2/models/l%69near/").status == 200
        assert server.ask("GET", "/v2/models/linear?x=%ff").status == 200
        assert server.ask("GET", "/v2/models/%ff").status == 400

    def test_http_1_0(self, server):
        closed = server.raw(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        assert b"200 OK" in closed
        assert b"connection: close" in closed
        with server.connect() as sock:
            for _ in range(2):
                sock.sendall(b"GET /v2/health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                answer, _ = server.read_answer(sock, "GET")
                assert answer.fields["connection"] == "keep-alive"

    def test_a_last_answer_to_http_1_0_does_not_also_say_that_the_connection_stays(self, server):
        answer = server.raw(b"CONNECT /v2/health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert [line for line in answer.lower().split(b"\r\n") if line.startswith(b"connection:")] == [
            b"connection: close"
        ]

    def test_an_upgrade_is_ignored(self, server):
        fields = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAA\r\n"
        [answer] = server.parse_answers(server.raw(get(fields=fields)), ["GET"])
        assert (answer.status, answer.json(), answer.fields["connection"]) == (200, {"live": True}, "close")
        [answer] = server.parse_answers(server.raw(post(fields=fields)), ["POST"])
        assert answer.status == 501


class TestExpect:
    def test_100_is_sent_once_the_head_is_accepted(self, server):
        with server.connect() as sock:
            sock.sendall(post(b"", fields="Expect: 100-continue\r\n", length=len(BODY)))
            assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(BODY)
            answer, rest = server.read_answer(sock)
            assert (answer.status, rest) == (200, b"")

    def test_100_waits_for_the_answers_before_it(self, server, engine):
        engine.held = []
        with server.connect() as sock:
            sock.sendall(post() + post(b"", fields="Expect: 100-continue\r\n", length=len(BODY)))
            wait_for(lambda: len(engine.held) == 1)
            server.call(engine.release)
            answer, rest = server.read_answer(sock)
            assert answer.status == 200
            rest = rest or sock.recv(100)
            assert rest == b"HTTP/1.1 100 Continue\r\n\r\n"

    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            (post(b"", path="/nope", fields="Expect: 100-continue\r\n", length=10), 404),
            (post(b"", path="/metrics", fields="Expect: 100-continue\r\n", length=10), 405),
            (post(b"", fields="Expect: 100-continue\r\n", length=1 << 40), 413),
            (post(b"", fields="Expect: a-miracle\r\n", length=10), 417),
            (post(b"", fields="Expect: 100-continue\r\nOrigin: http://evil.example\r\n", length=10), 403),
        ],
    )
    def test_a_refusal_comes_instead_of_100(self, server, request_, status):
        [answer] = server.parse_answers(server.raw(request_), ["POST"])
        assert (answer.status, answer.fields["connection"]) == (status, "close")
        assert answer.error


class TestLimits:
    def test_a_body_over_the_limit_is_413_without_being_read(self, start):
        with start(max_body_bytes=1000) as server, server.connect() as sock:
            sock.sendall(post(b"", length=1001))  # not one byte of the body is sent
            answer, _ = server.read_answer(sock)
            assert answer.status == 413
            assert "1001 bytes, over the limit of 1000" in answer.error
            assert answer.fields["connection"] == "close"
            assert sock.recv(1) == b""
            assert server.metrics.limits == {"max_body_bytes": 1}

    def test_a_client_that_sends_it_all_the_same_still_gets_its_413(self, start):
        with start(max_body_bytes=1000) as server, server.connect() as sock:
            sock.sendall(post(b"", length=8 << 20))
            for _ in range(128):
                sock.sendall(bytes(1 << 16))
            answer, _ = server.read_answer(sock)
            assert answer.status == 413

    def test_the_limit_is_the_largest_that_passes(self, start):
        with start(max_body_bytes=len(BODY)) as server:
            lives(server)
            assert server.ask("POST", "/v2/models/linear/infer", BODY + b" ").status == 413

    def test_chunked_bodies_have_the_same_limit(self, start):
        with start(max_body_bytes=100) as server:
            [answer] = server.parse_answers(server.raw(chunked(*[b"x" * 30] * 4)), ["POST"])
            assert answer.status == 413
            lives(server)

    @pytest.mark.parametrize("coding", ["gzip", "deflate"])
    def test_compressed_bodies_may_not_grow_beyond_it(self, start, coding):
        bomb = {"gzip": gzip.compress, "deflate": zlib.compress}[coding](bytes(1 << 20))
        with start(max_decompressed_bytes=10_000) as server:
            answer = server.ask("POST", "/v2/models/linear/infer", bomb, Content_Encoding=coding)
            assert answer.status == 413
            assert "becomes larger than 10000 bytes" in answer.error

    @pytest.mark.parametrize(
        "request_",
        [
            get(fields="X: " + "y" * 3000 + "\r\n"),
            get(fields="".join(f"X-{i}: 1\r\n" for i in range(500))),
            b"GET / HTTP/1.1\r\nX: " + b"y" * 2000,
            b"GET / HTTP/1.1\r\n" + b"X-Y: 1\r\n" * 400,
            chunked(BODY)[:-2] + b"T: 1\r\n" * 500 + b"\r\n",
        ],
    )
    def test_headers_over_the_limit_are_431(self, start, request_):
        with start(max_header_bytes=1000) as server, server.connect() as sock:
            for at in range(0, len(request_), 500):
                sock.sendall(request_[at : at + 500])
                time.sleep(0.002)
            answer, _ = server.read_answer(sock)
            assert answer.status == 431
            assert "max_header_bytes" in answer.error
            assert server.metrics.limits == {"max_header_bytes": 1}

    def test_an_endless_head_and_an_endless_chunk_extension_end(self, start):
        for opening in (b"GET / HTTP/1.1\r\nX: ", chunked(BODY)[:120].partition(b"\r\n\r\n")[0] + b"\r\n\r\n1;a="):
            with start(max_header_bytes=1000) as server, server.connect() as sock:
                sock.sendall(opening)
                for _ in range(50):
                    time.sleep(0.001)
                    try:
                        sock.sendall(b"y" * 1000)
                    except OSError:
                        break
                assert server.read_answer(sock)[0].status == 431

    def test_a_long_target_is_414(self, server):
        assert server.ask("GET", "/" + "x" * 9000).status == 414

    def test_one_connection_too_many_is_503(self, start):
        with start(max_connections=2) as server:
            with server.connect() as a, server.connect() as b:
                for sock in (a, b):
                    sock.sendall(get())
                    server.read_answer(sock, "GET")
                with server.connect() as c:
                    answer, _ = server.read_answer(c, "GET")
                    assert answer.status == 503
                    assert "max_connections" in answer.error
                    assert answer.fields["retry-after"] == "1"
                a.sendall(get())
                assert server.read_answer(a, "GET")[0].status == 200
            wait_for(lambda: server.metrics.connections == 0)
            lives(server)

    def test_an_idle_connection_is_closed(self, start):
        with start(idle_timeout_s=0.2) as server, server.connect() as sock:
            sock.sendall(get())
            server.read_answer(sock, "GET")
            assert sock.recv(1) == b""

    @pytest.mark.parametrize("part", [b"GE", b"GET / HTTP/1.1\r\nHost: loc", post(BODY[:10], length=len(BODY))])
    def test_a_request_that_does_not_come_is_408(self, start, part):
        with start(idle_timeout_s=0.2) as server, server.connect() as sock:
            sock.sendall(part)
            answer, _ = server.read_answer(sock)
            assert answer.status == 408
            assert sock.recv(1) == b""
            assert server.metrics.limits == {"idle_timeout_s": 1}

    def test_dripping_does_not_help(self, start):
        with start(idle_timeout_s=0.3) as server, server.connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nX: ")
            with pytest.raises(OSError, match=r".*"):  # noqa: PT012
                for _ in range(200):
                    sock.sendall(b"y")
                    time.sleep(0.02)
                    if sock.recv(65536, socket.MSG_DONTWAIT) == b"":
                        raise ConnectionResetError

    def test_a_request_that_waits_for_the_engine_is_not_idle(self, start, engine):
        engine.held = []
        with start(idle_timeout_s=0.2) as server, server.connect() as sock:
            sock.sendall(post())
            time.sleep(0.6)
            server.call(engine.release)
            assert server.read_answer(sock)[0].status == 200

    def test_a_client_that_does_not_read_stops_being_read_and_is_cut_off(self, start):
        with start(idle_timeout_s=0.3) as server, server.connect() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(0.5)
            with pytest.raises(OSError, match=r".*"):  # noqa: PT012
                for _ in range(100_000):
                    sock.sendall(get("/openapi.json") * 10)
            wait_for(lambda: server.metrics.connections == 0)
            assert server.metrics.limits == {"idle_timeout_s": 1}
            lives(server)


class TestBadInput:
    @pytest.mark.parametrize(
        ("request_", "status", "message"),
        [
            (b"\x00\x01\x02\r\n\r\n", 501, "unknown HTTP method"),
            (b"HELLO / HTTP/1.1\r\n\r\n", 501, "unknown HTTP method"),
            (b"GET /\r\n\r\n", 505, "send HTTP/1.1"),
            (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 505, "HTTP/2.0 is not spoken here"),
            (b"GET / HTTP/1.1\r\nHost: localhost:80@evil.example\r\n\r\n", 400, "malformed Host"),
            (chunked(BODY).replace(b": chunked", b": gzip, chunked"), 501, "the only Transfer-Encoding"),
            (b"GET / HTTP/3.9\r\n\r\n", 400, "malformed"),
            (b"GET / HTTP/1.1\r\n\r\n", 400, "needs a 'Host'"),
            (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400, "two 'host' fields"),
            (b"GET / HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n", 400, "malformed"),
            (b"GET / HTTP/1.1\r\nHost: localhost\r\nX : y\r\n\r\n", 400, "malformed"),
            (post(fields="Content-Length: 5\r\n"), 400, "malformed"),
            (post(fields="Transfer-Encoding: chunked\r\n"), 400, "malformed"),
            (post(b"", length="-1"), 400, "malformed"),
            (post(b"", length="99999999999999999999999"), 400, "malformed"),
            (chunked(BODY).replace(b"\r\n\r\n4a", b"\r\n\r\nzz"), 400, "malformed"),
            (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "request target"),
        ],
    )
    def test_malformed_http(self, server, request_, status, message):
        [answer] = server.parse_answers(server.raw(request_), ["POST"])
        assert answer.status == status
        assert message in answer.error
        assert answer.fields["connection"] == "close" or status == 400
        lives(server)

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (BODY.replace(b'"x"', b'"z"'), "unknown input 'z'; missing input 'x'"),
            (BODY.replace(b"FP32", b"INT64"), "input 'x': got datatype INT64, expected FP32"),
            (BODY.replace(b"[1,4]", b"[4]"), "input 'x': got shape [4], expected [batch, 4]"),
            (BODY.replace(b"[1,4]", b"[2,4]"), "input 'x': got 4 elements, expected 8 for shape [2, 4]"),
            (BODY[:-1], "not valid JSON"),
            (BODY.replace(b"1,2", b"\xff"), "not UTF-8: byte 0xff at position"),
            (b"", "not valid JSON: it is empty"),
            (BODY.replace(b'"x"', b'"' + b"z" * 100_000 + b'"'), "more characters)"),
        ],
    )
    def test_bad_requests_are_told_why_and_the_connection_lives(self, server, body, message):
        with server.connect() as sock:
            sock.sendall(post(body))
            answer, _ = server.read_answer(sock)
            assert answer.status == 400
            assert message in answer.error
            assert "Traceback" not in answer.error
            sock.sendall(post())
            assert server.read_answer(sock)[0].status == 200

    @pytest.mark.parametrize("value", ["x", "-1", "1e3", "9" * 19, "1, 2", "999"])
    def test_a_bad_header_length(self, server, value):
        answer = server.ask("POST", "/v2/models/linear/infer", BODY, Inference_Header_Content_Length=value)
        assert answer.status == 400
        assert "Inference-Header-Content-Length" in answer.error

    @pytest.mark.parametrize("cut", [5, 40, 100, 150])
    def test_half_a_request_and_then_nothing(self, server, cut):
        with server.connect() as sock:
            sock.sendall(post()[:cut])
        wait_for(lambda: server.metrics.connections == 0)
        lives(server)

    @pytest.mark.parametrize("how", ["close", "reset", "half-close"])
    def test_a_client_that_goes_away_takes_its_request_along(self, server, engine, how):
        engine.held = []
        sock = server.connect()
        sock.sendall(post())
        wait_for(lambda: len(engine.held) == 1)
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if how == "half-close":
            sock.shutdown(socket.SHUT_WR)
        else:
            sock.close()
        wait_for(lambda: len(engine.cancelled) == 1)
        assert engine.held == []
        engine.held = None
        sock.close()
        lives(server)

    def test_what_a_client_left_behind_is_freed_at_once(self, server, engine):
        """Not when Python next looks for reference cycles: a body may be large, and that may be long after."""
        engine.held = []
        with server.connect() as sock:
            sock.sendall(post())
            wait_for(lambda: len(engine.held) == 1)
            data = weakref.ref(engine.held[0][1].arrays()["x"])
            gc.disable()
            try:
                sock.close()
                wait_for(lambda: len(engine.cancelled) == 1)
                engine.cancelled.clear()
                wait_for(lambda: data() is None)
            finally:
                gc.enable()

    @pytest.mark.parametrize("data", [get(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], ids=["http/1.1", "http/2"])
    def test_a_connection_is_freed_at_its_end(self, server, monkeypatch, data):
        made = []

        class Watched(_connection.Connection):
            def __init__(self, host):
                super().__init__(host)
                made.append(weakref.ref(self))

        monkeypatch.setattr(listener, "Connection", Watched)
        gc.disable()
        try:
            with server.connect() as sock:
                sock.sendall(data)
                assert sock.recv(10)
            wait_for(lambda: made[0]() is None)
        finally:
            gc.enable()

    def test_an_answer_for_a_client_that_left_is_dropped(self, server, engine):
        engine.held = []
        with server.connect() as sock:
            sock.sendall(post())
            wait_for(lambda: len(engine.held) == 1)
            [(model, request)] = engine.held
        wait_for(lambda: len(engine.cancelled) == 1)
        server.call(request.done, {"scores": model.session.run(request.arrays())["scores"]}, None)
        engine.held = None
        lives(server)

    def test_bad_and_good_requests_side_by_side(self, server):
        with server.connect() as good:
            for junk in (b"\xff" * 100, post(b"{"), post(BODY[:-5], length=10)):
                with server.connect() as bad:
                    bad.sendall(junk)
                    good.sendall(post())
                    assert server.read_answer(good)[0].status == 200
                    assert server.read_answer(bad)[0].status >= 400


class TestContentCoding:
    @pytest.mark.parametrize(
        ("name", "pack"),
        [
            ("gzip", gzip.compress),
            ("x-gzip", gzip.compress),
            ("deflate", zlib.compress),
            ("deflate", lambda b: zlib.compress(b, wbits=-15)),
            ("gzip", lambda b: gzip.compress(b[:20]) + gzip.compress(b[20:])),
            ("identity", bytes),
        ],
    )
    def test_request_bodies(self, server, name, pack):
        assert server.ask("POST", "/v2/models/linear/infer", pack(BODY), Content_Encoding=name).status == 200

    @pytest.mark.parametrize(
        ("name", "body", "status", "message"),
        [
            ("br", BODY, 415, "Content-Encoding 'br'"),
            ("gzip", BODY, 400, "not valid gzip"),
            ("gzip", gzip.compress(BODY, mtime=0)[:-9], 400, "ends early"),
            ("deflate", zlib.compress(BODY) + b"!", 400, "1 bytes follow"),
            ("gzip", b"", 400, "ends early"),
        ],
    )
    def test_bad_request_bodies(self, server, name, body, status, message):
        answer = server.ask("POST", "/v2/models/linear/infer", body, Content_Encoding=name)
        assert answer.status == status
        assert message in answer.error

    @pytest.mark.parametrize(
        ("accept", "coding"), [("gzip", "gzip"), ("deflate;q=0.5", "deflate"), ("gzip;q=0, *", None)]
    )
    def test_large_answers_are_compressed_when_asked(self, server, accept, coding):
        plain = server.ask("GET", "/openapi.json")
        answer = server.ask("GET", "/openapi.json", Accept_Encoding=accept)
        assert answer.fields.get("content-encoding") == coding
        if coding:
            assert len(answer.body) < len(plain.body)
            answer.body = zlib.decompress(answer.body, wbits=47)
        assert answer.body == plain.body
        assert "content-encoding" not in server.ask("GET", "/v2", Accept_Encoding=accept).fields


class TestGuard:
    @pytest.mark.parametrize(
        "host", ["localhost", "127.0.0.1:8080", "[::1]:80", "LOCALHOST:1", "127.1.2.3", "a.localhost"]
    )
    def test_loopback_names_pass(self, server, host):
        assert server.ask("GET", "/v2", Host=host).status == 200

    @pytest.mark.parametrize(
        "host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "localhost.evil.example", ""]
    )
    def test_other_names_do_not(self, server, host):
        answer = server.ask("GET", "/v2", Host=host)
        assert answer.status == 403
        assert "trusted_hosts" in answer.error

    def test_configured_names_do(self, start):
        with start(trusted_hosts=("Model.Example",)) as server:
            assert server.ask("GET", "/v2", Host="model.example:80").status == 200
            assert server.ask("GET", "/v2", Host="other.example").status == 403

    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost:9"])
    def test_pages_of_other_sites_do_not(self, server, origin):
        answer = server.ask("POST", "/v2/models/linear/infer", BODY, Origin=origin)
        assert answer.status == 403
        assert "cors_origins" in answer.error

    def test_our_own_page_does(self, server):
        host = "localhost:8080"
        answer = server.ask("POST", "/v2/models/linear/infer", BODY, Host=host, Origin=f"http://{host}")
        assert answer.status == 200
        assert "access-control-allow-origin" not in answer.fields

    def test_allowed_origins_get_cors_fields(self, start):
        with start(cors_origins=("https://app.example",)) as server:
            answer = server.ask("POST", "/v2/models/linear/infer", BODY, Origin="https://app.example")
            assert (answer.status, answer.fields["access-control-allow-origin"]) == (200, "https://app.example")
            preflight = server.ask(
                "OPTIONS",
                "/v2/models/linear/infer",
                Origin="https://app.example",
                Access_Control_Request_Method="POST",
            )
            assert (preflight.status, preflight.fields["access-control-allow-methods"]) == (204, "OPTIONS, POST")
            assert server.ask("GET", "/v2", Origin="https://other.example").status == 403


class TestDrain:
    def test_open_requests_are_answered_and_idle_connections_closed(self, server, engine):
        engine.held = []
        with server.connect() as busy, server.connect() as idle:
            idle.sendall(get())
            server.read_answer(idle, "GET")
            busy.sendall(post())
            wait_for(lambda: len(engine.held) == 1)
            draining = asyncio.run_coroutine_threadsafe(server.server.drain(5), server.loop)
            assert idle.recv(1) == b""
            with pytest.raises(OSError, match=r".*"):
                server.connect(1)
            server.call(engine.release)
            answer, _ = server.read_answer(busy)
            assert (answer.status, answer.fields["connection"]) == (200, "close")
            busy.close()
            draining.result(5)

    def test_what_is_not_done_in_time_is_cut(self, server, engine):
        engine.held = []
        with server.connect() as sock:
            sock.sendall(post())
            wait_for(lambda: len(engine.held) == 1)
            server.call(server.server.drain, 0.2)
            with pytest.raises((ConnectionResetError, AssertionError)):
                server.read_answer(sock)
            wait_for(lambda: len(engine.cancelled) == 1)


class TestEase:
    """A share of the connections in use is to go elsewhere; the others, and those that idle, are left alone."""

    def test_half_of_them(self, server):
        with contextlib.ExitStack() as stack:
            idle, *used = (stack.enter_context(server.connect()) for _ in range(5))
            for sock in used:
                sock.sendall(get())
                server.read_answer(sock, "GET")
            assert server.call(lambda: server.server.in_use) == 4
            server.call(server.server.ease, 0.5)
            assert server.call(lambda: server.server.in_use) == 2
            told = 0
            for sock in (*used, idle):
                sock.sendall(post())
                answer, _ = server.read_answer(sock)
                assert answer.status == 200
                if "connection" in answer.fields:
                    assert sock is not idle
                    assert (answer.fields["connection"], sock.recv(1)) == ("close", b"")
                    told += 1
            assert told == 2

    def test_one_that_waits_for_its_answer_gets_it(self, server, engine):
        engine.held = []
        with server.connect() as sock:
            sock.sendall(post())
            wait_for(lambda: len(engine.held) == 1)
            server.call(server.server.ease, 1.0)
            server.call(engine.release)
            answer, _ = server.read_answer(sock)
            assert (answer.status, answer.fields["connection"]) == (200, "close")

    def test_one_that_falls_silent_is_not_in_use(self, server):
        with server.connect() as sock:
            sock.sendall(get())
            server.read_answer(sock, "GET")
            wait_for(lambda: server.call(lambda: server.server.in_use) == 0)
            server.call(server.server.ease, 1.0)
            sock.sendall(get())
            assert "connection" not in server.read_answer(sock, "GET")[0].fields


def test_a_defect_in_a_handler_is_500_and_the_connection_lives(server, monkeypatch, caplog):
    def explode() -> bytes:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(server.metrics, "observe", explode)
    with server.connect() as sock:
        sock.sendall(get("/metrics"))
        answer, _ = server.read_answer(sock, "GET")
        assert answer.status == 500
        assert "secret" not in answer.error
        sock.sendall(get())
        assert server.read_answer(sock, "GET")[0].status == 200
    assert "ZeroDivisionError: secret" in caplog.text


@pytest.fixture(scope="module")
def shared(models, serve):
    """One server for all fuzzed requests: if one harms it, the next ones show it."""
    with serve(InlineEngine(models), max_body_bytes=5000, max_header_bytes=2000) as running:
        yield running


PIECES = st.sampled_from(
    [b"GET ", b"POST ", b"/v2", b"/v2/models/linear/infer", b" HTTP/1.1", b"\r\n", b"\r\n\r\n", b"Host: localhost",
     b"Content-Length: 5", b"Content-Length: 74", b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"5\r\n",
     b"0\r\n", b"Connection: close", b"Inference-Header-Content-Length: 3", b"Content-Encoding: gzip", BODY,
     b"\xff", b": ", b","]
)  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=300), st.lists(PIECES, max_size=20).map(b"".join)), st.integers(0, 300))
def test_fuzz_random_input_never_harms(shared, data, cut):
    """Whatever comes, what goes back is HTTP, and the next client is served."""
    with shared.connect(5) as sock:
        sock.sendall(data[:cut])
        sock.sendall(data[cut:])
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(65536):
                answer += part
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert b" 500 " not in answer
    lives(shared)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_fuzz_mutated_requests_never_harm(shared, data):
    request = bytearray(data.draw(st.sampled_from([post(), chunked(BODY[:9], BODY[9:]), get()])))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(request) - 1))
        what = data.draw(st.sampled_from(["set", "cut", "add"]))
        if what == "set":
            request[at] = data.draw(st.integers(0, 255))
        elif what == "cut":
            del request[at : at + data.draw(st.integers(1, 9))]
            request = request or bytearray(b"x")
        else:
            request[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    with shared.connect(5) as sock:
        sock.sendall(bytes(request))
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(65536):
                answer += part
    for status in re.findall(rb"HTTP/1\.1 (\d{3})", answer):
        assert status != b"500"
    lives(shared)


def test_ten_thousand_queued_requests_are_answered(server, engine):
    """Far more than any queue: the engine refuses what it does not take, and every request gets its answer."""
    engine.refuse_with = ResourceExhausted("the queue of 'linear' is full (1024)", retry_after_s=1)
    count = 10_000
    with server.connect(30) as sock:
        seen = 0
        for _ in range(count // 50):
            sock.sendall(post() * 50)
            data = b""
            while data.count(b"HTTP/1.1 429 Too Many Requests\r\n") < 50 or not data.endswith(b"}"):
                data += sock.recv(1 << 20)
            seen += data.count(b"retry-after: 1\r\n")
    assert seen == count
    engine.refuse_with = None
    lives(server)


def test_json_of_errors_is_always_one_message(server):
    for path in ("/nope", "/v2/models/none", "/v2/models/none/infer"):
        answer = server.ask("POST" if path.endswith("infer") else "GET", path, b"{}" if path.endswith("infer") else b"")
        assert list(json.loads(answer.body)) == ["error"]
