"""For authors of frontends: an engine that runs sessions at once, and the suite every frontend must pass."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any

import msgspec
import pytest

from salver.backends.base import Session
from salver.core.errors import FailedPrecondition, NotFound, SalverError, Unavailable
from salver.core.tensors import Signature
from salver.server.engine.base import (
    Changed,
    Engine,
    IndexEntry,
    InferRequest,
    ModelState,
    Repository,
    ServedModel,
    Timing,
    check_label,
    is_ragged,
    not_awaited,
)
from salver.server.frontends import FRONTENDS, Frontend, Services
from salver.server.frontends.access import Peer
from salver.server.frontends.codes import STATUS_LINES
from salver.server.frontends.grpc.call import Call
from salver.server.frontends.http.exchange import Exchange
from salver.server.frontends.http.router import Router


class SessionModel(ServedModel):
    """A served model around a session."""

    def __init__(self, name: str, session: Session, version: str = "1") -> None:
        self.name = name
        self.version = version
        self.session = session
        self.signature: Signature = session.signature
        self.ragged = is_ragged(session.signature)
        self.state: ModelState = "READY"
        self.reason = ""
        self.tested = False
        self.platform = "onnx_onnxv1"
        self.metadata: dict[str, Any] = {}


class InlineRepository(Repository):
    """Changes the state of models that are there already; `loads` keeps what `load` was given."""

    def __init__(self, models: Sequence[SessionModel]) -> None:
        self._models = models
        self._labels: dict[str, dict[str, str]] = {}
        self.loads: list[tuple[str, Mapping[str, Any] | None, Mapping[str, bytes] | None]] = []

    def index(self) -> Sequence[IndexEntry]:
        return [IndexEntry(m.name, m.version, m.state, m.reason) for m in self._models]

    def load(
        self,
        name: str,
        done: Changed,
        *,
        config: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self.loads.append((name, config, files))
        for model in self._known(name):
            model.state, model.reason = "READY", ""
        done(None)

    def unload(self, name: str, done: Changed, *, dependents: bool = False) -> None:
        for model in self._known(name):
            model.state, model.reason = "UNAVAILABLE", "unloaded"
        done(None)

    def labels(self, name: str) -> Mapping[str, str]:
        self._known(name)
        return self._labels.get(name, {})

    def move_label(self, name: str, label: str, version: str | None, done: Changed = not_awaited) -> None:
        check_label(label)
        found = {m.version: m for m in self._known(name)}
        if version is not None and version not in found:
            raise NotFound(f"model '{name}' has no version '{version}'")
        if version is not None and found[version].state != "READY":
            raise FailedPrecondition(f"version {version} of model '{name}' is {found[version].state}")
        labels = self._labels.setdefault(name, {})
        if version is None:
            labels.pop(label, None)
        else:
            labels[label] = version
        done(None)

    def _known(self, name: str) -> list[SessionModel]:
        found = [m for m in self._models if m.name == name]
        if not found:
            raise NotFound(f"no model '{name}' in the repository")
        return found


class InlineEngine(Engine):
    """Runs every request at once, alone, during `submit`. Where `held` is a list, requests wait in it for `release`."""

    def __init__(self, models: Iterable[SessionModel]) -> None:
        self._models = list(models)
        self.repository = InlineRepository(self._models)
        self.held: list[tuple[SessionModel, InferRequest]] | None = None
        self.cancelled: list[InferRequest] = []
        self.is_ready = True
        self.refuse_with: SalverError | None = None

    def find(self, name: str, version: str | None = None) -> SessionModel:
        named = [m for m in self._models if m.name == name]
        wanted = self.repository.labels(name).get(version, version) if named and version else version
        found = [m for m in named if wanted in (None, "", m.version)]
        if not found:
            raise NotFound(f"no model '{name}' version {version or 'any'} is served")
        if found[-1].state != "READY":
            raise Unavailable(f"model '{name}' is {found[-1].state}: {found[-1].reason}")
        return found[-1]

    def models(self) -> Sequence[SessionModel]:
        return self._models

    def submit(self, model: ServedModel, request: InferRequest) -> None:
        if self.refuse_with is not None:
            raise self.refuse_with
        own = self.find(model.name, model.version)
        if self.held is not None:
            self.held.append((own, request))
        else:
            _run(own, request)

    def release(self, index: int = 0) -> None:
        """Run one of the requests held."""
        if self.held:
            _run(*self.held.pop(index))

    def cancel(self, model: ServedModel, request: InferRequest) -> None:
        self.cancelled.append(request)
        if self.held is not None:
            self.held = [item for item in self.held if item[1] is not request]

    @property
    def ready(self) -> bool:
        return self.is_ready and all(m.state == "READY" for m in self._models)


def _run(model: SessionModel, request: InferRequest) -> None:
    try:
        outputs = model.session.run(request.arrays(), request.outputs)
    except SalverError as error:
        request.done(error, None)
    else:
        request.done(outputs, Timing(0.0, 0.0, request.rows))


class Catcher:
    """Takes the answer of an exchange that has no connection."""

    def __init__(self, peer: Peer | None = None) -> None:
        self.peer = peer or Peer()
        self.answers: list[Exchange] = []
        self.cuts: list[Exchange] = []
        self.limits: list[str] = []

    def answered(self, exchange: Exchange) -> None:
        self.answers.append(exchange)

    def cut(self, exchange: Exchange) -> None:
        self.cuts.append(exchange)

    def limit_hit(self, name: str) -> None:
        self.limits.append(name)


class CallCatcher:
    """Takes the answers of a gRPC call that has no connection.

    Args:
        peer: the client it seems to come from.
    """

    def __init__(self, peer: Peer | None = None) -> None:
        self.peer = peer or Peer()
        self.messages: list[bytes] = []
        self.error: SalverError | None = None
        self.ended = False

    def send(self, call: Call, message: bytes) -> None:
        self.messages.append(message)

    def finish(self, call: Call, error: SalverError | None) -> None:
        self.error = error
        self.ended = True


def invoke(
    frontend: Frontend, path: str, message: bytes = b"", *, peer: Peer | None = None, deadline_s: float | None = None
) -> tuple[Call, CallCatcher]:
    """Send one request to a frontend's gRPC method, past any socket. A streaming method gets the message and the end of
    the client's stream."""
    methods = {method.path: method for method in frontend.methods()}
    method = methods[path]
    catcher = CallCatcher(peer)
    call = Call(catcher, path.encode(), {}, deadline_s, perf_counter(), catcher.peer)
    if not method.streaming:
        call.message = message
    call.attempt(method.handle, call)
    if method.streaming:
        if call.on_message is not None:
            call.attempt(call.on_message, message)
        if call.on_end is not None:
            call.on_end()
    return call, catcher


