"""HTTP/2 over real sockets: REST, gRPC calls by hand, limits, and clients that mean harm."""

from __future__ import annotations

import gc
import gzip
import json
import socket
import weakref
import zlib

import pytest

from salver.server.frontends.http2 import connection
from salver.wire.http2 import ErrorCode
from salver.wire.http2 import frames as f

SETTINGS = f.frame(f.SETTINGS, 0, 0, b"")


def u32(value):
    return value.to_bytes(4, "big")


def status(answer):
    return int(answer["heads"][0][b":status"])


def grpc_status(answer):
    return int(answer["heads"][-1][b"grpc-status"]), answer["heads"][-1].get(b"grpc-message", b"").decode()


class TestRest:
    def test_both_addresses_speak_everything(self, probe, raw):
        with probe() as server:
            host, _, port = server.grpc_address.rpartition(":")
            for address in (server.address, (host, int(port))):
                with raw(address) as client:
                    answer = client.greet().wait(client.ask("/echo", b"hello"))
                    assert (status(answer), answer["body"]) == (200, b"hello")
                    assert answer["heads"][0][b"content-length"] == b"5"
                    assert b"date" in answer["heads"][0]
                    assert client.wait(client.call("Echo", b"hi"))["body"] == b"\0\0\0\0\x02hi"

    def test_inference(self, server, raw):
        body = json.dumps(
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
        ).encode()
        with raw(server.address) as client:
            client.greet()
            asked = [client.ask("/v2/models/linear/infer", body) for _ in range(20)]
            for stream in asked:
                assert status(client.wait(stream)) == 200
                assert b'"scores"' in client.answers[stream]["body"]

    @pytest.mark.parametrize(
        ("path", "method", "expected"),
        [
            ("/nowhere", "POST", 404),
            ("/echo", "GET", 405),
            ("/none", "GET", 204),
            ("/empty", "GET", 200),
            ("/make/5", "HEAD", 200),
            ("/echo", "OPTIONS", 204),
            ("/echo", "BREW", 405),
        ],
    )
    def test_statuses(self, probe, raw, path, method, expected):
        with probe() as server, raw(server.address) as client:
            answer = client.greet().wait(ask_with(client, method, path))
            assert status(answer) == expected
            assert answer["body"] == b"" or expected >= 400
            assert client.machine.fault is None

    def test_head_says_the_length(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            answer = client.greet().wait(ask_with(client, "HEAD", "/make/7"))
            assert (answer["heads"][0][b"content-length"], answer["body"]) == (b"7", b"")

    def test_answer_in_pieces(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            answer = client.greet().wait(ask_with(client, "GET", "/pieces"))
            assert answer["body"] == b"a" * 3000 + b"b" * 100_000 + b"c"

    def test_large_answers_are_compressed_on_wish(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            answer = client.greet().wait(ask_with(client, "GET", "/make/9000", accept_encoding="gzip"))
            assert answer["heads"][0][b"content-encoding"] == b"gzip"
            assert gzip.decompress(answer["body"]) == b"x" * 9000

    def test_compressed_request(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            client.greet()
            asked = client.ask("/echo", zlib.compress(b"hello"), content_encoding="deflate")
            assert client.wait(asked)["body"] == b"hello"
            assert status(client.wait(client.ask("/echo", b"junk", content_encoding="gzip"))) == 400
            assert status(client.wait(client.ask("/echo", b"junk", content_encoding="br"))) == 415

    def test_decompressed_size_is_bounded(self, probe, raw):
        with probe(max_decompressed_bytes=1000) as server, raw(server.address) as client:
            asked = client.greet().ask("/echo", gzip.compress(bytes(100_000)), content_encoding="gzip")
            assert status(client.wait(asked)) == 413

    def test_body_over_the_limit(self, probe, raw):
        with probe(max_body_bytes=1000) as server, raw(server.address) as client:
            client.greet()
            assert status(client.wait(client.ask("/echo", bytes(1001)))) == 413
            told = client.wait(client.ask("/echo", end=False, content_length="1001"))
            assert (status(told), told["reset"]) == (413, ErrorCode.NO_ERROR)
            assert status(client.wait(client.ask("/echo", bytes(1000)))) == 200
            assert server.metrics.limits["max_body_bytes"] == 2

    def test_streamed_answer(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            answer = client.greet().wait(ask_with(client, "GET", "/stream/3"))
            assert answer["body"] == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
            assert b"content-length" not in answer["heads"][0]
            assert client.wait(ask_with(client, "HEAD", "/stream/3"))["body"] == b""

    def test_streamed_answer_that_fails_is_seen_to(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            answer = client.greet().wait(ask_with(client, "GET", "/broken"))
            assert answer["reset"] == ErrorCode.INTERNAL_ERROR
            assert answer["body"] in (b"", b"data: 1\n\n")

    def test_streamed_answer_that_nobody_reads_is_cut(self, probe, raw, until):
        with probe() as server, raw(server.address) as client:
            client.greet()
            ask_with(client, "GET", "/endless")
            until(lambda: server.probe.cancelled)
            assert server.metrics.limits["queued_bytes"] >= 1

    def test_client_that_resets(self, probe, raw, until):
        with probe() as server, raw(server.address) as client:
            asked = ask_with(client.greet(), "GET", "/hang")
            until(lambda: server.probe.held)
            client.machine.reset(client.answers[asked]["stream"])
            client.flush()
            until(lambda: server.probe.cancelled)

    def test_client_that_leaves(self, probe, raw, until):
        with probe() as server:
            with raw(server.address) as client:
                ask_with(client.greet(), "GET", "/hang")
                until(lambda: server.probe.held)
            until(lambda: server.probe.cancelled)

    def test_foreign_host_and_origin(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            client.greet()
            assert status(client.wait(client.ask("/echo", b"x", host="evil.example"))) == 200  # :authority counts
            assert status(client.wait(client.ask("/echo", b"x", origin="http://evil.example"))) == 403

    def test_allowed_origin(self, probe, raw):
        with probe(cors_origins=("http://page.example",)) as server, raw(server.address) as client:
            answer = client.greet().wait(client.ask("/echo", b"x", origin="http://page.example"))
            assert answer["heads"][0][b"access-control-allow-origin"] == b"http://page.example"

    def test_grpc_method_called_as_rest(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            assert status(client.greet().wait(client.ask("/test.Probe/Echo", b"x", content_type="text/plain"))) == 415
            assert status(client.wait(client.ask("/test.Probe/Echo", b"x", content_type="application/grpc-web"))) == 415

    def test_expect_continue(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            asked = client.greet().ask("/echo", end=False, expect="100-continue")
            answer = client.answers[asked]
            client.pump(lambda: answer["heads"])
            assert status(answer) == 100
            client.machine.send_data(answer["stream"], b"now", True)
            client.flush()
            assert client.wait(asked)["body"] == b"now"

    def test_trailers_end_a_request(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            asked = client.greet().ask("/echo", b"abc", end=False)
            client.machine.send_headers(client.answers[asked]["stream"], b"\x00\x01a\x01b", True)
            client.flush()
            assert client.wait(asked)["body"] == b"abc"


def ask_with(client, method, path, **fields):
    """A request with another method."""
    from salver.wire.http2 import encode_block

    head = [
        (b":method", method.encode()),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
    ]
    head += [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    stream = client.machine.request(encode_block(head), client, True)
    client.answers[stream.id] = {"heads": [], "body": b"", "ended": False, "reset": None, "stream": stream}
    client.flush()
    return stream.id


class TestCalls:
    """What grpcio's client never sends."""

    def test_one_message_is_wanted(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            client.greet()
            one = b"\0\0\0\0\x01x"
            grpc = {"content_type": "application/grpc"}
            none = client.wait(client.ask("/test.Probe/Echo", **grpc))
            assert grpc_status(none) == (12, "the call has no request message")
            assert none["heads"][0][b":status"] == b"200"
            two = client.wait(client.ask("/test.Probe/Echo", one + one, **grpc))
            assert grpc_status(two) == (12, "the method takes one request message; this call has more")
            half = client.wait(client.ask("/test.Probe/Echo", one[:5], **grpc))
            assert grpc_status(half) == (3, "the request ends within a message")

    def test_no_answer_but_ok(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            answer = client.greet().wait(client.ask("/test.Probe/Chat", b"", content_type="application/grpc"))
            assert [sorted(head) for head in answer["heads"]] == [[b":status", b"content-type", b"grpc-status"]]
            assert grpc_status(answer) == (0, "")

    def test_a_stream_that_breaks_gives_up_what_it_asked_for(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            body = b"\0\0\0\0\x01x" + b"\0\0\0\0\x05y"
            answer = client.greet().wait(client.ask("/test.Probe/Deaf", body, content_type="application/grpc"))
            assert grpc_status(answer) == (3, "the request ends within a message")
            assert server.probe.cancelled == ["cancelled"]

    def test_endless_message_is_refused_at_once(self, probe, raw):
        with probe(max_body_bytes=1000) as server, raw(server.address) as client:
            asked = client.greet().ask(
                "/test.Probe/Echo", b"\0\xff\xff\xff\xff", False, content_type="application/grpc"
            )
            code, message = grpc_status(client.wait(asked))
            assert code == 3
            assert "4294967295 bytes, over the limit of 1000" in message
            assert server.metrics.limits["max_body_bytes"] == 1

    def test_message_in_many_pieces(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            asked = client.greet().ask("/test.Probe/Echo", b"\0\0", False, content_type="application/grpc")
            stream = client.answers[asked]["stream"]
            for piece in (b"\0\0", b"\x04", b"a", b"b", b"cd"):
                client.machine.send_data(stream, piece)
            client.machine.send_data(stream, b"", True)
            client.flush()
            assert client.wait(asked)["body"] == b"\0\0\0\0\x04abcd"

    @pytest.mark.parametrize("timeout", ["5", "5x", "123456789S", "S", "-1S", ""])
    def test_malformed_timeout(self, probe, raw, timeout):
        with probe() as server, raw(server.address) as client:
            answer = client.greet().wait(client.call("Echo", grpc_timeout=timeout))
            assert grpc_status(answer)[0] == 3

    def test_unknown_coding(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            answer = client.greet().wait(client.call("Echo", grpc_encoding="snappy"))
            assert grpc_status(answer)[0] == 12
            assert answer["heads"][0][b"grpc-accept-encoding"] == b"identity,gzip,deflate"

    def test_compressed_without_a_coding(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            asked = client.greet().ask("/test.Probe/Echo", b"\x01\0\0\0\x01x", content_type="application/grpc")
            assert grpc_status(client.wait(asked))[0] == 13

    def test_deflate(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            packed = zlib.compress(b"y" * 9000)
            body = b"\x01" + u32(len(packed)) + packed
            asked = client.greet().ask(
                "/test.Probe/Echo",
                body,
                content_type="application/grpc+proto",
                grpc_encoding="deflate",
                grpc_accept_encoding="gzip, deflate",
            )
            answer = client.wait(asked)
            assert answer["heads"][0][b"grpc-encoding"] == b"deflate"
            assert zlib.decompress(answer["body"][5:]) == b"y" * 9000

    def test_bomb(self, probe, raw):
        with probe(max_decompressed_bytes=1000) as server, raw(server.address) as client:
            packed = gzip.compress(bytes(1 << 20))
            asked = client.greet().ask(
                "/test.Probe/Echo",
                b"\x01" + u32(len(packed)) + packed,
                content_type="application/grpc",
                grpc_encoding="gzip",
            )
            assert grpc_status(client.wait(asked))[0] == 3
            assert server.metrics.limits["max_decompressed_bytes"] == 1

    def test_foreign_origin(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            answer = client.greet().wait(client.call("Echo", origin="http://evil.example"))
            assert grpc_status(answer)[0] == 7
            assert grpc_status(client.wait(client.call("Echo", origin="http://localhost")))[0] == 0

    def test_early_refusal_stops_the_request(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            answer = client.greet().wait(client.call("Nothing", end=False))
            assert grpc_status(answer) == (12, "no method '/test.Probe/Nothing' is served here")

    def test_deadline_is_the_servers_too(self, probe, raw):
        """A client that never resets its call gets the status."""
        with probe() as server, raw(server.address) as client:
            client.greet()
            asked = [client.call("Hang", grpc_timeout=timeout) for timeout in ("200m", "50m", "100000u")]
            for stream in reversed(asked):
                assert grpc_status(client.wait(stream))[0] == 4
            assert server.probe.cancelled == ["cancelled"] * 3

    def test_trailers_after_a_message(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            answer = client.greet().wait(client.call("Refuse", b"m"))
            assert answer["body"] == b"\0\0\0\0\x01m"
            assert (len(answer["heads"]), grpc_status(answer)) == (2, (5, "no more"))

    def test_stream_that_ends_within_a_message(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            asked = client.greet().ask("/test.Probe/Chat", b"\0\0\0\0\x09abc", content_type="application/grpc")
            assert grpc_status(client.wait(asked)) == (3, "the request ends within a message")

    def test_unanswered_messages_are_bounded(self, probe, raw, until):
        with probe() as server, raw(server.address) as client:
            one = b"\0" + u32(10_000) + bytes(10_000)
            asked = client.greet().ask("/test.Probe/Deaf", one * 400, content_type="application/grpc")
            until(lambda: server.probe.held)
            call, got = server.probe.held[0]
            until(lambda: len(got) == 64)
            sent = client.answers[asked]["stream"]
            client.pump(lambda: sent.queued_bytes < 3_000_000)
            assert sent.queued_bytes > 0

            def answer(message):
                got.append(message)
                call.send(b"")

            server.call(setattr, call, "on_message", answer)
            for _ in range(64):
                server.call(call.send, b"")
            client.wait(asked)
            assert len(got) == 400
            assert grpc_status(client.answers[asked])[0] == 0


class TestHarm:
    """Each ends in an error or a closed connection, and the next client is served."""

    @pytest.fixture
    def served(self, probe, raw):
        with probe(idle_timeout_s=0.4) as server:
            yield server
            with raw(server.address) as client:
                assert client.greet().wait(client.ask("/echo", b"alive"))["body"] == b"alive"

    @pytest.mark.parametrize(
        ("sent", "code"),
        [
            (f.frame(f.PING, 0, 0, bytes(8)) * 12_000, ErrorCode.ENHANCE_YOUR_CALM),
            (SETTINGS * 12_000, ErrorCode.ENHANCE_YOUR_CALM),
            (f.frame(f.WINDOW_UPDATE, 0, 0, u32(1)) * 12_000, ErrorCode.ENHANCE_YOUR_CALM),
            (f.frame(f.HEADERS, 0, 1, b"") + f.frame(f.CONTINUATION, 0, 1, b"") * 12_000, ErrorCode.ENHANCE_YOUR_CALM),
            (f.frame(f.HEADERS, 0, 1, bytes(16_384)) + f.frame(f.CONTINUATION, 0, 1, bytes(16_384)) * 5, 11),
            (f.frame(f.HEADERS, f.END_HEADERS, 1, b"\xff" * 9), ErrorCode.COMPRESSION_ERROR),
            (f.frame(f.DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
            (b"\xff\xff\xff\0\0\0\0\0\x01", ErrorCode.FRAME_SIZE_ERROR),
            (f.frame(0xAB, 0, 0, bytes(16_385)), ErrorCode.ENHANCE_YOUR_CALM),
            (f.frame(f.SETTINGS, 0, 0, b"123"), ErrorCode.FRAME_SIZE_ERROR),
            (f.frame(f.WINDOW_UPDATE, 0, 0, u32((1 << 31) - 1)), ErrorCode.FLOW_CONTROL_ERROR),
        ],
    )
    def test_fault_is_told(self, served, raw, sent, code):
        with raw(served.address) as client:
            client.greet().send(sent)
            assert client.read_error() in (code, None)  # a flood may be cut before it is told
            assert client.is_closed
        assert served.metrics.limits

    def test_preface_then_nonsense(self, served, raw, preface):
        with raw(served.address) as client:
            client.send(preface, b"GET / HTTP/1.1\r\n\r\n" * 3)
            assert client.read_error() in (ErrorCode.PROTOCOL_ERROR, ErrorCode.FRAME_SIZE_ERROR)

    def test_half_a_preface(self, served, preface):
        with socket.create_connection(served.address, timeout=10) as sock:
            sock.sendall(preface[:10])
            assert sock.recv(100) == b""

    def test_preface_that_turns_into_something_else(self, served, preface):
        with socket.create_connection(served.address, timeout=10) as sock:
            sock.sendall(preface[:5])
            sock.sendall(b"X / HTTP/1.1\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 ")

    @pytest.mark.parametrize("start", [b"", b"\0\0\x10", f.frame(f.HEADERS, 0, 1, b"\x82")])
    def test_half_a_frame(self, served, raw, start):
        with raw(served.address) as client:
            client.greet().send(start)
            client.read_error()
            assert client.is_closed

    def test_slow_bodies(self, served, raw):
        with raw(served.address) as client:
            client.greet()
            slow = client.ask("/echo", b"x", end=False)
            call = client.call("Echo", end=False)
            assert status(client.wait(slow)) == 408
            assert grpc_status(client.wait(call))[0] == 4

    def test_answer_that_nobody_reads(self, served, raw, until):
        """No window is given: the connection goes, and with it what it held."""
        with raw(served.address) as client:
            client.greet()
            client.machine.receive = lambda _: None
            ask_with(client, "GET", "/make/200000")
            client.pump(lambda: False)
            assert client.is_closed
            until(lambda: served.metrics.limits.get("idle_timeout_s"))

    def test_rapid_reset(self, served, raw):
        with raw(served.address) as client:
            client.greet()
            block = b"\x83\x86\x44\x05/hang\x41\x09localhost"
            for i in range(1, 5001, 2):
                client.send(
                    f.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, i, block), f.frame(f.RST_STREAM, 0, i, u32(8))
                )
            assert client.read_error() in (ErrorCode.ENHANCE_YOUR_CALM, None)
            assert client.is_closed

    def test_streams_over_the_limit(self, probe, raw):
        with probe(max_streams=2) as server, raw(server.address) as client:
            client.greet()
            client.machine.max_streams = 100
            asked = [ask_with(client, "GET", "/hang") for _ in range(4)]
            assert [client.wait(stream)["reset"] for stream in asked[2:]] == [ErrorCode.REFUSED_STREAM] * 2
            assert server.metrics.limits["max_streams"] >= 1

    def test_bodies_together_are_bounded(self, probe, raw):
        with probe(max_body_bytes=100_000) as server, raw(server.address) as client:
            client.greet()
            asked = [client.ask("/echo", bytes(90_000), end=False) for _ in range(3)]
            asked += [
                client.ask(
                    "/test.Probe/Echo", b"\0" + u32(95_000) + bytes(90_000), False, content_type="application/grpc"
                )
                for _ in range(3)
            ]
            last = client.wait(asked[-1]) if client.answers[asked[-1]]["ended"] else None
            client.pump(lambda: any(client.answers[s]["ended"] for s in asked))
            ended = [client.answers[s] for s in asked if client.answers[s]["ended"]]
            assert last is None or last in ended
            assert all(grpc_status(a)[0] == 8 if b"grpc-status" in a["heads"][-1] else status(a) == 429 for a in ended)

    def test_more_connections_than_allowed(self, probe, raw):
        with probe(max_connections=1) as server, raw(server.address) as client:
            client.greet()
            with socket.create_connection(server.address, timeout=10) as sock:
                assert sock.recv(100).startswith(b"HTTP/1.1 503")

    def test_idle_connection_is_told(self, served, raw):
        with raw(served.address) as client:
            assert client.greet().read_error() == ErrorCode.NO_ERROR


class TestDrain:
    def test_open_requests_are_answered(self, probe, raw, until):
        with probe() as server, raw(server.address) as client:
            asked = client.greet().call("Hang", b"x")
            until(lambda: server.probe.held)
            server.call(server.server.close_listeners)
            drained = server.loop.create_task
            server.call(lambda: drained(server.server.drain(5.0)) and None)
            client.pump(lambda: client.machine.goaway is not None)
            assert client.machine.goaway == ((1 << 31) - 1, 0)
            client.pump(lambda: client.machine.goaway[0] == asked)
            server.call(server.probe.held[0].respond, b"done")
            assert client.wait(asked)["body"] == b"\0\0\0\0\x04done"
            client.read_error()
            assert client.is_closed

    def test_one_that_is_to_go_elsewhere_answers_what_is_open_and_ends(self, probe, raw, until):
        with probe() as server, raw(server.address) as client, raw(server.address) as idle:
            idle.greet()
            asked = client.greet().call("Hang", b"x")
            until(lambda: server.probe.held)
            server.call(server.server.ease, 1.0)
            client.pump(lambda: client.machine.goaway == (asked, 0))
            server.call(server.probe.held[0].respond, b"done")
            assert client.wait(asked)["body"] == b"\0\0\0\0\x04done"
            client.read_error()
            assert client.is_closed
            assert idle.machine.goaway is None

    def test_one_that_begins_while_the_server_stops_is_told_so(self, probe, raw):
        with probe() as server, raw(server.address) as client:
            client.send(b"PRI * ")  # it is there, and says nothing yet of HTTP/2
            assert server.ask("GET", "/v2/health/live").status == 200
            server.call(server.server.close_listeners)
            create = server.loop.create_task
            server.call(lambda: create(server.server.drain(5.0)) and None)
            client.machine.out[0] = bytes(client.machine.out[0]).removeprefix(b"PRI * ")
            client.greet().pump(lambda: client.machine.goaway is not None)
            assert client.machine.goaway == ((1 << 31) - 1, 0)
            client.read_error()
            assert client.is_closed


def test_bodies_of_all_connections_together_are_bounded(probe, raw):
    with probe(max_incoming_bytes=100_000) as server, raw(server.address) as one, raw(server.address) as other:
        one.greet().ask("/echo", bytes(60_000), end=False)
        refused = other.greet().wait(other.ask("/echo", bytes(60_000), end=False))
        assert status(refused) == 429
        assert server.metrics.limits == {"max_incoming_bytes": 1}


def test_a_connection_is_freed_at_its_end(probe, raw, until, monkeypatch):
    made = []

    class Watched(connection.Http2Connection):
        def __init__(self, host):
            super().__init__(host)
            made.append(weakref.ref(self))

    monkeypatch.setattr(connection, "Http2Connection", Watched)
    gc.disable()
    try:
        with probe() as server, raw(server.address) as client:
            client.wait(client.greet().call("Unknown", b"x"))  # the probe keeps the calls that it gets
            client.sock.close()
            until(lambda: made[0]() is None)
    finally:
        gc.enable()
