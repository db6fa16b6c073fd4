"""HTTP/2 (RFC 9113) without sockets: frames, header blocks, flow control and streams, for servers and clients."""

from __future__ import annotations

from salver.wire.http2._hpack import encode_block
from salver.wire.http2.connection import Connection
from salver.wire.http2.frames import PREFACE, ConnectionFault, ErrorCode, StreamFault
from salver.wire.http2.headers import Head
from salver.wire.http2.pieces import Pieces
from salver.wire.http2.sender import Envelope
from salver.wire.http2.settings import Bounds
from salver.wire.http2.stream import Data, Receiver, Stream

__all__ = [
    "PREFACE",
    "Bounds",
    "Connection",
    "ConnectionFault",
    "Data",
    "Envelope",
    "ErrorCode",
    "Head",
    "Pieces",
    "Receiver",
    "Stream",
    "StreamFault",
    "encode_block",
]
