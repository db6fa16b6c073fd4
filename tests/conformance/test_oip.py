"""Every real client that is here, against `salver serve`, over every case that it can run; TLS off and on.

`make clients` makes an environment for each client whose pins clash with ours, and runs this with all of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from salver.testing.oip import CLIENTS, Client, Report, Target, run

ENVIRONMENTS = Path(__file__).parents[2] / "build" / "clients"
EACH = pytest.mark.parametrize("client", CLIENTS, ids=[client.name for client in CLIENTS])
OVER_TLS = [client for client in CLIENTS if client.tls]  # ovmsclient.http knows http:// alone
EACH_TLS = pytest.mark.parametrize("client", OVER_TLS, ids=[client.name for client in OVER_TLS])

SAMPLE = [client for client in CLIENTS if client.name in ("plain-http", "tritonclient.http", "kserve.grpc", "grpcio")]
EACH_OF_SAMPLE = pytest.mark.parametrize("client", SAMPLE, ids=[client.name for client in SAMPLE])


def interpreter(client: Client) -> str:
    """The client's own environment where there is one, else this interpreter."""
    own = ENVIRONMENTS / client.name.partition(".")[0] / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def check(client: Client, target: Target, matching: str = "") -> None:
    report = run(target, {client.name: interpreter(client)}, clients=[client.name], matching=matching)
    if client.name in report.absent:
        pytest.skip(f"{client.name}: {report.absent[client.name]}; `make clients` installs it")
    assert report.outcomes
    assert told(report) == ""


def told(report: Report) -> str:
    return "\n".join(f"{outcome.case}: {outcome.failure}" for outcome in report.failures)


@EACH
def test_every_case_passes(client: Client, plain_target: Target) -> None:
    check(client, plain_target)


@EACH_TLS
def test_every_case_passes_over_tls(client: Client, tls_target: Target) -> None:
    check(client, tls_target)


@EACH_OF_SAMPLE
def test_clients_can_show_a_certificate(client: Client, mtls_target: Target) -> None:
    check(client, mtls_target, "model")


def test_without_a_certificate_nothing_is_answered(mtls_target: Target) -> None:
    bare = Target(http=mtls_target.http, grpc=mtls_target.grpc, ca=mtls_target.ca)
    report = run(bare, clients=["plain-http"], matching="rest/infer/flat")
    assert [outcome.failure != "" for outcome in report.outcomes] == [True]


@EACH_OF_SAMPLE
def test_clients_can_send_a_key(client: Client, keyed_target: Target) -> None:
    check(client, keyed_target, "model")


def test_without_a_key_nothing_is_answered(keyed_target: Target) -> None:
    bare = Target(http=keyed_target.http, grpc=keyed_target.grpc)
    report = run(bare, clients=["plain-http"], matching="rest/infer/flat")
    assert ["status 401" in outcome.failure for outcome in report.outcomes] == [True]
