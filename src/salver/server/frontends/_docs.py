"""``/openapi.json`` and ``/docs``: the API of the models served, and a page to try it, which loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from salver import __version__
from salver.server.engine.base import ServedModel
from salver.server.frontends.base import Frontend, Route, Services
from salver.server.frontends.http.exchange import Exchange
from salver.wire import jsonio

_HTML: Final = b"content-type: text/html; charset=utf-8\r\n"


class DocsFrontend(Frontend):
    """OpenAPI 3.1, a try-it page that works offline, and ``/`` that leads there."""

    name = "docs"

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._described: tuple[Any, bytes] = (None, b"")

    def routes(self) -> Sequence[Route]:
        return (
            Route("GET", "/", self._root, "open"),
            Route("GET", "/docs", self._page, "metadata"),
            Route("GET", "/openapi.json", self._openapi, "metadata"),
        )

    def _root(self, exchange: Exchange) -> None:
        if b"text/html" in exchange.fields.get(b"accept", b""):
            exchange.respond(b"", b"location: /docs\r\n", 307)
            return
        about = {
            "name": "salver",
            "status": "alive",  # what clients of KServe's protocol v1 look for here
            "version": __version__,
            "docs": "/docs",
            "api": "/openapi.json",
        }
        exchange.respond(jsonio.encode(about))

    def _openapi(self, exchange: Exchange) -> None:
        state = [(m.name, m.version, m.state) for m in self.services.engine.models()]
        if self._described[0] != state:
            self._described = (state, jsonio.encode(self.describe()))
        exchange.respond(self._described[1])

    def describe(self) -> dict[str, Any]:
        """The OpenAPI document of all frontends of the listener."""
        models = _by_name(self.services.engine.models())
        paths: dict[str, Any] = {}
        for frontend in self.services.frontends:
            paths |= frontend.openapi(models)
        info = {"title": "Salver", "version": __version__, "description": _describe_models(models)}
        return {"openapi": "3.1.0", "info": info, "paths": paths}

    def _page(self, exchange: Exchange) -> None:
        page = Path(__file__).with_name("docs.html").read_bytes()
        exchange.respond(page, _HTML + _policy(page))


def _by_name(models: Sequence[ServedModel]) -> list[ServedModel]:
    """The model that answers for each name: a ready one, of the last version."""
    chosen: dict[str, ServedModel] = {}
    for model in models:
        if model.state == "READY" or model.name not in chosen:
            chosen[model.name] = model
    return list(chosen.values())


def _describe_models(models: Sequence[ServedModel]) -> str:
    lines = [
        f"- **{m.name}** version {m.version}: {m.state}{'' if m.tested else ', untested (a raw model, never sealed)'}"
        for m in models
    ]
    return "Models served:\n" + "\n".join(lines)


def _policy(page: bytes) -> bytes:
    """A content security policy that lets the page run its own script and style, by digest, and call this server."""
    script, style = (
        base64.b64encode(hashlib.sha256(re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)[0]).digest())
        for tag in (b"script", b"style")
    )
    return (
        b"content-security-policy: default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'; script-src 'sha256-" + script + b"'; style-src 'sha256-" + style + b"'\r\n"
        b"x-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\n"
    )
