"""What is demanded of answers, as functions that make checks."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from salver.testing.oip.case import Answer, Failed, Tensor
from salver.testing.oip.samples import DTYPES

Check = Callable[[Sequence[Answer]], None]
_SHOWN = 160


class Reply:
    """An HTTP answer of `plain_http`."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.status: int = value["status"]
        self.headers: dict[str, str] = value["headers"]
        self.body = base64.b64decode(value["body"])

    def json(self) -> Any:
        """The body as JSON; NaN and Infinity are taken as Python's own reader takes them."""
        return self.json_of(self.body)

    def json_of(self, text: bytes) -> Any:
        """A part of the body as JSON."""
        try:
            return json.loads(text)
        except ValueError:
            raise Failed(f"status {self.status} with a body that is no JSON: {text[:_SHOWN]!r}") from None

    def expect(self, *statuses: int) -> Reply:
        """Itself, where the status is one of these.

        Raises:
            Failed: it is another.
        """
        if self.status not in statuses:
            wanted = " or ".join(map(str, statuses))
            raise Failed(f"status {self.status}, expected {wanted}; body {self.body[:_SHOWN]!r}")
        return self

    def split(self) -> tuple[Any, bytes]:
        """The JSON head and the binary tail that Inference-Header-Content-Length separates."""
        text = self.headers.get("inference-header-content-length")
        if text is None:
            return self.json(), b""
        return self.json_of(self.body[: int(text)]), self.body[int(text) :]


def need(holds: bool, message: str) -> None:
    """
    Raises:
        Failed: with the message, where it does not hold.
    """
    if not holds:
        raise Failed(message)


def replies(answers: Sequence[Answer]) -> list[Reply]:
    """The HTTP answers of all calls, in order."""
    return [Reply(value) for answer in answers for value in answer.result()]


def http(check: Callable[[Reply], object]) -> Check:
    """A check of the last HTTP answer."""
    return lambda answers: _ignore(check(replies(answers)[-1]))


def value(check: Callable[[Any], object]) -> Check:
    """A check of the last call's value."""
    return lambda answers: _ignore(check([answer.result() for answer in answers][-1]))


def is_true(answers: Sequence[Answer]) -> None:
    """The last value is `True`."""
    got = [answer.result() for answer in answers][-1]
    need(got is True, f"got {got!r}, expected True")


def gives(*expected: Tensor) -> Check:
    """The last inference has these outputs and no others, bit for bit."""

    def check(got: Any) -> None:
        outputs = {o["name"]: Tensor.from_data(o) for o in got["outputs"]}
        need(set(outputs) == {t.name for t in expected}, f"outputs {sorted(outputs)}, expected {names(expected)}")
        for tensor in expected:
            same(outputs[tensor.name], tensor)

    return value(check)


def refused(*statuses: str) -> Check:
    """The last call fails with one of these; with any at all where none is named. Earlier calls succeed."""

    def check(answers: Sequence[Answer]) -> None:
        for answer in answers[:-1]:
            answer.result()
        last = answers[-1]
        need(bool(last.error), f"the call succeeded, expected {' or '.join(statuses) or 'a failure'}")
        need(
            not statuses or last.status in statuses,
            f"got {last.error} {last.status}: {last.message[:_SHOWN]}, expected {' or '.join(statuses)}",
        )

    return check


def client_error(reply: Reply) -> None:
    """
    Raises:
        Failed: the status is not a 4xx.
    """
    need(400 <= reply.status < 500, f"status {reply.status}, expected 4xx; body {reply.body[:_SHOWN]!r}")


def json_error() -> Check:
    """The last HTTP answer has a status of the client's fault and the body ``{"error": text}``."""

    def check(reply: Reply) -> None:
        client_error(reply)
        body = reply.json()
        text = body.get("error") if isinstance(body, dict) else None
        need(isinstance(text, str) and bool(text), f'body {reply.body[:_SHOWN]!r}, expected {{"error": "text"}}')

    return http(check)


def same(got: Tensor, expected: Tensor) -> None:
    """
    Raises:
        Failed: another datatype, shape or value; the first value that differs is shown.
    """
    need(got.datatype == expected.datatype, f"{got.name}: datatype {got.datatype}, expected {expected.datatype}")
    need(got.shape == expected.shape, f"{got.name}: shape {list(got.shape)}, expected {list(expected.shape)}")
    if got.data == expected.data:
        return
    ours, theirs = elements(expected), elements(got)
    need(len(theirs) == len(ours), f"{got.name}: {len(theirs)} elements, expected {len(ours)}")
    differing = [(i, a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if _bits(a) != _bits(b)]
    at, want, have = differing[0] if differing else (0, "", "other bytes")
    raise Failed(
        f"{got.name}[{at}] is {_shown(have)}, expected {_shown(want)} ({len(differing)} of {len(ours)} differ)"
    )


def elements(tensor: Tensor) -> list[Any]:
    """The values: bytes of BYTES, bit patterns of BF16, numpy scalars otherwise."""
    if tensor.datatype == "BYTES":
        found, start = [], 0
        while start < len(tensor.data):
            size = int.from_bytes(tensor.data[start : start + 4], "little")
            found.append(tensor.data[start + 4 : start + 4 + size])
            start += 4 + size
        return found
    return list(np.frombuffer(tensor.data, np.uint16 if tensor.datatype == "BF16" else DTYPES[tensor.datatype]))


def names(tensors: Sequence[Tensor]) -> list[str]:
    """The names, sorted."""
    return sorted(t.name for t in tensors)


def _bits(element: Any) -> bytes:
    return element if isinstance(element, bytes) else bytes(element.tobytes())


def _shown(element: Any) -> str:
    text = repr(element.item()) if isinstance(element, np.generic) else repr(element)
    return text if len(text) <= 60 else text[:57] + "..."


def _ignore(_: object) -> None:
    return None
