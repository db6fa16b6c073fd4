"""The file of API keys (``keys.toml``): who may do what, by hashed key or by the name on a client certificate.

Keys are 256 random bits, so one fast hash keeps them as well as a slow one would: there is nothing to guess. The file
holds no key, and reading it lets nobody in; writing it does.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import tomllib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, time
from typing import Final, Literal

import msgspec

from salver.core.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    SalverError,
    Unauthenticated,
    UnknownName,
)
from salver.server.frontends.access import Peer, Scope

Grantable = Literal["infer", "metadata", "metrics", "admin"]
GRANTABLE: Final = ("infer", "metadata", "metrics", "admin")
VERIFIED: Final[frozenset[Scope]] = frozenset({"infer", "metadata", "metrics"})
"""What a client certificate grants where the file maps none."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_PREFIX: Final = "salver_"  # lets scanners for leaked secrets know a key when they see one
_LOOK_S: Final = 1.0
_LOG: Final = logging.getLogger(__name__)


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key.

    Args:
        name: of whoever holds it, for people.
        sha256: of the key's text, in hexadecimal.
        scopes: what it grants; none implies another.
        expires: when it ends, with its time zone.
    """

    name: str
    sha256: str
    scopes: tuple[Grantable, ...]
    expires: datetime | None = None


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a verified client certificate grants.

    Args:
        name: its common name or one of its alternative names; ``*`` for every verified certificate.
        scopes: what it grants; those of all its names add up.
    """

    name: str
    scopes: tuple[Grantable, ...]


