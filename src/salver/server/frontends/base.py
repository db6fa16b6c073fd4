"""The port of the `frontends` family: a codec and the routes it answers.

A frontend turns the bytes of one protocol into `InferRequest`s and arrays back into bytes. It holds no socket: a
listener (`http.HttpServer`) reads requests, calls the handler its router finds, and writes what the handler answers.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from salver.core.errors import NotFound, Unavailable
from salver.server.engine.base import Engine, ServedModel, Timing
from salver.server.frontends.http.exchange import Exchange


class Metrics(Protocol):
    """What frontends and listeners report. Called on the event loop, once per request: cheap.

    Args:
        connections: how many are open; the listener sets it.
    """

    connections: int

    def record(self, model: ServedModel, code: str, timing: Timing | None, total_s: float, encode_s: float) -> None:
        """A request ended: ``OK`` or a `Code`; time from its last byte to its answer; the part of it spent encoding."""

    def limit_hit(self, name: str) -> None:
        """A limit refused something: the name of the setting, such as ``max_body_bytes``."""

    def render(self) -> bytes:
        """Everything, in the Prometheus text format."""

    def statistics(self, model: ServedModel) -> dict[str, Any]:
        """One entry of ``model_stats``, as Triton's statistics extension writes it."""


class HttpSettings(Protocol):
    """What the HTTP side obeys; see ``docs/server/limits.md``."""

    @property
    def http(self) -> str:
        """Where to listen, ``host:port``; port 0 for any free one."""

    @property
    def max_body_bytes(self) -> int:
        """Largest request body, before and after decompression."""

    @property
    def max_header_bytes(self) -> int:
        """Largest request line and header block."""

    @property
    def max_connections(self) -> int:
        """Open connections; one more is answered 503 and closed."""

    @property
    def idle_timeout_s(self) -> float:
        """How long a connection may idle, or a client stall within a request or an answer."""

    @property
    def trusted_hosts(self) -> Sequence[str]:
        """Names accepted in ``Host`` besides those of loopback."""

    @property
    def cors_origins(self) -> Sequence[str]:
        """Origins whose web pages may call; ``*`` for all."""


class Services:
    """What a frontend may use.

    Args:
        frontends: all frontends of the listener, filled in after they are made (the docs page describes them).
    """

    def __init__(self, engine: Engine, metrics: Metrics, settings: HttpSettings) -> None:
        self.engine = engine
        self.metrics = metrics
        self.settings = settings
        self.frontends: tuple[Frontend, ...] = ()


class Route(msgspec.Struct, frozen=True):
    """One path a frontend answers.

    Args:
        method: ``GET`` (HEAD comes with it) or ``POST``.
        path: literal segments and ``{parameters}``; a trailing slash is always accepted, and never written here.
        handle: answers the exchange, now or later. A `SalverError` it raises becomes the answer.
    """

    method: str
    path: str
    handle: Callable[[Exchange], None]


class Frontend(abc.ABC):
    """A wire protocol over HTTP. Lives on the event loop; handlers must not block.

    Members are made with their `Services` alone.
    """

    name: str

    def __init__(self, services: Services) -> None:
        self.services = services

    @abc.abstractmethod
    def routes(self) -> Sequence[Route]:
        """All routes; two frontends of one listener must not claim the same."""

    def openapi(self, models: Sequence[ServedModel]) -> dict[str, Any]:
        """OpenAPI 3.1 path items for the models served; empty for a frontend that needs no documentation."""
        return {}


def find_any(engine: Engine, name: str, version: str | None) -> ServedModel:
    """A model in whatever state, for metadata; the version that answers where none is named, else the last.

    Raises:
        NotFound: no such model or version.
    """
    try:
        return engine.find(name, version)
    except Unavailable:
        found = [m for m in engine.models() if m.name == name and version in (None, m.version)]
        if not found:
            raise NotFound(f"model '{name}' is not served") from None
        return found[-1]
