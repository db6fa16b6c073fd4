"""Runs one trial in a process of its own: a crash, a hang or a memory blow-up costs that trial and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from salver.builder.search.trial import TrialResult, TrialSpec, read_result, write_spec
from salver.core.errors import Cancelled

_STDERR_TAIL_BYTES: Final = 4000


def run_isolated(spec: TrialSpec, timeout_s: float) -> TrialResult:
    """Run a trial to its end.

    A trial that fails for any reason gives a result that says so; only the user's Ctrl-C raises.

    Raises:
        KeyboardInterrupt: the user interrupted; the process is gone when this is raised.
        Cancelled: the interpreter cannot be started at all.
    """
    folder = Path(spec.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    spec_path = folder / "spec.json"
    result_path = folder / "result.json"
    result_path.unlink(missing_ok=True)
    write_spec(spec, spec_path)
    # The trial inherits the caller's import path, so that plug-ins and module:function metrics are found there too.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "salver.builder.search.trial", str(spec_path), str(result_path)]
    with (folder / "stderr.txt").open("wb") as stderr:
        try:
            # A session of its own: Ctrl-C in a terminal reaches us, not the trial, so what it has done can be kept.
            process = subprocess.Popen(command, stdout=stderr, stderr=stderr, env=env, start_new_session=True)
        except OSError as error:
            raise Cancelled(f"cannot start a trial process: {error}") from error
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            _kill(process)
            return TrialResult.failed(f"did not finish within {timeout_s:.0f} s and was stopped")
        except BaseException:
            _kill(process)
            raise
    if code == 0 and result_path.is_file():
        return read_result(result_path.read_bytes())
    return TrialResult.failed(_explain(code, folder / "stderr.txt"))


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _explain(code: int, stderr: Path) -> str:
    tail = stderr.read_bytes()[-_STDERR_TAIL_BYTES:].decode(errors="replace").strip()
    last = tail.splitlines()[-1][:300] if tail else ""
    if "MemoryError" in tail or "bad_alloc" in tail or "bad allocation" in tail:
        return f"ran out of memory: {last}"
    if code == -signal.SIGKILL:
        return "was killed by the system, most likely because memory ran out"
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})" + (f": {last}" if last else "")
    return f"ended with exit code {code}" + (f": {last}" if last else "")
