"""What a process does for others of its server: it answers the requests that they forward."""

from __future__ import annotations

import asyncio
from functools import partial
from time import monotonic
from typing import Any

from salver.core.errors import NotFound, SalverError
from salver.server.engine.base import InferRequest, Timing, merge_key
from salver.server.engine.engine import RealTimeEngine
from salver.server.engine.servable import Servable
from salver.server.processes.frames import (
    Cancel,
    Describe,
    Described,
    Failed,
    Frames,
    Infer,
    Outputs,
    lay_out,
    pick_up,
)


class Host:
    """Listens for other processes. Lives on the event loop.

    Args:
        engine: whose models they may use.
    """

    def __init__(self, engine: RealTimeEngine) -> None:
        self._engine = engine
        self._guests: set[_Guest] = set()
        self._server: asyncio.Server | None = None
        self._closed = False

    async def start(self, path: str) -> None:
        """Listen on a Unix socket in a folder that only this user may enter."""
        self._server = await asyncio.get_running_loop().create_unix_server(self._welcome, path)

    def close(self) -> None:
        """Listen no more, and hang up."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        for guest in list(self._guests):
            guest.frames.close()

    def _welcome(self) -> Frames:
        guest = _Guest(self._engine, self._guests)
        self._guests.add(guest)
        if self._closed:  # it was accepted just before
            asyncio.get_running_loop().call_soon(guest.frames.close)
        return guest.frames


class _Guest:
    """A process that forwards requests."""

    def __init__(self, engine: RealTimeEngine, guests: set[_Guest]) -> None:
        self._engine = engine
        self._guests = guests
        self._open: dict[int, tuple[Servable, InferRequest]] = {}
        self.frames = Frames(self._received, self._gone)

    def _received(self, head: Any, body: memoryview) -> None:
        if isinstance(head, Infer):
            self._infer(head, body)
        elif isinstance(head, Cancel):
            asked = self._open.pop(head.number, None)
            if asked is not None:
                self._engine.cancel(*asked)
        elif isinstance(head, Describe):
            self._describe(head)

    def _infer(self, asked: Infer, body: memoryview) -> None:
        try:
            model = self._engine.find(asked.name, asked.version)
            inputs = pick_up(asked.tensors, body)
            key = merge_key(inputs, asked.outputs, model.signature) if model.ragged or asked.outputs else None
            request = InferRequest(
                inputs,
                asked.rows,
                partial(self._done, asked.number),
                outputs=asked.outputs,
                key=key,
                deadline_s=None if asked.left_s is None else monotonic() + asked.left_s,
                priority=asked.priority,
                sequence=asked.sequence,
                client=asked.client,
            )
            self._open[asked.number] = model, request
            self._engine.submit(model, request)
        except SalverError as error:
            self._open.pop(asked.number, None)
            self._fail(asked.number, error)

    def _done(self, number: int, result: Any, timing: Timing | None) -> None:
        self._open.pop(number, None)
        if isinstance(result, SalverError):
            self._fail(number, result)
        else:
            tensors, parts = lay_out(result)
            self.frames.send(Outputs(number, timing, tensors), parts)

    def _fail(self, number: int, error: SalverError) -> None:
        self.frames.send(Failed(number, error.code, error.message, error.retry_after_s, error.reason))

    def _describe(self, asked: Describe) -> None:
        found = [m for m in self._engine.models() if (m.name, m.version) == (asked.name, asked.version)]
        model = found[0] if found else None
        if not isinstance(model, Servable):
            self._fail(asked.number, NotFound(f"model '{asked.name}' version {asked.version} is not loaded yet"))
            return
        self.frames.send(
            Described(
                asked.number,
                model.state,
                model.reason,
                model.signature,
                model.ragged,
                model.stateful,
                model.config,
                model.tested,
                model.platform,
                model.metadata,
            )
        )

    def _gone(self) -> None:
        self._guests.discard(self)
        for model, request in self._open.values():
            self._engine.cancel(model, request)
        self._open.clear()
