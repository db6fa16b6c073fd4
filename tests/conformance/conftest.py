"""`salver serve` as a process, with and without TLS, over the models of the conformance suite."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from salver.testing.certificates import Authority
from salver.testing.oip import Target, write_models

_START_S = 60
_READY = re.compile(r"^ready on (https?://[^\s,]+), grpc (\S+)")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oip-models")
    write_models(folder, "salver")
    return folder


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[str, str]]:
    """The REST URL and the gRPC address of a `salver serve` on free ports."""
    command = [sys.executable, "-m", "salver", "serve", *map(str, arguments), "--http", "127.0.0.1:0"]
    command += ["--grpc", "127.0.0.1:0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said: list[str] = []
    found: list[str] = []
    ready = threading.Event()

    def read() -> None:
        for line in process.stderr or ():
            said.append(line)
            match = _READY.search(line)
            if match:
                found.extend(match.groups())
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        if not ready.wait(_START_S) or not found:
            pytest.fail("the server did not start: " + "".join(said)[-2000:])
        yield found[0], found[1]
    finally:
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


@pytest.fixture(scope="session")
def plain_target(models: Path) -> Iterator[Target]:
    with serving(models) as (url, grpc):
        yield Target(http=url, grpc=grpc)


@pytest.fixture(scope="session")
def tls_target(models: Path, authority: Authority) -> Iterator[Target]:
    certificate, key = authority.issue("server")
    with serving(models, "--tls-cert", certificate, "--tls-key", key) as (url, grpc):
        yield Target(http=url, grpc=grpc, ca=str(authority.path))


@pytest.fixture(scope="session")
def mtls_target(models: Path, authority: Authority) -> Iterator[Target]:
    certificate, key = authority.issue("mtls-server")
    shown, held = map(str, authority.issue("client"))
    flags = ("--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", authority.path)
    with serving(models, *flags) as (url, grpc):
        yield Target(http=url, grpc=grpc, ca=str(authority.path), cert=shown, key=held)


@pytest.fixture(scope="session")
def keyed_target(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    command = [sys.executable, "-m", "salver", "keys", "--api", "suite", "--scopes", "infer,metadata", "-o", str(keys)]
    made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    with serving(models, "--api-keys", keys) as (url, grpc):
        yield Target(http=url, grpc=grpc, headers={"authorization": f"Bearer {made.stdout.strip()}"})
