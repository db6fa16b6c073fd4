"""Peak memory of a piece of work, as growth of the process' resident memory, and all of what it started."""

from __future__ import annotations

import contextlib
import resource
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Final

_SELF: Final = Path("/proc/self")
_STATUS: Final = _SELF / "status"
_CLEAR: Final = Path("/proc/self/clear_refs")
_RESET_PEAK: Final = "5"  # proc(5): resets VmHWM to the present resident set
_SAMPLE_S: Final = 0.005


class PeakMemory:
    """``with PeakMemory() as peak: ...`` then ``peak.growth_bytes``: how far resident memory rose above where it stood.
    Processes that were started meanwhile and still run count in full, on Linux.

    Exact on Linux, where the kernel's high-water mark can be reset; where that is not allowed it is sampled every 5
    ms, and elsewhere it is the growth of the process' life-long maximum. Memory that earlier work left free inside the
    process may be used again unseen: measure in a fresh process.
    """

    growth_bytes: int = 0

    def __enter__(self) -> PeakMemory:
        self._sampler: _Sampler | None = None
        self._resets = _reset_peak()
        self._children = _children()
        self._start = _resident("VmRSS") if _STATUS.exists() else _lifetime_peak()
        if _STATUS.exists() and not self._resets:
            self._sampler = _Sampler()
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        reset_peak = _resident("VmHWM") if self._resets else _lifetime_peak()
        peak = self._sampler.finish() if self._sampler else reset_peak
        started = (_resident("VmHWM", Path(f"/proc/{child}/status")) for child in _children() - self._children)
        self.growth_bytes = max(0, peak - self._start) + sum(started)


class _Sampler(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="salver-peak-memory", daemon=True)
        self._done = threading.Event()
        self._peak = 0

    def run(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            self._peak = max(self._peak, _resident("VmRSS"))

    def finish(self) -> int:
        self._done.set()
        self.join()
        return max(self._peak, _resident("VmRSS"))


def _reset_peak() -> bool:
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _resident(field: str, status: Path = _STATUS) -> int:
    with contextlib.suppress(OSError):  # a child may end meanwhile
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def _children() -> set[str]:
    """Processes that this one started; where the system does not tell, none."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for task in (_SELF / "task").iterdir():
            with contextlib.suppress(OSError):  # a thread may end meanwhile
                found |= set((task / "children").read_text().split())
    return found


def _lifetime_peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
