"""Writing: one JSON document or rich text to standard output, a whole file or none to disk."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console, RenderableType

from salver.bundle.archive import publish, translate


def print_json(value: Any) -> None:
    """Write one JSON document. Structs are written as objects, paths as texts, numbers that are not finite as null."""
    data = msgspec.json.encode(value, enc_hook=str)
    sys.stdout.write(msgspec.json.format(data, indent=2).decode() + "\n")


def print_rich(*values: RenderableType) -> None:
    """Write for a person: in color and to the width of the terminal, or plain and wide where there is none."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    with console.capture() as captured:  # rich would exit with 1 when the reader has read enough
        for value in values:
            console.print(value)
    sys.stdout.write(captured.get())


def write_file(path: Path, content: bytes) -> None:
    """Write a file, or leave what was there: never half of it.

    Raises:
        SalverError: its folder does not exist, the disk is full, access is denied.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise translate(error, path) from error
    publish(partial, path)
