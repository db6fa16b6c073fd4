"""The messages of ``inference.GRPCInferenceService``, and methods that answer one with one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import DecodeError

from salver.core.errors import InvalidArgument
from salver.server.frontends.access import Scope
from salver.server.frontends.base import Method
from salver.server.frontends.grpc.call import Call
from salver.wire.protos import ProtoSet

OIP: Final = ProtoSet("oip")
PREFIX: Final = "/inference.GRPCInferenceService/"

Parse = Callable[[bytes], Any]
"""Reads a message.

Raises:
    InvalidArgument: the bytes are no such message.
"""


def parser(name: str) -> Parse:
    """What reads a message of the set."""
    kind = OIP.message(f"inference.{name}")

    def parse(data: bytes) -> Any:
        try:
            return kind.FromString(data)
        except DecodeError:
            raise InvalidArgument(
                f"not a valid {name}: the message is cut short, is of another kind, or holds text that is not UTF-8"
            ) from None

    return parse


def unary(name: str, handle: Callable[[Any, Call], Any], scope: Scope) -> Method:
    """A method whose answer is there at once.

    Args:
        handle: makes the response message of the request message.
    """
    parse = parser(f"{name}Request")

    def answer(call: Call) -> None:
        call.respond(handle(parse(call.message), call).SerializeToString())

    return Method(PREFIX + name, answer, scope)
