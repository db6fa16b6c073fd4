"""Which cores a worker keeps to, where it is told to keep to its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_NODES: Final = Path("/sys/devices/system/node")


def share_of(slot: int, workers: int, nodes: Sequence[Sequence[int]]) -> set[int]:
    """The cores of one of several workers: neighbors, so that a worker spans as few NUMA nodes as can be. With more
    workers than cores, several share one.

    Args:
        slot: 0 to ``workers`` - 1.
        nodes: the cores that the process may use, by NUMA node; at least one.
    """
    cores = [core for node in nodes for core in node]
    first = slot * len(cores) // workers
    return set(cores[first : max((slot + 1) * len(cores) // workers, first + 1)])


def usable_nodes(folder: Path = _NODES) -> list[list[int]]:
    """The cores that this process may use, by NUMA node; all in one where the system tells of none (Linux:
    ``Documentation/ABI/stable/sysfs-devices-node``)."""
    usable = os.sched_getaffinity(0)
    lists = sorted(folder.glob("node[0-9]*/cpulist"), key=lambda path: int(path.parent.name[4:]))
    nodes = [sorted(usable & _cores(path.read_text(encoding="ascii"))) for path in lists]
    found = [node for node in nodes if node]
    return found if sum(map(len, found)) == len(usable) else [sorted(usable)]


def keep_to_share(slot: int, workers: int) -> set[int]:
    """Let this process, and all threads that it starts from now on, run on its share of the cores alone."""
    cores = share_of(slot, workers, usable_nodes())
    os.sched_setaffinity(0, cores)
    return cores


def _cores(text: str) -> set[int]:
    """``0-3,8`` as numbers."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1) if first else ())
    return found
