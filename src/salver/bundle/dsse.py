"""Signatures beside the content: DSSE envelopes (https://github.com/secure-systems-lab/dsse) over the OCI descriptor of
the model's manifest. The cryptography is in `_signing`, loaded only when something is signed or verified."""

from __future__ import annotations

import base64
import binascii
import importlib
from pathlib import Path
from typing import Any, Final

import msgspec

from salver.bundle.manifest import DESCRIPTOR, Descriptor, decode_exact
from salver.core.config import canonical_json
from salver.core.errors import CorruptArtifact, PermissionDenied

_MODULE: Final = "salver.bundle._signing"


class EnvelopeSignature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One signature; ``keyid`` is the SHA-256 of the public key's SubjectPublicKeyInfo, in hexadecimal."""

    keyid: str
    sig: str


class Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A DSSE envelope; ``payload`` and ``sig`` are base64."""

    payload: str
    payload_type: str
    signatures: tuple[EnvelopeSignature]

    @property
    def keyid(self) -> str:
        """Which key signed, as the envelope says; only `verify_envelope` proves it."""
        return self.signatures[0].keyid


def sign_manifest(subject: Descriptor, private_key: Path, password: str | bytes | None = None) -> bytes:
    """An envelope for a manifest, signed with an Ed25519 key. The same key and manifest give the same bytes.

    Raises:
        NotFound, InvalidArgument, PermissionDenied: no such file, no Ed25519 key in PEM, or a wrong password.
    """
    payload = _payload(subject)
    keyid, signature = _crypto().sign(_pae(payload), private_key, password)
    return canonical_json(
        Envelope(
            payload=base64.b64encode(payload).decode(),
            payload_type=DESCRIPTOR,
            signatures=(EnvelopeSignature(keyid=keyid, sig=base64.b64encode(signature).decode()),),
        )
    )


def read_envelope(data: bytes, subject: Descriptor, what: str) -> Envelope:
    """Read an envelope that stands in a bundle.

    Raises:
        CorruptArtifact: it is damaged, or says something of another manifest.
    """
    envelope = decode_exact(data, Envelope, what)
    if envelope.payload_type != DESCRIPTOR or envelope.payload != base64.b64encode(_payload(subject)).decode():
        raise CorruptArtifact(f"{what} was made for another bundle, or its payload was altered")
    return envelope


def verify_envelope(envelopes: tuple[Envelope, ...], public_key: Path | bytes) -> str:
    """Find the signature of a key among envelopes that `read_envelope` gave.

    Returns:
        The key's id.

    Raises:
        NotFound, InvalidArgument: no such file, or no Ed25519 public key in PEM.
        PermissionDenied: not signed, not by this key, or the signature is not valid.
    """
    crypto = _crypto()
    keyid: str = crypto.keyid_of(public_key)
    if not envelopes:
        raise PermissionDenied("the bundle is not signed; sign it with 'salver sign', or verify it without a key")
    named = False
    for envelope in envelopes:
        try:
            payload = base64.b64decode(envelope.payload, validate=True)
            signature = base64.b64decode(envelope.signatures[0].sig, validate=True)
        except binascii.Error as error:
            raise CorruptArtifact(f"the signature of key {envelope.keyid} is damaged: {error}") from None
        named = named or envelope.keyid == keyid
        if crypto.verify(_pae(payload), signature, public_key):
            return keyid
    if named:
        raise PermissionDenied(f"the signature of key {keyid} is not valid: do not trust this bundle")
    signers = ", ".join(e.keyid for e in envelopes)
    raise PermissionDenied(f"the bundle is not signed by key {keyid}; it is signed by {signers}")


def generate_keys(folder: Path, password: str | bytes | None = None) -> tuple[Path, Path]:
    """Make a new Ed25519 key pair: ``private.pem`` (PKCS #8, readable by its owner only, encrypted where a password is
    given) and ``public.pem``.

    Raises:
        AlreadyExists: a key is there already; it is never overwritten.
    """
    pair: tuple[Path, Path] = _crypto().generate(folder, password)
    return pair


def _payload(subject: Descriptor) -> bytes:
    plain = Descriptor(
        media_type=subject.media_type, digest=subject.digest, size=subject.size, artifact_type=subject.artifact_type
    )
    return canonical_json(plain)


def _pae(payload: bytes) -> bytes:
    """DSSE v1 pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(DESCRIPTOR), DESCRIPTOR.encode(), len(payload), payload)


def _crypto() -> Any:
    return importlib.import_module(_MODULE)
