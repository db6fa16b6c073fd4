"""Three servers behind a proxy, one killed and one drained under load; all proxies at the same time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.proxies.calls import channel
from tests.proxies.load import REST, Call, Load, grpc_caller, rest_caller
from tests.proxies.proxies import PROXIES, Front, find, path_of, running
from tests.proxies.servers import Served, eventually, serving

BALANCED = [proxy for proxy in PROXIES if proxy.repeats != "none"]
EACH = pytest.mark.parametrize("proxy", BALANCED, ids=[proxy.name for proxy in BALANCED])
MODEL = "identity_fp32"
CALLS = 30
DRAIN_DELAY_S = 1.5
"""More than a health check takes."""


@pytest.fixture(scope="module")
def servers(models: Path) -> Iterator[list[Served]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(serving(models, "--drain-delay", f"{DRAIN_DELAY_S}s")) for _ in range(3)]


@pytest.fixture(scope="module")
def fronts(servers: list[Served], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Front]]:
    folder = tmp_path_factory.mktemp("balanced")
    with contextlib.ExitStack() as stack:
        yield {
            proxy.name: stack.enter_context(running(proxy, folder / proxy.name, [each.address for each in servers]))
            for proxy in BALANCED
            if path_of(proxy.name)
        }


@contextlib.contextmanager
def over_one_channel(front: Front) -> Iterator[Call]:
    with channel(front.http2) as one:
        yield grpc_caller(one, MODEL)


def shares(
    servers: list[Served], caller: Callable[[Front], contextlib.AbstractContextManager[Call]], front: Front
) -> list[int]:
    """How many calls of one connection each server took; all are answered well."""
    before = [server.requests(MODEL) for server in servers]
    with caller(front) as call:
        assert {call(number) for number in range(CALLS)} == {""}
    return [server.requests(MODEL) - count for server, count in zip(servers, before, strict=True)]


@pytest.fixture(scope="module")
def balanced(servers: list[Served], fronts: dict[str, Front]) -> dict[str, list[list[int]]]:
    """For each proxy, who took the calls of one gRPC channel and of one connection of HTTP/1.1."""
    return {
        name: [shares(servers, caller, front) for caller in (over_one_channel, rest_caller)]
        for name, front in fronts.items()
    }


@pytest.fixture(scope="module")
def shaken(servers: list[Served], fronts: dict[str, Front], balanced: object) -> Load:
    """What came of the load while one server was killed and one drained."""
    some = [proxy.name for proxy in BALANCED if proxy.repeats == "some"]
    load = Load(fronts, (REST, REST, MODEL, MODEL, "slow", "slow"), repeating=some)
    killed, drained, last = servers
    with load.running():
        assert eventually(lambda: killed.requests("slow") >= 2 * len(fronts))
        killed.process.kill()
        time.sleep(1)
        assert drained.stop() == 0
        before = last.requests("slow")
        assert eventually(lambda: last.requests("slow") >= before + 3 * len(fronts))
    return load


@EACH
def test_calls_of_one_connection_reach_all_servers_evenly(proxy, balanced):
    find(proxy.name)
    for took in balanced[proxy.name]:
        assert sum(took) == CALLS
        assert min(took) >= CALLS // 3 - 2


@EACH
def test_neither_death_nor_draining_of_a_server_fails_a_request(proxy, shaken):
    find(proxy.name)
    assert shaken.counts[proxy.name] > 100
    assert not set(shaken.failures[proxy.name])
