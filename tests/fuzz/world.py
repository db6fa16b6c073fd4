"""What a target runs in: real frontends over sessions of tiny models, a transport in memory, a loop that is stepped.

Nothing here waits: time moves when a target says so, and all that a connection puts off is run before its output is
judged.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import logging
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from salver.core.errors import Code, SalverError
from salver.server.frontends import BUILTIN, FRONTENDS, Services
from salver.server.frontends.http.guard import Guard
from salver.server.frontends.http.listener import Listener
from salver.server.frontends.http.router import Router
from salver.server.frontends.http.shared import Intake, Limits
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import ServeSettings
from salver.testing.frontends import InlineEngine, SessionModel
from tests.server.frontends.conftest import ONNX_TYPES, served, write_identity, write_linear, write_pair

MAX_STEPS = 20_000
SETTINGS = ServeSettings(
    max_body_bytes=1 << 16,
    max_incoming_bytes=1 << 16,
    max_decompressed_bytes=1 << 17,
    max_header_bytes=8192,
    max_json_depth=20,
    max_string_bytes=200,
    max_streams=64,
    idle_timeout_s=10.0,
)


class Finding(AssertionError):
    """An invariant that an input broke."""


def require(condition: object, what: str) -> None:
    """An invariant."""
    if not condition:
        raise Finding(what)


class _Defects(logging.Handler):
    """Keeps what the request boundary caught: each is a finding."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.caught: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.caught.append(error or Finding(record.getMessage()))


_DEFECTS = _Defects()


@contextmanager
def no_defects() -> Iterator[None]:
    """Raise what was caught and logged inside."""
    _DEFECTS.caught.clear()
    logger = logging.getLogger("salver")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(_DEFECTS)
    logger.setLevel(logging.ERROR)  # an input may turn the log off: that lasts until the next one
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(_DEFECTS)
        logger.setLevel(level)
        logger.propagate = propagate
    if _DEFECTS.caught:
        caught = _DEFECTS.caught.pop(0)
        _DEFECTS.caught.clear()
        raise caught


def check_error(error: SalverError) -> None:
    """What a codec may say to its caller."""
    require(error.code is not Code.INTERNAL, f"INTERNAL: {error.message}")
    require(error.message, "an error without a message")


