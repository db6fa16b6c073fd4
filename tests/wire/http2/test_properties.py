"""Properties of the state machine and of header blocks, over inputs that Hypothesis makes."""

from __future__ import annotations

from typing import Any

import hpack
from hypothesis import given, settings
from hypothesis import strategies as st

from salver.wire.http2 import PREFACE, Envelope, ErrorCode, encode_block
from salver.wire.http2 import frames as f
from salver.wire.http2._hpack import HeaderDecoder
from salver.wire.http2.pieces import Pieces

NAMES = st.from_regex(rb"[a-z][a-z0-9-]{0,12}", fullmatch=True)
VALUES = st.binary(max_size=40).map(lambda raw: raw.replace(b"\0", b"-"))
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=8)


@st.composite
def frames(draw: Any) -> bytes:
    """One frame: of any type, on one of a few streams, most with a payload that suits them."""
    kind = draw(st.integers(0, 11))
    stream = draw(st.sampled_from([0, 1, 1, 3, 3, 5, 2, 1 << 31]))
    flags = draw(st.sampled_from([0, 0x1, 0x4, 0x5, 0x5, 0xD, 0x2D, 0x8, 0xFF]))
    small = st.binary(max_size=12)
    payloads = {
        f.HEADERS: st.one_of(st.just(BLOCK), st.binary(max_size=30), FIELDS.map(encode_block)),
        f.CONTINUATION: st.one_of(st.just(BLOCK), small),
        f.DATA: st.binary(max_size=200),
        f.SETTINGS: st.lists(
            st.tuples(st.integers(0, 8), st.integers(0, (1 << 32) - 1) | st.integers(0, 70_000)), max_size=3
        ).map(lambda entries: b"".join(n.to_bytes(2, "big") + v.to_bytes(4, "big") for n, v in entries)),
        f.WINDOW_UPDATE: st.integers(0, (1 << 32) - 1).map(lambda n: n.to_bytes(4, "big")),
        f.RST_STREAM: st.integers(0, 20).map(lambda n: n.to_bytes(4, "big")),
        f.PING: st.binary(min_size=8, max_size=8),
        f.GOAWAY: st.binary(min_size=8, max_size=12),
        f.PRIORITY: st.binary(min_size=5, max_size=5),
    }
    payload = draw(st.one_of(payloads.get(kind, small), payloads.get(kind, small), small))
    return f.pack_head(len(payload) << 8 | kind, flags, stream) + payload


