"""The port of the `frontends` family: a codec and the routes it answers.

A frontend turns the bytes of one protocol into arrays, hands them to the `Dataplane`, and arrays back into bytes. It
holds no socket: the listeners read requests, call the handler that the path names, and write what the handler answers.
HTTP requests come as an `Exchange`, whether they were carried by HTTP/1.1 or HTTP/2; gRPC calls as a `Call`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from salver.core.errors import InvalidArgument, NotFound, SalverError, TooLarge, Unavailable
from salver.server.engine.base import Engine, ServedModel, Timing
from salver.server.frontends.access import Scope
from salver.server.frontends.dataplane import Dataplane
from salver.server.frontends.grpc.call import Call
from salver.server.frontends.http.exchange import Exchange
from salver.server.frontends.shared_memory import SharedMemory
from salver.wire import jsonio

if TYPE_CHECKING:
    from salver.wire.protos import ProtoSet


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

    def collect(self, shown: Callable[[Observed | SalverError], None], /) -> None:
        """What all processes of the server counted, now or later, once; or why that cannot be told."""


class Observed(Protocol):
    """A server at one moment."""

    def render(self) -> bytes:
        """Everything, in the Prometheus text format."""

    def statistics(self, model: ServedModel) -> dict[str, Any]:
        """One entry of ``model_stats``, as Triton's statistics extension writes it, and more under ``salver``."""


class HttpSettings(Protocol):
    """What the HTTP side obeys; see ``docs/server/limits.md``."""

    @property
    def http(self) -> str:
        """Where to listen, ``host:port``; port 0 for any free one."""

    @property
    def grpc(self) -> str:
        """A second address to listen on; empty for none."""

    @property
    def tls_cert(self) -> str:
        """Certificate chain in PEM; empty for no TLS."""

    @property
    def tls_key(self) -> str:
        """Private key in PEM."""

    @property
    def tls_client_ca(self) -> str:
        """Certificates in PEM of those who vouch for clients; empty where clients need no certificate."""

    @property
    def api_keys(self) -> str:
        """File of hashed API keys; empty for none."""

    @property
    def insecure(self) -> bool:
        """Whether to listen beyond loopback though callers prove nothing."""

    @property
    def shared_memory(self) -> str:
        """Prefix of shared memory that may be registered; empty for none."""

    @property
    def max_body_bytes(self) -> int:
        """Largest request body, as it is sent."""

    @property
    def max_incoming_bytes(self) -> int:
        """Bodies that are still coming in, of all connections together."""

    @property
    def max_decompressed_bytes(self) -> int:
        """Largest request body after its content coding is undone."""

    @property
    def max_streams(self) -> int:
        """Requests of one HTTP/2 connection in flight."""

    @property
    def max_json_depth(self) -> int:
        """Nesting of a JSON body."""

    @property
    def max_string_bytes(self) -> int:
        """One element of a string tensor."""

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
        self.dataplane = Dataplane(engine, metrics)
        self.shared_memory = SharedMemory(settings.shared_memory, settings.max_body_bytes, metrics.limit_hit)
        self.frontends: tuple[Frontend, ...] = ()

    def read_json(self, body: bytes, kind: Any, where: str = "request") -> Any:
        """Read JSON within the limits, as a type.

        Raises:
            InvalidArgument: it is malformed, or not of that type.
            TooLarge: it is nested too deeply.
        """
        try:
            jsonio.check_depth(body, self.settings.max_json_depth, where)
        except TooLarge as error:
            self.dataplane.count_limit(error)
            raise
        return jsonio.decode(body, kind, where)


class Route(msgspec.Struct, frozen=True):
    """One path a frontend answers over HTTP.

    Args:
        method: ``GET`` (HEAD comes with it), ``POST``, ``PUT`` or ``DELETE``.
        path: literal segments and ``{parameters}``; a trailing slash is always accepted, and never written here. The
            last segment may be a parameter with a verb, ``{model}:predict``.
        handle: answers the exchange, now or later. A `SalverError` it raises becomes the answer.
        scope: what a caller needs.
    """

    method: str
    path: str
    handle: Callable[[Exchange], None]
    scope: Scope


class Method(msgspec.Struct, frozen=True):
    """One method a frontend answers over gRPC.

    Args:
        path: ``/package.Service/Method``.
        handle: answers the call, now or later. A `SalverError` it raises becomes the status.
        scope: what a caller needs.
        streaming: whether the handler is called when the call opens, and sends and gets any number of messages.
    """

    path: str
    handle: Callable[[Call], None]
    scope: Scope
    streaming: bool = False


class Frontend(abc.ABC):
    """A wire protocol: routes over HTTP, methods over gRPC, or both. Lives on the event loop; handlers must not block.

    Members are made with their `Services` alone.
    """

    name: str

    def __init__(self, services: Services) -> None:
        self.services = services

    def routes(self) -> Sequence[Route]:
        """All HTTP routes; two frontends of one listener must not claim the same."""
        return ()

    def methods(self) -> Sequence[Method]:
        """All gRPC methods; two frontends must not claim the same."""
        return ()

    def protos(self) -> Sequence[ProtoSet]:
        """Where the messages of these methods are described, for reflection."""
        return ()

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
        wanted = engine.repository.labels(name).get(version, version) if version else None
        found = [m for m in engine.models() if m.name == name and wanted in (None, m.version)]
        if not found:
            raise NotFound(f"model '{name}' is not served") from None
        return found[-1]


def find_all(engine: Engine, name: str, version: str | None) -> Sequence[ServedModel]:
    """All versions of a model in whatever state, or the one that is named.

    Raises:
        NotFound: as `find_any`.
    """
    found = find_any(engine, name, version)
    return [found] if version else [model for model in engine.models() if model.name == name]


def find_only(engine: Engine, path: str) -> ServedModel:
    """The one model there is, for protocols that name none.

    Args:
        path: what a request is sent to, where there are several: that and the name.

    Raises:
        NotFound: there is no model.
        InvalidArgument: there are several.
        Unavailable: it is not ready.
    """
    names = sorted({model.name for model in engine.models()})
    if not names:
        raise NotFound("no model is served")
    if len(names) > 1:
        raise InvalidArgument(f"several models are served; use one of {', '.join(f'{path}/{name}' for name in names)}")
    return engine.find(names[0])
