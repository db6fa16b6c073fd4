"""JSON as servers of models speak it: strict and fast, with NaN and Infinity as the one extension.

RFC 8259 has no NaN and no infinities. Triton and TF-Serving read and write the tokens ``NaN``, ``Infinity`` and
``-Infinity``, as Python's `json` does; so do we. The fast path is msgspec's, which knows no such tokens: it fails on
input that has them, and writes ``null``; only then is the slow path taken.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any, Final

import msgspec
import numpy as np

from salver.core.errors import InvalidArgument, TooLarge

ENCODER: Final = msgspec.json.Encoder()
# The end stands for a quote that is missing, or every escaped quote before it would be tried as a beginning.
_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_STEPS: Final = np.zeros(256, np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1
_TRUNCATED: Final = "Input data was truncated"


@functools.lru_cache(maxsize=512)
def decoder_of(kind: Any) -> msgspec.json.Decoder[Any]:
    """The decoder of a type, made once."""
    return msgspec.json.Decoder(kind)


def decode(data: bytes | msgspec.Raw, kind: Any, where: str = "request") -> Any:
    """Read JSON as a type.

    Args:
        where: what is being read, for messages.

    Raises:
        InvalidArgument: not JSON, not UTF-8, or not of that type; says at which byte or field.
    """
    try:
        return decoder_of(kind).decode(data)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{where}: {error}") from None
    except UnicodeDecodeError:
        raise _not_utf8(bytes(data), where) from None
    except RecursionError:
        raise InvalidArgument(f"{where}: the JSON is nested too deeply") from None
    except msgspec.DecodeError as error:
        body = bytes(data)
        if not _is_utf8(body):
            raise _not_utf8(body, where) from None
        if b"NaN" in body or b"Infinity" in body:
            return convert(parse_tolerant(body, where), kind, where)
        raise InvalidArgument(f"{where}: not valid JSON: {_at(error, body)}") from None


def check_depth(body: bytes, max_depth: int, where: str = "request") -> None:
    """Refuse JSON that is nested deeper than ``max_depth``. Costs next to nothing where there are few brackets.

    Args:
        body: JSON, perhaps malformed.

    Raises:
        TooLarge: it is nested too deeply.
    """
    if body.count(b"[") + body.count(b"{") <= max_depth:
        return
    bare = np.frombuffer(_STRINGS.sub(b"", body), np.uint8)
    if int(np.cumsum(_STEPS[bare], dtype=np.int64).max(initial=0)) > max_depth:
        raise TooLarge(
            f"{where}: the JSON is nested more than {max_depth} deep, the limit (max_json_depth)",
            limit="max_json_depth",
        )


def parse_tolerant(body: bytes, where: str = "request") -> Any:
    """Read JSON that may hold NaN and Infinity, as plain data.

    Raises:
        InvalidArgument: it is not even that.
    """
    try:
        value = json.loads(body.decode())
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise _not_utf8(body, where) from None
    except UnicodeEncodeError:
        raise InvalidArgument(f"{where}: a \\u escape is half a surrogate pair") from None
    except RecursionError:
        raise InvalidArgument(f"{where}: the JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"{where}: not valid JSON: {error.msg} (character {error.pos})") from None
    except ValueError as error:  # a number with more digits than Python converts
        raise InvalidArgument(f"{where}: not valid JSON: {error}") from None
    return value


def convert(value: Any, kind: Any, where: str = "request") -> Any:
    """Plain data as a type, by the same rules as `decode`.

    Raises:
        InvalidArgument: it is not of that type.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{where}: {error}") from None


def encode(value: Any) -> bytes:
    """Write JSON, with NaN and Infinity as tokens. ``None`` may only stand where it is meant."""
    data = ENCODER.encode(value)
    if b"null" in data:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return data


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _not_utf8(body: bytes, where: str) -> InvalidArgument:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return InvalidArgument(f"{where}: not UTF-8: byte 0x{body[error.start]:02x} at position {error.start}")
    return InvalidArgument(f"{where}: not UTF-8")


def _at(error: Exception, body: bytes) -> str:
    text = str(error)
    if not body.strip():
        return "it is empty"
    if text == _TRUNCATED:
        return f"it ends early, or a \\u escape is half a surrogate pair (byte {len(body)})"
    return text
