"""A model that is loaded when it is asked for, and makes room for others when they are."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from statistics import median_low
from time import monotonic, perf_counter
from typing import Any, Final

import msgspec

from salver.core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SalverError,
    Unavailable,
    Unimplemented,
)
from salver.core.tensors import Signature
from salver.server.engine.base import InferRequest, ModelFacts, ModelState, is_ragged
from salver.server.engine.budget import MemoryBudget, Tenant
from salver.server.engine.config import ModelConfig
from salver.server.engine.engine import RealTimeEngine, wait_idle
from salver.server.engine.loading import Known
from salver.server.engine.memory import give_back, heap_bytes
from salver.server.engine.planned import Spawn
from salver.server.engine.scheduler import measure
from salver.server.engine.servable import Servable
from salver.server.engine.served import LoadedModel
from salver.server.settings import RunSettings

Load = Callable[[LoadedModel, Known], Awaitable[None]]
"""Opens a model, or raises a `SalverError`."""

ON_DISK: Final = "on disk; loaded on first request"

_NOT_LOADED: Final = "not_loaded"
"""Why requests are refused that waited for a load, in the metrics."""

_LOG = logging.getLogger(__name__)
_SESSION_BYTES: Final = 1 << 20
"""Of the smallest session: with that ONNX Runtime's arena begins."""
_MEASURED: Final = 3
"""What it takes is the median of as many measurements: what other threads allocate meanwhile is measured, too."""
_LASTING: Final = (FailedPrecondition, InvalidArgument, NotFound, Unimplemented)
"""A load that failed so fails again, until the files change."""
_BACK_OFF_S: Final = 1.0
_MAX_BACK_OFF_S: Final = 60.0
_DRAIN_S: Final = 30.0
_TICK_S: Final = 0.001


