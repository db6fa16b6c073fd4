"""Run a toolchain's converter: a process of its own, a typed contract, limits on time and memory."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from salver.builder.toolchains.environment import find, get
from salver.builder.toolchains.table import SCRIPTS
from salver.core.errors import DeadlineExceeded, FailedPrecondition, Internal, Unimplemented

TIMEOUT_S: Final = 900.0
MEMORY_BYTES: Final = 16 << 30
_SAID_BYTES: Final = 4096


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a converter is asked for.

    Args:
        script: the converter's file, which defines ``convert``.
        source, output: files.
        memory_bytes: the most that the process may allocate.
    """

    script: str
    source: str
    output: str
    memory_bytes: int


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """What a converter answers: versions of what took part, or why it failed."""

    versions: dict[str, str] = {}
    error: str = ""


def convert(
    name: str, source: Path, output: Path, *, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES
) -> dict[str, str]:
    """Convert a file by a toolchain that is installed.

    Returns:
        Library -> version, of those that took part.

    Raises:
        UnknownName: there is no such toolchain.
        FailedPrecondition: it is not installed, naming the command; or the converter's process died.
        Unimplemented: the converter refuses the model, with its reason.
        DeadlineExceeded: it took longer than ``timeout_s``.
        Internal: it wrote nothing.
    """
    toolchain, installed = get(name), find(name)
    if installed is None:
        raise FailedPrecondition(f"toolchain '{name}' is not installed: salver toolchain install {name}")
    with tempfile.TemporaryDirectory(prefix="salver-toolchain-") as scratch:
        asked, answered, said = (Path(scratch) / file for file in ("request.json", "response.json", "said"))
        request = Request(
            script=str(toolchain.script), source=str(source), output=str(output), memory_bytes=memory_bytes
        )
        asked.write_bytes(msgspec.json.encode(request))
        command = [str(installed.python), "-I", str(SCRIPTS / "harness.py"), str(asked), str(answered)]
        code = _run(name, command, Path(scratch), said, timeout_s)
        response = _read(name, answered, said, code)
    if response.error:
        raise Unimplemented(f"toolchain '{name}' cannot convert '{source.name}': {response.error}")
    if not output.is_file() or not output.stat().st_size:
        raise Internal(f"toolchain '{name}' says that it converted '{source.name}', and wrote nothing")
    return response.versions


def _run(name: str, command: list[str], folder: Path, said: Path, timeout_s: float) -> int:
    """Run in a process group of its own, which is killed as a whole when its time is up or we are interrupted."""
    environ = {"PATH": os.environ.get("PATH", ""), "HOME": str(folder), "TMPDIR": str(folder), "LC_ALL": "C.UTF-8"}
    with said.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise DeadlineExceeded(f"toolchain '{name}' was stopped: it took longer than {timeout_s:g} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _read(name: str, answered: Path, said: Path, code: int) -> Response:
    try:
        return msgspec.json.decode(answered.read_bytes(), type=Response)
    except (OSError, msgspec.DecodeError):
        last = said.read_bytes()[-_SAID_BYTES:].decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise FailedPrecondition(f"toolchain '{name}' {how} and gave no answer; it said: {last[-1][:500]}") from None
