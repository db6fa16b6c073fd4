"""A supervisor and its workers as real processes: started, killed, hung, told to change and to stop."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time

import pytest

from salver.cli._exit_codes import exit_code
from salver.core.errors import FailedPrecondition, Internal, Unavailable
from tests.server.processes import rogue
from tests.server.processes.served import Clients, alive


def test_two_workers_answer_on_one_port_and_are_announced_once(served):
    workers = served.workers()
    assert served.line.startswith("ready on http://127.0.0.1:")
    assert served.answering() == workers
    assert len(workers) == 2
    assert served.get("/v2/health/ready") == 200
    # Ctrl-C in a terminal reaches the supervisor alone, and what reaches workers does nothing.
    assert not {os.getpgid(worker) for worker in workers} & {os.getpgid(served.popen.pid)}
    # Linux shares cores among sessions: a worker in another one could be starved, and niceness would mean nothing.
    assert {os.getsid(worker) for worker in workers} == {os.getsid(served.popen.pid)}
    for worker in workers:
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGTERM)
    assert served.ask(1) == (200, 2)
    assert served.end(signal.SIGINT) == 0
    assert served.log.count("ready on") == 1
    assert "level=error" not in served.log
    assert "Traceback" not in served.log


@pytest.mark.parametrize("workers", [0, 1])
def test_the_service_manager_is_told_when_it_is_ready(serve, rogue_bundle, tmp_path, workers):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        serve(rogue_bundle, "--workers", workers, env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        told = manager.recv(4096).decode()
    assert told.startswith("READY=1\nSTATUS=ready on http://127.0.0.1:")


def test_what_was_open_is_answered_at_the_end(served):
    clients = Clients(served)
    served.until(lambda: clients.ends.get("ok", 0) > 50, "50 answers")
    assert served.end() == 0
    assert set(clients.stop()) <= {"ok", "refused"}


def test_a_second_signal_ends_all_at_once(serve, rogue_bundle):
    served = serve(rogue_bundle, "--workers", 2, "--drain-delay", "60s")
    workers = served.workers()
    served.popen.send_signal(signal.SIGTERM)
    served.until(lambda: served.get("/v2/health/ready") == 503, "not ready")
    assert served.ask(1) == (200, 2)
    assert served.end() == -signal.SIGTERM
    served.until(lambda: not any(alive(worker) for worker in workers), "the end of all workers")


def test_nobody_is_started_while_the_server_stops(serve, rogue_bundle):
    """Neither for new settings nor for a model that crashes a worker: nobody would tell it to leave."""
    served = serve(rogue_bundle, "--workers", 2, "--drain-delay", "3s")
    served.popen.send_signal(signal.SIGTERM)
    served.see("stopping in 3 s")
    served.popen.send_signal(signal.SIGHUP)
    assert served.ask(rogue.SEGFAULT) == (0, None)
    assert served.popen.wait(30) == 1
    assert "the new settings are refused, and the old ones stay: the server is stopping" in served.log
    assert served.log.count("takes requests") == 2


def test_a_killed_worker_costs_its_own_connections_only(served):
    first = served.workers()
    clients = Clients(served)
    served.until(lambda: clients.ends.get("ok", 0) > 50, "50 answers")
    victim = min(first)
    os.kill(victim, signal.SIGKILL)
    served.see("was killed by signal 9 (SIGKILL)")
    served.until(lambda: served.log.count("takes requests") == 3, "a third start")
    assert served.answering() == served.workers()
    assert len(served.workers() & first) == 1
    ends = clients.stop()
    assert set(ends) <= {"ok", "cut", "refused"}
    assert ends.get("cut", 0) + ends.get("refused", 0) <= 4  # of each client, the one connection that the dead one had
    assert served.end() == 0


def test_a_fresh_worker_gets_its_share_of_the_traffic(served):
    """Of clients that keep their connections, which lie with the other since the one before it died."""
    clients = Clients(served, 8, rogue.BURN)
    served.until(lambda: sum(clients.holders().values()) == 8, "eight connections")
    os.kill(min(served.workers()), signal.SIGKILL)
    served.until(lambda: served.log.count("takes requests") == 3, "a third start")
    # Four are asked to connect again and mostly land there; with two or three, too, it has as much to do as the other.
    served.until(lambda: min(clients.holders().values()) > 1 < len(clients.holders()), "work enough for both")
    served.see("are to connect again")
    assert served.get("/v2/health/ready") == 200
    served.until(lambda: served.answering(8) == served.workers(), "connections accepted by both")
    ends = clients.stop()
    assert set(ends) <= {"ok", "cut", "refused"}
    assert ends.get("cut", 0) + ends.get("refused", 0) <= 8
    assert served.end() == 0


def test_others_accept_for_a_worker_that_does_not_come_back(serve, tmp_path):
    flag = tmp_path / "flag"
    bundle = rogue.make_bundle(tmp_path / "rogue.salver", f"while {flag}")
    served = serve(bundle, "--workers", 2)
    survivor, victim = sorted(served.workers())
    flag.touch()
    os.kill(victim, signal.SIGKILL)
    served.see("was killed by signal 11 (SIGSEGV)")
    assert served.answering() == {survivor}
    flag.unlink()
    served.until(lambda: served.log.count("takes requests") == 3, "a third start")
    assert served.answering() == served.workers()
    assert served.end() == 0


def test_how_a_worker_ended_is_told(served):
    assert served.ask(rogue.LEAVE)[0] == 0
    served.see("ended with exit code 7; a fresh one takes its place")
    served.until(lambda: served.ask(1) == (200, 2), "an answer of the model")
    assert served.ask(rogue.SEGFAULT)[0] in (0, 503)  # closed, or by who had it from another
    served.see("was killed by signal 11 (SIGSEGV)")
    assert "in segfault" in served.log
    served.until(lambda: served.ask(1) == (200, 2), "an answer of the model")


def test_a_run_over_the_limit_costs_its_worker(serve, tmp_path):
    bundle = rogue.make_bundle(tmp_path / "rogue.salver", "sleepy")
    served = serve(bundle, "--workers", 1, "--max-run", "1s", "--drain", "500ms")
    (first,) = served.workers()
    assert served.ask(rogue.HANG)[0] == 0
    served.see("has run for")
    served.until(lambda: first not in served.workers(), "another worker")
    assert served.ask(1) == (200, 2)
    assert "in hang" in served.log  # where the thread is, by which one finds the cause
    assert served.end() == 0


def test_a_worker_that_says_nothing_is_killed_and_replaced(served):
    victim = served.ask(rogue.PID)[1]
    os.kill(victim, signal.SIGSTOP)
    served.see("nothing was heard of it")
    served.until(lambda: not alive(victim), "the end of the worker")
    served.until(lambda: served.log.count("takes requests") == 3, "a third start")
    assert served.answering() == served.workers()


def test_a_supervisor_that_was_itself_stopped_blames_nobody(served):
    workers = served.workers()
    served.popen.send_signal(signal.SIGSTOP)
    time.sleep(6.5)  # longer than a worker may be silent
    served.popen.send_signal(signal.SIGCONT)
    time.sleep(1.5)
    assert served.workers() == workers
    assert "hangs" not in served.log


def test_workers_end_by_themselves_when_the_supervisor_is_killed(serve, rogue_bundle, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    served = serve(rogue_bundle, "--workers", 2, env={"TMPDIR": str(scratch)})
    assert len(list(scratch.glob("salver-process-*"))) == 2
    workers = served.workers()
    clients = Clients(served)
    served.until(lambda: clients.ends.get("ok", 0) > 50, "50 answers")
    served.popen.kill()
    served.until(lambda: not any(alive(worker) for worker in workers), "the end of all workers")
    assert not list(scratch.glob("salver-process-*"))
    assert set(clients.stop()) <= {"ok", "refused", "cut"}
    port = int(served.host.rpartition(":")[2])
    again = serve(rogue_bundle, "--workers", 2, http=f"127.0.0.1:{port}")
    assert again.ask(1) == (200, 2)


def test_a_load_that_hangs_does_not_keep_a_process_that_ends():
    program = """
