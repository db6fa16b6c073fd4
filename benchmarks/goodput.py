"""How much is answered within a latency objective, from a quarter of the capacity to twice it, by Salver and its peers.

    python benchmarks/goodput.py [--network minilm] [--levels 25,50,...] [--requests 2000] [--rounds 1]
        [--servers salver,bentoml,...] [--cores 0,1] [--load-core 1] [--json FILE] [--write]

Every server is pinned to the same cores, with one lane (instance, worker) of one thread for each. The load is on one
core, perhaps one of these: where it is itself the limit, that is said. First, with `salver serve` on one core and no
objective, the latency of single requests one after another: the objective is eight times its median. Then capacity: a
bare loop over the runtime on one core finds the largest batch whose run takes half of the objective at most, and the
server, with that as `--max-batch`, is kept busy by four times as many requests in flight for each lane. Then all
servers are started, Salver with `--slo`, the peers with their batching on and told as much of the objective as they
have settings for, and each is seen to give ONNX Runtime's answer. At each level, a percentage of that capacity, each in
turn is sent Poisson arrivals, whether or not earlier ones are answered. Latency counts from the time at which a request
was due; what is refused is not within the objective. At the end capacity is measured again, which says how steady the
machine was. `--write` puts plot and tables into the docs.
Linux with two cores or more; environments of peers are made from PyPI below build/peers when first needed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import environments
import networks
import numpy as np
import servers
from environments import Command
from servers import Batching, Place
from throughput import Loop

from salver.client.load import LoadPlan, LoadResult, Samples, measure
from salver.client.load.plan import percentiles
from salver.report.lines import Axis, Series, draw_lines, standalone

FACTOR = 8  # the objective, in single-request latencies
FIND_S = 2.0  # for each batch size
WARM_S = 3.0
CALM_S = 10.0  # of single requests, and of each measurement of capacity
MAX_BATCH = 64
CHECKED_LEVEL, OVERLOAD = 85, 200  # percent of capacity, at which the summary looks
LEVELS = [25, 50, 75, CHECKED_LEVEL, 100, 125, 150, OVERLOAD]
PAGE = environments.ROOT / "docs" / "benchmarks.md"
PLOT = PAGE.with_name("goodput.svg")
BEGIN, END = "<!-- Written by benchmarks/goodput.py --write. -->", "<!-- Up to here. -->"


class Contender(NamedTuple):
    """A server of the comparison, and how it batches, in words."""

    says: str
    batches: str
    command: Callable[[Place, Batching], Command]
    wire: str = "rest"
    environment: str = ""


CONTENDERS = {
    "salver": Contender(
        "Salver",
        "`--slo`",
        lambda place, told: servers.salver(
            place, "--slo", f"{told.objective_s * 1e3:.3f}ms", "--lanes", str(told.lanes)
        ),
    ),
    "bentoml": Contender("BentoML", "adaptive, `max_latency_ms` is the objective", servers.bentoml, "json", "bentoml"),
    "triton": Contender(
        "Triton",
        "dynamic, of what came while it ran",
        lambda place, told: servers.triton(place, told._replace(wait_s=0.0, refuse_after_s=0.0)),
        environment="triton",
    ),
    "triton-timeout": Contender(
        "Triton, time-out",
        "the same; refused after half of the objective in the queue",
        lambda place, told: servers.triton(place, told._replace(wait_s=0.0)),
        environment="triton",
    ),
    "mlserver": Contender(
        "MLServer", "adaptive, `max_batch_time` is a single request's latency", servers.mlserver, "grpc", "mlserver"
    ),
}


class Run(NamedTuple):
    """One server at one level, once."""

    result: LoadResult
    latency_s: np.ndarray
    capacity_per_s: float


Found = dict[str, dict[int, list[Run]]]


class Basis(NamedTuple):
    """What a round is measured against."""

    single_s: float
    objective_s: float
    batch: int
    capacity_per_s: float


def load(place: Place, wire: str, seconds: float, **more: Any) -> tuple[LoadResult, Samples]:
    """Put load on a server; all that is not said is the same for every run."""
    url = f"grpc://127.0.0.1:{place.grpc}" if wire == "grpc" else f"http://127.0.0.1:{place.http}"
    plan: dict[str, Any] = {"inputs": servers.examples(place.model), "patience_s": 60.0, "warmup_s": WARM_S} | more
    return measure(LoadPlan(url=url, model=place.name, wire=wire, duration_s=seconds + WARM_S, **plan))


@contextmanager
def serving(start: Callable[[Place], Command], path: Path, folder: Path, cores: list[int]) -> Iterator[Place]:
    """A server on these cores, which gives right answers."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        place = Place(Path(own), path, "network", environments.free_port(), environments.free_port())
        with servers.running(start(place), place, *cores) as process:
            servers.wait_until_right(place, process)
            yield place


