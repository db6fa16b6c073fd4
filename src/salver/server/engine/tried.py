"""What was tried when a model was loaded, kept in the user's cache, so that the next worker or start need not try it
again: a worker that takes the place of another is ready the sooner."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from salver.core.cache import default_cache_dir
from salver.core.config import canonical_json
from salver.core.model import digest_bytes

_FOLDER: Final = "tried"
_MOST: Final = 1000
"""Findings that are kept; the oldest go first."""


class Finding(msgspec.Struct, frozen=True, array_like=True):
    """Whether requests may share a batch, and why."""

    merge: bool
    reason: str


def try_once(circumstances: Any, attempt: Callable[[], Finding]) -> Finding:
    """What was found before in the same circumstances, else what is found now. A cache that cannot be read or written
    is none.

    Args:
        circumstances: all that the finding depends on, as plain data.
        attempt: finds out.
    """
    name = digest_bytes(canonical_json(circumstances)).removeprefix("sha256:")[:32]
    path = default_cache_dir() / _FOLDER / name
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.msgpack.decode(path.read_bytes(), type=Finding)
    found = attempt()
    with contextlib.suppress(OSError):
        _write(path, msgspec.msgpack.encode(found))
    return found


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
    kept = sorted(path.parent.iterdir(), key=lambda each: each.stat().st_mtime_ns)
    for old in kept[:-_MOST]:
        old.unlink(missing_ok=True)
