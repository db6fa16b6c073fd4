"""What a peer may do without bringing anything: bounds on floods of frames that are cheap to send."""

from __future__ import annotations

from typing import Final

from salver.wire.http2.frames import ConnectionFault, ErrorCode

MAX_IDLE_FRAMES: Final = 10_000
"""Frames that bring nothing (PING, SETTINGS, WINDOW_UPDATE, empty DATA, CONTINUATION, ...) between two calls of
`replenish`; ten for each stream opened and each DATA frame, either way, are not counted."""

MAX_RESETS: Final = 2048
"""Streams that the peer opens and resets before they are answered, between two calls of `replenish`."""

_IDLE_PER_USEFUL: Final = 10


class Floods:
    """Counts what may be a flood.

    `useful` counts what brought something: streams opened, DATA either way. `refused` says what was stopped.
    """

    __slots__ = ("_idle", "_resets", "_useful_before", "refused", "useful")

    def __init__(self) -> None:
        self.useful = 0
        self.refused: dict[str, int] = {}
        self._useful_before = 0
        self._idle = 0
        self._resets = 0

    def count_idle(self) -> None:
        """A frame that brings nothing.

        Raises:
            ConnectionFault: there were too many.
        """
        self._idle += 1
        if self._idle > MAX_IDLE_FRAMES:
            self._idle -= min((self.useful - self._useful_before) * _IDLE_PER_USEFUL, MAX_IDLE_FRAMES)
            self._useful_before = self.useful
            if self._idle > MAX_IDLE_FRAMES:
                self.refuse("idle_frames")
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that bring nothing")

    def count_reset(self) -> None:
        """A stream that was reset before it was answered.

        Raises:
            ConnectionFault: there were too many (CVE-2023-44487).
        """
        self._resets += 1
        if self._resets > MAX_RESETS:
            self.refuse("resets")
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many streams were reset")

    def refuse(self, limit: str) -> None:
        """A limit stopped something."""
        self.refused[limit] = self.refused.get(limit, 0) + 1

    def replenish(self) -> None:
        """Forgive what was counted; called about once a second."""
        self._idle = 0
        self._resets = 0
