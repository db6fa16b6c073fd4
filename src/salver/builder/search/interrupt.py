"""Ctrl-C that cannot be lost: Python drops an exception that strikes inside a finalizer or a C callback."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """While the block lasts, Ctrl-C raises KeyboardInterrupt as always, and is remembered besides. Outside the main
    thread, or where the program handles SIGINT itself, it does nothing."""

    def __init__(self) -> None:
        self._requested = False
        self._before: Any = None

    def __enter__(self) -> Self:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def check(self) -> None:
        """Raise the interrupt that was remembered.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed since the block began.
        """
        if self._requested:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        raise KeyboardInterrupt
