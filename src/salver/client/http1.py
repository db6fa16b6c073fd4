"""HTTP/1.1 (RFC 9112) for one request after another on one connection, without I/O. The only file here that imports
httptools."""

from __future__ import annotations

from typing import Final

import httptools

from salver.client.endpoint import Endpoint
from salver.client.protocol import Incoming, Outgoing
from salver.core.errors import Unavailable

MAX_ANSWER_BYTES: Final = 1 << 31


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
    """Reads the response of one request.

    Args:
        is_head: whether the request was one without a body in its answer.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._fields: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._size = 0
        self._done = False
        self.keep_alive = False
        """Whether the connection may be used again; known once there is an answer."""
        self.started = False
        """Whether any byte of an answer has come."""

    def feed(self, data: bytes) -> Incoming | None:
        """Take bytes; the response once it is whole.

        Raises:
            Unavailable: they are no HTTP response, or one that is too large.
        """
        self.started = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise Unavailable(f"the server's answer is not HTTP: {error}") from None
        if self._size > MAX_ANSWER_BYTES:
            raise Unavailable(f"the server's answer is larger than {MAX_ANSWER_BYTES} bytes")
        return self._incoming() if self._done else None

    def end(self) -> Incoming | None:
        """The connection ended; the response, where its end is that of the connection."""
        if self._fields and b"content-length" not in self._fields and b"transfer-encoding" not in self._fields:
            return self._incoming()
        return None

    def _incoming(self) -> Incoming:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        return Incoming(status=self._parser.get_status_code(), fields=self._fields, body=body)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self._fields[name.lower()] = value

    def on_body(self, part: bytes) -> None:
        """Called by the parser."""
        self._body.append(part)
        self._size += len(part)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._parser.get_status_code() < 200:  # 100 Continue: the real one follows
            self._fields, self._body = {}, []
            return
        self.keep_alive = self._parser.should_keep_alive()
        self._done = True
