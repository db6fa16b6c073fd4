"""curl, nghttp and h2load against a server itself, without TLS and with it."""

from __future__ import annotations

import json
import re
import subprocess

import numpy as np
import pytest

from tests.proxies.calls import curl, infer_binary, infer_json, request
from tests.proxies.proxies import find

INFER = "/v2/models/identity_fp32/infer"
RPC = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(params=["plain", "tls"])
def server(request, pair, tls_pair):
    return {"plain": pair, "tls": tls_pair}[request.param][0]


@pytest.fixture
def options(server, authority):
    return ("--http2", "--cacert", authority.path) if server.scheme == "https" else ("--http2-prior-knowledge",)


def run(program: str, *arguments: object) -> str:
    command = [find(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("latin-1")


class TestCurl:
    def test_get_post_and_head(self, server, options):
        url = f"{server.scheme}://{server.address}"
        assert json.loads(curl(f"{url}/v2", *options).body)["name"] == "salver"
        answer = curl(url + INFER, *options, body=infer_json([1, 2]))
        assert (answer.protocol, answer.status) == ("HTTP/2", 200)
        assert json.loads(answer.body)["outputs"][0]["data"] == [1, 2]
        answer = curl(f"{url}/v2/health/ready", *options, "--head")
        assert (answer.protocol, answer.status, answer.body) == ("HTTP/2", 200, b"")

    def test_large_bodies(self, server, options, tmp_path):
        x = np.random.default_rng(2).normal(size=(10, 500_000)).astype(np.float32)  # 20 MB
        body, head = infer_binary(tmp_path, x)
        sent = ("--data-binary", f"@{body}", "-H", f"Inference-Header-Content-Length: {head}")
        answer = curl(f"{server.scheme}://{server.address}{INFER}", *options, *sent)
        assert answer.status == 200
        assert answer.body.endswith(x.tobytes())

    def test_tls_chooses_http1_where_the_client_offers_no_more(self, tls_pair, authority):
        server = tls_pair[0]
        answer = curl(f"https://{server.address}/v2", "--http1.1", "--cacert", authority.path)
        assert (answer.protocol, answer.status) == ("HTTP/1.1", 200)


class TestNghttp:
    def test_many_requests_with_priorities_and_a_small_window(self, server, tmp_path):
        """nghttp opens idle streams with PRIORITY and puts its requests below them."""
        (tmp_path / "body").write_bytes(infer_json([float(n) for n in range(3000)]))
        url = f"{server.scheme}://{server.address}{INFER}"
        said = run("nghttp", "-nv", "-m20", "--window-bits=9", "-d", tmp_path / "body", url)
        assert len(re.findall(r"recv \(stream_id=\d+\) :status: 200", said)) == 20
        assert "send PRIORITY frame" in said
        assert "recv GOAWAY" not in said
        assert "recv RST_STREAM" not in said

    def test_padding_and_header_fields_in_continuation(self, server):
        fields = [word for n in range(12) for word in ("-H", f"x-filler-{n}: {'a' * 2000}{n}")]
        said = run("nghttp", "-v", "-b100", "--continuation", *fields, f"{server.scheme}://{server.address}/v2")
        assert int(re.findall(r"send HEADERS frame <length=(\d+)", said)[0]) > 16_384  # nghttp tells both as one
        assert ":status: 200" in said

    def test_a_body_that_is_too_large(self, server, tmp_path):
        """Refused unread, and told by NO_ERROR that the rest is not wanted (RFC 9113, 8.1)."""
        (tmp_path / "body").write_bytes(bytes(65 << 20))
        said = run("nghttp", "-nv", "-d", tmp_path / "body", f"{server.scheme}://{server.address}{INFER}")
        assert ":status: 413" in said
        assert "(error_code=NO_ERROR(0x00))" in said.partition("recv RST_STREAM")[2]

    def test_upgrade_is_left_aside(self, pair):
        """``Upgrade: h2c`` is gone from RFC 9113: the answer is HTTP/1.1's, which nghttp does not take."""
        done = subprocess.run(
            [find("nghttp"), "-u", f"http://{pair[0].address}/v2"], capture_output=True, timeout=20, check=False
        )
        assert b"upgrade" in (done.stdout + done.stderr).lower()

    def test_a_grpc_call(self, server, tmp_path):
        message = request(x=np.ones((1, 3), np.float32)).SerializeToString()
        (tmp_path / "call").write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
        fields = ("-H", "content-type: application/grpc", "-H", "te: trailers")
        said = run("nghttp", "-nv", *fields, "-d", tmp_path / "call", f"{server.scheme}://{server.address}{RPC}")
        assert said.count("HEADERS frame") >= 3  # of the request, of the answer, and trailers
        assert "grpc-status: 0" in said


class TestH2load:
    @pytest.mark.parametrize("streams", [1, 100])
    def test_rest(self, server, streams, tmp_path):
        (tmp_path / "body").write_bytes(infer_json([1, 2, 3]))
        url = f"{server.scheme}://{server.address}{INFER}"
        said = run("h2load", "-n1500", "-c3", f"-m{streams}", "-d", tmp_path / "body", url)
        assert "1500 succeeded, 0 failed, 0 errored" in said
        assert "1500 2xx" in said

    def test_windows_of_one_byte_more_than_nothing(self, server, tmp_path):
        (tmp_path / "body").write_bytes(infer_json([float(n) for n in range(5000)]))
        url = f"{server.scheme}://{server.address}{INFER}"
        said = run("h2load", "-n100", "-c2", "-m10", "-w8", "-W9", "-d", tmp_path / "body", url)
        assert "100 succeeded, 0 failed, 0 errored" in said
