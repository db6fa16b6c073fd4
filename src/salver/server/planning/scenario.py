"""A scenario as data: who asks for what and when, what answers, and what goes wrong."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from salver.core.errors import InvalidArgument, NotFound, UnknownName


class _Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all of a scenario's parts share."""


class Poisson(_Data, frozen=True, kw_only=True, tag="poisson", tag_field="kind"):
    """Many independent clients: exponential gaps."""

    rate_per_s: float

    @property
    def mean_per_s(self) -> float:
        """Requests per second in the long run."""
        return self.rate_per_s


class OnOff(_Data, frozen=True, kw_only=True, tag="on-off", tag_field="kind"):
    """Bursts: a Markov-modulated Poisson process of two states with exponential sojourns.

    Args:
        on_per_s, off_per_s: rates in the two states.
        on_s, off_s: mean time in each.
    """

    on_per_s: float
    off_per_s: float = 0.0
    on_s: float
    off_s: float

    @property
    def mean_per_s(self) -> float:
        """Requests per second in the long run."""
        return (self.on_per_s * self.on_s + self.off_per_s * self.off_s) / (self.on_s + self.off_s)


class Diurnal(_Data, frozen=True, kw_only=True, tag="diurnal", tag_field="kind"):
    """Day and night: a Poisson process whose rate swings as a sine.

    Args:
        rate_per_s: mean rate.
        swing: how far the rate goes from its mean, 0 to 1.
        period_s: length of a day.
    """

    rate_per_s: float
    swing: float = 0.8
    period_s: float = 86400.0

    @property
    def mean_per_s(self) -> float:
        """Requests per second in the long run."""
        return self.rate_per_s


class Bursts(_Data, frozen=True, kw_only=True, tag="bursts", tag_field="kind"):
    """Many at once: ``size`` requests in the same instant, every ``every_s`` seconds."""

    size: int
    every_s: float

    @property
    def mean_per_s(self) -> float:
        """Requests per second in the long run."""
        return self.size / self.every_s


class Closed(_Data, frozen=True, kw_only=True, tag="closed", tag_field="kind"):
    """Clients that each wait for an answer before they ask again, after a mean time to think (exponential)."""

    clients: int
    think_s: float = 0.0


class Trace(_Data, frozen=True, kw_only=True, tag="trace", tag_field="kind"):
    """Recorded arrivals (`salver.core.traces`); rows, priorities and timeouts are the trace's own.

    Args:
        path: of the trace.
        keep: every how many-th request is taken: one node's share of a fleet that takes turns.
        speed: how many times faster it is replayed.
    """

    path: str
    keep: int = 1
    speed: float = 1.0


Process = Poisson | OnOff | Diurnal | Bursts | Closed | Trace


class Latency(_Data, frozen=True, kw_only=True):
    """How long a run takes: ``base_s + per_row_s * rows``, or a table; times noise.

    Args:
        base_s, per_row_s: of the straight line.
        table: pairs of rows and seconds, by rows; between them a straight line, and beyond the last its slope. In place
            of the straight line where it is not empty.
        sigma: of lognormal noise with median 1.
        tail_share, tail_factor: this share of runs takes so many times longer.
        ratios: measured run / usual run, drawn at random, in place of lognormal noise.
        cpu_share: CPU time of the running thread over wall time; below 1 where an accelerator does the work.
    """

    base_s: float = 0.0
    per_row_s: float = 0.0
    table: tuple[tuple[int, float], ...] = ()
    sigma: float = 0.0
    tail_share: float = 0.0
    tail_factor: float = 10.0
    ratios: tuple[float, ...] = ()
    cpu_share: float = 1.0

    def __post_init__(self) -> None:
        """
        Raises:
            InvalidArgument: no positive time follows from it, or the table is not in order.
        """
        sizes = [rows for rows, _ in self.table]
        if sizes != sorted(set(sizes)) or (sizes and sizes[0] < 1):
            raise InvalidArgument(f"latency table: got rows {sizes}, expected numbers from 1 upwards, each once")
        if not all(seconds > 0 for _, seconds in self.table) or (not self.table and not self.usual_s(1) > 0):
            raise InvalidArgument("latency: a run must take time; give base_s, per_row_s or a table above 0")

    def usual_s(self, rows: int) -> float:
        """Seconds of a run without noise."""
        if not self.table:
            return self.base_s + self.per_row_s * rows
        if rows <= self.table[0][0]:
            return self.table[0][1]
        for (low, low_s), (high, high_s) in zip(self.table, self.table[1:], strict=False):
            if rows <= high:
                return low_s + (high_s - low_s) * (rows - low) / (high - low)
        return self._beyond(rows)

    def _beyond(self, rows: int) -> float:
        last, last_s = self.table[-1]
        if len(self.table) == 1:
            return last_s * rows / last
        before, before_s = self.table[-2]
        slope = max(0.0, (last_s - before_s) / (last - before))
        return last_s + slope * (rows - last)


