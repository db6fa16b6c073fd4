"""Servers that idle, hang and stop behind real proxies, under load; all proxies at the same time."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.proxies.calls import TIMEOUT_S, channel, request, stub
from tests.proxies.load import REST, Load
from tests.proxies.proxies import EACH, PROXIES, Front, find, path_of, running
from tests.proxies.servers import Served, eventually, serving

IDLE_S = 1
PATIENCE_S = 4
"""For a call while one server hangs: more than a health check takes to notice it."""


class Stage(Load):
    """Two servers, one of which will have a hard time, and load on every proxy that is here, quick and slow."""

    def __init__(self, steady: Served, tried: Served, fronts: dict[str, Front]) -> None:
        super().__init__(fronts, (REST, "identity_fp32", "slow"))
        self.steady = steady
        self.tried = tried
        self.fronts = fronts

    def for_all(self, step: Callable[[str, Front], Any]) -> dict[str, Any]:
        """What a step gives for each proxy."""
        return {name: step(name, front) for name, front in self.fronts.items()}


def outcome(front: Front, timeout_s: float = TIMEOUT_S) -> str:
    """``OK`` or the status of one call."""
    with channel(front.http2) as one:
        try:
            stub(one).ModelInfer(request(), timeout=timeout_s)
        except grpc.RpcError as error:
            return f"{error.code()} {error.details()}"
    return "OK"


@pytest.fixture(scope="module")
def stage(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("lifecycle")
    with contextlib.ExitStack() as stack:
        steady = stack.enter_context(serving(models))
        tried = stack.enter_context(serving(models, "--idle-timeout", f"{IDLE_S}s"))
        addresses = [steady.address, tried.address]
        fronts = {
            proxy.name: stack.enter_context(running(proxy, folder / proxy.name, addresses))
            for proxy in PROXIES
            if path_of(proxy.name)
        }
        yield Stage(steady, tried, fronts)


@pytest.fixture(scope="module")
def after_idling(stage: Stage) -> dict[str, list[str]]:
    """Calls before and after the servers have closed the connections that the proxies kept."""
    before = stage.for_all(lambda _, front: [outcome(front) for _ in range(4)])
    time.sleep(2.5 * IDLE_S)
    after = stage.for_all(lambda _, front: [outcome(front) for _ in range(4)])
    return {name: before[name] + after[name] for name in stage.fronts}


@pytest.fixture(scope="module")
def hung(stage: Stage, after_idling: object) -> dict[str, tuple[list[str], bool]]:
    """Calls while one server hangs and its proxies have noticed; whether it gets calls again when it goes on."""
    stage.tried.process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(3)
        calls = stage.for_all(lambda _, front: [outcome(front, PATIENCE_S) for _ in range(4)])
    finally:
        stage.tried.process.send_signal(signal.SIGCONT)

    def comes_back(_: str, front: Front) -> bool:
        before = stage.tried.requests("identity_fp32")
        return eventually(lambda: outcome(front) == "OK" and stage.tried.requests("identity_fp32") > before)

    back = stage.for_all(comes_back)
    return {name: (calls[name], back[name]) for name in stage.fronts}


@pytest.fixture(scope="module")
def drained(stage: Stage, hung: object) -> int:
    """One server is told to stop under load; its exit code."""
    before = stage.tried.requests("identity_fp32")
    with stage.running():
        assert eventually(lambda: stage.tried.requests("identity_fp32") >= before + 10 * len(stage.fronts))
        code = stage.tried.stop()
        time.sleep(1)
    return code


@EACH
def test_idle_connections_that_a_server_closed_cost_no_call(proxy, after_idling):
    find(proxy.name)
    assert after_idling[proxy.name] == ["OK"] * 8


@EACH
def test_a_server_that_hangs_gets_no_calls_until_it_goes_on(proxy, hung):
    find(proxy.name)
    if not proxy.checks_health:
        pytest.skip(f"{proxy.name} does not ask servers for their health; only its commercial edition would")
    calls, is_back = hung[proxy.name]
    assert calls == ["OK"] * 4
    assert is_back


@EACH
def test_a_server_that_stops_under_load_fails_no_request(proxy, stage, drained):
    find(proxy.name)
    assert drained == 0
    assert stage.counts[proxy.name] > 50
    if "drain" in proxy.fails:  # connections that the server had are finished; new ones it refuses, and is told as 502
        assert all("502" in failure for failure in stage.failures[proxy.name])
        return
    assert not set(stage.failures[proxy.name])


@pytest.mark.parametrize("proxy", [proxy for proxy in PROXIES if "drain" in proxy.fails], ids=lambda proxy: proxy.name)
def test_a_server_that_stops_after_a_while_is_not_asked_in_vain(proxy, models, tmp_path):
    find(proxy.name)
    with (
        serving(models) as steady,
        serving(models, "--drain-delay", "3s") as tried,
        running(proxy, tmp_path, [steady.address, tried.address]) as front,
    ):
        stage = Stage(steady, tried, {proxy.name: front})
        with stage.running():
            assert eventually(lambda: tried.requests("identity_fp32") > 10)
            assert tried.stop() == 0
            time.sleep(1)
        assert stage.counts[proxy.name] > 50
        assert not set(stage.failures[proxy.name])
