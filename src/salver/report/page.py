"""One self-contained HTML page about a build: no scripts, no fonts, nothing fetched. Everything from outside is
escaped."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

import msgspec

from salver.core.model import Step
from salver.evaluation import format_margin, parse_margin
from salver.evaluation.noninferiority import margin_in_unit
from salver.evaluation.parity import ParityCertificate
from salver.evaluation.types import BuildRecord, CandidateRecord, Margin, Quality
from salver.report import words
from salver.report.details import draw_details
from salver.report.parity import draw_parity
from salver.report.plot import draw_pareto
from salver.report.style import STYLE

_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_ROLES: Final = {
    "calibrate": "set the scales of quantized tensors",
    "steer": "guided the search",
    "certify": "untouched until the end; they alone decide",
}


def render_page(
    record: BuildRecord,
    *,
    title: str,
    lineage: Sequence[Step] = (),
    digests: Mapping[str, str] = {},
    parity: ParityCertificate | None = None,
) -> str:
    """The page, as text.

    It carries a Content-Security-Policy that allows its own style sheet, by hash, and nothing else.

    Args:
        record: what the build found out.
        title: name of the model or bundle.
        lineage: how the sealed model came about, oldest first.
        digests: name -> digest, of the bundle and what is in it.
        parity: the importer's certificate.
    """
    margin = read_margin(record.settings)
    quality = words.quality_of(record.sealed) or next(
        (q for c in record.candidates if (q := words.quality_of(c))), None
    )
    allowed = margin_in_unit(margin, quality.baseline) if margin and quality else None
    sections = (
        _header(record, title, margin),
        _plot(record, allowed),
        _table(record, quality),
        _method(record, quality, margin),
        draw_parity(parity) if parity else "",
        _lineage(lineage),
        _facts(record, digests),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src '
        f"'sha256-{_STYLE_HASH}'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)} · Salver report</title><style>{STYLE}</style></head>\n"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def read_margin(settings: Mapping[str, Any]) -> Margin | None:
    """The margin of a build from its settings: ``margin`` as text (``0.5pp``) or as plain data of `Margin`."""
    value = settings.get("margin")
    if value is None or isinstance(value, Margin):
        return value
    return parse_margin(value) if isinstance(value, str) else msgspec.convert(value, Margin)


def _header(record: BuildRecord, title: str, margin: Margin | None) -> str:
    sealed = record.sealed
    why = " ".join(record.why)
    name = "the original, unchanged" if sealed.origin == "baseline" else sealed.name
    return (
        '<header><div class="mark">Salver · tasted before it is served</div>'
        f'<h1>{escape(title)}</h1><p class="lead">Chosen: <b>{escape(name)}</b>. {escape(why)}</p></header>'
        f'<div class="tiles">{"".join(_tiles(sealed, margin))}</div>'
    )


def _tiles(sealed: CandidateRecord, margin: Margin | None) -> list[str]:
    tiles = []
    quality, latency = words.quality_of(sealed), words.asked_latency(sealed)
    changed = sealed.origin != "baseline"
    if latency:
        each = f"{words.show_ms(latency.p50_ms)} a run, batch {latency.batch}, {_count(latency.threads, 'thread')}"
        if changed:
            more = f"95 %: {words.show_interval(latency.speedup_ci)}; {each}"
            tiles.append(
                _tile("faster than the original", words.show_ratio(latency.speedup), more, latency.speedup > 1)
            )
        else:
            tiles.append(_tile("latency, p50", words.show_ms(latency.p50_ms), each, False))
    smaller = words.size_ratio(sealed.evaluation) if sealed.evaluation else None
    if sealed.evaluation and smaller:
        size = words.show_bytes(sealed.evaluation.size_bytes)
        if changed:
            more = f"{words.show_bytes(sealed.evaluation.baseline_size_bytes)} to {size}"
            tiles.append(_tile("smaller than the original", words.show_ratio(smaller), more, smaller > 1.005))
        else:
            tiles.append(_tile("model size", size, "", False))
    if quality and changed:
        limit = f", {format_margin(margin)} allowed" if margin else ""
        more = f"95 %: {words.show_drop_interval(quality)}{limit}"
        tiles.append(
            _tile(f"{quality.metric} drop", words.show_drop(quality), more, sealed.verdict.outcome == "accepted")
        )
    if quality:
        more = f"original {words.show_value(quality, quality.baseline)}, {quality.examples:,} examples"
        tiles.append(_tile(quality.metric, words.show_value(quality, quality.value), more, False))
    return tiles


def _tile(what: str, value: str, more: str, good: bool) -> str:
    return (
        f'<div class="tile{" good" if good else ""}"><div class="value">{escape(value)}</div>'
        f'<div class="what">{escape(what)}</div><div class="more">{escape(more)}</div></div>'
    )


def _plot(record: BuildRecord, allowed: float | None) -> str:
    svg = draw_pareto(record, allowed)
    if not svg:
        return ""
    keys = (
        ("chosen", "chosen"),
        ("accepted", "accepted"),
        ("rejected", "rejected"),
        ("undecided", "undecided"),
        ("idle", "measured, not certified"),
        ("original", "original"),
    )
    legend = "".join(f'<span class="key {kind}">{text}</span>' for kind, text in keys)
    return (
        f'<h2>Quality against speed</h2><div class="card">{svg}<div class="legend">{legend}<span>dot size: model size; '
        "whisker: 95 % interval; green line: Pareto front; numbers: the rows below</span></div></div>"
    )


def _table(record: BuildRecord, quality: Quality | None) -> str:
    metric = escape(quality.metric) if quality else "quality"
    heads = "".join(
        f"<th{' class=n' if right else ''}>{text}</th>"
        for text, right in (
            ("#", True),
            ("candidate", False),
            ("verdict", False),
            (f"{metric} drop", True),
            ("speed-up", True),
            ("p50", True),
            ("size", True),
        )
    )
    rows = "".join(_row(record, number, candidate) for number, candidate in enumerate(record.candidates))
    return (
        f"<h2>Every candidate, and why</h2>"
        f'<div class="card candidates scroll"><table><thead><tr>{heads}</tr></thead>{rows}</table></div>'
    )


def _row(record: BuildRecord, number: int, candidate: CandidateRecord) -> str:
    word = words.verdict_word(record, candidate)
    kind = word.replace(" ", "-")
    quality, latency = words.quality_of(candidate), words.asked_latency(candidate)
    smaller = words.size_ratio(candidate.evaluation) if candidate.evaluation else None
    baseline = candidate.origin == "baseline"
    cells = [words.DASH, words.DASH, words.DASH, words.DASH]
    if quality:
        cells[0] = (
            escape(words.show_value(quality, quality.baseline))
            if baseline
            else _two(words.show_drop(quality), words.show_drop_interval(quality))
        )
    if latency:
        speed = words.show_ratio(latency.speedup)
        cells[1] = words.show_ratio(1.0) if baseline else _two(speed, words.show_interval(latency.speedup_ci))
        cells[2] = _two(words.show_ms(latency.p50_ms), f"p99 {words.show_ms(latency.p99_ms)}")
    if candidate.evaluation and smaller:
        size = words.show_bytes(candidate.evaluation.size_bytes)
        cells[3] = size if baseline else _two(words.show_size_ratio(smaller), size)
    reason = candidate.verdict.reason or ("what all others are compared with" if baseline else "")
    numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
    return (
        f'<tbody class="{kind}"><tr><td class="n dim">{number}</td>'
        f'<td><div class="title">{escape(candidate.name)}</div><span class="dim">{escape(candidate.origin)}</span></td>'
        f'<td><span class="badge {kind}">{escape(word)}</span></td>{numbers}</tr>'
        f'<tr class="under"><td></td><td colspan="6"><div class="reason">{escape(reason)}</div>'
        f"{draw_details(candidate)}</td></tr></tbody>"
    )


def _two(value: str, more: str) -> str:
    return f'{escape(value)}<br><span class="dim">{escape(more)}</span>'


def _method(record: BuildRecord, quality: Quality | None, margin: Margin | None) -> str:
    rows = "".join(
        f'<tr><td>{escape(role)}</td><td class="n">{count:,}</td><td '
        f'class="dim">{escape(_ROLES.get(role, ""))}</td></tr>'
        for role, count in record.splits.items()
    )
    limit = f"at most {format_margin(margin)} below the original" if margin else "within the margin"
    what = escape(quality.method) if quality else "no quality was measured"
    return (
        '<h2>How it was judged</h2><div class="card"><p>A candidate is accepted when the data refute, at 95 %, '
        "that it is worse "
        f"than allowed: its quality must be {limit}. Candidate and original answer the same examples, and the "
        f"test counts where they differ. Method: {what}. The examples that calibrate, steer and certify are "
        "disjoint; at most "
        "five finalists are certified, with Holm's correction for looking at several. Too few examples give "
        "<i>undecided</i>, never <i>accepted</i>.</p><p>Speed is the median ratio of runs taken in turns with "
        "the original in "
        "one process, with a distribution-free interval; warm-up is left out. A speed-up holds for the host "
        "named below.</p>"
        '<table><thead><tr><th>examples</th><th class="n">number</th><th>what '
        f"for</th></tr></thead>{rows}</table></div>"
    )


def _lineage(lineage: Sequence[Step]) -> str:
    if not lineage:
        return ""
    items = []
    for step in lineage:
        tools = ", ".join(f"{name} {version}" for name, version in step.tools.items())
        config = (
            f"<pre>{escape(json.dumps(step.config, indent=1, sort_keys=True, default=str))}</pre>"
            if step.config
            else ""
        )
        items.append(
            f"<li><b>{escape(step.name)}</b> <span "
            f"class=dim>{escape(step.action)}{' · ' if tools else ''}{escape(tools)}"
            f"</span><br><code class=dim>{escape(step.output_digest)}</code>{config}</li>"
        )
    return f'<h2>Where the sealed model comes from</h2><div class="card"><ol class="steps">{"".join(items)}</ol></div>'


def _facts(record: BuildRecord, digests: Mapping[str, str]) -> str:
    host = record.host
    machine = {
        "CPU": host.cpu,
        "instruction sets": ", ".join(host.features) or words.DASH,
        "cores": str(host.cores),
        "memory": words.show_bytes(host.memory_bytes),
        "system": host.os,
        "Python": host.python,
        "fingerprint": host.fingerprint,
    }
    tables = [
        _facts_table("Host", machine),
        _facts_table("Tools", record.tools),
        _facts_table("Settings", {k: _plain(v) for k, v in record.settings.items()}),
        _facts_table("Hints for serving", {k: _plain(v) for k, v in record.hints.items()}),
        _facts_table("Digests", digests),
    ]
    return (
        f'<h2>Host, tools and settings</h2><div class="facts">{"".join(tables)}</div>'
        f"<footer>Built in {words.show_seconds(record.seconds)}, {_count(len(record.candidates), 'candidate')} "
        "including the "
        "original. Without a signature a digest detects damage, not tampering.</footer>"
    )


def _plain(value: Any) -> str:
    if isinstance(value, Margin):
        return format_margin(value)
    if isinstance(value, Mapping) and set(value) <= {"value", "relative"} and "value" in value:
        return format_margin(msgspec.convert(value, Margin))
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _facts_table(title: str, facts: Mapping[str, str]) -> str:
    if not facts:
        return ""
    rows = "".join(f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    return f'<div class="card"><h3>{escape(title)}</h3><table>{rows}</table></div>'


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
