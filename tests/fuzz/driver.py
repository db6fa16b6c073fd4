"""The plain engine: inputs by grammar, in blocks that a seed and a number determine."""

from __future__ import annotations

import gc
import hashlib
import re
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from tests.fuzz import corpus
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.world import Finding

BLOCK = 1000
"""Inputs between two renewals of a target."""

HANG_S = 20.0
"""CPU time that no input may take."""

_VARIABLE = re.compile(r"[0-9]+|b?['\"{].*", re.DOTALL)
_MAX_OBJECTS = 20_000
_CENSUS_BLOCKS = 20
_SETTLED_BLOCKS = 4


class Found(msgspec.Struct):
    """A finding, and what brings it about.

    Args:
        inputs: to be run in this order after `Target.renew`; the last one shows it.
    """

    target: str
    what: str
    trace: str
    inputs: list[bytes]
    block: int

    @property
    def key(self) -> str:
        """Alike for findings of one cause."""
        place = re.findall(r'File "([^"]+)", line (\d+)', self.trace)
        own = [f"{Path(file).name}:{line}" for file, line in place if "/fuzz/" not in file]
        return f"{self.target}: {_VARIABLE.sub('#', self.what)[:80]} {' '.join(own[-1:])}"


class Tally(msgspec.Struct):
    """What was run."""

    target: str
    inputs: int = 0
    past: int = 0
    seconds: float = 0.0
    found: list[Found] = []
    next_block: int = 0

    def add(self, other: Tally) -> None:
        """Count more."""
        self.inputs += other.inputs
        self.past += other.past
        self.seconds += other.seconds
        self.next_block = max(self.next_block, other.next_block)
        known = {found.key for found in self.found}
        self.found += [found for found in other.found if found.key not in known]


def pick(target: Target, random: Random, kept: list[bytes]) -> bytes:
    """The next input: most are made new, some are near others."""
    chance = random.random()
    if chance < 0.15 and kept:
        return target.mutate(random.choice(kept), random)
    made = target.make(random)
    return target.mutate(made, random) if chance > 0.9 else made


@contextmanager
def bounded() -> Iterator[None]:
    """Turn an input that takes forever into a finding."""

    def stop(*_: object) -> None:
        raise Finding(f"took more than {HANG_S:g} s of CPU time")

    was = signal.signal(signal.SIGVTALRM, stop)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, was)


def run_one(target: Target, data: bytes) -> bool:
    """Take one input, with a bound on its CPU time. Call it inside `bounded`."""
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG_S)
    return target.run(data)


class Runner:
    """Runs blocks of one target in this process."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self._seed = seed
        self._target = TARGETS[name]()
        self._kept = corpus.read(name)
        self._objects = 0
        self._blocks = 0

    def run(self, first: int, blocks: int, until_s: float = float("inf")) -> Tally:
        """Run some blocks, or as many as there is time for."""
        tally = Tally(self.name)
        started_s = time.monotonic()
        with bounded():
            for block in range(first, first + blocks):
                if time.monotonic() > until_s and tally.inputs:
                    break
                self._run_block(block, tally, until_s)
                tally.next_block = block + 1
                self._blocks += 1
                self._count_objects(block, tally)
        tally.seconds = time.monotonic() - started_s
        return tally

    def _run_block(self, block: int, tally: Tally, until_s: float) -> None:
        random = Random(f"{self._seed}/{self.name}/{block}")
        target = self._target
        target.renew()
        done: list[bytes] = []
        for _ in range(BLOCK):
            data = pick(target, random, self._kept)
            done.append(data)
            tally.inputs += 1
            try:
                tally.past += run_one(target, data)
            except (Exception, SystemExit) as error:  # noqa: BLE001  # the boundary of a target
                self._keep(error, done, block, tally)
                target.renew()
                done = []
            if not tally.inputs % 50 and time.monotonic() > until_s:
                return

    def _keep(self, error: BaseException, done: list[bytes], block: int, tally: Tally) -> None:
        trace = "".join(traceback.format_exception(error))
        found = Found(self.name, f"{type(error).__name__}: {error}"[:500], trace, [done[-1]], block)
        if found.key not in {other.key for other in tally.found}:
            found.inputs = self._shorten(done)
            tally.found.append(found)

    def _shorten(self, done: list[bytes]) -> list[bytes]:
        """The shortest list found that still shows something."""
        for count in (1, 2, 5, 20, 100):
            if replay(self._target, done[-count:]) is not None:
                return done[-count:]
        return done

    def _count_objects(self, block: int, tally: Tally) -> None:
        if self._blocks % _CENSUS_BLOCKS != _SETTLED_BLOCKS:
            return
        self._target.renew()
        gc.collect()
        count = len(gc.get_objects())
        if self._objects and count > self._objects + _MAX_OBJECTS:
            what = f"{count - self._objects} objects more than at first are alive"
            tally.found.append(Found(self.name, what, "", [], block))
        self._objects = self._objects or count


def replay(target: Target, inputs: list[bytes]) -> str | None:
    """Run inputs on a target that is like new; what they bring about, None for nothing."""
    target.renew()
    with bounded():
        for data in inputs:
            try:
                run_one(target, data)
            except (Exception, SystemExit) as error:  # noqa: BLE001  # the boundary of a target
                return "".join(traceback.format_exception(error))
    return None


def save(found: Found, folder: Path) -> Path:
    """Write a finding down, for `--replay`."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = corpus.pack(found.inputs)
    path = folder / f"{found.target}-{hashlib.sha256(found.key.encode()).hexdigest()[:8]}.gz"
    path.write_bytes(packed)
    return path


def line(tally: Tally) -> str:
    """A row of the table."""
    share = 100 * tally.past / max(1, tally.inputs)
    rate = tally.inputs / max(tally.seconds, 1e-9)
    return f"{tally.target:16} {tally.inputs:>10,} {share:>6.1f} % {rate:>8,.0f}/s {len(tally.found):>6}"


HEAD = f"{'target':16} {'inputs':>10} {'parsed':>8} {'rate':>10} {'found':>6}"


def work(name: str, seed: int, first: int, blocks: int, seconds: float | None) -> Tally:
    """What one process of a pool does at a time."""
    runner: Any = _RUNNERS.get((name, seed)) or _RUNNERS.setdefault((name, seed), Runner(name, seed))
    until_s = float("inf") if seconds is None else time.monotonic() + seconds
    tally: Tally = runner.run(first, blocks, until_s)
    return tally


_RUNNERS: dict[tuple[str, int], Runner] = {}
