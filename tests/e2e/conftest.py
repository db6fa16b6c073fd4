"""The real thing once per session: bundles built by the command line, servers as processes of their own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
_READY = re.compile(r"http://[0-9.]+:\d+")


def salver(*arguments: object, cwd: Path | None = None, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    command = [sys.executable, "-m", "salver", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout_s, check=False)


class Server:
    """A running `salver serve`."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def call(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and parsed JSON."""
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data=data, headers={"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")


@contextmanager
def serving(*arguments: object, cwd: Path | None = None) -> Iterator[Server]:
    """`salver serve ARGUMENTS` on a free port, until the block ends."""
    command = [sys.executable, "-m", "salver", "serve", *map(str, arguments), "--http", "127.0.0.1:0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=cwd)
    seen: list[str] = []
    try:
        if process.stderr is None:
            pytest.fail("no stderr")
        url = ""
        end = time.monotonic() + 60
        for line in process.stderr:
            seen.append(line)
            found = _READY.search(line)
            if found or time.monotonic() > end:
                url = found.group() if found else ""
                break
        if not url:
            pytest.fail("the server did not start: " + "".join(seen))
        yield Server(process, url)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            if process.stderr is not None:
                process.stderr.close()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all builds of the session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The digits network, built with a short budget."""
    target = tmp_path_factory.mktemp("digits") / "digits.salver"
    build_digits(target, cache)
    return target


def build_digits(target: Path, cache: Path) -> None:
    """Build the digits network with a short budget."""
    done = salver(
        "build",
        DIGITS / "digits.onnx",
        "--data",
        DIGITS / "val.npz",
        "--labels",
        DIGITS / "labels.txt",
        "--max-drop",
        "1pp",
        "--budget",
        "60s",
        "--cache",
        cache,
        "-o",
        target,
    )
    assert done.returncode == 0, done.stderr
