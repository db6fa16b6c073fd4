"""Real proxies, configured as `docs/server/proxies.md` says, between real clients and two servers."""

from __future__ import annotations

import gzip
import json
import time
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import tritonclient.http as triton_http
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.proxies.calls import TIMEOUT_S, ask_stream, channel, curl, infer_binary, infer_json, request, stub
from tests.proxies.proxies import EACH, Front
from tests.proxies.servers import eventually
from tests.server.wire import CALL, Http2

LARGE = np.random.default_rng(1).normal(size=(2, 1_000_000)).astype(np.float32)  # 8 MB
OVER_HTTP = pytest.mark.parametrize("over", ["--http1.1", "--http2-prior-knowledge"])


def where(front: Front, over: str) -> str:
    return f"http://{front.http1 if over == '--http1.1' else front.http2}"


@pytest.fixture
def front(proxy, through):
    return through(proxy)


@EACH
class TestGrpc:
    def test_calls_of_one_channel_reach_both_servers(self, proxy, front, pair):
        before = [server.requests("identity_fp32") for server in pair]
        with channel(front.http2) as one:
            for value in range(40):
                answer = stub(one).ModelInfer(request(x=np.array([[value]], np.float32)), timeout=TIMEOUT_S)
                assert np.frombuffer(answer.raw_output_contents[0], np.float32) == value
        took = [server.requests("identity_fp32") - count for server, count in zip(pair, before, strict=True)]
        assert sum(took) == 40
        assert min(took) >= 15

    def test_calls_side_by_side(self, proxy, front):
        with channel(front.http2) as one:
            calls = [stub(one).ModelInfer.future(request(x=np.full((1, 8), n, np.float32))) for n in range(300)]
            got = [np.frombuffer(call.result(TIMEOUT_S).raw_output_contents[0], np.float32) for call in calls]
        assert [list(x) for x in got] == [[n] * 8 for n in range(300)]

    def test_large_messages_both_ways(self, proxy, front):
        with channel(front.http2) as one:
            calls = [stub(one).ModelInfer.future(request(x=LARGE + n), timeout=TIMEOUT_S) for n in range(3)]
            for n, call in enumerate(calls):
                assert call.result().raw_output_contents[0] == (LARGE + n).tobytes()

    @pytest.mark.parametrize("in_turn", [True, False], ids=["in turn", "at once"])
    def test_a_stream(self, proxy, front, in_turn):
        arrays = [np.full((1, 4), n, np.float32) for n in range(100)]
        assert np.array_equal(ask_stream(front.http2, arrays, in_turn=in_turn), arrays)

    def test_large_messages_of_a_stream(self, proxy, front):
        arrays = [LARGE + n for n in range(4)]
        assert np.array_equal(ask_stream(front.http2, arrays, in_turn="duplex" in proxy.fails), arrays)

    @pytest.mark.parametrize("coding", [grpc.Compression.Gzip, grpc.Compression.Deflate])
    def test_compressed_messages(self, proxy, front, coding):
        x = np.zeros((50, 50), np.float32)
        with channel(front.http2) as one:
            answer = stub(one).ModelInfer(request(x=x), timeout=TIMEOUT_S, compression=coding)
        assert answer.raw_output_contents[0] == x.tobytes()

    def test_the_deadline_reaches_the_server(self, proxy, front, pair):
        """A client that does not look at its clock is told; so is the server's metric."""
        ended = sum(server.requests("slow", "DEADLINE_EXCEEDED") for server in pair)
        message = request("slow", np.ones((1, 1), np.float32)).SerializeToString()
        with Http2(SimpleNamespace(url=f"http://{front.http2}")) as raw:
            body = b"\0" + len(message).to_bytes(4, "big") + message
            raw.request(1, "/inference.GRPCInferenceService/ModelInfer", body, grpc_timeout="30m", **CALL)
            assert raw.outcome() == "DEADLINE_EXCEEDED"
        assert eventually(lambda: sum(server.requests("slow", "DEADLINE_EXCEEDED") for server in pair) == ended + 1)

    def test_cancelling_reaches_the_server(self, proxy, front, pair):
        ended = sum(server.requests("slow", "CANCELLED") for server in pair)
        with channel(front.http2) as one:
            call = stub(one).ModelInfer.future(request("slow"), timeout=TIMEOUT_S)
            time.sleep(0.05)
            call.cancel()
            assert eventually(lambda: sum(server.requests("slow", "CANCELLED") for server in pair) == ended + 1)

    def test_errors_come_as_they_are(self, proxy, front):
        with channel(front.http2) as one:
            with pytest.raises(grpc.RpcError) as caught:
                stub(one).ModelInfer(request("größer\n100%"), timeout=TIMEOUT_S)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert "größer\n100%" in caught.value.details()
            with pytest.raises(grpc.RpcError) as caught:
                stub(one).ModelInfer(request(x=np.ones((1, 1, 1), np.float32)), timeout=TIMEOUT_S)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "got shape [1, 1, 1]" in caught.value.details()

    def test_health(self, proxy, front):
        with channel(front.http2) as one:
            health = health_pb2_grpc.HealthStub(one)
            serving = health_pb2.HealthCheckResponse.SERVING
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).status == serving
            watch = health.Watch(health_pb2.HealthCheckRequest(service="identity_fp32"), timeout=TIMEOUT_S)
            assert next(iter(watch)).status == serving
            watch.cancel()


