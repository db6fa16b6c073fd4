"""Gates, the Pareto front and the choice: pure functions over what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from salver.builder.search.recipes import is_moved
from salver.evaluation.noninferiority import (
    ALPHA,
    MAX_FINALISTS,
    examples_needed,
    format_amount,
    margin_in_unit,
    worsens_by,
)
from salver.evaluation.types import CandidateRecord, Evaluation, Margin, Quality, Verdict

Objective = Literal["latency", "throughput", "size"]

TIE: Final = 0.05
"""Candidates within 5 % of the best on the objective count as equal: shared hosts do not measure finer. Among equals
the next objective decides."""

_SLACK: Final = 1.5
"""What is needed on average is too little half of the time, and a finalist more makes it harder for all."""

_NEXT: Final[dict[Objective, tuple[Objective, ...]]] = {
    "latency": ("latency", "size", "throughput"),
    "throughput": ("throughput", "size", "latency"),
    "size": ("size", "latency", "throughput"),
}


def gain(evaluation: Evaluation, objective: Objective) -> float:
    """How many times better than the original: faster, or smaller. 1.0 where it was not measured."""
    if objective == "size":
        return evaluation.baseline_size_bytes / max(evaluation.size_bytes, 1)
    if not evaluation.latency:
        return 1.0
    return evaluation.latency[0 if objective == "latency" else -1].speedup


def finite_gate(evaluation: Evaluation) -> Verdict | None:
    """Reject NaN or infinity where the original has none."""
    count = evaluation.nonfinite_outputs
    if not count:
        return None
    reason = f"{count:,} output elements are NaN or infinite where the original's are finite"
    return Verdict(outcome="rejected", gate="finite", reason=reason)


def objective_gate(evaluation: Evaluation, objective: Objective) -> Verdict | None:
    """Reject what does not beat the original on the objective; the interval of the ratio has to exclude 1."""
    if objective == "size":
        if evaluation.size_bytes < evaluation.baseline_size_bytes:
            return None
        given, limit = evaluation.size_bytes, evaluation.baseline_size_bytes
        return Verdict(outcome="rejected", gate="size", reason=f"not smaller: {given:,} bytes, the original {limit:,}")
    if not evaluation.latency:
        return None
    timed = evaluation.latency[0 if objective == "latency" else -1]
    low, high = timed.speedup_ci.low, timed.speedup_ci.high
    if low > 1.0:
        return None
    where = f"at {timed.threads} thread{'s' if timed.threads > 1 else ''}, batch {timed.batch}"
    if high < 1.0:
        times = f"{1 / timed.speedup:.2f}x slower than the original"
    else:
        times = f"not measurably faster than the original ({timed.speedup:.2f}x, 95 % interval {low:.2f} to {high:.2f})"
    return Verdict(outcome="rejected", gate="speed", reason=f"{times} {where}")


def steer_gate(quality: Quality, margin: Margin) -> Verdict | None:
    """Reject what the steering examples already show to be worse by more than the margin, or expect to be."""
    allowed = margin_in_unit(margin, quality.baseline)
    if quality.drop <= allowed:
        return None
    drop, limit = format_amount(quality, quality.drop), format_amount(quality, allowed)
    if quality.drop_ci.low > allowed:
        how = f"at least {format_amount(quality, quality.drop_ci.low)} at 95 %"
    else:
        how = "which leaves little hope to certify it"
    where = f"on {quality.examples:,} steering examples"
    reason = f"worse: {quality.metric} {worsens_by(quality)} {drop} {where}, {how}; {limit} is allowed"
    return Verdict(outcome="rejected", gate="quality", reason=reason)


def is_hopeful(quality: Quality, rows: int, margin: Margin) -> bool:
    """Whether ``rows`` certification examples would certify a candidate that goes on as it did."""
    allowed = margin_in_unit(margin, quality.baseline)
    return quality.drop < allowed and examples_needed(quality, allowed, ALPHA) <= rows


def count_finalists(best: Quality, rows: int, margin: Margin) -> int:
    """How many finalists ``rows`` certification examples can carry: with k of them, Holm's correction holds the best to
    ``ALPHA / k``, and a candidate like the best should still pass."""
    allowed = margin_in_unit(margin, best.baseline)
    if best.drop >= allowed:
        return 1
    carried = [k for k in range(2, MAX_FINALISTS + 1) if _SLACK * examples_needed(best, allowed, ALPHA / k) <= rows]
    return max(carried, default=1)


def pareto_front(candidates: Sequence[CandidateRecord]) -> set[str]:
    """Names of the original and the accepted candidates that no other of them beats on quality, latency and size."""
    points = {}
    for c in candidates:
        if c.evaluation is None or (c.verdict.outcome != "accepted" and c.origin != "baseline"):
            continue
        quality = c.evaluation.quality
        points[c.name] = (quality.drop if quality else 0.0, -gain(c.evaluation, "latency"), c.evaluation.size_bytes)
    return {
        name
        for name, p in points.items()
        if not any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in points.values())
    }


def choose(candidates: Sequence[CandidateRecord], objective: Objective) -> tuple[str, tuple[str, ...]]:
    """The candidate to seal, and why.

    Returns:
        Its name, and sentences that explain the choice. The original where no accepted candidate beats it.
    """
    original = next(c for c in candidates if c.origin == "baseline")
    accepted = [c for c in candidates if c.verdict.outcome == "accepted" and c.origin != "baseline" and c.evaluation]
    if not accepted:
        return original.name, (
            "No candidate beat the original within the limits, so the original is sealed.",
            *_tally(candidates),
        )
    worthwhile = [c for c in accepted if any(_gain_of(c, o) > 1.0 + TIE for o in _NEXT[objective])]
    if not worthwhile:
        return original.name, (
            f"The accepted candidates are within {TIE:.0%} of the original in speed and size: not worth a change, so "
            "the original is sealed.",
            *_tally(candidates),
        )
    chosen = order(worthwhile, objective)[0]
    speed = _times(_gain_of(chosen, "latency"), "faster", "slower")
    size = _times(_gain_of(chosen, "size"), "smaller", "larger")
    best = max(_gain_of(c, objective) for c in accepted)
    reasons = [f"'{chosen.name}' is sealed: {speed} and {size} than the original."]
    if len(accepted) > 1:
        equals = sum(_gain_of(c, objective) >= best * (1 - TIE) for c in accepted)
        those = "one of them is" if equals == 1 else f"{equals} of them are"
        reasons.append(
            f"{len(accepted)} candidates were accepted; {those} within {TIE:.0%} of the best on "
            f"{objective} ({best:.2f}x), and among equals {_NEXT[objective][1]} decides."
        )
    return chosen.name, (*reasons, *_tally(candidates))


def order(candidates: Sequence[CandidateRecord], objective: Objective) -> list[CandidateRecord]:
    """Candidates from the one to choose first to the last: the best on the objective, ties broken by the objectives
    that come next, then by being run by the original's backend."""
    left = [c for c in candidates if c.evaluation is not None]
    ranked = []
    while left:
        equal = left
        for step in _NEXT[objective]:
            best = max(_gain_of(c, step) for c in equal)
            equal = [c for c in equal if _gain_of(c, step) >= best * (1 - TIE)]
        first = max(equal, key=lambda c: (not is_moved(c.recipe), _gain_of(c, objective)))
        ranked.append(first)
        left.remove(first)
    return ranked


def _times(gained: float, better: str, worse: str) -> str:
    return f"{gained:.2f}x {better}" if gained >= 1.0 else f"{1 / gained:.2f}x {worse}"


def _gain_of(candidate: CandidateRecord, objective: Objective) -> float:
    return gain(candidate.evaluation, objective) if candidate.evaluation else 0.0


def _tally(candidates: Sequence[CandidateRecord]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for c in candidates:
        if c.origin != "baseline":
            key = f"{c.verdict.outcome} ({c.verdict.gate})" if c.verdict.gate else c.verdict.outcome
            counts[key] = counts.get(key, 0) + 1
    if not counts:
        return ()
    return ("Of all candidates: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())) + ".",)
