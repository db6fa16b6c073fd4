"""`salver build`."""

from __future__ import annotations

from typing import Any

import salver
from salver.cli._output import print_json, print_rich
from salver.cli._progress import BuildProgress
from salver.core.errors import InvalidArgument
from salver.report.terminal import render_terminal


def run(source: str, *, data: str | None = None, json: bool = False, **settings: Any) -> None:
    """Build, showing progress, then print the verdicts and where the bundle is."""
    if data is None:
        raise InvalidArgument(
            "no data: name the validation examples with --data val.npz, SALVER_DATA, or 'data' in salver.toml"
        )
    with BuildProgress() as progress:
        bundle = salver.build(source, data, on_event=progress, **settings)
    if json:
        print_json({"bundle": bundle.path, "digest": bundle.digest, "record": bundle.record})
    elif bundle.record is not None:
        print_rich(render_terminal(bundle.record), f"sealed {bundle.path}")
