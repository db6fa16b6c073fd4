"""What a server and all processes below it hold, and whether that grows (Linux: /proc)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

PROC = Path("/proc")
WORKER = "salver.server.processes.worker"
Z = 1.96  # of a 95 % confidence interval


class Holding(NamedTuple):
    """Of several processes together: bytes of their proportional set size and of the shared part of it, open files.
    Pages of program files are left out: a process has the more of them the fewer others on the machine run the same
    programs."""

    pss: int
    shared: int
    files: int
    processes: int


class Slope(NamedTuple):
    """A line fitted to values: its slope per step, half the width of the 95 % interval of that, the mean, all steps."""

    per_step: float
    margin: float
    mean: float
    steps: float

    def rises(self, allowed: float) -> bool:
        """Whether it is above zero for sure, and from first to last the line rises by more than that."""
        return self.per_step > self.margin and self.per_step * self.steps > allowed

    def __str__(self) -> str:
        return f"{self.per_step:+.4g} ± {self.margin:.2g} a step, mean {self.mean:.5g}"


def descendants(pid: int) -> list[int]:
    """A process and all below it, oldest first."""
    parents = {each: int(fields[1]) for each in _numbers() if (fields := _stat(each))}
    found = [pid] if pid in parents else []
    for each in found:
        found += sorted(child for child, parent in parents.items() if parent == each)
    return found


def workers(pid: int) -> list[int]:
    """The workers of a supervisor, oldest first; those that have not begun to run their program are not among them."""
    return sorted((each for each in descendants(pid) if WORKER in _read(each, "cmdline")), key=_started)


def lives(pid: int) -> bool:
    """Whether a process has not ended; its connections are closed by then."""
    return (_stat(pid) or ["Z"])[0] not in "ZX"


def holding(pids: Sequence[int]) -> Holding:
    """What these hold; one that has ended holds nothing."""
    pss = shared = files = count = 0
    for pid in pids:
        rollup = dict(line.split(":", 1) for line in _read(pid, "smaps_rollup").splitlines()[1:])
        if not rollup:
            continue
        pss += int(rollup["Pss"].split()[0]) - int(rollup["Pss_File"].split()[0]) << 10
        shared += int(rollup["Pss_Shmem"].split()[0]) << 10
        files += sum(1 for _ in _list(pid))
        count += 1
    return Holding(pss, shared, files, count)


def slope(values: Sequence[float], steps: Sequence[float] | None = None) -> Slope:
    """By least squares; neighbors resemble one another, so the margin is that of as many values as are independent."""
    y = np.asarray(values, float)
    x = np.arange(len(y), dtype=float) if steps is None else np.asarray(steps, float)
    x, steps_in_all = x - x.mean(), float(x[-1] - x[0])
    per_step = float(x @ y / (x @ x))
    rest = y - y.mean() - per_step * x
    likeness = float(rest[:-1] @ rest[1:] / (rest @ rest)) if rest.any() else 0.0
    spread = math.sqrt(float(rest @ rest) / (len(y) - 2) / float(x @ x))
    likeness = min(max(likeness, 0.0), 0.95)
    return Slope(per_step, Z * spread * math.sqrt((1 + likeness) / (1 - likeness)), float(y.mean()), steps_in_all)


def _numbers() -> list[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> list[str]:
    return _read(pid, "stat").rpartition(")")[2].split()


def _started(pid: int) -> int:
    return int((_stat(pid) or ["0"] * 20)[19])


def _read(pid: int, name: str) -> str:
    try:
        return (PROC / str(pid) / name).read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def _list(pid: int) -> list[Path]:
    try:
        return list((PROC / str(pid) / "fd").iterdir())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
