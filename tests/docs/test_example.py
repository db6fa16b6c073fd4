"""`make run ARGS=--check`, as a user would run it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_example_ends_with_the_right_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "examples" / "run.py"), "--check", "--budget", "5s"]
    command += ["--folder", str(tmp_path), "--http", f"127.0.0.1:{port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "right" in done.stdout
    assert (tmp_path / "report.html").is_file()
