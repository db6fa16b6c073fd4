"""What a worker spends besides running the model: a real server with that model on one core, asked over sockets."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import msgspec

from salver.backends.base import Session
from salver.core.arrays import Array
from salver.core.errors import Unavailable
from salver.core.tensors import Signature
from salver.server._loop import new_event_loop
from salver.server.engine.cost import CostModel
from salver.server.engine.engine import RealTimeEngine
from salver.server.engine.lanes import Run
from salver.server.engine.served import INLINE_S
from salver.server.frontends.http.server import HttpServer
from salver.server.monitoring.metrics import Metrics
from salver.server.planning.asker import Round
from salver.server.planning.scenario import Latency, Overheads, Wake
from salver.server.settings import RunSettings, ServeSettings
from salver.wire.elements import to_bytes

_MODULE: Final = "salver.server.planning.asker"
_MANY: Final = 32
_UNMERGED: Final = 2  # requests at once of a model that runs one at a time
_INTERRUPTIONS: Final = 8
_WARM_ROUNDS: Final = 2
_LEAST_ROUNDS: Final = 5
_MOST_ROUNDS: Final = 60
_BUDGET_S: Final = 2.0
_LONGEST_S: Final = 0.04  # of a run that is repeated often; what waking costs is little to one that takes longer
_REST_S: Final = 1e-4  # after each round, until the server has done with it
_SLEEPS_S: Final = (0.002, 0.008, 0.032)
_GATHER_S: Final = 0.003
_LEAST_GAP_S: Final = 1e-4  # between interruptions
_PART: Final = 0.8  # of a run, in which it is interrupted
_SLO_S: Final = 60.0  # that there is one costs time; none is refused for it
_ERROR: Final = 1.4826 * 1.2533  # of a median, in median distances / sqrt(n) (Huber, Robust Statistics, 1981)
_LEAST_S: Final = 1e-6


class _Lent(Session):
    """A session that another has opened and closes."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def signature(self) -> Signature:
        return self._session.signature

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        return self._session.run(inputs, outputs)

    def close(self) -> None:
        """Its owner does that."""


class _Worker(threading.Thread):
    """A server on an event loop and thread of its own, on one core, with the model twice: `inline` and on a `lane`."""

    def __init__(self, session: Session, max_batch: int, core: int) -> None:
        super().__init__(name="salver-overheads", daemon=True)
        self.loop = new_event_loop()
        self.port: Future[int] = Future()
        self._session = _Lent(session)
        self._max_batch = max_batch
        self.core = core
        self._stopping = asyncio.Event()
        self.gathering_s = 0.0

    def run(self) -> None:
        """The thread's."""
        pin(0, self.core)
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._serve())
        except BaseException as error:
            if self.port.done():
                raise
            self.port.set_exception(error)
            raise
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    async def _serve(self) -> None:
        engine, http, settings = RealTimeEngine(Metrics()), HttpServer(), ServeSettings(http="127.0.0.1:0")
        for name, inline in (("inline", True), ("lane", False)):
            cost = CostModel()
            for rows in (1, _MANY):
                cost.learn(rows, _LEAST_S, _LEAST_S)
            run = RunSettings(max_batch=self._max_batch, slo_s=_SLO_S)
            engine.add(name, "1").open(self._session, run, merge=self._max_batch > 1, cost=cost, inline=inline)
        await http.start(engine, engine.metrics, settings)
        self.port.set_result(int(http.addresses[0].rpartition(":")[2]))
        await self._stopping.wait()
        http.close_listeners()
        await http.drain(0.0)
        engine.close()

    def clocks(self) -> tuple[int, int]:
        """Clocks of the CPU time of the event loop and of the lane."""
        lane = next(thread for thread in threading.enumerate() if thread.name == "lane-1-0")
        return time.pthread_getcpuclockid(self.ident or 0), time.pthread_getcpuclockid(lane.ident or 0)

    def waited_s(self) -> float:
        """For how long the event loop's thread has been ready and not run; 0 where the system does not tell."""
        try:
            told = Path(f"/proc/self/task/{self.native_id}/schedstat").read_text(encoding="ascii")
        except OSError:
            return 0.0
        return int(told.split()[1]) * 1e-9

    def gather(self) -> None:
        """Keep the event loop busy until many requests are there when it looks."""
        self.loop.call_soon_threadsafe(self._gather)

    def _gather(self) -> None:
        began_s, until_s = time.thread_time(), time.perf_counter() + _GATHER_S
        while time.perf_counter() < until_s:
            pass
        self.gathering_s = time.thread_time() - began_s

    def stop(self) -> None:
        """End the server and the thread."""
        self.loop.call_soon_threadsafe(self._stopping.set)
        self.join()


