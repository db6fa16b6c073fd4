"""HTTP status of every error: one table, used by every frontend that speaks HTTP."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Final

import msgspec

from salver.core.errors import Code, InvalidArgument, SalverError, TooLarge

HTTP_STATUS: Final = {
    Code.INVALID_ARGUMENT: 400,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.FAILED_PRECONDITION: 400,  # as gRPC's own HTTP mapping: 412 is about conditional request headers
    Code.RESOURCE_EXHAUSTED: 429,
    Code.DEADLINE_EXCEEDED: 504,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.UNIMPLEMENTED: 501,
    Code.CANCELLED: 499,
    Code.INTERNAL: 500,
}

_MAY_RETRY: Final = frozenset({429, 503})
_DEFAULT_RETRY_S: Final = 1.0
_MAX_MESSAGE: Final = 2000


class HttpError(InvalidArgument):
    """A request that HTTP itself gives a status of its own: 405, 408, 414, 415, 417, 431.

    Args:
        status: the status.
        fields: further header lines, each ended by CRLF.
    """

    def __init__(self, status: int, message: str, *, fields: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.fields = fields


def status_of(error: SalverError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, HttpError):
        return error.status
    if isinstance(error, TooLarge):
        return 413
    return HTTP_STATUS[error.code]


def error_fields(error: SalverError, status: int) -> bytes:
    """Header lines that belong to an error: ``Retry-After`` (whole seconds, at least 1) where a retry may help, and
    ``WWW-Authenticate`` where a key is needed (RFC 9110, 11.6.1)."""
    if isinstance(error, HttpError):
        return error.fields
    if status == 401:
        return b"www-authenticate: Bearer\r\n"
    if status not in _MAY_RETRY and error.retry_after_s is None:
        return b""
    return b"retry-after: %d\r\n" % max(1, math.ceil(error.retry_after_s or _DEFAULT_RETRY_S))


def error_body(error: SalverError) -> bytes:
    """``{"error": "..."}``, the form OIP clients read. A lone surrogate, which UTF-8 cannot carry, becomes ``?``, and
    a message that quotes too much of the request is cut."""
    message = error.message
    if len(message) > _MAX_MESSAGE:
        message = f"{message[:_MAX_MESSAGE]}... ({len(message) - _MAX_MESSAGE} more characters)"
    return msgspec.json.encode({"error": message.encode("utf-8", "replace").decode()})


STATUS_LINES: Final = {
    **{int(s): f"HTTP/1.1 {int(s)} {s.phrase}\r\n".encode() for s in HTTPStatus if s >= 200},
    499: b"HTTP/1.1 499 Client Closed Request\r\n",
}
"""Status -> status line, CRLF included."""
