"""``python -m tests.fuzz``: run targets for some time or some number of inputs, replay a finding, or let atheris run.

python -m tests.fuzz --seconds 60 --seed 1                     all targets in turn
python -m tests.fuzz --inputs 10000000 --processes 2           a campaign; goes on where it was stopped
python -m tests.fuzz --target http1 --replay build/fuzz/FILE
python -m tests.fuzz --target http1 --atheris --seconds 600    coverage-guided; needs the package atheris
python -m tests.fuzz --target http1 --keep FOLDER              take the inputs of a folder into the corpus
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

_LONG = 1 << 30
_STALL_S = 600.0
_CHUNK = 25
"""Blocks that a process takes at a time."""


def main() -> int:
    """Exit status: 1 where something was found."""
    options = _parse()
    if options.atheris:
        importlib.import_module("tests.fuzz.guided").run(
            options.target[0], options.seconds, Path(options.out), options.seed
        )
        return 0
    # Only now: atheris must see these modules loaded.
    driver = importlib.import_module("tests.fuzz.driver")
    if options.replay:
        return _replay(driver, options)
    if options.keep:
        importlib.import_module("tests.fuzz.guided").keep(options.target[0], Path(options.keep))
        return 0
    return Campaign(driver, options).run()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz everything that reads a socket.")
    parser.add_argument("--seconds", type=float, help="for all targets together")
    parser.add_argument("--inputs", type=int, help="over all targets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", action="append", help="one of them; may be given again")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", default="build/fuzz", help="folder for findings and for the state of a campaign")
    parser.add_argument("--replay", help="a finding's file")
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("--keep", help="folder of inputs that atheris made")
    options = parser.parse_args()
    if options.seconds is None and options.inputs is None and not (options.replay or options.atheris or options.keep):
        options.seconds = 60.0
    return options


def _replay(driver: Any, options: argparse.Namespace) -> int:
    path = Path(options.replay)
    inputs = driver.corpus.unpack(path.read_bytes())
    name = options.target[0] if options.target else path.name.rpartition("-")[0]
    for data in inputs[-5:]:
        print(repr(data))
    trace = driver.replay(driver.TARGETS[name](), inputs)
    print(trace or "nothing is found any more")
    return 1 if trace else 0


class Campaign:
    """Shares blocks of inputs out to processes, so that all targets are done at about the same time."""

    def __init__(self, driver: Any, options: argparse.Namespace) -> None:
        self._driver = driver
        self._options = options
        self._names: list[str] = options.target or list(driver.TARGETS)
        self._state = Path(options.out) / f"campaign-{options.seed}.json"
        self._tallies = {name: driver.Tally(name) for name in self._names}

    def run(self) -> int:
        """All of it."""
        options = self._options
        print(f"seed {options.seed}")
        if options.seconds is not None:
            each = options.seconds / len(self._names) * options.processes
            tasks = [(name, 0, _LONG, each) for name in self._names]
        else:
            self._resume()
            tasks = self._share_out(options.inputs)
        if options.processes == 1:
            for name, first, blocks, seconds in tasks:
                self._take(self._driver.work(name, options.seed, first, blocks, seconds))
        else:
            self._run_pool(tasks)
        return self._report()

    def _resume(self) -> None:
        if self._state.exists():
            done = json.loads(self._state.read_text())
            for name, counts in done.items():
                if name in self._tallies:
                    tally = self._tallies[name]
                    tally.inputs, tally.past, tally.seconds, tally.next_block = counts
            print(f"going on from {sum(t.inputs for t in self._tallies.values()):,} inputs ({self._state})")

    def _share_out(self, inputs: int) -> list[tuple[str, int, int, float | None]]:
        """Chunks of every target in turn."""
        blocks = -(-inputs // len(self._names) // self._driver.BLOCK)
        tasks: list[tuple[str, int, int, float | None]] = []
        for first in range(0, blocks, _CHUNK):
            for name in self._names:
                start = max(first, self._tallies[name].next_block)
                count = min(first + _CHUNK, blocks) - start
                if count > 0:
                    tasks.append((name, start, count, None))
        return tasks

    def _run_pool(self, tasks: list[tuple[str, int, int, float | None]]) -> None:
        with ProcessPoolExecutor(self._options.processes, mp_context=get_context("spawn")) as pool:
            try:
                self._share(pool, list(reversed(tasks)))
            except BaseException:  # what runs in the others would go on without us
                for process in (pool._processes or {}).values():
                    process.kill()
                raise

    def _share(self, pool: ProcessPoolExecutor, waiting: list[tuple[str, int, int, float | None]]) -> None:
        running: dict[Future[Any], tuple[str, int, int, float | None]] = {}
        while waiting or running:
            while waiting and len(running) < self._options.processes:
                name, first, blocks, seconds = task = waiting.pop()
                running[pool.submit(self._driver.work, name, self._options.seed, first, blocks, seconds)] = task
            done, _ = wait(running, timeout=_STALL_S, return_when=FIRST_COMPLETED)
            if not done:
                raise SystemExit(f"no progress in {_STALL_S:g} s: {list(running.values())}")
            for future in done:
                name, first, _, _ = running.pop(future)
                try:
                    self._take(future.result())
                except BrokenProcessPool:
                    what = f"a process died in block {first} of this target, or of another, or soon after"
                    lost = self._driver.Found(name, what, "", [], first)
                    self._take(self._driver.Tally(name, found=[lost]))
                    return

    def _take(self, tally: Any) -> None:
        for found in tally.found:
            path = self._driver.save(found, Path(self._options.out))
            if found.key not in {known.key for known in self._tallies[tally.target].found}:
                print(f"\nFOUND {found.key} (block {found.block})\n{found.trace}")
                print(f"  python -m tests.fuzz --replay {path}\n")
        self._tallies[tally.target].add(tally)
        print(self._driver.line(self._tallies[tally.target]), flush=True)
        if self._options.inputs is not None:
            counts = {n: (t.inputs, t.past, t.seconds, t.next_block) for n, t in self._tallies.items()}
            self._state.parent.mkdir(parents=True, exist_ok=True)
            self._state.write_text(json.dumps(counts))

    def _report(self) -> int:
        driver = self._driver
        whole = driver.Tally("all")
        print(f"\n{driver.HEAD}")
        for tally in self._tallies.values():
            print(driver.line(tally))
            whole.add(tally)
        whole.seconds /= self._options.processes
        print(driver.line(whole))
        return 1 if whole.found else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an interrupt: the other processes end too
    sys.exit(main())
