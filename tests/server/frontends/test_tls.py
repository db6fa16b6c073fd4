"""Certificates and keys, and what two ends of TLS agree on."""

from __future__ import annotations

import logging
import shutil
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from salver.core.errors import FailedPrecondition, InvalidArgument, NotFound
from salver.server.frontends.tls import CertificateFiles, peer_names, server_context
from salver.server.settings import ServeSettings
from salver.testing.certificates import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> tuple[Path, Path]:
    return authority.issue("server")


def settings(pair: tuple[Path, Path], client_ca: Path | None = None) -> ServeSettings:
    return ServeSettings(tls_cert=str(pair[0]), tls_key=str(pair[1]), tls_client_ca=str(client_ca or ""))


def client_context(authority: Authority, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.path))
    context.set_alpn_protocols(["h2"])
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


def shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, host: str = "localhost"
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a connection through memory; an end that refuses raises."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (server.wrap_bio(up, down, server_side=True), client.wrap_bio(down, up, server_hostname=host))
    waiting = list(ends)
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
        if not waiting:
            return ends
    raise AssertionError("the handshake did not end")


def test_no_certificate_no_tls():
    assert server_context(ServeSettings()) is None


def test_two_ends_agree(authority, pair):
    server, client = shake_hands(server_context(settings(pair)), client_context(authority))
    assert server.selected_alpn_protocol() == "h2"
    assert client.version() == "TLSv1.3"
    assert peer_names(server) == ()


@pytest.mark.parametrize(
    ("offered", "agreed"), [(["http/1.1"], "http/1.1"), (["http/1.1", "h2"], "h2"), (["spdy/3"], None)]
)
def test_the_protocol_is_chosen_by_alpn(authority, pair, offered, agreed):
    client = client_context(authority)
    client.set_alpn_protocols(offered)
    assert shake_hands(server_context(settings(pair)), client)[0].selected_alpn_protocol() == agreed


def test_tls_1_2_has_forward_secrecy_and_authenticated_ciphers(authority, pair):
    client = client_context(authority)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    name, version, _ = shake_hands(server_context(settings(pair)), client)[0].cipher()
    assert (version, name[:5]) == ("TLSv1.2", "ECDHE")
    assert "GCM" in name or "CHACHA20" in name