BLOCK = encode_block([(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x")])


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places})
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def answer_all(side: Any) -> None:
    """Answer every stream that has ended, once."""
    for stream_id, log in side.logs.items():
        if log.ended and log.reset is None and stream_id in side.machine.streams:
            side.machine.send_answer(side.streams[stream_id], Envelope(b"\x88", b"\x00\x01a\x01b"), b"body" * 10)


@settings(max_examples=120, deadline=None)
@given(sent=st.lists(frames(), max_size=25), places=st.lists(st.integers(0, 5000), max_size=6))
def test_any_frames_in_any_pieces(wire: Any, sent: list[bytes], places: list[int]) -> None:
    """Whatever comes, the machine answers in whole frames, every stream ends at most once (`Log` asserts it), a fault
    is told, and the pieces in which bytes arrive make no difference to what is delivered."""
    whole, pieces = wire.Side(), wire.Side()
    data = PREFACE + wire.SETTINGS + b"".join(sent)
    whole.hear(data)
    for piece in cut(data, places):
        pieces.hear(piece)
    assert {i: (log.data, log.ended, log.heads) for i, log in whole.logs.items() if log.reset is None} == {
        i: (log.data, log.ended, log.heads) for i, log in pieces.logs.items() if log.reset is None
    }
    for side in (whole, pieces):
        answer_all(side)
        side.machine.resume()
        kinds = side.kinds()
        assert kinds[:2] == ["SETTINGS", "WINDOW_UPDATE"]
        assert ("GOAWAY" in kinds) == (side.machine.fault is not None)
    assert (whole.machine.fault is None) == (pieces.machine.fault is None)


@st.composite
def requests(draw: Any) -> list[bytes]:
    """Frames of a request as most are, HEADERS and DATA; now and then something about it is not as usual."""
    seldom = st.sampled_from([True, False, False, False, False, False])
    stream = draw(st.integers(0, 12)) * 2 + 1
    block = draw(st.sampled_from([BLOCK, BLOCK, BLOCK, SIZED, BAD]))
    opened, ended, other = f.END_HEADERS, f.END_STREAM, stream
    if draw(seldom):
        opened = draw(st.sampled_from([0, 0x1, 0x5, 0xC, 0x24]))
    if draw(seldom):
        ended = draw(st.sampled_from([0, 0x8, 0x9]))
    if draw(seldom):
        other = draw(st.sampled_from([0, 2, stream + 2, stream | 1 << 31]))
    kind = draw(st.sampled_from([f.DATA] * 8 + [f.HEADERS, f.PING]))
    body = bytes(draw(st.sampled_from([0, 4, 4, 4, 300, 4095, 4096, 20_000])))
    return [f.frame(f.HEADERS, opened, stream, block), f.frame(kind, ended, other, body)]


SIZED = encode_block([(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x"), (b"content-length", b"4")])
BAD = encode_block([(b":method", b"POST"), (b":scheme", b"http")])


@settings(max_examples=120, deadline=None)
@given(sent=st.lists(requests(), max_size=12), most=st.integers(1, 12), is_rising=st.booleans())
def test_requests_that_come_together(wire: Any, sent: list[list[bytes]], most: int, is_rising: bool) -> None:
    """Requests that come in one read are what they are when each of their frames comes alone; and so is what the
    machine says to them."""
    if is_rising:
        sent.sort(key=lambda frames: frames[0][5:9])
    together, alone = (wire.Side(max_streams=most, stream_window_bytes=65_535, window_bytes=65_535) for _ in range(2))
    frames = [frame for request in sent for frame in request]
    together.hear(PREFACE, wire.SETTINGS, b"".join(frames))
    alone.hear(PREFACE, wire.SETTINGS)
    for frame in frames:
        alone.hear(frame)
    assert {i: (log.data, log.ended, log.heads, log.reset) for i, log in together.logs.items()} == {
        i: (log.data, log.ended, log.heads, log.reset) for i, log in alone.logs.items()
    }
    assert together.take() == alone.take()
    assert together.machine.streams.keys() == alone.machine.streams.keys()
    assert together.machine.floods.useful == alone.machine.floods.useful
    assert together.machine.floods.refused == alone.machine.floods.refused


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300), is_greeted=st.booleans())
def test_any_bytes(wire: Any, data: bytes, is_greeted: bool) -> None:
    side = wire.Side()
    side.hear((PREFACE + wire.SETTINGS if is_greeted else b"") + data)
    assert side.kinds()[0] == "SETTINGS"


@settings(max_examples=60, deadline=None)
@given(
    bodies=st.lists(st.tuples(st.binary(max_size=3000), st.integers(1, 40), st.booleans()), min_size=1, max_size=5),
    answers=st.lists(st.binary(max_size=3000), min_size=5, max_size=5),
    windows=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    places=st.lists(st.integers(1, 400), min_size=1, max_size=5),
    pauses=st.lists(st.booleans(), max_size=6),
)
def test_two_sides(wire: Any, bodies: Any, answers: Any, windows: Any, places: Any, pauses: Any) -> None:
    """Bodies arrive whole and in order over small windows, both ways, on several streams at once."""
    server = wire.Side(stream_window_bytes=windows[0] + 100, window_bytes=1 << 20)
    client = wire.Side(is_server=False, stream_window_bytes=windows[1] + 100, window_bytes=1 << 20)
    for source, target in ((client, server), (server, client)):
        target.hear(source.take())
    asked = []
    for body, repeat, has_trailers in bodies:
        log = wire.Log()
        stream = client.machine.request(BLOCK, log, False)
        client.machine.send_data(stream, body * repeat, not has_trailers)
        if has_trailers:
            client.machine.send_headers(stream, b"\x00\x01a\x01b", True)
        asked.append((body * repeat, log))
    for turn in range(20_000):
        if turn < len(pauses):
            (server.machine.pause if pauses[turn] else server.machine.resume)()
        else:
            server.machine.resume()
        moved = False
        for source, target in ((client, server), (server, client)):
            data = source.take()
            moved = moved or bool(data)
            for piece in cut(data, places):
                target.hear(piece)
        for at, (stream_id, log) in enumerate(server.logs.items()):
            stream = server.streams[stream_id]
            if log.ended and stream.is_local_open and stream.queue is None:
                server.machine.send_answer(stream, Envelope(b"\x88", b"\x00\x01z\x010"), answers[at])
        if not moved and turn >= len(pauses):
            break
    assert server.machine.fault is None
    assert client.machine.fault is None
    assert [log.data for log in server.logs.values()] == [body for body, _ in asked]
    assert [(log.data, log.ended) for _, log in asked] == [(answers[at], True) for at in range(len(asked))]
    for side in (server, client):
        assert not side.machine.streams
        assert side.machine.sender.queued_bytes == 0


@given(fields=FIELDS)
def test_blocks_decode_to_what_was_encoded(fields: list[tuple[bytes, bytes]]) -> None:
    assert list(hpack.Decoder().decode(encode_block(fields), raw=True)) == fields


@settings(deadline=None)
@given(
    lists=st.lists(st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=4), max_size=6),
    order=st.lists(st.integers(0, 5), max_size=20),
    sizes=st.lists(st.sampled_from([None, None, 0, 60, 200, 4096]), max_size=20),
)
def test_blocks_seen_before_mean_what_a_decoder_says(lists: Any, order: Any, sizes: Any) -> None:
    """The cache follows the dynamic table: entries, evictions and changes of its size."""
    encoder, plain, cached = hpack.Encoder(), hpack.Decoder(), HeaderDecoder(1 << 16)
    for at, choice in enumerate(order):
        if not lists:
            return
        if at < len(sizes) and sizes[at] is not None:
            encoder.header_table_size = sizes[at]
        fields = [
            hpack.NeverIndexedHeaderTuple(n, v) if never else (n, v) for n, v, never in lists[choice % len(lists)]
        ]
        block = encoder.encode(fields, huffman=bool(at % 2))
        assert cached.decode(block).fields == [(bytes(n), bytes(v)) for n, v in plain.decode(block, raw=True)]


def test_cache_is_bounded() -> None:
    decoder = HeaderDecoder(1 << 16)
    for number in range(500):
        decoder.decode(encode_block([(b"x", b"%d" % number)]))
    assert len(decoder.seen) <= 64
    large = encode_block([(b"x", b"y" * 2000)])
    assert decoder.decode(large) is not decoder.decode(large)


@given(pieces=st.lists(st.binary(max_size=3000), max_size=10), skip=st.integers(0, 9), views=st.booleans())
def test_pieces_of_a_body(pieces: list[bytes], skip: int, views: bool) -> None:
    whole = b"".join(pieces)
    body = Pieces()
    for piece in pieces:
        body.add(memoryview(piece) if views else piece)
    assert body.size == len(whole)
    assert body.peek(5) == whole[:5]
    skip = min(skip, len(whole))
    half = (len(whole) - skip) // 2
    assert body.take(half, skip) == whole[skip : skip + half]
    assert body.take(body.size) == whole[skip + half :]
    assert body.size == 0


def test_every_error_code_has_its_number() -> None:
    assert [code.value for code in ErrorCode] == list(range(14))
