"""The arrays of a ``.npz`` file, streamed out of the zip in blocks."""

from __future__ import annotations

import contextlib
import functools
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.model import digest_file
from salver.datasets._npy import _object_message
from salver.datasets.base import Reader, ReaderConfig, column_spec, common_rows, to_carried


class NpzConfig(ReaderConfig, frozen=True, kw_only=True):
    """Nothing but the label."""


class _Member(msgspec.Struct, frozen=True):
    """An array of the zip, from its header."""

    file: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


class NpzDataset(Reader):
    """One column per array. Row-major arrays are never in memory whole; column-major ones are, once.

    Format: NumPy Enhancement Proposal 1 in a zip (https://numpy.org/doc/stable/reference/generated/numpy.savez.html).
    """

    name: ClassVar[str] = "npz"
    Config: ClassVar[type[Any]] = NpzConfig

    def __init__(self, source: Path, config: NpzConfig | None = None) -> None:
        self._path = source
        self._members = dict(self._read_headers())
        for name, member in self._members.items():
            if not member.shape:
                raise InvalidArgument(f"'{source}', column '{name}': got a scalar, expected one row per example")
        rows = common_rows(str(source), {name: m.shape[0] for name, m in self._members.items()})
        specs = {n: column_spec(str(source), n, m.dtype, m.shape[1:]) for n, m in self._members.items()}
        super().__init__(str(source), specs, rows, (config or NpzConfig()).label)

    @functools.cached_property
    def _digest(self) -> str:
        return digest_file(self._path)

    @property
    def digest(self) -> str:
        return self._digest

    def blocks(self, size: int) -> Iterator[dict[str, Array]]:
        with contextlib.ExitStack() as stack:
            archive = stack.enter_context(self._open())
            readers = {name: self._read(name, archive, stack, size) for name in self._members}
            for start in range(0, len(self), size):
                yield {n: to_carried(self.source, n, next(reader), start) for n, reader in readers.items()}
            for reader in readers.values():
                next(reader, None)

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._path)
        except zipfile.BadZipFile as error:
            raise InvalidArgument(f"'{self._path}' is not a .npz file, or it is truncated: {error}") from None

    def _read_headers(self) -> Iterator[tuple[str, _Member]]:
        with self._open() as archive:
            for file in archive.namelist():
                name = file.removesuffix(".npy")
                with self._translate(name), archive.open(file) as stream:
                    shape, fortran, dtype = _read_header(stream)
                if dtype.hasobject:
                    raise InvalidArgument(_object_message(str(self._path), name))
                yield name, _Member(file, shape, dtype, fortran)

    def _read(self, name: str, archive: zipfile.ZipFile, stack: contextlib.ExitStack, size: int) -> Iterator[Array]:
        member = self._members[name]
        with self._translate(name):
            stream = stack.enter_context(archive.open(member.file))
            _read_header(stream)
        if member.fortran:
            flat = self._take(name, stream, member, int(np.prod(member.shape)))
            whole = flat.reshape(member.shape[::-1]).T
        inner = int(np.prod(member.shape[1:]))
        for start in range(0, len(self), size):
            rows = min(size, len(self) - start)
            if member.fortran:
                yield whole[start : start + rows]
            else:
                yield self._take(name, stream, member, rows * inner).reshape(rows, *member.shape[1:])
        with self._translate(name):
            if stream.read(1):  # reading to the end also makes zipfile check the CRC
                raise InvalidArgument(f"'{self._path}', column '{name}': more data than its header says")

    def _take(self, name: str, stream: IO[bytes], member: _Member, count: int) -> Array:
        array = np.empty(count, dtype=member.dtype)
        view = array.view(np.uint8).data if array.nbytes else memoryview(b"")
        filled = 0
        with self._translate(name):
            while filled < array.nbytes:
                data = stream.read(min(1 << 20, array.nbytes - filled))
                if not data:
                    raise InvalidArgument(f"'{self._path}', column '{name}' is truncated")
                view[filled : filled + len(data)] = data
                filled += len(data)
        return array

    @contextlib.contextmanager
    def _translate(self, name: str) -> Iterator[None]:
        try:
            yield
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
            raise InvalidArgument(f"'{self._path}', column '{name}' cannot be read: {error}") from None


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return shape, fortran and len(shape) > 1, dtype