class FrontendConformance:
    """What every member of the `frontends` family must do. Subclasses say which member; a fixture ``services``, of the
    class or of its ``conftest.py``, gives `Services` with an `InlineEngine` that serves one model or more."""

    member: str

    @pytest.fixture
    def frontend(self, services: Services) -> Frontend:
        """The member, alone on its listener."""
        frontend = FRONTENDS.get(self.member)(services)
        services.frontends = (frontend,)
        return frontend

    def test_name_is_that_of_the_table(self, frontend: Frontend) -> None:
        assert frontend.name == self.member

    def test_routes_are_well_formed_and_claimed_once(self, frontend: Frontend) -> None:
        router = Router()
        for route in frontend.routes():
            assert route.method in ("GET", "POST", "PUT", "DELETE")
            assert route.path == "/" or (route.path.startswith("/") and not route.path.endswith("/"))
            router.add(route.method, route.path, route.handle, route.scope)

    def test_methods_are_well_formed_and_claimed_once(self, frontend: Frontend) -> None:
        paths = [method.path for method in frontend.methods()]
        assert len(paths) == len(set(paths))
        assert all(re.fullmatch(r"/[\w.]+/\w+", path) for path in paths)
        assert frontend.routes() or paths

    @pytest.mark.parametrize("message", [b"", b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x00" * 100, b"\x0a\x01" * 1000])
    def test_any_message_gets_a_status_that_does_not_blame_the_server(self, frontend: Frontend, message: bytes) -> None:
        async def ask_all() -> None:  # handlers live on an event loop, and may set timers
            for method in frontend.methods():
                call, _ = invoke(frontend, method.path, message)
                assert call.code not in ("INTERNAL", "UNKNOWN"), method.path

        asyncio.run(ask_all())

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{}",
            b"[]",
            b"null",
            b"{",
            b'{"inputs":[]}',
            b'{"instances":[]}',
            b"\xff\xfe",
            b"[" * 100_000,
            b'"\\ud800"',
        ],
    )
    def test_any_body_gets_an_answer_that_blames_the_caller(
        self, frontend: Frontend, services: Services, body: bytes
    ) -> None:
        for exchange in _call_all(frontend, services, body):
            assert exchange.status in STATUS_LINES, exchange.target
            assert exchange.status < 500 or exchange.status == 501, exchange.target
            if exchange.status >= 400:
                assert set(msgspec.json.decode(_whole(exchange))) == {"error"}

    def test_unknown_models_are_not_found(self, frontend: Frontend, services: Services) -> None:
        for route in frontend.routes():
            if "{model}" in route.path:
                path = route.path.replace("{model}", "no-such-model").replace("{version}", "1")
                assert call(frontend, route.method, path, b"{}").status == 404, path

    def test_openapi_describes_only_what_is_routed(self, frontend: Frontend, services: Services) -> None:
        router = Router()
        for route in frontend.routes():
            router.add(route.method, route.path, route.handle, route.scope)
        for path, methods in frontend.openapi(services.engine.models()).items():
            handlers = router.find(path.encode()).handlers
            for method, operation in methods.items():
                assert method.upper().encode() in handlers
                assert operation["summary"]
                assert operation["responses"]


def call(frontend: Frontend, method: str, path: str, body: bytes = b"", **fields: bytes) -> Exchange:
    """Send one request to a frontend's handler, past any socket.

    Args:
        fields: header fields, ``_`` for ``-``.
    """
    router = Router()
    for route in frontend.routes():
        router.add(route.method, route.path, route.handle, route.scope)
    match = router.find(path.encode())
    named = {name.replace("_", "-").encode(): value for name, value in fields.items()}
    exchange = Exchange(Catcher(), method.encode(), path.encode(), match, named, body, 0.0)
    exchange.attempt(match.handlers[method.encode()], exchange)
    return exchange


def body_of(exchange: Exchange) -> Any:
    """The JSON of an answer."""
    return msgspec.json.decode(_whole(exchange))


def _whole(exchange: Exchange) -> bytes:
    if exchange.answer is None:
        raise AssertionError(f"{exchange.target!r} was not answered")
    body = exchange.answer[1]
    return body if isinstance(body, bytes) else b"".join(body)


def _call_all(frontend: Frontend, services: Services, body: bytes) -> Iterable[Exchange]:
    model = services.engine.models()[0]
    for route in frontend.routes():
        path = route.path.replace("{model}", model.name).replace("{version}", model.version)
        yield call(frontend, route.method, path, body)
        services.engine.repository.load(model.name, lambda _: None)  # a route may have unloaded it
