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
import servers
from environments import Command, Process
from load import ROW, WIRES, Load, NoAnswer
from servers import Batching, Place

START_LIMIT_S = 120.0
WARM_S = 0.5


class Peer(NamedTuple):
    """A server of the comparison."""

    says: str
    wires: tuple[str, ...]
    command: Callable[[Place], Command]
    environment: str = ""


def triton_batching(place: Place) -> Command:
    return servers.triton(place, Batching(32, 1.0, wait_s=0.002))


ALL_WIRES = tuple(WIRES)
PEERS = {
    "salver": Peer("Salver", ALL_WIRES, servers.salver),
    "triton": Peer("Triton, Python backend", ALL_WIRES, servers.triton, "triton"),
    "triton-batching": Peer("Triton, Python backend, dynamic batching", ALL_WIRES, triton_batching, "triton"),
    "fastapi": Peer("FastAPI tuned by hand", ("JSON",), servers.fastapi, "fastapi"),
    "grpc.aio": Peer("a handler of grpc.aio", ("gRPC",), servers.grpc_aio),
    "mlserver": Peer("MLServer", ("JSON", "gRPC"), servers.mlserver, "mlserver"),
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
        place = Place(Path(folder), model, "mlp", environments.free_port(), environments.free_port())
        command = peer.command(place)
        began = time.monotonic()
        with servers.running(command, place) as server:
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
    made = {PEERS[name].environment for name in found} & set(environments.PACKAGES)
    print(f"\n{servers.versions(made)}; grpcio {grpc.__version__}")


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
