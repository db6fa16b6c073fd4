"""Where counters live: blocks of numbers by name, in this process or in memory that its supervisor reads too.

All numbers are float64: whole ones are exact up to 2^53, and in CPython adding to one in a mapping is faster than to an
int64. A store of 8 aligned bytes is not torn, so another process may read at any time, and what a process had counted
is still there when it was killed.
"""

from __future__ import annotations

import logging
import mmap
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, cast

import msgspec

Cells = list[float]
"""Numbers of one block; a `memoryview` of doubles where they are mapped, which is indexed alike."""

Names = tuple[str, ...]

MAP_BYTES: Final = 64 << 20
"""Address space of one process's counters; memory is taken as blocks are made."""

LATEST: Final = frozenset({"last"})
"""Kinds of which not the sum counts, but the largest."""

KEPT: Final = 8
"""Owners that are gone whose counts are kept, should they come back."""

_LOG = logging.getLogger(__name__)
_WORD: Final = 8
_NAME: Final = 64  # names fill multiples of it, so that a block of one fits another


class Key(msgspec.Struct, frozen=True, array_like=True):
    """Name of a block.

    Args:
        kind: what is counted.
        owner: whose it is: name and version of a model; empty for the server's own.
        detail: which one of several: a code, a reason.
    """

    kind: str
    owner: Names
    detail: Names = ()


class Memory:
    """Blocks of one process, or the sums of several's. Not safe between threads."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, Names], dict[Names, Cells]] = {}

    def block(self, kind: str, owner: Names, detail: Names = (), size: int = 1) -> Cells:
        """A block, made on first use, all zeros."""
        blocks = self._blocks.setdefault((kind, owner), {})
        cells = blocks.get(detail)
        if cells is None:
            cells = blocks[detail] = self._make(Key(kind, owner, detail), size)
        return cells

    def details(self, kind: str, owner: Names = ()) -> Mapping[Names, Cells]:
        """All blocks of a kind that belong to an owner, by detail."""
        return self._blocks.get((kind, owner), {})

    def __iter__(self) -> Iterator[tuple[Key, Cells]]:
        for (kind, owner), blocks in self._blocks.items():
            for detail, cells in blocks.items():
                yield Key(kind, owner, detail), cells

    def owners(self) -> Iterator[Names]:
        """All that have blocks."""
        return iter(dict.fromkeys(owner for _, owner in self._blocks if owner))

    def drop(self, owner: Names) -> None:
        """Forget what was counted of an owner."""
        for kind, _ in [name for name in self._blocks if name[1] == owner]:
            for cells in self._blocks.pop((kind, owner)).values():
                self._free(cells)

    def add(self, blocks: Iterable[tuple[Key, Cells]]) -> None:
        """Add what others counted."""
        for key, theirs in blocks:
            mine = self.block(key.kind, key.owner, key.detail, len(theirs))
            join = max if key.kind in LATEST else float.__add__
            mine[:] = map(join, mine, theirs)

    def since(self, earlier: Memory) -> Memory:
        """What was counted after a copy was taken."""
        found = Memory()
        for key, cells in self:
            before = earlier.details(key.kind, key.owner).get(key.detail)
            mine = found.block(key.kind, key.owner, key.detail, len(cells))
            mine[:] = cells if before is None or key.kind in LATEST else map(float.__sub__, cells, before)
        return found

    def copy(self) -> Memory:
        """What is counted now."""
        found = Memory()
        found.add(self)
        return found

    def _make(self, key: Key, size: int) -> Cells:
        return [0.0] * size

    def _free(self, cells: Cells) -> None:
        """A block is used no more."""


class MappedMemory(Memory):
    """Blocks of this process in a file that another process reads, with `MappedReader`.

    The file is blocks one after another: their length in bytes, that of their name (0 for a block that is free), the
    name with room up to a multiple of 64, the numbers. A length of 0 is the end.

    Args:
        fd: of the file, as `make_file` makes it. It may be closed afterwards.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._view = memoryview(mmap.mmap(fd, 0))
        self._end = 0
        self._full = False
        self._places: dict[int, tuple[int, int]] = {}
        self._unused: dict[tuple[int, int], list[int]] = {}

    def _make(self, key: Key, size: int) -> Cells:
        name = msgspec.msgpack.encode(key)
        room = -(-len(name) // _NAME) * _NAME
        length = 2 * _WORD + room + size * _WORD
        start = self._place(room, length)
        if start < 0:
            if not self._full:
                _LOG.error("no room for counters of '%s' %s: from now on new ones are not shown", key.kind, key.owner)
            self._full = True
            return super()._make(key, size)
        view = self._view
        first = start + 2 * _WORD + room
        cells = cast(Cells, view[first : start + length].cast("d"))
        for place in range(size):
            cells[place] = 0.0
        view[start + 2 * _WORD : start + 2 * _WORD + len(name)] = name
        self._put(start + _WORD, len(name))
        self._put(start, length)  # last: from now on a reader goes on behind it
        self._places[id(cells)] = start, room
        return cells

    def _free(self, cells: Cells) -> None:
        start, room = self._places.pop(id(cells), (-1, 0))
        if start >= 0:
            self._put(start + _WORD, 0)
            self._unused.setdefault((room, len(cells)), []).append(start)

    def _place(self, room: int, length: int) -> int:
        unused = self._unused.get((room, (length - 2 * _WORD - room) // _WORD))
        if unused:
            return unused.pop()
        start = self._end
        if start + length + _WORD > len(self._view):
            return -1
        self._end += length
        return start

    def _put(self, at: int, word: int) -> None:
        self._view[at : at + _WORD] = word.to_bytes(_WORD, "little")


class MappedReader:
    """What another process counts, or had counted when it ended.

    Args:
        fd: of its file. It may be closed afterwards.
    """

    def __init__(self, fd: int) -> None:
        self._view = memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ))

    def read(self) -> Iterator[tuple[Key, Cells]]:
        """All blocks that are there now."""
        view, start = self._view, 0
        while length := self._word(start):
            size = self._word(start + _WORD)
            end = start + 2 * _WORD + size
            name = bytes(view[start + 2 * _WORD : end])
            cells = list(view[start + 2 * _WORD + -(-size // _NAME) * _NAME : start + length].cast("d"))
            if size and bytes(view[start + 2 * _WORD : end]) == name:  # else another's from just now on
                yield msgspec.msgpack.decode(name, type=Key), cells
            start += length

    def _word(self, at: int) -> int:
        return int.from_bytes(self._view[at : at + _WORD], "little")


def make_file() -> int:
    """An empty file in memory for one process's counters; the caller closes it."""
    fd = os.memfd_create("salver-counters", os.MFD_CLOEXEC)
    os.ftruncate(fd, MAP_BYTES)
    return fd


class Packed(msgspec.Struct, array_like=True):
    """A block on its way between processes; ``cells`` are the doubles as they lie in memory."""

    key: Key
    cells: bytes


def pack(memory: Memory) -> list[Packed]:
    """Blocks as plain data."""
    return [Packed(key, array("d", cells).tobytes()) for key, cells in memory]


def unpack(packed: Iterable[Packed]) -> Memory:
    """Blocks of plain data."""
    memory = Memory()
    memory.add((one.key, list(array("d", one.cells))) for one in packed)
    return memory