class Keyring(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file says."""

    keys: tuple[ApiKey, ...] = ()
    certificates: tuple[Certificate, ...] = ()


def read_keyring(path: Path) -> Keyring:
    """Read and check a file of keys.

    Raises:
        NotFound: there is none.
        PermissionDenied: it may not be read.
        InvalidArgument: it is not what it should be; the message names the entry.
    """
    try:
        keyring = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Keyring)
    except FileNotFoundError:
        raise NotFound(f"no such file of API keys: '{path}'; make one with: salver keys --api NAME -o {path}") from None
    except OSError as error:
        raise PermissionDenied(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise InvalidArgument(f"{path}: {error}") from None
    for key in keyring.keys:
        _check_key(key, path)
    _check_once((key.name for key in keyring.keys), "key", path)
    _check_once((key.sha256 for key in keyring.keys), "sha256", path)
    _check_once((certificate.name for certificate in keyring.certificates), "certificate", path)
    return keyring


def add_key(path: Path, name: str, scopes: Iterable[str], expires: datetime | None = None) -> str:
    """Make a key and append its hash to the file, which is made where there is none (for its owner's eyes only).

    Returns:
        The key: the only time that it is seen.

    Raises:
        UnknownName: an unknown scope.
        InvalidArgument: a name that is none, no scope, or a file that is wrong already.
        AlreadyExists: the file has a key of that name.
        PermissionDenied: the file cannot be written.
    """
    scopes = tuple(scopes)
    for scope in scopes:
        if scope not in GRANTABLE:
            raise UnknownName("scope", scope, GRANTABLE)
    key = _PREFIX + secrets.token_urlsafe(32)
    lines = ["[[keys]]", f'name = "{name}"', f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"']
    lines.append("scopes = [" + ", ".join(f'"{scope}"' for scope in scopes) + "]")
    if expires is not None:
        lines.append(f"expires = {expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")
    entry = msgspec.convert(tomllib.loads("\n".join(lines)), Keyring).keys[0] if _NAME.fullmatch(name) else None
    if entry is None:
        raise InvalidArgument(f"'{name}' is no name for a key; use letters, digits and . _ @ -, at most 64")
    _check_key(entry, path)
    exists = path.exists()
    if exists and any(known.name == name for known in read_keyring(path).keys):
        raise AlreadyExists(f"{path} has a key named '{name}' already; remove its entry first, or use another name")
    text = ("\n" if exists else "") + "\n".join(lines) + "\n"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab") as file:
            file.write(text.encode())
    except OSError as error:
        raise PermissionDenied(f"{path}: cannot be written: {error.strerror}") from None
    return key


class KeyringFile:
    """The file as it is now: it is looked at again when a caller is checked, at most once a second, so that a key is
    revoked or added without a restart. A file that has become wrong is reported, and the last good one holds.

    Raises:
        SalverError: as `read_keyring`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._take(read_keyring(path))
        self._look_again_s = monotonic() + _LOOK_S

    def by_key(self, fields: Mapping[bytes, bytes], peer: Peer) -> frozenset[Scope] | None:
        """What an API key grants (`Authenticator`)."""
        self._refresh()
        key = fields.get(b"x-api-key")
        if key is None:
            line = fields.get(b"authorization")
            if line is None:
                return None
            scheme, _, key = line.partition(b" ")
            if scheme.lower() != b"bearer":
                raise Unauthenticated("the Authorization field must be 'Bearer KEY'")
        digest = hashlib.sha256(key.strip()).digest()
        # The table is asked for a part of the hash only; that takes as long whatever the rest is.
        found = self._keys.get(digest[:8])
        if found is None or not hmac.compare_digest(found.digest, digest):
            raise Unauthenticated("this API key is not known here")
        if time() >= found.until_s:
            raise Unauthenticated(f"API key '{found.name}' has expired")
        return found.scopes

    def by_certificate(self, fields: Mapping[bytes, bytes], peer: Peer) -> frozenset[Scope] | None:
        """What a client certificate grants (`Authenticator`), on a listener where every TLS client has shown one."""
        if not peer.is_tls:
            return None
        self._refresh()
        if not self._certificates:
            return VERIFIED
        granted = self._certificates.get("*", frozenset())
        for name in peer.names:
            granted |= self._certificates.get(name, frozenset())
        return granted

    def _refresh(self) -> None:
        now_s = monotonic()
        if now_s < self._look_again_s:
            return
        self._look_again_s = now_s + _LOOK_S
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._take(read_keyring(self._path))
        except SalverError as error:
            _LOG.error("the API keys stay as they were: %s", error.message)
        else:
            _LOG.info("the API keys in %s were read again", self._path)

    def _take(self, keyring: Keyring) -> None:
        held = [_HeldKey(key) for key in keyring.keys]
        self._keys = {key.digest[:8]: key for key in held}
        self._certificates = {c.name: frozenset[Scope](c.scopes) for c in keyring.certificates}


class _HeldKey:
    __slots__ = ("digest", "name", "scopes", "until_s")

    def __init__(self, key: ApiKey) -> None:
        self.name = key.name
        self.digest = bytes.fromhex(key.sha256)
        self.scopes: frozenset[Scope] = frozenset(key.scopes)
        self.until_s = float("inf") if key.expires is None else key.expires.timestamp()


def _check_key(key: ApiKey, path: Path) -> None:
    if not _NAME.fullmatch(key.name):
        raise InvalidArgument(f"{path}: '{key.name}' is no name for a key; use letters, digits and . _ @ -, at most 64")
    if not re.fullmatch(r"[0-9a-f]{64}", key.sha256):
        raise InvalidArgument(f"{path}: key '{key.name}': sha256 must be 64 hexadecimal digits, in lower case")
    if not key.scopes:
        raise InvalidArgument(f"{path}: key '{key.name}' has no scopes; give it some of {', '.join(GRANTABLE)}")
    if key.expires is not None and key.expires.tzinfo is None:
        raise InvalidArgument(
            f"{path}: key '{key.name}': expires lacks its time zone; write {key.expires.isoformat()}Z for UTC"
        )


def _check_once(values: Iterable[str], what: str, path: Path) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise InvalidArgument(f"{path}: {what} '{value}' is there twice")
        seen.add(value)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino
