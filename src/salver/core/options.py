"""The table of options: one row per option, from which flags, environment variables, `salver.toml` keys, their checks
and their documentation all follow."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Kind = Literal["text", "path", "integer", "boolean", "duration", "size", "margin", "list"]


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One option.

    Args:
        name: as in ``--max-body``, ``SALVER_MAX_BODY`` and ``max-body = ...``, with underscores.
        kind: what its text is converted to: ``duration`` to seconds, ``size`` to bytes, ``list`` to a tuple of texts.
        verbs: the verbs that take it.
        help: one sentence, without a full stop.
        example: a value, as a user would write it.
        default: what holds when nobody says anything, in words a user understands.
        field: the keyword of the Python function behind the verb; the name when empty. Quantities carry their unit.
        choices: the only values a text may have; empty for any.
        minimum: the smallest value of a number or quantity.
        short: a one-letter flag, ``-o``.
        per_model: whether ``[models.NAME]`` tables take it.
        flag_only: whether it can only be given as a flag, because it belongs to one command and not to a place.
    """

    name: str
    kind: Kind
    verbs: tuple[str, ...]
    help: str
    example: str = ""
    default: str = ""
    field: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    short: str = ""
    per_model: bool = False
    flag_only: bool = False

    @property
    def flag(self) -> str:
        """``--max-body``."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """``SALVER_MAX_BODY``."""
        return "SALVER_" + self.name.upper()

    @property
    def key(self) -> str:
        """The keyword argument that its value becomes."""
        return self.field or self.name


_BUILD: Final = ("build",)
_SERVE: Final = ("serve",)
_EVERY: Final = ("build", "inspect", "verify", "report", "serve", "predict", "doctor", "keys", "sign")

OPTIONS: Final = (
    # build
    Option(
        name="data",
        kind="text",
        verbs=_BUILD,
        example="val.npz",
        default="(required)",
        help="Validation examples: a .npz, .npy, .csv, .jsonl or .parquet file, an image folder, or module:function",
    ),
    Option(
        name="label",
        kind="text",
        verbs=_BUILD,
        example="species",
        default="(found by name)",
        help="The column of the data that holds the labels",
    ),
    Option(
        name="metric",
        kind="text",
        verbs=_BUILD,
        example="macro-f1",
        default="(accuracy where there are labels, else agreement)",
        help="What must not get worse: accuracy, top-5, macro-f1, auc, mse, mae, r2, agreement, or module:function",
    ),
    Option(
        name="max_drop",
        kind="margin",
        verbs=_BUILD,
        example="1%",
        default="(0.5pp where the metric is a share, such as accuracy; else 1%)",
        help="How much worse is still not worse, in percentage points (0.5pp) or relative (1%)",
    ),
    Option(
        name="objective",
        kind="text",
        verbs=_BUILD,
        example="size",
        default="latency",
        choices=("latency", "throughput", "size"),
        help="What to improve",
    ),
    Option(
        name="batch",
        kind="integer",
        verbs=_BUILD,
        example="8",
        default="1",
        minimum=1,
        help="Rows per run at which latency is measured",
    ),
    Option(
        name="calibration",
        kind="text",
        verbs=_BUILD,
        example="calib.npz",
        default="(a part of the data, then used for nothing else)",
        help="Examples that calibrate quantization",
    ),
    Option(
        name="budget",
        kind="duration",
        verbs=_BUILD,
        example="5m",
        default="5m",
        field="budget_s",
        minimum=0,
        help="Time for search and certification; the best so far is sealed",
    ),
    Option(
        name="labels",
        kind="path",
        verbs=_BUILD,
        example="labels.txt",
        default="(none)",
        help="Class names, one per line, in the order of the output's last dimension",
    ),
    Option(
        name="golden",
        kind="text",
        verbs=_BUILD,
        example="synthetic",
        default="real",
        choices=("real", "synthetic"),
        help="Whether golden requests are taken from the data, or made up because the data must not travel",
    ),
    Option(
        name="trust_pickle",
        kind="boolean",
        verbs=_BUILD,
        flag_only=True,
        default="false",
        help="Load a pickled model, which runs code from the file",
    ),
    Option(
        name="seed",
        kind="integer",
        verbs=_BUILD,
        example="7",
        default="0",
        minimum=0,
        help="Seed of the split into calibration, steering and certification examples",
    ),
    Option(
        name="cache",
        kind="path",
        verbs=_BUILD,
        example="build-cache",
        default="(the user's cache folder)",
        help="Folder where finished trials are kept, so that a build resumes",
    ),
    Option(
        name="threads",
        kind="integer",
        verbs=("build", "serve", "verify"),
        example="2",
        default="(build: 1; otherwise what the bundle advises)",
        minimum=1,
        per_model=True,
        help="Threads inside one operator",
    ),
    # serve
    Option(
        name="http",
        kind="text",
        verbs=_SERVE,
        example="0.0.0.0:8080",
        default="127.0.0.1:8080",
        help="Address of the HTTP listener; port 0 takes a free one",
    ),
    Option(
        name="grpc",
        kind="text",
        verbs=_SERVE,
        example="127.0.0.1:8081",
        default="(off)",
        help="Address of the gRPC listener; port 0 takes a free one",
    ),
    Option(
        name="tls_cert",
        kind="path",
        verbs=_SERVE,
        example="server.pem",
        default="(no TLS)",
        help="Certificate chain in PEM with which both listeners speak TLS",
    ),
    Option(
        name="tls_key",
        kind="path",
        verbs=_SERVE,
        example="server.key",
        default="(no TLS)",
        help="Private key of the certificate, in PEM",
    ),
    Option(
        name="tls_client_ca",
        kind="path",
        verbs=_SERVE,
        example="clients.pem",
        default="(clients need no certificate)",
        help="Certificates in PEM of those who vouch for clients; every client must then show a certificate",
    ),
    Option(
        name="api_keys",
        kind="path",
        verbs=_SERVE,
        example="keys.toml",
        default="(callers need no key)",
        help="File of hashed API keys and what each may do; see 'salver keys'",
    ),
    Option(
        name="insecure",
        kind="boolean",
        verbs=_SERVE,
        default="false",
        help="Listen beyond loopback without API keys or client certificates; the admin API stays closed",
    ),
    Option(
        name="allow_uploads",
        kind="boolean",
        verbs=_SERVE,
        default="false",
        help="Take model files that an administrator sends with a load request",
    ),
    Option(
        name="shared_memory",
        kind="text",
        verbs=_SERVE,
        example="/clients-",
        default="(off)",
        help="Prefix of the shared memory that local clients of a Unix socket may register",
    ),
    Option(
        name="watch",
        kind="duration",
        verbs=_SERVE,
        example="5s",
        default="(never)",
        field="watch_s",
        minimum=0,
        help="How often folders of models are looked at for new versions",
    ),
    Option(
        name="versions",
        kind="text",
        verbs=_SERVE,
        example="all",
        default="latest",
        per_model=True,
        help="Versions of a folder that are served: latest, latest:2, all, or 1,3",
    ),
    Option(
        name="response_cache",
        kind="size",
        verbs=_SERVE,
        example="64MiB",
        default="0",
        field="response_cache_bytes",
        minimum=0,
        per_model=True,
        help="Memory per model for answers that may be given again to an equal request",
    ),
    Option(
        name="name",
        kind="text",
        verbs=("build", "serve"),
        flag_only=True,
        example="digits",
        default="(the file's name)",
        help="The model's name; to serve, only where there is one source",
    ),
    Option(
        name="max_body",
        kind="size",
        verbs=_SERVE,
        example="8MiB",
        default="64MiB",
        field="max_body_bytes",
        minimum=1,
        help="Largest request body; a larger one is refused with 413, unread",
    ),
    Option(
        name="max_header",
        kind="size",
        verbs=_SERVE,
        example="32KiB",
        default="64KiB",
        field="max_header_bytes",
        minimum=256,
        help="Largest request head; a larger one is refused with 431",
    ),
    Option(
        name="max_connections",
        kind="integer",
        verbs=_SERVE,
        example="1000",
        default="10000",
        minimum=1,
        help="Open connections; one more is closed at once",
    ),
    Option(
        name="max_incoming",
        kind="size",
        verbs=_SERVE,
        example="256MiB",
        default="1GiB",
        field="max_incoming_bytes",
        minimum=1,
        help="Request bodies that are still coming in, of all connections together; one more is refused with 429",
    ),
    Option(
        name="max_decompressed",
        kind="size",
        verbs=_SERVE,
        example="8MiB",
        default="64MiB",
        field="max_decompressed_bytes",
        minimum=1,
        help="Largest request body after its content coding is undone; a larger one is refused with 413",
    ),
    Option(
        name="max_streams",
        kind="integer",
        verbs=_SERVE,
        example="100",
        default="1024",
        minimum=1,
        help="Requests of one HTTP/2 connection in flight",
    ),
    Option(
        name="max_json_depth",
        kind="integer",
        verbs=_SERVE,
        example="20",
        default="100",
        minimum=8,
        help="Nesting of a JSON body",
    ),
    Option(
        name="max_string",
        kind="size",
        verbs=_SERVE,
        example="1MiB",
        default="16MiB",
        field="max_string_bytes",
        minimum=1,
        help="One element of a string tensor",
    ),
    Option(
        name="idle_timeout",
        kind="duration",
        verbs=_SERVE,
        example="2m",
        default="75s",
        field="idle_timeout_s",
        minimum=0,
        help="Time after which a connection without traffic is closed",
    ),
    Option(
        name="default_timeout",
        kind="duration",
        verbs=_SERVE,
        example="500ms",
        default="(no deadline)",
        field="default_timeout_s",
        minimum=0,
        per_model=True,
        help="Deadline of a request that names none",
    ),
    Option(
        name="max_queue",
        kind="integer",
        verbs=_SERVE,
        example="200",
        default="1024",
        minimum=1,
        per_model=True,
        help="Requests of one model that may wait; one more is refused with 429 and Retry-After",
    ),
    Option(
        name="max_queue_memory",
        kind="size",
        verbs=_SERVE,
        example="256MiB",
        default="1GiB",
        field="max_queue_bytes",
        minimum=1,
        help="Bytes of input of one model that may wait",
    ),
    Option(
        name="max_batch",
        kind="integer",
        verbs=_SERVE,
        example="16",
        default="(what the bundle advises)",
        minimum=1,
        per_model=True,
        help="Most rows merged into one run; 1 turns batching off",
    ),
    Option(
        name="lanes",
        kind="integer",
        verbs=_SERVE,
        example="2",
        default="(what the bundle advises)",
        minimum=1,
        per_model=True,
        help="Batches of one model that may run at the same time",
    ),
    Option(
        name="drain",
        kind="duration",
        verbs=_SERVE,
        example="1m",
        default="30s",
        field="drain_s",
        minimum=0,
        help="Time that requests in progress are given when the server is told to stop",
    ),
    Option(
        name="drain_delay",
        kind="duration",
        verbs=_SERVE,
        example="5s",
        default="0s",
        field="drain_delay_s",
        minimum=0,
        help="Time after being told to stop in which the server says that it is not ready, and still takes requests",
    ),
    Option(
        name="trusted_hosts",
        kind="list",
        verbs=_SERVE,
        example="models.example.org",
        default="(loopback names)",
        help="Host headers that are answered, besides loopback; * answers any",
    ),
    Option(
        name="cors_origins",
        kind="list",
        verbs=_SERVE,
        example="https://app.example.org",
        default="(none)",
        help="Origins whose web pages may call the server",
    ),
    Option(
        name="log_level",
        kind="text",
        verbs=_SERVE,
        example="debug",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="The least severe messages that are logged",
    ),
    # keys
    Option(
        name="api",
        kind="text",
        verbs=("keys",),
        flag_only=True,
        example="dashboard",
        default="(a pair to sign bundles with)",
        help="Make an API key instead, for the holder of this name",
    ),
    Option(
        name="scopes",
        kind="list",
        verbs=("keys",),
        flag_only=True,
        example="infer,metrics",
        default="infer,metadata",
        help="What the API key grants: infer, metadata, metrics, admin",
    ),
    Option(
        name="expires",
        kind="duration",
        verbs=("keys",),
        flag_only=True,
        example="90d",
        default="(never)",
        field="expires_s",
        minimum=1,
        help="Time after which the API key is refused",
    ),
    # artifacts
    Option(
        name="output",
        kind="path",
        verbs=("build", "report", "predict", "keys"),
        short="-o",
        flag_only=True,
        example="digits.salver",
        default="(named after the input, in the current folder)",
        help="File to write",
    ),
    Option(
        name="key",
        kind="path",
        verbs=("verify", "sign"),
        example="public.pem",
        default="(none)",
        help="Ed25519 key in PEM: the public one to verify a signature, the private one to sign",
    ),
    Option(
        name="sign_key",
        kind="path",
        verbs=_BUILD,
        example="private.pem",
        default="(none)",
        help="Private Ed25519 key in PEM with which the bundle is signed",
    ),
    # every verb
    Option(
        name="config",
        kind="path",
        verbs=_EVERY,
        example="salver.toml",
        default="(./salver.toml where there is one)",
        help="File of settings",
    ),
    Option(
        name="json",
        kind="boolean",
        verbs=("build", "inspect", "verify", "predict", "doctor"),
        flag_only=True,
        default="false",
        help="Write one JSON document to standard output",
    ),
    Option(
        name="debug",
        kind="boolean",
        verbs=_EVERY,
        default="false",
        help="Show the traceback of an error",
    ),
)


def options_of(verb: str) -> tuple[Option, ...]:
    """The options that a verb takes, in the order of the table."""
    return tuple(option for option in OPTIONS if verb in option.verbs)
