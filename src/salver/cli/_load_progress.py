"""What is shown while load runs: one line on standard error, where that is a terminal.

Written by hand: a library's progress bar draws for milliseconds at a time in a thread of its own, which would be
measured as the server's latency.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Final, Self

from salver.client.load import LoadPlan, LoadResult, Progress

_EVERY_S: Final = 0.5
_CLEAR: Final = "\r\x1b[K"


class StatusLine:
    """A line that is written over, and lines that stay, above it."""

    def __init__(self) -> None:
        self.is_shown = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Write the line; nothing where there is no terminal."""
        if self.is_shown:
            sys.stderr.write(_CLEAR + text)
            sys.stderr.flush()

    def keep(self, text: str) -> None:
        """Write a line that stays, terminal or not."""
        sys.stderr.write((_CLEAR if self.is_shown else "") + text + "\n")
        sys.stderr.flush()


class LoadProgress:
    """A callable for ``salver.client.load.run(on_progress=...)``, and a context at whose end the line is gone."""

    def __init__(self, plan: LoadPlan) -> None:
        last_s = plan.trace[-1].at_s if plan.trace else 0.0
        total_s = last_s or plan.duration_s
        self._total = f" of {total_s:g}" if total_s else ""
        self._what = f"{plan.rate_per_s:g}/s" if plan.rate_per_s else "recorded" if plan.trace else "closed loop"
        self._line = StatusLine()
        self._next_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.show("")

    def __call__(self, look: Progress) -> None:
        if self._line.is_shown and look.elapsed_s >= self._next_s:
            self._next_s = look.elapsed_s + _EVERY_S
            counts = f"{look.ok} answered, {look.ended - look.ok} failed, {look.under_way} under way"
            self._line.show(f"{self._what}: {look.elapsed_s:.0f}{self._total} s, {counts}")

    def tell(self, result: LoadResult) -> None:
        """One run of several is over."""
        share = f"{result.within_slo:.1%} within the objective" if result.within_slo is not None else ""
        self._line.keep(f"{result.offered_per_s:8.0f}/s  {share}")
        self._next_s = 0.0
