"""Who is asking, and what they may: scopes, peers, and the decision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, get_args

import msgspec

from salver.core.errors import PermissionDenied, Unauthenticated

Scope = Literal["open", "infer", "metadata", "metrics", "admin"]
"""What a route needs. ``open`` needs nothing: liveness and readiness, which probes ask without keys."""

EVERYTHING: Final[frozenset[Scope]] = frozenset(get_args(Scope))
NOTHING: Final[frozenset[Scope]] = frozenset({"open"})


class Peer(msgspec.Struct, frozen=True):
    """The other end of a connection.

    Args:
        address: as shown in logs.
        uid: user of the process on the other end of a Unix socket; None elsewhere.
        names: subject and alternative names of the certificate that the client proved to have (mTLS).
        is_tls: whether the connection is encrypted.
        client: whose requests these are when clients take turns: the certificate's first name, else the user of a Unix
            socket, else the host, whatever the connection.
    """

    address: str = ""
    uid: int | None = None
    names: tuple[str, ...] = ()
    is_tls: bool = False
    client: str = ""


Authenticator = Callable[[Mapping[bytes, bytes], Peer], frozenset[Scope] | None]
"""Works out what a caller may do from one kind of credential, given header fields by lower-case name and the peer. None
where the caller shows none of that kind.

Raises:
    Unauthenticated: it shows one, and it is wrong.
"""


class Access:
    """What callers of one listener may do.

    Args:
        authenticators: kinds of credentials that are accepted; what they grant adds up.
        anonymous: what a caller may do without any; counts only where there are no authenticators.
    """

    def __init__(self, authenticators: Sequence[Authenticator] = (), anonymous: frozenset[Scope] = EVERYTHING) -> None:
        self._authenticators = tuple(authenticators)
        self.anonymous = NOTHING if authenticators else anonymous
        """Scopes that everybody has, so that nobody need be asked."""

    def check_access(self, fields: Mapping[bytes, bytes], scope: Scope, peer: Peer) -> None:
        """Refuse a caller who may not.

        Args:
            fields: header fields of the request, or metadata of the call, by lower-case name.
            scope: what the route or method needs.

        Raises:
            Unauthenticated: no credential, or a wrong one.
            PermissionDenied: a right one that lacks the scope, which is named.
        """
        if scope in self.anonymous:
            return
        if not self._authenticators:
            raise PermissionDenied(
                f"scope '{scope}' is closed while the server listens beyond loopback and callers prove nothing "
                "(--insecure); give it API keys (--api-keys) or client certificates (--tls-client-ca)"
            )
        granted: frozenset[Scope] | None = None
        for authenticator in self._authenticators:
            found = authenticator(fields, peer)
            if found is not None:
                granted = found if granted is None else granted | found
        if granted is None:
            raise Unauthenticated("an API key is needed: send 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'")
        if scope not in granted:
            raise PermissionDenied(
                f"scope '{scope}' is needed here; this caller has {', '.join(sorted(granted)) or 'none'}"
            )
