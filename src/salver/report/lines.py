"""Line plots as one SVG, and a page around them."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from html import escape
from typing import Final

import msgspec

from salver.report.style import STYLE

_WIDTH, _HEIGHT = 960.0, 400.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 84.0, 132.0, 24.0, 56.0
_COLORS: Final = ("#12805c", "#8a5a1f", "#b3362b", "#3b6ea8", "#79808c", "#8e4fa8")
_STYLE: Final = STYLE + (
    "svg .series{fill:none;stroke:var(--c);stroke-width:2.2;stroke-linejoin:round}svg .point{fill:var(--c)}"
    "svg .label{font-weight:600;fill:var(--c)}svg .limit{stroke:var(--bad);stroke-dasharray:5 4}"
    + "".join(f"svg .s{number}{{--c:{color}}}" for number, color in enumerate(_COLORS))
)
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()


class Series(msgspec.Struct, frozen=True):
    """One line: its name and its points ``(x, y)`` from left to right."""

    name: str
    points: tuple[tuple[float, float], ...]


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """One axis.

    Args:
        label: with its unit.
        is_log: whether it is logarithmic; all values are above zero then.
        ticks: where and what is written, instead of round values.
        limit: a value marked across the plot.
        limit_label: what is written there.
    """

    label: str
    is_log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()
    limit: float | None = None
    limit_label: str = ""


class _Scale(msgspec.Struct, frozen=True):
    low: float
    high: float
    start: float
    stop: float
    is_log: bool

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.is_log else (self.low, self.high)
        place = math.log(max(value, self.low)) if self.is_log else value
        return self.start + (place - low) / (high - low) * (self.stop - self.start)


def draw_lines(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """The plot.

    Args:
        series: at least one, with at least one point in all.
    """
    points = [point for each in series for point in each.points]
    limits = [] if y.limit is None else [y.limit]
    across = _scale(x, [px for px, _ in points], _LEFT, _WIDTH - _RIGHT)
    up = _scale(y, [*(py for _, py in points), *limits], _HEIGHT - _BOTTOM, _TOP)
    parts = [_frame(x, y, across, up)]
    ends: list[float] = []
    for number, each in enumerate(series):
        parts.append(_line(each, across, up, f"s{number % len(_COLORS)}", ends))
    return (
        f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def render_plots(title: str, plots: Sequence[tuple[str, str]]) -> str:
    """A page of plots, each with its heading; nothing is fetched by it."""
    body = "".join(f'<h2>{escape(heading)}</h2><div class="card">{svg}</div>' for heading, svg in plots)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src '
        f"'sha256-{_HASH}'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main><header><h1>{escape(title)}</h1></header>{body}</main></body></html>\n"
    )


def standalone(svg: str) -> str:
    """A plot as a file of its own, with its style in it."""
    head, _, rest = svg.partition(">")
    return f"{head}><style>{_STYLE}</style>{rest}\n"


def _scale(axis: Axis, values: list[float], start: float, stop: float) -> _Scale:
    ticks = [place for place, _ in axis.ticks]
    low, high = min([*values, *ticks]), max([*values, *ticks])
    if axis.is_log:
        low = max(low, high * 1e-9, 1e-12)
        return _Scale(low / 1.15, max(high, low * 1.01) * 1.15, start, stop, True)
    if not ticks:
        low, high = min(low, 0.0), high * 1.06
    return _Scale(low, high if high > low else low + 1.0, start, stop, False)


def _frame(x: Axis, y: Axis, across: _Scale, up: _Scale) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<rect class="field" x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}" rx="6"/>']
    for value, text in x.ticks or _ticks(across):
        at = across(value)
        parts.append(
            f'<line class="grid" x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{bottom}"/>'
            f'<text class="tick" x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(text)}</text>'
        )
    for value, text in y.ticks or _ticks(up):
        at = up(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        )
    if y.limit is not None:
        at = up(y.limit)
        parts.append(
            f'<line class="limit" x1="{_LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>'
            f'<text class="margin-text" x="{_LEFT + 8}" y="{at - 6:.1f}">{escape(y.limit_label)}</text>'
        )
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text class="axis" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(x.label)}</text>'
        f'<text class="axis" x="20" y="{middle}" text-anchor="middle" transform="rotate(-90 20 {middle})">'
        f"{escape(y.label)}</text>"
    )
    return "".join(parts)


def _line(series: Series, across: _Scale, up: _Scale, kind: str, ends: list[float]) -> str:
    if not series.points:
        return ""
    places = [(across(x), up(y)) for x, y in series.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle class="point {kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in places)
    x, y = places[-1]
    while any(abs(y - other) < 14.0 for other in ends):  # names do not stand on each other
        y -= 14.0
    ends.append(y)
    dots = dots if len(places) <= 40 else ""
    return (
        f'<polyline class="series {kind}" points="{path}"/>{dots}'
        f'<text class="label {kind}" x="{x + 8:.1f}" y="{y + 4:.1f}">{escape(series.name)}</text>'
    )


def _ticks(scale: _Scale) -> list[tuple[float, str]]:
    if scale.is_log:
        span = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
        found = [step * 10.0**e for e in span for step in (1.0, 2.0, 5.0)]
        found = [value for value in found if scale.low <= value <= scale.high]
        if len(found) > 12:
            found = [value for value in found if f"{value:e}".startswith("1.")]
    else:
        rough = (scale.high - scale.low) / 6
        base = 10.0 ** math.floor(math.log10(rough))
        step = next(s * base for s in (1, 2, 5, 10) if s * base >= rough)
        found = [n * step for n in range(math.ceil(scale.low / step), math.floor(scale.high / step) + 1)]
    return [(value, f"{value:g}") for value in found]
