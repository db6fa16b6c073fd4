"""For tests of TLS: an authority of one's own, and certificates that it issues, as files."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

_HOSTS = ("localhost", "127.0.0.1", "::1")


class Authority:
    """An authority whose own certificate is the file `path`.

    Args:
        folder: where all files are written.
        name: of the authority, and of its file.
    """

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name(name)
        now = datetime.now(UTC)
        certificate = (
            _builder(self._name, self._name, self._key, now, now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(certificate.public_bytes(Encoding.PEM))

    def issue(
        self,
        name: str,
        hosts: Sequence[str] = _HOSTS,
        uris: Sequence[str] = (),
        *,
        valid_s: float = 3600.0,
        password: bytes = b"",
    ) -> tuple[Path, Path]:
        """Certificate and private key of a server or a client.

        Args:
            name: common name, and the files' name.
            hosts, uris: alternative names; addresses are recognized.
            valid_s: how long from now on; negative for one that has expired.
            password: encrypts the key.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        names = [*map(_alternative, hosts), *map(x509.UniformResourceIdentifier, uris)]
        builder = _builder(_common_name(name), self._name, key, now, now + timedelta(seconds=valid_s))
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = self._folder / f"{name}.pem"
        certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        encryption: KeySerializationEncryption = BestAvailableEncryption(password) if password else NoEncryption()
        private = self._folder / f"{name}.key"
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        return certificate, private


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=30))
        .not_valid_after(until)
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.RFC822Name(host) if "@" in host else x509.DNSName(host)
