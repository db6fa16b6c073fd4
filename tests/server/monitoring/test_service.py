"""Counts of several processes are one, and never go back, whatever becomes of the processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from salver.server.monitoring.service import MetricsService
from salver.server.processes.base import Fault, Reason, Supervision, Tally, Worker
from salver.server.processes.channel import Channel
from salver.server.settings import ServeSettings

PROGRAM = Path(__file__).with_name("worker.py")
AT = (("model", "digits"), ("version", "1"))
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Process(Worker):
    """A real process, started as the supervisor starts one."""

    def __init__(self, slot: int, generation: int, channel: Channel) -> None:
        self.slot, self.generation, self.channel = slot, generation, channel
        self.settings = ServeSettings()
        self.state = "STARTING"
        self.here = asyncio.Event()

    def start(self, sock: socket.socket, fds: tuple[int, ...]) -> None:
        with sock:
            line = [sys.executable, str(PROGRAM), str(sock.fileno())]
            self.process = subprocess.Popen(line, pass_fds=(sock.fileno(), *fds))

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def fault(self) -> Fault:
        return ""

    def replace(self, reason: Reason, why: str) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Supervisor(Supervision):
    """As much of one as the service needs."""

    def __init__(self) -> None:
        self.settings = ServeSettings()
        self.tally = Tally()
        self.processes: list[Process] = []
        self.service = MetricsService(self)

    def workers(self) -> Mapping[int, Worker]:
        return {process.slot: process for process in self.processes}

    def enlist(self, slot: int, folder: str) -> None:
        raise NotImplementedError

    def delay_s(self, slot: int) -> float:
        raise NotImplementedError

    async def start(self, slot: int, generation: int = 0) -> Process:
        fds = tuple(self.service.inherits(slot, generation))
        ours, theirs = socket.socketpair()
        process = Process(slot, generation, await Channel.open(ours))
        self.service.attach(process)
        process.channel.on("greeting", None, lambda _: self.service.greeting(process))
        process.channel.on("here", None, lambda _: process.here.set())
        process.start(theirs, fds)
        self.processes.append(process)
        self.tally.started += 1
        await asyncio.wait_for(process.here.wait(), 20)
        self.service.ready(process)
        return process

    def kill(self, process: Process) -> None:
        process.kill()
        self.processes.remove(process)
        process.channel.close()
        self.service.gone(process)
        self.tally.replaced["signal"] = self.tally.replaced.get("signal", 0) + 1

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.channel.close()


async def show(process: Process) -> tuple[Samples, dict[str, Any]]:
    text, statistics = await process.channel.ask("show", None, tuple[str, dict[str, Any]])
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}, statistics


def counters(samples: Samples) -> Samples:
    return {key: value for key, value in samples.items() if key[0].endswith(("_total", "_bucket", "_count", "_sum"))}


def test_counts_of_killed_processes_stay() -> None:
    async def scenario() -> None:
        supervisor = Supervisor()
        await supervisor.service.start()
        try:
            one, two = await asyncio.gather(supervisor.start(0), supervisor.start(1))
            await one.channel.ask("count", 10, None)
            await two.channel.ask("count", 20, None)
            first, statistics = await show(two)
            assert first["salver_request_total", (("code", "OK"), *AT)] == 30
            assert first["salver_request_total", (("code", "INVALID_ARGUMENT"), *AT)] == 2
            assert (
                first["salver_refused_total", (("code", "RESOURCE_EXHAUSTED"), AT[0], ("reason", "queue_full"), AT[1])]
                == 2
            )
            assert first["salver_batch_rows_sum", AT] == 60
            assert first["salver_connections", ()] == 2
            assert first["salver_model_state", (AT[0], ("state", "LOADING"), AT[1])] == 2
            assert statistics["inference_count"] == 60
            assert statistics["salver"]["settings"]["processes"] == 2

            supervisor.kill(one)
            second, _ = await show(two)
            assert {key: second[key] for key in counters(first)}.items() >= {
                key: value
                for key, value in counters(first).items()
                if not key[0].startswith(("process", "salver_workers"))
            }.items()
            assert second["salver_connections", ()] == 1
            assert second["salver_workers_replaced_total", (("reason", "signal"),)] == 1

            fresh = await supervisor.start(0, 1)
            await fresh.channel.ask("count", 5, None)
            for process in (two, fresh):
                third, statistics = await show(process)
                assert third["salver_request_total", (("code", "OK"), *AT)] == 35
                assert third["salver_workers_started_total", ()] == 3
                assert third["process_cpu_seconds_total", ()] >= second["process_cpu_seconds_total", ()] - 0.05
                assert statistics["inference_count"] == 70
                assert statistics["inference_stats"]["success"]["count"] == 35
        finally:
            supervisor.end()
            await supervisor.service.stop()

    asyncio.run(scenario())


def test_a_process_is_asked_nothing_before_it_has_asked() -> None:
    async def scenario() -> None:
        supervisor = Supervisor()
        supervisor.service.inherits(0, 0)
        ours, theirs = socket.socketpair()
        with theirs:
            process = Process(0, 0, await Channel.open(ours))
            supervisor.service.attach(process)
            assert (await supervisor.service._report()).pids == [os.getpid()]
            theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                theirs.recv(1)
            process.channel.close()
            supervisor.service.gone(process)
            await asyncio.sleep(0)

    asyncio.run(scenario())


@pytest.mark.parametrize("moment", ["starting", "hanging"])
def test_a_process_that_does_not_answer_costs_gauges_and_no_counts(moment: str) -> None:
    async def scenario() -> None:
        supervisor = Supervisor()
        try:
            one, two = await asyncio.gather(supervisor.start(0), supervisor.start(1))
            await one.channel.ask("count", 7, None)
            if moment == "hanging":
                one.channel.tell("hang")
            else:
                supervisor.service.inherits(2, 0)
            samples, _ = await show(two)
            assert samples["salver_request_total", (("code", "OK"), *AT)] == 7
            assert samples["salver_connections", ()] == (0 if moment == "hanging" else 1)
        finally:
            supervisor.end()

    asyncio.run(scenario())
