"""The load generator: sends what is due, whether or not earlier requests are answered, and counts what comes back."""

from __future__ import annotations

import gc
import itertools
import selectors
from array import array
from collections import deque
from collections.abc import Callable
from time import perf_counter, thread_time
from typing import Final, NamedTuple

from salver.client.endpoint import Endpoint, unreachable
from salver.client.load.answers import AnswerCheck
from salver.client.load.arrivals import Arrivals, arrivals_of
from salver.client.load.http1 import Http1Link
from salver.client.load.link import Call, Link, Verdict, resolve
from salver.client.load.plan import OK, TIMED_OUT, UNREACHABLE, WRONG, LoadPlan
from salver.client.load.process_tree import tree_cpu_s
from salver.client.load.requests import Requests
from salver.client.load.timers import Waiter, fine_timers
from salver.core.errors import Unavailable
from salver.core.registry import load

_CHORE_S: Final = 0.05
_RECONNECT_S: Final = 0.05
_MAX_HTTP1: Final = 1024
_FIRST_HTTP1: Final = 16
_GRPC_LINKS: Final = 8
_NEVER: Final = float("inf")


class Progress(NamedTuple):
    """A look at a run: seconds so far, requests that ended, those answered well, those under way."""

    elapsed_s: float
    ended: int
    ok: int
    under_way: int


class Mark(NamedTuple):
    """What had been spent at one moment of `time.perf_counter`."""

    at_s: float
    own_cpu_s: float
    server_cpu_s: float


class Log:
    """Every request that ended: an entry of each array."""

    def __init__(self) -> None:
        self.due_s = array("d")
        self.latency_s = array("d")
        self.outcome = array("H")
        self.rows = array("I")
        self.late_s = array("f")
        self.late_due_s = array("d")
        self.names = [OK]
        self.numbers = {OK: 0}
        self.retry_after_s: list[tuple[float, float]] = []
        self.ok = 0

    def number(self, name: str) -> int:
        """The number of an outcome."""
        number = self.numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number


