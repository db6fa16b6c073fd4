"""A model in a process of its own, behind a `Session`: what ends that process is an error here.

Where a file from anywhere is judged, its framework may end the process: LiteRT does so for scales that its kernels
cannot take. The two processes exchange msgpack, each message after its length, over the child's standard streams.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import numpy as np

from salver.backends import find_backend, open_session, runs_apart
from salver.backends.base import Session, SessionOptions
from salver.core.arrays import Array
from salver.core.errors import Code, CorruptArtifact, DeadlineExceeded, FailedPrecondition, SalverError, error_of
from salver.core.model import Blob, Model
from salver.core.tensors import Signature

LIMIT_S: Final = 900.0
_FATAL: Final = frozenset({"tflite"})
_SAID_BYTES: Final = 4096
_LENGTH: Final = struct.Struct("<Q")


class _Packed(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    content: bytes | list[str]


class _Opening(msgspec.Struct, frozen=True, kw_only=True):
    format: str
    blobs: tuple[Blob, ...]
    signature: Signature | None
    trusted: bool
    options: SessionOptions


class _Call(msgspec.Struct, frozen=True, kw_only=True):
    inputs: dict[str, _Packed]
    outputs: tuple[str, ...] | None


class _Reply(msgspec.Struct, frozen=True, kw_only=True):
    signature: Signature | None = None
    outputs: dict[str, _Packed] = {}
    cpu_ns: int = 0
    error: Code | None = None
    is_corrupt: bool = False
    message: str = ""


class ApartSession(Session):
    """A model that another process runs; that process ends when this is closed.

    Args:
        signature: None asks the backend (`Backend.describe`) before the model is loaded.
        limit_s: for loading it and for each run; whatever takes longer is taken for stuck, and stopped.
        own_group: whether signals to this process' group, such as Ctrl-C in the terminal, leave that process alone.

    Raises:
        CorruptArtifact: the process ended while it loaded the model.
        DeadlineExceeded: it took longer than ``limit_s``.
        SalverError: as `Backend.load`.
    """

    def __init__(
        self,
        format: str,
        blobs: tuple[Blob, ...],
        signature: Signature | None,
        options: SessionOptions,
        trusted: bool,
        limit_s: float = LIMIT_S,
        *,
        own_group: bool = True,
    ) -> None:
        self._limit_s = limit_s
        self._name = blobs[0].name
        self._lock = threading.Lock()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the session
        # The child inherits the import path, so that plug-ins are found there too.
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environ,
            bufsize=0,
            process_group=0 if own_group else None,  # see `salver.server.processes.child`: not a session
        )
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
        opening = _Opening(format=format, blobs=blobs, signature=signature, trusted=trusted, options=options)
        try:
            found = self._ask(opening).signature
            if found is None:
                raise CorruptArtifact(f"'{self._name}' has no signature")
        except BaseException:
            self.close()
            raise
        self._signature = found

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        call = _Call(
            inputs={name: _pack(array) for name, array in inputs.items()},
            outputs=None if outputs is None else tuple(outputs),
        )
        reply = self._ask(call)
        self.elsewhere_ns += reply.cpu_ns
        return {name: _unpack(packed) for name, packed in reply.outputs.items()}

    def close(self) -> None:
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, self._said):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()

    def _ask(self, message: _Opening | _Call) -> _Reply:
        with self._lock:
            process = self._process
            if process is None or process.stdin is None or process.stdout is None:
                raise FailedPrecondition("the session is closed")
            end_s = time.monotonic() + self._limit_s
            try:
                _write(process.stdin.fileno(), _framed(message), end_s)
                content = _read_message(process.stdout.fileno(), end_s)
            except TimeoutError:
                process.kill()
                process.wait()
                raise self._stuck() from None
            except (BrokenPipeError, EOFError):
                raise self._ended(process.wait()) from None
        reply = msgspec.msgpack.decode(content, type=_Reply)
        if reply.error is not None:
            raise CorruptArtifact(reply.message) if reply.is_corrupt else error_of(reply.error, reply.message)
        return reply

    def _stuck(self) -> SalverError:
        return DeadlineExceeded(f"'{self._name}' was stopped: its framework gave no answer within {self._limit_s:g} s")

    def _ended(self, code: int) -> SalverError:
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - _SAID_BYTES))
        said = self._said.read().decode("utf-8", "replace").strip().splitlines()
        how = f"killed it ({signal.Signals(-code).name})" if code < 0 else f"ended it with code {code}"
        return CorruptArtifact(
            f"'{self._name}' ended the process that ran it: its framework {how}"
            + (f", saying: {said[-1][:300]}" if said else "")
            + ". The file is damaged, or holds numbers that its framework cannot take; convert it again, with other "
            "examples or in another precision"
        )


def _write(file: int, content: bytes, end_s: float) -> None:
    left = memoryview(content)
    while left:
        _await(file, select.POLLOUT, end_s)
        left = left[os.write(file, left) :]


def _read_message(file: int, end_s: float) -> bytearray:
    (length,) = _LENGTH.unpack(_read(file, _LENGTH.size, end_s))
    return _read(file, length, end_s)


def _read(file: int, count: int, end_s: float) -> bytearray:
    content = bytearray(count)
    left = memoryview(content)
    while left:
        _await(file, select.POLLIN, end_s)
        got = os.readv(file, [left])
        if not got:
            raise EOFError
        left = left[got:]
    return content


def _await(file: int, event: int, end_s: float) -> None:
    waiting = select.poll()
    waiting.register(file, event)
    if not waiting.poll(max(0.0, end_s - time.monotonic()) * 1e3):
        raise TimeoutError


def open_judged(model: Model, options: SessionOptions | None = None) -> Session:
    """Load a model of which nobody knows yet whether it runs: as `open_session`, in a process of its own where its
    framework would end this one.

    Raises:
        CorruptArtifact: it ended its process.
        SalverError: as `open_session`.
    """
    if model.format not in _FATAL:
        return open_session(model, options)
    return ApartSession(model.format, model.blobs, model.signature, options or SessionOptions(), model.trusted)


def open_as_served(model: Model, options: SessionOptions) -> Session:
    """Load a model where a server would run it: in this process, or, where its framework gets one of its own
    (`runs_apart`), in such a one, which ends with this process' group.

    Raises:
        CorruptArtifact: it ended its process.
        SalverError: as `open_session`.
    """
    if not runs_apart(model.format):
        return open_session(model, options)
    return ApartSession(model.format, model.blobs, model.signature, options, model.trusted, own_group=False)


def describe_judged(format: str, blob: Blob) -> Signature:
    """The signature of a bare file, told by a process of its own (`Backend.describe`).

    Raises:
        CorruptArtifact: it ended its process.
        SalverError: as `Backend.describe`.
    """
    with ApartSession(format, (blob,), None, SessionOptions(), trusted=False) as session:
        return session.signature


def _pack(array: Array) -> _Packed:
    if array.dtype == object:
        return _Packed("O", array.shape, [str(item) for item in array.reshape(-1)])
    return _Packed(array.dtype.name, array.shape, array.tobytes())


def _unpack(packed: _Packed) -> Array:
    if isinstance(packed.content, bytes):
        return np.frombuffer(bytearray(packed.content), np.dtype(packed.dtype)).reshape(packed.shape)
    made = np.empty(len(packed.content), dtype=object)
    made[:] = packed.content
    return made.reshape(packed.shape)


def _framed(message: msgspec.Struct) -> bytes:
    content = msgspec.msgpack.encode(message, enc_hook=str)  # paths
    return _LENGTH.pack(len(content)) + content


def _receive(stream: BinaryIO) -> bytes | None:
    """The next message; None when the other side is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    content = stream.read(length)
    return content if len(content) == length else None