class SimulatedModel(_Data, frozen=True, kw_only=True):
    """A model as each worker serves it.

    Args:
        latency: of a run.
        max_batch, max_queue, max_queue_bytes, lanes, slo_s: as `Limits` of the scheduler; ``slo_s`` 0 for none.
        threads: cores that a run keeps busy.
        merge: whether requests may share a batch.
        inline: whether short runs may run on the event loop.
        row_bytes: input of one row.
        fail_share: share of runs that raise though no request is bad.
    """

    latency: Latency
    max_batch: int = 32
    max_queue: int = 1024
    max_queue_bytes: int = 1 << 30
    lanes: int = 1
    slo_s: float = 0.0
    threads: int = 1
    merge: bool = True
    inline: bool = True
    row_bytes: int = 1024
    fail_share: float = 0.0


class Stream(_Data, frozen=True, kw_only=True):
    """Requests of one kind.

    Args:
        model: whom they ask.
        client: who asks, as its API key tells; empty where that is not known.
        arrivals: when they come.
        rows: how many rows one has: one of these, at random.
        keys: how many different shapes they come in; only equal ones share a batch.
        priority: smaller is sooner.
        timeout_s: how long the server may take; 0 for any time.
        bad_share: share of requests on which the model fails.
        vanish_share, patience_s: share of clients that go away, and after what time on average (exponential).
        least_good: share of the requests that must be answered within the scenario's SLO; with less, they starve.
    """

    model: str
    client: str = ""
    arrivals: Process
    rows: tuple[int, ...] = (1,)
    keys: int = 1
    priority: int = 0
    timeout_s: float = 0.0
    bad_share: float = 0.0
    vanish_share: float = 0.0
    patience_s: float = 0.01
    least_good: float = 0.0


class Fault(_Data, frozen=True, kw_only=True):
    """Something that goes wrong, once or again and again.

    Args:
        kind: ``slow``: everything takes ``factor`` times as long for ``for_s``. ``hang``: the next run takes ``for_s``
            longer. ``kill``: a worker dies with all it has, and its replacement is ready after ``for_s``. ``swap``: a
            model's next version takes over.
        at_s: when, and then every ``every_s`` seconds (0: only once).
        worker: which; -1 for all (``slow``, ``swap``) or one after another (``hang``, ``kill``).
    """

    kind: Literal["slow", "hang", "kill", "swap"]
    at_s: float
    for_s: float = 0.0
    factor: float = 3.0
    every_s: float = 0.0
    worker: int = -1


class Wake(_Data, frozen=True, kw_only=True):
    """What sleep costs: caches are cold, and the core's clock slow.

    Args:
        slept_s: how long a worker had nothing to do.
        loop_s, lane_s: by which the next turn of its event loop, and the next run, are longer.
    """

    slept_s: float
    loop_s: float
    lane_s: float


class Overheads(_Data, frozen=True, kw_only=True):
    """What a worker spends besides running the model, in seconds.

    Args:
        turn_s: one turn of the event loop, whatever it brings.
        decode_s: reading, checking and queueing a request, on the event loop.
        encode_s: answering one, on the event loop.
        handoff_s: giving a batch to a lane and taking it back, on the event loop.
        merge_s, merge_row_s: putting a batch together and apart, on the lane.
        interrupt_s, refill_s: by which a turn of an event loop is longer that takes the core from a run, and by which
            that run is: each finds the caches as the other left them.
        wait_s: for which such a turn waits, until the system lets it have the core.
        network_s: outside of the server, both ways together.
        inline_s: a run with less CPU time than this runs on the event loop.
        gather_s: for so long, at most, a batch that is to run on the event loop waits while requests come.
        wake: by time slept, rising; between them a straight line, from nothing at none.
    """

    turn_s: float = 5e-6
    decode_s: float = 8e-6
    encode_s: float = 6e-6
    handoff_s: float = 25e-6
    merge_s: float = 10e-6
    merge_row_s: float = 0.2e-6
    interrupt_s: float = 0.0
    refill_s: float = 0.0
    wait_s: float = 0.0
    network_s: float = 100e-6
    inline_s: float = 200e-6
    gather_s: float = 1e-3
    wake: tuple[Wake, ...] = ()

    def waking_s(self, slept_s: float) -> tuple[float, float]:
        """By how much the next turn and the next run are longer."""
        low_s = loop_s = lane_s = 0.0
        for point in self.wake:
            if slept_s < point.slept_s:
                part = (slept_s - low_s) / (point.slept_s - low_s)
                return loop_s + part * (point.loop_s - loop_s), lane_s + part * (point.lane_s - lane_s)
            low_s, loop_s, lane_s = point.slept_s, point.loop_s, point.lane_s
        return loop_s, lane_s


