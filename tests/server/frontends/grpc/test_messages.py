"""Messages, statuses and timeouts, without a connection."""

from __future__ import annotations

import gzip
from urllib.parse import unquote

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.errors import Code, Internal, InvalidArgument, NotFound, ResourceExhausted, TooLarge
from salver.server.frontends.grpc.codes import MAX_MESSAGE_BYTES, encode_message, error_trailers
from salver.server.frontends.grpc.messages import MessageReader, frame_compressed, frame_message
from salver.server.frontends.grpc.timeouts import parse_timeout
from salver.wire.grpc import GRPC_STATUS


def test_every_code_has_the_number_that_grpc_gives_it():
    numbers = {code.name: code.value[0] for code in grpc.StatusCode}
    assert {code.name: number for code, number in GRPC_STATUS.items()} == {
        code.name: numbers[code.name] for code in Code
    }


@given(st.text())
def test_status_messages_are_percent_encoded(message):
    encoded = encode_message(message)
    assert all(0x20 <= byte < 0x7F for byte in encoded)
    plain = message.encode("utf-8", "replace").decode()
    if len(plain.encode()) <= MAX_MESSAGE_BYTES:
        assert unquote(encoded.decode()) == plain


def test_long_status_messages_are_cut_between_characters():
    text = unquote(encode_message("ä" * 5000).decode(), errors="strict")
    assert text.endswith("ä...")
    assert len(text.encode()) <= MAX_MESSAGE_BYTES


def test_pushback_is_told_where_it_is_known():
    assert (b"grpc-retry-pushback-ms", b"1500") in error_trailers(ResourceExhausted("full", retry_after_s=1.5))
    assert [name for name, _ in error_trailers(NotFound("no"))] == [b"grpc-status", b"grpc-message"]


@pytest.mark.parametrize(
    ("text", "seconds"), [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"60000000n", 0.06)]
)
def test_timeouts(text, seconds):
    assert parse_timeout(text) == pytest.approx(seconds)


@given(st.binary(max_size=12))
def test_any_timeout(text):
    try:
        assert parse_timeout(text) >= 0
    except InvalidArgument as error:
        assert "grpc-timeout" in error.message


@given(
    messages=st.lists(st.tuples(st.binary(max_size=3000), st.booleans()), max_size=6), places=st.lists(st.integers(0))
)
def test_messages_come_out_as_they_went_in(messages, places):
    """Whatever the pieces in which they arrive, and whether they are compressed."""
    data = b"".join(frame_compressed(m, b"gzip") if packed else frame_message(m) for m, packed in messages)
    at = sorted({place % (len(data) + 1) for place in places})
    reader = MessageReader(b"gzip", 10_000, 10_000)
    found = []
    for start, end in zip([0, *at], [*at, len(data)], strict=True):
        reader.feed(data[start:end])
        while (message := reader.read()) is not None:
            found.append(message)
    assert found == [message for message, _ in messages]
    assert reader.size == 0


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_any_bytes_are_messages_or_a_typed_error(pieces):
    reader = MessageReader(b"deflate", 1000, 1000)
    try:
        for piece in pieces:
            reader.feed(piece)
            while reader.read() is not None:
                pass
    except (TooLarge, InvalidArgument):
        pass
    assert reader.size <= sum(map(len, pieces))


def read(coding, data, max_bytes=1000, max_decompressed_bytes=1000):
    reader = MessageReader(coding, max_bytes, max_decompressed_bytes)
    reader.feed(data)
    return reader.read()


def test_limits_of_a_message():
    assert read(b"", frame_message(bytes(1000))) == bytes(1000)
    with pytest.raises(TooLarge, match="1001 bytes, over the limit of 1000"):
        read(b"", b"\0" + (1001).to_bytes(4, "big"))  # before any of it is there
    with pytest.raises(TooLarge, match="max_decompressed_bytes"):
        read(b"gzip", frame_compressed(bytes(100_000), b"gzip"))
    with pytest.raises(Internal, match="names no grpc-encoding"):
        read(b"identity", frame_compressed(b"x", b"gzip"))
    with pytest.raises(InvalidArgument, match="not valid gzip"):
        read(b"gzip", b"\x01\0\0\0\x04junk")


def test_compressed_messages_are_plain_gzip():
    assert gzip.decompress(frame_compressed(b"x" * 100, b"gzip")[5:]) == b"x" * 100
