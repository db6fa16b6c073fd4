"""Requests as bytes and answers from bytes, past any server: what only hostile or unusual ones show."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from typing import Any

import numpy as np
import pytest

from salver.client import Client, Retry, http1, http2
from salver.client.endpoint import parse_endpoint
from salver.client.grpc import GrpcProtocol
from salver.client.http2 import _Channel
from salver.client.messages import Tensor, make_call
from salver.client.protocol import Incoming, Outgoing
from salver.client.rest import RestProtocol
from salver.core.errors import Internal, InvalidArgument, ResourceExhausted, SalverError, TooLarge, Unavailable
from salver.wire.http2 import encode_block
from salver.wire.http2 import frames as f
from salver.wire.protos import ProtoSet
from tests.fuzz.world import Turns, Wire

X = np.zeros((1, 2), np.float32)
LOAD = {"model": "m", "config": {"max_batch_size": 4}, "files": {"1/model.onnx": b"abc"}}


def call_of(value: Any, model: str = "m", **named: Any) -> Any:
    return make_call(model, {"x": value}, "", named.get("outputs", ()), named.get("parameters"), named.get("id", ""))


def whole(request: Outgoing) -> bytes:
    return request.body if isinstance(request.body, bytes) else b"".join(request.body)


def grpc_request(request: Outgoing, name: str = "ModelInfer") -> Any:
    return ProtoSet("oip").message(f"inference.{name}Request").FromString(whole(request))


@pytest.mark.parametrize("make", [RestProtocol, GrpcProtocol])
def test_what_is_kept_of_requests_is_bounded_and_right(make: Any) -> None:
    protocol = make()
    for round_ in range(2):
        for number in range(100):
            request = protocol.infer(call_of(X + round_, f"m{number}"), None)
            assert f"m{number}" in request.path or grpc_request(request).model_name == f"m{number}"
            assert whole(request).endswith((X + round_).tobytes())


@pytest.mark.parametrize(("left_s", "shown"), [(0.0, "1u"), (1.5, "1500000u"), (90, "90000m"), (1e9, "99999999m")])
def test_grpc_timeout(left_s: float, shown: str) -> None:
    assert GrpcProtocol().infer(call_of(X), left_s).fields == (("grpc-timeout", shown),)


def test_parameters_of_every_kind() -> None:
    given = {"a": True, "b": -1, "c": (1 << 64) - 1, "d": 0.5, "e": "x"}
    found = grpc_request(GrpcProtocol().infer(call_of(X, parameters=given), None)).parameters
    assert [getattr(found[name], found[name].WhichOneof("parameter_choice")) for name in given] == list(given.values())
    assert (
        json.loads(whole(RestProtocol(binary=False).infer(call_of(X, parameters=given), None)))["parameters"] == given
    )


def test_a_model_is_sent_with_a_load_request() -> None:
    found = grpc_request(GrpcProtocol().ask("load", LOAD), "RepositoryModelLoad")
    assert json.loads(found.parameters["config"].string_param) == LOAD["config"]
    assert found.parameters["file:1/model.onnx"].bytes_param == b"abc"
    sent = json.loads(whole(RestProtocol().ask("load", LOAD)))["parameters"]
    assert json.loads(sent["config"]) == LOAD["config"]
    assert base64.b64decode(sent["file:1/model.onnx"]) == b"abc"


def test_arrays_of_other_layouts() -> None:
    assert call_of(X.astype(">f4") + 1).inputs[0].data == (X + 1).tobytes()
    assert call_of(np.array([["é"]])).inputs[0].data == "\x02\0\0\0é".encode("latin-1").replace(b"\xe9", "é".encode())
    sent = whole(RestProtocol(binary=False).infer(call_of(np.array([["é", b"a"]], object), outputs=["y"]), None))
    assert json.loads(sent)["inputs"][0]["data"] == ["é", "a"]
    with pytest.raises(InvalidArgument, match="not UTF-8"):
        RestProtocol(binary=False).infer(call_of(np.array([[b"\xff"]], object)), None)
    for datatype in ("FP64", "FP8"):
        with pytest.raises(InvalidArgument, match=f"got float32 for datatype '{datatype}'"):
            call_of(Tensor(X, datatype))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"datatype": "FP8", "shape": [1], "data": [1]}, "unknown datatype"),
        ({"datatype": "FP8", "shape": [1], "parameters": {"binary_data_size": 1}}, "unknown datatype"),
        ({"datatype": "FP32", "shape": [1]}, "neither data nor bytes"),
        ({"datatype": "FP32", "shape": [2], "data": [1]}, "got 1 elements"),
        ({"datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 3}}, "no whole number of FP32"),
        ({"datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 4}}, "do not fill shape"),
        ({"datatype": "FP32", "shape": [-1], "parameters": {"binary_data_size": 4}}, "negative size"),
        ({"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 4}}, "claims more bytes"),
    ],
)
def test_outputs_that_lie(output: dict[str, Any], message: str) -> None:
    head = json.dumps({"outputs": [{"name": "y", **output}]}).encode()
    body = head + b"\1\0\0\0"
    fields = {b"inference-header-content-length": b"%d" % len(head)}
    with pytest.raises(Internal, match=f"cannot be read: output 'y'.*{message}"):
        RestProtocol().read_infer(Incoming(status=200, fields=fields, body=body))


@pytest.mark.parametrize("length", [b"x", b"-1", b"9" * 5000])
def test_a_length_that_is_none(length: bytes) -> None:
    fields = {b"inference-header-content-length": length}
    with pytest.raises(Internal, match="cannot be read"):
        RestProtocol().read_infer(Incoming(status=200, fields=fields, body=b"{}"))


def test_strings_in_json() -> None:
    body = json.dumps({"outputs": [{"name": "y", "datatype": "BYTES", "shape": [1], "data": ["é"]}]}).encode()
    answer = RestProtocol().read_infer(Incoming(status=200, fields={}, body=body))
    assert answer["y"].tolist() == ["é".encode()]


@pytest.mark.parametrize(
    ("status", "body", "error", "message"),
    [
        (413, b'{"error":"no"}', TooLarge, "no"),
        (502, b"<html>", Unavailable, "HTTP status 502: <html>"),
        (599, b"", Internal, "HTTP status 599"),
        (418, b"[]", InvalidArgument, r"HTTP status 418: \[\]"),
    ],
)
def test_errors_of_servers_unlike_ours(status: int, body: bytes, error: type[SalverError], message: str) -> None:
    with pytest.raises(error, match=message):
        RestProtocol().read_infer(Incoming(status=status, fields={b"retry-after": b"soon"}, body=body))
    with pytest.raises(error, match=message):
        RestProtocol().read("live", Incoming(status=status, fields={}, body=body))


def test_a_wait_of_five_thousand_digits() -> None:
    fields = {b"grpc-message": b"later", b"grpc-retry-pushback-ms": b"9" * 5000}
    with pytest.raises(ResourceExhausted, match="later") as caught:
        GrpcProtocol().read_infer(Incoming(status=8, fields=fields, body=b""))
    assert caught.value.retry_after_s == float("inf")


def test_a_configuration_that_is_not_there() -> None:
    assert GrpcProtocol().read("config", Incoming(status=0, fields={}, body=b"")) == {}


def answer_of(**fields: Any) -> Incoming:
    message = ProtoSet("oip").message("inference.ModelInferResponse")(**fields)
    return Incoming(status=0, fields={}, body=message.SerializeToString())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"outputs": [{"name": "y"}], "raw_output_contents": [b"", b""]}, "2 tensors for 1 outputs"),
        ({"outputs": [{"name": "y", "datatype": "FP16", "shape": [1]}]}, "FP16 has no typed contents"),
        (
            {"outputs": [{"name": "y", "datatype": "INT8", "shape": [1], "contents": {"int_contents": [300]}}]},
            "output 'y'",
        ),
    ],
)
def test_grpc_outputs_that_lie(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Internal, match=message):
        GrpcProtocol().read_infer(answer_of(**fields))


def test_grpc_bytes_that_are_no_message() -> None:
    with pytest.raises(Internal, match="no ModelInferResponse"):
        GrpcProtocol().read_infer(Incoming(status=0, fields={}, body=b"\xff"))


class FrameServer:
    """Accepts connections, one after the other, and does with each what it is told.

    Args:
        scripts: for each connection what is sent when another request has come; an empty piece ends it.
    """

    def __init__(self, *scripts: list[bytes]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._scripts = scripts
        self._thread = threading.Thread(target=self._run)
        self.url = f"grpc://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> FrameServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.join(20)
        self._listener.close()

    def _run(self) -> None:
        for script in self._scripts:
            connection, _ = self._listener.accept()
            with connection:
                for answer in script:
                    came = b""
                    while b"/inference.GRPCInferenceService/" not in came:
                        came += connection.recv(1 << 16)
                    if answer:
                        connection.sendall(answer)


def live(stream: int) -> bytes:
    """The answer to ``ServerLive``."""
    head, trailers = encode_block([(b":status", b"200")]), encode_block([(b"grpc-status", b"0")])
    return (
        f.frame(f.HEADERS, f.END_HEADERS, stream, head)
        + f.frame(f.DATA, 0, stream, b"\0\0\0\0\2\x08\1")
        + f.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, stream, trailers)
    )


class TestBlocking:
    """The blocking client against frames over a real socket."""

    GREETING = f.frame(f.SETTINGS, 0, 0, b"")
    PING = f.frame(f.PING, 0, 0, bytes(8))

    def test_a_connection_serves_many_calls(self) -> None:
        with FrameServer([self.GREETING + live(1) + self.PING, live(3)]) as server, Client(server.url) as client:
            assert client.live()
            assert client.live()

    def test_a_connection_that_ended_meanwhile_is_replaced(self) -> None:
        answer = self.GREETING + live(1)
        with FrameServer([answer + self.PING], [answer]) as server, Client(server.url) as client:
            assert client.live()
            time.sleep(0.05)
            assert client.live()

    def test_a_connection_that_is_going_away_is_replaced(self) -> None:
        answer = self.GREETING + live(1)
        goaway = f.frame(f.GOAWAY, 0, 0, bytes(3) + b"\1" + bytes(4))
        with FrameServer([answer + goaway], [answer]) as server, Client(server.url) as client:
            assert client.live()
            assert client.live()

    def test_a_connection_that_ends_under_a_call_is_replaced(self) -> None:
        answer = self.GREETING + live(1)
        with FrameServer([answer, b""], [answer]) as server, Client(server.url) as client:
            assert client.live()
            assert client.live()

    def test_a_server_that_ends_the_first_call(self) -> None:
        retry = Retry(attempts=1)
        with (
            FrameServer([b""]) as server,
            Client(server.url, retry=retry) as client,
            pytest.raises(Unavailable, match="closed the connection without an answer"),
        ):
            client.index()

    def test_an_answer_that_is_no_frames(self) -> None:
        with (
            FrameServer([b"HTTP/1.1 400 Bad Request\r\n\r\n"]) as server,
            Client(server.url, retry=Retry(attempts=1)) as client,
            pytest.raises(Unavailable, match="the first frame is not SETTINGS"),
        ):
            client.index()


def test_an_http_answer_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "MAX_ANSWER_BYTES", 10)
    with pytest.raises(Unavailable, match="larger than 10 bytes"):
        http1.ResponseReader().feed(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(11))


@pytest.mark.parametrize(
    "flood",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\nx: " + bytes([97]) * (2 << 20),
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 300_000,
    ],
)
def test_an_http_head_without_end(flood: bytes) -> None:
    reader = http1.ResponseReader()
    with pytest.raises(Unavailable, match="the head of the server's answer is larger"):
        reader.feed(flood)


def test_an_http_head_that_is_cut_off_is_no_answer() -> None:
    reader = http1.ResponseReader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\nx: y\r\n") is None
    assert reader.end() is None
    assert reader.feed(b"\r\nwhole") is None
    assert reader.end() == Incoming(status=200, fields={b"x": b"y"}, body=b"whole")


@pytest.mark.parametrize("more", [b"HTTP/1.1 500 No\r\nx: z\r\ncontent-length: 3\r\n\r\nbad", b"\0\0\0", b"HTTP/1.1 5"])
def test_only_the_first_http_answer_counts(more: bytes) -> None:
    reader = http1.ResponseReader()
    first = b"HTTP/1.1 103 Early\r\nx: w\r\n\r\nHTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 2\r\n\r\nok"
    found = reader.feed(first + more)
    assert not reader.keep_alive
    assert found == Incoming(status=200, fields={b"x": b"y", b"content-length": b"2"}, body=b"ok")


def test_an_upgrade_that_nobody_asked_for() -> None:
    with pytest.raises(Unavailable, match="not HTTP"):
        http1.ResponseReader().feed(b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")


class TestChannel:
    """One HTTP/2 connection of an event loop, against a server that is a few frames."""

    OK = (
        f.frame(f.HEADERS, f.END_HEADERS, 1, encode_block([(b":status", b"200")]))
        + f.frame(f.DATA, 0, 1, b"\0\0\0\0\1x")
        + f.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, encode_block([(b"grpc-status", b"0")]))
    )
    GREETING = f.frame(f.SETTINGS, 0, 0, b"")

    def start(self, turns: Turns, body: Any = b"x") -> tuple[_Channel, Wire, Any]:
        channel = _Channel(parse_endpoint("grpc://127.0.0.1:1"))
        wire = Wire(turns, channel)
        channel.connection_made(wire)
        call = channel.exchange(Outgoing(path="/p", body=body, fields=(("grpc-timeout", "1S"),)))
        call.send(None)
        turns.step()
        return channel, wire, call

    def end_of(self, turns: Turns, call: Any) -> Any:
        turns.step()
        with pytest.raises(StopIteration) as stopped:
            call.send(None)
        return stopped.value.value

    def test_an_answer_and_goaway_end_the_connection(self) -> None:
        turns = Turns()
        with turns.running():
            channel, wire, call = self.start(turns)
            channel.data_received(self.GREETING + self.OK + f.frame(f.GOAWAY, 0, 0, bytes(8)))
            assert self.end_of(turns, call).body == b"x"
            assert not channel.is_open
            assert wire.is_lost

    def test_a_large_body_waits_for_window_and_transport(self) -> None:
        turns = Turns()
        body = bytes(100_000)
        with turns.running():
            channel, wire, call = self.start(turns, [body[:70_000], memoryview(body)[70_000:]])
            assert len(wire.out) < 66_000
            channel.pause_writing()
            more = f.frame(f.WINDOW_UPDATE, 0, 0, (1 << 20).to_bytes(4)) + f.frame(f.SETTINGS, 0, 0, b"\0\4\0\x10\0\0")
            channel.data_received(self.GREETING + more)
            assert len(wire.out) < 67_000
            channel.resume_writing()
            assert len(wire.out) > 100_000
            channel.data_received(self.OK)
            assert self.end_of(turns, call).status == 0

    def test_a_call_given_up_is_reset(self) -> None:
        turns = Turns()
        with turns.running():
            channel, wire, call = self.start(turns)
            with pytest.raises(asyncio.CancelledError):
                call.throw(asyncio.CancelledError())
            assert wire.out.endswith(f.frame(f.RST_STREAM, 0, 1, (8).to_bytes(4)))
            assert not channel.connection.streams

    @pytest.mark.parametrize(
        ("frames", "message"),
        [
            (f.frame(f.HEADERS, 5, 1, encode_block([(b":status", b"404")])), "HTTP status 404 and no grpc-status"),
            (f.frame(f.HEADERS, 5, 1, encode_block([(b":status", b"200"), (b"grpc-status", b"1" * 5000)])), "no grpc"),
            (f.frame(f.HEADERS, 5, 1, encode_block([(b":status", b"200"), (b"grpc-status", b"0")])), "0 bytes is not"),
            (f.frame(f.RST_STREAM, 0, 1, (7).to_bytes(4)), "REFUSED_STREAM"),
            (f.frame(f.RST_STREAM, 0, 1, (77).to_bytes(4)), r"\(77\)"),
            (f.frame(f.GOAWAY, 0, 0, bytes(8)), "going away"),
            (f.frame(f.PING, 0, 0, b""), "PING of 0 bytes"),
        ],
    )
    def test_frames_that_answer_nothing(self, frames: bytes, message: str) -> None:
        turns = Turns()
        with turns.running():
            channel, _, call = self.start(turns)
            channel.data_received(self.GREETING + frames)
            turns.step()
            with pytest.raises(SalverError, match=message):
                call.send(None)

    def test_an_answer_that_is_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http2, "MAX_ANSWER_BYTES", 5)
        turns = Turns()
        with turns.running():
            channel, _, call = self.start(turns)
            channel.data_received(self.GREETING + self.OK)
            turns.step()
            with pytest.raises(Unavailable, match="larger than 5 bytes"):
                call.send(None)

    def test_many_paths_are_encoded(self) -> None:
        turns = Turns()
        with turns.running():
            channel, wire, _ = self.start(turns)
            for number in range(100):
                channel.exchange(Outgoing(path=f"/{number}")).send(None)
            turns.step()
            assert b"/99" in wire.out