class Fleet(_Data, frozen=True, kw_only=True):
    """The machine.

    Args:
        workers: processes, each with an event loop.
        cores: for all of them together.
        connections: over which requests come.
        routing: ``connection``: each is a worker's for good, as the kernel's hash has it; ``random`` or ``turns``: a
            balancer looks at each request.
    """

    workers: int = 1
    cores: int = 1
    connections: int = 64
    routing: Literal["connection", "random", "turns"] = "connection"


class Scenario(_Data, frozen=True, kw_only=True):
    """A simulation from beginning to end.

    Args:
        name, why: what it is called, and what it is to show.
        requests: how many are offered, about; a trace is offered whole.
        seed: of all that is random.
        slo_s: an answer within it is a good one.
        max_wait_s: no request may wait longer to start; 0 for any time. Says that nobody starves where there is
            capacity.
        models: by name.
    """

    name: str
    why: str = ""
    requests: int = 100_000
    seed: int = 0
    slo_s: float = 0.1
    max_wait_s: float = 0.0
    models: dict[str, SimulatedModel]
    streams: tuple[Stream, ...]
    faults: tuple[Fault, ...] = ()
    fleet: Fleet = Fleet()
    overheads: Overheads = Overheads()

    def __post_init__(self) -> None:
        """
        Raises:
            UnknownName: a stream asks a model that is not there.
            InvalidArgument: a number out of range.
        """
        for stream in self.streams:
            if stream.model not in self.models:
                raise UnknownName(f"model of scenario '{self.name}'", stream.model, self.models)
        _check_positive(self)


def read_scenarios(path: Path) -> tuple[Scenario, ...]:
    """Scenarios of a TOML or JSON file, each in a ``[[scenario]]`` table. A ``[default]`` table fills in what they do
    not say.

    Raises:
        NotFound: there is no such file.
        InvalidArgument: it cannot be read, or does not fit; says where.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = msgspec.json.decode(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise NotFound(f"no such file of scenarios: '{path}'") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.DecodeError) as error:
        raise InvalidArgument(f"{path}: cannot be read: {error}") from None
    try:
        document = msgspec.convert(data, _Document)
        return tuple(msgspec.convert({**document.default, **one}, Scenario, strict=False) for one in document.scenario)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{path}: {error}") from None


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    scenario: list[dict[str, Any]]
    default: dict[str, Any] = {}


_POSITIVE: Final = frozenset(
    (
        *("requests", "rate_per_s", "on_per_s", "on_s", "off_s", "period_s", "size", "clients", "keep", "max_batch"),
        *("max_queue", "max_queue_bytes", "lanes", "threads", "row_bytes", "keys", "workers", "cores", "connections"),
        *("factor", "tail_factor", "rows", "speed"),
    )
)
_SHARES: Final = frozenset(
    ("swing", "tail_share", "cpu_share", "fail_share", "bad_share", "vanish_share", "least_good")
)
_ANY: Final = frozenset(("seed", "priority", "worker"))


def _check_positive(part: Any, where: str = "") -> None:
    """Refuse numbers out of range, anywhere in a scenario."""
    if isinstance(part, msgspec.Struct):
        for name in part.__struct_fields__:
            _check_positive(getattr(part, name), name)
    elif isinstance(part, Mapping):
        for value in part.values():
            _check_positive(value)
    elif isinstance(part, tuple):
        for value in part:
            _check_positive(value, where)
    elif isinstance(part, int | float) and not isinstance(part, bool) and where not in _ANY:
        most = 1.0 if where in _SHARES else math.inf
        if not (math.isfinite(part) and 0 <= part <= most) or (part == 0 and where in _POSITIVE):
            least = "more than 0" if where in _POSITIVE else "0 or more"
            raise InvalidArgument(f"{where}: got {part}, expected {least}{'' if most > 1 else ', 1 at most'}")
