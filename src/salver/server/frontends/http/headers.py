"""The header fields the server acts on, and how their names are recognized."""

from __future__ import annotations

from typing import Final

KNOWN: Final = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"access-control-request-method",
        b"authorization",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"cookie",
        b"expect",
        b"host",
        b"inference-header-content-length",
        b"origin",
        b"transfer-encoding",
        b"x-api-key",
    }
)

_SPELLINGS: Final = {name.title(): name for name in KNOWN} | {name: name for name in KNOWN}


def known_name(name: bytes) -> bytes | None:
    """The lower-case name of a field the server acts on, in any spelling; None for the others."""
    found = _SPELLINGS.get(name)
    if found is not None:
        return found
    lower = name.lower()
    return lower if lower in KNOWN else None
