"""Answers that no honest server gives: a call fails with an error of ours."""

from __future__ import annotations

import pytest

from salver.client.grpc import GrpcProtocol
from salver.client.http2 import _Call
from salver.client.protocol import Incoming
from salver.core.errors import Internal, ResourceExhausted
from salver.wire.http2 import Head, Stream


def test_a_wait_of_five_thousand_digits():
    fields = {b"grpc-message": b"later", b"grpc-retry-pushback-ms": b"9" * 5000}
    with pytest.raises(ResourceExhausted, match="later") as caught:
        GrpcProtocol().read_infer(Incoming(status=8, fields=fields, body=b""))
    assert caught.value.retry_after_s == float("inf")


def test_a_configuration_that_is_not_there():
    assert GrpcProtocol().read("config", Incoming(status=0, fields={}, body=b"")) == {}


def test_a_status_of_five_thousand_digits(stream):
    found = []
    _Call(found.append).on_headers(stream, Head([(b":status", b"200"), (b"grpc-status", b"1" * 5000)]), True)
    assert isinstance(found[0], Internal)


@pytest.fixture
def stream():
    return Stream(1, 65_535, 65_535, None)
