"""Which models run or are loaded at this moment, noted where it outlives the process: when it crashes, its supervisor
reads which model it was."""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Final

from salver.backends.base import Session
from salver.core.arrays import Array
from salver.core.tensors import Signature

_FLAGS: Final = 64
_RUNS: Final = 48
"""Flags of threads that run a model; the others are of threads that load it. More threads share flags."""
_NAME_BYTES: Final = 1024  # of a name of 255 characters, with its length
_RECORD: Final = _FLAGS + _NAME_BYTES
_RECORDS: Final = 4096
"""Models that are noted; further ones are not."""


Memory = mmap.mmap | bytearray
Run = Callable[..., dict[str, Array]]


class Marks:
    """Lives in memory that the supervisor shares: a record per model, with a flag for each thread that is inside it.

    Args:
        fd: of the memory, see `create`; it stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, _RECORD * _RECORDS)
        self._starts: dict[str, int] = {}
        self._loads = itertools.count()

    @staticmethod
    def create() -> int:
        """Memory for a process that will be started; pages that nothing is noted in take no room."""
        fd = os.memfd_create("salver-marks")
        os.ftruncate(fd, _RECORD * _RECORDS)
        return fd

    @staticmethod
    def read(fd: int) -> tuple[list[str], list[str]]:
        """Models that were running when the process ended, and those that were being loaded."""
        running: list[str] = []
        loading: list[str] = []
        for index in range(_RECORDS):
            record = os.pread(fd, _RECORD, index * _RECORD)
            size = int.from_bytes(record[_FLAGS : _FLAGS + 2])
            if not size:
                break
            name = record[_FLAGS + 2 : _FLAGS + 2 + size].decode(errors="replace")
            if any(record[:_RUNS]):
                running.append(name)
            if any(record[_RUNS:_FLAGS]):
                loading.append(name)
        return running, loading

    @contextmanager
    def loading(self, name: str) -> Iterator[None]:
        """Note that a model is being loaded."""
        memory, start = self._of(name)
        index = start + _RUNS + next(self._loads) % (_FLAGS - _RUNS)
        memory[index] = 1
        try:
            yield
        finally:
            memory[index] = 0

    def watch(self, name: str, session: Session) -> Session:
        """The session, noted while it runs."""
        return _Watched(session, *self._of(name))

    def _of(self, name: str) -> tuple[Memory, int]:
        """Where the flags of a model are."""
        start = self._starts.get(name)
        if start is None:
            start, text = len(self._starts) * _RECORD, name.encode()
            if start >= _RECORD * _RECORDS or len(text) > _NAME_BYTES - 2:
                return bytearray(_FLAGS), 0
            self._starts[name] = start
            place = start + _FLAGS + 2
            self._memory[place : place + len(text)] = text
            self._memory[start + _FLAGS : place] = len(text).to_bytes(2)
        return self._memory, start


class _Watched(Session):
    """A session that notes when it runs."""

    def __init__(self, session: Session, memory: Memory, start: int) -> None:
        self._session = session
        self.shares_weights = session.shares_weights
        self.run = _noted(session.run, memory, start)  # type: ignore[method-assign]  # a method would be one call more

    @property
    def signature(self) -> Signature:
        return self._session.signature

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Taken over by each instance."""
        raise NotImplementedError

    def close(self) -> None:
        self._session.close()


def _noted(run: Run, memory: Memory, start: int) -> Run:
    """A run that is noted: in a closure, for it is paid by every batch."""
    indexes: dict[int, int] = {}
    find = indexes.get

    def noted(inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        index = find(get_ident())
        if index is None:
            index = indexes[get_ident()] = start + len(indexes) % _RUNS
        memory[index] = 1
        try:
            return run(inputs, outputs)
        finally:
            memory[index] = 0

    return noted
