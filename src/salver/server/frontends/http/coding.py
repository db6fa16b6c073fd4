"""Content codings: gzip and deflate, in both directions, with a bound on what they may become."""

from __future__ import annotations

import zlib
from typing import Final

from salver.core.errors import InvalidArgument, TooLarge
from salver.server.frontends.codes import HttpError

MIN_COMPRESS_BYTES: Final = 4096
_GZIP: Final = 16 + zlib.MAX_WBITS
_ZLIB: Final = zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS
_LEVEL: Final = 1  # answers are made on the event loop


def decompress(body: bytes, coding: bytes, max_bytes: int) -> bytes:
    """Undo a request's ``Content-Encoding`` (RFC 9110, 8.4; one coding).

    Raises:
        HttpError: 415, a coding that is not known.
        TooLarge: it would become larger than ``max_bytes``.
        InvalidArgument: it is not what it claims to be, or ends early.
    """
    name = coding.strip().lower()
    if name in (b"", b"identity"):
        return body
    if name in (b"gzip", b"x-gzip"):
        return _inflate(body, _GZIP, "gzip", max_bytes)
    if name == b"deflate":
        # RFC 9110 means the zlib format; some clients send bare deflate. A zlib header is divisible by 31.
        is_zlib = len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0
        return _inflate(body, _ZLIB if is_zlib else _RAW, "deflate", max_bytes)
    raise HttpError(
        415,
        f"Content-Encoding '{name.decode('latin-1')[:50]}' is not known; use gzip, deflate or none",
        fields=b"accept-encoding: gzip, deflate\r\n",
    )


def _inflate(body: bytes, window: int, name: str, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    rest = body
    while True:  # a gzip file may have several members
        worker = zlib.decompressobj(window)
        try:
            part = worker.decompress(rest, max_bytes - size + 1)
        except zlib.error as error:
            raise InvalidArgument(f"the body is not valid {name}: {error}") from None
        size += len(part)
        if size > max_bytes:
            raise TooLarge(
                f"the {name} body becomes larger than {max_bytes} bytes, the limit (max_decompressed_bytes)",
                limit="max_decompressed_bytes",
            )
        parts.append(part)
        if not worker.eof:
            raise InvalidArgument(f"the {name} body ends early")
        rest = worker.unused_data
        if not rest:
            return parts[0] if len(parts) == 1 else b"".join(parts)
        if window != _GZIP:
            raise InvalidArgument(f"{len(rest)} bytes follow the {name} body")


def choose_coding(accept: bytes) -> bytes | None:
    """The coding an ``Accept-Encoding`` asks for: gzip, else deflate, else none."""
    wanted: set[bytes] = set()
    for item in accept.lower().split(b","):
        name, _, parameter = item.partition(b";")
        quality = parameter.strip().removeprefix(b"q=")
        if not quality or quality.strip(b"0. "):  # "q=0" means: not this one
            wanted.add(name.strip())
    for coding in (b"gzip", b"deflate"):
        if coding in wanted:
            return coding
    return None


def compress(pieces: list[bytes | memoryview], coding: bytes) -> bytes:
    """Apply a coding that `choose_coding` chose."""
    worker = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP if coding == b"gzip" else _ZLIB)
    return b"".join([*(worker.compress(piece) for piece in pieces), worker.flush()])
