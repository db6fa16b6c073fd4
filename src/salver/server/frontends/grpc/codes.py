"""The status of a call, as trailers in bytes."""

from __future__ import annotations

import math
from typing import Final

from salver.core.errors import SalverError
from salver.server.frontends.grpc.messages import PREFIX_BYTES
from salver.wire.grpc import GRPC_STATUS
from salver.wire.http2 import Envelope, encode_block

MAX_MESSAGE_BYTES: Final = 2000
"""Of ``grpc-message`` before it is percent-encoded: clients refuse trailers of more than 8 KiB."""

ACCEPTED: Final = (b"grpc-accept-encoding", b"identity,gzip,deflate")
HEADERS: Final = [(b":status", b"200"), (b"content-type", b"application/grpc")]

OK_HEADERS: Final = encode_block(HEADERS)
CODED_HEADERS: Final = {
    coding: encode_block([*HEADERS, (b"grpc-encoding", coding)]) for coding in (b"gzip", b"deflate")
}
OK_TRAILERS: Final = encode_block([(b"grpc-status", b"0")])
OK: Final = Envelope(OK_HEADERS, OK_TRAILERS, lambda size: size.to_bytes(PREFIX_BYTES))
"""Around the only message of a call that went well."""

_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {0x25}


def error_trailers(error: SalverError) -> list[tuple[bytes, bytes]]:
    """The trailers of a call that failed (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md)."""
    trailers = [(b"grpc-status", b"%d" % GRPC_STATUS[error.code]), (b"grpc-message", encode_message(error.message))]
    if error.retry_after_s is not None:
        trailers.append((b"grpc-retry-pushback-ms", b"%d" % math.ceil(error.retry_after_s * 1000)))
    return trailers


def encode_message(message: str) -> bytes:
    """Percent-encode a status message; one that quotes too much of the request is cut, between characters."""
    raw = message.encode("utf-8", "replace")
    if len(raw) > MAX_MESSAGE_BYTES:
        raw = raw[: MAX_MESSAGE_BYTES - 3].decode("utf-8", "ignore").encode() + b"..."
    return b"".join(b"%c" % byte if byte in _PLAIN else b"%%%02X" % byte for byte in raw)
