"""A process of this package's own, with a channel to it and a word on how it ended."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from salver.server.processes.channel import Channel

_LAST_WORDS_S: Final = 0.5
_SCRATCH: Final = "salver-process-"


class Child:
    """A running process, on the event loop that started it. `Child.spawn` makes it."""

    channel: Channel

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        """It has ended, and all that it had said has been heard."""
        self.code: int | None = None
        """Exit code, or the negative number of the signal that killed it; None while it lives."""
        self._process: subprocess.Popen[bytes]
        self._ran: tuple[bytes, bytes] = (b"", b"")
        self._ran_s = 0.0

    @classmethod
    async def spawn(
        cls, module: str, files: Sequence[int] = (), prepare: Callable[[Channel], None] = lambda _: None
    ) -> Child:
        """Run ``python -m MODULE FD``, where FD is its end of the channel.

        It has a process group of its own: Ctrl-C in the terminal reaches its parent alone. But no session of its own:
        Linux gives each session the same share of the cores, whatever the niceness inside (sched(7), "autogroup"), so
        that a nice process would not be, and others of the parent's session could starve it. And a folder of its own
        for temporary files, which is removed when it has ended, however it did.

        Args:
            files: open files that it inherits under the same numbers.
            prepare: registers what is answered on the channel, before the process can ask.
        """
        ours, theirs = socket.socketpair()
        child = cls()
        with theirs:
            child.channel = await Channel.open(ours, child._hung_up)
            prepare(child.channel)
            child._start(module, (theirs.fileno(), *files))
        return child

    def _start(self, module: str, files: tuple[int, ...]) -> None:
        warnings = [f"-W{option}" for option in sys.warnoptions]
        # -P: a file in the current folder must not pass for a module.
        command = [sys.executable, "-P", *warnings, "-m", module, str(files[0])]
        scratch = tempfile.mkdtemp(prefix=_SCRATCH)
        self._tidy = weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
        environment = {**os.environ, "TMPDIR": scratch}
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=files, close_fds=True, process_group=0, env=environment
        )
        self._watch = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._watch, self._has_ended)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def waited_s(self) -> float:
        """About how long its main thread, in which its event loop is, has been ready to run and got no core, since it
        was started; 0 where the system does not tell. The kernel counts a wait when it ends: of one that goes on, what
        has passed since somebody asked here is known. Linux: proc_pid_stat(5), proc_pid_schedstat(5)."""
        now_s = time.monotonic()
        try:
            ran, waited_ns, turns = Path(f"/proc/{self.pid}/schedstat").read_bytes().split()
            state = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b") ")[2][:1]
        except (OSError, ValueError):
            return 0.0
        if state != b"R" or self._ran != (ran, turns):
            self._ran, self._ran_s = (ran, turns), now_s
        return int(waited_ns) / 1e9 + now_s - self._ran_s

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; nothing happens where it has ended."""
        if self.code is None:
            self._process.send_signal(number)

    def _has_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._watch)
        os.close(self._watch)
        self.code = self._process.wait()
        self._tidy()
        if self.channel.closed:
            self.ended.set()
        else:  # its last words are still to be read, and a process of its own may hold its end open
            asyncio.get_running_loop().call_later(_LAST_WORDS_S, self.channel.close)

    def _hung_up(self) -> None:
        if self.code is not None:
            self.ended.set()


def remove_scratch() -> None:
    """Remove the folder for temporary files of this process, a child, whose parent may be gone; else that does it."""
    scratch = Path(tempfile.gettempdir())
    if scratch.name.startswith(_SCRATCH):
        shutil.rmtree(scratch, ignore_errors=True)


def describe_end(code: int) -> str:
    """How a process ended, in words: ``was killed by signal 11 (SIGSEGV)``."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"was killed by signal {-code}"
    return f"was killed by signal {-code} ({name})"
