"""Traffic, drawn before a simulation begins: when requests come, and what each one is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from salver.core.errors import InvalidArgument
from salver.core.traces import read_trace
from salver.server.planning.scenario import Bursts, Closed, Diurnal, OnOff, Poisson, Scenario, Stream, Trace

Times = npt.NDArray[np.float64]


class Traffic(msgspec.Struct, frozen=True):
    """Requests by number. Those of open streams come first, in the order of their arrival; the others, of closed
    loops, are sent when their clients are ready.

    Args:
        at_s: arrivals of the open ones.
        stream: index of the stream.
        rows, priority, key, connection: of each.
        timeout_s: of each; 0 for none.
        patience_s: after which the client goes away; infinite for most.
        bad: whether the model fails on it.
        closed: stream -> its first number and the number after its last.
        ends_s: when the last open request has come, or would have.
    """

    at_s: list[float]
    stream: list[int]
    rows: list[int]
    priority: list[int]
    key: list[int]
    connection: list[int]
    timeout_s: list[float]
    patience_s: list[float]
    bad: list[bool]
    closed: dict[int, tuple[int, int]]
    ends_s: float

    @property
    def count(self) -> int:
        """Requests in all."""
        return len(self.stream)


class _Drawn(msgspec.Struct):
    """Requests of one stream, as columns."""

    at_s: Times
    rows: npt.NDArray[np.int64]
    priority: npt.NDArray[np.int64]
    timeout_s: Times


def draw(scenario: Scenario) -> Traffic:
    """All requests of a scenario.

    Raises:
        NotFound, InvalidArgument: a trace cannot be read.
    """
    rng = np.random.default_rng(scenario.seed)
    rate = sum(_mean_per_s(stream) for stream in scenario.streams)
    loops = [i for i, stream in enumerate(scenario.streams) if isinstance(stream.arrivals, Closed)]
    until_s = scenario.requests / rate if rate else 0.0
    drawn: list[tuple[int, _Drawn]] = []
    for index, stream in enumerate(scenario.streams):
        if index not in loops:
            drawn.append((index, _open(stream, until_s, rng)))
    opened = sum(len(part.at_s) for _, part in drawn)
    closed: dict[int, tuple[int, int]] = {}
    first = opened
    for index in loops:
        count = scenario.requests // len(loops)
        drawn.append((index, _attributes(scenario.streams[index], np.full(count, math.inf), rng)))
        closed[index] = (first, first + count)
        first += count
    return _merge(scenario, drawn, closed, until_s, rng)


def _merge(
    scenario: Scenario,
    drawn: list[tuple[int, _Drawn]],
    closed: dict[int, tuple[int, int]],
    until_s: float,
    rng: np.random.Generator,
) -> Traffic:
    at_s = np.concatenate([part.at_s for _, part in drawn])
    stream = np.concatenate([np.full(len(part.at_s), index) for index, part in drawn])
    order = np.argsort(at_s, kind="stable")
    stream = stream[order]
    opened = int(np.isfinite(at_s).sum())
    at_s = at_s[order][:opened]

    def each(name: str) -> Any:
        return np.array([getattr(s, name) for s in scenario.streams])[stream]

    def column(name: str) -> Any:
        return np.concatenate([getattr(part, name) for _, part in drawn])[order]

    count = len(stream)
    patience = np.where(
        rng.random(count) < each("vanish_share"), rng.exponential(size=count) * each("patience_s"), math.inf
    )
    return Traffic(
        at_s=at_s.tolist(),
        stream=stream.tolist(),
        rows=column("rows").tolist(),
        priority=column("priority").tolist(),
        key=(rng.random(count) * each("keys")).astype(np.int64).tolist(),
        connection=rng.integers(scenario.fleet.connections, size=count).tolist(),
        timeout_s=column("timeout_s").tolist(),
        patience_s=patience.tolist(),
        bad=(rng.random(count) < each("bad_share")).tolist(),
        closed=closed,
        ends_s=max(until_s, float(at_s[-1])) if opened else 0.0,
    )


def _mean_per_s(stream: Stream) -> float:
    return 0.0 if isinstance(stream.arrivals, Closed | Trace) else stream.arrivals.mean_per_s


def _open(stream: Stream, until_s: float, rng: np.random.Generator) -> _Drawn:
    process = stream.arrivals
    if isinstance(process, Trace):
        return _replay(process, stream)
    return _attributes(stream, _TIMES[type(process)](process, until_s, rng), rng)


def _attributes(stream: Stream, at_s: Times, rng: np.random.Generator) -> _Drawn:
    count = len(at_s)
    return _Drawn(
        at_s,
        np.array(stream.rows)[rng.integers(len(stream.rows), size=count)],
        np.full(count, stream.priority),
        np.full(count, stream.timeout_s),
    )


def _replay(process: Trace, stream: Stream) -> _Drawn:
    """The requests of a trace that ask this stream's model, or no model by name."""
    kept = [a for a in read_trace(Path(process.path)) if a.model in ("", stream.model)][:: process.keep]
    if not kept:
        raise InvalidArgument(f"{process.path}: no request of the trace asks model '{stream.model}'")
    return _Drawn(
        np.array([a.at_s for a in kept]) / process.speed,
        np.array([a.rows for a in kept]),
        np.array([a.priority for a in kept]),
        np.array([a.timeout_s or 0.0 for a in kept]),
    )


def _poisson(process: Poisson, until_s: float, rng: np.random.Generator) -> Times:
    return np.sort(rng.uniform(0.0, until_s, rng.poisson(process.rate_per_s * until_s)))


def _bursts(process: Bursts, until_s: float, _rng: np.random.Generator) -> Times:
    return np.repeat(np.arange(0.0, until_s, process.every_s), process.size)


def _on_off(process: OnOff, until_s: float, rng: np.random.Generator) -> Times:
    parts = []
    now, on = 0.0, True
    while now < until_s:
        length = min(rng.exponential(process.on_s if on else process.off_s), until_s - now)
        rate = process.on_per_s if on else process.off_per_s
        parts.append(now + rng.uniform(0.0, length, rng.poisson(rate * length)))
        now, on = now + length, not on
    return np.sort(np.concatenate(parts)) if parts else np.empty(0)


def _diurnal(process: Diurnal, until_s: float, rng: np.random.Generator) -> Times:
    """By thinning (Lewis & Shedler, 1979)."""
    most = process.rate_per_s * (1 + process.swing)
    at_s = np.sort(rng.uniform(0.0, until_s, rng.poisson(most * until_s)))
    rate = process.rate_per_s * (1 + process.swing * np.sin(2 * np.pi * at_s / process.period_s))
    return np.asarray(at_s[rng.random(len(at_s)) * most < rate])


_TIMES: Final[dict[type, Callable[[Any, float, np.random.Generator], Times]]] = {
    Poisson: _poisson,
    Bursts: _bursts,
    OnOff: _on_off,
    Diurnal: _diurnal,
}
