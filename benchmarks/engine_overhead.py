"""What the engine adds to a request, against a bare loop that does the same arithmetic with no checks.

    python benchmarks/engine_overhead.py [--requests 200000] [--concurrency 32]

A 64-64-32-10 network, one row a request, all requests in one process: no sockets, no encoding. Both sides run in turns
in the same process, so that the ratio holds on a noisy machine; absolute figures do not. `engine` is everything between
a decoded request and its answer, metrics included; `bare` merges rows, runs the session and splits rows.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import networks
import numpy as np

from salver.backends import find_backend
from salver.backends.base import Session
from salver.bundle import Bundle
from salver.core.model import Blob, Model
from salver.server._loop import new_event_loop
from salver.server.engine.base import InferRequest, Timing
from salver.server.engine.engine import RealTimeEngine
from salver.server.engine.loading import load
from salver.server.engine.served import LoadedModel
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import RunSettings

ROUNDS = 7


def make_model(folder: Path) -> Model:
    path = folder / "mlp.onnx"
    networks.mlp(path)
    blob = Blob.of(path)
    return Model(format="onnx", signature=find_backend("onnx").describe(blob), blobs=(blob,))


def run_bare(session: Session, row: Any, count: int, concurrency: int) -> float:
    answers = 0
    started = time.process_time()
    for _ in range(count // concurrency):
        batch = [row] * concurrency
        (merged,) = session.run({"x": np.concatenate(batch)}).values()
        answers += len([merged[i : i + 1] for i in range(concurrency)])
    spent = time.process_time() - started
    assert answers == count
    return spent / count


async def run_engine(engine: RealTimeEngine, model: LoadedModel, row: Any, count: int, concurrency: int) -> float:
    finished = asyncio.get_running_loop().create_future()
    sent = answered = 0

    def send() -> None:
        nonlocal sent
        sent += 1
        started = time.perf_counter()

        def done(_result: Any, timing: Timing | None) -> None:
            nonlocal answered
            answered += 1
            engine.metrics.record(model, "OK", timing, time.perf_counter() - started, 0.0)
            if answered == count:
                finished.set_result(None)
            elif sent < count:
                send()

        engine.submit(engine.find("mlp"), InferRequest({"x": row}, 1, done))

    started = time.process_time()
    for _ in range(concurrency):
        send()
    await finished
    return (time.process_time() - started) / count


async def measure(count: int, concurrency: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = RunSettings(max_batch=concurrency)
        loaded = load(Bundle.wrap(make_model(Path(folder)), "mlp", "a benchmark"), settings)
        engine = RealTimeEngine(Metrics())
        model = engine.add("mlp", "1")
        model.open(loaded.session, settings, merge=loaded.merge, cost=loaded.cost, inline=loaded.inline)
        row = np.random.default_rng(0).random((1, 64)).astype(np.float32)
        bare, ours = [], []
        for _ in range(ROUNDS):
            bare.append(run_bare(loaded.session, row, count // ROUNDS // concurrency * concurrency, concurrency))
            ours.append(await run_engine(engine, model, row, count // ROUNDS, concurrency))
        record = engine.metrics.of(model)
        share = record.inline_batches / record.batch_rows.count
        ratio = statistics.median(o / b for o, b in zip(ours, bare, strict=True))
        print(f"CPU per request at concurrency {concurrency}, median (best) of {ROUNDS} rounds:")
        print(f"  bare    {statistics.median(bare) * 1e6:6.2f} us ({min(bare) * 1e6:.2f})")
        print(
            f"  engine  {statistics.median(ours) * 1e6:6.2f} us ({min(ours) * 1e6:.2f}), {share:.0%} of batches inline"
        )
        print(f"  engine adds {(min(ours) - min(bare)) * 1e6:.2f} us at best; ratio {ratio:.2f}")
        engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--concurrency", type=int, default=32)
    options = parser.parse_args()
    loop = new_event_loop()
    loop.run_until_complete(measure(options.requests, options.concurrency))
    loop.close()


if __name__ == "__main__":
    main()
