"""HTTP/1.1 as bytes, by the standard library: what no inference client sends, and what they hide of the answer."""

from __future__ import annotations

import base64
import http.client
import platform
import ssl
from typing import Any
from urllib.parse import urlsplit

import harness


class PlainHttp:
    """A connection kept open, opened again where the server closed it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._parts = urlsplit(settings["http"])
        self._prefix = self._parts.path.rstrip("/")
        self._headers = settings["headers"]
        self._context = None
        if self._parts.scheme == "https":
            self._context = ssl.create_default_context(cafile=settings["ca"])
            if settings["cert"]:
                self._context.load_cert_chain(settings["cert"], settings["key"])

    def exchange(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Send requests one after another over one connection.

        Args:
            requests: of ``method``, ``path``, ``headers`` and ``body`` (base64), or ``chunks`` for a body in pieces.
        """
        host, port = self._parts.hostname or "", self._parts.port
        connection = (
            http.client.HTTPSConnection(host, port, timeout=20, context=self._context)
            if self._context
            else http.client.HTTPConnection(host, port, timeout=10)
        )
        try:
            return [self._one(connection, request) for request in requests]
        finally:
            connection.close()

    def _one(self, connection: http.client.HTTPConnection, request: dict[str, Any]) -> dict[str, Any]:
        chunked = "chunks" in request
        body: Any = base64.b64decode(request.get("body", ""))
        if chunked:
            body = (base64.b64decode(c) for c in request["chunks"])
        connection.request(
            request["method"],
            self._prefix + request["path"],
            body=body or None,
            headers={**self._headers, **request.get("headers", {})},
            encode_chunked=chunked,
        )
        answer = connection.getresponse()
        got = answer.read()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        return {"status": answer.status, "headers": fields, "body": base64.b64encode(got).decode("ascii")}


harness.serve(PlainHttp, f"http.client {platform.python_version()}")
