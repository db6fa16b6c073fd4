"""Requests as bytes, made once and sent again and again: inputs, wires, and how each wire's answers are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from salver.client.blocking import Client
from salver.client.endpoint import Endpoint, parse_endpoint
from salver.client.http1 import write_request
from salver.client.load.plan import LoadPlan
from salver.client.messages import Tensor, make_call
from salver.client.protocol import Incoming, Outgoing
from salver.client.rest import RestProtocol
from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, NotFound, Unavailable
from salver.core.registry import load
from salver.core.tensors import NUMPY_DTYPES

_MAX_KINDS: Final = 1024
_WORDS: Final = ("the", "king", "tastes", "bread", "and", "wine", "from", "a", "silver", "tray")
_GRPC: Final = "salver.client.grpc:GrpcProtocol"
_TFSERVING: Final = "salver.client.load.tfserving"


class Request(NamedTuple):
    """One request, ready to be sent.

    Args:
        data: HTTP/1.1: head and body. gRPC: the body, with its prefix.
        path: of gRPC.
        fields: of gRPC, besides those of every call.
        key: equal for requests that must be answered alike.
        rows: in it.
        expected: answers; None where they are not known.
    """

    data: bytes
    path: str
    fields: tuple[tuple[str, str], ...]
    key: tuple[str, int, int]
    rows: int
    expected: Mapping[str, Array] | None


class TensorInfo(NamedTuple):
    """An input, as the server describes it; -1 for sizes that are open."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class WireFormat(NamedTuple):
    """One protocol of the data plane.

    Args:
        describe: model and version -> its inputs.
        write: model, version, inputs, parameters and time out -> a request.
        read: its answer -> outputs by name; raises `SalverError` for none.
    """

    describe: Callable[[str, str], list[TensorInfo]]
    write: Callable[[str, str, Mapping[str, Any], dict[str, Any], float | None], Outgoing]
    read: Callable[[Incoming], Mapping[str, Array]]


def endpoint_of(plan: LoadPlan) -> Endpoint:
    """Where requests go.

    Raises:
        InvalidArgument: the URL is none, or does not go with the wire.
    """
    endpoint = parse_endpoint(
        plan.url, api_key=plan.api_key, ca=plan.ca, client_cert=plan.client_cert, client_key=plan.client_key
    )
    if plan.wire and endpoint.is_grpc != plan.wire.endswith("grpc"):
        other = "grpc://" if plan.wire.endswith("grpc") else "http://"
        raise InvalidArgument(f"wire '{plan.wire}' needs a URL that begins with {other}, got '{plan.url}'")
    return endpoint


def wire_of(plan: LoadPlan, endpoint: Endpoint) -> tuple[str, WireFormat]:
    """The name of the wire, and how it is spoken."""
    name = plan.wire or ("grpc" if endpoint.is_grpc else "rest")
    if name.startswith("tfserving"):
        made: WireFormat = load(f"{_TFSERVING}:make_wire")(plan, endpoint)
        return name, made
    protocol = load(_GRPC)() if name == "grpc" else RestProtocol(binary=name == "rest")

    def write(
        model: str, version: str, inputs: Mapping[str, Any], parameters: dict[str, Any], timeout_s: float | None
    ) -> Outgoing:
        made: Outgoing = protocol.infer(make_call(model, inputs, version, (), parameters, ""), timeout_s)
        return made

    return name, WireFormat(
        lambda model, version: _describe(plan, model, version), write, lambda said: protocol.read_infer(said).outputs
    )


def _describe(plan: LoadPlan, model: str, version: str) -> list[TensorInfo]:
    with client_of(plan) as client:
        described = client.model(model, version)
    if not described["inputs"]:
        raise Unavailable(f"{plan.url} does not say what model '{model}' takes; wait until it is ready")
    return [
        TensorInfo(given["name"], given["datatype"], tuple(int(size) for size in given["shape"]))
        for given in described["inputs"]
    ]


def client_of(plan: LoadPlan) -> Client:
    """A client of the same server, for what is asked besides."""
    return Client(plan.url, api_key=plan.api_key, ca=plan.ca, client_cert=plan.client_cert, client_key=plan.client_key)


def only_model(plan: LoadPlan) -> str:
    """The name of the only model there is.

    Raises:
        NotFound: there is none, or more than one.
    """
    with client_of(plan) as client:
        names = sorted({entry["name"] for entry in client.index() if entry.get("state", "READY") == "READY"})
    if len(names) == 1:
        return str(names[0])
    raise NotFound(f"{plan.url} serves {len(names)} models ({', '.join(names[:20])}); name the one to ask")


