"""From every request of a run to what is said of it."""

from __future__ import annotations

from typing import Final

import numpy as np

from salver.client.load.driver import Driver
from salver.client.load.plan import (
    UNREACHABLE,
    Generator,
    Latencies,
    LoadPlan,
    LoadResult,
    Samples,
    percentiles,
)
from salver.core.arrays import Array

_BUSY: Final = 0.9
_LATE_S: Final = 0.001
_LATE_SHARE: Final = 0.1


def samples_of(driver: Driver) -> Samples:
    """Every request."""
    log = driver.log
    return Samples(
        np.array(log.due_s),
        np.array(log.latency_s),
        np.array(log.outcome),
        tuple(log.names),
        driver.began_s,
    )


def summarize(plan: LoadPlan, model: str, wire: str, driver: Driver, samples: Samples) -> LoadResult:
    """What is said of a run."""
    log = driver.log
    begin_s = 0.0 if plan.trace else plan.warmup_s
    first, last = driver.marks[0], driver.marks[1]
    ends_s = samples.due_s + samples.latency_s
    end_s = max(last.at_s - driver.began_s, begin_s + 1e-9)
    counted = samples.due_s >= begin_s
    ok = samples.is_ok
    in_window = (ends_s >= begin_s) & (ends_s <= end_s)
    window_s = end_s - begin_s
    good = ok & (samples.latency_s <= plan.slo_s) if plan.slo_s is not None else ok
    requests = int(counted.sum())
    latency = Latencies.of(samples.latency_s[counted & ok])
    reached = in_window & (samples.outcome != log.numbers.get(UNREACHABLE, -1))
    answered = max(int(reached.sum()), 1)
    server_us = (last.server_cpu_s - first.server_cpu_s) / answered * 1e6 if plan.pid else None
    has_slo = plan.slo_s is not None
    retries_s = [after_s for due_s, after_s in log.retry_after_s if due_s >= begin_s]
    return LoadResult(
        url=plan.url,
        model=model,
        wire=wire,
        offered_per_s=requests / window_s,
        requests=requests,
        ok=int((counted & ok).sum()),
        throughput_per_s=float((ok & in_window).sum()) / window_s,
        rows_per_s=float(np.array(log.rows)[ok & in_window].sum()) / window_s,
        goodput_per_s=float((good & in_window).sum()) / window_s if has_slo else None,
        within_slo=float((good & counted).sum()) / max(requests, 1) if has_slo else None,
        latency=latency,
        outcomes=_count(samples, counted),
        retry_after=len(retries_s),
        retry_after_mean_s=float(np.mean(retries_s)) if retries_s else None,
        server_cpu_us=server_us,
        generator=_judge(driver, latency, answered, begin_s),
        window_s=window_s,
        wall_s=driver.ended_s - driver.began_s,
        slo_s=plan.slo_s,
    )


def _count(samples: Samples, counted: Array) -> dict[str, int]:
    numbers = np.bincount(samples.outcome[counted], minlength=len(samples.names))
    return {name: int(count) for name, count in zip(samples.names, numbers, strict=True) if count}


def _judge(driver: Driver, latency: Latencies | None, answered: int, begin_s: float) -> Generator:
    """Whether the generator kept up."""
    first, last = driver.marks[0], driver.marks[1]
    cpu_s = last.own_cpu_s - first.own_cpu_s
    busy = cpu_s / max(last.at_s - first.at_s, 1e-9)
    late = np.array(driver.log.late_s)[np.array(driver.log.late_due_s) >= begin_s]
    p50, p99 = (float(value) for value in percentiles(late, (0.5, 0.99))) if len(late) else (0.0, 0.0)
    why = ""
    if busy > _BUSY:
        why = f"its thread was running {busy:.0%} of the time: latencies and rates are its own limit"
    elif latency is not None and p99 > max(_LATE_S, _LATE_SHARE * latency.p99 / 1e3):
        why = f"it got to 1 in 100 requests more than {p99 * 1e3:.2g} ms after they were due"
    return Generator(
        cpu_us=cpu_s / answered * 1e6,
        busy=busy,
        late_p50_ms=p50 * 1e3,
        late_p99_ms=p99 * 1e3,
        late_max_ms=float(late.max()) * 1e3 if len(late) else 0.0,
        waited=driver.waited,
        connections=driver.opened,
        is_bottleneck=bool(why),
        why=why,
    )
