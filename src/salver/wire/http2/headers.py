"""Header lists: what makes one malformed (RFC 9113, 8.1 to 8.3)."""

from __future__ import annotations

import re
from typing import Any, Final

from salver.wire.http2.frames import ErrorCode, StreamFault

Fields = list[tuple[bytes, bytes]]

REQUEST: Final = 1
RESPONSE: Final = 2
TRAILERS: Final = 3

_NAME: Final = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_BAD_VALUE: Final = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]$").search
_OF_CONNECTIONS: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_PSEUDO: Final = {
    REQUEST: frozenset({b":method", b":scheme", b":path", b":authority"}),
    RESPONSE: frozenset({b":status"}),
    TRAILERS: frozenset[bytes](),
}
_NEEDED: Final = {REQUEST: (b":method", b":scheme", b":path"), RESPONSE: (b":status",), TRAILERS: ()}


class Head:
    """A decoded header list. The same object stands for every block of the same bytes: read only, but for `memo`.

    Args:
        fields: name and value in order.

    `mapping` joins fields of the same name, ``cookie`` with ``; `` and the others with ``,``, as gRPC and HTTP say.
    """

    __slots__ = ("fields", "is_plain", "kind", "length", "mapping", "memo")

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self.kind = 0
        self.length = -1
        """Of ``content-length``; -1 where there is none."""
        self.is_plain = False
        """Whether it was checked to be a request's, and does not tell how long the body is."""
        self.memo: Any = None
        """The receiver's own."""
        self.mapping: dict[bytes, bytes] = {}
        for name, value in fields:
            before = self.mapping.get(name)
            if before is not None:
                value = before + (b"; " if name == b"cookie" else b",") + value
            self.mapping[name] = value

    def check(self, kind: int) -> None:
        """Refuse what no request (response, trailers) may have.

        Raises:
            StreamFault: PROTOCOL_ERROR.
        """
        if self.kind == kind:
            return
        allowed = _PSEUDO[kind]
        seen: set[bytes] = set()
        is_pseudo = True
        for name, value in self.fields:
            if _NAME(name) is None or _BAD_VALUE(value) is not None:
                raise _malformed(f"field {name[:100]!r}")
            if name.startswith(b":"):
                if not is_pseudo or name not in allowed or name in seen:
                    raise _malformed(f"pseudo-field {name.decode('latin-1')} where it may not stand")
                seen.add(name)
                continue
            is_pseudo = False
            if name in _OF_CONNECTIONS or (name == b"te" and value.lower() != b"trailers"):
                raise _malformed(f"field {name.decode()}, which is HTTP/1.1's")
        for name in _NEEDED[kind]:
            if not self.mapping.get(name):
                raise _malformed(f"no {name.decode()}")
        self._read_length()
        self.kind = kind
        self.is_plain = kind == REQUEST and self.length < 0

    def _read_length(self) -> None:
        text = self.mapping.get(b"content-length")
        if text is not None:
            if not text.isdigit() or len(text) > 18:
                raise _malformed(f"content-length {text[:50]!r}")
            self.length = int(text)


def _malformed(what: str) -> StreamFault:
    return StreamFault(ErrorCode.PROTOCOL_ERROR, f"malformed header list: {what}")
