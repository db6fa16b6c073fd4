"""Loads one backend and says what it offers; `salver doctor` runs it in a process of its own, so that a framework that
is slow, loud or broken costs one row.

    python -m salver.cli._probe torch
"""

from __future__ import annotations

import sys

import msgspec

from salver.backends import BACKENDS
from salver.core.errors import SalverError


def main(name: str) -> int:
    """Print what the backend of that name offers, as JSON."""
    try:
        backend = BACKENDS.get(name)()
        found = {"versions": backend.versions(), "formats": backend.formats, "providers": backend.providers()}
    except SalverError as error:
        found = {"missing": error.message}
    sys.stdout.write(msgspec.json.encode(found).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
