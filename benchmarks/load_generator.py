"""What a request costs the load generator: `salver bench`'s against h2load.

    python benchmarks/load_generator.py [--seconds 3] [--rounds 5] [--server-core 0 --client-core 1]

One server over one small network, the two generators in turns, the same bytes, the same number of connections and of
requests in flight. CPU time is user and system time of the generator's thread (ours) or process (h2load), its share
of the kernel's network stack included. Needs `h2load` (Debian: nghttp2-client).
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import networks
from load import ROW

from salver.client.load import LoadPlan, run
from salver.client.load.requests import Requests, endpoint_of

CONCURRENCY = 32
GRPC_CONNECTIONS = 8
WARM_UP_S = 1


class Sample(NamedTuple):
    """Requests per second, and CPU time of the generator per request."""

    rate: float
    cpu_us: float


class Server(NamedTuple):
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    http: str
    grpc: str


def start(model: Path, core: int) -> Server:
    """Serve the model, on one core."""
    line = [sys.executable, "-m", "salver", "serve", str(model), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    os.sched_setaffinity(process.pid, {core})  # its threads, which are still to come, inherit it
    found: list[str] = []
    while len(found) < 2:
        said = process.stderr.readline()
        assert said, "the server did not start"
        found += re.findall(r"127\.0\.0\.1:\d+", said)
    return Server(process, found[0], found[1])


def plan_of(server: Server, wire: str, seconds: int) -> LoadPlan:
    is_grpc = wire == "grpc"
    return LoadPlan(
        url=f"grpc://{server.grpc}" if is_grpc else f"http://{server.http}",
        model="mlp",
        wire=wire,
        concurrency=CONCURRENCY,
        connections=GRPC_CONNECTIONS if is_grpc else CONCURRENCY,
        duration_s=seconds + WARM_UP_S,
        warmup_s=WARM_UP_S,
        inputs={"x": ROW},
        variants=1,
    )


def ours(server: Server, wire: str, seconds: int) -> Sample:
    result = run(plan_of(server, wire, seconds))
    assert result.failed == 0, result.outcomes
    return Sample(result.throughput_per_s, result.generator.cpu_us)


def h2load(server: Server, wire: str, seconds: int, folder: Path) -> Sample:
    plan = plan_of(server, wire, seconds)
    request = Requests(plan, endpoint_of(plan)).usual()[0]
    body, line = folder / "body", ["h2load", "-D", f"{seconds}s", "--warm-up-time", f"{WARM_UP_S}s"]
    if wire == "grpc":
        body.write_bytes(request.data)
        line += ["-c", str(GRPC_CONNECTIONS), "-m", str(CONCURRENCY // GRPC_CONNECTIONS)]
        line += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        url = f"http://{server.grpc}{request.path}"
    else:
        head, _, content = request.data.partition(b"\r\n\r\n")
        body.write_bytes(content)
        line += ["--h1", "-c", str(CONCURRENCY), "-m", "1"]
        for field in head.decode().split("\r\n")[2:]:
            if not field.startswith("content-length"):
                line += ["-H", field]
        url = f"http://{server.http}/v2/models/mlp/infer"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = subprocess.run([*line, "-d", str(body), url], stdout=subprocess.PIPE, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    rate = float(re.search(r"([\d.]+) req/s", said)[1])
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", said)
    assert int(counts[2]) == 0, said
    return Sample(rate, spent_s / (rate * (seconds + WARM_UP_S)) * 1e6)  # its warm-up runs at the same rate


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    options = parser.parse_args()
    assert shutil.which("h2load"), "h2load is not installed (Debian: nghttp2-client)"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        networks.mlp(folder / "mlp.onnx")
        server = start(folder / "mlp.onnx", options.server_core)
        os.sched_setaffinity(0, {options.client_core})
        try:
            print(f"{'wire':8} {'generator':13} {'req/s':>8} {'CPU a request':>14}")
            for wire in ("rest", "json", "grpc"):
                samples: dict[str, list[Sample]] = {"salver bench": [], "h2load": []}
                for _ in range(options.rounds):
                    samples["salver bench"].append(ours(server, wire, options.seconds))
                    samples["h2load"].append(h2load(server, wire, options.seconds, folder))
                for generator, found in samples.items():
                    rate, cpu_us = (statistics.median(values) for values in zip(*found, strict=True))
                    print(f"{wire:8} {generator:13} {rate:8.0f} {cpu_us:11.1f} us", flush=True)
        finally:
            server.process.terminate()
            server.process.wait()


if __name__ == "__main__":
    main()
