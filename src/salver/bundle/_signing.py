"""Ed25519 (RFC 8032) with `cryptography`; the only file of this room that imports it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from salver.bundle.archive import translate
from salver.core.errors import AlreadyExists, InvalidArgument, PermissionDenied


def sign(message: bytes, private_key: Path, password: str | bytes | None) -> tuple[str, bytes]:
    """Key id and signature."""
    key = _load_private(private_key, _bytes(password))
    return _keyid(key.public_key()), key.sign(message)


def verify(message: bytes, signature: bytes, public_key: Path | bytes) -> bool:
    """Whether the signature is this key's signature of this message."""
    try:
        _load_public(public_key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def keyid_of(public_key: Path | bytes) -> str:
    """SHA-256 of the SubjectPublicKeyInfo, in hexadecimal."""
    return _keyid(_load_public(public_key))


def generate(folder: Path, password: str | bytes | None) -> tuple[Path, Path]:
    """Write a new key pair."""
    key = Ed25519PrivateKey.generate()
    secret = _bytes(password)
    encryption: KeySerializationEncryption = BestAvailableEncryption(secret) if secret else NoEncryption()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    pair = folder / "private.pem", folder / "public.pem"
    for path in pair:
        if path.exists():
            raise AlreadyExists(
                f"'{path}' is there already; keys are never overwritten: move it, or name another folder"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content, mode in zip(pair, (private, public), (0o600, 0o644), strict=True):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
    except OSError as error:
        raise translate(error, folder) from error
    return pair


def _load_private(path: Path, password: bytes | None) -> Ed25519PrivateKey:
    data = _read(path)
    try:
        key = load_pem_private_key(data, password)
    except TypeError:
        state = "is not encrypted, but a password was given" if password else "is encrypted: give its password"
        raise PermissionDenied(f"'{path}' {state}") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        if password:
            raise PermissionDenied(f"'{path}' cannot be read with this password") from error
        raise InvalidArgument(f"'{path}' is not a private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidArgument(f"'{path}' is a {type(key).__name__}; bundles are signed with Ed25519 keys")
    return key


def _load_public(source: Path | bytes) -> Ed25519PublicKey:
    data, what = (source, "the key") if isinstance(source, bytes) else (_read(source), f"'{source}'")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidArgument(f"{what} is not a public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidArgument(f"{what} is a {type(key).__name__}; bundles are signed with Ed25519 keys")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise translate(error, path) from error


def _keyid(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _bytes(password: str | bytes | None) -> bytes | None:
    return password.encode() if isinstance(password, str) else password
