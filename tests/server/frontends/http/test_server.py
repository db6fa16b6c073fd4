"""Addresses, dates, and listening."""

from __future__ import annotations

import asyncio
import socket
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable
from salver.server.addresses import parse_address
from salver.server.frontends.http.router import Router
from salver.server.frontends.http.server import HttpServer, date_line
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import ServeSettings


@given(st.integers(0, 4_000_000_000))
def test_dates_are_those_of_the_standard_library(at_s):
    assert date_line(at_s) == b"date: " + formatdate(at_s, usegmt=True).encode() + b"\r\n"


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:8080", ("127.0.0.1", 8080)), ("[::1]:0", ("::1", 0)), ("localhost:65535", ("localhost", 65535))],
)
def test_addresses(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "8080", ":8080", "host:", "host:x", "host:65536", "host:-1", "host:²"])
def test_what_is_no_address(text):
    with pytest.raises(InvalidArgument, match="expected host:port"):
        parse_address(text)


def test_an_address_that_is_taken_is_said(engine):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"

        async def start():
            await HttpServer().start(engine, Metrics(), ServeSettings(http=where))

        with pytest.raises(Unavailable, match=f"cannot listen on {where}"):
            asyncio.run(start())


def test_a_socket_may_be_handed_down(engine):
    async def run():
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        server = HttpServer(("metrics",))
        await server.start(engine, Metrics(), ServeSettings(), {"http": [sock]})
        assert server.address == sock.getsockname()
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        data = await reader.read()
        writer.close()
        await server.drain(1)
        return data

    assert asyncio.run(run()).startswith(b"HTTP/1.1 200 OK\r\n")


def answer(exchange):
    exchange.respond(b"")


class TestRouter:
    def make(self):
        router = Router()
        for path in ("/", "/a", "/a/stats", "/a/{m}", "/a/{m}/b/{v}"):
            router.add("GET", path, answer, "open")
        return router

    @pytest.mark.parametrize(
        ("target", "params"),
        [
            (b"/", ()),
            (b"/a", ()),
            (b"/a/", ()),
            (b"/a/stats", ()),
            (b"/a/x", ("x",)),
            (b"/a/x/?q=/1", ("x",)),
            (b"/a/x%2Fy%20z/b/%C3%A9", ("x/y z", "é")),
            ("/a/é".encode(), ("é",)),
            (b"https://host:1/a/x", ("x",)),
        ],
    )
    def test_finds(self, target, params):
        router = self.make()
        for _ in range(2):
            assert router.find(target).params == params

    @pytest.mark.parametrize("target", [b"/b", b"///", b"/a//b/1", b"/a/x/b", b"/a/x/b/1/c", b"/A"])
    def test_finds_nothing(self, target):
        with pytest.raises(NotFound):
            self.make().find(target)

    @pytest.mark.parametrize("target", [b"*", b"a", b"/a/%ff", b"/a/\xff", b"ftp://x/a"])
    def test_refuses(self, target):
        with pytest.raises(InvalidArgument):
            self.make().find(target)

    def test_a_path_is_claimed_once(self):
        router = self.make()
        with pytest.raises(AlreadyExists):
            router.add("GET", "/a/{other}", answer, "open")
        router.add("POST", "/a/{other}", answer, "open")

    def test_memory_of_paths_is_bounded(self):
        router = self.make()
        for i in range(5000):
            assert router.find(b"/a/%d" % i).params == (str(i),)
        assert len(router._seen) <= 1024
