"""A client in a process of its own, which asks a server as it is told: what it spends is not the server's.

Run as a module. A line of JSON on its input is a `Round`, and one on its output the seconds that the round took.
"""

from __future__ import annotations

import re
import socket
import sys
import time
from collections import deque
from typing import Final

import msgspec

_PATIENCE_S: Final = 30.0
_CONNECTIONS: Final = 64
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Round(msgspec.Struct, frozen=True):
    """Requests, each on the next of many connections, as those of many clients.

    Args:
        port: of the server, on this machine.
        request: bytes of each.
        at_s: when each is sent, from the beginning of the round, rising.
    """

    port: int
    request: bytes
    at_s: tuple[float, ...]


class _Asker:
    def __init__(self) -> None:
        self._clients: deque[socket.socket] = deque()

    def ask(self, told: Round) -> float:
        """Send all, read all answers; seconds from the first that was due to the last answer."""
        while len(self._clients) < _CONNECTIONS:
            client = socket.create_connection(("127.0.0.1", told.port), _PATIENCE_S)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._clients.append(client)
        asked = [self._clients[i] for i in range(len(told.at_s))]
        self._clients.rotate(-len(asked))
        began_s = time.perf_counter()
        for client, at_s in zip(asked, told.at_s, strict=True):
            if (left_s := began_s + at_s - time.perf_counter()) > 0:
                time.sleep(left_s)
            client.sendall(told.request)
        for client in asked:
            _read(client)
        return time.perf_counter() - began_s - told.at_s[0]


def _read(client: socket.socket) -> None:
    """One answer.

    Raises:
        ConnectionError: it is an error, or none.
    """
    data = client.recv(65536)
    while (end := data.find(b"\r\n\r\n")) < 0 and (more := client.recv(65536)):
        data += more
    found = _LENGTH.search(data, 0, end)
    if not data.startswith(b"HTTP/1.1 200") or found is None:
        raise ConnectionError(f"the server under measurement answered {data[:200]!r}")
    left = end + 4 + int(found[1]) - len(data)
    while left > 0 and (more := client.recv(min(left, 1 << 20))):
        left -= len(more)


def main() -> None:
    """Do as told until the input ends."""
    asker = _Asker()
    for line in sys.stdin.buffer:
        sys.stdout.write(f"{asker.ask(msgspec.json.decode(line, type=Round))!r}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
