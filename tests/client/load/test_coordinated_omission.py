"""A server that stalls is charged for everybody who had to wait (Tene, "How NOT to Measure Latency")."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from salver.client.load import measure
from tests.client.load.conftest import OK, plan_for, read_request

STALL_S = 1.0


def stalling_once() -> Callable[[socket.socket, int], None]:
    """A server that answers one request after the other, and once does nothing for a second."""
    alone = threading.Lock()
    count = 0

    def session(connected: socket.socket, number: int) -> None:
        nonlocal count
        while True:
            read_request(connected)
            with alone:
                count += 1
                if count == 50:
                    time.sleep(STALL_S)
            connected.sendall(OK)

    return session


def test_an_open_loop_counts_the_stall_for_all_who_were_due_in_it(listening: Any) -> None:
    with listening(stalling_once()) as listener:
        open_plan = plan_for(listener.url, rate_per_s=100.0, spacing="constant", duration_s=3.0, slo_s=0.2)
        result, samples = measure(open_plan)
    assert result.ok == result.requests == 299
    assert result.latency is not None
    assert result.latency.p99 >= 0.9 * STALL_S * 1e3
    assert np.sum(samples.latency_s > 0.2) >= 75  # of the hundred that were due while it stalled
    assert result.within_slo is not None
    assert result.within_slo <= 1 - 75 / 299


def test_a_closed_loop_sees_it_once(listening: Any) -> None:
    with listening(stalling_once()) as listener:
        _, samples = measure(plan_for(listener.url, concurrency=1, max_requests=300))
    assert np.sum(samples.latency_s >= STALL_S) == 1
