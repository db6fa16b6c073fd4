"""Whether the simulator foretells what a real server does: p50, p99 and goodput of replayed arrival traces.

    python benchmarks/plan_check.py [--model model.onnx] [--seconds 20] [--repetitions 5] [--slo 50ms] [-o folder]

A server of one worker runs on one core, the load generator on the others. The model and the event loop are measured as
`salver plan` measures them. Three traces (steady, busy, bursts) are each run several times against the real server and
once through the simulator; a prediction holds where it lies within the spread of the repetitions. Ends with 1 where one
does not. Without a model, a network of three layers is made up, of which batches are much cheaper than single rows.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from salver.client.load import LoadPlan, measure
from salver.core.quantities import parse_duration
from salver.core.traces import Arrival, read_trace, write_trace
from salver.server.engine.repository import open_model
from salver.server.planning import measure as measuring
from salver.server.planning.arrivals import draw
from salver.server.planning.scenario import (
    Fleet,
    Latency,
    OnOff,
    Poisson,
    Process,
    Scenario,
    SimulatedModel,
    Stream,
    Trace,
)
from salver.server.planning.simulator import simulate

SIZES = (256, 2048, 2048, 64)
MAX_BATCH = 32
READY = re.compile(r"ready on (http://[^\s,]+)")


class Figures(msgspec.Struct):
    """What is foretold and found."""

    p50_ms: float
    p99_ms: float
    goodput_per_s: float


def write_model(path: Path) -> None:
    """A network of three dense layers, `x` to `y`."""
    rng, nodes, weights, last = np.random.default_rng(0), [], [], "x"
    for i, (rows, columns) in enumerate(itertools.pairwise(SIZES), 1):
        weights.append(numpy_helper.from_array(rng.normal(0, rows**-0.5, (rows, columns)).astype(np.float32), f"w{i}"))
        ends = i == len(SIZES) - 1
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], ["y" if ends else f"m{i}"]))
        if not ends:
            nodes.append(helper.make_node("Relu", [f"m{i}"], [f"h{i}"]))
        last = f"h{i}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", SIZES[0]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", SIZES[-1]])
    graph = helper.make_graph(nodes, "dense", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@contextlib.contextmanager
def served(model: Path, slo_s: float, cores: Sequence[int], options: Sequence[str]) -> Iterator[str]:
    """A real server on some cores; its address."""
    command = [sys.executable, "-m", "salver", "serve", str(model), "--http", "127.0.0.1:0", *options]
    command += ["--slo", f"{slo_s * 1e3:g}ms"]
    others = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # which the server inherits
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        os.sched_setaffinity(0, others)
        try:
            lines = iter(server.stderr or ())
            found = next(match for line in lines if (match := READY.search(line)))
            yield found[1]
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=60)


def run_real(url: str, trace: tuple[Arrival, ...], slo_s: float) -> Figures:
    result, samples = measure(LoadPlan(url=url, trace=trace, duration_s=0.0, slo_s=slo_s))
    if result.generator.is_bottleneck:
        print(f"  the load generator was the bottleneck: {result.generator.why}")
    latencies = samples.latency_s[samples.is_ok]
    good = int((latencies <= slo_s).sum())
    p50, p99 = np.quantile(latencies, (0.5, 0.99))
    return Figures(float(p50 * 1e3), float(p99 * 1e3), good / trace[-1].at_s)


def foretell(path: Path, model: SimulatedModel, measured: measuring.Measured, slo_s: float) -> Figures:
    outcome = simulate(
        Scenario(
            name=path.stem,
            slo_s=slo_s,
            models={"model": model},
            streams=(Stream(model="model", arrivals=Trace(path=str(path))),),
            fleet=Fleet(workers=1, cores=1),
            overheads=measured.overheads,
        )
    )
    return Figures(outcome.p50_s * 1e3, outcome.p99_s * 1e3, outcome.good / outcome.seconds)


def capacity_per_s(measured: measuring.Measured, slo_s: float) -> float:
    """Requests per second on one core, in batches that take half of the objective at most."""
    latency, overheads = measured.latencies[1], measured.overheads
    each_s = overheads.decode_s + overheads.encode_s
    fitting = [rows for rows in range(1, MAX_BATCH + 1) if latency.usual_s(rows) <= slo_s / 2]
    return max(rows / (latency.usual_s(rows) + rows * each_s) for rows in fitting or [1])


def make_trace(process: Process, seconds: float, path: Path, seed: int) -> tuple[Arrival, ...]:
    latency = Latency(base_s=1.0)
    rate = process.mean_per_s if isinstance(process, Poisson | OnOff) else 1.0
    scenario = Scenario(
        name="trace",
        seed=seed,
        requests=max(1, round(rate * seconds)),
        models={"m": SimulatedModel(latency=latency)},
        streams=(Stream(model="m", arrivals=process),),
    )
    write_trace(path, (Arrival(at_s) for at_s in draw(scenario).at_s))
    return tuple(read_trace(path))


def show(name: str, foretold: Figures, found: list[Figures]) -> bool:
    """One line for each figure; whether all lie within the spread."""
    holds = True
    for field in Figures.__struct_fields__:
        values = sorted(getattr(figures, field) for figures in found)
        value = getattr(foretold, field)
        within = values[0] <= value <= values[-1]
        holds = holds and within
        off = value / values[len(values) // 2] - 1
        print(
            f"{name:10} {field:14} foretold {value:9.2f}   found {values[0]:9.2f} ... {values[-1]:9.2f}   "
            f"{'within' if within else 'OUTSIDE'}, {off:+.1%} of the median",
            flush=True,
        )
    return holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--slo", type=parse_duration, default=0.05)
    parser.add_argument("-o", "--output", type=Path, help="keep the traces here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary)
        folder.mkdir(exist_ok=True)
        path = options.model or folder / "dense.onnx"
        if options.model is None:
            write_model(path)
        return check(path, folder, options)


def check(path: Path, folder: Path, options: argparse.Namespace) -> int:
    cores = sorted(os.sched_getaffinity(0))
    measured = measuring.measure(open_model(path, path.stem), [1], max_batch=MAX_BATCH, budget_s=5.0)
    latency = measured.latencies[1]
    print("measured", ", ".join(f"{rows}: {seconds * 1e3:.2f} ms" for rows, seconds in latency.table))
    print(
        "overheads",
        {name: f"{value * 1e6:.0f} us" for name, value in msgspec.structs.asdict(measured.overheads).items()},
    )
    model = SimulatedModel(
        latency=latency,
        max_batch=measured.max_batch,
        merge=measured.merge,
        inline=measured.inline,
        row_bytes=measured.row_bytes,
        slo_s=options.slo,
    )
    rate = capacity_per_s(measured, options.slo)
    processes: dict[str, Process] = {
        "steady": Poisson(rate_per_s=0.5 * rate),
        "busy": Poisson(rate_per_s=0.8 * rate),
        "bursts": OnOff(on_per_s=1.3 * rate, off_per_s=0.1 * rate, on_s=0.5, off_s=1.0),
    }
    holds = True
    os.sched_setaffinity(0, set(cores[1:] or cores))
    alone = ["--lanes", "1", "--threads", "1", "--max-batch", str(MAX_BATCH)]
    with served(path, options.slo, cores[:1], alone) as url:
        for seed, (name, process) in enumerate(processes.items(), 1):
            trace_path = folder / f"{name}.jsonl"
            trace = make_trace(process, options.seconds, trace_path, seed)
            foretold = foretell(trace_path, model, measured, options.slo)
            found = [run_real(url, trace, options.slo) for _ in range(options.repetitions)]
            holds = show(name, foretold, found) and holds
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
