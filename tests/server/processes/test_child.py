"""A process with a channel: its end is noticed, told in words, and comes after its last words."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import textwrap
from pathlib import Path

import pytest

from salver.server.processes.child import Child, describe_end

SCRIPT = """
    import asyncio, os, signal, socket, sys, tempfile
    from salver.server.processes.channel import Channel

    async def main():
        channel = await Channel.open(socket.socket(fileno=int(sys.argv[1])))
        open(os.path.join(tempfile.mkdtemp(), "large"), "w").close()
        order = await channel.ask("order", gives=str)
        for number in range(100):
            channel.tell("news", number)
        await asyncio.sleep(0)
        if order == "exit":
            os._exit(3)
        if order == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(60)

    asyncio.run(main())
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "obedient.py").write_text(textwrap.dedent(SCRIPT))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "obedient"


def live(module, order):
    """The exit code, and the news that were heard when its end was known."""

    async def run():
        heard = []

        def prepare(channel):
            channel.on("order", type(None), lambda _: order)
            channel.on("news", int, heard.append)

        child = await Child.spawn(module, prepare=prepare)
        if order == "wait":
            while len(heard) < 100:
                await asyncio.sleep(0.01)
            child.kill(signal.SIGTERM)
        await asyncio.wait_for(child.ended.wait(), 60)
        child.kill()  # who has ended is left alone
        return child.code, heard

    return asyncio.run(run())


@pytest.mark.parametrize(("order", "code"), [("exit", 3), ("kill", -9), ("wait", -15)])
def test_the_end_comes_after_the_last_words_and_takes_its_files_along(tmp_path, monkeypatch, module, order, code):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    assert live(module, order) == (code, list(range(100)))
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_module_that_cannot_be_loaded(capfd):
    assert live("no_such_module_anywhere", "exit") == (1, [])
    assert "no_such_module_anywhere" in capfd.readouterr().err


def test_the_current_folder_offers_no_modules(tmp_path, monkeypatch, module):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "asyncio.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path / "here")
    assert live(module, "exit")[0] == 3


def test_ends_in_words():
    assert describe_end(0) == "ended with exit code 0"
    assert describe_end(-signal.SIGSEGV) == "was killed by signal 11 (SIGSEGV)"
    assert describe_end(-(signal.SIGRTMIN + 3)) == f"was killed by signal {signal.SIGRTMIN + 3}"


SPINS = """
    import asyncio, os, socket, sys, time
    from salver.server.processes.channel import Channel

    async def main():
        channel = await Channel.open(socket.socket(fileno=int(sys.argv[1])))
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        other = os.fork()  # on the same core
        end_s = time.monotonic() + 1
        while time.monotonic() < end_s:
            pass
        if not other:
            os._exit(0)
        channel.tell("news", 0)
        await asyncio.sleep(60)

    asyncio.run(main())
"""


def counts_turns():
    found = Path("/proc/self/schedstat")
    return found.exists() and int(found.read_text().split()[2]) > 0


@pytest.mark.skipif(not counts_turns(), reason="a kernel with CONFIG_SCHED_INFO would tell")
def test_time_without_a_core_is_known(tmp_path, monkeypatch):
    (tmp_path / "spins.py").write_text(textwrap.dedent(SPINS))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def run():
        done = asyncio.Event()
        child = await Child.spawn("spins", prepare=lambda channel: channel.on("news", int, lambda _: done.set()))
        await asyncio.wait_for(done.wait(), 60)
        waited_s = child.waited_s
        child.kill()
        await child.ended.wait()
        return waited_s, child.waited_s

    waited_s, gone_s = asyncio.run(run())
    assert waited_s > 0.2
    assert gone_s == 0
