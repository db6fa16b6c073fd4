"""One call with its retries, as a generator that does no I/O: both clients drive it."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from time import monotonic
from typing import Any, Final, TypeVar

import msgspec

from salver.client.protocol import Incoming, Outgoing
from salver.core.errors import Code, DeadlineExceeded, SalverError

T = TypeVar("T")

_MAY_HELP: Final = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED})


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """When a call is sent again.

    Only what a server refused before it did anything (UNAVAILABLE, RESOURCE_EXHAUSTED: 503, 429) and connections that
    failed are tried again; a request of a sequence never is. The server's ``Retry-After`` is obeyed; without one the
    wait doubles, with jitter (Brooker, "Exponential Backoff And Jitter", 2015).

    Args:
        attempts: in all; 1 for none again.
        first_wait_s, max_wait_s: bounds of the wait.
    """

    attempts: int = 3
    first_wait_s: float = 0.05
    max_wait_s: float = 5.0


class Send(msgspec.Struct, frozen=True):
    """Send this, and give back the `Incoming`, or throw in the error; ``until_s`` of `time.monotonic()`, or None."""

    request: Outgoing
    until_s: float | None


class Sleep(msgspec.Struct, frozen=True):
    """Wait."""

    seconds: float


Flow = Generator[Send | Sleep, Any, T]
"""Yields what to do next; is sent the `Incoming` of a `Send`."""


def run_call(
    write: Callable[[float | None], Outgoing],
    read: Callable[[Incoming], T],
    retry: Retry,
    timeout_s: float | None,
) -> Flow[T]:
    """Send until there is an answer, or no more attempt or time.

    Args:
        write: seconds left -> the request.
        read: the response -> its meaning.

    Raises:
        SalverError: the last one.
    """
    until_s = None if timeout_s is None else monotonic() + timeout_s
    for attempt in range(1, retry.attempts + 1):
        left_s = None if until_s is None else until_s - monotonic()
        if left_s is not None and left_s <= 0:
            raise DeadlineExceeded(f"no answer within {timeout_s:g} s")
        try:
            return read((yield Send(write(left_s), until_s)))
        except SalverError as error:
            wait_s = _wait_s(error, attempt, retry)
            if wait_s is None or (until_s is not None and monotonic() + wait_s >= until_s):
                raise
        yield Sleep(wait_s)
    raise DeadlineExceeded("no attempt was allowed")


def _wait_s(error: SalverError, attempt: int, retry: Retry) -> float | None:
    """How long to wait before the next attempt; None for no more."""
    if attempt >= retry.attempts or error.code not in _MAY_HELP:
        return None
    if error.retry_after_s is not None:
        return error.retry_after_s if error.retry_after_s <= retry.max_wait_s else None
    ceiling_s = min(retry.max_wait_s, retry.first_wait_s * 2.0 ** (attempt - 1))
    return ceiling_s * (0.5 + random.random() / 2)  # jitter, not a secret
