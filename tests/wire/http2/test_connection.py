"""What a connection does with right and wrong frames. Section numbers are those of RFC 9113."""

from __future__ import annotations

import pytest

from salver.core.errors import Unavailable
from salver.wire.http2 import PREFACE, Envelope, ErrorCode, encode_block
from salver.wire.http2 import floods as module
from salver.wire.http2 import frames as f

PROTOCOL, FLOW, SIZE = ErrorCode.PROTOCOL_ERROR, ErrorCode.FLOW_CONTROL_ERROR, ErrorCode.FRAME_SIZE_ERROR
CALM, COMPRESSION = ErrorCode.ENHANCE_YOUR_CALM, ErrorCode.COMPRESSION_ERROR


def u32(value):
    return value.to_bytes(4, "big")


def setting(number, value):
    return f.frame(f.SETTINGS, 0, 0, number.to_bytes(2, "big") + u32(value))


def resets(side):
    return [(stream, int.from_bytes(p, "big")) for kind, _, stream, p in side.frames() if kind == "RST_STREAM"]


class TestGreeting:
    def test_server_says_what_it_takes(self, wire):
        side = wire.Side(max_streams=7)
        (kind, flags, stream, payload), window = side.frames()
        assert (kind, flags, stream) == ("SETTINGS", 0, 0)
        assert (3).to_bytes(2, "big") + u32(7) in payload
        assert window[0] == "WINDOW_UPDATE"

    def test_settings_are_acknowledged(self, wire):
        side = wire.Side()
        side.take()
        side.hear(PREFACE, wire.SETTINGS)
        assert side.frames() == [("SETTINGS", f.ACK, 0, b"")]

    def test_preface_may_come_in_pieces(self, wire):
        side = wire.Side()
        for byte in PREFACE + wire.SETTINGS + wire.headers(1, end=True):
            side.hear(bytes((byte,)))
        assert list(side.logs) == [1]

    @pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX", b"\x00"])
    def test_anything_else_is_refused(self, wire, start):
        assert wire.Side().hear(start).error is PROTOCOL

    @pytest.mark.parametrize("first", [f.frame(f.PING, 0, 0, bytes(8)), f.frame(f.SETTINGS, f.ACK, 0, b"")])
    def test_settings_come_first(self, wire, first):
        assert wire.Side().hear(PREFACE, first).error is PROTOCOL

    def test_nothing_is_heard_after_a_fault(self, wire):
        side = wire.Side().hear(b"nonsense")
        side.hear(PREFACE, wire.SETTINGS, wire.headers(1))
        assert not side.logs


