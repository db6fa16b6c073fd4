from __future__ import annotations

import base64
import hashlib
import stat
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from salver.bundle import Bundle, Contents, generate_keys, seal
from salver.bundle.bundle import _content, write_bundle
from salver.bundle.dsse import Envelope, EnvelopeSignature, sign_manifest
from salver.core.config import canonical_json
from salver.core.errors import (
    AlreadyExists,
    CorruptArtifact,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)

Keys = tuple[Path, Path]


def test_a_signed_bundle_verifies_with_its_key(bundle: Bundle, keys: Keys) -> None:
    signed = bundle.sign(keys[0])
    assert signed.digest == bundle.digest
    report = Bundle.open(bundle.path).verify(keys[1])
    assert report.ok
    assert report.verified_key == signed.signatures[0].keyid
    assert report.verified_key in report.assurance
    assert signed.verify(keys[1].read_bytes(), replay=False).replay is None


def test_the_envelope_is_dsse(bundle: Bundle, keys: Keys) -> None:
    """Checked with nothing of ours: PAE as the DSSE protocol spells it, Ed25519, key id = SHA-256 of the SPKI."""
    envelope = bundle.sign(keys[0]).signatures[0]
    payload = base64.b64decode(envelope.payload)
    kind = envelope.payload_type
    pae = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    public = load_pem_public_key(keys[1].read_bytes())
    public.verify(base64.b64decode(envelope.signatures[0].sig), pae)
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert envelope.keyid == hashlib.sha256(spki).hexdigest()
    assert msgspec.json.decode(payload)["digest"] == bundle.digest


def test_without_a_signature_the_report_says_what_it_does_not_show(bundle: Bundle, keys: Keys) -> None:
    assert "not who sealed it" in bundle.verify().assurance
    with pytest.raises(PermissionDenied, match="not signed"):
        bundle.verify(keys[1])
    assert "not who sealed it" in bundle.sign(keys[0]).verify().assurance


def test_another_key_is_refused(bundle: Bundle, keys: Keys, tmp_path: Path) -> None:
    _, other = generate_keys(tmp_path / "other")
    with pytest.raises(PermissionDenied, match="not signed by key"):
        bundle.sign(keys[0]).verify(other)


def test_two_signers_and_signing_twice(bundle: Bundle, keys: Keys, tmp_path: Path) -> None:
    second = generate_keys(tmp_path / "second")
    once = bundle.sign(keys[0]).path.read_bytes()
    assert bundle.sign(keys[0]).path.read_bytes() == once
    both = bundle.sign(second[0])
    assert both.verify(keys[1], replay=False).verified_key != both.verify(second[1], replay=False).verified_key
    assert len(both.signatures) == 2


def test_an_envelope_for_another_bundle_is_refused(
    bundle: Bundle, contents: Contents, keys: Keys, tmp_path: Path
) -> None:
    other = seal(tmp_path / "other.salver", msgspec.structs.replace(contents, card="other")).sign(keys[0])
    foreign = canonical_json(other.signatures[0])
    with pytest.raises(CorruptArtifact, match="another bundle"):
        write_bundle(tmp_path / "forged.salver", _content(bundle._layout), (foreign,))


def forged(bundle: Bundle, envelope: Envelope) -> Bundle:
    layout = Bundle.open(bundle.path)._layout
    return Bundle.of_layout(write_bundle(bundle.path, _content(layout), (canonical_json(envelope),)))


def test_a_signature_that_is_not_valid_is_refused(bundle: Bundle, keys: Keys) -> None:
    genuine = msgspec.json.decode(sign_manifest(bundle._layout.subject, keys[0]), type=Envelope)
    wrong = EnvelopeSignature(keyid=genuine.keyid, sig=base64.b64encode(bytes(64)).decode())
    with pytest.raises(PermissionDenied, match="not valid"):
        forged(bundle, msgspec.structs.replace(genuine, signatures=(wrong,))).verify(keys[1])
    broken = EnvelopeSignature(keyid=genuine.keyid, sig="%%%")
    with pytest.raises(CorruptArtifact, match="damaged"):
        forged(bundle, msgspec.structs.replace(genuine, signatures=(broken,))).verify(keys[1])


def test_an_altered_payload_is_refused(bundle: Bundle, keys: Keys) -> None:
    genuine = msgspec.json.decode(sign_manifest(bundle._layout.subject, keys[0]), type=Envelope)
    with pytest.raises(CorruptArtifact, match="payload was altered"):
        forged(bundle, msgspec.structs.replace(genuine, payload=base64.b64encode(b"{}").decode()))


def test_a_lying_key_id_does_not_matter(bundle: Bundle, keys: Keys) -> None:
    genuine = msgspec.json.decode(sign_manifest(bundle._layout.subject, keys[0]), type=Envelope)
    renamed = EnvelopeSignature(keyid="00" * 32, sig=genuine.signatures[0].sig)
    report = forged(bundle, msgspec.structs.replace(genuine, signatures=(renamed,))).verify(keys[1], replay=False)
    assert report.verified_key == genuine.keyid


def test_keys(tmp_path: Path) -> None:
    private, public = generate_keys(tmp_path)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert public.read_text().startswith("-----BEGIN PUBLIC KEY-----")
    before = private.read_bytes()
    with pytest.raises(AlreadyExists, match="never overwritten"):
        generate_keys(tmp_path)
    assert private.read_bytes() == before


def test_a_key_with_a_password(bundle: Bundle, tmp_path: Path, keys: Keys) -> None:
    private, public = generate_keys(tmp_path / "locked", password="secret")
    with pytest.raises(PermissionDenied, match="give its password"):
        bundle.sign(private)
    with pytest.raises(PermissionDenied, match="with this password"):
        bundle.sign(private, "wrong")
    with pytest.raises(PermissionDenied, match="not encrypted"):
        bundle.sign(keys[0], "secret")
    assert bundle.sign(private, "secret").verify(public, replay=False).verified_key


def test_keys_that_cannot_be_used(bundle: Bundle, keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        bundle.sign(tmp_path / "missing.pem")
    with pytest.raises(InvalidArgument, match="not a private key in PEM"):
        bundle.sign(keys[1])
    with pytest.raises(InvalidArgument, match="not a public key in PEM"):
        bundle.verify(b"nonsense")
    other = tmp_path / "ec.pem"
    ec = generate_private_key(SECP256R1())
    other.write_bytes(ec.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(InvalidArgument, match="Ed25519"):
        bundle.sign(other)
    with pytest.raises(InvalidArgument, match="Ed25519"):
        bundle.verify(ec.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def test_a_wrapped_model_cannot_be_signed(contents: Contents, keys: Keys) -> None:
    wrapped = Bundle.wrap(contents.model, "raw", "a raw ONNX file")
    with pytest.raises(FailedPrecondition, match="not a bundle"):
        wrapped.sign(keys[0])
    with pytest.raises(PermissionDenied, match="bare model"):
        wrapped.verify(keys[1])