class _Kind(NamedTuple):
    """Of a round: whom requests ask, or nobody for a batch that is run without a server; when they are sent, and how
    long the server sleeps before."""

    model: str
    at_s: tuple[float, ...] = (0.0,)
    sleep_s: float = 0.0


class _Spent(NamedTuple):
    """In a round: CPU time of the event loop and of the lane, wall time as the client sees it, time for which the event
    loop waited for the core, and, of a median, two standard errors of the lane's."""

    loop_s: float
    lane_s: float
    wall_s: float
    waited_s: float = 0.0
    doubt_s: float = 0.0


class _Rounds:
    """Asks the worker again and again."""

    def __init__(
        self,
        worker: _Worker,
        requests: Mapping[str, bytes],
        asker: subprocess.Popen[bytes],
        timed: Callable[[int], Run],
    ) -> None:
        self._worker = worker
        self._timed = timed
        self._requests = requests
        self._asker = asker
        self._port = worker.port.result()
        self._clocks = worker.clocks()

    def spent(self, *kinds: _Kind) -> list[_Spent]:
        """The medians of many rounds of each kind, in turns so that a disturbance hits all alike."""
        found: list[list[_Spent]] = [[] for _ in kinds]
        until_s = time.perf_counter() + _BUDGET_S
        for count in range(_MOST_ROUNDS):
            if count >= _LEAST_ROUNDS and time.perf_counter() > until_s:
                break
            for kind, spent in zip(kinds, found, strict=True):
                spent.append(self._once(kind))
        return [_middle(spent[_WARM_ROUNDS:]) for spent in found]

    def _once(self, kind: _Kind) -> _Spent:
        if not kind.model:
            return self._bare(len(kind.at_s))
        order = msgspec.json.encode(Round(self._port, self._requests[kind.model], kind.at_s)) + b"\n"
        worker, (loop, lane) = self._worker, self._clocks
        time.sleep(_REST_S + kind.sleep_s)
        loop_s, lane_s, waited_s = time.clock_gettime(loop), time.clock_gettime(lane), worker.waited_s()
        worker.gathering_s = 0.0
        if kind.at_s.count(0.0) > 1:
            worker.gather()
        self._tell(order)
        wall_s = self._hear()
        time.sleep(_REST_S)
        loop_s, lane_s = time.clock_gettime(loop) - loop_s, time.clock_gettime(lane) - lane_s
        return _Spent(loop_s - worker.gathering_s, lane_s, wall_s, worker.waited_s() - waited_s)

    def _bare(self, rows: int) -> _Spent:
        """A run on the core that the worker has, which sleeps meanwhile."""
        cores = usable_cores()
        pin(0, self._worker.core)
        try:
            ran = self._timed(rows)
        finally:
            pin(0, *cores)
        return _Spent(0.0, ran.cpu_s, ran.compute_s)

    def _tell(self, line: bytes) -> None:
        if self._asker.stdin is not None:
            self._asker.stdin.write(line)
            self._asker.stdin.flush()

    def _hear(self) -> float:
        said = self._asker.stdout.readline() if self._asker.stdout is not None else b""
        if not said:
            raise Unavailable("the process that measures what a request costs ended early")
        return float(said)