class TestRequests:
    def test_head_and_body(self, server, wire):
        server.hear(wire.headers(1), wire.data(1, b"ab"), wire.data(1, b"cd", end=True))
        log = server.logs[1]
        assert log.head.mapping[b":path"] == b"/x"
        assert (log.data, log.ended) == (b"abcd", True)

    def test_same_block_is_the_same_head(self, server, wire):
        server.hear(wire.headers(1, end=True), wire.headers(3, end=True))
        assert server.logs[1].head is server.logs[3].head

    def test_many_come_in_one_read(self, server, wire):
        server.hear(*(wire.headers(i) + wire.data(i, b"%d" % i, end=True) for i in range(1, 40, 2)))
        assert {i: log.pieces for i, log in server.logs.items()} == {i: [(b"%d" % i, True)] for i in range(1, 40, 2)}
        assert server.machine.floods.useful == 40

    def test_many_in_one_read_are_no_more_than_allowed(self, greet, wire):
        side = greet(max_streams=3)
        side.hear(*(wire.headers(i) + wire.data(i, b"x", end=True) for i in range(1, 11, 2)))
        assert list(side.logs) == [1, 3, 5]
        assert [(kind, i) for kind, _, i, _ in side.frames()] == [("RST_STREAM", 7), ("RST_STREAM", 9)]

    def test_window_of_many_in_one_read_is_given_back(self, greet, wire):
        side = greet(window_bytes=65_535)
        side.hear(*(wire.headers(i) + wire.data(i, bytes(4000), end=True) for i in range(1, 41, 2)))
        given = [int.from_bytes(payload) for kind, _, _, payload in side.frames() if kind == "WINDOW_UPDATE"]
        assert len(side.logs) == 20
        assert sum(given) == 72_000  # the last two are not half of it

    def test_padding_and_priority_are_left_aside(self, server, wire):
        padded = bytes((3,)) + bytes(4) + b"\x10" + wire.BLOCK + bytes(3)
        flags = f.END_HEADERS | f.PADDED | f.HAS_PRIORITY
        server.hear(wire.headers(1, block=padded, flags=flags), wire.data(1, b"\x02ab\0\0", end=True, flags=f.PADDED))
        assert server.logs[1].data == b"ab"

    def test_head_goes_on_in_continuation(self, server, wire):
        block = wire.BLOCK
        server.hear(
            wire.headers(1, end=True, block=block[:3], flags=0),
            f.frame(f.CONTINUATION, 0, 1, block[3:5]),
            f.frame(f.CONTINUATION, f.END_HEADERS, 1, block[5:]),
        )
        assert server.logs[1].head.fields == wire.REQUEST
        assert server.logs[1].ended

    def test_trailers_end_a_request(self, server, wire):
        server.hear(wire.headers(1), wire.data(1, b"a"), wire.headers(1, True, encode_block([(b"grpc-x", b"1")])))
        assert server.logs[1].heads == [({b"grpc-x": b"1"}, True)]

    def test_trailers_that_end_nothing_are_malformed(self, server, wire):
        server.hear(wire.headers(1), wire.headers(1, False, encode_block([(b"x", b"1")])))
        assert resets(server) == [(1, PROTOCOL)]
        assert server.logs[1].reset[0] == PROTOCOL

    def test_part_of_a_body_is_delivered_before_the_frame_is_whole(self, server, wire):
        frame = wire.data(1, b"x" * 50_000, end=True)
        server.hear(wire.headers(1), frame[:30_000])
        assert len(server.logs[1].data) == 30_000 - 9
        assert not server.logs[1].ended
        server.hear(frame[30_000:], wire.headers(3))
        assert len(server.logs[1].data) == 50_000
        assert server.logs[1].ended
        assert 3 in server.logs

    def test_rest_of_a_body_is_dropped_with_its_stream(self, server, wire):
        frame = wire.data(1, b"x" * 50_000, end=True)
        server.hear(wire.headers(1), frame[:30_000])
        server.machine.reset(server.streams[1])
        server.hear(frame[30_000:], wire.headers(3))
        assert not server.logs[1].ended
        assert 3 in server.logs

    @pytest.mark.parametrize("length", [b"3", b"5"])
    def test_content_length_holds(self, server, wire, length):
        block = encode_block([*wire.REQUEST, (b"content-length", length)])
        server.hear(wire.headers(1, block=block), wire.data(1, b"abcd", end=True))
        assert resets(server) == [(1, PROTOCOL)]

    def test_content_length_without_a_body(self, server, wire):
        server.hear(wire.headers(1, True, encode_block([*wire.REQUEST, (b"content-length", b"1")])))
        assert resets(server) == [(1, PROTOCOL)]
        assert not server.logs

    def test_content_length_before_trailers(self, server, wire):
        block = encode_block([*wire.REQUEST, (b"content-length", b"9")])
        server.hear(wire.headers(1, block=block), wire.headers(1, True, encode_block([(b"x", b"1")])))
        assert resets(server) == [(1, PROTOCOL)]

    @pytest.mark.parametrize(
        "fields",
        [
            [(b":method", b"GET"), (b":path", b"/")],
            [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"")],
            [(b":method", b"GET"), (b":scheme", b"http"), (b"a", b"b"), (b":path", b"/")],
            [(b":method", b"GET"), (b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/")],
            [(b":status", b"200"), (b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/")],
            *(
                [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), field]
                for field in [
                    (b"Upper", b"x"),
                    (b"", b"x"),
                    (b"a b", b"x"),
                    (b"x", b"a\r\nb"),
                    (b"x", b"a\0"),
                    (b"x", b" a"),
                    (b"connection", b"close"),
                    (b"transfer-encoding", b"chunked"),
                    (b"te", b"gzip"),
                    (b"content-length", b"-1"),
                    (b"content-length", b"9" * 30),
                ]
            ),
        ],
    )
    def test_malformed_heads_end_their_stream_alone(self, server, wire, fields):
        """8.1.1: and the next stream lives."""
        server.hear(wire.headers(1, True, encode_block(fields)), wire.headers(3, True))
        assert resets(server) == [(1, PROTOCOL)]
        assert list(server.logs) == [3]

    def test_te_trailers_is_allowed(self, server, wire):
        server.hear(wire.headers(1, True, encode_block([*wire.REQUEST, (b"te", b"trailers")])))
        assert list(server.logs) == [1]

    def test_fields_of_the_same_name_are_joined(self, server, wire):
        more = [(b"a", b"1"), (b"cookie", b"x"), (b"a", b"2"), (b"cookie", b"y")]
        server.hear(wire.headers(1, True, encode_block([*wire.REQUEST, *more])))
        mapping = server.logs[1].head.mapping
        assert (mapping[b"a"], mapping[b"cookie"]) == (b"1,2", b"x; y")


class TestFaults:
    """Each of these ends the connection, with that code."""

    @pytest.mark.parametrize(
        ("frame", "code"),
        [
            (f.frame(f.DATA, 0, 0, b"x"), PROTOCOL),
            (f.frame(f.DATA, 0, 5, b"x"), PROTOCOL),
            (f.frame(f.DATA, 0, 2, b"x"), PROTOCOL),
            (f.frame(f.HEADERS, f.END_HEADERS, 0, b"\x82"), PROTOCOL),
            (f.frame(f.HEADERS, f.END_HEADERS, 2, b"\x82"), PROTOCOL),
            (f.frame(f.HEADERS, 0, 0, b"\x82"), PROTOCOL),
            (f.frame(f.HEADERS, f.END_HEADERS | f.PADDED, 1, b"\x05\0"), PROTOCOL),
            (f.frame(f.HEADERS, f.END_HEADERS | f.PADDED, 1, b""), PROTOCOL),
            (f.frame(f.HEADERS, f.END_HEADERS | f.HAS_PRIORITY, 1, b"\0\0"), SIZE),
            (f.frame(f.HEADERS, f.END_HEADERS, 1, b"\x80"), COMPRESSION),
            (f.frame(f.HEADERS, f.END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"), COMPRESSION),
            (f.frame(f.HEADERS, f.END_HEADERS, 1, b"\x00\x7f"), COMPRESSION),
            (f.frame(f.HEADERS, f.END_HEADERS, 1, b"\x3f\xe2\x1f"), COMPRESSION),
            (f.frame(f.PRIORITY, 0, 0, bytes(5)), PROTOCOL),
            (f.frame(f.PRIORITY, 0, 1, bytes(4)), SIZE),
            (f.frame(f.RST_STREAM, 0, 1, u32(0)), PROTOCOL),
            (f.frame(f.RST_STREAM, 0, 0, u32(0)), PROTOCOL),
            (f.frame(f.RST_STREAM, 0, 1, b""), SIZE),
            (f.frame(f.SETTINGS, 0, 1, b""), PROTOCOL),
            (f.frame(f.SETTINGS, 0, 0, b"x"), SIZE),
            (f.frame(f.SETTINGS, f.ACK, 0, bytes(6)), SIZE),
            (setting(2, 2), PROTOCOL),
            (setting(4, 1 << 31), FLOW),
            (setting(5, 100), PROTOCOL),
            (setting(5, 1 << 24), PROTOCOL),
            (f.frame(f.PUSH_PROMISE, 0, 1, bytes(4)), PROTOCOL),
            (f.frame(f.PING, 0, 0, b""), SIZE),
            (f.frame(f.PING, 0, 1, bytes(8)), PROTOCOL),
            (f.frame(f.GOAWAY, 0, 0, bytes(7)), SIZE),
            (f.frame(f.GOAWAY, 0, 1, bytes(8)), PROTOCOL),
            (f.frame(f.WINDOW_UPDATE, 0, 0, u32(0)), PROTOCOL),
            (f.frame(f.WINDOW_UPDATE, 0, 0, b"x"), SIZE),
            (f.frame(f.WINDOW_UPDATE, 0, 1, u32(1)), PROTOCOL),
            (f.frame(f.WINDOW_UPDATE, 0, 0, u32((1 << 31) - 1)), FLOW),
            (f.frame(f.CONTINUATION, f.END_HEADERS, 1, b""), PROTOCOL),
            (f.frame(f.HEADERS, 0, 1, b"") + f.frame(f.PING, 0, 0, bytes(8)), PROTOCOL),
            (f.frame(f.HEADERS, 0, 1, b"") + f.frame(f.CONTINUATION, 0, 3, b""), PROTOCOL),
            (f.frame(f.DATA, 0, 1, bytes(1 << 20))[:9].replace(b"\x10\0\0", b"\x20\0\0", 1), SIZE),
            (f.frame(f.PING, 0, 0, bytes(20_000)), CALM),
            (f.frame(f.HEADERS, f.END_HEADERS, 1, bytes(70_000)), CALM),
            (f.frame(f.HEADERS, 0, 1, bytes(60_000)) + f.frame(f.CONTINUATION, 0, 1, bytes(6_000)), CALM),
        ],
    )
    def test_code(self, server, frame, code):
        assert server.hear(frame).error is code

    def test_padding_of_data(self, server, wire):
        assert server.hear(wire.headers(1), wire.data(1, b"\x09abc", flags=f.PADDED)).error is PROTOCOL

    def test_header_bomb(self, server, wire):
        """A field of 4 KB, put in the table, and named again and again by one byte each."""
        block = wire.BLOCK + b"\x40\x01a\x7f\x81\x1e" + b"v" * 4000 + b"\xbe" * 1000
        assert server.hear(wire.headers(1, block=block)).error is CALM

    def test_streams_are_lost_and_told(self, server, wire):
        server.hear(wire.headers(1), b"\0\0\0\x06\0\0\0\0\x01")
        assert server.machine.fault is not None
        assert server.logs[1].reset is not None
        server.machine.send_headers(server.streams[1], b"\x88")  # nothing that is answered later matters
        assert server.kinds()[-1] == "GOAWAY"


class TestStreams:
    def test_more_than_allowed_are_refused(self, greet, wire):
        side = greet(max_streams=1)
        side.hear(wire.headers(1), wire.headers(3), wire.data(3, b"x", end=True))
        assert resets(side) == [(3, ErrorCode.REFUSED_STREAM)]
        assert side.machine.floods.refused == {"max_streams": 1}
        side.machine.send_headers(side.streams[1], b"\x88", True)
        side.hear(wire.headers(5))
        assert 5 in side.logs

    def test_none_is_opened_while_much_waits(self, server, wire):
        server.hear(wire.headers(1, end=True))
        server.machine.send_data(server.streams[1], bytes(65 << 20))
        server.take()
        server.hear(wire.headers(3))
        assert resets(server) == [(3, ErrorCode.REFUSED_STREAM)]
        assert server.machine.floods.refused == {"queued_bytes": 1}

    def test_reset_is_heard_once(self, server, wire):
        reset = f.frame(f.RST_STREAM, 0, 1, u32(8))
        server.hear(wire.headers(1), reset, reset, wire.data(1, b"late"))
        assert server.logs[1].reset == (8, "reset by the peer")
        assert server.machine.fault is None
        assert not server.machine.streams

    def test_frames_of_closed_streams_are_ignored(self, server, wire):
        server.hear(wire.headers(1, end=True))
        server.machine.send_headers(server.streams[1], b"\x88", True)
        window = f.frame(f.WINDOW_UPDATE, 0, 1, u32(5))
        server.hear(wire.data(1, b"x"), window, wire.headers(1, True), f.frame(f.PRIORITY, 0, 1, bytes(5)))
        assert server.machine.fault is None
        assert len(server.logs) == 1

    @pytest.mark.parametrize("more", ["data", "headers"])
    def test_nothing_comes_after_the_end(self, server, wire, more):
        frame = wire.data(1, b"x") if more == "data" else wire.headers(1, True)
        server.hear(wire.headers(1, end=True), frame)
        assert resets(server) == [(1, ErrorCode.STREAM_CLOSED)]

    def test_early_answer_stops_the_request(self, server, wire):
        """8.1: an answer before the request's end, then RST_STREAM with NO_ERROR."""
        server.hear(wire.headers(1))
        server.machine.send_headers(server.streams[1], b"\x88", True)
        assert [(kind, stream) for kind, _, stream, _ in server.frames()] == [("HEADERS", 1), ("RST_STREAM", 1)]

    def test_reset_from_this_side(self, server, wire):
        server.hear(wire.headers(1))
        server.machine.reset(server.streams[1], ErrorCode.CANCEL)
        server.machine.reset(server.streams[1], ErrorCode.CANCEL)
        assert resets(server) == [(1, 8)]
        assert server.logs[1].reset is None

    def test_short_priority_ends_its_stream(self, server, wire):
        server.hear(wire.headers(1), f.frame(f.PRIORITY, 0, 1, b"x"))
        assert resets(server) == [(1, SIZE)]

    def test_unknown_frames_and_settings_are_ignored(self, server, wire):
        server.hear(f.frame(0xAB, 0xFF, 9, b"x"), setting(0xABCD, 1), wire.headers(1))
        assert list(server.logs) == [1]


class TestWindows:
    def test_answer_waits_for_the_stream(self, server, wire):
        server.hear(setting(4, 5), wire.headers(1, end=True))
        server.take()
        stream = server.streams[1]
        server.machine.send_answer(stream, Envelope(b"\x88", b"\x00\x01a\x01b"), b"abcdefgh")
        assert [(k, p) for k, _, _, p in server.frames()] == [("HEADERS", b"\x88"), ("DATA", b"abcde")]
        assert (stream.queued_bytes, server.logs[1].sent) == (3, 0)
        server.hear(f.frame(f.WINDOW_UPDATE, 0, 1, u32(1)))
        assert [p for _, _, _, p in server.frames()] == [b"f"]
        server.hear(f.frame(f.WINDOW_UPDATE, 0, 1, u32(100)))
        assert [(k, fl, p) for k, fl, _, p in server.frames()] == [
            ("DATA", 0, b"gh"),
            ("HEADERS", f.END_HEADERS | f.END_STREAM, b"\x00\x01a\x01b"),
        ]
        assert not server.machine.streams

    def test_smaller_initial_window_goes_below_zero(self, server, wire):
        """6.9.2."""
        server.hear(wire.headers(1, end=True))
        stream = server.streams[1]
        server.machine.send_data(stream, bytes(60_000))
        server.hear(setting(4, 10))
        assert stream.send_window == 10 - 60_000
        server.machine.send_data(stream, b"x" * 20, True)
        server.take()
        server.hear(f.frame(f.WINDOW_UPDATE, 0, 1, u32(59_990)))
        assert server.frames() == []
        server.hear(setting(4, 30))
        data = [p for k, _, _, p in server.frames() if k == "DATA"]
        assert data == [b"x" * 20]

    def test_answers_share_the_connection(self, server, wire):
        server.hear(setting(4, 1 << 20), *(wire.headers(i, end=True) for i in (1, 3)))
        server.take()
        for i in (1, 3):
            server.machine.send_data(server.streams[i], bytes(100_000), True)
        first = server.frames()
        assert sum(len(p) for *_, p in first) == 65_535
        server.hear(f.frame(f.WINDOW_UPDATE, 0, 0, u32(4 * 16_384)))
        assert [s for _, _, s, _ in server.frames()] == [1, 3, 1, 3]
        server.hear(f.frame(f.WINDOW_UPDATE, 0, 0, u32(1_000_000)))
        rest = server.frames()
        assert sum(len(p) for *_, p in rest) == 200_000 - 65_535 - 4 * 16_384
        assert {s for _, fl, s, _ in rest if fl & f.END_STREAM} == {1, 3}
        assert server.machine.sender.queued_bytes == 0

    def test_stream_window_overflows(self, server, wire):
        server.hear(wire.headers(1, end=True), f.frame(f.WINDOW_UPDATE, 0, 1, u32((1 << 31) - 1)))
        assert resets(server) == [(1, FLOW)]
        assert server.machine.fault is None

    def test_stream_window_update_of_nothing(self, server, wire):
        server.hear(wire.headers(1, end=True), f.frame(f.WINDOW_UPDATE, 0, 1, u32(0)))
        assert resets(server) == [(1, PROTOCOL)]

    def test_initial_window_overflows_open_streams(self, server, wire):
        server.hear(wire.headers(1, end=True), f.frame(f.WINDOW_UPDATE, 0, 1, u32(1 << 30)))
        assert server.hear(setting(4, (1 << 31) - 1)).error is FLOW

    def test_received_data_is_given_back(self, greet, wire):
        side = greet(stream_window_bytes=1000, window_bytes=100_000)
        side.hear(wire.headers(1))
        for _ in range(200):
            side.hear(wire.data(1, bytes(600)))
        assert side.machine.fault is None
        updates = [(s, int.from_bytes(p, "big")) for k, _, s, p in side.frames() if k == "WINDOW_UPDATE"]
        assert sum(n for s, n in updates if s == 1) == 200 * 600
        assert sum(n for s, n in updates if s == 0) > 100_000 - 50_000

    def test_padding_counts_and_is_given_back(self, greet, wire):
        side = greet(stream_window_bytes=1000)
        side.hear(wire.headers(1))
        for _ in range(20):
            side.hear(wire.data(1, b"\xc8" + bytes(200), flags=f.PADDED))
        assert side.machine.fault is None
        assert side.logs[1].pieces == []

    def test_stream_window_is_held(self, greet, wire):
        side = greet(stream_window_bytes=1000)
        side.hear(wire.headers(1))
        side.streams[1].held = True
        side.hear(wire.data(1, bytes(1000)))
        assert side.frames() == []
        side.machine.release(side.streams[1])
        assert side.frames() == [("WINDOW_UPDATE", 0, 1, u32(1000))]
        side.hear(wire.data(1, bytes(1001)))
        assert resets(side) == [(1, FLOW)]

    def test_connection_window_holds(self, greet, wire):
        side = greet(stream_window_bytes=1 << 20, window_bytes=100_000)
        side.hear(wire.headers(1))
        frame = wire.data(1, bytes(100_001))
        assert side.hear(frame).error is FLOW

    def test_transport_that_takes_no_more(self, server, wire):
        server.hear(wire.headers(1, end=True))
        server.machine.pause()
        server.machine.send_answer(server.streams[1], Envelope(b"\x88", b"\x00\x01a\x01b"), b"body")
        server.hear(f.frame(f.WINDOW_UPDATE, 0, 0, u32(5)), f.frame(f.WINDOW_UPDATE, 0, 1, u32(5)))
        assert server.kinds() == ["HEADERS"]
        server.machine.resume()
        assert server.kinds() == ["DATA", "HEADERS"]

    def test_large_frames_where_the_peer_takes_them(self, server, wire):
        server.hear(setting(5, 1 << 20), wire.headers(1, end=True))
        server.take()
        server.machine.send_data(server.streams[1], bytes(60_000), True)
        assert [len(p) for *_, p in server.frames()] == [60_000]

    def test_empty_body_ends_a_stream(self, server, wire):
        server.hear(setting(4, 0), wire.headers(1, end=True))
        server.take()
        server.machine.send_data(server.streams[1], b"", True)
        assert server.frames() == [("DATA", f.END_STREAM, 1, b"")]

    def test_end_that_waits_without_data(self, server, wire):
        server.hear(setting(4, 1), wire.headers(1, end=True))
        server.take()
        server.machine.send_data(server.streams[1], b"ab")
        server.machine.send_data(server.streams[1], b"", True)
        server.take()
        server.hear(f.frame(f.WINDOW_UPDATE, 0, 1, u32(9)))
        assert server.frames() == [("DATA", f.END_STREAM, 1, b"b")]

    def test_what_waits_is_dropped_with_its_stream(self, server, wire):
        server.hear(setting(4, 1), wire.headers(1, end=True))
        server.machine.send_data(server.streams[1], b"ab", True)
        server.hear(f.frame(f.RST_STREAM, 0, 1, u32(8)))
        assert server.machine.sender.queued_bytes == 0
        server.take()
        server.hear(setting(4, 100))
        assert server.kinds() == ["SETTINGS"]

    def test_long_header_lists_are_cut_into_continuations(self, server, wire):
        server.hear(wire.headers(1, end=True))
        block = encode_block([(b"x" * 10, b"y" * 50_000)])
        server.machine.send_headers(server.streams[1], block, True)
        sent = server.frames()
        assert [k for k, *_ in sent] == ["HEADERS"] + ["CONTINUATION"] * 3
        assert b"".join(p for *_, p in sent) == block
        assert [fl & f.END_HEADERS for _, fl, _, _ in sent] == [0, 0, 0, f.END_HEADERS]


class TestFloods:
    @pytest.mark.parametrize(
        "frame",
        [
            f.frame(f.PING, 0, 0, bytes(8)),
            f.frame(f.SETTINGS, 0, 0, b""),
            f.frame(f.WINDOW_UPDATE, 0, 0, u32(1)),
            f.frame(f.PRIORITY, 0, 1, bytes(5)),
            f.frame(f.DATA, 0, 1, b""),
            f.frame(f.RST_STREAM, 0, 3, u32(8)),
            f.frame(0x77, 0, 0, b""),
        ],
    )
    def test_frames_that_bring_nothing(self, server, wire, frame):
        server.hear(wire.headers(1), wire.headers(3))
        server.hear(frame * 5000)
        server.machine.out.clear()
        assert server.machine.fault is None
        server.machine.floods.replenish()
        server.hear(frame * (module.MAX_IDLE_FRAMES - 10))
        server.machine.out.clear()
        assert server.machine.fault is None
        server.hear(frame * 200)
        assert server.error is CALM
        assert server.machine.floods.refused == {"idle_frames": 1}

    def test_useful_frames_allow_for_more(self, server, wire):
        server.hear(wire.headers(1))
        for _ in range(2000):
            server.hear(wire.data(1, b"x"), f.frame(f.PING, 0, 0, bytes(8)) * 9)
        assert server.machine.fault is None

    def test_a_client_with_small_windows_is_no_flood(self, server, wire):
        server.hear(wire.headers(1))
        stream = server.machine.streams[1]
        server.machine.send_headers(stream, encode_block([(b":status", b"200")]))
        server.machine.send_data(stream, bytes(f.DEFAULT_WINDOW + module.MAX_IDLE_FRAMES), False)
        for _ in range(module.MAX_IDLE_FRAMES):
            server.hear(f.frame(f.WINDOW_UPDATE, 0, 1, u32(1)), f.frame(f.WINDOW_UPDATE, 0, 0, u32(1)))
        assert server.machine.fault is None
        assert not stream.queued_bytes

    def test_empty_continuations(self, server, wire):
        server.hear(wire.headers(1, block=b"", flags=0))
        assert server.hear(f.frame(f.CONTINUATION, 0, 1, b"") * 10_100).error is CALM

    def test_rapid_reset(self, server, wire):
        for i in range(1, 2 * module.MAX_RESETS, 2):
            server.hear(wire.headers(i), f.frame(f.RST_STREAM, 0, i, u32(8)))
        assert server.machine.fault is None
        server.machine.floods.replenish()
        for i in range(2 * module.MAX_RESETS + 1, 4 * module.MAX_RESETS + 3, 2):
            server.hear(wire.headers(i), f.frame(f.RST_STREAM, 0, i, u32(8)))
        assert server.error is CALM
        assert server.machine.floods.refused == {"resets": 1}


class TestEnds:
    def test_ping_is_answered(self, server):
        server.hear(f.frame(f.PING, 0, 0, b"12345678"), f.frame(f.PING, f.ACK, 0, b"87654321"))
        assert server.frames() == [("PING", f.ACK, 0, b"12345678")]

    def test_drain_in_two_steps(self, server, wire):
        """6.8: a client's request that crosses the first GOAWAY is answered; after the second, none."""
        server.machine.drain()
        server.machine.drain()
        goaway, ping = server.frames()
        assert goaway[3][:8] == u32((1 << 31) - 1) + u32(0)
        server.hear(wire.headers(1, end=True), f.frame(f.PING, f.ACK, 0, ping[3]))
        assert [p[:8] for k, _, _, p in server.frames() if k == "GOAWAY"] == [u32(1) + u32(0)]
        server.hear(wire.headers(3, end=True))
        assert list(server.logs) == [1]
        server.machine.finish_drain()
        server.machine.send_headers(server.streams[1], b"\x88", True)
        assert server.kinds() == ["HEADERS"]

    def test_lost_connection(self, server, wire):
        server.hear(wire.headers(1))
        server.machine.close()
        assert server.logs[1].reset == (ErrorCode.CANCEL, "the connection is gone")

    def test_part_of_a_frame_shows(self, server, wire):
        assert not server.machine.is_partial
        server.hear(wire.headers(1)[:5])
        assert server.machine.is_partial
        server.hear(wire.headers(1)[5:])
        assert not server.machine.is_partial


class TestClient:
    @pytest.fixture
    def client(self, wire):
        side = wire.Side(is_server=False)
        assert side.take().startswith(PREFACE)
        side.hear(wire.SETTINGS)
        side.take()
        return side

    def ask(self, client, wire, end=True):
        log = wire.Log()
        return client.machine.request(wire.BLOCK, log, end), log

    def test_answer(self, client, wire):
        _stream, log = self.ask(client, wire)
        assert [(k, s) for k, _, s, _ in client.frames()] == [("HEADERS", 1)]
        trailers = encode_block([(b"grpc-status", b"0")])
        client.hear(wire.headers(1, block=b"\x88"), wire.data(1, b"body"), wire.headers(1, True, trailers))
        assert log.heads == [({b":status": b"200"}, False), ({b"grpc-status": b"0"}, True)]
        assert log.data == b"body"
        assert not client.machine.streams

    def test_body_is_sent_while_the_answer_comes(self, client, wire):
        stream, _log = self.ask(client, wire, end=False)
        client.hear(wire.headers(1, True, b"\x88"))
        assert client.machine.streams
        client.machine.send_data(stream, b"x", True)
        assert not client.machine.streams

    def test_goaway_frees_what_the_server_did_not_take(self, client, wire):
        (_, first), (_, second) = self.ask(client, wire), self.ask(client, wire)
        client.hear(f.goaway_frame(1, 0))
        assert (first.reset, second.reset[0]) == (None, ErrorCode.REFUSED_STREAM)
        with pytest.raises(Unavailable, match="closing"):
            self.ask(client, wire)

    def test_server_bounds_streams(self, client, wire):
        client.hear(setting(3, 1))
        self.ask(client, wire)
        with pytest.raises(Unavailable, match="1 requests are open"):
            self.ask(client, wire)

    @pytest.mark.parametrize(
        "frame",
        [
            f.frame(f.PUSH_PROMISE, f.END_HEADERS, 1, bytes(4)),
            f.frame(f.HEADERS, f.END_HEADERS, 2, b"\x88"),
            f.frame(f.HEADERS, f.END_HEADERS, 5, b"\x88"),
            f.frame(f.DATA, 0, 3, b"x"),
        ],
    )
    def test_servers_open_nothing(self, client, wire, frame):
        self.ask(client, wire)
        assert client.hear(frame).error is PROTOCOL

    def test_frames_of_streams_that_are_gone(self, client, wire):
        stream, _ = self.ask(client, wire)
        client.machine.reset(stream)
        client.hear(wire.headers(1, block=b"\x88"), wire.data(1, b"x"), f.frame(f.WINDOW_UPDATE, 0, 1, u32(1)))
        assert client.machine.fault is None

    def test_malformed_answer(self, client, wire):
        _, log = self.ask(client, wire)
        client.hear(wire.headers(1, block=encode_block([(b":status", b"200"), (b"Bad", b"x")])))
        assert log.reset[0] == PROTOCOL
