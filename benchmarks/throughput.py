"""What a server on one core gets out of it, against a bare loop over the runtime on the same core in the same run.

    python benchmarks/throughput.py [--networks minilm,resnet50] [--rounds 5] [--requests 2000]

`salver serve` with one worker's defaults is pinned to one core, the load to the other. The loop runs the same file in
ONNX Runtime with the same options, with no server around it, at batches of 1 to 32; the best of them is the batch size
that the server is given. Loop and server then take turns: the loop for some seconds, the server with four times that
many requests in flight, each of one row, as the binary extension of the Open Inference Protocol. The ratio of a round
is that of rows per second; p50 and p99 are over all requests of the server.
Linux with two cores or more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import environments
import networks
import numpy as np
import onnxruntime as ort
from environments import Command
from servers import TOKENS_MAX

from salver.client.load import LoadPlan, measure
from salver.client.load.plan import percentiles

BATCHES = (1, 2, 4, 8, 16, 32)
FIND_S = 3.0  # for each batch size
LOOP_S = 5.0  # in each round


def loop(path: str) -> None:
    """In a process of its own: reads `batch seconds` lines, answers with rows per second."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    rng = np.random.default_rng(0)
    for line in sys.stdin:
        batch, seconds = int(line.split()[0]), float(line.split()[1])
        shape = [batch, *given.shape[1:]]
        whole = "int" in given.type
        x = rng.integers(0, TOKENS_MAX, shape) if whole else rng.standard_normal(shape).astype(np.float32)
        session.run(None, {given.name: x})
        runs, began = 0, time.perf_counter()
        while time.perf_counter() < began + seconds:
            session.run(None, {given.name: x})
            runs += 1
        print(runs * batch / (time.perf_counter() - began), flush=True)


class Loop:
    """That process, pinned."""

    def __init__(self, path: Path, core: int) -> None:
        line = ["taskset", "-c", str(core), sys.executable, __file__, "--loop", str(path)]
        self.popen = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def rows_per_s(self, batch: int, seconds: float) -> float:
        """Run for a while."""
        assert self.popen.stdin
        assert self.popen.stdout
        self.popen.stdin.write(f"{batch} {seconds}\n")
        self.popen.stdin.flush()
        return float(self.popen.stdout.readline())

    def close(self) -> None:
        """End it."""
        self.popen.kill()
        self.popen.wait()


def measure_network(name: str, folder: Path, told: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one network."""
    path = networks.write(name, folder)
    port = environments.free_port()
    with ExitStack() as stack:
        bare = Loop(path, told.cores[0])
        stack.callback(bare.close)
        found = {batch: bare.rows_per_s(batch, FIND_S) for batch in BATCHES}
        best = max(found, key=lambda batch: found[batch])
        line = ["taskset", "-c", str(told.cores[0]), sys.executable, "-m", "salver", "serve", str(path)]
        line += ["--http", f"127.0.0.1:{port}", "--max-batch", str(best), "--name", "network", "--max-body", "64MiB"]
        server = stack.enter_context(environments.running(Command(line, {}), folder))
        wait_until_ready(server, port)
        ratios, latencies = [], []
        # each round its share of the requests, at the pace that the loop showed
        seconds = max(told.requests / told.rounds / found[best], 3 * best / found[best]) + 1.0
        for round_ in range(told.rounds):
            alone = bare.rows_per_s(best, LOOP_S)
            result, samples = measure(
                LoadPlan(
                    url=f"http://127.0.0.1:{port}",
                    model="network",
                    concurrency=4 * best,
                    duration_s=seconds + 2.0,
                    warmup_s=2.0,
                    int_range=(0, TOKENS_MAX),
                    patience_s=60.0,
                )
            )
            after = bare.rows_per_s(best, LOOP_S)
            if result.failed or not result.ok:
                sys.exit(f"{name}: {result.outcomes} {result}\n{server.last_words()}")
            ratios.append(result.throughput_per_s / ((alone + after) / 2))
            latencies.append(samples.latency_s[samples.is_ok & (samples.due_s >= 2.0)])
            print(f"{name}, round {round_ + 1}: {ratios[-1]:.3f} of the loop's {alone:.1f} rows/s", file=sys.stderr)
        every = np.concatenate(latencies)
        p50, p99 = percentiles(every, (0.5, 0.99)) * 1e3
    return {"batch": best, "loop": found[best], "ratios": ratios, "requests": len(every), "p50": p50, "p99": p99}


def wait_until_ready(server: environments.Process, port: int) -> None:
    """Until the line that says so."""
    end = time.monotonic() + 60
    while "ready on" not in server.last_words():
        if server.popen.poll() is not None or time.monotonic() > end:
            sys.exit(f"the server did not start on port {port}: {server.last_words()}")
        time.sleep(0.02)


def main() -> None:
    """Run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="minilm,resnet50", help="names, or paths of ONNX files with one input")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="of each network, over all rounds")
    parser.add_argument("--cores", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1])
    parser.add_argument("--loop", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.loop:
        loop(told.loop)
        return
    os.sched_setaffinity(0, {told.cores[1]})
    print("| network | best batch | loop, rows/s | server / loop, median (range) | requests | p50, ms | p99, ms |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        for name in told.networks.split(","):
            found = measure_network(name, Path(folder), told)
            ratios = found["ratios"]
            spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
            cells = [name, found["batch"], f"{found['loop']:.1f}", spread, found["requests"]]
            cells += [f"{found['p50']:.0f}", f"{found['p99']:.0f}"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