def largest_batch(path: Path, core: int, limit_s: float) -> int:
    """Rows of the largest batch whose run takes no longer than a limit, in a bare loop."""
    with ExitStack() as stack:
        bare = Loop(path, core)
        stack.callback(bare.close)
        fits, most = 1, MAX_BATCH
        while fits < most:
            middle = (fits + most + 1) // 2
            if middle / bare.rows_per_s(middle, FIND_S) <= limit_s:
                fits = middle
            else:
                most = middle - 1
    return fits


def capacity(path: Path, folder: Path, cores: list[int], batch: int) -> float:
    """Answers per second of a server that is kept busy with batches of that size."""
    options = ["--max-batch", str(batch), "--lanes", str(len(cores))]
    with serving(lambda place: servers.salver(place, *options), path, folder, cores) as place:
        return load(place, "rest", CALM_S, concurrency=4 * batch * len(cores))[0].throughput_per_s


def basis(path: Path, folder: Path, cores: list[int]) -> Basis:
    """Objective and capacity."""
    with serving(servers.salver, path, folder, cores[:1]) as place:
        single, _ = load(place, "rest", CALM_S, concurrency=1)
    if single.latency is None:
        sys.exit(f"no request was answered: {single.outcomes}")
    single_s = single.latency.p50 / 1e3
    batch = largest_batch(path, cores[0], FACTOR * single_s / 2)
    return Basis(single_s, FACTOR * single_s, batch, capacity(path, folder, cores, batch))


def measure_round(told: argparse.Namespace, folder: Path, seed: int, found: Found) -> tuple[Basis, float]:
    """All servers at all levels, once."""
    path, cores = networks.write(told.network, folder), told.cores
    base = basis(path, folder, cores)
    batching = Batching(base.batch, base.objective_s, base.single_s, base.objective_s / 2, len(cores))
    print(describe(base), file=sys.stderr)
    with ExitStack() as stack:
        places = {}
        for name in told.servers:
            start = CONTENDERS[name].command
            places[name] = stack.enter_context(serving(lambda at, to=start: to(at, batching), path, folder, cores))
        for level in told.levels:
            rate = base.capacity_per_s * level / 100
            wanted = told.requests / told.rounds
            seconds = (wanted + 3 * math.sqrt(wanted)) / rate
            for name, place in places.items():
                objective = {"rate_per_s": rate, "slo_s": base.objective_s, "seed": seed}
                result, samples = load(place, CONTENDERS[name].wire, seconds, **objective)
                counted = samples.is_ok & (samples.due_s >= WARM_S)
                run = Run(result, samples.latency_s[counted], base.capacity_per_s)
                found[name].setdefault(level, []).append(run)
                print(f"{level} %, {CONTENDERS[name].says}: {_progress(summary([run]))}", file=sys.stderr)
    return base, capacity(path, folder, cores, base.batch)


def summary(runs: list[Run]) -> dict[str, Any]:
    """Figures over all rounds."""
    results = [run.result for run in runs]
    requests = sum(result.requests for result in results)
    within = sum(round((result.within_slo or 0.0) * result.requests) for result in results)
    answered = sum(result.ok for result in results)
    latencies = np.concatenate([run.latency_s for run in runs])
    p50, p99 = percentiles(latencies, (0.5, 0.99)) * 1e3 if len(latencies) else (math.nan, math.nan)
    return {
        "requests": requests,
        "offered_per_s": round(sum(result.offered_per_s for result in results) / len(results), 2),
        "goodput_per_s": round(sum(result.goodput_per_s or 0.0 for result in results) / len(results), 2),
        "of_capacity": sum((run.result.goodput_per_s or 0.0) / run.capacity_per_s for run in runs) / len(runs),
        "within_slo": within / max(requests, 1),
        "late": (answered - within) / max(requests, 1),
        "not_answered": (requests - answered) / max(requests, 1),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "generator": "; ".join(result.generator.why for result in results if result.generator.why),
    }


def _progress(figures: dict[str, Any]) -> str:
    return (
        f"{figures['within_slo']:.1%} of {figures['requests']} within the objective, {figures['late']:.1%} late, "
        f"p50 {figures['p50_ms']} ms, p99 {figures['p99_ms']} ms {figures['generator']}"
    )


Figures = dict[str, dict[int, dict[str, Any]]]


def describe(base: Basis) -> str:
    """In words."""
    return (
        f"A single request takes {base.single_s * 1e3:.2f} ms, the objective is {base.objective_s * 1e3:.1f} ms, "
        f"batches of {base.batch} run in half of it, capacity is {base.capacity_per_s:.1f} requests per second"
    )


