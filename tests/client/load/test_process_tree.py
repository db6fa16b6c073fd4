"""CPU time of a process and of its descendants."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from salver.client.load.process_tree import tree_cpu_s
from salver.core.errors import NotFound

BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BURN!r}])
child = subprocess.Popen([sys.executable, "-c", {BURN!r} + "print('burnt', flush=True)\\ninput()"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print("ready", flush=True)
input()
child.communicate(b"\\n")
"""


def test_children_that_run_and_children_that_ended_are_counted() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        spent_s = tree_cpu_s(parent.pid)
        own_s = tree_cpu_s(os.getpid())
        parent.communicate("\n")
    assert spent_s >= 0.55
    assert own_s >= spent_s


def test_a_process_that_is_not_there_is_an_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    with pytest.raises(NotFound, match=f"no process {ended.pid}"):
        tree_cpu_s(ended.pid)
