"""Thousands of idle connections, from another process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "idle_connections.py"


@pytest.mark.slow
def test_a_server_answers_beside_ten_thousand_idle_connections() -> None:
    """The script stops where an idle connection is not taken, or a request beside them is not answered."""
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    each_kib = [float(text) for text in re.findall(r"^\| 10000, .*?\| ([\d.]+) \|", done.stdout, re.MULTILINE)]
    assert len(each_kib) == 3
    assert max(each_kib) < 64
