"""Load on a server, ours or a peer's, and what came of it.

    from salver.client.load import LoadPlan, run

    result = run(LoadPlan(url="http://127.0.0.1:8080", model="digits", rate_per_s=500, slo_s=0.05))
    print(result.latency.p99, result.goodput_per_s)

Latency counts from the time at which a request was due, not from when it was sent, so that a server that stalls is
charged for every request that had to wait (Tene, "How NOT to Measure Latency": coordinated omission).
"""

from __future__ import annotations

from collections.abc import Callable

from salver.client.load.driver import Driver, Progress
from salver.client.load.plan import Generator, Latencies, LoadPlan, LoadResult, Samples
from salver.client.load.requests import Requests, endpoint_of
from salver.client.load.summary import samples_of, summarize

__all__ = ["Generator", "Latencies", "LoadPlan", "LoadResult", "Progress", "Samples", "measure", "run"]


def run(
    plan: LoadPlan, *, stop: Callable[[], bool] | None = None, on_progress: Callable[[Progress], None] | None = None
) -> LoadResult:
    """Put load on a server; blocks until the run is over.

    Args:
        stop: asked about twenty times a second whether to end early; what was measured so far is the result.
        on_progress: told as often how it goes.

    Raises:
        InvalidArgument: the plan does not fit the server.
        Unavailable: the server cannot be reached.
        SalverError: it does not describe the model.
    """
    return measure(plan, stop=stop, on_progress=on_progress)[0]


def measure(
    plan: LoadPlan, *, stop: Callable[[], bool] | None = None, on_progress: Callable[[Progress], None] | None = None
) -> tuple[LoadResult, Samples]:
    """As `run`, with every request."""
    endpoint = endpoint_of(plan)
    requests = Requests(plan, endpoint)
    driver = Driver(plan, endpoint, requests, stop, on_progress)
    driver.run()
    samples = samples_of(driver)
    return summarize(plan, requests.model, requests.name, driver, samples), samples
