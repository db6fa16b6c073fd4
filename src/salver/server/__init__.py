"""The serve wing: bundle in, answers out."""

from __future__ import annotations

from salver.server.app import Server, serve
from salver.server.settings import ModelSettings, ServeSettings

__all__ = ["ModelSettings", "ServeSettings", "Server", "serve"]
