"""`salver serve` with workers, as a process; and requests to its rogue model."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from pathlib import Path


class Served:
    """A server of several processes, until `close`.

    Args:
        plugin: folder of the plug-in, see `rogue.install`.
        arguments: of ``salver serve``.
        how: of `subprocess.Popen`.
    """

    def __init__(self, plugin, *arguments, before=(), http="127.0.0.1:0", **how):
        command = [*before, sys.executable, "-W", "error", "-m", "salver", "serve", *map(str, arguments)]
        command += ["--http", http] if http else []
        path = os.pathsep.join(filter(None, (str(plugin), os.environ.get("PYTHONPATH"))))
        env = {**os.environ, "PYTHONPATH": path, **how.pop("env", {})}
        self.popen = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, **how)
        self.lines = []
        self._ready = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.line = self._ready.get(timeout=60)
        except queue.Empty:
            self.popen.kill()
            raise AssertionError("it did not start:\n" + self.log) from None
        self.url = next((word for word in self.line.split() if word.startswith(("http", "unix"))), "").rstrip(",")
        self.host = self.url.removeprefix("http://")

    def _read(self):
        for line in self.popen.stderr:
            self.lines.append(line)
            if " on http://" in line or " on unix:" in line:
                self._ready.put(line)
        self._ready.put("")

    @property
    def log(self):
        return "".join(self.lines)

    def workers(self):
        """Numbers of the processes of its workers."""
        command = ["pgrep", "-P", str(self.popen.pid), "-f", "processes.worker"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        return {int(word) for word in found.stdout.split()}

    def see(self, what, timeout_s=30):
        """Wait until the log says something."""
        self.until(lambda: what in self.log, f"'{what}' in the log", timeout_s)

    def until(self, holds, what, timeout_s=30):
        """Wait until something holds."""
        end_s = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < end_s, f"never: {what}\n{self.log}"
            time.sleep(0.01)

    def get(self, path):
        """The status."""
        with contextlib.closing(HTTPConnection(self.host, timeout=30)) as connection:
            connection.request("GET", path)
            return connection.getresponse().status

    def ask(self, x, model="rogue"):
        """Status and answer of one request on a connection of its own; 0 where the connection ended without one."""
        with contextlib.closing(HTTPConnection(self.host, timeout=60)) as connection:
            try:
                return call(connection, x, model)
            except (ConnectionError, HTTPException):
                return 0, None

    def answering(self, count=40):
        """Numbers of the workers that answer on new connections."""
        found = set()
        for _ in range(count):
            with contextlib.closing(HTTPConnection(self.host, timeout=30)) as connection:
                connection.request("GET", "/v2/health/live")
                assert connection.getresponse().read() is not None
                found.add(holder(self.workers(), connection.sock.getsockname()))
        return found

    def end(self, number=signal.SIGTERM):
        """Send a signal, and wait for the end."""
        self.popen.send_signal(number)
        return self.popen.wait(60)

    def close(self):
        """Kill it if it lives; its workers end by themselves."""
        workers = self.workers()
        self.popen.kill()
        self.popen.wait(60)
        for worker in workers:
            self.until(lambda worker=worker: not alive(worker), f"the end of worker {worker}")
        self._reader.join(10)
        self.popen.stderr.close()


def alive(pid):
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def holder(pids, client):
    """Which of some processes has the other end of a client's connection."""
    port = f":{client[1]:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[2].endswith(port) and not words[1].endswith(port):
            name = f"socket:[{words[9]}]"
            for pid in pids:
                with contextlib.suppress(FileNotFoundError):  # one that has ended meanwhile
                    if any(str(file.readlink()) == name for file in Path(f"/proc/{pid}/fd").iterdir()):
                        return pid
    return None


def call(connection, x, model="rogue"):
    """Status and answer of one request."""
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [x]}]}
    connection.request("POST", f"/v2/models/{model}/infer", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    data = json.loads(answer.read())
    return answer.status, data["outputs"][0]["data"][0] if answer.status == 200 else data


class Clients:
    """Threads that ask all the time, each on a connection that it keeps as long as the server lets it.

    `ends` counts what became of requests: ``ok``, ``wrong``, statuses, ``refused`` where there was nobody who took the
    connection, and ``cut`` where one that had been used ended without an answer. They honor `Connection: close`.

    Args:
        deed: what they ask of the rogue model; by default to add one to numbers that differ.
    """

    def __init__(self, served, count=4, deed=None):
        self._served = served
        self._deed = deed
        self._connections = {}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.ends = {}
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self):
        """No more; what became of all requests."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        return self.ends

    def holders(self):
        """How many connections each worker has."""
        names = [sock.getsockname() for c in self._connections.values() if (sock := c.sock) is not None]
        return Counter(holder(self._served.workers(), name) for name in names)

    def _run(self, number):
        connection, x = None, number * 1_000_000
        while not self._stop.is_set():
            x += 1
            fresh = connection is None
            connection = self._connections[number] = connection or HTTPConnection(self._served.host, timeout=30)
            try:
                status, answer = call(connection, self._deed or x)
                right = (200, 0 if self._deed else x + 1)
                self._count("ok" if (status, answer) == right else "wrong" if status == 200 else status)
                if connection.sock is None:  # told `Connection: close`
                    connection = None
            except (ConnectionError, HTTPException):
                self._count("refused" if fresh else "cut")
                connection.close()
                connection = None
                if self._served.popen.poll() is not None:  # a test that failed did not stop them
                    return
                time.sleep(0.01)
        if connection is not None:
            connection.close()

    def _count(self, end):
        with self._lock:
            self.ends[end] = self.ends.get(end, 0) + 1
