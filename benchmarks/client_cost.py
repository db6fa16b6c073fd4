"""What a request costs its client: ours against tritonclient, REST and gRPC, blocking.

    python benchmarks/client_cost.py [--calls 500] [--rounds 7]

One server, one row of 784 numbers a call. Clients take turns in one process, so that ratios hold on a noisy machine;
absolute figures do not. Also: the time and the memory that importing each client costs, in processes of their own.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tritonclient.grpc
import tritonclient.http

from salver.client import Client

DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "digits.onnx"
IMPORTS = {
    "salver, REST": "import salver.client",
    "tritonclient.http": "import tritonclient.http",
    "salver, gRPC": "import salver.client, salver.client.grpc, salver.client.http2",
    "tritonclient.grpc": "import tritonclient.grpc",
}


@contextmanager
def serving() -> Iterator[tuple[str, str]]:
    """A server in a process of its own, so that its CPU time is not the clients': its addresses for REST and gRPC."""
    command = [sys.executable, "-m", "salver", "serve", DIGITS, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            addresses: list[str] = []
            while len(addresses) < 2:
                line = process.stderr.readline()
                assert line, "the server did not start"
                addresses = re.findall(r"127\.0\.0\.1:\d+", line)
            yield addresses[0], addresses[1]
        finally:
            process.terminate()


def make_calls(http: str, grpc: str) -> dict[str, Callable[[], object]]:
    image = np.random.default_rng(0).random((1, 1, 28, 28), np.float32)
    rest, rpc = Client(f"http://{http}"), Client(f"grpc://{grpc}")
    triton_rest = tritonclient.http.InferenceServerClient(http)
    triton_grpc = tritonclient.grpc.InferenceServerClient(grpc)

    def ask_triton(module: object, client: object) -> object:
        given = module.InferInput("image", [1, 1, 28, 28], "FP32")
        given.set_data_from_numpy(image)
        return client.infer("digits", [given]).as_numpy("logits")

    return {
        "salver, REST": lambda: rest.infer("digits", {"image": image})["logits"],
        "tritonclient.http": lambda: ask_triton(tritonclient.http, triton_rest),
        "salver, gRPC": lambda: rpc.infer("digits", {"image": image})["logits"],
        "tritonclient.grpc": lambda: ask_triton(tritonclient.grpc, triton_grpc),
    }


def import_cost(code: str) -> tuple[float, float]:
    """Milliseconds and MiB that an import adds to an interpreter with numpy."""
    script = (
        "import numpy, resource, time\n"
        "rss = lambda: int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 2**20\n"
        f"m = rss(); t = time.process_time()\n{code}\nprint((time.process_time() - t) * 1e3, rss() - m)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True) for _ in range(5)
    ]
    ms, mib = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    return statistics.median(ms), statistics.median(mib)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with serving() as (http, grpc):
        calls = make_calls(http, grpc)
        costs: dict[str, list[float]] = {name: [] for name in calls}
        answers = [np.asarray(call()) for call in calls.values()]
        assert all(np.array_equal(answers[0], answer) for answer in answers)
        for _ in range(options.rounds):
            for name, call in calls.items():
                began = time.process_time()
                for _ in range(options.calls):
                    call()
                costs[name].append((time.process_time() - began) / options.calls * 1e6)
    print(f"{'client':20} {'CPU a call':>11} {'import':>9} {'memory':>9}")
    for name, rounds in costs.items():
        ms, mib = import_cost(IMPORTS[name])
        print(f"{name:20} {statistics.median(rounds):8.0f} us {ms:6.0f} ms {mib:5.1f} MiB")


if __name__ == "__main__":
    main()