@functools.cache
def load_models() -> tuple[SessionModel, ...]:
    """``linear`` in two versions, ``pair``, and ``id-<datatype>`` for every datatype."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        made = [
            served("linear", write_linear(folder / "linear.onnx"), labels=("cat", "dog", "bird")),
            served("linear", write_linear(folder / "linear2.onnx", 2), "2", labels=("cat", "dog", "bird")),
            served("pair", write_pair(folder / "pair.onnx")),
        ]
        for datatype in ONNX_TYPES:
            path = write_identity(folder / f"{datatype}.onnx", datatype, ("batch", "width"))
            made.append(served(f"id-{datatype.lower()}", path))
            fixed = write_identity(folder / f"{datatype}-3.onnx", datatype, ("batch", 3))
            made.append(served(f"row-{datatype.lower()}", fixed))
    return tuple(made)


class Turns(asyncio.AbstractEventLoop):
    """A loop that runs what is due when it is told to, on a clock of its own."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._soon: deque[asyncio.Handle] = deque()
        self._later: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self.now_s

    def get_debug(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._soon.append(handle)
        return handle

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._later, (when, next(self._numbers), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are passed over when they are due."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise context.get("exception") or Finding(str(context))

    def step(self, seconds: float = 0.0) -> None:
        """Let time pass, and run all that is due, and all that follows from it."""
        self.now_s += seconds
        for _ in range(MAX_STEPS):
            while self._later and self._later[0][0] <= self.now_s:
                handle = heapq.heappop(self._later)[2]
                if not handle.cancelled():
                    self._soon.append(handle)
            if not self._soon:
                return
            handle = self._soon.popleft()
            if not handle.cancelled():
                handle._callback(*handle._args)  # `_run` would swallow what it raises
        raise Finding(f"still busy after {MAX_STEPS} callbacks")

    def forget(self) -> None:
        """Drop all that is waiting."""
        self._soon.clear()
        self._later.clear()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be the loop that runs."""
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)


class Wire(asyncio.Transport):
    """A transport in memory; what is written collects in `out`.

    Args:
        stop_after: bytes after which the peer reads no more until `read_on`; none for 0.
    """

    def __init__(self, turns: Turns, protocol: asyncio.Protocol, stop_after: int = 0) -> None:
        super().__init__({"peername": ("127.0.0.1", 50_000)})
        self.turns = turns
        self.protocol: Any = protocol
        self.out = bytearray()
        self.is_ended = False
        self.is_lost = False
        self.is_paused = False
        self.is_aborted = False
        self.is_judged = False
        """Whether what came out has been looked at."""
        self._closing = False
        self._stop_after = stop_after
        self._is_stopped = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        require(not self.is_ended, "bytes written after write_eof")
        if not self._closing:
            self.out += data
            if self._stop_after and not self._is_stopped and len(self.out) > self._stop_after:
                self._is_stopped = True
                self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def read_on(self) -> None:
        """The peer reads again."""
        self._stop_after = 0
        if self._is_stopped:
            self._is_stopped = False
            self.protocol.resume_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_ended = True

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self.turns.call_soon(self._lose)

    def abort(self) -> None:
        self.is_aborted = True
        self.close()

    def _lose(self) -> None:
        if not self.is_lost:
            self.is_lost = True
            self.protocol.connection_lost(None)


class World:
    """A server without sockets: what `HttpServer` and `Listener` are to their connections."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.engine = InlineEngine(load_models())
        self.metrics = Metrics(self.engine.models)
        self.services = Services(self.engine, self.metrics, SETTINGS)
        self.router = Router()
        self.methods: dict[bytes, Any] = {}
        self.draining = False
        self.time = self.turns.time
        self.limits = Limits(
            max_body_bytes=SETTINGS.max_body_bytes,
            max_decompressed_bytes=SETTINGS.max_decompressed_bytes,
            max_header_bytes=SETTINGS.max_header_bytes,
            max_streams=SETTINGS.max_streams,
            idle_timeout_s=SETTINGS.idle_timeout_s,
        )
        self.intake = Intake(SETTINGS.max_incoming_bytes)
        self.open: set[Any] = set()
        self.frontends = {name: FRONTENDS.get(name)(self.services) for name in BUILTIN}
        self.services.frontends = tuple(self.frontends.values())
        for frontend in self.services.frontends:
            for route in frontend.routes():
                self.router.add(route.method, route.path, route.handle, route.scope)
            for method in frontend.methods():
                self.methods[method.path.encode()] = method
        self.listener = Listener(self, "127.0.0.1:0")
        self.listener.guard = Guard(True, (), ("https://app.example",))
        self.listener.date_line = b"date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"

    def opened(self, connection: Any) -> int:
        """As `HttpServer.opened`."""
        self.open.add(connection)
        return 0

    def closed(self, connection: Any) -> None:
        """As `HttpServer.closed`."""
        self.open.discard(connection)

    def limit_hit(self, name: str) -> None:
        """As `HttpServer.limit_hit`."""
        self.metrics.limit_hit(name)

    def restore(self) -> None:
        """Undo what a request for another state of the repository did."""
        for model in self.engine.models():
            model.state, model.reason = "READY", ""
        repository: Any = self.engine.repository
        repository.loads.clear()
        repository._labels.clear()
        self.engine.cancelled.clear()
        self.metrics.limits.clear()
        self.engine.held = None
        self.turns.forget()

    @property
    def models(self) -> Sequence[SessionModel]:
        """All models."""
        return self.engine.models()
