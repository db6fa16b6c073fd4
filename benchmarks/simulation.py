"""The scheduler under millions of simulated requests, with everything that must hold checked.

    python benchmarks/simulation.py [--requests 10000000] [--scenario NAME ...]

Runs the scenarios of `scenarios.toml`, each with its share of the requests, and prints one line for each. Ends with 1
when something happened that must not: a request lost, ended twice, answered with another's data, started after its
deadline or starved, a queue over its bound, or books that do not balance at the end.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path

import msgspec

from salver.server.planning.ledger import Outcome
from salver.server.planning.scenario import Scenario, read_scenarios
from salver.server.planning.simulator import simulate

SCENARIOS = Path(__file__).with_name("scenarios.toml")
_HEAD = (
    f"{'scenario':24}{'offered':>9}{'answered':>9}{'p50 ms':>8}{'p99 ms':>8}{'good/s':>8}{'rows':>6}{'us':>6}  refused"
)


def run(scenario: Scenario, requests: int) -> tuple[Outcome, float]:
    """One scenario, and how many microseconds a request took to simulate."""
    gc.collect()
    gc.disable()  # requests leave no cycles
    try:
        began = time.perf_counter()
        outcome = simulate(msgspec.structs.replace(scenario, requests=requests))
        return outcome, (time.perf_counter() - began) / max(1, outcome.offered) * 1e6
    finally:
        gc.enable()


def line(outcome: Outcome, cost_us: float) -> str:
    """One row of the table."""
    ended = {**outcome.refused, "VANISHED": outcome.vanished}
    refused = " ".join(f"{name.lower()}={count}" for name, count in ended.items() if count)
    return (
        f"{outcome.name:24}{outcome.offered:9}{outcome.answered:9}{outcome.p50_s * 1e3:8.2f}{outcome.p99_s * 1e3:8.2f}"
        f"{outcome.goodput_per_s:8.0f}{outcome.batch_rows:6.1f}{cost_us:6.1f}  {refused}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000_000, help="in all")
    parser.add_argument("--scenario", action="append", help="only this one; may be given again")
    options = parser.parse_args()
    scenarios = [s for s in read_scenarios(SCENARIOS) if not options.scenario or s.name in options.scenario]
    print(_HEAD)
    offered, violations, began = 0, 0, time.perf_counter()
    for scenario in scenarios:
        outcome, cost_us = run(scenario, -(-options.requests // len(scenarios)))
        print(line(outcome, cost_us), flush=True)
        for what in outcome.violations:
            print(f"  VIOLATED: {what}")
        offered += outcome.offered
        violations += len(outcome.violations)
    took_s = time.perf_counter() - began
    print(f"{offered} requests in {len(scenarios)} scenarios, {took_s:.0f} s, {violations} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
