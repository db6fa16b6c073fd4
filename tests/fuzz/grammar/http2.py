"""HTTP/2 as lists of frames: well begun, then anything; and header blocks by HPACK's grammar."""

from __future__ import annotations

import functools
import gzip
import zlib
from random import Random

from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from tests.fuzz.grammar import fields as protobuf
from tests.fuzz.grammar.raw import BOMB, MAX_BYTES, number, spoil
from tests.fuzz.grammar.requests import all_messages, http_request

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, HAS_PRIORITY = 1, 4, 8, 32
Frame = tuple[int, int, int, bytes]
"""Type, flags, stream, payload."""

_HUFFMAN = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
_ODD_FIELDS = ((b"x", b"y"), (b"X", b"y"), (b"te", b"gzip"), (b"connection", b"close"), (b":path", b"/x"), (b"", b""),
               (b":status", b"200"), (b":unknown", b""), (b"content-length", b"5"), (b"content-length", b"-1"),
               (b"content-length", b"99999999999999999999"), (b"host", b"evil.example"), (b"cookie", b"a=b"),
               (b"grpc-timeout", b"1n"), (b"grpc-timeout", b"999999999H"), (b"grpc-timeout", b"1S"),
               (b"a", b"b" * 3000),
               (b"grpc-encoding", b"gzip"), (b"grpc-encoding", b"snappy"), (b"grpc-accept-encoding", b"gzip,deflate"),
               (b"grpc-encoding", b"deflate"), (b"expect", b"100-continue"), (b"accept-encoding", b"gzip"),
               (b"content-encoding", b"gzip"), (b"x-bin", b"\0\xff\r\n"), (b"te", b"trailers"))  # fmt: skip


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    return len(payload).to_bytes(3) + bytes((kind & 255, flags & 255)) + (stream & 0xFFFFFFFF).to_bytes(4) + payload


def split(data: bytes) -> list[Frame]:
    """The frames after the preface; the last may be cut."""
    frames = []
    at = len(PREFACE) if data.startswith(PREFACE) else 0
    while at + 9 <= len(data):
        end = at + 9 + int.from_bytes(data[at : at + 3])
        stream = int.from_bytes(data[at + 5 : at + 9])
        frames.append((data[at + 3], data[at + 4], stream, data[at + 9 : end]))
        at = end
    return frames


# HPACK


def integer(value: int, bits: int, first: int = 0, pad: int = 0) -> bytes:
    """RFC 7541, 5.1; ``pad`` more bytes than it needs."""
    limit = (1 << bits) - 1
    if value < limit and not pad:
        return bytes((first | value,))
    out = bytearray((first | limit,))
    value = max(0, value - limit)
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(pad):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def string(raw: bytes, random: Random, odd: float) -> bytes:
    """RFC 7541, 5.2."""
    if random.random() < 0.15:
        coded = _HUFFMAN.encode(raw)
        if random.random() < odd:
            coded = spoil(coded, random)
        return integer(len(coded), 7, 0x80) + coded
    if random.random() < odd:
        return integer(random.choice((len(raw) + 1, number(random) % (1 << 40))), 7, random.choice((0, 0x80))) + raw
    return integer(len(raw), 7) + raw


def field(name: bytes, value: bytes, random: Random, odd: float) -> bytes:
    """One literal field: with, without or never indexed."""
    kind = random.choice((0x00, 0x00, 0x10, 0x40))
    return bytes((kind,)) + string(name, random, odd) + string(value, random, odd)


def block(pairs: list[tuple[bytes, bytes]], random: Random, odd: float) -> bytes:
    """A header block, with what else the grammar has."""
    out = bytearray()
    if random.random() < 0.05:
        out += integer(random.choice((0, 100, 4096, 4097, 1 << 20)), 5, 0x20, random.choice((0, 0, 1)))
    for name, value in pairs:
        out += field(name, value, random, odd)
        if random.random() < odd:
            kind = random.randrange(4)
            if kind == 0:
                out += integer(random.choice((0, 1, 2, 61, 62, 63, 70, number(random) % (1 << 70))), 7, 0x80)
            elif kind == 1:
                out += integer(random.choice((1, 15, 62, 100)), 4, 0) + string(b"v", random, odd)
            elif kind == 2:
                out += integer(random.choice((0, 4096, 5000)), 5, 0x20)
            else:
                out += b"\xff" * random.randrange(1, 12)
    return bytes(out)


