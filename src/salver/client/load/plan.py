"""What load is to be put on which server, and what came of it: plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument
from salver.core.traces import Arrival

Wire = Literal["", "rest", "json", "grpc", "tfserving-rest", "tfserving-grpc"]

OK: Final = "OK"
TIMED_OUT: Final = "no answer in time"
CUT_OFF: Final = "connection closed"
UNREACHABLE: Final = "unreachable"
WRONG: Final = "wrong answer"
"""Outcomes that no server gives a name to. All others are HTTP statuses and gRPC's names of statuses."""


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One run of load. Exactly one of ``rate_per_s``, ``concurrency`` and ``trace`` says when requests are sent.

    Args:
        url: ``http://host:port``, ``https://``, ``grpc://``, ``grpcs://``, ``http+unix:///path``, ``grpc+unix:///path``.
        model, version: which; an empty model for the only one there is, an empty version for the server's choice.
        wire: ``rest`` (Open Inference Protocol, tensors as bytes), ``json`` (the same as JSON), ``grpc``,
            ``tfserving-rest`` or ``tfserving-grpc``; empty for the first that goes with the URL.
        rate_per_s: open loop: requests are sent at these times, whether earlier ones are answered or not.
        spacing: of an open loop: ``poisson`` arrivals or ``constant`` ones.
        trace: open loop: requests are sent as recorded; see `salver.core.traces`.
        concurrency: closed loop: so many requests are in flight at any time.
        duration_s: time in which requests are sent; 0 for as long as ``max_requests`` or the trace last.
        warmup_s: the beginning of it, which is not counted; requests of a trace are counted all.
        max_requests: in all, the warm-up among them; 0 for no bound.
        rows: in one request; 0 sends ``inputs`` whole.
        inputs: name -> array, whose rows are sent in turn; empty to make them up by the server's metadata.
        variants: different requests, sent in turn.
        int_range: of integers that are made up, both ends included.
        free_size: of dimensions that the signature leaves open, but for the first.
        seed: of all that is random.
        priority: of every request but those of a trace, which have their own; smaller is sooner, 0 says nothing.
        timeout_s: told to the server with every request but those of a trace; None for none.
        patience_s: after this time a request counts as unanswered.
        slo_s: answers within this time are goodput; None for no such limit.
        connections: at most; 0 for ``concurrency`` or up to 1024 over HTTP/1.1, and up to 8 over gRPC.
        fields: header fields sent with every request.
        api_key, ca, client_cert, client_key: as `salver.client.Client`.
        check: whether answers are compared with those expected, or else with the first to the same request.
        expected: output name -> array whose rows belong to those of ``inputs``.
        tolerance: of that comparison, absolute and relative.
        pid: process whose CPU time, with that of all that descend from it, is counted; 0 for none.
    """

    url: str
    model: str = ""
    version: str = ""
    wire: Wire = ""
    rate_per_s: float = 0.0
    spacing: Literal["poisson", "constant"] = "poisson"
    trace: tuple[Arrival, ...] = ()
    concurrency: int = 0
    duration_s: float = 10.0
    warmup_s: float = 1.0
    max_requests: int = 0
    rows: int = 1
    inputs: Mapping[str, Array] = {}
    variants: int = 8
    int_range: tuple[int, int] = (0, 1)
    free_size: int = 16
    seed: int = 0
    priority: int = 0
    timeout_s: float | None = None
    patience_s: float = 10.0
    slo_s: float | None = None
    connections: int = 0
    fields: tuple[tuple[str, str], ...] = ()
    api_key: str = ""
    ca: str = ""
    client_cert: str = ""
    client_key: str = ""
    check: bool = False
    expected: Mapping[str, Array] = {}
    tolerance: float = 1e-4
    pid: int = 0

    def __post_init__(self) -> None:
        """
        Raises:
            InvalidArgument: values that make no run, by name.
        """
        given = [name for name in ("rate_per_s", "concurrency", "trace") if getattr(self, name)]
        if len(given) != 1:
            raise InvalidArgument(
                f"got {' and '.join(given) or 'no arrivals'}; expected one of rate_per_s (open loop), concurrency "
                "(closed loop) and trace"
            )
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise InvalidArgument(f"{name}: got {value}, expected a number that is not negative")
        if not self.trace and not self.duration_s and not self.max_requests:
            raise InvalidArgument("neither duration_s nor max_requests is set: the run would not end")
        if self.duration_s and not self.trace and self.warmup_s >= self.duration_s:
            raise InvalidArgument(
                f"warmup_s: got {self.warmup_s:g}, expected less than the {self.duration_s:g} s of the whole run"
            )
        if not self.variants or not self.patience_s:
            raise InvalidArgument("variants and patience_s: got 0, expected more")

    @property
    def is_open(self) -> bool:
        """Whether requests are sent without regard to answers."""
        return not self.concurrency


_NOT_NEGATIVE: Final = (
    *("rate_per_s", "concurrency", "duration_s", "warmup_s", "max_requests", "rows", "variants", "free_size"),
    *("timeout_s", "patience_s", "slo_s", "connections", "tolerance", "pid"),
)


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """Exact percentiles, in milliseconds, from the time at which each request was due."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    p99_9: float = msgspec.field(name="p99.9")
    max: float

    @classmethod
    def of(cls, seconds: Array) -> Latencies | None:
        """Of these; None where there are none."""
        if not len(seconds):
            return None
        found = percentiles(seconds, (0.5, 0.9, 0.95, 0.99, 0.999)) * 1e3
        p50, p90, p95, p99, p99_9 = (float(value) for value in found)
        return cls(
            mean=float(seconds.mean() * 1e3),
            p50=p50,
            p90=p90,
            p95=p95,
            p99=p99,
            p99_9=p99_9,
            max=float(seconds.max() * 1e3),
        )