import asyncio, time
from salver.server import app

loop = asyncio.new_event_loop()
loop.run_in_executor(None, time.sleep, 600)
app.CLOSE_S = 0.1
app.end_loop(loop)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "a model is still being loaded" in ended.stderr


@pytest.mark.parametrize("workers", [0, 2])
def test_a_terminal_that_is_closed_ends_the_server(plugin, rogue_bundle, workers):
    ours, theirs = pty.openpty()
    command = ["setsid", "--ctty", sys.executable, "-m", "salver", "serve", str(rogue_bundle)]
    command += ["--http", "127.0.0.1:0", "--workers", str(workers)]
    path = os.pathsep.join(filter(None, (str(plugin), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        said = b""
        while b"ready on" not in said:
            said += os.read(ours, 1000)
        os.close(ours)
        assert process.wait(60) == 0


def test_one_process_says_that_it_cannot_change_its_settings(serve, rogue_bundle):
    served = serve(rogue_bundle)
    served.popen.send_signal(signal.SIGHUP)
    served.see("--workers 1 can")
    assert served.ask(1) == (200, 2)
    assert served.end() == 0


class TestReload:
    """SIGHUP."""

    def write(self, path, bundle, more=""):
        path.write_text(f'workers = 2\nhttp = "127.0.0.1:0"\n{more}\n[models.rogue]\nsource = "{bundle}"\n')

    @pytest.fixture
    def config(self, tmp_path, rogue_bundle):
        path = tmp_path / "salver.toml"
        self.write(path, rogue_bundle)
        return path

    @pytest.fixture
    def served(self, serve, config):
        return serve("--config", config, http="")

    def test_workers_with_the_new_settings_take_over_and_no_request_fails(self, served, config, rogue_bundle):
        first = served.workers()
        clients = Clients(served)
        served.until(lambda: clients.ends.get("ok", 0) > 50, "50 answers")
        self.write(config, rogue_bundle, "max-string = 1000\nlog-level = 'info'")
        served.popen.send_signal(signal.SIGHUP)
        served.until(lambda: served.log.count("has left") == 2, "the end of the first workers")
        assert set(clients.stop()) == {"ok"}
        assert not served.workers() & first
        assert served.answering() == served.workers()
        assert served.end() == 0

    def test_bad_settings_are_refused_and_the_old_ones_stay(self, served, config, rogue_bundle):
        first = served.workers()
        refused = {
            "max-batsh = 1": "Did you mean 'max_batch'",
            "tls-cert = 'missing.pem'": "tls_key",
            "grpc = '127.0.0.1:0'": "grpc cannot change while serving",
            "api-keys = 'missing.toml'": "missing.toml",
        }
        for count, (more, why) in enumerate(refused.items(), 1):
            self.write(config, rogue_bundle, more)
            served.popen.send_signal(signal.SIGHUP)
            served.until(lambda count=count: served.log.count("the new settings are refused") == count, "a refusal")
            served.see(why)
            assert served.answering() == first == served.workers()
        assert served.end() == 0


class TestStart:
    """What goes wrong before anything is served."""

    def test_a_model_that_cannot_be_loaded(self, serve, tmp_path):
        served = serve(rogue.make_bundle(tmp_path / "rogue.salver", "corrupt"), "--workers", 2)
        assert served.popen.wait(60) == exit_code(FailedPrecondition(""))
        assert "the rogue model is corrupt" in served.log

    def test_workers_that_end_before_they_have_begun(self, serve, rogue_bundle, tmp_path):
        (tmp_path / "sitecustomize.py").write_text(
            "import os, sys\nif 'salver.server.processes.worker' in sys.orig_argv: os._exit(3)\n"
        )
        served = serve(rogue_bundle, "--workers", 1, env={"PYTHONPATH": str(tmp_path)})
        assert served.popen.wait(60) == exit_code(Internal(""))
        assert "worker 0 ended with exit code 3 before it was ready" in served.log

    @pytest.mark.parametrize("reuse", [False, True])
    def test_a_taken_address(self, serve, rogue_bundle, reuse):
        with socket.socket() as taken:
            if reuse:
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            host = f"127.0.0.1:{taken.getsockname()[1]}"
            served = serve(rogue_bundle, "--workers", 2, http=host)
            assert served.popen.wait(60) == exit_code(Unavailable(""))
            assert f"cannot listen on {host}" in served.log


class TestSockets:
    """Where workers listen."""

    def test_a_unix_socket(self, serve, rogue_bundle, tmp_path):
        path = tmp_path / "s.sock"
        served = serve(rogue_bundle, "--workers", 2, http=f"unix:{path}")
        assert served.line == f"ready on unix:{path}\n"
        for _ in range(8):
            assert get_unix(path) == 200
        victim = min(served.workers())
        os.kill(victim, signal.SIGKILL)
        served.see("was killed by signal 9")
        for _ in range(8):
            assert get_unix(path) == 200
        assert served.end() == 0, served.log
        assert not path.exists()

    def test_both_addresses_are_told_as_by_one_process(self, serve, rogue_bundle):
        served = serve(rogue_bundle, "--workers", 2, "--grpc", "127.0.0.1:0")
        assert served.line.split(", grpc ")[0].startswith("ready on http://127.0.0.1:")
        assert served.line.split(", grpc ")[1].startswith("127.0.0.1:")

    @pytest.mark.parametrize("workers", [0, 2])
    def test_sockets_that_systemd_bound(self, serve, rogue_bundle, workers):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            fd = sock.fileno()
            activate = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True); "
            activate += "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='http'); "
            activate += "os.execv(sys.argv[2], sys.argv[2:])"
            before = (sys.executable, "-c", activate, fd)
            served = serve(rogue_bundle, "--workers", workers, before=tuple(map(str, before)), http="", pass_fds=(fd,))
            assert served.host == f"127.0.0.1:{sock.getsockname()[1]}"
            assert served.ask(1) == (200, 2)
            assert served.end() == 0
            socket.create_connection(sock.getsockname()).close()  # it waits for the next server


def get_unix(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return int(client.recv(100).split()[1])
