"""The Pareto plot as one SVG: latency against quality drop, with the size of the model as the size of the dot."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape

import msgspec

from salver.evaluation.types import BuildRecord, CandidateRecord, Latency, Quality
from salver.report import words

_WIDTH, _HEIGHT = 960.0, 440.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 76.0, 28.0, 24.0, 56.0


class _Dot(msgspec.Struct, frozen=True):
    number: int
    candidate: CandidateRecord
    quality: Quality
    latency: Latency
    radius: float


class _Scale(msgspec.Struct, frozen=True):
    """Maps values to pixels through a monotone function."""

    warp: Callable[[float], float]
    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (self.warp(value) - self.warp(self.low)) / (self.warp(self.high) - self.warp(self.low))
        return self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start)


def draw_pareto(record: BuildRecord, margin: float | None) -> str:
    """The plot, or nothing when no candidate was both scored and timed.

    Args:
        margin: the drop allowed, in the metric's unit, drawn as a line.
    """
    dots = _find_dots(record)
    if not dots:
        return ""
    share = words.is_share(dots[0].quality)
    linear = margin or max(max((abs(d.quality.drop) for d in dots), default=0.0) / 20.0, 1e-9)
    drops = [d.quality.drop for d in dots]
    low, high = min(*drops, 0.0, -0.3 * linear), max(*drops, 1.6 * linear)
    y = _Scale(lambda v: math.asinh(v / linear), low, high * 1.25, _HEIGHT - _BOTTOM - 34.0, _TOP + 14.0)
    times = [d.latency.p50_ms for d in dots]
    x = _Scale(math.log, min(times) / 1.3, max(times) * 1.3, _LEFT, _WIDTH - _RIGHT)
    parts = [_draw_axes(x, y, linear, share), _draw_margin(y, margin, share), _draw_front(dots, x, y)]
    parts += [_draw_dot(record, dot, x, y) for dot in sorted(dots, key=lambda d: -d.radius)]
    parts += _draw_names(record, dots, x, y)
    title = "Candidates by latency and quality drop"
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{title}">'
        f"{''.join(parts)}</svg>"
    )


def _find_dots(record: BuildRecord) -> list[_Dot]:
    found = []
    largest = max((c.evaluation.size_bytes for c in record.candidates if c.evaluation), default=0) or 1
    for number, candidate in enumerate(record.candidates):
        quality, latency = words.quality_of(candidate), words.asked_latency(candidate)
        if quality and latency and candidate.evaluation:
            radius = 5.0 + 9.0 * math.sqrt(candidate.evaluation.size_bytes / largest)
            found.append(_Dot(number, candidate, quality, latency, radius))
    return found


def _draw_axes(x: _Scale, y: _Scale, linear: float, share: bool) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<rect class="field" x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}" rx="6"/>']
    for value in _ticks_log(x.low, x.high):
        at = x(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{words.show_ms(value)}</text>'
        )
    for value in _ticks_drop(y, linear):
        at = y(value)
        text = words.signed(f"{value * 100:g}" if share else f"{value:.3g}")
        kind = "zero" if value == 0.0 else "grid"
        parts.append(f'<line class="{kind}" x1="{_LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    middle = (_TOP + bottom) / 2
    unit = " (percentage points)" if share else ""
    parts.append(
        f'<text class="axis" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 12}" text-anchor="middle">'
        "latency, p50 (log scale) · left is faster</text>"
        f'<text class="axis" x="20" y="{middle}" text-anchor="middle" transform="rotate(-90 20 {middle})">'
        f"quality drop{unit} · down is better</text>"
    )
    return "".join(parts)


def _draw_margin(y: _Scale, margin: float | None, share: bool) -> str:
    if not margin:
        return ""
    at, right = y(margin), _WIDTH - _RIGHT
    amount = f"{margin * 100:.3g} pp" if share else f"{margin:.3g}"
    return (
        f'<rect class="over" x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{at - _TOP:.1f}"/>'
        f'<line class="margin" x1="{_LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>'
        f'<text class="margin-text" x="{right - 8}" y="{at - 6:.1f}" text-anchor="end">allowed: {amount}</text>'
    )


def _draw_front(dots: list[_Dot], x: _Scale, y: _Scale) -> str:
    front = sorted((d for d in dots if d.candidate.on_front), key=lambda d: d.latency.p50_ms)
    if len(front) < 2:
        return ""
    points = " ".join(f"{x(d.latency.p50_ms):.1f},{y(d.quality.drop):.1f}" for d in front)
    return f'<polyline class="front" points="{points}"/>'


def _draw_dot(record: BuildRecord, dot: _Dot, x: _Scale, y: _Scale) -> str:
    cx, cy = x(dot.latency.p50_ms), y(dot.quality.drop)
    word = words.verdict_word(record, dot.candidate)
    kind = word.replace(" ", "-")
    size = words.show_bytes(dot.candidate.evaluation.size_bytes) if dot.candidate.evaluation else ""
    tip = (
        f"{dot.candidate.name}: {word}. Drop {words.show_drop(dot.quality)} {words.show_drop_interval(dot.quality)}, "
        f"p50 {words.show_ms(dot.latency.p50_ms)}, {words.show_ratio(dot.latency.speedup)} the original's speed, {size}"
    )
    low, high = y(dot.quality.drop_ci.low), y(dot.quality.drop_ci.high)
    whisker = (
        ""
        if dot.candidate.origin == "baseline"
        else f'<line class="whisker" x1="{cx:.1f}" y1="{low:.1f}" x2="{cx:.1f}" y2="{high:.1f}"/>'
    )
    ring = f'<circle class="ring" cx="{cx:.1f}" cy="{cy:.1f}" r="{dot.radius + 4:.1f}"/>' if word == "chosen" else ""
    return (
        f'<g class="dot {kind}"><title>{escape(tip)}</title>{whisker}{ring}'
        f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{dot.radius:.1f}"/>'
        f'<text class="number" x="{cx:.1f}" y="{cy + 3.5:.1f}" text-anchor="middle">{dot.number}</text></g>'
    )


def _draw_names(record: BuildRecord, dots: list[_Dot], x: _Scale, y: _Scale) -> list[str]:
    """The chosen one is named below its dot, the original above."""
    parts = []
    for dot in dots:
        word = words.verdict_word(record, dot.candidate)
        if word not in ("chosen", "original"):
            continue
        cx, cy = x(dot.latency.p50_ms), y(dot.quality.drop)
        anchor = "start" if cx < _WIDTH * 0.3 else "end" if cx > _WIDTH * 0.75 else "middle"
        below = dot.candidate.name == record.chosen
        at = cy + dot.radius + 20.0 if below else cy - dot.radius - 10.0
        name = escape(dot.candidate.name)
        parts.append(f'<text class="name" x="{cx:.1f}" y="{at:.1f}" text-anchor="{anchor}">{name}</text>')
    return parts


def _ticks_log(low: float, high: float) -> list[float]:
    steps = (1.0, 2.0, 5.0)
    span = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [s * 10.0**e for e in span for s in steps if low <= s * 10.0**e <= high]
    return found if len(found) >= 2 else [low * (high / low) ** (i / 4) for i in range(5)]


def _ticks_drop(y: _Scale, linear: float) -> list[float]:
    base = 10.0 ** math.floor(math.log10(linear))
    found = [0.0]
    for exponent in range(8):
        for step in (1.0, 2.0, 5.0):
            value = step * base * 10.0**exponent
            for tick in (value, -value):
                far = all(abs(y(tick) - y(other)) > 24.0 for other in found)
                if y.low <= tick <= y.high and far:
                    found.append(tick)
    return found
