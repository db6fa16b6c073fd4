"""Whether answers are right: those that are expected, or else the same to the same request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from salver.client.load.link import Verdict
from salver.client.load.plan import LoadPlan
from salver.client.load.requests import Request
from salver.client.protocol import Incoming
from salver.core.arrays import Array
from salver.core.errors import SalverError

_MAX_KNOWN: Final = 4096


class AnswerCheck:
    """Compares answers; bytes that were right before are right again.

    Args:
        plan: its tolerance.
        read: an answer -> outputs by name.
    """

    def __init__(self, plan: LoadPlan, read: Callable[[Incoming], Mapping[str, Array]]) -> None:
        self._tolerance = plan.tolerance
        self._read = read
        self._known: dict[tuple[str, int, int], tuple[bytes, Mapping[str, Array]]] = {}

    def is_right(self, request: Request, verdict: Verdict, body: bytes) -> bool:
        """Whether this is the answer to that request."""
        known = self._known.get(request.key)
        if known is not None and known[0] == body:
            return True
        try:
            outputs = self._read(Incoming(status=verdict.status, fields=verdict.fields, body=body))
        except SalverError:
            return False
        expected = request.expected or (known[1] if known is not None else outputs)
        if not same(outputs, expected, self._tolerance):
            return False
        if known is None and len(self._known) < _MAX_KNOWN:
            self._known[request.key] = (body, outputs)
        return True


def same(outputs: Mapping[str, Array], expected: Mapping[str, Array], tolerance: float) -> bool:
    """Whether all that is expected is there: equal shapes, numbers within the tolerance, texts equal."""
    for name, wanted in expected.items():
        got = outputs.get(name)
        if got is None or got.shape != wanted.shape:
            return False
        if wanted.dtype.kind in "OUS":
            if [_text(value) for value in got.ravel()] != [_text(value) for value in wanted.ravel()]:
                return False
        elif not np.allclose(got, wanted, rtol=tolerance, atol=tolerance, equal_nan=True):
            return False
    return True


def _text(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