class Requests:
    """All requests of a run, by what distinguishes them.

    Args:
        plan: of the run.
        endpoint: where they go.
    """

    def __init__(self, plan: LoadPlan, endpoint: Endpoint) -> None:
        self._plan = plan
        self._endpoint = endpoint
        self.name, self._wire = wire_of(plan, endpoint)
        self.model = plan.model or ("" if plan.trace and plan.trace[0].model else only_model(plan))
        self._kinds: dict[tuple[str, int, int, float | None], tuple[Request, ...]] = {}
        self._infos: dict[str, list[TensorInfo]] = {}

    def read(self, incoming: Incoming) -> Mapping[str, Array]:
        """The outputs of an answer.

        Raises:
            SalverError: it is none.
        """
        return self._wire.read(incoming)

    def usual(self) -> tuple[Request, ...]:
        """The requests that are sent in turn where there is no trace."""
        plan = self._plan
        return self.of(self.model, plan.rows, plan.priority, plan.timeout_s)

    def of(self, model: str, rows: int, priority: int, timeout_s: float | None) -> tuple[Request, ...]:
        """The requests that are sent in turn for these."""
        key = (model or self.model, rows, priority, timeout_s)
        found = self._kinds.get(key)
        if found is None:
            if len(self._kinds) >= _MAX_KINDS:
                self._kinds.clear()
            found = self._kinds[key] = tuple(self._make(*key, number) for number in range(self._plan.variants))
        return found

    def _make(self, model: str, rows: int, priority: int, timeout_s: float | None, variant: int) -> Request:
        plan = self._plan
        inputs, expected = self._inputs(model, rows, variant)
        parameters = {"priority": priority} if priority else {}
        outgoing = self._wire.write(model, plan.version, inputs, parameters, timeout_s)
        count = rows or len(next(iter(plan.inputs.values())))
        key = (model, rows, variant)
        if self._endpoint.is_grpc:
            body = outgoing.body if isinstance(outgoing.body, bytes) else b"".join(outgoing.body)
            fields = (*plan.fields, *outgoing.fields)
            return Request(b"\0" + len(body).to_bytes(4) + body, outgoing.path, fields, key, count, expected)
        told = Outgoing(path=outgoing.path, fields=(*plan.fields, *outgoing.fields), body=outgoing.body)
        return Request(b"".join(write_request(self._endpoint, told)), "", (), key, count, expected)

    def _inputs(self, model: str, rows: int, variant: int) -> tuple[Mapping[str, Any], Mapping[str, Array] | None]:
        plan = self._plan
        if plan.inputs:
            if not rows:
                return plan.inputs, plan.expected or None
            return _rows(plan.inputs, rows, variant), _rows(plan.expected, rows, variant) if plan.expected else None
        if not rows:
            raise InvalidArgument("rows: got 0, which sends the inputs whole, but no inputs were given")
        if model not in self._infos:
            self._infos[model] = self._wire.describe(model, plan.version)
        rng = np.random.default_rng((plan.seed, variant, rows))
        return {
            info.name: make_up(info, rows, rng, plan.int_range, plan.free_size) for info in self._infos[model]
        }, None


def _rows(arrays: Mapping[str, Array], rows: int, variant: int) -> dict[str, Array]:
    """So many rows, beginning where the variant before ended; from the start again after the last."""
    return {name: array[(np.arange(rows) + variant * rows) % len(array)] for name, array in arrays.items()}


def make_up(
    info: TensorInfo, rows: int, rng: np.random.Generator, int_range: tuple[int, int], free_size: int
) -> Array | Tensor:
    """Elements for an input: floats from 0 to 1, integers within the range, words.

    Args:
        rows: size of the first dimension, where it is open.
        free_size: of the others that are.
    """
    open_sizes = (rows, *([free_size] * len(info.shape)))
    shape = tuple(size if size >= 0 else open_sizes[min(at, 1)] for at, size in enumerate(info.shape))
    dtype = NUMPY_DTYPES.get(info.datatype)
    if dtype is None:
        raise InvalidArgument(f"input '{info.name}': unknown datatype '{info.datatype}'; give the inputs")
    if info.datatype == "BYTES":
        texts = np.empty(shape, dtype=object)
        for at in np.ndindex(shape):
            texts[at] = " ".join(rng.choice(_WORDS, 6))
        return texts
    if info.datatype == "BF16":
        bits = (rng.random(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return Tensor(bits, "BF16")
    if dtype.kind == "f":
        return rng.random(shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    limits = np.iinfo(dtype)
    low, high = max(int_range[0], int(limits.min)), min(int_range[1], int(limits.max))
    return rng.integers(low, high, shape, dtype=dtype, endpoint=True)
