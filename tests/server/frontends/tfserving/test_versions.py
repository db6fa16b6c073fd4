"""Versions as numbers: those that protobuf can carry, and those it cannot."""

from __future__ import annotations

import pytest

from salver.server.frontends.tfserving.predict import model_spec
from salver.server.frontends.tfserving.versions import number_of


@pytest.mark.parametrize(
    ("version", "number"),
    [("1", 1), ("0", 0), (str((1 << 63) - 1), (1 << 63) - 1), (str(1 << 63), None), ("9" * 5000, None), ("a1b2", None)],
)
def test_versions_that_are_no_number_are_left_out(version, number):
    assert number_of(version) == number
    spec = model_spec("m", version)
    assert spec.HasField("version") == (number is not None)
    assert spec.version.value == (number or 0)
