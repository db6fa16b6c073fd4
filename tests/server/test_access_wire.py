"""Access, end to end: every route and method, over every protocol, with keys and without; TLS and certificates."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import logging
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from salver.core.errors import FailedPrecondition
from salver.server import Server
from salver.server.frontends import keyring
from salver.server.frontends.keyring import GRANTABLE, add_key
from salver.testing.certificates import Authority
from tests.server.wire import CALL, INFER, RPC, Http1, Http2, http1, http2, running, write_text_model

PAGE = (Path(__file__).parents[2] / "docs" / "server" / "access.md").read_text(encoding="utf-8")
STRINGS = b'{"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"data":["a"]}]}'
LOAD = "/v2/repository/models/none/load"


def listed() -> list[tuple[str, str]]:
    """Scope, and route or method, of all that the page lists; no model has the name that is put in."""
    found = []
    for scope, block in re.findall(r"### (\w+)\n\n```\n(.*?)```", PAGE, re.DOTALL):
        for line in block.splitlines():
            plain = re.sub(r"\[.*\]", "", line)
            found.append((scope, re.sub(r"\{\w+\}", "none", plain)))
    return found


LISTED = listed()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A key for each scope, and the file."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    return {"file": str(file), **{scope: add_key(file, f"for-{scope}", (scope,)) for scope in GRANTABLE}}


@pytest.fixture(scope="module")
def server(folder: Path, keys: dict[str, str]) -> Iterator[Server]:
    with running(folder, api_keys=keys["file"]) as server:
        yield server


def ask(server: Server, target: str, **fields: str) -> set[str]:
    """Outcomes of a route or method over all protocols that carry it."""
    method, _, path = target.rpartition(" ")
    if not method:
        return {http2(server, path, bytes(5), **CALL, **fields)}
    body = b"" if method == "GET" else b"{}"
    return {speak(server, path, body, method, **fields) for speak in (http1, http2)}


@pytest.mark.parametrize(("scope", "target"), LISTED)
def test_without_a_key_only_what_is_open_answers(server, scope, target):
    outcomes = ask(server, target)
    if scope == "open":
        assert not outcomes & {"401", "403", "UNAUTHENTICATED", "PERMISSION_DENIED"}
    else:
        assert outcomes == {"401" if " " in target else "UNAUTHENTICATED"}


@pytest.mark.parametrize(("scope", "target"), LISTED)
def test_a_key_opens_what_its_scope_says_and_no_more(server, keys, scope, target):
    for granted in GRANTABLE:
        outcomes = ask(server, target, authorization=f"Bearer {keys[granted]}")
        if scope in ("open", granted):
            assert not outcomes & {"401", "403", "UNAUTHENTICATED", "PERMISSION_DENIED"}, granted
        else:
            assert outcomes == {"403" if " " in target else "PERMISSION_DENIED"}, granted


@pytest.mark.parametrize("speak", [http1, http2])
def test_keys_may_stand_in_either_field(server, keys, speak):
    for key, status in ((keys["infer"], "200"), (keys["metrics"], "403"), ("salver_wrong", "401")):
        assert speak(server, INFER, STRINGS, authorization=f"Bearer {key}") == status
        assert speak(server, INFER, STRINGS, x_api_key=key) == status


def test_the_answer_says_what_is_needed(server, keys):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    with contextlib.closing(connection):
        connection.request("POST", INFER, STRINGS)
        answer = connection.getresponse()
        assert answer.getheader("www-authenticate") == "Bearer"
        assert "Authorization: Bearer" in json.loads(answer.read())["error"]
        connection.request("POST", INFER, STRINGS, {"X-Api-Key": keys["metrics"]})
        answer = connection.getresponse()
        assert json.loads(answer.read())["error"] == "scope 'infer' is needed here; this caller has metrics"


def test_a_preflight_needs_no_key(folder, keys):
    """Browsers send none; the request that follows does."""
    with running(folder, api_keys=keys["file"], cors_origins=("https://app.example",)) as server:
        fields = {"Origin": "https://app.example", "Access_Control_Request_Method": "POST"}
        assert http1(server, INFER, b"", "OPTIONS", **fields) == "204"
        assert http1(server, INFER, STRINGS, Origin="https://app.example") == "401"


class TestRevocation:
    """A connection stays open while its key is revoked, and sends the same bytes again."""

    @pytest.fixture
    def revocable(self, folder, tmp_path, monkeypatch) -> Iterator[tuple[Server, Path, str]]:
        monkeypatch.setattr(keyring, "_LOOK_S", 0.0)
        file = tmp_path / "keys.toml"
        key = add_key(file, "someone", ("infer",))
        with running(folder, api_keys=str(file)) as server:
            yield server, file, key

    def test_http1(self, revocable):
        server, file, key = revocable
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {key}\r\nContent-Length: {len(STRINGS)}\r\n\r\n"
        with Http1(server) as connection:
            assert [connection.outcome(head.encode() + STRINGS) for _ in range(3)] == ["200"] * 3
            file.write_text("")
            assert connection.outcome(head.encode() + STRINGS) == "401"

    @pytest.mark.parametrize(("path", "fields"), [(INFER, {}), (RPC + "ModelInfer", CALL)])
    def test_http2(self, revocable, path, fields):
        server, file, key = revocable
        streams = itertools.count(1, 2)
        with Http2(server) as connection:

            def outcome() -> str:
                connection.request(next(streams), path, STRINGS, authorization=f"Bearer {key}", **fields)
                return connection.outcome()

            assert not {outcome() for _ in range(3)} & {"401", "UNAUTHENTICATED"}
            file.write_text("")
            assert outcome() in ("401", "UNAUTHENTICATED")


def test_logs_hold_no_key(folder, keys, caplog):
    with caplog.at_level(logging.DEBUG), running(folder, api_keys=keys["file"], log_level="debug") as server:
        for key in (keys["infer"], keys["infer"] + "x"):
            http1(server, INFER, STRINGS, X_Api_Key=key)
            http2(server, INFER, STRINGS, authorization=f"Bearer {key}")
            http2(server, RPC + "ModelInfer", STRINGS, authorization=f"Bearer {key}", **CALL)
    assert keys["infer"][7:] not in caplog.text


class TestBeyondLoopback:
    @pytest.mark.parametrize("settings", [{"http": "0.0.0.0:0", "grpc": ""}, {"grpc": "0.0.0.0:0"}])
    def test_a_server_without_keys_does_not_start(self, folder, settings):
        with pytest.raises(FailedPrecondition, match="--insecure"), running(folder, **settings):
            pass

    def test_insecure_opens_all_but_the_admin_api(self, folder):
        with running(folder, http="0.0.0.0:0", grpc="", insecure=True) as server:
            assert http1(server, INFER, STRINGS) == http2(server, INFER, STRINGS) == "200"
            assert http1(server, "/metrics", b"", "GET") == "200"
            assert http1(server, LOAD, b"") == http2(server, LOAD, b"") == "403"

    def test_with_keys_it_starts(self, folder, keys):
        with running(folder, http="0.0.0.0:0", grpc="0.0.0.0:0", api_keys=keys["file"]) as server:
            assert http1(server, INFER, STRINGS) == "401"
            assert http1(server, INFER, STRINGS, X_Api_Key=keys["infer"]) == "200"


@pytest.fixture(scope="module")
def tls(authority) -> dict[str, str]:
    certificate, key = authority.issue("server")
    return {"tls_cert": str(certificate), "tls_key": str(key)}


@pytest.fixture(scope="module")
def ana(authority) -> tuple[Path, Path]:
    return authority.issue("ana", (), ["spiffe://example.org/ana"])


@pytest.fixture(scope="module")
def encrypted(folder, tls) -> Iterator[Server]:
    with running(folder, **tls) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(folder, tls, authority) -> Iterator[Server]:
    with running(folder, **tls, tls_client_ca=str(authority.path)) as server:
        yield server


class TestTls:
    """One server with TLS, one that also wants client certificates; real clients."""

    def status(self, server: Server, authority: Authority, path: str, pair: tuple[Path, Path] | None = None) -> int:
        context = ssl.create_default_context(cafile=str(authority.path))
        if pair is not None:
            context.load_cert_chain(*pair)
        where = server.url.partition("://")[2]
        with contextlib.closing(http.client.HTTPSConnection(where, context=context, timeout=20)) as connection:
            connection.request("POST", path, STRINGS)
            return connection.getresponse().status

    def code(self, server: Server, authority: Authority, method: str, pair: tuple[Path, Path] | None = None) -> str:
        """Of a gRPC call with an empty message."""
        chain, key = (pair[0].read_bytes(), pair[1].read_bytes()) if pair else (None, None)
        credentials = grpc.ssl_channel_credentials(authority.path.read_bytes(), key, chain)
        where = server.url.partition("://")[2].replace("127.0.0.1", "localhost")
        with grpc.secure_channel(where, credentials, [("grpc.enable_http_proxy", 0)]) as channel:
            try:
                channel.unary_unary(RPC + method)(b"", timeout=20)
            except grpc.RpcError as error:
                return str(error.code().name)
        return "OK"

    def test_the_url_says_so(self, encrypted):
        assert encrypted.url.startswith("https://127.0.0.1:")

    def test_http1(self, encrypted, authority):
        assert self.status(encrypted, authority, INFER) == 200

    def test_http2_by_alpn(self, encrypted, authority):
        command = [
            "curl",
            "-s",
            "--http2",
            "--cacert",
            authority.path,
            "-o",
            "-",
            "-w",
            "\n%{http_version} %{http_code}",
        ]
        done = subprocess.run(
            [*command, "-d", STRINGS.decode(), encrypted.url + INFER], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "2 200"

    def test_grpc(self, encrypted, authority):
        assert self.code(encrypted, authority, "ServerLive") == "OK"
        assert self.code(encrypted, authority, "RepositoryIndex") == "OK"

    def test_who_does_not_speak_tls_is_not_answered(self, encrypted):
        where = encrypted.url.partition("://")[2]
        with contextlib.closing(http.client.HTTPConnection(where, timeout=20)) as connection:
            connection.request("POST", INFER, STRINGS)
            with pytest.raises((http.client.HTTPException, OSError)):
                connection.getresponse()

    def test_a_client_must_show_its_certificate(self, mutual, authority, ana):
        with pytest.raises(OSError, match=r"(?i)certificate required|reset|broken|EOF|closed"):
            self.status(mutual, authority, INFER)
        assert self.code(mutual, authority, "ServerLive") == "UNAVAILABLE"
        assert self.status(mutual, authority, INFER, ana) == 200
        assert self.code(mutual, authority, "ServerLive", ana) == "OK"

    def test_a_certificate_does_not_open_the_admin_api(self, mutual, authority, ana):
        assert self.status(mutual, authority, LOAD, ana) == 403
        assert self.code(mutual, authority, "RepositoryModelLoad", ana) == "PERMISSION_DENIED"

    def test_names_may_be_mapped(self, folder, tls, authority, ana, tmp_path):
        file = tmp_path / "keys.toml"
        file.write_text('[[certificates]]\nname = "spiffe://example.org/ana"\nscopes = ["admin"]\n')
        with running(folder, **tls, tls_client_ca=str(authority.path), api_keys=str(file)) as server:
            assert self.status(server, authority, INFER, ana) == 403
            assert self.status(server, authority, LOAD, ana) == 404
            assert self.code(server, authority, "RepositoryModelLoad", ana) not in ("OK", "PERMISSION_DENIED")

    def test_a_new_certificate_is_taken_without_a_restart(self, folder, authority, tmp_path):
        made = authority.issue("first")
        live = [path.rename(tmp_path / path.name) for path in made]
        with running(folder, tls_cert=str(live[0]), tls_key=str(live[1]), idle_timeout_s=0.4) as server:
            host, _, port = server.url.partition("://")[2].rpartition(":")
            before = ssl.get_server_certificate((host, int(port)))
            for path, target in zip(authority.issue("second"), live, strict=True):
                path.replace(target)
            expected = live[0].read_text()
            assert before != expected
            while ssl.get_server_certificate((host, int(port))) == before:
                pass
            assert ssl.get_server_certificate((host, int(port))) == expected
