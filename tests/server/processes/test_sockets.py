"""Listening sockets for several processes."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys

import pytest

from salver.core.errors import InvalidArgument, Unavailable
from salver.server.processes.base import EVERYONE
from salver.server.processes.sockets import Inherited, Sockets
from salver.server.settings import ServeSettings


@pytest.fixture
def bind():
    made = []

    def bind(workers=2, **settings):
        sockets = Sockets(ServeSettings(**settings), workers)
        made.append(sockets)
        return sockets, sockets.name(ServeSettings(**settings))

    yield bind
    for sockets in made:
        sockets.close()


def connects(address):
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def listen(sockets, slot):
    """As a worker does."""
    inherited = Inherited(sockets.listen)
    copies = [sock for role in inherited.of(slot).values() for sock in role]
    for sock in copies:
        sock.listen()
    return copies


def test_each_worker_has_a_socket_on_the_one_port(bind):
    sockets, settings = bind(3, http="127.0.0.1:0", grpc="127.0.0.1:0")
    assert [(each.role, each.slot) for each in sockets.listen] == [(r, s) for r in ("http", "grpc") for s in range(3)]
    assert not settings.http.endswith(":0")
    ports = {socket.socket(fileno=os.dup(each.fd)) for each in sockets.listen if each.role == "http"}
    assert {sock.getsockname()[1] for sock in ports} == {int(settings.http.rpartition(":")[2])}
    for sock in ports:
        sock.close()


def test_a_name_of_several_addresses_has_sockets_on_each(bind):
    sockets, settings = bind(2, http="localhost:0")
    families = {socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)[i][0] for i in range(1)}
    assert len(sockets.listen) >= 2 * len(families)
    assert settings.http.rpartition(":")[2] != "0"


def test_nobody_waits_where_nobody_listens_yet(bind):
    sockets, settings = bind(2, http="127.0.0.1:0")
    assert not connects(settings.http)
    copies = listen(sockets, 0)
    assert connects(settings.http)
    for sock in copies:
        sock.close()
    assert connects(settings.http)  # a worker that ends closes nothing
    sockets.close()
    assert not connects(settings.http)


def test_another_server_of_this_user_is_not_joined(bind):
    sockets, settings = bind(2, http="127.0.0.1:0")
    copies = listen(sockets, 1)
    with pytest.raises(Unavailable, match=f"cannot listen on {settings.http}: .*in use"):
        bind(2, http=settings.http)
    for sock in copies:
        sock.close()


def test_a_unix_socket_is_everyone_s_and_removed_at_the_end(bind, tmp_path):
    path = tmp_path / "s.sock"
    sockets, settings = bind(4, http=f"unix:{path}")
    assert [each.slot for each in sockets.listen] == [EVERYONE]
    assert settings.http == f"unix:{path}"
    sockets.close()
    assert not path.exists()


def test_what_is_bound_before_an_address_that_fails_is_let_go(bind, tmp_path):
    with pytest.raises(InvalidArgument):
        bind(2, http=f"unix:{tmp_path / 's.sock'}", grpc="nonsense")
    assert not (tmp_path / "s.sock").exists()


class TestSystemd:
    """sd_listen_fds(3)."""

    def take(self, count, names="", pid=None):
        """The roles of sockets that are handed over as numbers 3 and following, or the error."""
        script = (
            "import os, sys\n"
            "from salver.core.errors import InvalidArgument\n"
            "from salver.server.processes.sockets import take_activated\n"
            f"os.environ.update(LISTEN_PID=str({pid or 'os.getpid()'}), LISTEN_FDS='{count}')\n"
            f"os.environ['LISTEN_FDNAMES'] = '{names}'\n"
            "try:\n"
            "    found = take_activated()\n"
            "    print({role: [s.fileno() for s in found[role]] for role in found}, 'LISTEN_FDS' in os.environ)\n"
            "except InvalidArgument as error:\n"
            "    print(error)\n"
        )
        made = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        held = [fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, 50) for sock in made]
        shift = f"import os; [os.dup2(fd, 3 + i) for i, fd in enumerate({held})]\n"
        try:
            done = subprocess.run(
                [sys.executable, "-c", shift + script], pass_fds=held, capture_output=True, text=True, check=True
            )
        finally:
            for fd in held:
                os.close(fd)
            for sock in made:
                sock.close()
        return done.stdout.strip()

    def test_by_name(self):
        assert self.take(3, "grpc:http:http") == "{'http': [4, 5], 'grpc': [3]} False"

    def test_by_place_where_the_names_say_nothing(self):
        assert self.take(2, "salver.socket:salver.socket") == "{'http': [3], 'grpc': [4]} False"

    def test_those_of_another_process_are_left_alone(self):
        assert self.take(1, "http", pid="1") == "{} False"

    def test_more_than_there_are_addresses(self):
        assert "name each http or grpc" in self.take(3, "a:b:c")