def measure_overheads(
    session: Session,
    row: Mapping[str, Array],
    latency: Latency,
    timed: Callable[[int], Run],
    max_batch: int,
    *,
    inline: bool,
) -> Overheads:
    """Ask a server for the model over REST with binary tensors: one request alone, many in one turn of the event loop,
    many that come while others run, and one that comes after sleep. Takes about two seconds.

    The event loop and the lane share a core, so that each finds the caches as the other leaves them. What is counted is
    the CPU time of their threads.

    Args:
        session: with the model on one thread.
        row: a request's inputs.
        latency: of runs.
        timed: runs a batch of so many rows, without a server.
        max_batch: rows of the largest batch; 1 where requests are not merged.
        inline: whether short runs may run on the event loop.
    """
    cores = usable_cores()
    many = max(1, _most_rows(latency, _LONGEST_S, min(_MANY, max_batch)))
    worker = _Worker(session, many, cores[0])
    worker.start()
    command = [sys.executable, "-P", *(f"-W{option}" for option in sys.warnoptions), "-m", _MODULE]
    try:
        worker.port.result()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as asker:
            pin(asker.pid, *(cores[1:] or cores))
            try:
                requests = {name: _request(name, session.signature, row) for name in ("inline", "lane")}
                rounds = _Rounds(worker, requests, asker, timed)
                short = _most_rows(latency, INLINE_S / latency.cpu_share, many) if inline else 0
                if short:
                    return _of_short(rounds, latency, short)
                return _of_long(rounds, latency, many) if many > 1 else _of_unmerged(rounds, latency)
            finally:
                asker.kill()
    finally:
        worker.stop()


def _of_short(rounds: _Rounds, latency: Latency, many: int) -> Overheads:
    """Of a model whose runs of so many rows stay on the event loop."""
    kinds = _Kind("inline"), _Kind("inline", (0.0,) * many), _Kind("lane")
    alone, crowd, lane, *woken = rounds.spent(*kinds, *_sleepers("inline"))
    run_s = latency.usual_s(1)
    if many > 1:
        each_s = (crowd.loop_s - alone.loop_s - (latency.usual_s(many) - run_s)) / (many - 1)
    else:
        each_s = (alone.loop_s - run_s) / 2
    turn_s = alone.loop_s - run_s - each_s
    return _overheads(
        turn_s=turn_s,
        each_s=each_s,
        handoff_s=(lane.loop_s - 2 * turn_s - each_s) / 2,
        network_s=alone.wall_s - alone.loop_s,
        wake=_wake(alone, woken),
    )


def _of_long(rounds: _Rounds, latency: Latency, many: int) -> Overheads:
    """Of a model whose runs, of so many rows, are a lane's. A request alone takes two turns and two handoffs; what one
    takes that comes while others run, a turn of its own."""
    run_many_s = latency.usual_s(many)
    late = max(2, min(_INTERRUPTIONS, many, round(_PART * run_many_s / _LEAST_GAP_S)))
    began_s = _GATHER_S + (1 - _PART) / 2 * run_many_s
    comes = (began_s + i * _PART * run_many_s / late for i in range(1, late + 1))
    crowded = (0.0,) * many
    kinds = _Kind("lane"), _Kind("lane", crowded), _Kind("lane", (*crowded, *comes)), _Kind(""), _Kind("", crowded)
    alone, crowd, busy, bare, bare_crowd, *woken = rounds.spent(*kinds, *_sleepers("lane"))
    each_s = (crowd.loop_s - alone.loop_s) / (many - 1)
    late_turn_s = max(0.0, (busy.loop_s - crowd.loop_s - alone.loop_s) / (late - 1) - each_s)
    turn_s = min(late_turn_s, (alone.loop_s - each_s) / 2)
    merging_s, merging_many_s = alone.lane_s - bare.lane_s, crowd.lane_s - bare_crowd.lane_s
    merge_row_s = _beyond(merging_many_s - merging_s, alone, bare, crowd, bare_crowd) / (many - 1)
    merge_s = _beyond(merging_s - merge_row_s, alone, bare)
    late_run_s = latency.usual_s(late) / run_many_s * bare_crowd.lane_s + merge_s + late * merge_row_s
    return _overheads(
        turn_s=turn_s,
        each_s=each_s,
        handoff_s=(alone.loop_s - 2 * turn_s - each_s) / 2,
        merge_s=merge_s,
        merge_row_s=merge_row_s,
        interrupt_s=late_turn_s - turn_s,
        wait_s=(busy.waited_s - crowd.waited_s) / late,
        refill_s=_beyond(busy.lane_s - crowd.lane_s - late_run_s, busy, crowd, bare_crowd) / late,
        network_s=alone.wall_s - alone.loop_s - alone.lane_s,
        wake=_wake(alone, woken),
    )


