"""What a build tells while it runs, for progress displays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from salver.evaluation.types import CandidateRecord

Stage = Literal["import", "baseline", "search", "certify", "seal", "export"]


class BuildEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One step of progress.

    Args:
        stage: where the build is.
        message: what is being done now, for people.
        done, total: how many trials of the stage have ended, and how many are planned so far.
        elapsed_s: since the build began.
        left_s: of the budget.
        finished: the candidate that has just been measured, if this event is about one.
    """

    stage: Stage
    message: str
    done: int = 0
    total: int = 0
    elapsed_s: float = 0.0
    left_s: float = 0.0
    finished: CandidateRecord | None = None


OnEvent = Callable[[BuildEvent], None]
