"""For authors of frontends: an engine that runs sessions at once, and the suite every frontend must pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pytest

from salver.backends.base import Session
from salver.core.errors import NotFound, SalverError, Unavailable
from salver.core.tensors import Signature
from salver.server.engine.base import Engine, InferRequest, ModelState, ServedModel, Timing
from salver.server.frontends import FRONTENDS, Frontend, Services
from salver.server.frontends.codes import STATUS_LINES
from salver.server.frontends.http.exchange import Exchange
from salver.server.frontends.http.router import Router


class SessionModel(ServedModel):
    """A served model around a session."""

    def __init__(self, name: str, session: Session, version: str = "1") -> None:
        self.name = name
        self.version = version
        self.session = session
        self.signature: Signature = session.signature
        self.state: ModelState = "READY"
        self.reason = ""
        self.tested = False
        self.platform = "onnx_onnxv1"
        self.metadata: dict[str, Any] = {}


class InlineEngine(Engine):
    """Runs every request at once, alone, during `submit`. Where `held` is a list, requests wait in it for `release`."""

    def __init__(self, models: Iterable[SessionModel]) -> None:
        self._models = list(models)
        self.held: list[tuple[SessionModel, InferRequest]] | None = None
        self.cancelled: list[InferRequest] = []
        self.is_ready = True
        self.refuse_with: SalverError | None = None

    def find(self, name: str, version: str | None = None) -> SessionModel:
        found = [m for m in self._models if m.name == name and version in (None, "", m.version)]
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
        outputs = model.session.run(request.inputs, request.outputs)
    except SalverError as error:
        request.done(error, None)
    else:
        request.done(outputs, Timing(0.0, 0.0, request.rows))


class Catcher:
    """Takes the answer of an exchange that has no connection."""

    def __init__(self) -> None:
        self.answers: list[Exchange] = []

    def answered(self, exchange: Exchange) -> None:
        self.answers.append(exchange)


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
            assert route.method in ("GET", "POST")
            assert route.path == "/" or (route.path.startswith("/") and not route.path.endswith("/"))
            router.add(route.method, route.path, route.handle)

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
            assert exchange.status < 500, exchange.target
            if exchange.status >= 400:
                assert set(msgspec.json.decode(_whole(exchange))) == {"error"}

    def test_unknown_models_are_not_found(self, frontend: Frontend, services: Services) -> None:
        for route in frontend.routes():
            if "{model}" in route.path:
                path = route.path.replace("{model}", "no-such-model").replace("{version}", "1")
                assert call(frontend, route.method, path, b"{}").status == 404

    def test_openapi_describes_only_what_is_routed(self, frontend: Frontend, services: Services) -> None:
        router = Router()
        for route in frontend.routes():
            router.add(route.method, route.path, route.handle)
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
        router.add(route.method, route.path, route.handle)
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
