"""Triton's generate extension: flat objects in and out, and server-sent events."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from salver.core.errors import InvalidArgument, ResourceExhausted, TooLarge
from salver.core.tensors import Signature, TensorSpec
from salver.server.frontends import FRONTENDS
from salver.server.frontends.instances import to_tensors
from salver.server.frontends.oip.rest_generate import split_request
from salver.testing.frontends import body_of, call


@pytest.fixture
def frontend(services):
    return FRONTENDS.get("oip-rest")(services)


def ask(frontend, path, value):
    return call(frontend, "POST", f"/v2/models/{path}", json.dumps(value).encode())


def test_inputs_are_keys_and_so_are_outputs(frontend, models):
    answer = body_of(ask(frontend, "linear/generate", {"x": [1, 2, 3, 4], "id": "7", "temperature": 0.5}))
    scores = [m for m in models if m.name == "linear"][-1].session.run({"x": np.array([[1, 2, 3, 4]], np.float32)})
    assert answer == {
        "id": "7",
        "model_name": "linear",
        "model_version": "2",
        "scores": scores["scores"].ravel().tolist(),
    }
    older = body_of(ask(frontend, "linear/versions/1/generate", {"x": [[1, 2, 3, 4]]}))
    assert older["model_version"] == "1"
    assert "id" not in older


def test_one_element_is_bare_and_parameters_may_hold_inputs(frontend):
    both = {"a": 1.5, "parameters": {"b": 2, "stream": False}}
    assert body_of(ask(frontend, "pair/generate", both)) == {
        "model_name": "pair",
        "model_version": "1",
        "total": 3.5,
        "whole": 1,
    }
    assert body_of(ask(frontend, "id-bytes/generate", {"x": "é"}))["y"] == "é"
    assert body_of(ask(frontend, "id-bf16/generate", {"x": [0.5, 2.0]}))["y"] == [0.5, 2.0]


def test_reserved_parameters_reach_the_engine(frontend, services):
    services.engine.held = []
    ask(frontend, "linear/generate", {"x": [1, 2, 3, 4], "priority": 2, "parameters": {"sequence_id": 9}})
    [(_, request)] = services.engine.held
    assert (request.priority, request.sequence.id) == (2, 9)


def events(exchange):
    assert exchange.status == 200
    assert exchange.answer[0].startswith(b"content-type: text/event-stream")
    assert exchange.chunks[-1] == b""
    text = b"".join(exchange.chunks).decode()
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]


def test_a_stream_is_server_sent_events(frontend):
    whole = body_of(ask(frontend, "linear/generate", {"x": [1, 2, 3, 4]}))
    assert events(ask(frontend, "linear/generate_stream", {"x": [1, 2, 3, 4]})) == [whole]
    stream = ask(frontend, "id-fp32/generate_stream", {"x": [float("nan"), 1]})
    assert b'"y":[NaN,1.0]' in b"".join(stream.chunks)
    assert events(ask(frontend, "id-bytes/generate_stream", {"x": "two\n\nlines"}))[0]["y"] == "two\n\nlines"


def test_a_stream_that_its_client_leaves_is_cancelled(frontend, services):
    services.engine.held = []
    exchange = ask(frontend, "linear/generate_stream", {"x": [1, 2, 3, 4]})
    assert exchange.answer is None
    exchange.cancel()
    assert (len(services.engine.cancelled), services.engine.held) == (1, [])


def test_an_error_before_the_first_event_is_an_http_error(frontend, services):
    services.engine.refuse_with = ResourceExhausted("queue full")
    answer = ask(frontend, "linear/generate_stream", {"x": [1, 2, 3, 4]})
    assert (answer.status, answer.chunks, body_of(answer)) == (429, None, {"error": "queue full"})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "missing input 'x'"),
        ({"x": [1, 2, 3]}, "input 'x': got shape [3], expected [batch, 4]"),
        ({"x": [[1, 2, 3, 4], [1, 2, 3]]}, "nested data has 3 items"),
        ({"x": []}, "at least one row"),
        ({"x": "a"}, "input 'x': got shape [], expected [batch, 4]"),
        ({"x": {"a": 1}}, "input 'x'"),
        ({"x": [1, 2, 3, 4], "parameters": [1]}, "'parameters' is list"),
        ({"x": [1, 2, 3, 4], "parameters": {"x": [1, 2, 3, 4]}}, "'x' is given twice"),
        ({"x": [1, 2, 3, 4], "id": [1]}, "'id' is list"),
        ({"x": [1, 2, 3, 4], "timeout": -1}, "parameter 'timeout' is -1"),
        ([1], "Expected `object`"),
    ],
)
@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
def test_what_does_not_fit_is_named(frontend, verb, value, message):
    answer = ask(frontend, f"linear/{verb}", value)
    assert answer.status == 400
    assert message in body_of(answer)["error"]


def signature(*shapes, datatype="FP32"):
    specs = [TensorSpec(name=f"x{i}", datatype=datatype, shape=shape) for i, shape in enumerate(shapes)]
    return Signature(inputs=tuple(specs), outputs=(TensorSpec(name="y", datatype="FP32", shape=("n",)),))


@pytest.mark.parametrize(
    ("shape", "value", "expected"),
    [
        (("n", 4), [1, 2, 3, 4], (1, 4)),
        (("n", 4), [[1, 2, 3, 4]] * 3, (3, 4)),
        (("n", 4), list(range(8)), (2, 4)),
        (("n", 1), [1, 2, 3], (3, 1)),
        (("n", 1), 1, (1, 1)),
        (("n",), 1, (1,)),
        (("n",), [1, 2], (2,)),
        ((), 1, ()),
        ((1,), 1, (1,)),
        ((2, 2), [1, 2, 3, 4], (2, 2)),
        (("n", "w"), [1, 2], (1, 2)),
        (("n", "w"), 1, (1, 1)),
        (("n", 1, 2, 2), [[1, 2], [3, 4]], (1, 1, 2, 2)),
        (("...",), [[1], [2]], (2, 1)),
        (("...",), 1, ()),
    ],
)
def test_tensors_may_be_written_shorter(shape, value, expected):
    array = to_tensors({"x0": value}, signature(shape))["x0"]
    assert array.shape == expected
    assert array.ravel().tolist() == np.array(value, np.float32).ravel().tolist()


@pytest.mark.parametrize(
    ("shape", "value"),
    [(("n", 4), [1, 2, 3]), ((2, 2), [1]), ((), [1, 2]), (("n", "w", "v"), [1]), ((3,), 1), (("n", 2), [[1], [2]]),
     (("n", 0), [1])],
)  # fmt: skip
def test_other_shapes_are_not_bent(shape, value):
    with pytest.raises(InvalidArgument, match="input 'x0': got shape"):
        to_tensors({"x0": value}, signature(shape))


def test_names_of_inputs_win_over_reserved_keys():
    given = Signature(
        inputs=tuple(TensorSpec(name=n, datatype="INT64", shape=("n",)) for n in ("id", "parameters")),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=("n",)),),
    )
    request = {"id": [1], "parameters": [2], "more": 3}
    assert split_request(request, given) == ({"id": [1], "parameters": [2]}, {"more": 3}, None)


def test_strings_have_a_limit():
    texts = signature(("n",), datatype="BYTES")
    assert to_tensors({"x0": ["é" * 4]}, texts, 8)["x0"].tolist() == ["é" * 4]
    with pytest.raises(TooLarge, match="element 1 has 10 bytes, over the limit of 8"):
        to_tensors({"x0": ["", "é" * 5]}, texts, 8)


def post(path, value):
    body = json.dumps(value).encode()
    return b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b" % (path, len(body), body)


STREAM = b"/v2/models/linear/generate_stream"


def test_events_go_over_a_socket_in_chunks_and_the_connection_lives(server):
    with server.connect() as sock:
        for _ in range(2):
            sock.sendall(post(STREAM, {"x": [1, 2, 3, 4]}))
            data = b""
            while not data.endswith(b"\r\n0\r\n\r\n"):
                part = sock.recv(65536)
                assert part
                data += part
            head, _, body = data.partition(b"\r\n\r\n")
            assert b"text/event-stream" in head
            assert b"transfer-encoding: chunked" in head.lower()
            size, _, rest = body.partition(b"\r\n")
            event = rest[: int(size, 16)]
            assert event.startswith(b"data: {")
            assert event.endswith(b"}\n\n")


def test_a_client_that_goes_away_cancels(start, engine):
    engine.held = []
    with start() as server:
        with server.connect() as sock:
            sock.sendall(post(STREAM, {"x": [1, 2, 3, 4]}))
            for _ in range(500):
                if engine.held:
                    break
                time.sleep(0.01)
            [(_, request)] = engine.held
        for _ in range(500):
            if engine.cancelled:
                break
            time.sleep(0.01)
        assert engine.cancelled == [request]
        assert server.ask("GET", "/v2/health/live").status == 200
