"""What was measured of a candidate, and what was decided about it. Plain data: it is stored in bundles and reports."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A confidence interval; ``level`` is its coverage (0.95), one-sided bounds say so by the field they stand in."""

    low: float
    high: float
    level: float = 0.95


class Margin(msgspec.Struct, frozen=True, kw_only=True):
    """How much worse is still not worse: ``0.5pp`` is ``value=0.005, relative=False``; ``1%`` is ``value=0.01,
    relative=True`` (of the baseline's own value)."""

    value: float
    relative: bool = False


class ClassQuality(msgspec.Struct, frozen=True, kw_only=True):
    """Recall of one class, baseline and candidate, on the certification examples."""

    label: str
    examples: int
    baseline: float
    candidate: float


class Quality(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One metric of a candidate, paired with the baseline on the same examples.

    Args:
        metric: its name.
        higher_is_better: its direction.
        value, baseline: the metric of candidate and baseline.
        drop: how much worse the candidate is, in the metric's own unit (positive is worse).
        drop_ci: two-sided 95 % interval of the drop.
        drop_upper: one-sided 95 % upper bound of the drop, unadjusted.
        p_value: of the hypothesis that the true drop is at least the margin; None when only steering.
        method: how interval and p-value were found, with the source.
        examples: number of paired examples.
        discordant: examples on which exactly one of the two is right (accuracy-like metrics), else -1.
        per_class: recall by class, for classification.
        role: ``steer`` (measured to guide the search) or ``certify`` (untouched examples).
    """

    metric: str
    higher_is_better: bool
    value: float
    baseline: float
    drop: float
    drop_ci: Interval
    drop_upper: float
    method: str
    examples: int
    p_value: float | None = None
    discordant: int = -1
    per_class: tuple[ClassQuality, ...] = ()
    role: Literal["steer", "certify"] = "steer"


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Timing of a candidate, interleaved with the baseline in the same process.

    Args:
        threads, batch: at which it was measured.
        runs: timed runs of each, warm-up excluded.
        p50_ms, p95_ms, p99_ms: wall time of one run (a whole batch).
        cpu_ms: process CPU time per run.
        baseline_p50_ms, baseline_cpu_ms: the same of the baseline in the same interleaved run.
        speedup: baseline / candidate, median of paired ratios; above 1 is faster.
        speedup_ci: 95 % interval of that median.
    """

    threads: int
    batch: int
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: float
    baseline_p50_ms: float
    baseline_cpu_ms: float
    speedup: float
    speedup_ci: Interval


class Invariance(msgspec.Struct, frozen=True, kw_only=True):
    """Whether batch-mates change each other's answers: outputs at batch N against batch 1, on the same rows.

    Args:
        batch_sizes: sizes compared with 1; empty when the model has no batch dimension.
        max_abs, max_rel: largest difference, absolute and relative to ``1 + |value at batch 1|``.
        label_flips: rows whose arg-max changed.
        rows: rows compared.
        invariant: whether requests may be merged.
        reason: why not, and what that costs; empty when invariant.
    """

    batch_sizes: tuple[int, ...]
    max_abs: float
    max_rel: float
    label_flips: int
    rows: int
    invariant: bool
    reason: str = ""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured of one candidate.

    Args:
        steer, certify: quality on the examples that guide the search, and on those that certify; the first entry of
            each is the metric the gate is on.
        latency: the batch and threads asked for first, then the throughput batch.
        size_bytes, baseline_size_bytes: of the model blobs.
        peak_memory_bytes: growth of the process' resident memory from before loading to its peak while running.
        baseline_peak_memory_bytes: the same of the baseline.
        invariance: see `Invariance`.
        nonfinite_outputs: elements that are NaN or infinite where the baseline's are finite.
    """

    steer: tuple[Quality, ...] = ()
    certify: tuple[Quality, ...] = ()
    latency: tuple[Latency, ...] = ()
    size_bytes: int = 0
    baseline_size_bytes: int = 0
    peak_memory_bytes: int = 0
    baseline_peak_memory_bytes: int = 0
    invariance: Invariance | None = None
    nonfinite_outputs: int = 0

    @property
    def quality(self) -> Quality | None:
        """The gated metric on the strongest evidence there is."""
        best = self.certify or self.steer
        return best[0] if best else None


Outcome = Literal["accepted", "rejected", "undecided", "failed", "not-applicable", "not-certified"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was decided of a candidate.

    Args:
        outcome: ``accepted``; ``rejected`` because worse, slower, larger or not finite; ``undecided``: too few
            examples; ``failed``: crashed, hung or ran out of memory; ``not-applicable``: a pass had nothing to do;
            ``not-certified``: measured, but not among the finalists.
        reason: one sentence.
        gate: the limit that decided: ``quality``, ``speed``, ``size``, ``finite``, or empty.
        more_examples: for ``undecided``, about how many more would decide.
    """

    outcome: Outcome
    reason: str
    gate: str = ""
    more_examples: int = 0


class CandidateRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One candidate of a build: how it was made, what was measured, what was decided.

    Args:
        name: short and unique in the build (``int8-static conv+matmul per-tensor``); ``original`` is the baseline.
        recipe: one ``{"pass": name, "config": {...}}`` per pass, in order.
        origin: who proposed it: ``baseline``, ``runtime-default``, ``preset``, ``refined``.
        digest: of the model; empty when it was not made.
        on_front: whether it is on the Pareto front of accepted candidates (quality, latency, size).
        seconds: wall time spent on it.
    """

    name: str
    recipe: tuple[dict[str, Any], ...]
    origin: str
    verdict: Verdict
    evaluation: Evaluation | None = None
    digest: str = ""
    on_front: bool = False
    seconds: float = 0.0


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """The machine on which something was measured. ``fingerprint`` is a digest of CPU model and instruction sets."""

    cpu: str
    features: tuple[str, ...]
    cores: int
    memory_bytes: int
    os: str
    python: str
    fingerprint: str


class BuildRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a build found out, as stored in the bundle and shown by the report.

    Args:
        settings: metric, margin, objective, threads, batch and budget, as plain data.
        splits: role -> number of examples (``calibrate``, ``steer``, ``certify``).
        candidates: the original first, then in the order tried.
        chosen: name of the sealed candidate.
        why: sentences that explain the choice.
        hints: what a server should use where nothing better is known: threads, batch, ``merge`` (bool) and why.
        host: where it was measured.
        tools: library -> version.
        seconds: wall time of the build.
    """

    settings: dict[str, Any]
    splits: dict[str, int]
    candidates: tuple[CandidateRecord, ...]
    chosen: str
    why: tuple[str, ...]
    hints: dict[str, Any]
    host: Host
    tools: dict[str, str]
    seconds: float

    @property
    def sealed(self) -> CandidateRecord:
        """The record of the chosen candidate."""
        return next(c for c in self.candidates if c.name == self.chosen)
