"""A throw-away process in which a version of a model is tried before anything that answers clients loads it."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import socket
import sys
from typing import Final

import msgspec

from salver.core.errors import FailedPrecondition, SalverError, Unavailable
from salver.server._loop import new_event_loop
from salver.server.engine.loading import taste
from salver.server.engine.planned import Failure, Plan
from salver.server.monitoring.logs import configure_logging
from salver.server.processes.channel import Channel
from salver.server.processes.child import Child, describe_end, remove_scratch
from salver.server.processes.orders import Sample, pack, unpack
from salver.server.settings import ServeSettings

MODULE: Final = "salver.server.processes.taster"
_NICENESS: Final = 10  # what answers clients goes first


async def taste_apart(name: str, version: str, plan: Plan, settings: ServeSettings) -> Failure | None:
    """Load a version, replay its golden requests and warm it up, all in a process of its own that ends afterwards.

    Returns:
        Why it must not be served; None where it may.
    """
    try:
        child = await Child.spawn(MODULE)
    except OSError as error:
        return Failure.of(Unavailable(f"no process can be started to try model '{name}': {error}"))
    sample = Sample(name, version, msgspec.to_builtins(settings), pack(plan))
    try:
        async with asyncio.timeout(settings.load_timeout_s):
            await child.channel.ask("taste", sample)
    except TimeoutError:
        limit = f"was not ready within {settings.load_timeout_s:g} s (load_timeout_s)"
        return Failure.of(FailedPrecondition(f"version {version} of model '{name}' {limit}"))
    except SalverError as error:
        if not child.channel.closed:
            return Failure.of(error)
        await child.ended.wait()
        end = describe_end(child.code or 0)
        return Failure.of(
            FailedPrecondition(f"the process that tried version {version} of model '{name}' {end}; it is not served")
        )
    finally:
        child.kill()
        await child.ended.wait()
    return None


async def _try(sample: Sample) -> None:
    plan = unpack(sample.plan)
    settings = msgspec.convert(sample.settings, ServeSettings)
    configure_logging(settings.log_level)
    await asyncio.to_thread(taste, plan.shelf.files[sample.version], sample.name, plan.told, settings)


async def _run(sock: socket.socket) -> None:
    gone = asyncio.Event()
    channel = await Channel.open(sock, gone.set)
    channel.on("taste", Sample, _try)
    await gone.wait()


def main() -> None:
    """Answer on the channel that is inherited, until its other end hangs up."""
    os.nice(_NICENESS)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # what it says of a crash may go to a terminal
    faulthandler.enable()  # a crash inside a runtime says in which thread and call
    new_event_loop().run_until_complete(_run(socket.socket(fileno=int(sys.argv[1]))))
    remove_scratch()
    os._exit(0)  # a run that hangs must not keep the process


if __name__ == "__main__":
    main()