def _path(kind: type, value: Any) -> Any:
    return Path(value) if kind is Path else value


def _serve(asked: BinaryIO, answers: BinaryIO) -> None:
    """The child: open one model, run it until nobody asks any more."""
    session: Session | None = None
    while (content := _receive(asked)) is not None:
        try:
            if session is None:
                session = _open(msgspec.msgpack.decode(content, type=_Opening, dec_hook=_path))
                reply = _Reply(signature=session.signature)
            else:
                began_ns = time.process_time_ns()
                call = msgspec.msgpack.decode(content, type=_Call)
                found = session.run({name: _unpack(packed) for name, packed in call.inputs.items()}, call.outputs)
                outputs = {name: _pack(array) for name, array in found.items()}
                reply = _Reply(outputs=outputs, cpu_ns=time.process_time_ns() - began_ns)
        except SalverError as error:
            reply = _Reply(error=error.code, is_corrupt=isinstance(error, CorruptArtifact), message=str(error))
        answers.write(_framed(reply))
        answers.flush()


def _open(opening: _Opening) -> Session:
    signature = opening.signature or find_backend(opening.format).describe(opening.blobs[0])
    model = Model(format=opening.format, signature=signature, blobs=opening.blobs, trusted=opening.trusted)
    return open_session(model, opening.options)


def _main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a framework prints is no answer
    _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    _main()
