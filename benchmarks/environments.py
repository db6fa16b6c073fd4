"""Environments from PyPI for the servers and clients that Salver is compared with, and their servers as processes.

An environment is a folder below `build`, made when it is first needed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "build" / "peers"
_RUNTIME = f"onnxruntime=={installed_version('onnxruntime')}"  # peers run what we run
# uvloop: with a newer one MLServer 1.7.1 does not start its workers. numpy: Triton's stub was made for numpy 1.
PACKAGES = {
    "triton": ("nvidia-pytriton", "numpy<2", _RUNTIME),
    "mlserver": ("mlserver", "uvloop<0.22", _RUNTIME),
    "fastapi": ("fastapi", "uvicorn[standard]", "orjson", _RUNTIME),
    "bentoml": ("bentoml", _RUNTIME),
}


def environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """The interpreter of a virtual environment with these packages, made or completed where it is not there."""
    python, complete, wanted = folder / "bin" / "python", folder / "complete", "\n".join(packages)
    if not complete.exists() or complete.read_text(encoding="utf-8") != wanted:
        print(f"making {folder.relative_to(ROOT)} with {' '.join(packages)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        complete.write_text(wanted, encoding="utf-8")
    return python


def peer(name: str) -> Path:
    """The interpreter of a peer's environment."""
    return environment(PEERS / name, PACKAGES[name])


def version(name: str) -> str:
    """A peer's first package with its version, and that of its ONNX Runtime."""
    paths = [str(path) for path in (PEERS / name / "lib").glob("python*/site-packages")]
    wanted = (PACKAGES[name][0].partition("[")[0], "onnxruntime")
    return ", ".join(
        f"{found.name} {found.version}" for each in wanted for found in distributions(name=each, path=paths)
    )


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Command(NamedTuple):
    """How to start a server, and what to add to its environment variables."""

    line: list[str]
    variables: dict[str, str]


class Process(NamedTuple):
    """A server that was started, and the file of what it says."""

    popen: subprocess.Popen[bytes]
    said: Path

    def last_words(self) -> str:
        """The end of what it said."""
        return self.said.read_text(errors="replace")[-3000:]


@contextmanager
def running(command: Command, folder: Path) -> Iterator[Process]:
    """A server in this folder until the block ends."""
    said = folder / "said"
    with said.open("wb") as log:
        variables = os.environ | command.variables
        popen = subprocess.Popen(command.line, cwd=folder, env=variables, stdout=log, stderr=log)
    try:
        yield Process(popen, said)
    finally:
        popen.send_signal(signal.SIGTERM)
        try:
            popen.wait(30)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def triton(folder: Path, http: int, grpc: int) -> Command:
    """Triton's own binary, with the Python backend that nvidia-pytriton brings, over `folder/models`."""
    python = peer("triton")
    [site] = (PEERS / "triton" / "lib").glob("python*/site-packages")
    binaries = site / "pytriton" / "tritonserver"
    shutil.copytree(binaries / "backends" / "python", folder / "backends" / "python")
    stub = binaries / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}"
    shutil.copy(stub / "triton_python_backend_stub", folder / "backends" / "python")
    line = [str(binaries / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}"]
    line += [f"--backend-directory={folder / 'backends'}", f"--http-port={http}", f"--grpc-port={grpc}"]
    line += ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--allow-metrics=false"]
    line += ["--model-control-mode=explicit", "--load-model=*"]
    library = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return Command(line, {"PYTHONPATH": str(site), "LD_LIBRARY_PATH": f"{library}:{site / 'nvidia_pytriton.libs'}"})


def mlserver(folder: Path, http: int, grpc: int, workers: int = 0) -> Command:
    """MLServer over the models in the folder, its message limit raised to what the suite sends. Without workers it is
    one process."""
    peer("mlserver")
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_endpoint": None}
    settings |= {"parallel_workers": workers, "debug": False, "grpc_max_message_length": 1 << 27}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return Command([str(PEERS / "mlserver" / "bin" / "mlserver"), "start", "."], {"PYTHONPATH": "."})
