"""A body while it is coming in."""

from __future__ import annotations

from typing import Final

from salver.wire.http2.stream import Data

_SMALL_BYTES: Final = 1024


class Pieces:
    """Pieces of a body, put together once. Small ones are gathered as they come: each costs a few bytes on the wire,
    and ten times as many as an object of its own."""

    __slots__ = ("_parts", "size")

    def __init__(self) -> None:
        self._parts: list[Data | bytearray] = []
        self.size = 0

    def add(self, data: Data) -> None:
        """Take another piece."""
        size = len(data)
        if not size:
            return
        self.size += size
        parts = self._parts
        if size >= _SMALL_BYTES:
            parts.append(data)
        elif parts and isinstance(parts[-1], bytearray):
            parts[-1] += data
        else:
            parts.append(bytearray(data))

    def peek(self, size: int) -> bytes:
        """The first bytes, at most as many as there are."""
        if self._parts and len(self._parts[0]) < size:
            self._parts = [b"".join(self._parts)]
        return bytes(self._parts[0][:size]) if self._parts else b""

    def take(self, size: int, skip: int = 0) -> bytes:
        """Remove ``skip`` bytes, and the ``size`` bytes after them, which are there; those are returned."""
        parts = self._parts
        end = skip + size
        if end == self.size and parts and len(parts[0]) >= skip:
            parts[0] = memoryview(parts[0])[skip:]
            taken = b"".join(parts)
            self._parts = []
        else:
            whole = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
            taken = bytes(whole[skip:end])
            self._parts = [whole[end:]]
        self.size -= end
        return taken
