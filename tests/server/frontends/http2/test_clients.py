"""Clients that people use: grpcio, sync and async; curl, nghttp and h2load where they are installed."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
import time

import grpc
import pytest

from salver.core import errors

ECHO, CHAT = "/test.Probe/Echo", "/test.Probe/Chat"


def tool(name, package):
    """A program, or a reason to skip."""
    return pytest.param(
        name, marks=pytest.mark.skipif(shutil.which(name) is None, reason=f"'{name}' is missing: install {package}")
    )


@pytest.fixture
def server(probe):
    with probe() as server:
        yield server


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield channel


class TestUnary:
    @pytest.mark.parametrize("size", [0, 1, 100, 16_384, 70_000, 5_000_000])
    def test_echo(self, server, size):
        options = [("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(server.grpc_address, options) as channel:
            message = bytes(range(256)) * (size // 256) + bytes(size % 256)
            assert channel.unary_unary(ECHO)(message, timeout=10) == message

    def test_many_at_once(self, channel):
        calls = [channel.unary_unary(ECHO).future(b"%d" % n * 50, timeout=10) for n in range(500)]
        assert [call.result() for call in calls] == [b"%d" % n * 50 for n in range(500)]

    def test_large_answers_at_once(self, channel):
        calls = [channel.unary_unary("/test.Probe/Make").future(b"300000", timeout=10) for _ in range(20)]
        assert {len(call.result()) for call in calls} == {300_000}

    def test_metadata(self, channel):
        metadata = (("x-test", "a"), ("x-test", "b"), ("x-test-bin", b"\0\xff"))
        answer = channel.unary_unary("/test.Probe/Metadata")(b"", metadata=metadata, timeout=10)
        assert answer == b"AP8|a,b"

    @pytest.mark.parametrize("coding", [grpc.Compression.Gzip, grpc.Compression.Deflate])
    def test_compression(self, server, coding):
        with grpc.insecure_channel(server.grpc_address, compression=coding) as channel:
            message = b"compressible " * 10_000
            assert channel.unary_unary(ECHO)(message, timeout=10) == message
            assert channel.unary_unary(ECHO)(b"x", timeout=10) == b"x"

    @pytest.mark.parametrize(
        "name",
        [
            "InvalidArgument",
            "NotFound",
            "AlreadyExists",
            "FailedPrecondition",
            "ResourceExhausted",
            "DeadlineExceeded",
            "Unavailable",
            "Unauthenticated",
            "PermissionDenied",
            "Unimplemented",
            "Cancelled",
            "Internal",
        ],
    )
    def test_every_code(self, channel, name):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Probe/Fail")(name.encode(), timeout=10)
        assert caught.value.code().name == getattr(errors, name).code.value
        assert caught.value.details() == f"näme: {name}\n100%"
        assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "250"

    def test_defect(self, channel, caplog):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Probe/Fail")(b"no such error", timeout=10)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "log has the details" in caught.value.details()
        assert "AttributeError" in caplog.text

    @pytest.mark.parametrize("path", ["/test.Probe/Nothing", "/nowhere"])
    def test_unknown_method(self, channel, path):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(path)(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert path in caught.value.details()

    def test_message_over_the_limit(self, probe):
        with probe(max_body_bytes=1000) as server, grpc.insecure_channel(server.grpc_address) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(ECHO)(bytes(1001), timeout=10)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "max_body_bytes" in caught.value.details()
            assert channel.unary_unary(ECHO)(bytes(900), timeout=10) == bytes(900)

    def test_deadline(self, server, channel, until):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Probe/Hang")(b"", timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: server.probe.cancelled)

    def test_deadline_reaches_the_handler(self, server, channel):
        before_s = time.monotonic()
        channel.unary_unary(ECHO)(b"", timeout=30)
        assert before_s + 25 < server.probe.seen[-1].deadline_s < time.monotonic() + 30
        channel.unary_unary(ECHO)(b"")
        assert server.probe.seen[-1].deadline_s is None

    def test_cancellation(self, server, channel, until):
        call = channel.unary_unary("/test.Probe/Hang").future(b"", timeout=10)
        until(lambda: server.probe.held)
        call.cancel()
        until(lambda: server.probe.cancelled)
        server.call(server.probe.held[0].respond, b"too late")
        assert channel.unary_unary(ECHO)(b"alive", timeout=10) == b"alive"

    def test_keepalive_pings(self, server):
        options = [
            ("grpc.keepalive_time_ms", 100),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]
        with grpc.insecure_channel(server.grpc_address, options) as channel:
            call = channel.unary_unary("/test.Probe/Hang").future(b"", timeout=10)
            time.sleep(0.8)
            assert not call.done()
            server.call(server.probe.held[0].respond, b"alive")
            assert call.result() == b"alive"


class TestStreams:
    def test_chat(self, channel):
        sent = [b"%d" % n for n in range(1000)]
        assert list(channel.stream_stream(CHAT)(iter(sent), timeout=20)) == [m * 2 for m in sent]

    def test_answers_come_while_the_client_still_sends(self, channel):
        go_on = threading.Event()

        def send():
            yield b"a"
            assert go_on.wait(10)
            yield b"b"

        answers = channel.stream_stream(CHAT)(send(), timeout=20)
        assert next(answers) == b"aa"
        go_on.set()
        assert list(answers) == [b"bb"]

    def test_large_messages(self, channel):
        sent = [bytes([n]) * 1_000_000 for n in range(20)]
        assert list(channel.stream_stream(CHAT)(iter(sent), timeout=30)) == [m * 2 for m in sent]

    def test_nothing_sent(self, channel):
        assert list(channel.stream_stream(CHAT)(iter(()), timeout=10)) == []

    def test_error_after_an_answer(self, channel):
        answers = channel.stream_stream("/test.Probe/Refuse")(iter([b"a", b"b"]), timeout=10)
        assert next(answers) == b"a"
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    def test_cancellation(self, server, channel, until):
        gone = threading.Event()

        def send():
            yield b"a"
            gone.wait(10)

        answers = channel.stream_stream("/test.Probe/Deaf")(send(), timeout=10)
        until(lambda: server.probe.held)
        answers.cancel()
        until(lambda: server.probe.cancelled)
        gone.set()

    def test_client_that_reads_nothing_is_cut(self, server, channel, until):
        answers = channel.stream_stream("/test.Probe/Pour")(iter([b"a"]), timeout=20)
        until(lambda: server.probe.cancelled)
        assert server.metrics.limits["queued_bytes"] >= 1
        with pytest.raises(grpc.RpcError):
            list(answers)


def test_asyncio_client(server):
    async def main():
        async with grpc.aio.insecure_channel(server.grpc_address) as channel:
            echo = channel.unary_unary(ECHO)
            assert await asyncio.gather(*(echo(b"%d" % n, timeout=10) for n in range(100))) == [
                b"%d" % n for n in range(100)
            ]
            call = channel.stream_stream(CHAT)(timeout=10)
            for n in range(10):
                await call.write(b"%d" % n)
                assert await call.read() == b"%d" % n * 2
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/test.Probe/Hang")(b"", timeout=0.1)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    asyncio.run(main())


def test_unix_socket(probe, tmp_path):
    path = tmp_path / "grpc.sock"
    with probe(grpc=f"unix:{path}") as server:
        assert server.grpc_address == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        with grpc.insecure_channel(server.grpc_address) as channel:
            assert channel.unary_unary(ECHO)(b"hi", timeout=10) == b"hi"
        uid = server.probe.seen[-1].peer.uid
        assert uid == path.stat().st_uid
    assert not path.exists()


@pytest.mark.parametrize("program", [tool("curl", "curl")])
class TestCurl:
    def run(self, program, server, *args):
        host, port = server.address
        run = [program, "-sS", "--http2-prior-knowledge", "--max-time", "20", *args]
        return subprocess.run(
            [part.replace("HOST", f"http://{host}:{port}") for part in run], check=False, capture_output=True
        )

    def test_rest(self, program, server):
        done = self.run(program, server, "-w", "%{http_version} %{http_code}", "--data", "hello", "HOST/echo")
        assert done.stdout == b"hello2 200"
        done = self.run(program, server, "-w", " %{http_code}", "HOST/v2/models/nothing")
        assert done.stdout.endswith(b" 404")

    def test_large_bodies(self, program, server, tmp_path):
        (tmp_path / "body").write_bytes(bytes(range(256)) * 20_000)
        done = self.run(program, server, "--data-binary", f"@{tmp_path / 'body'}", "HOST/echo")
        assert done.stdout == (tmp_path / "body").read_bytes()

    def test_stream(self, program, server):
        done = self.run(program, server, "-N", "HOST/stream/50")
        assert done.stdout == b"".join(b"data: %d\n\n" % n for n in range(50))

    def test_upgrade_is_left_aside(self, program, server):
        """``Upgrade: h2c`` is gone from RFC 9113; the answer comes over HTTP/1.1."""
        host, port = server.address
        run = [program, "-sS", "--http2", "-w", " %{http_version}", f"http://{host}:{port}/make/3"]
        assert subprocess.run(run, check=False, capture_output=True).stdout == b"xxx 1.1"


@pytest.mark.parametrize("program", [tool("nghttp", "nghttp2-client")])
def test_nghttp(program, server):
    host, port = server.address
    url = f"http://{host}:{port}"
    run = [program, "-v", "--window-bits=10", f"{url}/pieces", f"{url}/make/5"]
    done = subprocess.run(run, check=False, capture_output=True, timeout=20)
    assert done.returncode == 0
    assert done.stdout.count(b":status: 200") == 2
    assert b"GOAWAY" not in done.stdout.replace(b"send GOAWAY", b"")


@pytest.mark.parametrize("program", [tool("h2load", "nghttp2-client")])
def test_h2load(program, server):
    host, port = server.address
    run = [program, "-n2000", "-c4", "-m50", "-t1", f"http://{host}:{port}/make/2000"]
    done = subprocess.run(run, check=False, capture_output=True, timeout=30, text=True)
    assert "2000 succeeded, 0 failed, 0 errored" in done.stdout
