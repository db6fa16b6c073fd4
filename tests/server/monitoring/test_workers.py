"""The counts of a real server of two workers, one of which is killed while clients ask."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from salver.client import Client, Retry
from salver.core.errors import SalverError

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"
IMAGE = {"image": np.zeros((1, 1, 28, 28), np.float32)}
DEADLINE_S = 60


class Running:
    """A server in a process of its own, whose standard error is read to its end."""

    def __init__(self) -> None:
        line = [sys.executable, "-m", "salver", "serve", str(DIGITS), "--http", "127.0.0.1:0", "--workers", "2"]
        self.process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self.ready = threading.Event()
        self.url = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"ready on (http://[\d.:]+)", line):
                self.url = found[1]
                self.ready.set()
        self.ready.set()

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(DEADLINE_S)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def server() -> Iterator[Running]:
    running = Running()
    try:
        assert running.ready.wait(DEADLINE_S)
        assert running.url, "".join(running.lines)
        yield running
    finally:
        running.stop()


def ask(url: str, number: int) -> int:
    """Requests that were answered."""
    answered = 0
    with Client(url, retry=Retry(attempts=1), timeout_s=DEADLINE_S) as client:
        for _ in range(number):
            try:
                client.infer("digits", IMAGE)
            except SalverError:  # of the worker that was killed
                continue
            answered += 1
    return answered


def counted(url: str) -> int:
    with Client(url, timeout_s=DEADLINE_S) as client:
        return int(client.statistics("digits")[0]["inference_stats"]["success"]["count"])


def test_no_count_is_lost_and_none_goes_back(server: Running) -> None:
    answered = [ask(server.url, 20) for _ in range(4)]  # a connection each, so that both workers have some
    assert counted(server.url) == sum(answered) == 80
    workers = server.workers()
    assert len(workers) == 2
    threads = [threading.Thread(target=lambda: answered.append(ask(server.url, 100))) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    os.kill(workers[0], signal.SIGKILL)
    last = 80
    while any(thread.is_alive() for thread in threads):
        try:
            now = counted(server.url)
        except SalverError:
            continue
        assert now >= last
        last = now
    for thread in threads:
        thread.join()
    # What was counted and then lost with the worker on its way to the client is at most what was under way.
    assert 0 <= counted(server.url) - sum(answered) <= 4
