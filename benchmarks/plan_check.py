"""Whether the simulator foretells what a real server does: p50, p99 and goodput of replayed arrival traces.

    python benchmarks/plan_check.py [--model model.onnx] [--traces steady,busy,bursts] [--seconds 10] [--repetitions 5]
        [--slo 80ms] [--as-measured] [-o folder]

A server of one worker runs on one core, the load generator on the others. Each of three traces (steady, busy, bursts)
is run several times against the real server, in turns, and several times through the simulator, with other random run
times each time. Model and event loop are measured as `salver plan` measures them, before every turn. Since the speed of
a machine drifts, and a core that has rested is slower, how fast it was in a real run is taken from that run: the CPU
time of the lane over that of the same batches as measured. So it is the simulator that is tried, not the steadiness of
the machine; `--as-measured` leaves that out. A prediction is the median of the simulated figures; it holds where it
lies within the spread of the real ones. A run in which the load generator itself was late is run again once. Ends with
1 where a prediction does not hold. Without a model, `minilm` of networks.py is taken; without an objective, eight times
what a single row takes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec
import networks
import numpy as np

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

OBJECTIVE = 8  # times a single run, where none is given
MAX_BATCH = 8
SIMULATED = 3  # times with each measurement
READY = re.compile(r"ready on (http://[^\s,]+)")

LOADS: dict[str, Callable[[float], Process]] = {
    "steady": lambda rate: Poisson(rate_per_s=0.5 * rate),
    "busy": lambda rate: Poisson(rate_per_s=0.8 * rate),
    "bursts": lambda rate: OnOff(on_per_s=1.3 * rate, off_per_s=0.1 * rate, on_s=0.5, off_s=1.0),
}


class Figures(msgspec.Struct):
    """What is foretold and found."""

    p50_ms: float
    p99_ms: float
    goodput_per_s: float


class Work(NamedTuple):
    """What a server has run: batches by their rows, and the CPU time of its busiest thread, which is the lane."""

    batches: Counter[int]
    lane_s: float


class Real(NamedTuple):
    """A run of the real server: its figures, and how many times as long as measured its batches took."""

    figures: Figures
    pace: float


class Server(NamedTuple):
    """A real server."""

    url: str
    pid: int

    def work(self) -> Work:
        """So far."""
        with urllib.request.urlopen(f"{self.url}/v2/models/stats") as answer:
            stats = json.load(answer)["model_stats"]
        batches = Counter({each["batch_size"]: each["compute_infer"]["count"] for each in stats[0]["batch_stats"]})
        threads = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return Work(batches, max(int(path.read_text().split()[0]) for path in threads) * 1e-9)


@contextlib.contextmanager
def served(model: Path, slo_s: float, cores: Sequence[int], options: Sequence[str]) -> Iterator[Server]:
    """A real server on some cores."""
    command = [sys.executable, "-m", "salver", "serve", str(model), "--http", "127.0.0.1:0", *options]
    command += ["--slo", f"{slo_s * 1e3:g}ms"]
    others = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # which the server inherits
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        os.sched_setaffinity(0, others)
        try:
            lines = iter(server.stderr or ())
            found = next(match for line in lines if (match := READY.search(line)))
            yield Server(found[1], server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=60)


def run_real(
    server: Server, trace: tuple[Arrival, ...], slo_s: float, measured: measuring.Measured
) -> tuple[Real, bool]:
    """What one repetition shows, and whether the load generator kept up."""
    before = server.work()
    result, samples = measure(LoadPlan(url=server.url, trace=trace, duration_s=0.0, slo_s=slo_s))
    after = server.work()
    if result.generator.is_bottleneck:
        print(f"  the load generator was late: {result.generator.why}", flush=True)
    latencies = samples.latency_s[samples.is_ok]
    good = int((latencies <= slo_s).sum())
    p50, p99 = np.quantile(latencies, (0.5, 0.99))
    figures = Figures(float(p50 * 1e3), float(p99 * 1e3), good / trace[-1].at_s)
    ran = after.batches - before.batches
    usual_s = sum(count * measured.latencies[1].usual_s(rows) for rows, count in ran.items())
    return Real(figures, (after.lane_s - before.lane_s) / usual_s), not result.generator.is_bottleneck


def run_well(server: Server, trace: tuple[Arrival, ...], slo_s: float, measured: measuring.Measured) -> Real:
    """A repetition, and another in its place where it was spoiled."""
    real, kept_up = run_real(server, trace, slo_s, measured)
    return real if kept_up else run_real(server, trace, slo_s, measured)[0]


def foretell(path: Path, measured: Sequence[measuring.Measured], slo_s: float) -> Figures:
    """The medians of what is simulated."""
    outcomes = [simulate(scenario(path, each, slo_s, seed)) for each in measured for seed in range(SIMULATED)]
    return Figures(
        median(outcome.p50_s for outcome in outcomes) * 1e3,
        median(outcome.p99_s for outcome in outcomes) * 1e3,
        median(outcome.good for outcome in outcomes) / outcomes[0].seconds,
    )


def at_pace(measured: measuring.Measured, pace: float) -> measuring.Measured:
    """What would have been measured had runs taken so many times as long."""
    latency = measured.latencies[1]
    table = tuple((rows, seconds * pace) for rows, seconds in latency.table)
    return msgspec.structs.replace(measured, latencies={1: msgspec.structs.replace(latency, table=table)})


def scenario(path: Path, measured: measuring.Measured, slo_s: float, seed: int) -> Scenario:
    model = SimulatedModel(
        latency=measured.latencies[1],
        max_batch=measured.max_batch,
        merge=measured.merge,
        inline=measured.inline,
        row_bytes=measured.row_bytes,
        slo_s=slo_s,
    )
    return Scenario(
        name=path.stem,
        seed=seed,
        slo_s=slo_s,
        models={"model": model},
        streams=(Stream(model="model", arrivals=Trace(path=str(path))),),
        fleet=Fleet(workers=1, cores=1),
        overheads=measured.overheads,
    )


def capacity_per_s(measured: measuring.Measured, slo_s: float) -> float:
    """Requests per second on one core, in batches that take half of the objective at most, each come in a turn of the
    event loop of its own."""
    latency, spent = measured.latencies[1], measured.overheads
    each_s = spent.turn_s + spent.interrupt_s + spent.refill_s + spent.decode_s + spent.encode_s + spent.merge_row_s
    batch_s = spent.turn_s + 2 * spent.handoff_s + spent.merge_s
    fitting = [rows for rows in range(1, measured.max_batch + 1) if latency.usual_s(rows) <= slo_s / 2]
    return max(rows / (latency.usual_s(rows) + batch_s + rows * each_s) for rows in fitting or [1])


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
    parser.add_argument("--traces", default=",".join(LOADS), help="which of them")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--slo", type=parse_duration, default=0.0)
    parser.add_argument("--as-measured", action="store_true", help="not at the pace of the real runs")
    parser.add_argument("-o", "--output", type=Path, help="keep the traces here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary)
        folder.mkdir(exist_ok=True)
        path = options.model or folder / "minilm.onnx"
        if options.model is None:
            networks.minilm(path)
        return check(path, folder, options)


def measure_here(path: Path, cores: Sequence[int]) -> measuring.Measured:
    os.sched_setaffinity(0, cores)
    measured = measuring.measure(open_model(path, path.stem), [1], max_batch=MAX_BATCH, budget_s=3.0)
    os.sched_setaffinity(0, cores[1:] or cores)
    print("measured", ", ".join(f"{rows}: {seconds * 1e3:.2f} ms" for rows, seconds in measured.latencies[1].table))
    spent = msgspec.structs.asdict(measured.overheads)
    wake = spent.pop("wake")
    told = [f"{name.removesuffix('_s')} {value * 1e6:.0f} us" for name, value in spent.items()]
    told += [f"after {w.slept_s * 1e3:g} ms {w.loop_s * 1e6:.0f} and {w.lane_s * 1e6:.0f} us more" for w in wake]
    print("overheads", ", ".join(told), flush=True)
    return measured


def check(path: Path, folder: Path, options: argparse.Namespace) -> int:
    cores = sorted(os.sched_getaffinity(0))
    measured = measure_here(path, cores)
    slo_s = options.slo or OBJECTIVE * measured.latencies[1].usual_s(1)
    rate = capacity_per_s(measured, slo_s)
    print(f"objective {slo_s * 1e3:.1f} ms, capacity about {rate:.1f}/s", flush=True)
    holds = True
    alone = ["--lanes", "1", "--threads", "1", "--max-batch", str(MAX_BATCH)]
    paths = {name: folder / f"{name}.jsonl" for name in options.traces.split(",")}
    traces = {
        name: make_trace(LOADS[name](rate), options.seconds, paths[name], seed) for seed, name in enumerate(paths, 1)
    }
    found: dict[str, list[Figures]] = {name: [] for name in paths}
    simulated: dict[str, list[measuring.Measured]] = {name: [] for name in paths}
    with served(path, slo_s, cores[:1], alone) as server:
        for trace in traces.values():
            run_real(server, trace[: len(trace) // 10], slo_s, measured)  # to warm up
        for repetition in range(options.repetitions):
            if repetition:
                measured = measure_here(path, cores)
            for name, trace in traces.items():
                real = run_well(server, trace, slo_s, measured)
                print(f"{name}: batches took {real.pace:.3f} times what was measured", flush=True)
                found[name].append(real.figures)
                simulated[name].append(measured if options.as_measured else at_pace(measured, real.pace))
    for name, figures in found.items():
        holds = show(name, foretell(paths[name], simulated[name], slo_s), figures) and holds
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
