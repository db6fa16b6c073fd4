"""`salver stats`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from salver.cli._output import print_json, print_rich
from salver.client import Client
from salver.core.errors import FailedPrecondition, InvalidArgument
from salver.report import words

_URL: Final = "http://127.0.0.1:8080"
_BAR: Final = 40
_SIZES: Final = 8
_CLEAR: Final = "\x1b[H\x1b[2J"
_REASONS: Final = {
    "full": "no room for the next request",
    "slo": "a larger one would miss the objective",
    "idle_lane": "a lane was free and nothing more waited",
    "key": "what waited could not share a batch",
    "memory": "a larger one would not fit in memory",
    "alone": "requests are not merged",
    "retry": "part of a batch that failed",
}


def run(
    models: Sequence[str] = (),
    *,
    url: str = _URL,
    api_key_file: Path | None = None,
    ca: Path | None = None,
    every_s: float | None = None,
    json: bool = False,
) -> None:
    """Print what a server says of its models."""
    key = "" if api_key_file is None else _read_key(api_key_file)
    with Client(url, api_key=key, ca=str(ca or "")) as client:
        while True:
            found = [entry for name in models or ("",) for entry in client.statistics(name)]
            if every_s is not None and sys.stdout.isatty():
                sys.stdout.write(_CLEAR)
            if json:
                print_json({"model_stats": found})
            else:
                print_rich(*render(found, url))
            if every_s is None:
                return
            sys.stdout.flush()
            time.sleep(every_s)


def render(found: Sequence[Mapping[str, Any]], url: str) -> list[RenderableType]:
    """Statistics for a person.

    Raises:
        FailedPrecondition: the server does not explain itself.
    """
    if not found:
        return ["no model is served"]
    if any("salver" not in entry for entry in found):
        raise FailedPrecondition(
            f"the server at {url} gives counts and no explanation; ask the HTTP address of a Salver server, or see the "
            "counts with --json"
        )
    return [part for entry in found for part in _render_model(entry["name"], entry["version"], entry["salver"])]


def _read_key(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"'{path}' holds no API key that can be read: {error}") from None


def _render_model(name: str, version: str, told: Mapping[str, Any]) -> list[RenderableType]:
    asked = sum(told["requests"].values())
    heading = f"[bold]{escape(name)}[/bold] version {escape(version)}"
    if not asked:
        return [heading, *_advice(told), ""]
    heading += (
        f": {asked} requests in {words.show_seconds(told['over_s'])}, {told['requests_per_s']:.4g}/s, "
        f"{told['rows_per_s']:.4g} rows/s"
    )
    lines: list[RenderableType] = [heading, *_errors(told), _time(told["time"])]
    if told["batches"]:
        lines += [_batches(told), *_runs(told)]
    return [*lines, *_advice(told), ""]


def _errors(told: Mapping[str, Any]) -> list[str]:
    failed = {code: count for code, count in told["requests"].items() if code != "OK"}
    lines = [f"failed: {_counts(failed)}"] if failed else []
    return [*lines, f"refused without a run: {_counts(told['refused'])}"] if told["refused"] else lines


def _time(parts: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("", "mean", "p50", "p99", "share", "", title="Where the time goes", title_justify="left")
    for name, part in parts.items():
        quantiles = ["" if part[key] is None else _time_text(part[key]) for key in ("p50_s", "p99_s")]
        share = part["share"]
        bar = "" if name == "request" else _bar(share)
        table.add_row(name, _time_text(part["mean_s"]), *quantiles, f"{share * 100:.0f} %", bar)
    return table


def _batches(told: Mapping[str, Any]) -> Table:
    title = f"Why batches have {_rows(told['mean_rows'])} on average"
    table = Table("reason", "", "share", "", title=title, title_justify="left")
    total = sum(told["reasons"].values())
    for reason, count in told["reasons"].items():
        share = count / total
        table.add_row(escape(reason), _REASONS.get(reason, ""), f"{share * 100:.0f} %", _bar(share))
    return table


def _runs(told: Mapping[str, Any]) -> list[str]:
    lines = [f"sizes: {_sizes(told['sizes'], told['batches'])}"]
    if told["where"]:
        lines.append(f"batches run {escape(told['where'])}")
    if told["lanes"]:
        lines.append(f"lanes: {told['lanes']}, busy {told['busy_share'] * 100:.0f} % of the time")
    if told["costs"]:
        costs = ", ".join(f"{cost['rows']}: {_time_text(cost['mean_s'])}" for cost in told["costs"])
        lines.append(f"learned time of a batch, by rows: {costs}")
    if not told["merge"] and told["merge_reason"]:
        lines.append(f"requests are not merged: {escape(told['merge_reason'])}")
    return lines


def _sizes(sizes: Mapping[str, int], batches: int) -> str:
    most = sorted(sizes.items(), key=lambda item: -item[1])[:_SIZES]
    shown = [f"{rows} {'row' if rows == '1' else 'rows'} {count / batches * 100:.0f} %" for rows, count in most]
    return ", ".join(shown) + (", ..." if len(sizes) > _SIZES else "")


def _advice(told: Mapping[str, Any]) -> list[str]:
    return [f"[bold]→[/bold] {escape(sentence)}" for sentence in told["advice"]]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{escape(name)} {count}" for name, count in counts.items())


def _rows(count: float) -> str:
    return f"{count:.3g} row" if count == 1 else f"{count:.3g} rows"


def _bar(share: float) -> str:
    return "█" * round(share * _BAR)


def _time_text(seconds: float) -> str:
    return words.show_ms(seconds * 1e3)
