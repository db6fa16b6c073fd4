"""Waiting for sockets or for a point in time, whichever comes first, more finely than event loops do.

`epoll_wait` counts in milliseconds; `select` takes microseconds, and an epoll descriptor can be selected. The kernel
adds a slack of 50 µs to the sleep of ordinary threads, which a thread may lower for itself (PR_SET_TIMERSLACK of
prctl(2)).
"""

from __future__ import annotations

import ctypes
import select
import selectors
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_COARSE_S: Final = 0.002
_MAX_SELECTED: Final = 1024  # FD_SETSIZE
_PR_SET_TIMERSLACK: Final = 29
_PR_GET_TIMERSLACK: Final = 30
_SLACK_NS: Final = 1000


class Waiter:
    """Waits on a selector.

    Args:
        selector: its descriptor is selected where it has one.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._select = selector.select
        number = selector.fileno() if isinstance(selector, selectors.EpollSelector) else -1
        self._descriptors = [number] if 0 <= number < _MAX_SELECTED else None

    def wait(self, timeout_s: float) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready, or nothing after the time."""
        if timeout_s <= 0:
            return self._select(0)
        if self._descriptors is None:
            return self._select(timeout_s)
        if timeout_s > _COARSE_S:
            return self._select(timeout_s - _COARSE_S / 2)  # rounds up to a millisecond
        if select.select(self._descriptors, (), (), timeout_s)[0]:
            return self._select(0)
        return []


@contextmanager
def fine_timers() -> Iterator[None]:
    """The thread wakes up when it asked to; on systems other than Linux nothing changes."""
    if sys.platform != "linux":
        yield
        return
    prctl = ctypes.CDLL(None).prctl
    before_ns = prctl(_PR_GET_TIMERSLACK, 0, 0, 0, 0)
    prctl(_PR_SET_TIMERSLACK, _SLACK_NS, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_TIMERSLACK, before_ns, 0, 0, 0)
