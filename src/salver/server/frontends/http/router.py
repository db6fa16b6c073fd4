"""From a path to its handlers: a tree of segments, behind a table of paths seen before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import unquote_to_bytes

from salver.core.errors import AlreadyExists, InvalidArgument, NotFound
from salver.server.frontends.access import Scope
from salver.server.frontends.http.exchange import Exchange, Match

_MAX_SEEN: Final = 1024
_SHOWN_BYTES: Final = 200


class _Node:
    __slots__ = ("handlers", "literals", "parameter", "scopes", "verbs")

    def __init__(self) -> None:
        self.literals: dict[bytes, _Node] = {}
        self.parameter: _Node | None = None
        self.verbs: dict[bytes, _Node] = {}  # of a parameter: {model}:predict
        self.handlers: dict[bytes, Callable[[Exchange], None]] = {}
        self.scopes: dict[bytes, Scope] = {}


class Router:
    """Routes of one listener. Literal segments win over parameters with a verb, these over plain parameters; one
    trailing slash is ignored."""

    def __init__(self) -> None:
        self._root = _Node()
        self._seen: dict[bytes, Match] = {}

    def add(self, method: str, path: str, handler: Callable[[Exchange], None], scope: Scope) -> None:
        """Claim a path; see `Route`.

        Raises:
            AlreadyExists: it is taken for this method.
        """
        node = self._root
        for segment in _split(path.encode()):
            if segment.startswith(b"{"):
                verb = segment.partition(b"}:")[2]
                if verb:
                    node = node.verbs.setdefault(verb, _Node())
                else:
                    node.parameter = node.parameter or _Node()
                    node = node.parameter
            else:
                node = node.literals.setdefault(segment, _Node())
        for name in (b"GET", b"HEAD") if method == "GET" else (method.encode(),):
            if name in node.handlers:
                raise AlreadyExists(f"route {method} {path} is claimed by two frontends")
            node.handlers[name] = handler
            node.scopes[name] = scope

    def find(self, target: bytes) -> Match:
        """What a request target leads to; its query is left aside.

        Raises:
            NotFound: nothing.
            InvalidArgument: a malformed target.
        """
        found = self._seen.get(target)
        if found is not None:
            return found
        path = target.partition(b"?")[0]
        if path is not target and path in self._seen:
            return self._seen[path]
        match = self._walk(path)
        if len(self._seen) >= _MAX_SEEN:
            self._seen.clear()
        self._seen[path] = match
        return match

    def _walk(self, path: bytes) -> Match:
        if not path.startswith(b"/"):
            path = _absolute_form(path)
        params: list[str] = []
        node = self._root
        for segment in _split(path):
            literal = node.literals.get(segment)
            if literal is not None:
                node = literal
                continue
            name, _, verb = segment.rpartition(b":")
            if name and verb in node.verbs:
                node = node.verbs[verb]
                params.append(_decode(name))
            elif node.parameter is not None and segment:
                node = node.parameter
                params.append(_decode(segment))
            else:
                raise _nothing_at(path)
        if not node.handlers:
            raise _nothing_at(path)
        return Match(node.handlers, tuple(params), node.scopes)


def _split(path: bytes) -> list[bytes]:
    trimmed = path[1:-1] if path.endswith(b"/") and len(path) > 1 else path[1:]
    return trimmed.split(b"/") if trimmed else []


def _absolute_form(target: bytes) -> bytes:
    # RFC 9112, 3.2.2: a server must accept "GET http://host/path".
    for scheme in (b"http://", b"https://"):
        if target.lower().startswith(scheme):
            return b"/" + target[len(scheme) :].partition(b"/")[2]
    raise InvalidArgument(f"request target '{_show(target)}': expected a path that begins with '/'")


def _decode(segment: bytes) -> str:
    try:
        return unquote_to_bytes(segment).decode() if b"%" in segment else segment.decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"path segment '{_show(segment)}' is not UTF-8") from None


def _nothing_at(path: bytes) -> NotFound:
    return NotFound(f"nothing at '{_show(path)}'; see /docs for what there is")


def _show(raw: bytes) -> str:
    return raw[:_SHOWN_BYTES].decode("latin-1")
