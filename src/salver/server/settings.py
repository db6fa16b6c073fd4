"""What a server is told: one struct, resolved by the caller from flags, environment, file and defaults."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from salver.core.errors import InvalidArgument, UnknownName
from salver.server.engine.config import ModelConfig, VersionPolicy
from salver.server.tuned import Tuned

_MIB: Final = 1 << 20
_NOTHING_TOLD: Final = ModelConfig()


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one model; None takes the server's. See `ServeSettings` for the meaning.

    Args:
        source: what is served under this name; empty when it is among the server's sources.
    """

    source: str = ""
    threads: int | None = None
    lanes: int | None = None
    max_batch: int | None = None
    max_queue: int | None = None
    default_timeout_s: float | None = None
    slo_s: float | None = None
    response_cache_bytes: int | None = None
    share_weights: bool | None = None
    provider: str | None = None
    versions: str | None = None


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a server.

    Args:
        sources: bundles, ONNX files, or folders laid out ``<name>/<version>/model.onnx``.
        name: the model's name, where there is one source and it is a file.
        http, grpc: addresses to listen on, ``host:port`` or ``unix:/path``; port 0 takes a free one. Both answer every
            protocol; ``grpc`` is off when empty.
        tls_cert, tls_key: certificate chain and private key in PEM; both or none.
        tls_client_ca: certificates in PEM of those who may vouch for clients; with it, a client must prove who it is.
        api_keys: file of hashed API keys; with it, a caller must show one.
        insecure: whether to listen beyond loopback though callers prove nothing; the admin API is closed then.
        trusted_key: public key of those whose bundles may bring code (pickles, Python classes and steps) that is run;
            empty for nobody.
        allow_uploads: whether an administrator may send a model's files with a load request.
        shared_memory: prefix of the names of shared memory that local clients may register; empty for none at all.
        watch_s: how often the folders are looked at for new versions; 0 for never.
        versions: which versions of a folder are served: ``latest``, ``latest:2``, ``all`` or ``1,3``.
        response_cache_bytes: memory, per model, for answers that may be given again; 0 for none.
        memory_budget_bytes: for loaded models, of all workers together; those asked least recently make room for
            others; 0 for no budget: all models are loaded at start.
        pin: names of models that never make room.
        share_weights: whether workers map weights from one file, laid out at the first load in the user's cache folder.
        provider: execution provider of the runtime, as `salver doctor` lists them; ``auto`` takes the fastest present.
        max_body_bytes, max_header_bytes: largest request body and header block.
        max_incoming_bytes: bodies that are still coming in, of all connections together.
        max_decompressed_bytes: largest request body after its content coding is undone.
        max_connections: open connections; more are closed at once.
        max_streams: requests of one HTTP/2 connection in flight.
        max_json_depth: nesting of a JSON body.
        max_string_bytes: one element of a string tensor.
        idle_timeout_s: a connection without traffic is closed after this time.
        max_queue: requests that wait, per model.
        max_queue_bytes: bytes of input that wait, per model.
        default_timeout_s: deadline of a request that names none; 0 for no deadline.
        slo_s: latency objective, from arrival to answer: batches are as large as it allows, and what cannot meet it is
            refused early; 0 for none.
        max_batch: rows in one batch; 0 takes the bundle's hint, else 32.
        lanes: batches of one model that run at the same time; 0 takes the bundle's hint, else 1.
        threads: threads inside one run; 0 takes the bundle's hint, else 1.
        workers: processes that answer, watched and replaced by a supervisor; 0 for one process without a supervisor.
            Limits of connections, requests and memory hold for each.
        affinity: whether each worker keeps to its own share of the cores; takes ``workers``.
        load_timeout_s: with workers, a model that is not loaded and warmed up by then is refused.
        max_run_s: a worker in which one batch runs for longer is replaced; 0 for no limit.
        drain_s: time for open requests after SIGTERM.
        drain_delay_s: time after SIGTERM in which the server says that it is not ready, and still takes requests.
        trusted_hosts: further values of the Host header that are accepted.
        cors_origins: origins whose web pages may call.
        log_level: of Python's logging.
        models: settings of single models, by name.
        origins: name of a setting -> where its value came from, as messages name it; not itself a setting.
    """

    sources: tuple[str, ...] = ()
    name: str = ""
    http: str = "127.0.0.1:8080"
    grpc: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    api_keys: str = ""
    insecure: bool = False
    trusted_key: str = ""
    allow_uploads: bool = False
    shared_memory: str = ""
    watch_s: float = 0.0
    versions: str = "latest"
    response_cache_bytes: int = 0
    memory_budget_bytes: int = 0
    pin: tuple[str, ...] = ()
    share_weights: bool = False
    provider: str = "auto"
    max_body_bytes: int = 64 * _MIB
    max_header_bytes: int = 64 << 10
    max_incoming_bytes: int = 1024 * _MIB
    max_decompressed_bytes: int = 64 * _MIB
    max_connections: int = 10_000
    max_streams: int = 1024
    max_json_depth: int = 100
    max_string_bytes: int = 16 * _MIB
    idle_timeout_s: float = 75.0
    max_queue: int = 1024
    max_queue_bytes: int = 1024 * _MIB
    default_timeout_s: float = 0.0
    slo_s: float = 0.0
    max_batch: int = 0
    lanes: int = 0
    threads: int = 0
    workers: int = 0
    affinity: bool = False
    load_timeout_s: float = 300.0
    max_run_s: float = 60.0
    drain_s: float = 30.0
    drain_delay_s: float = 0.0
    trusted_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    log_level: str = "info"
    models: dict[str, ModelSettings] = {}
    origins: dict[str, str] = {}

    def __post_init__(self) -> None:
        _check_at_least("", self, _MINIMA)
        for name, model in self.models.items():
            _check_at_least(f"models.{name}.", model, _MINIMA)
        for versions in (self.versions, *(m.versions for m in self.models.values() if m.versions is not None)):
            VersionPolicy.parse(versions)
        if self.log_level not in LOG_LEVELS:
            raise UnknownName("log level", self.log_level, LOG_LEVELS)
        if bool(self.tls_cert) != bool(self.tls_key):
            given, missing = ("tls_cert", "tls_key") if self.tls_cert else ("tls_key", "tls_cert")
            raise InvalidArgument(f"{given} needs {missing} beside it: TLS takes a certificate and its private key")
        if self.tls_client_ca and not self.tls_cert:
            raise InvalidArgument("tls_client_ca needs tls_cert and tls_key: clients show certificates over TLS only")
        if "/" in self.shared_memory.removeprefix("/"):
            raise InvalidArgument(
                f"shared_memory: got '{self.shared_memory}', expected the beginning of a name such as /clients-, with "
                "no other slash"
            )

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> ServeSettings:
        """Read plain data, as a configuration file or keyword arguments give it.

        Raises:
            UnknownName: a setting that does not exist; the nearest valid one is offered.
            InvalidArgument: a value of the wrong type or out of range, by name.
        """
        for name in data:
            if name not in cls.__struct_fields__:
                raise UnknownName("setting of serve", name, cls.__struct_fields__)
        try:
            return msgspec.convert(dict(data), cls)
        except msgspec.ValidationError as error:
            raise InvalidArgument(f"serve: {error}") from None

    def for_model(
        self,
        name: str,
        hints: Mapping[str, Any],
        config: ModelConfig = _NOTHING_TOLD,
        asked: ModelConfig = _NOTHING_TOLD,
        tuned: Tuned | None = None,
    ) -> RunSettings:
        """The settings of one model: what a load request asked for, else its own, else the server's where given, else
        its folder's, else the tuned file's, else the bundle's hints, else the default."""
        own = self.models.get(name, ModelSettings())
        chosen = tuned.settings if tuned is not None else None
        origins: dict[str, str] = {}

        def told(key: str) -> Iterator[tuple[Any, str]]:
            yield getattr(asked, key), "the load request"
            yield getattr(own, key), f"[models.{name}]"
            yield self._given(key), self.origins.get(key, "the server's settings")
            yield getattr(config, key), "the model's folder"
            yield getattr(chosen, key, None), tuned.origin if tuned is not None else ""

        def pick(key: str, default: int) -> int:
            for value, origin in (*told(key), (hints.get(key.removeprefix("max_")), "the bundle's hint")):
                if isinstance(value, int) and value > 0:
                    origins[key] = origin
                    return value
            return default

        def first(key: str) -> Any:
            for value, origin in told(key):
                if value is not None:
                    origins[key] = origin
                    return value
            return getattr(self, key)

        return RunSettings(
            threads=pick("threads", 1),
            lanes=pick("lanes", 1),
            max_batch=pick("max_batch", 32),
            max_queue=pick("max_queue", self.max_queue),
            max_queue_bytes=self.max_queue_bytes,
            default_timeout_s=first("default_timeout_s"),
            slo_s=first("slo_s"),
            response_cache_bytes=first("response_cache_bytes"),
            share_weights=first("share_weights"),
            provider=first("provider"),
            origins=origins,
        )

    def versions_of(self, name: str, config: ModelConfig, asked: ModelConfig = _NOTHING_TOLD) -> VersionPolicy:
        """Which versions of a model are served; who wins is as in `for_model`."""
        if asked.versions is not None:
            return asked.versions
        text = self.models.get(name, ModelSettings()).versions or self._given("versions")
        if text is None and config.versions is not None:
            return config.versions
        return VersionPolicy.parse(text or self.versions)

    def _given(self, key: str) -> Any:
        """A setting of the server, or None where it is at its default, which a model's own folder may change."""
        value = getattr(self, key)
        return None if value == _DEFAULTS[key] else value


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How one model is run: `ServeSettings.for_model`, nothing left open. ``origins``: setting -> who said so; those
    at their default are absent."""

    threads: int = 1
    lanes: int = 1
    max_batch: int = 32
    max_queue: int = 1024
    max_queue_bytes: int = 1024 * _MIB
    default_timeout_s: float = 0.0
    slo_s: float = 0.0
    response_cache_bytes: int = 0
    share_weights: bool = False
    provider: str = "auto"
    origins: dict[str, str] = {}

    def __post_init__(self) -> None:
        """
        Raises:
            InvalidArgument: what a folder or a load request says is out of range.
        """
        _check_at_least("", self, _MINIMA)
        for name, count in (("lanes", self.lanes), ("threads", self.threads)):
            if count > _MAX_THREADS:
                raise InvalidArgument(f"{name}: got {count}, expected {_MAX_THREADS} or less: each is a thread")

    @property
    def explained(self) -> str:
        """What decides how fast it runs, and who said so."""
        values = {name: getattr(self, name) for name in ("threads", "lanes", "max_batch", "slo_s")}
        return ", ".join(f"{name}={value:g} ({self.origins.get(name, 'default')})" for name, value in values.items())


_MAX_THREADS: Final = 1024
_DEFAULTS: Final = {field.name: field.default for field in msgspec.structs.fields(ServeSettings)}

LOG_LEVELS: Final = ("debug", "info", "warning", "error")

_MINIMA: Final = {
    "max_body_bytes": 1,
    "max_header_bytes": 256,
    "max_incoming_bytes": 1,
    "max_decompressed_bytes": 1,
    "max_connections": 1,
    "max_streams": 1,
    "max_json_depth": 8,
    "max_string_bytes": 1,
    "watch_s": 0,
    "response_cache_bytes": 0,
    "memory_budget_bytes": 0,
    "idle_timeout_s": 0.1,
    "max_queue": 1,
    "max_queue_bytes": 1,
    "default_timeout_s": 0,
    "slo_s": 0,
    "max_batch": 0,
    "lanes": 0,
    "threads": 0,
    "workers": 0,
    "load_timeout_s": 0.1,
    "max_run_s": 0,
    "drain_s": 0,
    "drain_delay_s": 0,
}


def _check_at_least(prefix: str, settings: msgspec.Struct, minima: Mapping[str, float]) -> None:
    for name, least in minima.items():
        value = getattr(settings, name, None)
        if value is not None and not (value >= least and math.isfinite(value)):
            raise InvalidArgument(f"{prefix}{name}: got {value}, expected {least} or more")
