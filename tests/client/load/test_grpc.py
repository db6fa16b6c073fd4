"""gRPC: against grpcio's server, which limits streams, ages connections and fails as it is told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from salver.client.load import run
from salver.client.load.plan import CUT_OFF, TIMED_OUT, WRONG
from salver.core.errors import Unavailable
from salver.wire.protos import ProtoSet
from tests.client.load.conftest import OK, plan_for

PROTOS = ProtoSet("oip")
REQUEST = PROTOS.message("inference.ModelInferRequest")
RESPONSE = PROTOS.message("inference.ModelInferResponse")

running: list[grpc.Server] = []
Answer = Callable[[Any, grpc.ServicerContext], Any]


def identity(request: Any, context: grpc.ServicerContext) -> Any:
    """The input ``x`` as the output ``y``."""
    given = request.inputs[0]
    answer = RESPONSE(model_name=request.model_name)
    answer.outputs.add(name="y", datatype=given.datatype, shape=given.shape)
    answer.raw_output_contents.append(request.raw_input_contents[0])
    return answer


@contextmanager
def serving(answer: Answer, **options: int) -> Iterator[str]:
    handler = grpc.unary_unary_rpc_method_handler(
        answer, request_deserializer=REQUEST.FromString, response_serializer=RESPONSE.SerializeToString
    )
    service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler})
    with ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads, options=[(f"grpc.{name}", value) for name, value in options.items()])
        server.add_generic_rpc_handlers((service,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        running.append(server)
        yield f"grpc://127.0.0.1:{port}"
        running.remove(server)
        server.stop(None).wait()


def test_calls_are_answered_and_checked() -> None:
    expected = {"y": np.arange(6, dtype=np.float32).reshape(3, 2)}
    inputs = {"x": expected["y"].copy()}
    with serving(identity) as url:
        assert run(plan_for(url, inputs=inputs, expected=expected, check=True, rows=2)).outcomes == {"OK": 20}
        wrong = {"y": expected["y"] + 1}
        assert run(plan_for(url, inputs=inputs, expected=wrong, check=True)).outcomes == {WRONG: 20}


def test_one_connection_carries_many_calls() -> None:
    with serving(identity) as url:
        result = run(plan_for(url, concurrency=16, max_requests=200, connections=1))
    assert result.outcomes == {"OK": 200}
    assert result.generator.connections == 1


def test_a_limit_on_streams_is_kept() -> None:
    with serving(identity, max_concurrent_streams=2) as url:
        result = run(plan_for(url, concurrency=12, max_requests=100, connections=2))
    assert result.outcomes == {"OK": 100}


def test_connections_that_the_server_ends_politely_lose_nothing() -> None:
    with serving(identity, max_connection_age_ms=150, max_connection_age_grace_ms=5000) as url:
        result = run(plan_for(url, rate_per_s=200.0, duration_s=1.5, connections=2))
    assert set(result.outcomes) == {"OK"}
    assert result.generator.connections > 4


def test_refusals_are_counted_by_status_with_their_pushback() -> None:
    def refuse(request: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", "250"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    with serving(refuse) as url:
        result = run(plan_for(url))
    assert result.outcomes == {"RESOURCE_EXHAUSTED": 20}
    assert (result.retry_after, result.retry_after_mean_s) == (20, 0.25)


def test_a_deadline_is_told_and_a_call_without_an_answer_is_given_up() -> None:
    left_s: list[float | None] = []
    release = threading.Event()

    def wait(request: Any, context: grpc.ServicerContext) -> Any:
        left_s.append(context.time_remaining())
        release.wait(10)
        return identity(request, context)

    with serving(wait) as url:
        result = run(plan_for(url, concurrency=2, max_requests=2, timeout_s=5.0, patience_s=0.3))
        release.set()
    assert result.outcomes == {TIMED_OUT: 2}
    assert all(left is not None and 0 < left <= 5 for left in left_s)


def test_a_server_that_dies_cuts_its_calls_off() -> None:
    waiting = threading.Barrier(3)

    def wait(request: Any, context: grpc.ServicerContext) -> Any:
        waiting.wait(10)
        threading.Event().wait(0.2)
        return identity(request, context)

    with serving(wait) as url:
        [server] = running

        def kill() -> None:
            waiting.wait(10)
            server.stop(None)

        thread = threading.Thread(target=kill)
        thread.start()
        result = run(plan_for(url, concurrency=2, max_requests=2, patience_s=2.0))
        thread.join()
    assert sum(result.outcomes.values()) == 2
    assert set(result.outcomes) <= {CUT_OFF, "CANCELLED", "UNAVAILABLE"}


def test_what_is_not_grpc_is_an_error(listening: Any) -> None:
    def session(connected: socket.socket, number: int) -> None:
        connected.recv(65536)
        connected.sendall(OK)

    with listening(session) as listener:
        url = listener.url.replace("http://", "grpc://")
        with pytest.raises(Unavailable, match="does not take 1 connections"):
            run(plan_for(url, concurrency=1, max_requests=2, patience_s=1.0))


@pytest.mark.parametrize("size", [1, 200_000])
def test_answers_of_any_size(size: int) -> None:
    inputs = {"x": np.ones((2, size), np.float32)}
    with serving(identity, max_receive_message_length=-1) as url:
        assert run(plan_for(url, inputs=inputs, check=True)).outcomes == {"OK": 20}
