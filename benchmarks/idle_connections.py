"""What an idle connection costs the server's memory, and whether the server still answers beside thousands of them.

    python benchmarks/idle_connections.py --connections 10000

For each kind of connection a server is started, the connections are opened and left alone, and 200 requests are sent
over one more. Memory is the growth of the server's proportional set size, divided by the connections.
"""

from __future__ import annotations

import argparse
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

MODEL = Path(__file__).resolve().parents[1] / "examples" / "digits" / "digits.onnx"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
# Preface, empty SETTINGS, and HEADERS for GET /v2/health/live: indexed fields, and two literals not indexed.
HTTP2 = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    b"\x00\x00\x1e\x01\x05\x00\x00\x00\x01\x82\x86\x01\x09localhost\x04\x0f/v2/health/live"
)
KINDS = {"nothing sent": b"", "HTTP/1.1, one request answered": LIVE, "HTTP/2, one request answered": HTTP2}
REQUESTS = 200
AT_A_TIME = 500


@contextmanager
def serving(connections: int) -> Iterator[tuple[int, tuple[str, int]]]:
    """A server process: its id and address."""
    command = [sys.executable, "-m", "salver", "serve", str(MODEL), "--http", "127.0.0.1:0", "--idle-timeout", "10m"]
    process = subprocess.Popen(
        [*command, "--max-connections", str(connections + 10)], stderr=subprocess.PIPE, text=True
    )
    try:
        for line in process.stderr or ():
            if "http://" in line:
                host, port = line.rstrip().rpartition("http://")[2].split(" ")[0].split(":")
                yield process.pid, (host, int(port))
                break
        else:
            raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.communicate()


def memory_kib(pid: int) -> int:
    """Proportional set size."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.split("\nPss:", 1)[1].split()[0])


def open_some(address: tuple[str, int], first: bytes, count: int) -> list[socket.socket]:
    """Connections that have sent ``first``, and had something back where it is a request."""
    opened = [socket.create_connection(address, timeout=60) for _ in range(count)]
    if first:
        for sock in opened:
            sock.sendall(first)
        with selectors.DefaultSelector() as selector:
            for sock in opened:
                selector.register(sock, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select(60):
                    data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]  # sockets, all of them
                    assert data, "closed without an answer"
                    if b'"live"' in data:
                        selector.unregister(key.fileobj)
    return opened


def measure(first: bytes, connections: int) -> tuple[float, float, float]:
    """KiB per connection; median and largest time of a request beside them, in milliseconds."""
    with serving(connections) as (pid, address), closing(socket.create_connection(address, timeout=60)) as asking:
        times = [ask(asking) for _ in range(REQUESTS)]
        before = memory_kib(pid)
        idle: list[socket.socket] = []
        try:
            while len(idle) < connections:
                idle += open_some(address, first, min(AT_A_TIME, connections - len(idle)))
            grown = memory_kib(pid) - before
            times = [ask(asking) for _ in range(REQUESTS)]
            for sock in idle[:: max(1, connections // 100)]:
                ask(sock) if first == LIVE else None
        finally:
            for sock in idle:
                sock.close()
        return grown / connections, statistics.median(times) * 1e3, max(times) * 1e3


def ask(sock: socket.socket) -> float:
    """Seconds until a request is answered."""
    start_s = time.perf_counter()
    sock.sendall(LIVE)
    answer = sock.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 200 OK"), answer
    return time.perf_counter() - start_s


def main() -> None:
    """Print one line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000)
    connections = parser.parse_args().connections
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print("| idle connections | KiB each | a request beside them, median | largest |\n|---|---|---|---|")
    for kind, first in KINDS.items():
        each, median_ms, largest_ms = measure(first, connections)
        print(f"| {connections}, {kind} | {each:.1f} | {median_ms:.2f} ms | {largest_ms:.1f} ms |", flush=True)


if __name__ == "__main__":
    main()
