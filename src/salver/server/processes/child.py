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
import weakref
from collections.abc import Callable, Sequence
from typing import Final

from salver.server.processes.channel import Channel

_LAST_WORDS_S: Final = 0.5


class Child:
    """A running process, on the event loop that started it. `Child.spawn` makes it."""

    channel: Channel

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        """It has ended, and all that it had said has been heard."""
        self.code: int | None = None
        """Exit code, or the negative number of the signal that killed it; None while it lives."""
        self._process: subprocess.Popen[bytes]

    @classmethod
    async def spawn(
        cls, module: str, files: Sequence[int] = (), prepare: Callable[[Channel], None] = lambda _: None
    ) -> Child:
        """Run ``python -m MODULE FD``, where FD is its end of the channel.

        It has a session of its own: Ctrl-C in the terminal reaches its parent alone. And a folder of its own for
        temporary files, which is removed when it has ended, however it did.

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
        scratch = tempfile.mkdtemp(prefix="salver-process-")
        self._tidy = weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
        environment = {**os.environ, "TMPDIR": scratch}
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=files, close_fds=True, start_new_session=True, env=environment
        )
        self._watch = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._watch, self._has_ended)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

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


def describe_end(code: int) -> str:
    """How a process ended, in words: ``was killed by signal 11 (SIGSEGV)``."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"was killed by signal {-code}"
    return f"was killed by signal {-code} ({name})"
