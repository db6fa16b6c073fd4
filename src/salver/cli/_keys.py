"""`salver keys`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from salver.bundle import generate_keys
from salver.cli._output import print_rich
from salver.core.errors import InvalidArgument
from salver.server.frontends.keyring import add_key

_SCOPES = ("infer", "metadata")


def run(
    *, output: Path | None = None, api: str = "", scopes: tuple[str, ...] | None = None, expires_s: float | None = None
) -> None:
    """Make a key pair in a folder, or an API key whose hash is appended to a file."""
    if api:
        _make_api_key(output or Path("keys.toml"), api, _SCOPES if scopes is None else scopes, expires_s)
        return
    if scopes is not None or expires_s is not None:
        raise InvalidArgument("--scopes and --expires are of API keys: name who gets one with --api NAME")
    private, public = generate_keys(output or Path())
    print_rich(
        f"wrote {private} (keep it secret: salver sign BUNDLE --key {private})",
        f"wrote {public} (give it away: salver verify BUNDLE --key {public})",
    )


def _make_api_key(file: Path, name: str, scopes: tuple[str, ...], expires_s: float | None) -> None:
    """The key alone goes to standard output, so that a script can take it from there."""
    expires = None if expires_s is None else datetime.now(UTC) + timedelta(seconds=expires_s)
    key = add_key(file, name, scopes, expires)
    print(key)
    until = "" if expires is None else f", until {expires:%Y-%m-%d %H:%M} UTC"
    print(
        f"added '{name}' ({', '.join(scopes)}{until}) to {file}, as a hash: keep the key, it is not shown again",
        file=sys.stderr,
    )
