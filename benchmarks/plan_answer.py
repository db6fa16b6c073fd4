"""Whether a server that is laid out as `salver plan` says keeps the objective at the rate that it was planned for.

    python benchmarks/plan_answer.py [--model model.onnx] [--load 0.7] [--slo 50ms] [--cores 1] [--repetitions 5]
        [--seconds 20]

`salver plan` is asked about a share of what it says a node does at most, on some of the machine's cores. The server is
then started with the workers, lanes, threads and batch of its answer, on as many cores, and the load, Poisson arrivals
of that rate, comes from the others. Beside what was foretold stands the spread of the repetitions. Ends with 1 where
fewer than 99 % of the requests were answered within the objective in half of the repetitions or more. Without a
model, `minilm` of `networks.py` is taken. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import networks
import plan_check

from salver.client.load import LoadPlan, measure
from salver.core.quantities import parse_duration

SHARE = 0.99
FIRST_PER_S = 20.0  # a rate that any network keeps, to learn what a node does at most
AT_MOST = re.compile(r"about ([\d,]+) requests per second and node")


def ask_plan(model: Path, rate_per_s: float, told: argparse.Namespace) -> dict[str, Any]:
    """What `salver plan` answers."""
    line = [sys.executable, "-m", "salver", "plan", "--bundle", str(model), "--rate", f"{rate_per_s:g}/s"]
    line += ["--slo", f"{told.slo * 1e3:g}ms", "--cores", str(told.cores), "--json"]
    said = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout
    plan: dict[str, Any] = json.loads(said)["plan"]
    return plan


def run(url: str, rate_per_s: float, told: argparse.Namespace, seed: int) -> dict[str, float]:
    """One repetition."""
    plan = LoadPlan(
        url=url, rate_per_s=rate_per_s, duration_s=told.seconds + 2.0, warmup_s=2.0, slo_s=told.slo, seed=seed
    )
    result, _ = measure(plan)
    if result.generator.is_bottleneck:
        print(f"  the load generator was the bottleneck: {result.generator.why}")
    if result.latency is None:
        sys.exit(f"no request was answered: {result.outcomes}")
    return {"p50_ms": result.latency.p50, "p99_ms": result.latency.p99, "within": result.within_slo or 0.0}


def check(model: Path, told: argparse.Namespace) -> bool:
    """Ask, serve as told, load; whether it holds."""
    cores = sorted(os.sched_getaffinity(0))
    most = AT_MOST.search(ask_plan(model, FIRST_PER_S, told)["why"])
    if most is None:
        sys.exit("the plan does not say what a node does at most")
    rate_per_s = round(told.load * float(most[1].replace(",", "")))
    plan = ask_plan(model, rate_per_s, told)
    layout, expected = plan["layout"], plan["expected"]
    print(f"asked for {rate_per_s}/s, 99 % within {told.slo * 1e3:g} ms, on {told.cores} of {len(cores)} cores")
    print(f"answer: {plan['nodes']} node, {layout}, batches of {plan['max_batch']} at most; binding: {plan['why']}")
    if plan["nodes"] != 1:
        sys.exit("more than one node: ask for less")
    options = ["--lanes", str(layout["lanes"]), "--threads", str(layout["threads"])]
    options += ["--max-batch", str(plan["max_batch"])]
    options += ["--workers", str(layout["workers"])] if layout["workers"] > 1 else []
    os.sched_setaffinity(0, set(cores[told.cores :] or cores))
    with plan_check.served(model, told.slo, cores[: told.cores], options) as server:
        found = [run(server.url, rate_per_s, told, seed) for seed in range(told.repetitions)]
    foretold = {
        "p50_ms": expected["p50_s"] * 1e3,
        "p99_ms": expected["p99_s"] * 1e3,
        "within": expected["good"] / expected["offered"],
    }
    for name, value in foretold.items():
        values = sorted(each[name] for each in found)
        middle = statistics.median(values)
        print(f"{name:8} foretold {value:9.4g}   found {middle:9.4g} ({values[0]:.4g} to {values[-1]:.4g})")
    return statistics.median(each["within"] for each in found) >= SHARE


def main() -> int:
    """Check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--load", type=float, default=0.7, help="of what the plan says that a node does at most")
    parser.add_argument("--slo", type=parse_duration, default=0.05)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = told.model or Path(folder) / "minilm.onnx"
        if told.model is None:
            networks.minilm(model)
        return 0 if check(model, told) else 1


if __name__ == "__main__":
    sys.exit(main())
