"""System shared memory (OIP extension): tensors that lie in a file of a client on the same machine.

The file is never mapped: a client that shrinks a mapped file kills the server with SIGBUS at the next touch. What a
request names is copied by `pread` into memory of our own, and answers are copied back by `pwrite`, within the size that
the file has at that moment.
"""

from __future__ import annotations

import abc
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from salver.core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, TooLarge
from salver.server.engine.base import Changed, not_awaited
from salver.server.frontends.access import Peer

FOLDER: Final = Path("/dev/shm")  # where shm_open(3) keeps its objects on Linux
MAX_REGIONS: Final = 256
"""Regions registered at a time: each holds a file descriptor."""

MAX_NAME_BYTES: Final = 255
_OPEN: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


Identity = tuple[int, int]
"""Device and inode of an object."""


class Region(msgspec.Struct, frozen=True):
    """A registered part of a shared memory object, as the status call reports it.

    Args:
        name: what requests call it.
        key: name of the object, as `shm_open` takes it: ``/clients-input``.
        offset, byte_size: the part of the object, in bytes.
    """

    name: str
    key: str
    offset: int
    byte_size: int


class Registry(abc.ABC):
    """Makes regions known to all processes of a server."""

    @abc.abstractmethod
    def attach(self, memory: SharedMemory) -> None:
        """Be the registry of this process's regions, and tell it those that there are."""

    @abc.abstractmethod
    def add(self, region: Region, done: Changed) -> None:
        """Let all open a region."""

    @abc.abstractmethod
    def remove(self, name: str | None, done: Changed) -> None:
        """Let all forget a region, or all of them."""


