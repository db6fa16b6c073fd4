"""The cases: data and small checks. Every demand has its source; where sources disagree, every reading passes."""

from __future__ import annotations

from typing import Final

from salver.testing.oip.case import Case
from salver.testing.oip.table import grpc, infer, rest, rest_binary, rest_errors, service, tfserving

CASES: Final[tuple[Case, ...]] = tuple(
    case for module in (service, infer, rest, rest_errors, rest_binary, grpc, tfserving) for case in module.cases()
)
