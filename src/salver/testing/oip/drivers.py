"""The clients that the suite drives: what each can do, and its process."""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from salver.testing.oip.case import Answer, Call
from salver.testing.oip.samples import DATATYPES

_SCRIPTS: Final = Path(__file__).with_name("clients")
_START_S: Final = 60.0
_CALL_S: Final = 15.0
NO_ANSWER: Final = "NoAnswer"
_MISSING: Final = re.compile(r"(?:ModuleNotFoundError|ImportError): (.*)")


class Unavailable(Exception):
    """A client that cannot be driven: not installed where it was looked for, or it does not start."""


class Client(msgspec.Struct, frozen=True):
    """A client that the suite knows.

    Args:
        protocol: ``http`` or ``grpc``.
        script: in `clients/`, with its arguments.
        can: what cases may want of it.
        native: what the encoding ``native`` of a call means to it.
        needs: packages to install for it.
        tls: whether it can speak TLS at all.
    """

    name: str
    protocol: str
    script: tuple[str, ...]
    can: frozenset[str]
    native: str = ""
    needs: tuple[str, ...] = ()
    tls: bool = True


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A server under test.

    Args:
        http: URL of its REST endpoint, empty for none.
        grpc: host and port of its gRPC endpoint, empty for none.
        ca: file of the certificate that signed the server's; TLS is spoken where it is given.
        cert, key: the client's certificate and its key, where the server wants them.
        headers: sent with every request, such as an API key.
    """

    http: str = ""
    grpc: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    headers: dict[str, str] = {}

    def has(self, protocol: str) -> bool:
        """Whether it speaks ``http`` or ``grpc``."""
        return bool(self.http if protocol == "http" else self.grpc)


_ALL: Final = frozenset(DATATYPES)
_SERVICE: Final = frozenset({"health", "metadata", "version", "repository", "statistics", "configuration"})
_TRITON: Final = _SERVICE | _ALL | {"infer", "classes", "large", "reserved", "compression"}
_HTTP: Final = frozenset({"json", "binary", "json-binary", "binary-json"})
_PIP_TRITON: Final = ("tritonclient[http,grpc]>=2.60",)
# Their protobuf is newer than the bound of the extra `grpc` of tritonclient, whose messages are wanted all the same.
_PIP_GRPC: Final = (
    "grpcio>=1.81",
    "grpcio-health-checking>=1.81",
    "grpcio-reflection>=1.81",
    "tritonclient[http]>=2.73",
    "packaging",
)

CLIENTS: Final[tuple[Client, ...]] = (
    Client("plain-http", "http", ("plain_http.py",), frozenset({"bytes"})),
    Client("tritonclient.http", "http", ("tritonclient_http.py",), _TRITON | _HTTP, "binary", _PIP_TRITON),
    Client("tritonclient.http.aio", "http", ("tritonclient_http.py", "aio"), _TRITON | _HTTP, "binary", _PIP_TRITON),
    Client(
        "kserve.http",
        "http",
        ("kserve_http.py",),
        (_ALL - {"BF16"}) | {"infer", "health", "json", "binary", "kserve-v1"},
        "json",
        ("kserve>=0.13",),
    ),
    Client(
        "ovmsclient.http",
        "http",
        ("ovmsclient_tfs.py", "http"),
        frozenset({"tfs-http"}),
        "",
        ("ovmsclient",),
        tls=False,
    ),
    Client(
        "tritonclient.grpc",
        "grpc",
        ("tritonclient_grpc.py",),
        _TRITON | {"raw", "stream", "final"},
        "raw",
        _PIP_TRITON,
    ),
    Client(
        "tritonclient.grpc.aio",
        "grpc",
        ("tritonclient_grpc.py", "aio"),
        _TRITON | {"raw", "stream", "final"},
        "raw",
        _PIP_TRITON,
    ),
    Client(
        "kserve.grpc",
        "grpc",
        ("kserve_grpc.py",),
        (_ALL - {"BF16"}) | {"infer", "health", "raw", "typed", "version"},
        "raw",
        ("kserve>=0.13",),
    ),
    Client(
        "grpcio",
        "grpc",
        ("grpcio_stub.py",),
        _ALL | {"infer", "raw", "typed", "version", "classes", "stub", "large", "stream"},
        "raw",
        _PIP_GRPC,
    ),
    Client("ovmsclient.grpc", "grpc", ("ovmsclient_tfs.py",), frozenset({"tfs-grpc"}), "", ("ovmsclient",)),
)


class Driver:
    """The process of one client against one server.

    Args:
        python: the interpreter that has the client.

    Raises:
        Unavailable: the client is not installed there, or cannot connect in its own words.
    """

    def __init__(self, client: Client, target: Target, python: str = sys.executable) -> None:
        self._client = client
        self._target = target
        self._python = python
        self._start()

    def _start(self) -> None:
        script, *arguments = self._client.script
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        try:
            self._process = subprocess.Popen(
                [self._python, "-W", "ignore", str(_SCRIPTS / script), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
            )
        except OSError as error:
            raise Unavailable(f"{self._python} does not run: {error}") from None
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._said: list[bytes] = []
        self._readers = [
            threading.Thread(target=_read, args=(self._process.stdout, self._lines.put), daemon=True),
            threading.Thread(target=_read, args=(self._process.stderr, self._said.append), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        try:
            self.version = str(self._exchange(msgspec.structs.asdict(self._target), _START_S)["version"])
        except Unavailable:
            self.close()
            text = b"".join(self._said).decode(errors="replace")
            missing = _MISSING.search(text)
            if missing:
                wanted = " ".join(self._client.needs) or "numpy"
                raise Unavailable(f"not installed ({missing.group(1).strip()}): it needs {wanted}") from None
            raise Unavailable(f"does not start: {text[-400:].strip()}") from None

    def call(self, call: Call) -> Answer:
        """Make one call. A client that hangs or dies is an answer too, and is started again."""
        arguments = call.arguments
        if arguments.get("encoding") == "native":
            arguments = {**arguments, "encoding": self._client.native}
        try:
            data = self._exchange({"op": call.op, "arguments": arguments}, _CALL_S)
        except Unavailable as error:
            self.close()
            with suppress(Unavailable):  # where it starts no more, the next calls get no answer either
                self._start()
            return Answer(error=NO_ANSWER, message=str(error))
        return msgspec.convert(data, Answer)

    def _exchange(self, message: Mapping[str, Any], timeout_s: float) -> Any:
        stdin = self._process.stdin
        try:
            if stdin is None:
                raise BrokenPipeError
            stdin.write(json.dumps(message).encode() + b"\n")
            stdin.flush()
            line = self._lines.get(timeout=timeout_s)
        except (BrokenPipeError, ValueError, queue.Empty):  # ValueError: the pipe is closed
            raise Unavailable(f"no answer within {timeout_s:.0f} s") from None
        if not line:
            raise Unavailable("the client's process ended")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(5)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(stream: Any, take: Any) -> None:
    for line in stream:
        take(line)
    take(b"")