class OnDemandModel(Servable, Tenant):
    """Stands for one version of a model, loaded or not: READY in both cases, because what is asked is answered. A
    request to a model on disk waits for the load, bounded by its deadline and the budget's bounds.

    Args:
        name, version: under which it is served.
        engine: that serves it.
        budget: that it shares with others.
        load: see `Load`.
        spawn: for loading, which is given up when the server ends.
    """

    def __init__(
        self, name: str, version: str, engine: RealTimeEngine, budget: MemoryBudget, load: Load, spawn: Spawn
    ) -> None:
        self.name = name
        self.version = version
        self.signature = Signature(inputs=(), outputs=())
        self.state: ModelState = "LOADING"
        self.reason = "loading"
        self.tested = False
        self.platform = ""
        self.metadata: dict[str, Any] = {}
        self._engine = engine
        self.budget = budget
        self._load = load
        self._spawn = spawn
        self._known: Known
        self._settings = RunSettings()
        self._model: LoadedModel | None = None
        self._leaving: LoadedModel | None = None
        self._waiting: dict[InferRequest, int] = {}
        self._refused: dict[InferRequest, SalverError] = {}
        self._loading = False
        self._timer: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._measured: deque[int] = deque(maxlen=_MEASURED)
        self._failures = 0
        self._draining = False
        self._closed = False

    def know(self, known: Known, config: ModelConfig, *, pinned: bool) -> None:
        """What it is, found without loading it. It can be asked after `rest` or `wake`."""
        self._known = known
        self._settings = known.settings
        self.pinned = pinned
        self.config = config
        self.signature = known.signature
        self.ragged = is_ragged(known.signature)
        self.stateful = config.sequence is not None
        self.tested = known.bundle.tested
        self.platform = known.platform
        self.metadata = {"tested": self.tested, "digest": known.bundle.digest, "in_memory": False}
        self.least_bytes = self.cost_bytes = known.file_bytes + _SESSION_BYTES

    def rest(self) -> None:
        """It may be asked, and is loaded then."""
        self._enter("READY", ON_DISK)

    def refuse(self, reason: str) -> None:
        """It cannot be served, and why."""
        self._enter("UNAVAILABLE", reason)

    async def wake(self, *, evict: bool = True) -> None:
        """Load it, unless it is loaded.

        Args:
            evict: whether others make room for it; where they may not and there is none, it stays on disk.

        Raises:
            SalverError: it cannot be loaded; `FailedPrecondition` where it is larger than the whole budget.
        """
        async with self.budget.turn:
            if self._model is not None or self._closed:
                return
            if evict or self.budget.has_room(self):
                await self.budget.make_room(self)
                await self._fill(evict)
            else:
                self.rest()

    # The port

    def submit(self, request: InferRequest) -> None:
        model = self._model
        if model is not None:
            self.used_s = monotonic()
            model.submit(request)
            return
        try:
            self._hold(request)
        except SalverError as error:
            self._engine.metrics.record_refused(self, error.code, _NOT_LOADED)
            raise

    def cancel(self, request: InferRequest) -> None:
        size = self._waiting.pop(request, None)
        model = self._model or self._leaving
        if size is not None:
            self.budget.let_go(size)
        elif self._refused.pop(request, None) is None and model is not None:
            model.cancel(request)

    def gauges(self) -> dict[str, int]:
        model = self._model or self._leaving
        found = {"queued": 0, "queued_rows": 0, "running": 0} if model is None else model.gauges()
        found["queued"] += len(self._waiting)
        found["queued_rows"] += sum(request.rows for request in self._waiting)
        found["memory_bytes"] = 0 if model is None else self.cost_bytes
        return found

    def facts(self) -> ModelFacts:
        model = self._model or self._leaving
        facts = super().facts() if model is None else model.facts()
        return msgspec.structs.replace(facts, state=self.state, reason=self.reason, gauges=self.gauges())

    def oldest_run_s(self, now: float) -> float:
        model = self._model or self._leaving
        return 0.0 if model is None else model.oldest_run_s(now)

    def drain(self) -> None:
        self._draining = True
        if self._model is not None:
            self._model.drain()

    @property
    def idle(self) -> bool:
        if self._waiting or self._refused or self._leaving is not None:
            return False
        return self._model is None or self._model.idle

    def close(self) -> bool:
        self._closed = True
        for timer in (self._timer, self._retry):
            if timer is not None:
                timer.cancel()
        error = Unavailable(f"model '{self.name}' was unloaded before it was loaded")
        self._refuse_waiting(error)
        while self._refused:  # at once: the loop may not turn again
            request, refusal = self._refused.popitem()
            request.done(refusal, None)
        model = self._model or self._leaving
        self._model = None
        ended = model is None or self._free(model)
        self._enter("UNAVAILABLE", "unloaded")
        return ended

    # The tenant

    @property
    def bound(self) -> bool:
        return self._model is not None and self._model.gauges().get("sequences", 0) > 0

    async def evict(self) -> None:
        model, self._model = self._model, None
        if model is None:
            self.budget.release(self)
            return
        self._leaving = model
        try:
            model.drain()
            await wait_idle((model,), _DRAIN_S)
        except BaseException:  # the server ends
            self._leaving, self._model = None, model
            raise
        if self._leaving is not None:  # it was not closed meanwhile
            self._free(model)
            self.budget.evictions += 1
            self._count("eviction")
            self.metadata = {**self.metadata, "in_memory": False}
            if self.state == "READY":
                self.reason = ON_DISK
            _LOG.debug("model '%s' version %s made room: %d bytes", self.name, self.version, self.cost_bytes)
        await asyncio.to_thread(give_back)

    # Loading

    def _hold(self, request: InferRequest) -> None:
        """Let a request wait for the load.

        Raises:
            SalverError: as `Engine.submit`.
        """
        if self.state != "READY":
            raise self.unavailable()
        if self._draining:
            raise Unavailable(f"model '{self.name}' is draining: it takes no new requests")
        if len(self._waiting) >= self._settings.max_queue:
            raise ResourceExhausted(
                f"{len(self._waiting)} requests wait for model '{self.name}' to be loaded, and more may not",
                retry_after_s=max(self.budget.load_s, _TICK_S),
            )
        now = monotonic()
        if self._settings.default_timeout_s and request.deadline_s is None:
            request.deadline_s = now + self._settings.default_timeout_s
        if request.deadline_s is not None and request.deadline_s <= now:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
        size = measure(request.inputs)
        self.budget.hold(size)
        self._waiting[request] = size
        if request.deadline_s is not None:
            self._watch(request.deadline_s)
        if not self._loading:
            self._loading = True
            self._spawn(self._answer())

    async def _answer(self) -> None:
        """Load it for those who wait."""
        try:
            while self._waiting and not self._closed:  # again where it had to go at once
                async with self.budget.turn:
                    if self._model is None and self._waiting:
                        await self.budget.make_room(self, lambda: bool(self._waiting))
                        if self._waiting:
                            await self._fill(evict=True)
        except SalverError as error:
            self._fail(error)
        except BaseException:
            self._refuse_waiting(Unavailable("the server is stopping"))
            raise
        finally:
            self._loading = False

    async def _fill(self, evict: bool) -> None:
        """Load it. Called with the budget's turn, and the room counted.

        Args:
            evict: as `wake`, where it takes more than was thought.

        Raises:
            SalverError: it cannot be loaded.
        """
        model = LoadedModel(self.name, self.version, self._engine.metrics)
        before_bytes, started_s = heap_bytes(), perf_counter()
        try:
            await self._load(model, self._known)
            self._learn_cost(heap_bytes() - before_bytes)
            self.budget.check(self)
            fits = self.budget.has_room(self)
            if evict and not fits:
                await self.budget.make_room(self)
        except BaseException:
            self.budget.release(self)
            model.close()
            raise
        self.budget.settle(self, perf_counter() - started_s)
        self._count("load")
        if self._closed or not (evict or fits):
            self._free(model)
            self.rest()
            return
        self._take(model)

    def _take(self, model: LoadedModel) -> None:
        """It is loaded: answer those who waited."""
        self._failures = 0
        self._model = model
        self.metadata = {**model.metadata, "in_memory": True}
        if self.state != "UNLOADING":
            self._enter("READY", "")
        self._pass_on(model)
        if self._draining:
            model.drain()

    def _count(self, kind: str) -> None:
        self._engine.metrics.memory.block(kind, (), (self.name, self.version))[0] += 1.0

    def _learn_cost(self, measured_bytes: int) -> None:
        self._measured.append(measured_bytes)
        self.cost_bytes = max(median_low(self._measured), self.least_bytes)

    def _pass_on(self, model: LoadedModel) -> None:
        now = monotonic()
        waiting, self._waiting = self._waiting, {}
        for request, size in waiting.items():
            self.budget.let_go(size)
            if request.deadline_s is not None and request.deadline_s <= now:
                self._refuse(request, self._too_late())
                continue
            try:
                model.submit(request)
            except SalverError as error:  # which the model has counted
                self._answer_with(request, error)

    def _fail(self, error: SalverError) -> None:
        """The load failed: those who wait are told, and it is tried again, later each time, where that may help."""
        told = error
        if not isinstance(error, ResourceExhausted):
            told = Unavailable(f"model '{self.name}' could not be loaded: {error.message}")
            self._failures += 1
            reason = f"the last load failed: {error.message}"
            if not isinstance(error, _LASTING):
                pause_s = min(_BACK_OFF_S * 2.0 ** (self._failures - 1), _MAX_BACK_OFF_S)
                told.retry_after_s = pause_s
                self._retry = asyncio.get_running_loop().call_later(pause_s, self._try_again)
                reason = f"{reason}; tried again {pause_s:g} s later"
            self._enter("UNAVAILABLE", reason)
        _LOG.error("model '%s' version %s could not be loaded: %s", self.name, self.version, error.message)
        self._refuse_waiting(told)

    def _refuse_waiting(self, error: SalverError) -> None:
        waiting, self._waiting = self._waiting, {}
        for request, size in waiting.items():
            self.budget.let_go(size)
            self._refuse(request, error)

    def _try_again(self) -> None:
        if self.state == "UNAVAILABLE":
            self.rest()

    def _free(self, model: LoadedModel) -> bool:
        """Free a model, and learn what it took."""
        self._leaving = None
        before_bytes = heap_bytes()
        ended = model.close()
        self._learn_cost(before_bytes - heap_bytes())
        self._engine.metrics.forget(model)
        self.budget.release(self)
        return ended

    def _enter(self, state: ModelState, reason: str) -> None:
        changed = state != self.state
        self.state, self.reason = state, reason
        if state == "READY":
            self.required = False  # a server that was ready stays so, whatever a later load brings
        if changed:
            self._engine.refresh()

    # Requests that are not answered by the model

    def _watch(self, deadline_s: float) -> None:
        """Answer who waits too long when the deadline passes, not when the model is there."""
        loop = asyncio.get_running_loop()
        after_s = max(deadline_s - monotonic(), 0.0) + _TICK_S
        if self._timer is None or self._timer.when() > loop.time() + after_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_later(after_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = monotonic()
        for request, size in list(self._waiting.items()):
            if request.deadline_s is not None and request.deadline_s <= now:
                del self._waiting[request]
                self.budget.let_go(size)
                self._refuse(request, self._too_late())
        if left := [request.deadline_s for request in self._waiting if request.deadline_s is not None]:
            self._watch(min(left))

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the deadline passed while model '{self.name}' was being loaded")

    def _refuse(self, request: InferRequest, error: SalverError) -> None:
        """Count a request as refused, and answer it."""
        self._engine.metrics.record_refused(self, error.code, _NOT_LOADED)
        self._answer_with(request, error)

    def _answer_with(self, request: InferRequest, error: SalverError) -> None:
        """Answer with an error in a turn of the loop of its own: what its frontend raises costs no other request."""
        self._refused[request] = error
        asyncio.get_running_loop().call_soon(self._tell, request)

    def _tell(self, request: InferRequest) -> None:
        error = self._refused.pop(request, None)
        if error is not None:
            request.done(error, None)
