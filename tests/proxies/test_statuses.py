"""Every gRPC status that a request can end with, as grpcio shows it to its user; blocking and asyncio.

`tests/server/frontends/http2/test_clients.py` has those that no request brings about.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.proxies.calls import TIMEOUT_S, channel, request, stub
from tests.proxies.servers import Served, eventually, serving

Status = grpc.StatusCode
PREFIX = "/inference.GRPCInferenceService/"
INFER = "ModelInfer"
KEYS = {"caller": "infer", "reader": "metadata"}

# Method, request, seconds or None, scope of the caller's key, status, what the details say.
REQUESTS = {
    "ok": (INFER, request(), None, "infer", Status.OK, ""),
    "wrong shape": (
        INFER,
        request(x=np.ones((1, 1, 1), np.float32)),
        None,
        "infer",
        Status.INVALID_ARGUMENT,
        "got shape [1, 1, 1]",
    ),
    "no such model": (INFER, request("größer\n100 %, ок"), None, "infer", Status.NOT_FOUND, "größer\n100 %, ок"),
    "refused while it runs": (
        INFER,
        request("gather", np.array([7], np.int64)),
        None,
        "infer",
        Status.INVALID_ARGUMENT,
        "idx=7",
    ),
    "too slow": (INFER, request("slow"), 0.03, "infer", Status.DEADLINE_EXCEEDED, ""),
    "no such method": ("Nothing", pb.ServerLiveRequest(), None, "infer", Status.UNIMPLEMENTED, "no method"),
    "switched off": (
        "SystemSharedMemoryStatus",
        pb.SystemSharedMemoryStatusRequest(),
        None,
        "infer",
        Status.FAILED_PRECONDITION,
        "shared memory is off",
    ),
    "no key": (INFER, request(), None, "", Status.UNAUTHENTICATED, "key"),
    "another scope": (INFER, request(), None, "metadata", Status.PERMISSION_DENIED, "infer"),
}
EACH = pytest.mark.parametrize("name", REQUESTS)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Scope -> key; under ``file``, where their hashes are."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    made = {"file": str(file)}
    for name, scope in KEYS.items():
        command = [sys.executable, "-m", "salver", "keys", "--api", name, "--scopes", scope, "-o", str(file)]
        made[scope] = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    return made


@pytest.fixture(scope="module")
def guarded(models, keys) -> Iterator[Served]:
    with serving(models, "--api-keys", keys["file"]) as server:
        yield server


def metadata(keys: dict[str, str], scope: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {keys[scope]}"),) if scope else ()


def method(channel: Any, name: str) -> Callable[..., Any]:
    """By its path, so that it need not exist."""
    unary: Callable[..., Any] = channel.unary_unary(
        PREFIX + name, request_serializer=lambda message: message.SerializeToString()
    )
    return unary


def check(name: str, code: grpc.StatusCode, details: str) -> None:
    *_, expected, said = REQUESTS[name]
    assert code is expected, details
    assert said in details


class TestEachStatus:
    @EACH
    def test_blocking(self, name, guarded, keys):
        path, message, timeout_s, scope, *_ = REQUESTS[name]
        with channel(guarded.address) as one:
            try:
                _, call = method(one, path).with_call(
                    message, timeout=timeout_s or TIMEOUT_S, metadata=metadata(keys, scope)
                )
                check(name, call.code(), call.details())
            except grpc.RpcError as error:
                check(name, error.code(), error.details())

    @EACH
    def test_asyncio(self, name, guarded, keys):
        path, message, timeout_s, scope, *_ = REQUESTS[name]

        async def ask() -> tuple[Any, str]:
            async with grpc.aio.insecure_channel(guarded.address) as one:
                call = method(one, path)(message, timeout=timeout_s or TIMEOUT_S, metadata=metadata(keys, scope))
                return await call.code(), await call.details()

        check(name, *asyncio.run(ask()))


def test_a_call_that_its_client_cancels(pair):
    with channel(pair[0].address) as one:
        call = stub(one).ModelInfer.future(request("slow"), timeout=TIMEOUT_S)
        call.cancel()
        assert call.code() is Status.CANCELLED
        assert len(stub(one).ModelInfer(request(), timeout=TIMEOUT_S).outputs) == 1


def test_a_full_queue(models):
    """RESOURCE_EXHAUSTED, with the time after which to try again where grpcio looks for it."""
    with serving(models, "--max-queue", 1, "--max-batch", 1) as server, channel(server.address) as one:
        calls = [stub(one).ModelInfer.future(request("slow"), timeout=TIMEOUT_S) for _ in range(20)]
        codes = [call.code() for call in calls]
        assert set(codes) == {Status.OK, Status.RESOURCE_EXHAUSTED}
        refused = calls[codes.index(Status.RESOURCE_EXHAUSTED)]
        assert int(dict(refused.trailing_metadata())["grpc-retry-pushback-ms"]) > 0


def test_a_model_that_was_unloaded(models):
    with serving(models) as server, channel(server.address) as one:
        stub(one).RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="gather"), timeout=TIMEOUT_S)
        with pytest.raises(grpc.RpcError) as caught:
            stub(one).ModelInfer(request("gather", np.array([1], np.int64)), timeout=TIMEOUT_S)
        assert caught.value.code() is Status.UNAVAILABLE
        assert "gather" in caught.value.details()


def test_a_server_that_stops(models):
    """What it took is answered; a new call finds nobody there."""
    with serving(models) as server, channel(server.address) as one:
        stub(one).ModelInfer(request(), timeout=TIMEOUT_S)
        call = stub(one).ModelInfer.future(request("slow"), timeout=TIMEOUT_S)
        time.sleep(0.05)
        assert server.stop() == 0
        assert call.code() is Status.OK
        assert eventually(lambda: stub(one).ModelInfer.future(request(), timeout=5).code() is Status.UNAVAILABLE)
