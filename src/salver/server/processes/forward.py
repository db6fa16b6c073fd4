"""Models that another process of this server runs: their place in the engine, and the connection to that process."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import Any, Final

from salver.core.errors import ResourceExhausted, SalverError, Unavailable, error_of
from salver.core.tensors import Signature
from salver.server.engine.base import InferRequest, ModelState, Timing
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
from salver.server.processes.orders import Owner
from salver.server.settings import ServeSettings

_LOG = logging.getLogger(__name__)
_AGAIN_S: Final = 0.2  # until a process that is not ready yet is asked again
_RETRY_AFTER_S: Final = 1.0


class ForwardedModel(Servable):
    """One version of a model that another process runs. Requests go there, at most ``max_queue`` of them and
    ``max_queue_bytes`` of input at a time; while that process is away, they are refused at once.

    Args:
        name, version: under which it is served.
        peer: the process.
        engine: that shows it.
        settings: of the server.
    """

    platform = ""

    def __init__(self, name: str, version: str, peer: Peer, engine: RealTimeEngine, settings: ServeSettings) -> None:
        self.name = name
        self.version = version
        self.signature = Signature(inputs=(), outputs=())
        self.state: ModelState = "UNAVAILABLE"
        self.reason = peer.owner.reason
        self.tested = False
        self.metadata: dict[str, Any] = {}
        self.peer = peer
        self.settled = asyncio.Event()
        """What it is has become known, or that nobody can tell for now."""
        self._engine = engine
        self._settings = settings
        self._open: dict[InferRequest, int] = {}
        self._open_bytes = 0
        self._draining = False
        if peer.owner.lost:
            self.settled.set()
        peer.attach(self)

    def submit(self, request: InferRequest) -> None:
        now = request.arrived_s = monotonic()
        if request.deadline_s is None and self._timeout_s:
            request.deadline_s = now + self._timeout_s
        try:
            self._check(request)
            self._open[request] = self.peer.ask(self, request, now)
        except SalverError as error:
            self._engine.metrics.record_refused(self, error.code, error.reason or "other")
            raise
        self._open_bytes += request.size_bytes

    def cancel(self, request: InferRequest) -> None:
        number = self._open.get(request)
        if number is not None:
            self._close(request)
            self.peer.give_up(number)

    def drain(self) -> None:
        self._draining = True

    @property
    def idle(self) -> bool:
        return not self._open

    def close(self) -> bool:
        self.peer.detach(self)
        self.state, self.reason = "UNAVAILABLE", "unloaded"
        for request, number in list(self._open.items()):
            self.peer.give_up(number)
            self.answer(request, self.unavailable(), None)
        return True

    def unavailable(self) -> Unavailable:
        error = super().unavailable()
        error.retry_after_s = self.peer.owner.retry_after_s or _RETRY_AFTER_S
        return error

    def gone(self) -> Unavailable:
        """The error for a request that its process had when it went away."""
        return Unavailable(
            f"the process that runs model '{self.name}' went away with this request", retry_after_s=_RETRY_AFTER_S
        )

    def answer(self, request: InferRequest, result: Any, timing: Timing | None) -> None:
        """Its process has answered, or went away."""
        if request not in self._open:
            return
        self._close(request)
        if timing is not None:  # the way there and back is time in which nothing ran
            elapsed_s = monotonic() - request.arrived_s
            timing = Timing(max(elapsed_s - timing.compute_s, 0.0), timing.compute_s, timing.batch_rows)
        try:
            request.done(result, timing)
        except Exception:  # noqa: BLE001  # the request boundary
            _LOG.exception("a frontend failed to answer a request")

    def describe(self, facts: Described) -> None:
        """Take over what its process says of it."""
        self.signature = facts.signature
        self.ragged = facts.ragged
        self.stateful = facts.stateful
        self.config = facts.config
        self.tested = facts.tested
        self.platform = facts.platform
        self.metadata = facts.metadata
        if facts.state != "LOADING":
            self.settled.set()
        self.enter(facts.state, facts.reason)

    def enter(self, state: ModelState, reason: str) -> None:
        """Its state is another."""
        if self.state != "UNLOADING" and (state, reason) != (self.state, self.reason):
            self.state, self.reason = state, reason
            self._engine.refresh()

    @property
    def _timeout_s(self) -> float:
        return self._settings.default_timeout_s

    def _check(self, request: InferRequest) -> None:
        if self._draining:
            raise Unavailable(f"model '{self.name}' version {self.version} takes no requests any more")
        if self.state != "READY":
            raise self.unavailable()
        request.size_bytes = sum(array.nbytes for array in request.arrays().values())
        most, most_bytes = self._settings.max_queue, self._settings.max_queue_bytes
        if len(self._open) >= most or self._open_bytes + request.size_bytes > most_bytes:
            raise ResourceExhausted(
                f"model '{self.name}': {len(self._open)} requests wait for the process that runs it, and more may not",
                retry_after_s=_RETRY_AFTER_S,
            )

    def _close(self, request: InferRequest) -> None:
        del self._open[request]
        self._open_bytes -= request.size_bytes


class Peer:
    """A process that owns models. Lives on the event loop.

    Args:
        owner: what is known of it.
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._models: set[ForwardedModel] = set()
        self._asked: dict[int, tuple[Frames, ForwardedModel, InferRequest | None]] = {}
        self._number = 0
        self._frames: Frames | None = None
        self._open: set[Frames] = set()  # also those to where it was before
        self._at = ""
        """Where the connection leads."""
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False

    def learn(self, owner: Owner) -> None:
        """It is somewhere else now, or away."""
        self.owner = owner
        if not owner.path:
            self._frames = None
            self._tell(owner.reason)
        if owner.lost:
            for model in self._models:
                model.settled.set()
        self._connect()

    def attach(self, model: ForwardedModel) -> None:
        """A model wants to know what it is."""
        self._models.add(model)
        if self._frames is not None:
            self._ask_what(model)
        else:
            self._connect()

    def detach(self, model: ForwardedModel) -> None:
        """It does not any more."""
        self._models.discard(model)

    def ask(self, model: ForwardedModel, request: InferRequest, now: float) -> int:
        """Forward a request; returns its number.

        Raises:
            Unavailable: there is no connection.
        """
        frames = self._frames
        if frames is None:
            raise model.unavailable()
        self._number += 1
        tensors, parts = lay_out(request.arrays())
        left_s = None if request.deadline_s is None else request.deadline_s - now
        client = None if request.client is None else str(request.client)
        self._asked[self._number] = frames, model, request
        frames.send(
            Infer(
                self._number,
                model.name,
                model.version,
                request.rows,
                request.outputs,
                left_s,
                request.priority,
                request.sequence,
                client,
                tensors,
            ),
            parts,
        )
        return self._number

    def give_up(self, number: int) -> None:
        """Nobody waits for an answer."""
        asked = self._asked.pop(number, None)
        if asked is not None:
            asked[0].send(Cancel(number))

    def close(self) -> None:
        """Hang up, for good."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        for frames in self._open:
            frames.close()

    def _connect(self) -> None:
        if self._connecting is None and self._models and self._is_elsewhere and not self._closed:
            self._connecting = asyncio.get_running_loop().create_task(self._reach())

    @property
    def _is_elsewhere(self) -> bool:
        return bool(self.owner.path) and (self._frames is None or self._at != self.owner.path)

    async def _reach(self) -> None:
        loop = asyncio.get_running_loop()
        while self._is_elsewhere:
            path = self.owner.path
            try:
                frames: Frames
                _, frames = await loop.create_unix_connection(lambda: Frames(self._received, self._lost), path)
            except OSError:
                await asyncio.sleep(_AGAIN_S)
                continue
            self._open.add(frames)
            self._frames, self._at = frames, path  # what was asked where it was before is answered from there
        self._connecting = None
        for model in list(self._models):
            self._ask_what(model)

    def _ask_what(self, model: ForwardedModel) -> None:
        if self._frames is not None and model in self._models:
            self._number += 1
            self._asked[self._number] = self._frames, model, None
            self._frames.send(Describe(self._number, model.name, model.version))

    def _received(self, head: Any, body: memoryview) -> None:
        asked = self._asked.pop(head.number, None)
        if asked is None:
            return
        frames, model, request = asked
        if isinstance(head, Described):
            if frames is not self._frames:  # where it was before
                return
            model.describe(head)
            if head.state != "READY":
                asyncio.get_running_loop().call_later(_AGAIN_S, self._ask_what, model)
        elif isinstance(head, Outputs) and request is not None:
            model.answer(request, pick_up(head.tensors, body), head.timing)
        elif isinstance(head, Failed) and request is not None:
            error = error_of(head.code, head.message, head.retry_after_s)
            error.reason = head.reason
            model.answer(request, error, None)
        elif isinstance(head, Failed):
            model.enter("UNAVAILABLE", head.message)
            asyncio.get_running_loop().call_later(_AGAIN_S, self._ask_what, model)

    def _lost(self) -> None:
        self._open = {frames for frames in self._open if not frames.closed}
        current = self._frames is not None and self._frames.closed
        if current:
            self._frames = None
            self._tell("the process that runs it went away")
        for number, (frames, model, request) in list(self._asked.items()):
            if frames.closed:
                del self._asked[number]
                if request is not None:
                    model.answer(request, model.gone(), None)
        self._connect()

    def _tell(self, reason: str) -> None:
        for model in list(self._models):
            model.enter("UNAVAILABLE", reason)
