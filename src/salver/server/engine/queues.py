"""What waits, in the order in which it is served: by priority, in turns between keys, in turns between clients."""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import Final

from salver.server.engine.base import InferRequest

QUEUED: Final = 1
"""The mark of a request that lies in a queue. One with another mark that lies there is dead."""

PATIENCE: Final = 16
"""One batch in so many goes to the requests that wait the longest, whatever their priority."""

_EMPTY: Final[deque[InferRequest]] = deque()


class Turns:
    """Clients of one key take turns, by rows: start-time fair queueing (Goyal, Vin & Cheng, SIGCOMM 1996). A client
    that sends a thousand requests is served like one that sends few; within a client first come, first served."""

    __slots__ = ("_clock", "_heap", "_order", "queues")

    def __init__(self) -> None:
        self.queues: dict[Hashable, deque[InferRequest]] = {}
        self._heap: list[tuple[int, int, Hashable]] = []  # rows served so far, order of arrival, client
        self._clock = 0
        self._order = 0

    def add(self, request: InferRequest) -> None:
        """Queue a request behind the others of its client."""
        queue = self.queues.get(request.client)
        if queue is None:
            queue = self.queues[request.client] = deque()
            self._order += 1
            heapq.heappush(self._heap, (self._clock, self._order, request.client))
        queue.append(request)

    def current(self) -> deque[InferRequest]:
        """The queue of the client whose turn it is; empty when nothing waits."""
        return self.queues[self._heap[0][2]] if self._heap else _EMPTY

    def charge(self, rows: int) -> deque[InferRequest]:
        """The client whose turn it was has had ``rows`` rows of its queue; whose turn it is now, as `current`."""
        served, order, client = self._heap[0]
        if self.queues[client]:
            heapq.heapreplace(self._heap, (served + rows, order, client))
        else:
            heapq.heappop(self._heap)
            del self.queues[client]
        if not self._heap:
            return _EMPTY
        self._clock = self._heap[0][0]
        return self.queues[self._heap[0][2]]

    def __iter__(self) -> Iterator[InferRequest]:
        return (request for queue in self.queues.values() for request in queue)


class Group(deque[InferRequest]):
    """Requests of one key: a plain queue while all are of one ``client``; else they lie in ``turns``."""

    __slots__ = ("client", "turns")

    client: Hashable
    turns: Turns | None

    def put(self, request: InferRequest) -> None:
        """Queue a request."""
        turns = self.turns
        if turns is None and request.client == self.client:
            self.append(request)
            return
        if turns is None:
            turns = self.turns = Turns()
            for waiting in self:
                turns.add(waiting)
            self.clear()
        turns.add(request)

    def requests(self) -> Iterator[InferRequest]:
        """All that wait, the dead too."""
        return iter(self) if self.turns is None else iter(self.turns)

    def oldest_s(self) -> float:
        """When the request arrived that waits the longest; something waits."""
        if self.turns is None:
            return self[0].arrived_s
        return min(queue[0].arrived_s for queue in self.turns.queues.values())

    def sweep(self) -> None:
        """Drop the dead."""
        alive = [request for request in self.requests() if request.state == QUEUED]
        self.turns = None
        self.clear()
        for request in alive:
            self.put(request)


class Level:
    """Requests of one priority. Keys take turns; ``rows`` are those that wait, in a group or to be tried again."""

    __slots__ = ("groups", "rows", "turns")

    def __init__(self) -> None:
        self.groups: dict[Hashable, Group] = {}
        self.turns: deque[Hashable] = deque()
        self.rows = 0


