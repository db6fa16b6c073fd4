"""What the meter does, never how fast the machine is."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import binom

from salver.evaluation import describe_host, measure, measure_throughput
from salver.evaluation.meter import median_interval


def test_candidate_and_baseline_take_turns(open_network):
    order = []
    sessions = {}
    for name in ("baseline", "candidate"):
        session = open_network()
        sessions[name] = session
        run = session.run
        session.run = lambda inputs, run=run, name=name: order.append(name) or run(inputs)
    measure(sessions["candidate"], sessions["baseline"], {"x": np.zeros((1, 2), np.float32)}, threads=1, budget_s=0.05)
    changes = [a for a, b in itertools.pairwise(order[10:]) if a != b]
    assert changes.count("baseline") > 5
    assert abs(order.count("baseline") - order.count("candidate")) == 0


def test_numbers_belong_together_and_the_collector_is_put_back(open_network):
    session = open_network()
    timed = measure(session, open_network(), {"x": np.zeros((3, 2), np.float32)}, threads=1, budget_s=0.3)
    assert timed.batch == 3
    assert 0.0 < timed.p50_ms <= timed.p95_ms <= timed.p99_ms
    assert timed.cpu_ms > 0.0
    assert timed.speedup_ci.low <= timed.speedup <= timed.speedup_ci.high
    assert timed.runs >= 12
    assert gc.isenabled()


def test_throughput_is_measured_at_a_batch_the_model_takes(open_network):
    rows = {"x": np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)}
    open_ = open_network()
    assert measure_throughput(open_, open_, rows, threads=1, budget_s=0.2).batch in (1, 2, 4, 8, 16, 32, 64)
    for size in (1, 4, 8):
        fixed = open_network(size)
        assert measure_throughput(fixed, fixed, rows, threads=1, budget_s=0.2).batch == size


@pytest.mark.parametrize("n", [6, 7, 20, 101, 1000])
def test_the_interval_of_a_median_is_that_of_the_sign_test(n):
    interval = median_interval(np.arange(n, dtype=float))
    rank = int(interval.low) + 1
    assert binom.cdf(rank - 1, n, 0.5) <= 0.025 < binom.cdf(rank, n, 0.5)
    assert interval.high == n - rank


def test_peak_memory_is_seen_though_it_is_freed_again():
    # In a process of its own: what earlier tests leave to be freed would hide the growth.
    program = (
        "import numpy as np\nfrom salver.evaluation.memory import PeakMemory\n"
        "with PeakMemory() as peak:\n    block = np.ones(8_000_000)\n    del block\nprint(peak.growth_bytes)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 60_000_000 < int(done.stdout) < 90_000_000


def test_the_host_is_described_the_same_twice():
    host = describe_host()
    assert host == describe_host()
    assert host.cpu
    assert host.cores >= 1
    assert host.fingerprint.startswith("sha256:")
