"""gRPC health checking."""

from __future__ import annotations

import asyncio
import time

import pytest
from grpc_health.v1 import health_pb2 as pb

from salver.server.frontends import FRONTENDS
from salver.server.frontends.grpc.call import Call
from salver.testing.frontends import CallCatcher, FrontendConformance, invoke

PREFIX = "/grpc.health.v1.Health/"
STATUS = pb.HealthCheckResponse.ServingStatus
SERVING, NOT_SERVING, UNKNOWN = (STATUS.Value(name) for name in ("SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"))


def done(error):
    """Nothing is told of a change of the repository."""


def check(frontend, service=""):
    call, caught = invoke(frontend, f"{PREFIX}Check", pb.HealthCheckRequest(service=service).SerializeToString())
    return pb.HealthCheckResponse.FromString(caught.messages[0]).status if caught.messages else call.code


def watch(frontend, service):
    caught = CallCatcher()
    call = Call(caught, b"Watch", {}, None, time.perf_counter(), caught.peer)
    method = next(m for m in frontend.methods() if m.path == f"{PREFIX}Watch")
    call.attempt(method.handle, call)
    call.attempt(call.on_message, pb.HealthCheckRequest(service=service).SerializeToString())
    return call, caught


def told(caught):
    return [pb.HealthCheckResponse.FromString(m).status for m in caught.messages]


async def until(condition):
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.02)
    pytest.fail("it did not happen")


class TestHealth(FrontendConformance):
    member = "health"

    def test_check(self, frontend, services):
        services.frontends = (frontend, FRONTENDS.get("oip-grpc")(services))
        for service in ("", "grpc.health.v1.Health", "inference.GRPCInferenceService", "linear"):
            assert check(frontend, service) == SERVING
        assert check(frontend, "none") == "NOT_FOUND"
        services.engine.is_ready = False
        assert check(frontend) == NOT_SERVING
        assert check(frontend, "inference.GRPCInferenceService") == NOT_SERVING
        assert check(frontend, "linear") == SERVING

    def test_a_model_that_is_not_ready(self, frontend, services):
        services.engine.repository.unload("pair", done)
        try:
            assert check(frontend, "pair") == NOT_SERVING
            assert check(frontend) == NOT_SERVING
        finally:
            services.engine.repository.load("pair", done)

    def test_list(self, frontend):
        _, caught = invoke(frontend, f"{PREFIX}List")
        statuses = pb.HealthListResponse.FromString(caught.messages[0]).statuses
        assert statuses[""].status == statuses["linear"].status == SERVING
        assert "grpc.health.v1.Health" in statuses

    def test_watch_tells_what_changes_until_it_is_cancelled(self, frontend, services):
        async def scenario():
            call, caught = watch(frontend, "")
            _, unknown = watch(frontend, "none")
            assert (told(caught), told(unknown)) == ([SERVING], [UNKNOWN])
            services.engine.is_ready = False
            await until(lambda: len(caught.messages) == 2)
            services.engine.is_ready = True
            await until(lambda: len(caught.messages) == 3)
            assert told(caught) == [SERVING, NOT_SERVING, SERVING]
            assert told(unknown) == [UNKNOWN]
            assert not caught.ended
            call.cancel()
            services.engine.is_ready = False
            other, later = watch(frontend, "")
            services.engine.is_ready = True
            await until(lambda: len(later.messages) == 2)
            assert len(caught.messages) == 3
            other.cancel()

        asyncio.run(scenario())

    def test_one_watch_is_for_one_service(self, frontend):
        async def scenario():
            call, _ = watch(frontend, "")
            call.attempt(call.on_message, b"")
            assert call.code == "INVALID_ARGUMENT"

        asyncio.run(scenario())
