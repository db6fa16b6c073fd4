"""What a request waits where there is no other: Salver with batching on, beside peers with batching off.

    python benchmarks/latency.py [--networks mlp,minilm] [--rounds 5] [--requests 2000] [--servers salver,fastapi,...]

All servers are started, each pinned to the same core, and seen to give ONNX Runtime's answer; the load is on another
core. In each round each server in turn is asked on each wire it speaks, one row a request, one request after another.
The figures are over all rounds. Peers are told nothing of batches; Salver runs as `salver serve` does.
Linux with two cores or more; environments of peers are made from PyPI below build/peers when first needed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import environments
import networks
import numpy as np
import servers
from environments import Command
from servers import Place

from salver.client.load import LoadPlan, measure
from salver.client.load.plan import percentiles

WIRES = {"json": "JSON", "rest": "binary", "grpc": "gRPC"}


class Server(NamedTuple):
    """A server of the comparison."""

    says: str
    wires: tuple[str, ...]
    command: Callable[[Place], Command]
    environment: str = ""


SERVERS = {
    "salver": Server("Salver, batching on", ("json", "rest", "grpc"), servers.salver),
    "triton": Server("Triton, Python backend", ("json", "rest", "grpc"), servers.triton, "triton"),
    "fastapi": Server("FastAPI tuned by hand", ("json", "rest"), servers.fastapi, "fastapi"),
    "grpc.aio": Server("a handler of grpc.aio", ("grpc",), servers.grpc_aio),
    "mlserver": Server("MLServer", ("json", "grpc"), servers.mlserver, "mlserver"),
    "bentoml": Server("BentoML", ("json",), servers.bentoml, "bentoml"),
}
Found = dict[str, dict[str, list[np.ndarray]]]


def start(stack: ExitStack, name: str, path: Path, core: int) -> Place:
    """One of them, until the stack ends."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="latency-")))
    place = Place(folder, path, "network", environments.free_port(), environments.free_port())
    process = stack.enter_context(servers.running(SERVERS[name].command(place), place, core))
    servers.wait_until_right(place, process, grpc="json" not in SERVERS[name].wires)
    return place


def ask(place: Place, wire: str, count: int) -> np.ndarray:
    """Seconds that each of so many requests took."""
    url = f"grpc://127.0.0.1:{place.grpc}" if wire == "grpc" else f"http://127.0.0.1:{place.http}"
    result, samples = measure(
        LoadPlan(
            url=url,
            model=place.name,
            wire=wire,
            concurrency=1,
            duration_s=0.0,
            warmup_s=0.0,
            max_requests=count,
            inputs=servers.examples(place.model),
            patience_s=60.0,
        )
    )
    if result.failed:
        sys.exit(f"{url}: {result.outcomes}")
    return samples.latency_s


def measure_network(name: str, folder: Path, told: argparse.Namespace) -> Found:
    """All rounds of one network."""
    path = networks.write(name, folder)
    found: Found = {server: {} for server in told.servers}
    count = -(-told.requests // told.rounds)
    with ExitStack() as stack:
        started = {server: start(stack, server, path, told.cores[0]) for server in told.servers}
        for round_ in range(told.rounds):
            for server, place in started.items():
                for wire in SERVERS[server].wires:
                    ask(place, wire, max(count // 10, 20))  # warm
                    found[server].setdefault(wire, []).append(ask(place, wire, count))
            print(f"{name}, round {round_ + 1} of {told.rounds}", file=sys.stderr)
    return found


def show(network: str, found: Found) -> None:
    """The table of one network; the best of each column is bold."""
    cells: dict[str, dict[str, tuple[float, float]]] = {}
    for server, by_wire in found.items():
        for wire, parts in by_wire.items():
            p50, p99 = percentiles(np.concatenate(parts), (0.5, 0.99)) * 1e3
            cells.setdefault(wire, {})[server] = (float(p50), float(p99))
    print(f"\n| {network}: p50 (p99), ms | " + " | ".join(WIRES.values()) + " |\n|---|" + "---|" * len(WIRES))
    for server in found:
        row = []
        for wire in WIRES:
            p50, p99 = cells.get(wire, {}).get(server, (None, None))
            best = p50 is not None and p50 == min(each for each, _ in cells[wire].values())
            row.append("" if p50 is None else f"{'**' * best}{_ms(p50)}{'**' * best} ({_ms(p99)})")
        print(f"| {SERVERS[server].says} | " + " | ".join(row) + " |", flush=True)


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def main() -> None:
    """Run the rounds, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="mlp,minilm", help="names, or paths of ONNX files with one input")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="of each cell, over all rounds")
    parser.add_argument("--servers", type=lambda text: text.split(","), default=list(SERVERS))
    parser.add_argument("--cores", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1])
    told = parser.parse_args()
    os.sched_setaffinity(0, {told.cores[1]})
    with tempfile.TemporaryDirectory(prefix="latency-") as folder:
        for name in told.networks.split(","):
            show(name, measure_network(name, Path(folder), told))
    made = {SERVERS[name].environment for name in told.servers} & set(environments.PACKAGES)
    print(f"\n{servers.versions(made)}.")


if __name__ == "__main__":
    main()
