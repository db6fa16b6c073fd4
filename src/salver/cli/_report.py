"""`salver report`."""

from __future__ import annotations

from pathlib import Path

import salver
from salver.cli._output import print_rich, write_file
from salver.core.errors import InvalidArgument
from salver.report import render_page


def run(bundle: str, *, output: Path | None = None) -> None:
    """Write the page beside the bundle, or where the user says."""
    opened = salver.Bundle.open(bundle)
    if opened.record is None:
        raise InvalidArgument(f"'{bundle}' holds no evaluation: there is nothing to report")
    page = render_page(
        opened.record, title=opened.name, lineage=opened.lineage, digests=opened.digests(), parity=opened.parity
    )
    target = output or Path(f"{Path(bundle).stem}.html")
    write_file(target, page.encode())
    print_rich(f"wrote {target}")
