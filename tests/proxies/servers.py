"""`salver serve` as a process, and what it says about what reached it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

_START_S: Final = 60
_READY: Final = re.compile(r"ready on (?:https?://)([^\s,]+), grpc (\S+)")
_REQUESTS: Final = re.compile(r"^salver_request_total\{([^}]*)\} (\d+)", re.MULTILINE)


class Served:
    """A running server; both of its addresses speak everything, tests use the first."""

    def __init__(self, process: subprocess.Popen[str], address: str, ca: Path | None) -> None:
        self.process = process
        self.address = address
        self.scheme = "https" if ca else "http"
        self._context = ssl.create_default_context(cafile=ca) if ca else None

    def call(self, path: str, body: Any = None) -> str:
        """What it answers."""
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.scheme}://{self.address}{path}"
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=20, context=self._context) as answer:
            return answer.read().decode()

    def requests(self, model: str, code: str = "OK") -> int:
        """How many requests of a model ended with that code."""
        return sum(
            int(count)
            for labels, count in _REQUESTS.findall(self.call("/metrics"))
            if f'model="{model}"' in labels and f'code="{code}"' in labels
        )

    def stop(self) -> int:
        """Ask it to stop; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


@contextlib.contextmanager
def serving(*arguments: object, ca: Path | None = None) -> Iterator[Served]:
    """`salver serve ARGUMENTS` on free ports, until the block ends."""
    command = [sys.executable, "-m", "salver", "serve", *map(str, arguments)]
    command += ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said: list[str] = []
    ready = threading.Event()

    def read() -> None:
        for line in process.stderr or ():
            said.append(line)
            if _READY.search(line):
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        ready.wait(_START_S)
        found = _READY.search("".join(said))
        if found is None:
            pytest.fail("the server did not start: " + "".join(said)[-2000:])
        yield Served(process, found.group(1), ca)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            reader.join(5)
            if process.stderr is not None:
                process.stderr.close()


def eventually(holds: Callable[[], bool], within_s: float = 20) -> bool:
    """Whether it holds sooner or later."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        if holds():
            return True
        time.sleep(0.05)
    return False
