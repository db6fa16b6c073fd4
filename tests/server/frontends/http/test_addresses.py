"""Addresses: ports, Unix sockets, and who is on the other end."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from salver.core.errors import InvalidArgument, Unavailable
from salver.server.addresses import bind_unix, parse_address, remove_unix, show_address
from salver.server.frontends.http.server import HttpServer
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import ServeSettings


@pytest.mark.parametrize("address", ["127.0.0.1:8081", "[::1]:8081"])
def test_shown_as_given(address):
    assert show_address(parse_address(address)) == address


@pytest.mark.parametrize("address", ["8081", ":8081", "host:", "host:x", "host:99999", "host:²"])
def test_not_an_address(address):
    with pytest.raises(InvalidArgument, match="host:port"):
        parse_address(address)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "salver.sock"


class TestUnix:
    def test_only_this_user(self, path):
        with bind_unix(str(path)):
            assert path.stat().st_mode & 0o777 == 0o600

    def test_socket_of_a_dead_server_is_removed(self, path):
        bind_unix(str(path)).close()
        assert path.exists()
        bind_unix(str(path)).close()

    def test_socket_of_a_live_server_is_left(self, path):
        with bind_unix(str(path)) as sock:
            sock.listen()
            with pytest.raises(Unavailable, match="another server"):
                bind_unix(str(path))
        assert path.exists()

    def test_file_of_that_name_is_left(self, path):
        path.write_text("precious")
        with pytest.raises(Unavailable, match="something else has that name"):
            bind_unix(str(path))
        assert path.read_text() == "precious"

    def test_link_is_not_followed(self, path, tmp_path):
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(Unavailable, match="something else"):
            bind_unix(str(path))

    @pytest.mark.parametrize("name", ["no/such/folder", "x" * 200])
    def test_path_that_cannot_be_used(self, tmp_path, name):
        with pytest.raises(Unavailable, match="cannot listen on unix:"):
            bind_unix(str(tmp_path / name))

    def test_socket_of_another_is_not_removed(self, path):
        bind_unix(str(path)).close()
        remove_unix(str(path), inode=1)
        assert path.exists()
        remove_unix(str(path), os.lstat(path).st_ino)
        remove_unix(str(path), 1)
        assert not path.exists()


def test_rest_on_a_unix_socket(start, path):
    with start(http=f"unix:{path}") as server:
        assert server.address == str(path)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    assert not path.exists()


def test_second_address_taken_frees_the_first(engine, path):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            where = f"127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(Unavailable, match="cannot listen"):
                await HttpServer(("metrics",)).start(engine, Metrics(), ServeSettings(http=f"unix:{path}", grpc=where))

    asyncio.run(main())
    assert not path.exists()
