"""The words of the suite: a case, the calls it makes, the answers they got, the failure it may end in."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import msgspec


class Failed(Exception):
    """What a server did, against what the case demands. The message says both."""


class Tensor(msgspec.Struct, frozen=True):
    """A tensor as bytes, so that comparisons are bit for bit.

    Args:
        datatype: an OIP name, such as FP32.
        data: little-endian row-major; a string is its length in four bytes and its bytes.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes

    def to_data(self) -> dict[str, Any]:
        """For a client script."""
        text = base64.b64encode(self.data).decode("ascii")
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape), "data": text}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Tensor:
        """From a client script."""
        return cls(data["name"], data["datatype"], tuple(data["shape"]), base64.b64decode(data["data"]))


class Call(msgspec.Struct, frozen=True):
    """One call of a client.

    Args:
        op: the method of the client's script.
        arguments: plain data.
    """

    op: str
    arguments: dict[str, Any] = {}


class Answer(msgspec.Struct, frozen=True):
    """What a client got.

    Args:
        value: plain data, where the call succeeded.
        error: name of the exception, empty where it succeeded.
        status: the HTTP status or the name of the gRPC code that the exception carries.
    """

    value: Any = None
    error: str = ""
    status: str = ""
    message: str = ""

    def result(self) -> Any:
        """The value.

        Raises:
            Failed: the call failed.
        """
        if self.error:
            raise Failed(f"got {self.error} {self.status}: {self.message}".replace(" :", ":"))
        return self.value


class Case(msgspec.Struct, frozen=True):
    """One demand on a server.

    Args:
        id: stable, unique, with slashes.
        says: what is demanded, in one line.
        source: the specification's section or the client's source that demands it.
        group: the part of the protocol it belongs to, one of `GROUPS`.
        wants: what a client must be able to do to run it; every client that can runs it.
        calls: made in this order.
        check: given their answers, raises `Failed`.
    """

    id: str
    says: str
    source: str
    group: str
    wants: frozenset[str]
    calls: tuple[Call, ...]
    check: Callable[[Sequence[Answer]], None]


GROUPS = {
    "core": "health, metadata, inference and errors of OIP v2",
    "numbers": "values that a text or a cast may spoil",
    "binary": "the binary tensor data extension of REST",
    "compression": "gzip and deflate, both ways",
    "classification": "the classification extension",
    "repository": "the model repository extension",
    "statistics": "the statistics extension",
    "configuration": "the model configuration extension",
    "streaming": "ModelStreamInfer",
    "grpc": "status codes, deadlines, health and reflection of gRPC",
    "tf-serving": "TensorFlow Serving, REST and gRPC",
    "kserve-v1": "KServe's protocol v1",
    "mlflow": "MLflow's scoring protocol",
}