def request_pairs(random: Random, odd: float) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The header list of a gRPC call or an HTTP exchange, and its body."""
    if random.random() < 0.6:
        path, message = random.choice(all_messages())
        if random.random() < 0.4:
            message = protobuf.make(message, random)
        pairs = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"localhost"),
                 (b"te", b"trailers"), (b"content-type", b"application/grpc")]  # fmt: skip
        body = b""
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            packed, flag = message, 0
            if random.random() < 0.08:
                coding = random.choice((b"gzip", b"deflate"))
                packed = gzip.compress(message, 1, mtime=0) if coding == b"gzip" else zlib.compress(message, 1)
                if random.random() < 0.2:
                    packed = BOMB
                pairs.append((b"grpc-encoding", coding))
                flag = 1
            length = len(packed) if random.random() >= odd else random.choice((0, len(packed) + 1, 1 << 31, 70_000))
            body += bytes((flag,)) + length.to_bytes(4) + packed
            if random.random() < 0.8:
                break
    else:
        method, target, body, extra = http_request(random)
        pairs = [(b":method", method.encode()), (b":scheme", b"http"), (b":path", target.encode()),
                 (b":authority", b"localhost"), *((k.encode(), v.encode()) for k, v in extra.items())]  # fmt: skip
        if random.random() < 0.3:
            pairs.append((b"content-length", b"%d" % len(body)))
    while random.random() < odd * 2:
        pairs.insert(random.randrange(len(pairs) + 1), random.choice(_ODD_FIELDS))
    if random.random() < odd:
        del pairs[random.randrange(len(pairs))]
    return pairs, body


@functools.cache
def _settings(entries: tuple[tuple[int, int], ...]) -> bytes:
    return b"".join(key.to_bytes(2) + value.to_bytes(4) for key, value in entries)


def settings(random: Random, odd: float) -> Frame:
    """A SETTINGS frame."""
    entries = tuple(
        (random.randrange(0, 9), random.choice((0, 1, 2, 100, 16_384, 65_535, 1 << 20, (1 << 31) - 1, 1 << 31)))
        for _ in range(random.randrange(3))
    )
    if random.random() >= odd:
        entries = tuple((k, v) for k, v in entries if (k == 4 and v < 1 << 31) or k in (1, 3, 6))
    payload = _settings(entries)
    return SETTINGS, 0, 0, payload if random.random() >= odd / 2 else spoil(payload, random)


def _stream(random: Random, odd: float, at: int) -> list[Frame]:
    pairs, body = request_pairs(random, odd)
    head = block(pairs, random, odd)
    if random.random() < 0.03:
        body = (body * 40)[:40_000]
    frames: list[Frame] = []
    flags = 0 if body else END_STREAM
    if random.random() < 0.1:
        frames.append((HEADERS, flags | PADDED | END_HEADERS, at, b"\x03" + head + b"\0\0\0"))
    elif random.random() < 0.1:
        cut = random.randrange(len(head) + 1)
        more = random.choice((0, 0, 1, 30))
        frames.append((HEADERS, flags, at, head[:cut]))
        frames += [(CONTINUATION, 0, at, b"")] * more
        frames.append((CONTINUATION, END_HEADERS, at, head[cut:]))
    elif random.random() < 0.05:
        frames.append((HEADERS, flags | HAS_PRIORITY | END_HEADERS, at, b"\0\0\0\0\x10" + head))
    else:
        frames.append((HEADERS, flags | END_HEADERS, at, head))
    while body:
        size = len(body) if random.random() < 0.7 else random.randrange(1, len(body) + 1)
        part, body = body[:size], body[size:]
        end = 0 if body or random.random() < 0.05 else END_STREAM
        if random.random() < 0.1:
            frames.append((DATA, end | PADDED, at, b"\x02" + part + b"\0\0"))
        else:
            frames.append((DATA, end, at, part))
    if random.random() < 0.05:
        frames.append((HEADERS, END_HEADERS | END_STREAM, at, field(b"x", b"y", random, odd)))
    if random.random() < 0.08:
        frames.insert(random.randrange(len(frames) + 1), (RST, 0, at, (8).to_bytes(4)))
    return frames


def _other(random: Random, odd: float, streams: list[int]) -> list[Frame]:
    kind = random.randrange(9)
    stream = random.choice((0, *streams, 2, 101, 1 << 31))
    if kind == 0:
        return [(PING, random.choice((0, 0, 1)), 0, b"12345678")] * random.choice((1, 1, 50))
    if kind == 1:
        return [settings(random, odd), (SETTINGS, 1, 0, b"")]
    if kind == 2:
        size = random.choice((1, 1000, (1 << 31) - 1, 0, 1 << 31))
        return [(WINDOW, 0, stream if size < 1 << 20 else 0, size.to_bytes(4))]
    if kind == 3:
        return [(RST, 0, s, (8).to_bytes(4)) for s in streams]
    if kind == 4:
        return [(GOAWAY, 0, 0, bytes(8) + b"bye")]
    if kind == 5:
        return [(PRIORITY, 0, random.choice(streams or [1]), b"\0\0\0\0\x01")]
    if kind == 6:
        return [(random.randrange(256), random.randrange(256), stream, random.randbytes(random.randrange(20)))]
    if kind == 7:
        return [(DATA, 0, random.choice(streams or [1]), b"")] * random.choice((1, 20))
    return [(PUSH, END_HEADERS, stream, b"\0\0\0\x02" + b"\x82")]


def make(random: Random) -> bytes:
    """What comes on one connection."""
    odd = random.choice((0.0, 0.01, 0.05))
    frames = [settings(random, odd / 2)]
    streams: list[int] = []
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        at = streams[-1] + 2 if streams else 1
        streams.append(at)
        new = _stream(random, odd, at)
        if random.random() < 0.15 and len(frames) > 1:  # frames of several streams in between each other
            for made in new:
                frames.insert(random.randrange(1, len(frames) + 1), made)
        else:
            frames += new
        if random.random() < (0.1 if not odd else 0.3):
            frames += _other(random, odd, streams)
    if odd and random.random() < 0.3:
        frames = change(frames, random)
    data = PREFACE + b"".join(frame(*made) for made in frames)
    if odd and random.random() < 0.1:
        data = spoil(data, random)
    return data if len(data) < 8 * MAX_BYTES else data[: 8 * MAX_BYTES]


def change(frames: list[Frame], random: Random) -> list[Frame]:
    """Spoil a few frames."""
    for _ in range(random.choice((1, 1, 2))):
        if not frames:
            return frames
        at = random.randrange(len(frames))
        kind, flags, stream, payload = frames[at]
        what = random.randrange(8)
        if what == 0:
            del frames[at]
        elif what == 1:
            frames[at:at] = [frames[at]] * random.choice((1, 1, 20))
        elif what == 2:
            frames[at] = (random.randrange(12), flags, stream, payload)
        elif what == 3:
            frames[at] = (kind, flags ^ (1 << random.randrange(8)), stream, payload)
        elif what == 4:
            frames[at] = (kind, flags, random.choice((0, 1, 2, 3, stream + 2, max(0, stream - 2), 1 << 31)), payload)
        elif what == 5:
            frames[at] = (kind, flags, stream, spoil(payload, random))
        elif what == 6:
            other = random.randrange(len(frames))
            frames[at], frames[other] = frames[other], frames[at]
        else:
            frames[at:at] = _other(random, 0.2, [f[2] for f in frames if f[2] & 1])
    return frames


def mutate(data: bytes, random: Random) -> bytes:
    """Spoil a connection frame by frame."""
    if random.random() < 0.15:
        return spoil(data, random)
    out = PREFACE + b"".join(frame(*made) for made in change(split(data), random))
    return out[: 8 * MAX_BYTES]
