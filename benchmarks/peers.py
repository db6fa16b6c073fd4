"""What a request costs Salver and its peers, in one run.

    python benchmarks/peers.py [--rounds 5] [--seconds 2] [--peers salver,fastapi,...] [--with mlserver]

A small network (64-64-32-10), one row a request, 32 requests in flight over real sockets. In each round each server in
turn is started, asked until it gives ONNX Runtime's answer (cold start), checked and loaded on each wire it speaks, and
ended. The cost is CPU time of all processes of the server per request (user and system, from /proc), which does not
depend on what else the machine does as times do; memory is the proportional set size after the load. Medians over
rounds. Peers run the same file in ONNX Runtime with one thread, their metrics off; Salver runs as `salver serve` does,
everything on. Environments of peers are made from PyPI below build/peers when first needed.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import environments
import grpc
import load
import networks
import numpy as np
import onnxruntime as ort
from environments import Command, Process
from load import ROW, WIRES, Load, NoAnswer

from salver import __version__

HERE = Path(__file__).resolve().parent
START_LIMIT_S = 120.0
WARM_S = 0.5
TRITON = """
name: "mlp" backend: "python" max_batch_size: 32
input [{ name: "x" data_type: TYPE_FP32 dims: [64] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [10] }]
instance_group [{ count: 1 kind: KIND_CPU }]
"""


class Place(NamedTuple):
    """Where a server is set up."""

    folder: Path
    model: Path
    http: int
    grpc: int


class Peer(NamedTuple):
    """A server of the comparison."""

    says: str
    wires: tuple[str, ...]
    command: Callable[[Place], Command]
    environment: str = ""


def salver(place: Place) -> Command:
    line = [sys.executable, "-m", "salver", "serve", str(place.model), "--name", "mlp"]
    return Command([*line, "--http", f"127.0.0.1:{place.http}", "--grpc", f"127.0.0.1:{place.grpc}"], {})


def triton(place: Place, batching: str = "") -> Command:
    folder = place.folder / "models" / "mlp"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(TRITON + batching, encoding="utf-8")
    shutil.copy(HERE / "triton_peer.py", folder / "1" / "model.py")
    return environments.triton(place.folder, place.http, place.grpc)


def triton_batching(place: Place) -> Command:
    return triton(place, "dynamic_batching { max_queue_delay_microseconds: 2000 }\n")


def fastapi(place: Place) -> Command:
    line = [str(environments.peer("fastapi")), "-m", "uvicorn", "fastapi_peer:app", "--port", str(place.http)]
    return Command(
        [*line, *["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]], {}
    )


def grpc_aio(place: Place) -> Command:
    return Command([sys.executable, str(HERE / "grpc_peer.py"), str(place.grpc)], {})


def mlserver(place: Place) -> Command:
    settings = {"name": "mlp", "implementation": "mlserver_peer.Model"}
    (place.folder / "model-settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return environments.mlserver(place.folder, place.http, place.grpc)


ALL_WIRES = tuple(WIRES)
PEERS = {
    "salver": Peer("Salver", ALL_WIRES, salver),
    "triton": Peer("Triton, Python backend", ALL_WIRES, triton, "triton"),
    "triton-batching": Peer("Triton, Python backend, dynamic batching", ALL_WIRES, triton_batching, "triton"),
    "fastapi": Peer("FastAPI tuned by hand", ("JSON",), fastapi, "fastapi"),
    "grpc.aio": Peer("a handler of grpc.aio", ("gRPC",), grpc_aio),
    "mlserver": Peer("MLServer", ("JSON", "gRPC"), mlserver, "mlserver"),
}
EXTRA = ("mlserver",)
Found = dict[str, list[float]]


def first_answer(peer: Peer, place: Place, server: Process) -> tuple[Load, np.ndarray[Any, Any]]:
    """Ask until the server answers on its first wire."""
    end = time.monotonic() + START_LIMIT_S
    while True:
        attempt = None
        try:
            attempt = WIRES[peer.wires[0]](place.http, place.grpc)
            return attempt, attempt.ask()
        except (OSError, NoAnswer) as error:
            if attempt:
                attempt.close()
            if server.popen.poll() is not None or time.monotonic() > end:
                sys.exit(f"{peer.says} did not start: {error}\n{server.last_words()}")
            time.sleep(0.01)


def measure(peer: Peer, model: Path, expected: np.ndarray[Any, Any], seconds: float, found: Found) -> None:
    """One round of one server."""
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        place = Place(Path(folder), model, environments.free_port(), environments.free_port())
        command = peer.command(place)
        paths = [path for path in (str(HERE), command.variables.get("PYTHONPATH")) if path]
        command.variables.update(BENCH_MODEL=str(model), PYTHONPATH=":".join(paths))
        began = time.monotonic()
        with environments.running(command, Path(folder)) as server:
            connected, got = first_answer(peer, place, server)
            note(found, "cold start", time.monotonic() - began)
            for wire in peer.wires:
                if wire != peer.wires[0]:
                    connected = WIRES[wire](place.http, place.grpc)
                    got = connected.ask()
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5, err_msg=f"{peer.says}, {wire}")
                note(found, wire, load.cost_us(connected, server.popen.pid, seconds, WARM_S))
                connected.close()
            note(found, "memory", load.pss_mib(server.popen.pid))


def note(found: Found, what: str, figure: float) -> None:
    """Put down the figure of a round."""
    found.setdefault(what, []).append(figure)


def show(found: dict[str, Found]) -> None:
    """The table; a ratio is Salver's cost over the peer's."""
    columns = {wire: (f"{wire}, us", ".1f") for wire in ALL_WIRES}
    columns |= {"cold start": ("cold start, s", ".2f"), "memory": ("PSS, MiB", ".0f")}
    print("| peer | " + " | ".join(title for title, _ in columns.values()) + " |\n|---|" + "---|" * len(columns))
    ours = {what: statistics.median(figures) for what, figures in found.get("salver", {}).items()}
    for name, row in found.items():
        cells = []
        for what, (_, shape) in columns.items():
            cell = format(statistics.median(row[what]), shape) if what in row else ""
            if cell and ours and name != "salver":
                cell += f" ({ours[what] / statistics.median(row[what]):.3f})"
            cells.append(cell)
        print(f"| {PEERS[name].says} | " + " | ".join(cells) + " |")
    if ours:
        print("\nIn brackets: what Salver needs over what the peer needs.")
    here = [f"salver {__version__}", f"grpcio {grpc.__version__}", f"onnxruntime {ort.__version__}"]
    made = {PEERS[name].environment for name in found} & set(environments.PACKAGES)
    print("\n" + "; ".join([", ".join(here), *(environments.version(name) for name in sorted(made))]))


def main() -> None:
    """Run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load on each wire, in each round")
    parser.add_argument(
        "--peers", default=",".join(name for name in PEERS if name not in EXTRA), help="instead of these"
    )
    parser.add_argument("--with", dest="extra", default="", help=f"more of them: {', '.join(EXTRA)}")
    options = parser.parse_args()
    names = [name for name in f"{options.peers},{options.extra}".split(",") if name]
    unknown = set(names) - set(PEERS)
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    found: dict[str, Found] = {name: {} for name in names}
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        model = Path(folder) / "mlp.onnx"
        networks.mlp(model)
        expected = ort.InferenceSession(model).run(None, {"x": ROW})[0].ravel()
        for round_ in range(options.rounds):
            for name in names:
                print(f"round {round_ + 1} of {options.rounds}: {PEERS[name].says}", file=sys.stderr)
                measure(PEERS[name], model, expected, options.seconds, found[name])
    show(found)


if __name__ == "__main__":
    main()