def percentiles(values: Array, shares: tuple[float, ...]) -> Array:
    """The smallest of the values that is no smaller than each share of them: one that was measured, never a mean."""
    ordered = np.sort(values)
    ranks = np.ceil(np.array(shares) * len(ordered) - 1e-9).astype(np.int64)
    found: Array = ordered[np.clip(ranks, 1, len(ordered)) - 1]
    return found


class Generator(msgspec.Struct, frozen=True, kw_only=True):
    """How the generator itself did.

    Args:
        cpu_us: its CPU time per request.
        busy: share of the time its thread was running.
        late_p50_ms, late_p99_ms, late_max_ms: from the time at which requests were due to that at which it got to them.
        waited: requests that waited for a free connection, or for window.
        connections: opened in all.
        is_bottleneck: whether the latencies are its own doing rather than the server's.
        why: one sentence, where they are.
    """

    cpu_us: float
    busy: float
    late_p50_ms: float = 0.0
    late_p99_ms: float = 0.0
    late_max_ms: float = 0.0
    waited: int = 0
    connections: int = 0
    is_bottleneck: bool = False
    why: str = ""


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run; all counts leave out the warm-up.

    Args:
        offered_per_s: requests due per second.
        requests: those that were due.
        ok: answered well, and rightly where answers are checked.
        throughput_per_s: answered well per second.
        rows_per_s: their rows.
        goodput_per_s: answered well within the SLO per second; None without one.
        within_slo: share of all requests due that were; None without one.
        latency: of those answered well.
        outcomes: name -> count; ``OK``, HTTP statuses, gRPC's names of statuses, and those of this module.
        retry_after: refusals that said when to try again, and ...
        retry_after_mean_s: ... what they said on average.
        server_cpu_us: CPU time of the process tree per request answered in any way; None without ``pid``.
        generator: see `Generator`.
        window_s: the time counted.
        wall_s: of the whole run.
    """

    url: str
    model: str
    wire: str
    offered_per_s: float
    requests: int
    ok: int
    throughput_per_s: float
    rows_per_s: float
    goodput_per_s: float | None
    within_slo: float | None
    latency: Latencies | None
    outcomes: dict[str, int]
    retry_after: int
    retry_after_mean_s: float | None
    server_cpu_us: float | None
    generator: Generator
    window_s: float
    wall_s: float
    slo_s: float | None = None

    @property
    def failed(self) -> int:
        """Requests that were not answered well."""
        return self.requests - self.ok


class Samples(NamedTuple):
    """Every request of a run, the warm-up among them, in the order in which they ended.

    Args:
        due_s: seconds since the run began at which it was due; in a closed loop, at which it was sent.
        latency_s: from there to its end.
        outcome: an index of ``names``.
        names: outcomes.
        began_s: `time.perf_counter` at the beginning of the run.
    """

    due_s: Array
    latency_s: Array
    outcome: Array
    names: tuple[str, ...]
    began_s: float

    @property
    def is_ok(self) -> Array:
        """Which were answered well."""
        found: Array = self.outcome == self.names.index(OK)
        return found
