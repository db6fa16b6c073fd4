"""Answers as bytes."""

from __future__ import annotations

from typing import Final

from salver.server.frontends.codes import STATUS_LINES
from salver.server.frontends.http.coding import MIN_COMPRESS_BYTES, choose_coding, compress
from salver.server.frontends.http.exchange import Exchange, Match
from salver.server.frontends.http.guard import preflight_fields
from salver.server.frontends.lookup import Lookup

SMALL_BODY_BYTES: Final = 65536
"""Bodies up to this size are copied into one piece with their head."""

_CLOSE: Final = b"connection: close\r\n"
_KEEP_ALIVE: Final = b"connection: keep-alive\r\n"  # what HTTP/1.0 does not take for granted
_HAVE_BODIES: Final = frozenset({b"GET", b"POST"})


def end_head(size: int) -> bytes:
    """The last lines of an answer's head."""
    return b"content-length: %d\r\n\r\n" % size


_END_HEADS: Final = Lookup(end_head, MIN_COMPRESS_BYTES)
"""Of bodies that are not compressed, by their size."""


def plain_answer(exchange: Exchange, date_line: bytes) -> bytes | None:
    """The bytes of an answer that is small, has a body and says nothing of the connection, as most do; None for
    another."""
    if exchange.answer is None or exchange.is_old or exchange.method not in _HAVE_BODIES:
        return None
    fields, body = exchange.answer
    if type(body) is bytes and 0 < (size := len(body)) < MIN_COMPRESS_BYTES:
        return b"".join((STATUS_LINES[exchange.status], date_line, fields, exchange.extra, _END_HEADS[size], body))
    return None


def write_answer(exchange: Exchange, last: bool, date_line: bytes, out: list[bytes | memoryview]) -> None:
    """Append the bytes of an exchange's answer.

    Args:
        last: whether the connection ends after it.
        date_line: the ``Date`` field.
        out: what is written next; a large body is appended as it is, not copied.
    """
    plain = None if last else plain_answer(exchange, date_line)
    if plain is not None:
        out.append(plain)
        return
    fields = exchange.answer[0] if exchange.answer is not None else b""
    closing = _CLOSE if last else _KEEP_ALIVE if exchange.is_old else b""
    pieces, size, coded = compress_body(exchange)
    head = STATUS_LINES[exchange.status] + date_line + fields + exchange.extra + closing + coded
    if exchange.status == 204:
        out.append(head + b"\r\n")
    elif exchange.method == b"HEAD":
        out.append(b"%bcontent-length: %d\r\n\r\n" % (head, size))
    elif size < SMALL_BODY_BYTES:
        out.append(b"%bcontent-length: %d\r\n\r\n%b" % (head, size, b"".join(pieces)))
    else:
        out.append(b"%bcontent-length: %d\r\n\r\n" % (head, size))
        out += pieces


def write_chunks(exchange: Exchange, last: bool, date_line: bytes, out: list[bytes | memoryview]) -> bool:
    """Append what there is of a streamed answer: chunked (RFC 9112, 7.1), or to the connection's end for HTTP/1.0.

    Args:
        last, date_line, out: as for `write_answer`.

    Returns:
        Whether that was the end of it.
    """
    is_chunked = not exchange.is_old
    if not exchange.is_begun:
        exchange.is_begun = True
        fields = exchange.answer[0] if exchange.answer is not None else b""
        end = b"transfer-encoding: chunked\r\n\r\n" if is_chunked else b"\r\n"
        closing = _CLOSE if last or not is_chunked else b""
        out.append(STATUS_LINES[exchange.status] + date_line + fields + exchange.extra + closing + end)
    chunks, exchange.chunks = exchange.chunks or [], []
    is_ended = bool(chunks) and not chunks[-1]
    if exchange.method != b"HEAD":
        out += [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks] if is_chunked else chunks
    return is_ended


def compress_body(exchange: Exchange) -> tuple[list[bytes | memoryview], int, bytes]:
    """The pieces of a whole answer's body, compressed where the client wants that and they are large; their size, and
    the header lines that say so."""
    body = exchange.answer[1] if exchange.answer is not None else b""
    pieces: list[bytes | memoryview] = [body] if isinstance(body, bytes) else body
    size = sum(map(len, pieces))
    accept = exchange.fields.get(b"accept-encoding")
    coding = choose_coding(accept) if accept is not None and size >= MIN_COMPRESS_BYTES else None
    # tritonclient.http.aio says gzip in every request, as aiohttp does by default, but reads it after infer alone.
    if coding is None or (exchange.target.startswith(b"/v2") and b"/infer" not in exchange.target):
        return pieces, size, b""
    pieces = [compress(pieces, coding)]
    return pieces, len(pieces[0]), b"content-encoding: " + coding + b"\r\nvary: accept-encoding\r\n"


def allowed(match: Match) -> bytes:
    """The methods of a path, for ``Allow``."""
    return b", ".join(sorted({*match.handlers, b"OPTIONS"}))


def answer_options(exchange: Exchange) -> None:
    """Answer OPTIONS, and a CORS preflight from an origin that is allowed."""
    names = allowed(exchange.match)
    origin = exchange.fields.get(b"origin")
    fields = b"allow: " + names + b"\r\n"
    if origin is not None and exchange.extra and b"access-control-request-method" in exchange.fields:
        fields += preflight_fields(origin, names)
        exchange.extra = b""
    exchange.respond(b"", fields, 204)
