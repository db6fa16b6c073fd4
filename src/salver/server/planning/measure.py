"""What a model takes on this machine: time by batch size and threads, and memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import Final

import msgspec

from salver.backends.base import Session
from salver.bundle import Bundle
from salver.bundle.calibrate import synthetic_inputs
from salver.core.arrays import Array
from salver.core.errors import FailedPrecondition
from salver.server.engine.base import InferRequest, batchable
from salver.server.engine.lanes import Run, attempt, execute
from salver.server.engine.loading import load
from salver.server.engine.scheduler import Batch
from salver.server.planning.overheads import measure_overheads
from salver.server.planning.scenario import Latency, Overheads
from salver.server.settings import RunSettings

_LEAST_ROUNDS: Final = 5
_MOST_RATIOS: Final = 4096
_WARM_ROUNDS: Final = 2
_LEAST_SHARE: Final = 1e-3  # an accelerator's thread sleeps nearly all the time


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model on a machine.

    Args:
        latencies: threads -> how long a run takes.
        merge: whether requests may share a batch.
        merge_reason: why not, or where the knowledge comes from.
        inline: whether short runs may run on the event loop.
        max_batch: rows of the largest batch that was measured.
        row_bytes: input of one row.
        memory_bytes: of a process that has the model loaded.
        overheads: what a worker spends besides.
    """

    latencies: dict[int, Latency]
    merge: bool = True
    merge_reason: str = ""
    inline: bool = True
    max_batch: int = 32
    row_bytes: int = 1024
    memory_bytes: int = 0
    overheads: Overheads = Overheads()


def measure(bundle: Bundle, threads: Sequence[int], *, max_batch: int = 32, budget_s: float = 2.0) -> Measured:
    """Load a model and time it, batch sizes in turns so that a disturbance hits all alike.

    Args:
        threads: numbers of threads to try.
        max_batch: the largest batch.
        budget_s: for the timing of each.

    Raises:
        FailedPrecondition: its golden requests fail, or no input is known that it takes.
        SalverError: it cannot be loaded.
    """
    latencies: dict[int, Latency] = {}
    merge, reason, inline, row_bytes, overheads = True, "", True, 0, Overheads()
    for count in threads:
        loaded = load(bundle, RunSettings(threads=count, max_batch=max_batch))
        with loaded.session as session:
            row = _row(bundle, session)
            merge, reason, inline = loaded.merge, loaded.merge_reason, loaded.inline
            timed = partial(_run, session, row)
            latencies[count] = _time(timed, max_batch if merge else 1, budget_s)
            if not row_bytes:
                row_bytes = max(1, sum(array.nbytes for array in row.values()))
                most = max_batch if merge else 1
                overheads = measure_overheads(session, row, latencies[count], timed, most, inline=inline)
    return Measured(
        latencies=latencies,
        merge=merge,
        merge_reason=reason,
        inline=inline,
        max_batch=max_batch if merge else 1,
        row_bytes=row_bytes,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        overheads=overheads,
    )


def _row(bundle: Bundle, session: Session) -> dict[str, Array]:
    """One row that the model takes."""
    if bundle.golden:
        return bundle.golden[0].inputs
    try:
        return synthetic_inputs(session, session.signature, 1, seed=0)[0]
    except FailedPrecondition as error:
        raise FailedPrecondition(f"'{bundle.name}' cannot be timed: {error.message}; build it with data") from None


def _run(session: Session, row: dict[str, Array], rows: int) -> Run:
    """A batch of so many, which nothing else needs."""
    requests = [InferRequest(row, 1, _ignore) for _ in range(rows)]
    ran = attempt(partial(execute, session, batchable(session.signature)), Batch(requests, rows, 0, 0.0))
    if ran.error is not None:
        raise ran.error
    return ran


def _time(timed: Callable[[int], Run], max_batch: int, budget_s: float) -> Latency:
    sizes = [1]
    while sizes[-1] < max_batch:
        sizes.append(min(2 * sizes[-1], max_batch))
    laps: list[list[tuple[float, float]]] = [[] for _ in sizes]
    until: float = 0.0
    rounds = -_WARM_ROUNDS
    while rounds < _LEAST_ROUNDS or perf_counter() < until:
        for size, times in zip(sizes, laps, strict=True):
            ran = timed(size)
            if rounds >= 0:
                times.append((ran.compute_s, ran.cpu_s))
        rounds += 1
        until = until or perf_counter() + budget_s
    share = _share([lap for times in laps for lap in times])
    own = [[min(wall_s, cpu_s / share) for wall_s, cpu_s in times] for times in laps]
    usual = [median(times) for times in own]
    ratios = sorted(lap_s / typical for times, typical in zip(own, usual, strict=True) for lap_s in times)
    return Latency(
        table=tuple(zip(sizes, usual, strict=True)),
        ratios=tuple(ratios[:: -(-len(ratios) // _MOST_RATIOS)]),
        cpu_share=share,
    )


def _share(laps: list[tuple[float, float]]) -> float:
    """CPU time over wall time of a run that nothing disturbs: that of the best tenth. What others on this machine take
    from a run beyond that is not the model's."""
    shares = sorted(cpu_s / wall_s for wall_s, cpu_s in laps)
    return min(1.0, max(_LEAST_SHARE, shares[len(shares) * 9 // 10]))


def machine_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ignore(_outputs: object, _timing: object) -> None:
    """Timed runs have no clients."""
