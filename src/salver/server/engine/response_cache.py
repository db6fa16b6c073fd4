"""Answers that are given again: a bounded cache of one model's outputs, by everything its inputs hold.

Only for a model whose answer follows from its inputs alone. A key holds all names, datatypes, shapes and bytes, and is
compared in full, so that no collision of hashes can answer wrongly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from time import perf_counter
from typing import Final, Self

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import SalverError
from salver.server.engine.base import Done, InferRequest, Timing
from salver.server.monitoring.record import ModelRecord

_ENTRY_BYTES: Final = 1024  # what Python's objects of one entry take besides the data


class _Key:
    """Everything a request asks. Equal only when all of it is equal, bit for bit (so NaN equals itself)."""

    __slots__ = ("hash", "parts")

    def __init__(self, request: InferRequest, hasher: Callable[[Hashable], int]) -> None:
        parts: list[Hashable] = [request.outputs]
        for name, array in sorted(request.arrays().items()):
            dtype = array.dtype
            content = tuple(array.ravel()) if dtype.hasobject else array.tobytes()
            parts += (name, dtype, array.shape, content)
        self.parts = tuple(parts)
        self.hash = hasher(self.parts)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.parts == other.parts


class _Entry:
    __slots__ = ("outputs", "size_bytes")

    def __init__(self, outputs: dict[str, Array], size_bytes: int) -> None:
        self.outputs = outputs
        self.size_bytes = size_bytes


class ResponseCache:
    """Outputs by request; the least recently used go first. All methods are called on the event loop.

    Args:
        max_bytes: of keys and outputs together.
        hasher: of keys; another one than `hash` is for tests.
    """

    def __init__(self, max_bytes: int, hasher: Callable[[Hashable], int] = hash) -> None:
        self._max_bytes = max_bytes
        self._hasher = hasher
        self._entries: dict[_Key, _Entry] = {}  # least recently used first
        self.size_bytes = 0

    @classmethod
    def of(cls, max_bytes: int) -> Self | None:
        """A cache of a size, or None for none."""
        return cls(max_bytes) if max_bytes > 0 else None

    def __len__(self) -> int:
        return len(self._entries)

    def answer(self, request: InferRequest, record: ModelRecord) -> bool:
        """Answer a request if it was answered before. Else let its answer be kept when it comes.

        Args:
            record: where hits and misses are counted.

        Returns:
            Whether it has been answered.
        """
        started_s = perf_counter()
        key = _Key(request, self._hasher)
        entry = self._entries.pop(key, None)
        if entry is None:
            request.done = self._keep(key, _size(request.arrays()), request.done)
            record.cache_miss.add(perf_counter() - started_s)
            return False
        self._entries[key] = entry
        record.cache_hit.add(perf_counter() - started_s)
        request.done(dict(entry.outputs), None)
        return True

    def _keep(self, key: _Key, size_bytes: int, done: Done) -> Done:
        def keep(result: dict[str, Array] | SalverError, timing: Timing | None) -> None:
            if not isinstance(result, SalverError):
                self._put(key, size_bytes, result)
            done(result, timing)

        return keep

    def _put(self, key: _Key, size_bytes: int, outputs: dict[str, Array]) -> None:
        size = _ENTRY_BYTES + size_bytes + _size(outputs)
        if size > self._max_bytes or key in self._entries:
            return
        self._entries[key] = _Entry({name: _frozen(array) for name, array in outputs.items()}, size)
        self.size_bytes += size
        while self.size_bytes > self._max_bytes:
            self.size_bytes -= self._entries.pop(next(iter(self._entries))).size_bytes


def _size(arrays: dict[str, Array]) -> int:
    size = 0
    for array in arrays.values():
        size += array.nbytes
        if array.dtype.hasobject:
            size += sum(map(sys.getsizeof, array.ravel()))
    return size


def _frozen(array: Array) -> Array:
    copy = np.array(array, order="C")
    copy.setflags(write=False)
    return copy
