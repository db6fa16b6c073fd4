"""Header blocks (HPACK, RFC 7541): the only file that imports hpack.

Clients send the same block again and again. While the decoder's dynamic table stays as it is, a block means what it
meant before, and is looked up instead of decoded. Blocks are encoded without the dynamic table: what is sent often is
encoded once, and the peer's table stays out of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from hpack import Decoder, HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from salver.wire.http2.frames import ConnectionFault, ErrorCode
from salver.wire.http2.headers import Head

_MAX_CACHED: Final = 64
_MAX_CACHED_BYTES: Final = 1024
_STATIC: Final = {name: at for at, (name, _) in reversed(list(enumerate(HeaderTable.STATIC_TABLE, 1)))}
_INDEXED: Final = {pair: at for at, pair in enumerate(HeaderTable.STATIC_TABLE, 1) if pair[1]}


# At DEBUG it writes every header field, API keys among them.
logging.getLogger("hpack").setLevel(logging.INFO)


class _Table(HeaderTable):
    """Knows whether it has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.added = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.added += 1
        super().add(name, value)

    def stamp(self) -> tuple[int, int, int]:
        """Differs where the table does: without an addition it can only lose entries, or change its bound."""
        return self.added, self.maxsize, len(self.dynamic_entries)


class HeaderDecoder:
    """Decodes the header blocks of one connection, in order.

    Args:
        max_bytes: of a decoded list, by RFC 9113, 6.5.2.
    """

    def __init__(self, max_bytes: int) -> None:
        self._decoder = Decoder(max_header_list_size=max_bytes)
        self._table = _Table()
        self._decoder.header_table = self._table
        self.seen: dict[bytes, Head] = {}
        """Blocks that mean what they meant before; for a look before `decode`."""

    def decode(self, block: bytes) -> Head:
        """What a block says; the same object for a block that was seen before.

        Raises:
            ConnectionFault: it is no header block, or becomes too large; the peer's state is lost then.
        """
        head = self.seen.get(block)
        if head is not None:
            return head
        before = self._table.stamp()
        try:
            head = Head([(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)])
        except OversizedHeaderListError as error:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, str(error)) from None
        except (HPACKError, IndexError) as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, f"not a header block: {error}") from None
        if self._table.stamp() != before:
            self.seen.clear()
        elif len(block) <= _MAX_CACHED_BYTES:
            if len(self.seen) >= _MAX_CACHED:
                self.seen.clear()
            self.seen[block] = head
        return head


def encode_block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A header block for these fields, names in lower case; indexed where the static table has them, else literal."""
    return b"".join(_encode(name, value) for name, value in fields)


def _encode(name: bytes, value: bytes) -> bytes:
    whole = _INDEXED.get((name, value))
    if whole is not None:
        return bytes((0x80 | whole,))
    known = _STATIC.get(name)
    head = _integer(known, 4) if known is not None else b"\x00" + _integer(len(name), 7) + name
    return head + _integer(len(value), 7) + value


def _integer(value: int, bits: int) -> bytes:
    """RFC 7541, 5.1; the bits before the prefix are zero."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes((value,))
    out = bytearray((limit,))
    value -= limit
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
