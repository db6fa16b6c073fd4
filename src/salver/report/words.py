"""Numbers as people read them, the same in the terminal and on the page."""

from __future__ import annotations

from typing import Final

from salver.evaluation.parity import ULP_BINS, OutputParity, ParityCertificate
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


def show_parity(output: OutputParity) -> str:
    """How far an output is from the original's: ``max 1.2e-07, mean 3e-08, 92.1 % within 1 ULP, labels 100 %``."""
    parts = [
        f"max {output.max_abs:.2g} (relative {output.max_rel:.2g})",
        f"mean {output.mean_abs:.2g} (relative {output.mean_rel:.2g})",
    ]
    if output.ulps:
        parts.append(f"{show_share(sum(output.ulps[:2]) / sum(output.ulps))} within 1 ULP, {show_ulps(output.ulps)}")
    return ", ".join([*parts, f"same label {show_share(output.label_agreement)}"])


def show_ulps(ulps: tuple[int, ...]) -> str:
    """Where the histogram ends: ``all within 31``."""
    farthest = (1 << (len(ulps) - 1)) - 1
    return f"all within {farthest}" if len(ulps) < ULP_BINS else f"some beyond {farthest >> 1}"


def show_ulp_bins(ulps: tuple[int, ...]) -> str:
    """The histogram: ``0: 812, 1: 90, 2-3: 8``."""
    named = [(0, 0), *((1 << (k - 1), (1 << k) - 1) for k in range(1, len(ulps)))]
    last = len(ulps) == ULP_BINS
    parts = []
    for k, ((low, high), count) in enumerate(zip(named, ulps, strict=True)):
        name = f"{low} and more" if last and k == ULP_BINS - 1 else f"{low}" if low == high else f"{low}{DASH}{high}"
        parts += [f"{name}: {count:,}"] if count else []
    return ", ".join(parts)


def tested_sizes(certificate: ParityCertificate) -> str:
    """What sizes a certificate covers: ``batch 1, 7, 32; time 1, 8, 24``."""
    dims = [("batch", certificate.batch_sizes), *((d.name, d.sizes) for d in certificate.dims)]
    told = [f"{name.lstrip('?')} {', '.join(map(str, sizes))}" for name, sizes in dims if sizes]
    return "; ".join(told) or "as given"


def tell_parity(certificate: ParityCertificate) -> list[str]:
    """What stands behind a certificate, a sentence each."""
    lines = [
        f"Against {certificate.original}, on {certificate.examples} examples "
        f"({'your data' if certificate.inputs == 'data' else f'synthetic, seed {certificate.seed}'}).",
        f"Sizes tried: {tested_sizes(certificate)}.",
        f"Limit {certificate.tolerance:.2g} relative to 1 + |original|: {certificate.rule or 'as asked for'}.",
        f"{len(certificate.recorded)} runs of the original are recorded; 'salver verify' repeats them.",
    ]
    if certificate.changed_by:
        passes = ", ".join(certificate.changed_by)
        lines.append(f"After the crossing, {passes} changed numbers on purpose: quality judges the sealed model.")
    return lines


def show_share(share: float) -> str:
    """``100 %``, ``97.5 %``; 100 only for all."""
    text = f"{share * 100:.1f}"
    return f"{'99.9' if text == '100.0' and share != 1.0 else text.removesuffix('.0')} %"