def _of_unmerged(rounds: _Rounds, latency: Latency) -> Overheads:
    """Of a model that answers one at a time: its handoffs count as the requests' own."""
    sleepers = _sleepers("lane") if latency.usual_s(1) <= _LONGEST_S else []
    kinds = _Kind("lane"), _Kind("lane", (0.0,) * _UNMERGED), _Kind("")
    alone, crowd, bare, *woken = rounds.spent(*kinds, *sleepers)
    each_s = (crowd.loop_s - alone.loop_s) / (_UNMERGED - 1)  # with a turn
    turn_s = max(_LEAST_S, alone.loop_s - each_s)
    return _overheads(
        turn_s=turn_s,
        each_s=each_s - turn_s,
        merge_s=_beyond(alone.lane_s - bare.lane_s, alone, bare),
        network_s=alone.wall_s - alone.loop_s - alone.lane_s,
        wake=_wake(alone, woken),
    )


def _middle(found: list[_Spent]) -> _Spent:
    """The median of rounds. Its standard error follows from their median distance to it, as of normal noise."""
    loop_s, lane_s, wall_s, waited_s, _ = map(median, zip(*found, strict=True))
    distance_s = median(abs(spent.lane_s - lane_s) for spent in found)
    return _Spent(loop_s, lane_s, wall_s, waited_s, 2 * _ERROR * distance_s / len(found) ** 0.5)


def _beyond(seconds: float, *of: _Spent) -> float:
    """A difference of lanes' times, or nothing where it may be chance."""
    return seconds if seconds > sum(spent.doubt_s**2 for spent in of) ** 0.5 else 0.0


def _sleepers(model: str) -> list[_Kind]:
    return [_Kind(model, sleep_s=sleep_s) for sleep_s in _SLEEPS_S]


def _wake(alone: _Spent, woken: list[_Spent]) -> tuple[Wake, ...]:
    """What requests spent beyond one that found the server awake."""
    return tuple(
        Wake(
            slept_s=slept_s,
            loop_s=max(0.0, spent.loop_s - alone.loop_s),
            lane_s=_beyond(spent.lane_s - alone.lane_s, spent, alone),
        )
        for slept_s, spent in zip(_SLEEPS_S, woken, strict=False)
    )


def _overheads(
    *,
    turn_s: float,
    each_s: float,
    network_s: float,
    wake: tuple[Wake, ...],
    handoff_s: float = 0.0,
    merge_s: float = 0.0,
    merge_row_s: float = 0.0,
    interrupt_s: float = 0.0,
    wait_s: float = 0.0,
    refill_s: float = 0.0,
) -> Overheads:
    return Overheads(
        turn_s=max(_LEAST_S, turn_s),
        decode_s=max(_LEAST_S, each_s / 2),
        encode_s=max(_LEAST_S, each_s / 2),
        handoff_s=max(_LEAST_S, handoff_s),
        merge_s=merge_s,
        merge_row_s=merge_row_s,
        interrupt_s=interrupt_s,
        wait_s=max(0.0, wait_s),
        refill_s=refill_s,
        network_s=max(0.0, network_s),
        wake=wake,
    )


def _most_rows(latency: Latency, limit_s: float, most: int) -> int:
    """The largest batch that takes no longer; 0 where not even a row does."""
    return max((rows for rows in range(1, most + 1) if latency.usual_s(rows) <= limit_s), default=0)


def usable_cores() -> list[int]:
    """By number, where they can be told apart."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def pin(task: int, *cores: int) -> None:
    """Keep a thread or process to some cores, where that can be told."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(task, cores)


def _request(name: str, signature: Signature, row: Mapping[str, Array]) -> bytes:
    """A request of the Open Inference Protocol with binary tensors."""
    tensors, parts = [], []
    for spec in signature.inputs:
        part = bytes(to_bytes(row[spec.name], spec.datatype))
        parts.append(part)
        tensors.append(
            {
                "name": spec.name,
                "shape": list(row[spec.name].shape),
                "datatype": spec.datatype,
                "parameters": {"binary_data_size": len(part)},
            }
        )
    head = msgspec.json.encode({"inputs": tensors, "parameters": {"binary_data_output": True}})
    body = head + b"".join(parts)
    fields = (
        f"POST /v2/models/{name}/infer HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/octet-stream",
        f"Inference-Header-Content-Length: {len(head)}",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join(fields).encode() + b"\r\n\r\n" + body
