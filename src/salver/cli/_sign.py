"""`salver sign`."""

from __future__ import annotations

from pathlib import Path

import salver
from salver.cli._output import print_rich
from salver.core.errors import InvalidArgument


def run(bundle: str, *, key: Path | None = None) -> None:
    """Sign a bundle; the signature stands beside the content, whose digest stays what it was."""
    if key is None:
        raise InvalidArgument("no key: name the private key with --key ('salver keys' makes a pair)")
    signed = salver.Bundle.open(bundle).sign(key)
    print_rich(f"signed {signed.path}")