class SharedMemory:
    """The regions that clients registered. For event loop use only; all calls copy at once and do not wait.

    Every method takes the caller, and refuses all but those who reached the server over a Unix socket and run as the
    server's own user. They are the owner of all regions.

    Args:
        prefix: what keys must begin with, such as ``/clients-``; empty to refuse everything.
        max_read_bytes: the most that one `read` copies.
        limit_hit: told the name of a limit that refused something.
        folder: where the objects are files.
    """

    def __init__(
        self,
        prefix: str,
        max_read_bytes: int = 1 << 62,
        limit_hit: Callable[[str], None] | None = None,
        folder: Path = FOLDER,
    ) -> None:
        self._prefix = _slashed(prefix) if prefix else ""
        self._max_read_bytes = max_read_bytes
        self._limit_hit = limit_hit
        self._folder = folder
        self._regions: dict[str, tuple[Region, int]] = {}
        self.registry: Registry | None = None
        """Where this is one of several processes."""

    def register(
        self, name: str, key: str, offset: int, byte_size: int, peer: Peer, done: Changed = not_awaited
    ) -> None:
        """Make part of a shared memory object known under a name. The object stays open, whatever becomes of its file.

        Raises (or gives to ``done``):
            FailedPrecondition: shared memory is off, or `MAX_REGIONS` are registered.
            PermissionDenied: the caller, the key or the object's owner is not one that may.
            InvalidArgument: the part does not lie within the object, or the name is empty or too long.
            AlreadyExists: the name is taken.
            NotFound: no such object.
        """
        self._check_peer(peer)
        if not name or len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
            raise InvalidArgument(f"the name of a shared memory region has 1 to {MAX_NAME_BYTES} bytes")
        if offset < 0 or byte_size <= 0:
            raise InvalidArgument(
                f"shared memory region '{name}': got offset {offset} and {byte_size} bytes, expected 0 or more and 1 "
                "or more"
            )
        if name in self._regions:
            raise AlreadyExists(f"shared memory region '{name}' is registered already; unregister it first")
        if len(self._regions) >= MAX_REGIONS:
            if self._limit_hit is not None:
                self._limit_hit("shared_memory_regions")
            raise FailedPrecondition(f"{MAX_REGIONS} shared memory regions are registered; unregister one first")
        region = Region(name, key, offset, byte_size)
        if self.registry is not None:
            self.registry.add(region, done)
            return
        self.add(region)
        done(None)

    def add(self, region: Region, identity: Identity | None = None) -> Identity:
        """Open a region.

        Args:
            identity: which object it must be; None for the one that has the key now.

        Returns:
            Which object it is.

        Raises:
            PermissionDenied, InvalidArgument, NotFound: as `register`.
            FailedPrecondition: it is another object.
        """
        fd = self._open(region.key)
        try:
            found = _check_object(fd, region.key)
            _check_within(fd, region.name, region.offset + region.byte_size)
            if identity not in (None, found):
                raise FailedPrecondition(f"shared memory object '{region.key}' was replaced while it was registered")
        except BaseException:
            os.close(fd)
            raise
        self.take(region, fd)
        return found

    def take(self, region: Region, fd: int) -> None:
        """Have a region whose object is open already."""
        self.drop(region.name)
        self._regions[region.name] = region, fd

    def drop(self, name: str | None) -> None:
        """Forget a region, or all of them."""
        if name is None:
            self.close()
        elif name in self._regions:
            os.close(self._regions.pop(name)[1])

    @property
    def open_regions(self) -> list[tuple[Region, int]]:
        """All, with their open files."""
        return list(self._regions.values())

    def unregister(self, name: str | None, peer: Peer, done: Changed = not_awaited) -> None:
        """Forget a region, or all of them; one that is not there is forgotten already.

        Raises:
            FailedPrecondition, PermissionDenied: as `register`.
        """
        self._check_peer(peer)
        if self.registry is not None:
            self.registry.remove(name or None, done)
            return
        self.drop(name or None)
        done(None)

    def status(self, name: str | None, peer: Peer) -> list[Region]:
        """One region, or all in the order of their registration.

        Raises:
            NotFound: there is none of that name.
            FailedPrecondition, PermissionDenied: as `register`.
        """
        self._check_peer(peer)
        if name:
            return [self._find(name)[0]]
        return [region for region, _ in self._regions.values()]

    def read(self, name: str, offset: int, byte_size: int, peer: Peer) -> bytes:
        """Copy bytes out of a region.

        Args:
            offset: within the region.

        Raises:
            NotFound: no such region.
            InvalidArgument: the bytes do not lie within the region, or no longer within the object.
            TooLarge: more than ``max_read_bytes``.
            FailedPrecondition, PermissionDenied: as `register`.
        """
        fd, start = self._locate(name, offset, byte_size, peer)
        if byte_size > self._max_read_bytes:
            raise TooLarge(
                f"{byte_size} bytes of shared memory region '{name}' are over the limit of {self._max_read_bytes} "
                "bytes (max_body_bytes)",
                limit="max_body_bytes",
            )
        data = os.pread(fd, byte_size, start)
        if len(data) == byte_size:
            return data
        pieces = [data]  # Linux gives at most 2 GiB in one read
        done = len(data)
        while done < byte_size:
            piece = os.pread(fd, byte_size - done, start + done)
            if not piece:
                raise _shrunk(name, start + byte_size, start + done)
            pieces.append(piece)
            done += len(piece)
        return b"".join(pieces)

    def write(self, name: str, offset: int, data: bytes | memoryview, peer: Peer) -> None:
        """Copy bytes into a region. The object never grows by it, unless its owner shrinks it at that very moment.

        Args:
            offset: within the region.
            data: contiguous bytes.

        Raises:
            NotFound, InvalidArgument, FailedPrecondition, PermissionDenied: as `read`.
        """
        view = memoryview(data).cast("B")
        fd, start = self._locate(name, offset, len(view), peer)
        done = 0
        while done < len(view):
            done += os.pwrite(fd, view[done:], start + done)

    def close(self) -> None:
        """Forget all regions."""
        for _, fd in self._regions.values():
            os.close(fd)
        self._regions.clear()

    def _check_peer(self, peer: Peer) -> None:
        if not self._prefix:
            raise FailedPrecondition(
                "shared memory is off; start the server with --shared-memory PREFIX to let local clients use it"
            )
        if peer.uid is None:
            raise PermissionDenied(
                "shared memory is for clients of a Unix socket: let the server listen on one (--grpc unix:/path or "
                "--http unix:/path) and connect there"
            )
        if peer.uid != os.geteuid():
            raise PermissionDenied(
                f"shared memory is for clients that run as the server's user (uid {os.geteuid()}), not as uid "
                f"{peer.uid}"
            )

    def _open(self, key: str) -> int:
        path = _slashed(key)
        name = path[1:]
        if not path.startswith(self._prefix) or "/" in name or name in ("", ".", ".."):
            raise PermissionDenied(
                f"shared memory key {key[:MAX_NAME_BYTES]!r} does not begin with '{self._prefix}' (--shared-memory), "
                "or holds another slash"
            )
        if "\0" in name or len(name.encode()) > MAX_NAME_BYTES:
            raise InvalidArgument(f"a shared memory key has at most {MAX_NAME_BYTES} bytes, none of them zero")
        try:
            return os.open(self._folder / name, _OPEN)
        except FileNotFoundError:
            raise NotFound(f"there is no shared memory object '{key}'") from None
        except OSError as error:  # a symbolic link (ELOOP), a folder, somebody else's
            raise PermissionDenied(f"shared memory object '{key}' cannot be opened: {error.strerror}") from None

    def _find(self, name: str) -> tuple[Region, int]:
        found = self._regions.get(name)
        if found is None:
            raise NotFound(f"no shared memory region '{name[:MAX_NAME_BYTES]}' is registered")
        return found

    def _locate(self, name: str, offset: int, byte_size: int, peer: Peer) -> tuple[int, int]:
        """Descriptor, and place in the object, of bytes that lie within a region and within the object as it is."""
        self._check_peer(peer)
        region, fd = self._find(name)
        if offset < 0 or byte_size < 0 or offset + byte_size > region.byte_size:
            raise InvalidArgument(
                f"shared memory region '{name}' has {region.byte_size} bytes; {byte_size} bytes from {offset} on are "
                "not all within it"
            )
        start = region.offset + offset
        _check_within(fd, name, start + byte_size)
        return fd, start


def _slashed(key: str) -> str:
    """A key as POSIX wants it; clients leave the slash out as well (glibc takes both). A lone surrogate, which no file
    name has, becomes ``?``."""
    return "/" + key.removeprefix("/").encode("utf-8", "replace").decode()


def _check_object(fd: int, key: str) -> Identity:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionDenied(f"'{key}' is not a shared memory object of the server's own user")
    return found.st_dev, found.st_ino


def _check_within(fd: int, name: str, end: int) -> None:
    size = os.fstat(fd).st_size
    if end > size:
        raise _shrunk(name, end, size)


def _shrunk(name: str, end: int, size: int) -> InvalidArgument:
    return InvalidArgument(f"shared memory region '{name}' reaches to byte {end} of its object, which has {size} now")
