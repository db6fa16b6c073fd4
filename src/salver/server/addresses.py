"""Addresses to listen on: ``host:port`` and ``unix:/path``."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path
from typing import Final

from salver.core.errors import InvalidArgument, Unavailable

UNIX: Final = "unix:"
_SOCKET_MODE: Final = 0o600


def parse_address(text: str) -> tuple[str, int]:
    """Split ``host:port``; an IPv6 host stands in brackets.

    Raises:
        InvalidArgument: it is not that.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or not host:
        raise InvalidArgument(
            f"'{text}' is not an address; expected host:port, such as 127.0.0.1:8080 or [::1]:8080, or unix:/path"
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def show_address(address: tuple[str, int] | str) -> str:
    """An address as people write it."""
    if isinstance(address, str):
        return UNIX + address
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind_unix(path: str) -> socket.socket:
    """A bound Unix socket that only this user may connect to. One that a dead server left behind is removed.

    Raises:
        Unavailable: another server listens there, something else has that name, or the path cannot be used.
    """
    file = Path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if file.exists() or file.is_symlink():
            _remove_stale(file)
        sock.bind(path)
        file.chmod(_SOCKET_MODE)  # nobody can connect before it listens
    except Unavailable:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        raise Unavailable(f"cannot listen on {UNIX}{path}: {error.strerror or error}") from None
    return sock


def _remove_stale(file: Path) -> None:
    if not stat.S_ISSOCK(file.lstat().st_mode):
        raise Unavailable(f"cannot listen on {UNIX}{file}: something else has that name; remove it or choose another")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(file))
        except ConnectionRefusedError:
            file.unlink()
            return
    raise Unavailable(f"cannot listen on {UNIX}{file}: another server listens there")


def remove_unix(path: str, inode: int) -> None:
    """Remove the socket's file, if it is still ours."""
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_ino == inode:
            Path(path).unlink()