class Driver:
    """One run.

    Args:
        plan: see `LoadPlan`.
        endpoint, requests: of the plan.
        stop: asked about twenty times a second whether to end early.
        on_progress: told as often.
    """

    def __init__(
        self,
        plan: LoadPlan,
        endpoint: Endpoint,
        requests: Requests,
        stop: Callable[[], bool] | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._plan = plan
        self._endpoint = endpoint
        self._stop = stop
        self._on_progress = on_progress
        self._check = AnswerCheck(plan, requests.read) if plan.check else None
        self.keeps_bodies = plan.check
        self.log = Log()
        self.marks: list[Mark] = []
        self.opened = 0
        self.waited = 0
        self._selector = selectors.DefaultSelector()
        self._make_link: Callable[..., Link] = (
            load("salver.client.load.http2:make_link") if endpoint.is_grpc else Http1Link
        )
        self._is_shared = endpoint.is_grpc
        self._max_links = plan.connections or self._usual_links()
        self._links: deque[Link] = deque()
        self._free: deque[Link] = deque()
        self._waiting: deque[Call] = deque()
        self._ending = False
        self._retry_at_s = 0.0
        self._arrivals: Arrivals = arrivals_of(plan, requests) if plan.is_open else iter(())
        self._turn = itertools.cycle(requests.usual()) if not plan.is_open else iter(())
        self._left = plan.max_requests or -1
        self._due_s = _NEVER
        self._next = next(self._turn) if not plan.is_open else None
        self.began_s = 0.0
        self.ended_s = 0.0

    def _usual_links(self) -> int:
        plan = self._plan
        if self._is_shared:
            return min(plan.concurrency or _GRPC_LINKS, _GRPC_LINKS)
        return plan.concurrency or _MAX_HTTP1

    # A run

    def run(self) -> None:
        """Put the load on.

        Raises:
            Unavailable: the server cannot be reached at all.
        """
        try:
            self._address = resolve(self._endpoint)
            was_collecting = gc.isenabled()
            gc.disable()  # nothing here makes cycles; a collection would be counted as the server's latency
            try:
                with fine_timers():
                    self._connect()
                    self._go()
            finally:
                if was_collecting:
                    gc.enable()
        except OSError as error:
            raise unreachable(self._endpoint, error) from None
        finally:
            for link in list(self._links):
                link.close()
            self._selector.close()

    def _connect(self) -> None:
        """Open the first connections, so that their making is not measured."""
        plan = self._plan
        count = self._max_links if plan.connections or plan.concurrency or self._is_shared else _FIRST_HTTP1
        self._waiter = Waiter(self._selector)
        until_s = perf_counter() + plan.patience_s
        wanted = min(count, self._max_links)
        for _ in range(wanted):
            self._open_link()
        while not self._links or not all(link.is_ready for link in self._links):
            self._handle(self._waiter.wait(_CHORE_S))
            for link in self._links:
                link.flush()
            if len(self._links) < wanted or perf_counter() > until_s:
                raise Unavailable(f"cannot reach {self._endpoint.shown}: it does not take {wanted} connections")

    def _go(self) -> None:
        plan = self._plan
        self.began_s = began_s = perf_counter()
        self._end_s = began_s + plan.duration_s if plan.duration_s and not plan.trace else _NEVER
        self._mark_s = began_s + (0.0 if plan.trace else plan.warmup_s)
        self._chore_s = began_s
        if plan.is_open:
            self._advance()
        for _ in range(plan.concurrency):
            self._issue(began_s, None)
        while True:
            now_s = perf_counter()
            if now_s >= self._due_s:
                self._send_due(now_s)
            if self._waiting:
                self._send_waiting(now_s)
            if self._is_shared:
                for link in self._links:
                    link.flush()
            if now_s >= self._chore_s and self._do_chores(now_s):
                return
            self._handle(self._waiter.wait(min(self._due_s, self._chore_s) - perf_counter()))

    def _handle(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        for key, mask in events:
            link: Link = key.data
            if not link.is_gone:
                link.ready(mask)

    def _do_chores(self, now_s: float) -> bool:
        """What need not be done at once; whether the run is over."""
        self._chore_s = min(now_s + _CHORE_S, self._end_s if now_s < self._end_s else _NEVER)
        if now_s >= self._mark_s:
            self._mark(now_s)
            self._mark_s = self._end_s if len(self.marks) == 1 else _NEVER
        self._chore_s = min(self._chore_s, self._mark_s)
        if self._stop is not None and self._stop():
            self._end_s = min(self._end_s, now_s)
        if now_s >= self._end_s:
            self._ending = True
            self._due_s = _NEVER
        self._give_up(now_s - self._plan.patience_s)
        under_way = len(self._waiting) + sum(link.calls for link in self._links)
        if self._on_progress is not None:
            self._on_progress(Progress(now_s - self.began_s, len(self.log.due_s), self.log.ok, under_way))
        if under_way or not self._ending:
            return False
        self.ended_s = now_s
        while len(self.marks) < 2:
            self._mark(now_s)
        return True

    def _mark(self, now_s: float) -> None:
        pid = self._plan.pid
        self.marks.append(Mark(now_s, thread_time(), tree_cpu_s(pid) if pid else 0.0))

    def _give_up(self, before_s: float) -> None:
        while self._waiting and self._waiting[0].due_s <= before_s:
            outcome = TIMED_OUT if any(link.is_ready for link in self._links) else UNREACHABLE
            self._record(self._waiting.popleft(), outcome, None)
        for link in list(self._links):
            for call in link.give_up(before_s):
                self._record(call, TIMED_OUT if link.was_ready else UNREACHABLE, link)
            if link.is_gone:
                self.on_gone(link)

    # Sending

    def _advance(self) -> None:
        """The next arrival of an open loop."""
        found = next(self._arrivals, None)
        if found is None:
            self._due_s = _NEVER
            self._ending = self._end_s == _NEVER or not self._left  # else the time that is measured is not over yet
        else:
            self._left -= 1
            self._due_s = self.began_s + found[0]
            self._next = found[1]

    def _send_due(self, now_s: float) -> None:
        log = self.log
        while self._due_s <= now_s and self._next is not None:
            due_s = self._due_s
            log.late_s.append(now_s - due_s)
            log.late_due_s.append(due_s - self.began_s)
            self._waiting.append(Call(self._next, due_s))
            if len(self._waiting) > 1 or not self._send_waiting(now_s):
                self.waited += 1
            self._advance()

    def _issue(self, now_s: float, link: Link | None) -> None:
        """The next request of a closed loop, on the same connection if it takes more."""
        if not self._left or now_s >= self._end_s or self._ending:
            self._ending = True
            return
        self._left -= 1
        call = Call(next(self._turn), now_s)
        if link is not None and link.room:
            link.start(call)
        else:
            self._waiting.append(call)
            self._send_waiting(now_s)

    def _send_waiting(self, now_s: float) -> bool:
        """Send what waits, as far as there is room; whether nothing waits any more."""
        while self._waiting:
            link = self._pick()
            if link is None:
                if len(self._links) >= self._max_links or now_s < self._retry_at_s:
                    return False
                link = self._open_link()
            link.start(self._waiting.popleft())
        return True

    def _pick(self) -> Link | None:
        """A connection with room, each in its turn."""
        if self._is_shared:
            links = self._links
            for _ in range(len(links)):
                links.rotate(-1)
                if links[0].room > 0:
                    return links[0]
            return None
        free = self._free
        while free:
            link = free.popleft()
            if link.room:
                return link
        return None

    def _open_link(self) -> Link:
        self.opened += 1
        link = self._make_link(self._endpoint, self._address, self, self._selector)
        self._links.append(link)
        return link

    # What links tell

    def on_end(self, link: Link, call: Call, verdict: Verdict, body: bytes) -> None:
        """A call ended."""
        outcome = verdict.outcome
        if verdict.retry_after_s is not None and not verdict.ok:
            self.log.retry_after_s.append((call.due_s - self.began_s, verdict.retry_after_s))
        if verdict.ok and self._check is not None and not self._check.is_right(call.request, verdict, body):
            outcome = WRONG
        self._record(call, outcome, link)

    def _record(self, call: Call, outcome: str, link: Link | None) -> None:
        now_s = perf_counter()
        request, due_s = call
        log = self.log
        log.due_s.append(due_s - self.began_s)
        log.latency_s.append(now_s - due_s)
        log.rows.append(request.rows)
        if outcome == OK:
            log.ok += 1
            log.outcome.append(0)
        else:
            log.outcome.append(log.number(outcome))
        if self._plan.concurrency:
            self._issue(now_s, link)
        if not self._is_shared and link is not None and link.room:
            self._free.append(link)

    def on_unsent(self, call: Call) -> None:
        """It goes out on another connection; its time runs on."""
        self._waiting.appendleft(call)

    def on_open(self, link: Link) -> None:
        """It may be used."""
        if link.room and not self._is_shared:
            self._free.append(link)

    def on_gone(self, link: Link) -> None:
        """Another is opened when it is needed; not at once, where this one could not be made."""
        if link in self._links:
            self._links.remove(link)
        if not link.was_ready:
            self._retry_at_s = perf_counter() + _RECONNECT_S
