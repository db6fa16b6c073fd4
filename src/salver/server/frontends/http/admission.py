"""What the head of a request decides, whichever version of HTTP carried it: host, route, origin, method and caller."""

from __future__ import annotations

from salver.server.frontends.access import Peer
from salver.server.frontends.codes import HttpError
from salver.server.frontends.http.answers import allowed
from salver.server.frontends.http.exchange import Match
from salver.server.frontends.http.guard import Guard, cors_fields
from salver.server.frontends.http.router import Router


def admit(
    router: Router, guard: Guard, target: bytes, host: bytes | None, fields: dict[bytes, bytes]
) -> tuple[Match, bytes]:
    """What a request leads to, and the header lines that its origin adds to the answer.

    Raises:
        PermissionDenied: its host or origin may not call.
        NotFound: nothing is there.
        InvalidArgument: a malformed target or host.
    """
    guard.check_host(host)
    match = router.find(target)
    origin = fields.get(b"origin")
    if origin is not None and guard.check_origin(origin, host):
        return match, cors_fields(origin)
    return match, b""


def check_method(match: Match, method: bytes, target: bytes) -> None:
    """Refuse a method that the path does not have.

    Raises:
        HttpError: 405.
    """
    if method not in match.handlers and method != b"OPTIONS":
        names = allowed(match)
        raise HttpError(
            405,
            f"{method[:50].decode('latin-1')} is not for '{target[:200].decode('latin-1')}'; use {names.decode()}",
            fields=b"allow: " + names + b"\r\n",
        )


def check_caller(guard: Guard, match: Match, method: bytes, fields: dict[bytes, bytes], peer: Peer) -> None:
    """Refuse a caller who may not. Asked for every request: keys are revoked while connections stay.

    Raises:
        Unauthenticated, PermissionDenied: it may not.
    """
    scope = match.scopes.get(method)
    if scope is not None:
        guard.check_access(fields, scope, peer)
