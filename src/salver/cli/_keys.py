"""`salver keys`."""

from __future__ import annotations

from pathlib import Path

from salver.bundle import generate_keys
from salver.cli._output import print_rich


def run(*, output: Path = Path()) -> None:
    """Make a key pair in a folder."""
    private, public = generate_keys(output)
    print_rich(
        f"wrote {private} (keep it secret: salver sign BUNDLE --key {private})",
        f"wrote {public} (give it away: salver verify BUNDLE --key {public})",
    )
