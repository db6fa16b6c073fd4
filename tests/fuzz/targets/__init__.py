"""Everything that takes bytes from a socket, one target each."""

from __future__ import annotations

from tests.fuzz.targets.base import Target
from tests.fuzz.targets.clients import ClientGrpc, ClientRest
from tests.fuzz.targets.codecs import (
    Coding,
    Elements,
    Hpack,
    Jsonio,
    Messages,
    OipGrpc,
    OipRest,
    TfservingGrpc,
    TfservingRest,
    Uploads,
)
from tests.fuzz.targets.connections import Http1, Http2, Methods, Routes

TARGETS: dict[str, type[Target]] = {
    target.name: target
    for target in (
        Http1, Http2, Hpack, Messages, Methods, Routes, Jsonio, Elements, Coding, OipRest, OipGrpc, TfservingRest,
        TfservingGrpc, Uploads, ClientRest, ClientGrpc,
    )
}  # fmt: skip
"""By name."""

__all__ = ["TARGETS", "Target"]
