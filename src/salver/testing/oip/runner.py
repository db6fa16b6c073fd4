"""Runs the cases: every client that is there, every case that it can run, one answer each."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from salver.testing.oip.case import Case, Failed
from salver.testing.oip.drivers import CLIENTS, NO_ANSWER, Client, Driver, Target, Unavailable
from salver.testing.oip.table import CASES

_PATIENCE: Final = 3  # a server that answers none of a group would cost a time-out for each of its cases


class Outcome(msgspec.Struct, frozen=True):
    """How one case ended with one client.

    Args:
        failure: what the server did; empty where the case passed.
    """

    case: str
    client: str
    group: str
    failure: str = ""


class Report(msgspec.Struct, frozen=True):
    """What a run found.

    Args:
        clients: the versions of the clients that were driven, by name.
        absent: why the others were not, by name. Their cases are neither passed nor failed.
        outcomes: in the order of clients, then cases.
    """

    clients: dict[str, str]
    absent: dict[str, str]
    outcomes: tuple[Outcome, ...]

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """What did not pass."""
        return tuple(outcome for outcome in self.outcomes if outcome.failure)


def run(
    target: Target,
    pythons: Mapping[str, str] | None = None,
    *,
    clients: Collection[str] = (),
    without: Collection[str] = (),
    matching: str = "",
    seen: Callable[[Outcome], None] | None = None,
) -> Report:
    """Run the suite.

    Args:
        pythons: the interpreter that has a client, by the client's name or the part of it before the first dot; this
            interpreter otherwise.
        clients: only these; all where empty.
        without: groups of cases to leave out, for a server that does not offer them.
        matching: only cases whose id holds this text.
        seen: called with each outcome as it comes.
    """
    versions: dict[str, str] = {}
    absent: dict[str, str] = {}
    outcomes: list[Outcome] = []
    for client in CLIENTS:
        if clients and client.name not in clients:
            continue
        chosen = [c for c in cases_of(client) if c.group not in without and matching in c.id]
        reason = why_not(client, target)
        if reason or not chosen:
            absent[client.name] = reason or "no case chosen"
            continue
        try:
            with Driver(client, target, interpreter(client, pythons or {})) as driver:
                versions[client.name] = driver.version
                for outcome in _outcomes(driver, client, chosen):
                    outcomes.append(outcome)
                    if seen is not None:
                        seen(outcome)
        except Unavailable as error:
            absent[client.name] = str(error)
    return Report(versions, absent, tuple(outcomes))


def cases_of(client: Client, cases: Sequence[Case] = CASES) -> list[Case]:
    """The cases that a client can run."""
    return [case for case in cases if case.wants <= client.can]


def why_not(client: Client, target: Target) -> str:
    """Why a client cannot be run against a server; empty where it can."""
    if not target.has(client.protocol):
        return f"the server's {client.protocol} address was not given"
    if target.ca and not client.tls:
        return "this client cannot speak TLS"
    return ""


def interpreter(client: Client, pythons: Mapping[str, str]) -> str:
    """The interpreter that has a client."""
    return pythons.get(client.name) or pythons.get(client.name.partition(".")[0]) or sys.executable


def judge(driver: Driver, case: Case) -> str:
    """Run one case: what is wrong, or empty."""
    try:
        case.check([driver.call(call) for call in case.calls])
    except Failed as failure:
        return str(failure)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        return f"an answer of another shape than the protocol's: {type(error).__name__}: {error}"
    return ""


def _outcomes(driver: Driver, client: Client, cases: Iterable[Case]) -> Iterable[Outcome]:
    silent: Counter[str] = Counter()
    for case in cases:
        if silent[case.group] == _PATIENCE:
            failure = f"not tried: {_PATIENCE} cases of this group got no answer"
        else:
            failure = judge(driver, case)
            silent[case.group] += NO_ANSWER in failure
        yield Outcome(case.id, client.name, case.group, failure)


def totals(report: Report) -> dict[str, dict[str, tuple[int, int]]]:
    """(passed, run) by client and group."""
    found: dict[str, dict[str, list[int]]] = {}
    for outcome in report.outcomes:
        counts = found.setdefault(outcome.client, {}).setdefault(outcome.group, [0, 0])
        counts[0] += not outcome.failure
        counts[1] += 1
    return {client: {group: (c[0], c[1]) for group, c in groups.items()} for client, groups in found.items()}


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain data."""
    data: dict[str, Any] = msgspec.to_builtins(report)
    return data
