"""The listening sockets of a server: bound here, or by systemd, and handed to workers."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from salver.core.errors import InvalidArgument, Unavailable
from salver.server.addresses import UNIX, bind_unix, parse_address, remove_unix, show_address
from salver.server.processes.base import EVERYONE, Listen
from salver.server.settings import ServeSettings

ROLES: Final = ("http", "grpc")
"""The addresses of a server, as its settings call them."""

_FIRST_FD: Final = 3
"""Of those that systemd hands over (sd_listen_fds(3))."""


def take_activated() -> dict[str, list[socket.socket]]:
    """Sockets that systemd bound for this process (sd_listen_fds(3)); nothing where it did not.

    ``FileDescriptorName=http`` or ``grpc`` says which of the addresses a socket is; sockets with other names are
    ``http`` and then ``grpc``. The variables are taken out of the environment: no child is meant.

    Raises:
        InvalidArgument: there are more sockets than addresses.
    """
    pid, count, names = (os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not count.isdecimal() or pid != str(os.getpid()):
        return {}
    sockets = [socket.socket(fileno=fd) for fd in range(_FIRST_FD, _FIRST_FD + int(count))]
    for sock in sockets:
        os.set_inheritable(sock.fileno(), False)
    named = names.split(":") if names else []
    if len(named) != len(sockets) or not set(named) <= set(ROLES):
        if len(sockets) > len(ROLES):
            raise InvalidArgument(
                f"systemd handed over {len(sockets)} sockets named '{names}': name each http or grpc "
                "(FileDescriptorName=)"
            )
        named = list(ROLES[: len(sockets)])
    taken: dict[str, list[socket.socket]] = {}
    for role in ROLES:
        if found := [sock for sock, name in zip(sockets, named, strict=True) if name == role]:
            taken[role] = found
    return taken


def title(sock: socket.socket) -> str:
    """Where a socket listens, as people write it."""
    name = sock.getsockname()
    return show_address(os.fsdecode(name) if sock.family == socket.AF_UNIX else name[:2])


def with_titles(settings: ServeSettings, sockets: Mapping[str, Sequence[socket.socket]]) -> ServeSettings:
    """Settings that name the addresses of sockets that were bound."""
    titles = {role: title(found[0]) for role, found in sockets.items()}
    return msgspec.structs.replace(settings, **titles)


class Sockets:
    """All listening sockets of a server of several processes.

    A TCP address has a socket for each worker, among which the kernel spreads connections (``SO_REUSEPORT``). A Unix
    socket, and what systemd bound, is one on which all workers accept. None is closed when a worker goes: who waits in
    its backlog is served by another.

    Raises:
        InvalidArgument: an address is neither ``host:port`` nor ``unix:/path``.
        Unavailable: an address cannot be bound.
    """

    def __init__(self, settings: ServeSettings, workers: int) -> None:
        self._own: list[tuple[str, int, socket.socket]] = []
        self._files: list[tuple[str, int]] = []
        self._activated = take_activated()
        try:
            for role, sockets in self._activated.items():
                self._own += [(role, EVERYONE, sock) for sock in sockets]
            for role, address in zip(ROLES, (settings.http, settings.grpc), strict=True):
                if address and not self._activated:
                    self._bind(role, address, workers)
        except BaseException:
            self.close()
            raise

    def name(self, settings: ServeSettings) -> ServeSettings:
        """Settings whose addresses are those that were bound."""
        by_role = {role: [sock for other, _, sock in self._own if other == role] for role in ROLES}
        return with_titles(settings, {role: sockets for role, sockets in by_role.items() if sockets})

    @property
    def listen(self) -> tuple[Listen, ...]:
        """As workers are told."""
        return tuple(Listen(role, slot, sock.fileno()) for role, slot, sock in self._own)

    def close(self) -> None:
        """Refuse all that comes from now on; what systemd bound goes on waiting for the next server."""
        for _, _, sock in self._own:
            if not self._activated:
                _stop_listening(sock)
            sock.close()
        self._own.clear()
        for path, inode in self._files:
            remove_unix(path, inode)
        self._files.clear()

    def _bind(self, role: str, address: str, workers: int) -> None:
        if address.startswith(UNIX):
            path = address.removeprefix(UNIX)
            self._own.append((role, EVERYONE, bind_unix(path)))
            self._files.append((path, os.lstat(path).st_ino))
            return
        host, port = parse_address(address)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, _, _, _, name in dict.fromkeys(found):
                if port:
                    _check_free(family, (name[0], port, *name[2:]))
                for slot in range(workers):
                    sock = _bound(family, (name[0], port, *name[2:]))
                    self._own.append((role, slot, sock))
                    port = sock.getsockname()[1]
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {address}: {error.strerror or error}; choose another address"
            ) from None


def _check_free(family: int, where: tuple[object, ...]) -> None:
    """Make sure that no other server of this user listens there: the two would share the port and its connections."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        _prepare(probe)
        probe.bind(where)


def _bound(family: int, where: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        _prepare(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(where)
    except OSError:
        sock.close()
        raise
    return sock


def _prepare(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


def _stop_listening(sock: socket.socket) -> None:
    """For all processes that have it: they are about to close it, and until then nobody should wait there in vain."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # nobody has listened on it yet
        return


class Inherited:
    """The sockets as a worker has them."""

    def __init__(self, listen: Sequence[Listen]) -> None:
        self._listen = tuple(listen)
        for each in listen:
            os.set_inheritable(each.fd, False)

    def of(self, slot: int) -> dict[str, list[socket.socket]]:
        """Copies of the sockets of a slot."""
        found: dict[str, list[socket.socket]] = {}
        for each in self._listen:
            if each.slot == slot:
                found.setdefault(each.role, []).append(socket.socket(fileno=os.dup(each.fd)))
        return found

    def close(self) -> None:
        """Let go of them; copies stay."""
        for each in self._listen:
            os.close(each.fd)
        self._listen = ()
