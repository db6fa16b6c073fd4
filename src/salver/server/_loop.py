"""The event loop: uvloop where it exists, asyncio's own elsewhere; the only file that imports uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

try:
    import uvloop
except ImportError:  # Windows has none
    _make: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
else:
    _make = uvloop.new_event_loop


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A new event loop, the fastest there is."""
    return _make()