@pytest.mark.parametrize("ciphers", ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA256"])
def test_weak_ciphers_are_refused(authority, pair, ciphers):
    client = client_context(authority)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(ciphers)
    with pytest.raises(ssl.SSLError, match=r"(?i)no shared cipher"):
        shake_hands(server_context(settings(pair)), client)


def test_tls_1_1_is_refused(pair):
    assert server_context(settings(pair)).minimum_version == ssl.TLSVersion.TLSv1_2


class TestClientCertificates:
    def test_names_of_a_verified_client(self, authority, pair):
        ana = authority.issue("ana", ["ana.example.org", "ana@example.org", "10.0.0.1"], ["spiffe://example.org/ana"])
        server, _ = shake_hands(server_context(settings(pair, authority.path)), client_context(authority, ana))
        assert peer_names(server) == ("ana", "ana.example.org", "ana@example.org", "spiffe://example.org/ana")

    def test_a_client_without_a_certificate_is_refused(self, authority, pair):
        with pytest.raises(ssl.SSLError, match=r"(?i)did not return a certificate"):
            shake_hands(server_context(settings(pair, authority.path)), client_context(authority))

    def test_a_client_whom_others_vouch_for_is_refused(self, authority, pair, tmp_path):
        stranger = Authority(tmp_path, "stranger").issue("ana")
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(server_context(settings(pair, authority.path)), client_context(authority, stranger))

    def test_an_expired_client_is_refused(self, authority, pair):
        late = authority.issue("late", valid_s=-60)
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            shake_hands(server_context(settings(pair, authority.path)), client_context(authority, late))


class TestFiles:
    @pytest.mark.parametrize("missing", [0, 1])
    def test_a_file_that_is_not_there(self, pair, missing, tmp_path):
        given = [*pair]
        given[missing] = tmp_path / "nowhere.pem"
        with pytest.raises(NotFound, match=rf"nowhere\.pem' \(tls_{('cert', 'key')[missing]}\)"):
            server_context(settings((given[0], given[1])))

    def test_a_client_ca_that_is_not_there(self, pair, tmp_path):
        with pytest.raises(NotFound, match=r"nowhere\.pem"):
            server_context(settings(pair, tmp_path / "nowhere.pem"))

    def test_a_key_of_another_certificate(self, authority, pair):
        other = authority.issue("other")
        with pytest.raises(InvalidArgument, match=r"other\.key.* is not the key of .*server\.pem"):
            server_context(settings((pair[0], other[1])))

    def test_an_encrypted_key(self, authority):
        with pytest.raises(InvalidArgument, match=r"locked\.key.* is encrypted; .*openssl pkey"):
            server_context(settings(authority.issue("locked", password=b"secret")))

    def test_an_expired_certificate(self, authority):
        with pytest.raises(FailedPrecondition, match=r"late\.pem' expired at \d{4}-\d\d-\d\d"):
            server_context(settings(authority.issue("late", valid_s=-60)))

    @pytest.mark.parametrize("damaged", [0, 1])
    @pytest.mark.parametrize("content", [b"", b"not PEM", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
    def test_what_is_no_pem(self, pair, damaged, content, tmp_path):
        (tmp_path / "bad.pem").write_bytes(content)
        given = [*pair]
        given[damaged] = tmp_path / "bad.pem"
        with pytest.raises(InvalidArgument, match=r"bad\.pem.*PEM"):
            server_context(settings((given[0], given[1])))

    def test_a_client_ca_that_is_no_pem(self, pair):
        with pytest.raises(InvalidArgument, match=r"server\.key' \(tls_client_ca\) holds no certificate"):
            server_context(settings(pair, pair[1]))

    def test_files_swapped(self, pair):
        with pytest.raises(InvalidArgument, match=r"tls_cert.*tls_key"):
            server_context(settings((pair[1], pair[0])))

    @pytest.mark.parametrize(
        "given", [{"tls_cert": "a"}, {"tls_key": "a"}, {"tls_client_ca": "a"}, {"tls_key": "a", "tls_client_ca": "b"}]
    )
    def test_settings_that_make_no_sense_alone(self, given):
        with pytest.raises(InvalidArgument, match="needs tls_"):
            ServeSettings(**given)

    @pytest.mark.parametrize("years", [1, 30, 900])
    def test_ends_of_all_spellings_are_read(self, authority, years):
        made = authority.issue("long", valid_s=years * 365.25 * 86400)
        from salver.server.frontends.tls import _not_after_s

        until = x509.load_pem_x509_certificate(made[0].read_bytes()).not_valid_after_utc
        assert datetime.fromtimestamp(_not_after_s(made[0].read_text()), UTC) == until


class TestRenewal:
    @pytest.fixture
    def files(self, pair, tmp_path) -> tuple[Path, Path]:
        return shutil.copy(pair[0], tmp_path / "live.pem"), shutil.copy(pair[1], tmp_path / "live.key")

    def serial(self, context: ssl.SSLContext, authority: Authority) -> str:
        return str(shake_hands(context, client_context(authority))[1].getpeercert()["serialNumber"])

    def test_a_new_pair_is_for_new_connections(self, authority, files):
        context = server_context(settings(files))
        watched = CertificateFiles(context, settings(files))
        before = self.serial(context, authority)
        watched.refresh()
        assert self.serial(context, authority) == before
        for made, live in zip(authority.issue("next"), files, strict=True):
            made.replace(live)
        watched.refresh()
        assert self.serial(context, authority) != before

    def test_half_a_pair_changes_nothing_until_the_other_half_comes(self, authority, files, caplog):
        context = server_context(settings(files))
        watched = CertificateFiles(context, settings(files))
        before = self.serial(context, authority)
        certificate, key = authority.issue("next")
        certificate.replace(files[0])
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                watched.refresh()
        assert [record.message.partition(":")[0] for record in caplog.records] == [
            "the TLS certificate stays as it was"
        ]
        assert self.serial(context, authority) == before
        key.replace(files[1])
        watched.refresh()
        assert self.serial(context, authority) != before

    def test_files_that_vanish_change_nothing(self, authority, files):
        context = server_context(settings(files))
        watched = CertificateFiles(context, settings(files))
        before = self.serial(context, authority)
        files[1].unlink()
        watched.refresh()
        assert self.serial(context, authority) == before
