"""The limit of open files, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import logging, resource, sys
from salver.server._files import allow_connections
logging.basicConfig(stream=sys.stdout, format="%(message)s")
hard = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
allow_connections(int(sys.argv[1]))
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("count", "hard", "limits", "warned"), [(300, 1000, (556, 1000), False), (900, 1000, (1000, 1000), True)]
)
def test_the_soft_limit_follows_the_connections(count, hard, limits, warned):
    command = [sys.executable, "-c", SCRIPT, str(count), str(hard)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[-1] == str(limits)
    assert ("max_connections=900" in lines[0]) is warned