class Queues:
    """All levels of one scheduler. Smaller priorities go first, strictly, but for one batch in `PATIENCE`."""

    __slots__ = ("_client", "_held", "_passed", "count", "levels", "normal", "order", "rows")

    def __init__(self) -> None:
        self.count = 0  # requests that wait, in a group or to be tried again
        self.rows = 0  # of them
        self.normal = Level()
        self.levels = {0: self.normal}
        self.order = [0]  # priorities, smallest first
        self._client: Hashable = None  # of all that waits, while nothing is held
        self._held: dict[Hashable, int] = {}  # client -> rows that wait, once there are several
        self._passed = 0  # batches in which somebody was passed over

    def push(self, request: InferRequest) -> None:
        """Let a request wait."""
        priority = request.priority
        level = self.normal if priority == 0 else self._level(priority)
        key, client = request.key, request.client
        group = level.groups.get(key)
        if group is None:
            level.groups[key] = group = Group()
            group.client, group.turns = client, None
            level.turns.append(key)
        if group.client == client and group.turns is None:
            group.append(request)
        else:
            group.put(request)
        rows = request.rows
        if self._held or client != self._client:
            self._hold(client, rows)
        self.count += 1
        self.rows += rows
        level.rows += rows

    def hold(self, request: InferRequest) -> None:
        """Count a request as waiting that lies elsewhere, to be tried again."""
        level, rows = self._level(request.priority), request.rows
        self._hold(request.client, rows)
        self.count += 1
        self.rows += rows
        level.rows += rows

    def _hold(self, client: Hashable, rows: int) -> None:
        if self._held:
            self._held[client] = self._held.get(client, 0) + rows
        elif not self.rows:
            self._client = client
        elif client != self._client:
            self._held = {self._client: self.rows, client: rows}

    def leave(self, request: InferRequest) -> None:
        """A request does not wait any more. Who took it out of its queue, or leaves it there dead, tells so."""
        level = self.levels.get(request.priority, self.normal)  # one of nothing but empty requests may be gone
        self.taken(level, (request,), request.rows)
        if not level.groups:
            self.forget(request.priority)

    def taken(self, level: Level, requests: Sequence[InferRequest], rows: int) -> None:
        """As `leave`, of all requests of a batch. The level stays until `forget`."""
        level.rows -= rows
        self.rows -= rows
        self.count -= len(requests)
        held = self._held
        if not held:
            return
        for request in requests:
            left = held.get(request.client, 0) - request.rows
            if left > 0:
                held[request.client] = left
            else:
                held.pop(request.client, None)

    def share_of(self, client: Hashable) -> tuple[int, int]:
        """Rows of a client that wait, and how many clients there are, this one included."""
        held = self._held
        if held:
            return held.get(client, 0), len(held) + (client not in held)
        return (self.rows, 1) if client == self._client or not self.rows else (0, 2)

    def largest(self) -> Hashable:
        """The client of which the most rows wait."""
        return max(self._held, key=self._held.__getitem__) if self._held else self._client

    def rows_before(self, priority: int) -> int:
        """Rows that wait and go before, or are of, a priority."""
        if len(self.order) == 1 and priority >= 0:
            return self.rows
        return sum(self.levels[other].rows for other in self.order if other <= priority)

    def turn(self) -> int | None:
        """The priority whose turn it is; None when nothing waits in a group."""
        if len(self.order) == 1:
            return 0 if self.normal.turns else None
        waiting = [priority for priority in self.order if self.levels[priority].turns]
        if len(waiting) < 2:
            return waiting[0] if waiting else None
        self._passed += 1
        if self._passed < PATIENCE:
            return waiting[0]
        self._passed = 0
        return min(waiting, key=self._oldest_s)

    @staticmethod
    def tidy(level: Level) -> None:
        """The first group of a level has had its turn: it goes to the end, or away when it is empty."""
        turns = level.turns
        key = turns.popleft()
        group = level.groups[key]
        if group or (group.turns is not None and group.turns.queues):
            turns.append(key)
        else:
            del level.groups[key]

    def forget(self, priority: int) -> None:
        """Drop a level for which nothing waits."""
        if priority != 0 and priority in self.levels and not self.levels[priority].rows:
            del self.levels[priority]
            self.order.remove(priority)

    def newest_of(self, client: Hashable) -> InferRequest | None:
        """The last request of a client, of the priority that goes last."""
        for priority in reversed(self.order):
            level = self.levels[priority]
            for group in level.groups.values():
                queue = group if group.turns is None else group.turns.queues.get(client, _EMPTY)
                for request in reversed(queue):
                    if request.client != client:
                        break
                    if request.state == QUEUED:
                        return request
        return None

    def newest_behind(self, priority: int) -> InferRequest | None:
        """The newest request of the priority that goes last, where that goes after this one."""
        for last in reversed(self.order):
            if last <= priority:
                return None
            newest: InferRequest | None = None
            for group in self.levels[last].groups.values():
                for queue in (group,) if group.turns is None else group.turns.queues.values():
                    request = next((waiting for waiting in reversed(queue) if waiting.state == QUEUED), None)
                    if request is not None and (newest is None or request.arrived_s > newest.arrived_s):
                        newest = request
            if newest is not None:
                return newest
        return None

    def __iter__(self) -> Iterator[InferRequest]:
        for level in self.levels.values():
            for group in level.groups.values():
                yield from group.requests()

    def sweep(self) -> None:
        """Drop the dead."""
        for priority in list(self.order):
            level = self.levels[priority]
            for group in level.groups.values():
                group.sweep()
            for _ in range(len(level.turns)):
                self.tidy(level)
            if not level.groups:
                self.forget(priority)

    def _oldest_s(self, priority: int) -> float:
        level = self.levels[priority]
        return level.groups[level.turns[0]].oldest_s()

    def _level(self, priority: int) -> Level:
        level = self.levels.get(priority)
        if level is None:
            level = self.levels[priority] = Level()
            insort(self.order, priority)
        return level
