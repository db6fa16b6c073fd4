"""Numbers as people read them, the same in the terminal and on the page."""

from __future__ import annotations

from typing import Final

from salver.evaluation.types import BuildRecord, CandidateRecord, Evaluation, Interval, Latency, Quality

MINUS: Final = "\N{MINUS SIGN}"
TIMES: Final = "\N{MULTIPLICATION SIGN}"
DASH: Final = "\N{EN DASH}"

OUTCOMES: Final = {
    "accepted": "accepted",
    "rejected": "rejected",
    "undecided": "undecided",
    "failed": "failed",
    "not-applicable": "not applicable",
    "not-certified": "not certified",
}


def is_share(quality: Quality) -> bool:
    """Whether a metric is a share, so that differences are percentage points."""
    return quality.discordant >= 0 or quality.metric in ("macro-f1", "auc")


def signed(text: str) -> str:
    """With a true minus sign."""
    return text.replace("-", MINUS)


def show_value(quality: Quality, value: float) -> str:
    """A value of the metric: ``98.25 %`` or ``0.0312``."""
    return f"{value * 100:.2f} %" if is_share(quality) else signed(f"{value:.4g}")


def show_drop(quality: Quality) -> str:
    """How much worse: ``0.12 pp``."""
    return f"{_drop(quality, quality.drop)} pp" if is_share(quality) else _drop(quality, quality.drop)


def show_drop_interval(quality: Quality) -> str:
    """Its 95 % interval: ``[-0.10, 0.40]``."""
    return f"[{_drop(quality, quality.drop_ci.low)}, {_drop(quality, quality.drop_ci.high)}]"


def _drop(quality: Quality, value: float) -> str:
    text = f"{value * 100:.2f}" if is_share(quality) else f"{value:.3g}"
    return signed("0.00" if text == "-0.00" else text)


def show_ratio(ratio: float) -> str:
    """``2.03x``."""
    return f"{ratio:.2f}{TIMES}" if ratio < 100 else f"{ratio:.0f}{TIMES}"


def show_interval(interval: Interval) -> str:
    """``[1.98, 2.07]``."""
    return f"[{interval.low:.2f}, {interval.high:.2f}]"


def show_ms(value_ms: float) -> str:
    """A duration with three digits, in the unit that suits it."""
    if value_ms < 1.0:
        return f"{value_ms * 1000:.3g} µs"
    return f"{value_ms:.3g} ms" if value_ms < 1000.0 else f"{value_ms / 1000:.3g} s"


def show_bytes(size: float) -> str:
    """``3.2 MB``, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if size < 1000.0:
            return f"{size:.3g} {unit}"
        size /= 1000.0
    return f"{size:.3g} GB"


def show_seconds(seconds: float) -> str:
    """``48 s`` or ``3 min 05 s``."""
    return f"{seconds:.0f} s" if seconds < 100.0 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def size_ratio(evaluation: Evaluation) -> float | None:
    """How many times smaller than the baseline; None when not measured."""
    if not evaluation.size_bytes or not evaluation.baseline_size_bytes:
        return None
    return evaluation.baseline_size_bytes / evaluation.size_bytes


def show_size_ratio(ratio: float) -> str:
    """``3.69x smaller``, ``1.20x larger`` or ``same``."""
    if 0.995 < ratio < 1.005:
        return "same"
    return f"{show_ratio(ratio)} smaller" if ratio > 1.0 else f"{show_ratio(1.0 / ratio)} larger"


def asked_latency(candidate: CandidateRecord) -> Latency | None:
    """The timing at the threads and batch asked for."""
    return candidate.evaluation.latency[0] if candidate.evaluation and candidate.evaluation.latency else None


def quality_of(candidate: CandidateRecord) -> Quality | None:
    """The gated metric on the strongest evidence there is."""
    return candidate.evaluation.quality if candidate.evaluation else None


def verdict_word(record: BuildRecord, candidate: CandidateRecord) -> str:
    """One or two words for the verdict."""
    if candidate.name == record.chosen:
        return "chosen"
    return "original" if candidate.origin == "baseline" else OUTCOMES[candidate.verdict.outcome]
