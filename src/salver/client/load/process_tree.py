"""CPU time and memory of a process and of all that descend from it (Linux: /proc)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from salver.core.errors import NotFound, Unimplemented

_PROC: Final = Path("/proc")


def tree_cpu_s(pid: int) -> float:
    """User and system time so far of a process and its descendants, those among them that ended and were waited for.

    Raises:
        NotFound: there is no such process.
        Unimplemented: the system has no /proc.
    """
    if not (_PROC / "self" / "stat").exists():
        raise Unimplemented("CPU time of a process tree is read from /proc, which this system does not have")
    stats = _stats()
    if pid not in stats:
        raise NotFound(f"there is no process {pid}")
    found = _family(pid, stats)
    ticks = sum(int(field) for each in found for field in stats[each][11:15])  # utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK")


def _stats() -> dict[int, list[str]]:
    numbers = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
    return {each: fields for each in numbers if (fields := _stat(each))}


def _family(pid: int, stats: dict[int, list[str]]) -> list[int]:
    children: dict[int, list[int]] = {}
    for each, fields in stats.items():
        children.setdefault(int(fields[1]), []).append(each)
    found = [pid]
    for each in found:
        found += children.get(each, ())
    return found


def _stat(pid: int) -> list[str]:
    """Fields of ``stat`` from the state on (proc(5)); none where the process has ended."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def tree_pss_bytes(pid: int) -> int:
    """Proportional set size of the same processes: memory that several map counts a part for each; 0 where the kernel
    does not say."""
    total = 0
    for each in _family(pid, _stats()):
        try:
            text = (_PROC / str(each) / "smaps_rollup").read_text()
        except OSError:  # it ended, or is another user's
            continue
        total += sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))
    return total
