"""HTTP/1.1 (RFC 9112) for one request after another on one connection, without I/O. The only file here that imports
httptools."""

from __future__ import annotations

from typing import Final

import httptools

from salver.client.endpoint import Endpoint
from salver.client.protocol import Incoming, Outgoing
from salver.core.errors import Unavailable

MAX_ANSWER_BYTES: Final = 1 << 31
MAX_HEAD_BYTES: Final = 1 << 20
"""Of everything but the body: heads, and what chunks add."""

_MAX_FRAMING_RATIO: Final = 16  # chunks of one byte


def write_request(endpoint: Endpoint, request: Outgoing) -> list[bytes | memoryview]:
    """The bytes of a request, in pieces: head first."""
    pieces = request.body if isinstance(request.body, list) else [request.body]
    size = sum(map(len, pieces))
    lines = [f"{request.method} {request.path} HTTP/1.1", f"host: {endpoint.authority}"]
    lines += [f"{name}: {value}" for name, value in (*endpoint.fields, *request.fields)]
    if size or request.method != "GET":
        lines.append(f"content-length: {size}")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    if size < 1 << 16:
        return [b"".join((head, *pieces))]
    return [head, *pieces]


class ResponseReader:
    """Reads the response of one request."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Incoming | None = None
        self._read_bytes = 0
        self._size = 0
        self.keep_alive = False
        """Whether the connection may be used again; known once there is an answer."""
        self.started = False
        """Whether any byte of an answer has come."""
        self._begin()

    def _begin(self) -> None:
        self._fields: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._in_head = True

    def feed(self, data: bytes) -> Incoming | None:
        """Take bytes; the response once it is whole.

        Raises:
            Unavailable: they are no HTTP response, or one that is too large.
        """
        self.started = True
        self._read_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.keep_alive = False
            if self._answer is None:
                raise Unavailable(f"the server's answer is not HTTP: {error}") from None
        if self._answer is None:
            self._check_size()
        return self._answer

    def _check_size(self) -> None:
        if self._size > MAX_ANSWER_BYTES:
            raise Unavailable(f"the server's answer is larger than {MAX_ANSWER_BYTES} bytes")
        if self._read_bytes > MAX_HEAD_BYTES + _MAX_FRAMING_RATIO * self._size:
            raise Unavailable(f"the head of the server's answer is larger than {MAX_HEAD_BYTES} bytes")

    def end(self) -> Incoming | None:
        """The connection ended; the response, where its end is that of the connection."""
        if self._in_head or b"content-length" in self._fields or b"transfer-encoding" in self._fields:
            return None
        return self._incoming()

    def _incoming(self) -> Incoming:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        return Incoming(status=self._parser.get_status_code(), fields=self._fields, body=body)

    def on_message_begin(self) -> None:
        """Called by the parser. What begins after the answer is none of ours."""
        if self._answer is None:
            self._begin()
        else:
            self.keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        if self._answer is None:
            self._fields[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._in_head = self._parser.get_status_code() < 200  # 100 Continue: the real one follows

    def on_body(self, part: bytes) -> None:
        """Called by the parser."""
        if self._answer is None:
            self._body.append(part)
            self._size += len(part)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._answer is None and not self._in_head:
            self.keep_alive = self._parser.should_keep_alive()
            self._answer = self._incoming()