@EACH
class TestRest:
    @OVER_HTTP
    def test_json(self, proxy, front, over):
        answer = curl(f"{where(front, over)}/v2/models/identity_fp32/infer", over, body=infer_json([1, 2.5]))
        assert answer.protocol == ("HTTP/1.1" if over == "--http1.1" else "HTTP/2")
        assert answer.status == 200
        assert json.loads(answer.body)["outputs"][0]["data"] == [1, 2.5]

    @OVER_HTTP
    def test_binary_tensors(self, proxy, front, over, tmp_path):
        body, head = infer_binary(tmp_path, LARGE)
        url = f"{where(front, over)}/v2/models/identity_fp32/infer"
        answer = curl(url, over, "--data-binary", f"@{body}", "-H", f"Inference-Header-Content-Length: {head}")
        assert answer.status == 200
        length = int(answer.fields["inference-header-content-length"])
        assert json.loads(answer.body[:length])["outputs"][0]["shape"] == list(LARGE.shape)
        assert answer.body[length:] == LARGE.tobytes()

    @OVER_HTTP
    def test_compressed_both_ways(self, proxy, front, over):
        values = [float(n % 7) for n in range(5000)]
        asked = ("-H", "Content-Encoding: gzip", "-H", "Accept-Encoding: gzip")
        body = gzip.compress(infer_json(values))
        answer = curl(f"{where(front, over)}/v2/models/identity_fp32/infer", over, *asked, body=body)
        assert (answer.status, answer.fields["content-encoding"]) == (200, "gzip")
        assert json.loads(gzip.decompress(answer.body))["outputs"][0]["data"] == values

    @OVER_HTTP
    def test_a_body_of_unknown_length(self, proxy, front, over):
        url = f"{where(front, over)}/v2/models/identity_fp32/infer"
        sent = ("-H", "Transfer-Encoding: chunked") if over == "--http1.1" else ("-H", "Content-Length:")
        answer = curl(url, over, *sent, body=infer_json([3]))
        assert (answer.status, json.loads(answer.body)["outputs"][0]["data"]) == (200, [3])

    @OVER_HTTP
    def test_server_sent_events(self, proxy, front, over):
        url = f"{where(front, over)}/v2/models/identity_fp32/generate_stream"
        answer = curl(url, over, "-N", body=b'{"x": [[4, 5]], "id": "a"}')
        assert answer.fields["content-type"].startswith("text/event-stream")
        [event] = answer.body.split(b"\n\n")[:-1]
        assert json.loads(event.removeprefix(b"data: "))["y"] == [4, 5]

    @OVER_HTTP
    def test_answers_without_a_body(self, proxy, front, over):
        answer = curl(f"{where(front, over)}/v2/health/ready", over, "--head")
        assert (answer.status, answer.body) == (200, b"")

    @OVER_HTTP
    def test_errors(self, proxy, front, over):
        answer = curl(f"{where(front, over)}/v2/models/nothing/infer", over, body=infer_json([1]))
        assert answer.status == 404
        assert "nothing" in json.loads(answer.body)["error"]
        answer = curl(f"{where(front, over)}/v2/models/identity_fp32/infer", over)
        assert (answer.status, answer.fields["allow"]) == (405, "OPTIONS, POST")

    def test_tritonclient(self, proxy, front):
        with triton_http.InferenceServerClient(front.http1) as client:
            tensor = triton_http.InferInput("x", list(LARGE.shape), "FP32").set_data_from_numpy(LARGE)
            for _ in range(3):
                assert np.array_equal(client.infer("identity_fp32", [tensor]).as_numpy("y"), LARGE)


@EACH
class TestTlsUpstream:
    @pytest.fixture
    def front(self, proxy, through_tls):
        return through_tls(proxy)

    def test_grpc(self, proxy, front, tls_pair):
        before = [server.requests("identity_fp32") for server in tls_pair]
        with channel(front.http2) as one:
            for _ in range(20):
                stub(one).ModelInfer(request(), timeout=TIMEOUT_S)
            assert stub(one).ModelInfer(request(x=LARGE), timeout=TIMEOUT_S).raw_output_contents[0] == LARGE.tobytes()
        took = [server.requests("identity_fp32") - count for server, count in zip(tls_pair, before, strict=True)]
        assert sum(took) == 21
        assert min(took) >= 8

    def test_a_stream(self, proxy, front):
        arrays = [LARGE, *(np.full((1, 4), n, np.float32) for n in range(20))]
        got = ask_stream(front.http2, arrays, in_turn="duplex" in proxy.fails)
        assert all(map(np.array_equal, got, arrays))

    @OVER_HTTP
    def test_rest(self, proxy, front, over, tmp_path):
        body, head = infer_binary(tmp_path, LARGE)
        url = f"{where(front, over)}/v2/models/identity_fp32/infer"
        answer = curl(url, over, "--data-binary", f"@{body}", "-H", f"Inference-Header-Content-Length: {head}")
        assert answer.status == 200
        assert answer.body.endswith(LARGE.tobytes())
