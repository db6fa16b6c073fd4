"""What counting costs: ways to keep a number that CPython adds to, and one request and one batch counted in each mode.

python benchmarks/counter_cost.py [--rounds 300]
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import timeit
from array import array
from collections.abc import Callable, Mapping
from typing import Any

from salver.server.engine.base import Timing
from salver.server.engine.served import LoadedModel
from salver.server.monitoring.memory import MappedMemory, Memory, make_file
from salver.server.monitoring.metrics import Metrics

CELLS = 512
LOOPS = 1000  # short, so that the best of many rounds was not interrupted


def stores() -> dict[str, tuple[Any, float]]:
    """Name -> something to index, and what is added."""
    mapped = mmap.mmap(-1, 4 * CELLS * 8)
    view = memoryview(mapped)
    quarter = CELLS * 8
    return {
        "list of float": ([0.0] * CELLS, 1.0),
        "list of int": ([1000] * CELLS, 1),
        "array of float64": (array("d", [0.0] * CELLS), 1.0),
        "array of int64": (array("q", [1000] * CELLS), 1),
        "mapped, memoryview of float64": (view[:quarter].cast("d"), 1.0),
        "mapped, memoryview of int64": (view[quarter : 2 * quarter].cast("q"), 1),
        "mapped, ctypes array of float64": ((ctypes.c_double * CELLS).from_buffer(mapped, 2 * quarter), 1.0),
        "mapped, ctypes array of int64": ((ctypes.c_int64 * CELLS).from_buffer(mapped, 3 * quarter), 1),
    }


def counting(memory: Memory) -> dict[str, Callable[[], None]]:
    """What is done per request and per batch."""
    metrics = Metrics(memory=memory)
    model = LoadedModel("m", "1", metrics)
    timing = Timing(0.0004, 0.002, 8)
    waits_s = [0.0004] * 8
    return {
        "one request": lambda: metrics.record(model, "OK", timing, 0.0031, 0.00012),
        "one batch of 1": lambda: metrics.record_batch(model, 1, True, 0.002, waits_s[:1], "idle_lane"),
        "one batch of 8": lambda: metrics.record_batch(model, 8, True, 0.002, waits_s, "full"),
    }


def best_ns(statement: str | Callable[[], None], rounds: int, names: Mapping[str, Any]) -> float:
    """Time of one, at best."""
    return min(timeit.repeat(statement, globals=dict(names), number=LOOPS, repeat=rounds)) / LOOPS * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    print("adding to one number:")
    for name, (cells, one) in stores().items():
        print(f"  {name:34}{best_ns('cells[77] += one', rounds, {'cells': cells, 'one': one}):6.0f} ns")
    for mode, memory in (("one process", Memory()), ("a worker", MappedMemory(make_file()))):
        print(f"counting in {mode}:")
        for name, step in counting(memory).items():
            print(f"  {name:34}{best_ns(step, rounds, {}):6.0f} ns")


if __name__ == "__main__":
    main()
