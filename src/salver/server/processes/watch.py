"""When a worker is to be replaced, and when a new one may be tried. No process, clock or event loop inside."""

from __future__ import annotations

from typing import Final

import msgspec

from salver.server.processes.base import Beat, Reason

HUNG_S: Final = 5.0
"""A worker that has not been heard of for so long hangs; time in which it was ready to run and got no core is not its
own."""

LOADING_S: Final = 60.0
"""The same while it starts or loads models: a runtime that prepares a model may let nothing else run."""

SETTLE_BEATS: Final = 10
"""Beats after models were loaded or unloaded until memory is what it will be."""

GROWTH: Final = 2.0
SLACK_BYTES: Final = 512 << 20
"""A worker may take `GROWTH` times the memory it had when its models were loaded, and that much more."""

MEMORY_PAUSE_S: Final = 600.0
"""Time from a replacement for memory to the next: where the models do need so much, it costs no more than that."""

MAX_DELAY_S: Final = 30.0
STABLE_S: Final = 60.0
"""A worker that lived for so long has not crashed in a row."""


class Complaint(msgspec.Struct, frozen=True):
    """What is wrong with a worker, and why one thinks so."""

    reason: Reason
    why: str


class Watch:
    """Judges one worker by its beats.

    Args:
        now_s: when it was started.
        max_run_s: see `ServeSettings`.
    """

    def __init__(self, now_s: float, max_run_s: float) -> None:
        self._heard_s = now_s
        self._waited_s = 0.0
        self.memory_from_s = now_s
        """Before then its memory is not judged."""
        self._max_run_s = max_run_s
        self._patience_s = LOADING_S
        self._level_bytes: dict[str, int] = {}
        self._served = ""
        self._beats = 0

    def hear(self, beat: Beat, now_s: float, waited_s: float = 0.0) -> Complaint | None:
        """A beat; what is wrong, if anything.

        Args:
            waited_s: see `is_silent`.
        """
        self.excuse(now_s, waited_s)
        self._patience_s = LOADING_S if beat.loading else HUNG_S
        if self._max_run_s:
            for model, age_s in beat.running_s.items():
                if age_s > self._max_run_s:
                    return Complaint(
                        "slow", f"a batch of model {model} has run for {age_s:.0f} s (max-run is {self._max_run_s:g} s)"
                    )
        complaint = self._judge_memory(beat)
        return complaint if now_s >= self.memory_from_s else None

    def excuse(self, now_s: float, waited_s: float = 0.0) -> None:
        """Do not hold its silence until now against it."""
        self._heard_s, self._waited_s = now_s, waited_s

    def is_silent(self, now_s: float, waited_s: float = 0.0) -> Complaint | None:
        """Whether it has not been heard of for too long.

        Args:
            waited_s: how long it has waited for a core since it was started (`Child.waited_s`).
        """
        silent_s = now_s - self._heard_s
        if silent_s - (waited_s - self._waited_s) < self._patience_s:
            return None
        return Complaint("hang", f"nothing was heard of it for {silent_s:.0f} s")

    def _judge_memory(self, beat: Beat) -> Complaint | None:
        if not beat.served or beat.served != self._served:
            self._served, self._beats = beat.served, 0
            return None
        self._beats += 1
        if self._beats < SETTLE_BEATS:
            return None
        level_bytes = self._level_bytes.setdefault(beat.served, beat.memory_bytes)
        if beat.memory_bytes <= GROWTH * level_bytes + SLACK_BYTES:
            return None
        return Complaint(
            "memory",
            f"it takes {beat.memory_bytes >> 20} MiB, and took {level_bytes >> 20} MiB when it had loaded these models",
        )


class Backoff:
    """How long to wait before the next try at a slot: not at all after the first failure, then longer each time."""

    def __init__(self) -> None:
        self.failures = 0
        """In a row."""

    def failed(self, lived_s: float) -> None:
        """A worker ended that had been serving for so long; 0 for one that never did."""
        self.failures = 1 if lived_s >= STABLE_S else self.failures + 1

    @property
    def delay_s(self) -> float:
        """Time to wait now."""
        return 0.0 if self.failures < 2 else min(MAX_DELAY_S, 2.0 ** (self.failures - 2))
