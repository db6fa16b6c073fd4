"""What came of a long run, as a table on docs/reliability.md."""

from __future__ import annotations

import datetime
import re
import subprocess
from collections.abc import Mapping

from environments import ROOT

PAGE = ROOT / "docs" / "reliability.md"


def headline(**more: object) -> str:
    """When, of which commit, and what else is to be known."""
    line = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return ", ".join([now, f"commit {commit or 'unknown'}", *(f"{name} {value}" for name, value in more.items())])


def verdicts(criteria: Mapping[str, bool]) -> list[str]:
    """Rows of a table with two columns."""
    return [f"| {name} | {'holds' if holds else '**FAILS**'} |" for name, holds in criteria.items()]


def counts(found: Mapping[str, int]) -> str:
    """In one cell, the largest first."""
    return ", ".join(f"{name} {count}" for name, count in sorted(found.items(), key=lambda each: -each[1]))


def write(name: str, table: str) -> None:
    """Put a table between the marks of that name."""
    text = PAGE.read_text(encoding="utf-8")
    fresh = f"<!-- {name} -->\n{table}\n<!-- end -->"
    found = re.sub(rf"<!-- {name} -->.*?<!-- end -->", lambda _: fresh, text, count=1, flags=re.DOTALL)
    PAGE.write_text(found, encoding="utf-8")
