"""Messages of gRPC within a body: a flag, a length, and that many bytes; and their codings."""

from __future__ import annotations

from typing import Final

from salver.core.errors import Internal, TooLarge
from salver.server.frontends.http.coding import compress, decompress
from salver.wire.http2 import Data, Pieces

PREFIX_BYTES: Final = 5
CODINGS: Final = frozenset({b"gzip", b"deflate"})


def frame_message(message: bytes) -> bytes:
    """A message as it is sent."""
    return b"\x00" + len(message).to_bytes(4) + message


def frame_compressed(message: bytes, coding: bytes) -> bytes:
    """A message as it is sent, compressed."""
    packed = compress([message], coding)
    return b"\x01" + len(packed).to_bytes(4) + packed


class MessageReader:
    """Cuts the body of one call into messages.

    Args:
        coding: ``grpc-encoding`` of the request.
        max_bytes, max_decompressed_bytes: of one message, as it is sent and as it is read.
    """

    __slots__ = ("_coding", "_max_bytes", "_max_decompressed_bytes", "_pieces")

    def __init__(self, coding: bytes, max_bytes: int, max_decompressed_bytes: int) -> None:
        self._coding = coding
        self._max_bytes = max_bytes
        self._max_decompressed_bytes = max_decompressed_bytes
        self._pieces = Pieces()

    @property
    def size(self) -> int:
        """Bytes that came and are not part of a message that was read."""
        return self._pieces.size

    def feed(self, data: Data) -> None:
        """Take a piece of the body."""
        self._pieces.add(data)

    def expected(self) -> int | None:
        """Bytes of the next message, its prefix included; None where the prefix is not there yet.

        Raises:
            TooLarge: more than may be. Nothing more can be read.
        """
        prefix = self._pieces.peek(PREFIX_BYTES)
        if len(prefix) < PREFIX_BYTES:
            return None
        length = int.from_bytes(prefix[1:])
        if length > self._max_bytes:
            raise TooLarge(
                f"the message has {length} bytes, over the limit of {self._max_bytes} bytes (max_body_bytes)",
                limit="max_body_bytes",
            )
        return PREFIX_BYTES + length

    def read(self) -> bytes | None:
        """The next message, if it is there.

        Raises:
            TooLarge: it is, or becomes, larger than may be. Nothing more can be read.
            Internal: it is compressed though no coding was named.
            InvalidArgument: it is not what its coding says.
        """
        end = self.expected()
        if end is None or self._pieces.size < end:
            return None
        is_compressed = self._pieces.peek(1) != b"\x00"
        message = self._pieces.take(end - PREFIX_BYTES, PREFIX_BYTES)
        return self._unpack(message) if is_compressed else message

    def _unpack(self, message: bytes) -> bytes:
        if self._coding not in CODINGS:
            raise Internal("a message is marked as compressed, but the call names no grpc-encoding")
        return decompress(message, self._coding, self._max_decompressed_bytes)