def levels_table(figures: Figures) -> str:
    """Goodput by level."""
    names = list(figures)
    lines = ["| load | " + " | ".join(CONTENDERS[name].says for name in names) + " |", "|---|" + "---|" * len(names)]
    for level in figures[names[0]]:
        cells = [f"{figures[name][level]['of_capacity']:.1%}" for name in names]
        lines.append(f"| {level} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary_table(figures: Figures) -> str:
    """What an operator looks at: whether the usual load meets the objective, and what is left of it under too much."""
    levels = list(next(iter(figures.values())))
    usual, most = (CHECKED_LEVEL if CHECKED_LEVEL in levels else levels[0]), max(levels)
    heads = ["server", "batching", f"within the objective at {usual} %", f"p50, p99 at {usual} %, ms"]
    heads += [f"goodput at {most} % over its best", f"late at {most} %", f"refused or failed at {most} %"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, by_level in figures.items():
        best = max(each["of_capacity"] for each in by_level.values())
        low, high = by_level[usual], by_level[most]
        cells = [CONTENDERS[name].says, CONTENDERS[name].batches, f"{low['within_slo']:.2%}"]
        cells += [f"{low['p50_ms']:.1f}, {low['p99_ms']:.1f}", f"{high['of_capacity'] / max(best, 1e-9):.1%}"]
        cells += [f"{high[what]:.1%}" for what in ("late", "not_answered")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(figures: Figures, network: str) -> str:
    """Goodput by load, as SVG."""
    series = [
        Series(
            CONTENDERS[name].says,
            tuple((float(level), each["of_capacity"] * 100) for level, each in sorted(by_level.items())),
        )
        for name, by_level in figures.items()
    ]
    levels = sorted(next(iter(figures.values())))
    x = Axis(label="load offered (% of capacity)", ticks=tuple((float(level), str(level)) for level in levels))
    y = Axis(label="answered within the objective (% of capacity)", limit=100.0, limit_label="capacity")
    return standalone(draw_lines(f"Goodput by load, {network}", x, y, series))


def page(found: dict[str, Any], figures: Figures) -> str:
    """What is printed, and stands in the docs."""
    rounds = [f"{each['said']} ({each['capacity_after_per_s']:.1f} at the end)" for each in found["rounds"]]
    fewest = min(each["requests"] for by_level in figures.values() for each in by_level.values())
    parts = [". ".join(rounds) + f". {found['network']}, {fewest:,} requests or more at each level."]
    parts += ["Goodput as a share of capacity:", levels_table(figures), summary_table(figures)]
    late = [
        f"{CONTENDERS[name].says} at {level} %: {each['generator']}"
        for name, by_level in figures.items()
        for level, each in by_level.items()
        if each["generator"]
    ]
    parts += ["The load generator was the limit: " + "; ".join(late) + "."] * bool(late)
    return "\n\n".join([*parts, found["versions"] + "."])


def write(text: str, drawn: str) -> None:
    """Into the docs."""
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{PAGE} has no lines '{BEGIN}' and '{END}'")
    image = f"![Goodput by load]({PLOT.name})"
    PAGE.write_text(f"{before}{begin}\n\n{image}\n\n{text}\n\n{end}{after}", encoding="utf-8")
    PLOT.write_text(drawn, encoding="utf-8")


def main() -> None:
    """Measure and print; write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole_numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--network", default="minilm", help="a name, or the path of an ONNX file with one input")
    parser.add_argument("--levels", type=whole_numbers, default=LEVELS, help="percent of capacity")
    parser.add_argument("--requests", type=int, default=2000, help="of each server at each level, over all rounds")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--servers", type=lambda text: text.split(","), default=list(CONTENDERS))
    parser.add_argument("--cores", type=whole_numbers, default=[0, 1], help="of the servers")
    parser.add_argument("--load-core", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true")
    told = parser.parse_args()
    os.sched_setaffinity(0, {told.load_core})
    found: Found = {name: {} for name in told.servers}
    rounds = []
    with tempfile.TemporaryDirectory(prefix="goodput-") as folder:
        for seed in range(told.rounds):
            base, after = measure_round(told, Path(folder), seed, found)
            rounds.append(base._asdict() | {"said": describe(base), "capacity_after_per_s": after})
    figures = {name: {level: summary(runs) for level, runs in rows.items()} for name, rows in found.items()}
    made = {CONTENDERS[name].environment for name in told.servers} & set(environments.PACKAGES)
    whole = {"network": told.network, "rounds": rounds, "servers": figures, "versions": servers.versions(made)}
    text = page(whole, figures)
    print(text)
    if told.json:
        told.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    if told.write:
        write(text, plot(figures, told.network))


if __name__ == "__main__":
    main()
