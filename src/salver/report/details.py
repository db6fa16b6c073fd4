"""What unfolds below a candidate's row: recipe, quality, classes, timings, batch invariance, memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

from salver.evaluation.types import CandidateRecord, ClassQuality, Evaluation, Latency, Quality
from salver.report import words

_CLASSES_SHOWN: Final = 12


def draw_details(candidate: CandidateRecord) -> str:
    """A ``<details>`` element; nothing when there is nothing to show."""
    parts = []
    if candidate.recipe:
        recipe = "\n".join(_describe_pass(step) for step in candidate.recipe)
        parts.append(f'<div class="wide"><h3>Recipe</h3><pre>{escape(recipe)}</pre></div>')
    if candidate.evaluation:
        parts += _draw_evaluation(candidate.evaluation)
    if candidate.digest:
        spent = words.show_seconds(candidate.seconds)
        parts.append(f'<div class="wide"><h3>Model</h3><code>{escape(candidate.digest)}</code><br>{spent} spent</div>')
    content = "".join(part for part in parts if part)
    return f'<details><summary>details</summary><div class="inside">{content}</div></details>' if content else ""


def _describe_pass(step: dict[str, Any]) -> str:
    config = {name: value for name, value in step.get("config", {}).items() if name != "version"}
    return f"{step.get('pass', '')} {json.dumps(config, sort_keys=True, default=str) if config else ''}".rstrip()


def _draw_evaluation(evaluation: Evaluation) -> list[str]:
    best = evaluation.quality
    return [
        _draw_qualities((*evaluation.certify, *evaluation.steer)),
        _draw_latencies(evaluation.latency),
        _draw_classes(best.per_class) if best else "",
        _draw_rest(evaluation),
    ]


def _draw_qualities(qualities: Sequence[Quality]) -> str:
    rows = []
    for q in qualities:
        p_value = words.DASH if q.p_value is None else f"{q.p_value:.2g}"
        differ = words.DASH if q.discordant < 0 else f"{q.discordant:,}"
        drop = f"{words.show_drop(q)} {words.show_drop_interval(q)}"
        cells = (f"{q.metric}, {q.role}", f"{q.examples:,}", words.show_value(q, q.value), drop, differ, p_value)
        rows.append(cells)
    return _table("Quality", ("metric", "examples", "value", "drop", "one right only", "p"), rows)


def _draw_latencies(latencies: Sequence[Latency]) -> str:
    rows = []
    for t in latencies:
        ratio = f"{words.show_ratio(t.speedup)} {words.show_interval(t.speedup_ci)}"
        each = " / ".join(words.show_ms(v) for v in (t.p50_ms, t.p95_ms, t.p99_ms))
        rows.append((f"{t.batch} @ {t.threads}", each, words.show_ms(t.cpu_ms), ratio, f"{t.runs:,}"))
    return _table("Latency", ("batch @ threads", "p50 / p95 / p99", "CPU a run", "speed-up", "runs"), rows)


def _draw_classes(classes: Sequence[ClassQuality]) -> str:
    changed = sorted(
        (c for c in classes if c.candidate != c.baseline), key=lambda c: (c.candidate - c.baseline) * c.examples
    )
    if not classes:
        return ""
    if not changed:
        return f"<div><h3>Recall by class</h3>unchanged in all {len(classes)} classes</div>"
    half = _CLASSES_SHOWN // 2
    shown = changed if len(changed) <= _CLASSES_SHOWN else [*changed[:half], *changed[-half:]]
    rows = "".join(
        f'<tr><td>{escape(c.label)}</td><td class="n">{c.examples:,}</td><td class="n">{c.baseline * 100:.1f} %</td>'
        f'<td class="n">{c.candidate * 100:.1f} %</td>'
        f'<td class="n {"loss" if c.candidate < c.baseline else "gain"}">'
        f"{words.signed(f'{(c.candidate - c.baseline) * 100:+.1f}')}</td></tr>"
        for c in shown
    )
    heads = _heads(("class", "examples", "original", "candidate", "change (pp)"))
    more = f", the {len(shown)} that moved most" if len(shown) < len(changed) else ""
    title = f"Recall by class: {len(changed)} of {len(classes)} changed{more}"
    return f"<div><h3>{title}</h3><table><tr>{heads}</tr>{rows}</table></div>"


def _draw_rest(evaluation: Evaluation) -> str:
    lines = []
    if evaluation.peak_memory_bytes:
        lines.append(
            f"Peak memory of a session: {words.show_bytes(evaluation.peak_memory_bytes)} "
            f"(original {words.show_bytes(evaluation.baseline_peak_memory_bytes)})"
        )
    batch = evaluation.invariance
    if batch and batch.invariant:
        sizes = ", ".join(map(str, batch.batch_sizes))
        lines.append(
            f"Batch-mates do not matter: at batch {sizes}, {batch.rows:,} rows, differences up to {batch.max_rel:.1e}"
        )
    elif batch:
        lines.append(f"Not merged: {batch.reason}")
    if evaluation.nonfinite_outputs:
        lines.append(f"{evaluation.nonfinite_outputs:,} values are NaN or infinite where the original's are not")
    if not lines:
        return ""
    return f"<div><h3>Batch and memory</h3>{'<br>'.join(escape(line) for line in lines)}</div>"


def _table(title: str, heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    body = "".join(
        f"<tr>{''.join(f'<td{_align(i)}>{escape(cell)}</td>' for i, cell in enumerate(row))}</tr>" for row in rows
    )
    if not body:
        return ""
    return f'<div class="wide"><h3>{title}</h3><table><tr>{_heads(heads)}</tr>{body}</table></div>'


def _heads(heads: tuple[str, ...]) -> str:
    return "".join(f"<th{_align(i)}>{head}</th>" for i, head in enumerate(heads))


def _align(column: int) -> str:
    return ' class="n"' if column else ""
