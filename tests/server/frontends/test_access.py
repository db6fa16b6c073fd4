"""Scopes, API keys, client certificates, and which listeners may start."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    SalverError,
    Unauthenticated,
)
from salver.server.frontends import BUILTIN, FRONTENDS, Services, keyring
from salver.server.frontends.access import EVERYTHING, Access, Peer
from salver.server.frontends.http.guard import make_access
from salver.server.frontends.keyring import KeyringFile, add_key, read_keyring
from salver.server.settings import ServeSettings

SCOPES = ("infer", "metadata", "metrics", "admin")
PUBLIC = "0.0.0.0:8080"
ANYBODY = Peer()
LOCAL = "127.0.0.1:8080"
TLS = {"tls_cert": "server.pem", "tls_key": "server.key", "tls_client_ca": "ca.pem"}


def may(access: Access, fields: dict[bytes, bytes], peer: Peer = ANYBODY) -> set[str]:
    """The scopes that a caller has, if it is known at all."""
    granted = set()
    for scope in SCOPES:
        try:
            access.check_access(fields, scope, peer)
        except PermissionDenied as error:
            assert f"'{scope}'" in error.message
        else:
            granted.add(scope)
    return granted


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + key.encode()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


class TestWithoutKeys:
    @pytest.mark.parametrize("address", [LOCAL, "[::1]:0", "unix:/run/salver.sock"])
    def test_everything_is_open_to_this_machine(self, address):
        assert may(make_access(ServeSettings(), address, loopback=True), {}) == set(SCOPES)

    def test_a_server_beyond_loopback_does_not_start(self):
        with pytest.raises(FailedPrecondition, match=r"0\.0\.0\.0:8080 .*--api-keys.*--tls-client-ca.*--insecure"):
            make_access(ServeSettings(), PUBLIC, loopback=False)

    def test_insecure_opens_all_but_the_admin_api_and_is_logged(self, caplog):
        with caplog.at_level(logging.WARNING):
            access = make_access(ServeSettings(insecure=True), PUBLIC, loopback=False)
        assert caplog.messages == [
            f"{PUBLIC} is open to everyone who can reach it (--insecure); the admin API is closed there"
        ]
        assert may(access, {}) == {"infer", "metadata", "metrics"}
        assert may(access, bearer("anything")) == {"infer", "metadata", "metrics"}

    def test_insecure_changes_nothing_on_loopback(self):
        assert may(make_access(ServeSettings(insecure=True), LOCAL, loopback=True), {}) == set(SCOPES)


class TestKeys:
    @pytest.mark.parametrize("address", [PUBLIC, LOCAL, "unix:/run/salver.sock"])
    def test_a_key_grants_its_scopes_and_no_others(self, file, address):
        key = add_key(file, "dashboard", ("metadata", "metrics"))
        access = make_access(ServeSettings(api_keys=str(file)), address, loopback=address != PUBLIC)
        assert may(access, bearer(key)) == {"metadata", "metrics"}
        assert may(access, {b"x-api-key": key.encode()}) == {"metadata", "metrics"}
        assert may(access, {b"authorization": b"bearer   " + key.encode() + b" "}) == {"metadata", "metrics"}

    def test_admin_implies_nothing(self, file):
        key = add_key(file, "operator", ("admin",))
        assert may(Access((KeyringFile(file).by_key,)), bearer(key)) == {"admin"}

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {b"host": b"localhost"},
            {b"authorization": b""},
            {b"authorization": b"Bearer"},
            {b"authorization": b"Bearer "},
            {b"authorization": b"Bearer salver_x"},
            {b"authorization": b"Bearer \xff\x00"},
            {b"authorization": b"Basic c2FsdmVyOnNhbHZlcg=="},
            {b"x-api-key": b""},
            {b"x-api-key": b"salver_" + b"A" * 43},
        ],
    )
    @pytest.mark.parametrize("scope", SCOPES)
    def test_who_shows_no_key_or_a_wrong_one_is_unknown(self, file, fields, scope):
        add_key(file, "someone", SCOPES)
        access = Access((KeyringFile(file).by_key,))
        with pytest.raises(Unauthenticated):
            access.check_access(fields, scope, Peer(uid=os.geteuid()))
        access.check_access(fields, "open", Peer())

    def test_a_key_with_anything_added_or_missing_is_wrong(self, file):
        key = add_key(file, "someone", SCOPES)
        access = Access((KeyringFile(file).by_key,))
        for wrong in (key[:-1], key + "A", key.upper(), key.removeprefix("salver_"), f"{key}, Bearer {key}"):
            with pytest.raises(Unauthenticated):
                access.check_access(bearer(wrong), "infer", Peer())

    def test_the_hash_is_no_key(self, file):
        add_key(file, "someone", SCOPES)
        with pytest.raises(Unauthenticated):
            may(Access((KeyringFile(file).by_key,)), bearer(read_keyring(file).keys[0].sha256))

    def test_messages_hold_no_key(self, file):
        key = add_key(file, "someone", ("infer",))
        access = Access((KeyringFile(file).by_key,))
        for fields, scope in ((bearer(key), "admin"), (bearer(key[:-2]), "infer"), ({b"x-api-key": b"k-3c"}, "infer")):
            with pytest.raises(SalverError) as caught:
                access.check_access(fields, scope, Peer())
            assert key[7:20] not in caught.value.message
            assert "k-3c" not in caught.value.message

    def test_a_key_ends(self, file):
        now = datetime.now(UTC)
        over = add_key(file, "old", ("infer",), now - timedelta(seconds=2))
        good = add_key(file, "new", ("infer",), now + timedelta(days=1))
        access = Access((KeyringFile(file).by_key,))
        assert may(access, bearer(good)) == {"infer"}
        with pytest.raises(Unauthenticated, match="'old' has expired"):
            may(access, bearer(over))


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Access:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    add_key(file, "someone", ("infer",))
    return Access((KeyringFile(file).by_key,))


@given(
    st.dictionaries(
        st.sampled_from([b"authorization", b"x-api-key"]), st.binary() | st.binary().map(b"Bearer ".__add__)
    )
)
def test_whatever_is_sent_is_unauthenticated(access, fields):
    with pytest.raises(Unauthenticated):
        access.check_access(fields, "infer", ANYBODY)


@given(
    st.binary(max_size=200)
    | st.lists(
        st.sampled_from(
            [
                "[[keys]]",
                "[[certificates]]",
                'name = "a"',
                "scopes = []",
                'scopes = ["infer"]',
                "expires = 1",
                "=",
                "\0",
            ]
        )
    ).map(lambda lines: "\n".join(lines).encode())
)
def test_whatever_the_file_holds_is_read_or_refused(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(content)
    with contextlib.suppress(InvalidArgument):
        assert isinstance(read_keyring(file).keys, tuple)


class TestReload:
    @pytest.fixture(autouse=True)
    def look_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(keyring, "_LOOK_S", 0.0)

    def test_keys_are_added_and_revoked_without_a_restart(self, file):
        first = add_key(file, "first", ("infer",))
        access = Access((KeyringFile(file).by_key,))
        second = add_key(file, "second", ("admin",))
        assert may(access, bearer(second)) == {"admin"}
        entry = file.read_text().split("\n\n")
        file.write_text(entry[1])
        with pytest.raises(Unauthenticated):
            may(access, bearer(first))
        assert may(access, bearer(second)) == {"admin"}
        file.write_text("")
        with pytest.raises(Unauthenticated):
            may(access, bearer(second))

    @pytest.mark.parametrize("damage", [lambda file: file.write_text("[[keys]\n"), lambda file: file.unlink()])
    def test_a_file_that_became_wrong_is_reported_and_the_last_good_one_holds(self, file, damage, caplog):
        key = add_key(file, "first", ("infer",))
        access = Access((KeyringFile(file).by_key,))
        damage(file)
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                assert may(access, bearer(key)) == {"infer"}
        assert [record.message.partition(":")[0] for record in caplog.records] == ["the API keys stay as they were"]


class TestCertificates:
    ANA = Peer(names=("ana", "ana@example.org", "spiffe://example.org/ana"), is_tls=True)
    BOB = Peer(names=("bob",), is_tls=True)

    def access(self, file: Path | None = None, address: str = PUBLIC) -> Access:
        settings = ServeSettings(**TLS, api_keys=str(file or ""))
        return make_access(settings, address, loopback=address != PUBLIC)

    @pytest.mark.parametrize("address", [PUBLIC, LOCAL])
    def test_a_verified_client_may_all_but_administer(self, address):
        assert may(self.access(address=address), {}, self.BOB) == {"infer", "metadata", "metrics"}

    def test_a_unix_socket_shows_no_certificate_and_needs_none(self):
        assert may(self.access(address="unix:/run/salver.sock"), {}, Peer(uid=1)) == set(SCOPES)

    @pytest.mark.parametrize("name", ANA.names)
    def test_names_may_be_mapped(self, file, name):
        file.write_text(f'[[certificates]]\nname = "{name}"\nscopes = ["admin"]\n')
        assert may(self.access(file), {}, self.ANA) == {"admin"}
        assert may(self.access(file), {}, self.BOB) == set()

    def test_a_star_is_for_all_and_names_add_to_it(self, file):
        file.write_text(
            '[[certificates]]\nname = "*"\nscopes = ["infer"]\n[[certificates]]\nname = "ana"\nscopes = ["metrics"]\n'
        )
        assert may(self.access(file), {}, self.ANA) == {"infer", "metrics"}
        assert may(self.access(file), {}, self.BOB) == {"infer"}

    def test_key_and_certificate_add_up(self, file):
        key = add_key(file, "operator", ("admin",))
        assert may(self.access(file), bearer(key), self.BOB) == set(SCOPES)
        assert may(self.access(file), {}, self.BOB) == {"infer", "metadata", "metrics"}

    def test_a_wrong_key_is_wrong_whatever_the_certificate(self, file):
        add_key(file, "operator", ("admin",))
        with pytest.raises(Unauthenticated):
            may(self.access(file), bearer("wrong"), self.BOB)

    def test_without_tls_there_is_no_certificate(self, file):
        add_key(file, "operator", ("admin",))
        with pytest.raises(Unauthenticated):
            may(self.access(file), {}, Peer(names=("ana",)))


class TestFile:
    GOOD = '[[keys]]\nname = "a"\nsha256 = "{}"\nscopes = ["infer"]\n'.format("0" * 64)

    def test_what_is_made_is_read(self, file):
        until = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
        keys = [add_key(file, "a", ("infer",)), add_key(file, "b.c_d@e-f", SCOPES, until)]
        first, second = read_keyring(file).keys
        assert [first.sha256, second.sha256] == [hashlib.sha256(key.encode()).hexdigest() for key in keys]
        assert (first.name, first.scopes, first.expires) == ("a", ("infer",), None)
        assert (second.name, second.scopes, second.expires) == ("b.c_d@e-f", SCOPES, until)
        assert all(key not in file.read_text() for key in keys)
        assert len(set(keys)) == 2
        assert all(len(key) == len("salver_") + 43 for key in keys)

    def test_a_new_file_is_for_its_owner(self, file):
        add_key(file, "a", ("infer",))
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_it_is_appended_to_as_it_is(self, file):
        file.write_text("# ours\n" + self.GOOD + "# the end")
        add_key(file, "b", ("infer",))
        assert file.read_text().startswith("# ours\n" + self.GOOD + "# the end\n")
        assert [key.name for key in read_keyring(file).keys] == ["a", "b"]

    @pytest.mark.parametrize(
        ("name", "scopes", "text"),
        [
            ("a b", ("infer",), "no name for a key"),
            ("", ("infer",), "no name for a key"),
            ('a"\nscopes=["admin"]', ("infer",), "no name for a key"),
            ("x" * 65, ("infer",), "no name for a key"),
            ("a", (), "has no scopes"),
            ("a", ("infr",), "unknown scope 'infr'. Did you mean 'infer'"),
            ("a", ("open",), "unknown scope 'open'"),
        ],
    )
    def test_what_cannot_be_added_leaves_no_trace(self, file, name, scopes, text):
        with pytest.raises(InvalidArgument, match=text):
            add_key(file, name, scopes)
        assert not file.exists()

    def test_a_name_is_given_once(self, file):
        add_key(file, "a", ("infer",))
        before = file.read_bytes()
        with pytest.raises(AlreadyExists, match="'a'"):
            add_key(file, "a", ("admin",))
        assert file.read_bytes() == before

    def test_a_folder_that_is_not_there_is_said(self, tmp_path):
        with pytest.raises(PermissionDenied, match="cannot be written"):
            add_key(tmp_path / "no" / "keys.toml", "a", ("infer",))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[[keys]", "keys.toml: "),
            ('keys = "a"', "Expected `array`"),
            ("[[kes]]", "unknown field `kes`"),
            (GOOD + "scope = []\n", "unknown field `scope`"),
            (GOOD.replace("infer", "open"), "open"),
            (GOOD.replace('"infer"', ""), "'a' has no scopes"),
            (GOOD.replace("0" * 64, "0" * 63), "sha256 must be 64"),
            (GOOD.replace("0" * 64, "A" * 64), "sha256 must be 64"),
            (GOOD.replace('"a"', '"a b"'), "'a b' is no name"),
            (GOOD + GOOD, "key 'a' is there twice"),
            (GOOD + GOOD.replace('"a"', '"b"'), "sha256 '0+' is there twice"),
            (GOOD + "expires = 2030-01-01T00:00:00\n", r"time zone; write 2030-01-01T00:00:00Z"),
            (GOOD + 'expires = "soon"\n', "expires"),
            (GOOD + "expires = 2030-01-01\n", "expires"),
            ('[[certificates]]\nname="a"\nscopes=[]\n[[certificates]]\nname="a"\nscopes=[]', "'a' is there twice"),
        ],
    )
    def test_what_is_wrong_is_said(self, file, text, message):
        file.write_text(text)
        with pytest.raises(InvalidArgument, match=message):
            read_keyring(file)

    def test_a_file_that_is_not_there_is_said_with_how_to_make_it(self, file):
        with pytest.raises(NotFound, match="salver keys --api NAME"):
            KeyringFile(file)

    def test_all_scopes_can_be_granted(self):
        assert {"open", *keyring.GRANTABLE} == EVERYTHING


class TestPage:
    """``docs/server/access.md`` says what every route and method needs."""

    TEXT = (Path(__file__).parents[3] / "docs" / "server" / "access.md").read_text(encoding="utf-8")

    def test_every_route_and_method_is_listed_under_its_scope(self, services: Services):
        needed = set()
        for name in BUILTIN:
            frontend = FRONTENDS.get(name)(services)
            needed |= {(route.scope, f"{route.method} {route.path}") for route in frontend.routes()}
            needed |= {(method.scope, method.path) for method in frontend.methods()}
        listed = set()
        for scope, block in re.findall(r"### (\w+)\n\n```\n(.*?)```", self.TEXT, re.DOTALL):
            for line in block.splitlines():
                before, options, after = re.fullmatch(r"([^\[]*)(?:\[(.*)\](.*))?", line).groups()
                listed |= {(scope, before + option + (after or "")) for option in ["", *(options or "").split("|")]}
        assert listed == needed

    def test_every_scope_is_explained(self):
        table = self.TEXT[self.TEXT.index("| scope |") : self.TEXT.index("None implies another")]
        assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(keyring.GRANTABLE)
