"""`salver keys --api`: the key goes out once, its hash stays."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from salver.cli import run
from salver.server.frontends.keyring import read_keyring


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_key_alone_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "--api", "dashboard"]) == 0
    out, err = capsys.readouterr()
    (entry,) = read_keyring(Path("keys.toml")).keys
    assert entry.sha256 == hashlib.sha256(out.removesuffix("\n").encode()).hexdigest()
    assert (entry.name, entry.scopes, entry.expires) == ("dashboard", ("infer", "metadata"), None)
    assert out.strip() not in err + Path("keys.toml").read_text()
    assert "it is not shown again" in err


def test_scopes_expiry_and_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "--api", "a", "-o", "ours.toml"]) == 0
    assert run(["keys", "--api", "b", "--scopes", "admin,metrics", "--expires", "90d", "-o", "ours.toml"]) == 0
    _, entry = read_keyring(Path("ours.toml")).keys
    assert (entry.name, entry.scopes) == ("b", ("admin", "metrics"))
    assert entry.expires is not None
    assert timedelta(days=89) < entry.expires - datetime.now(UTC) < timedelta(days=91)


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        (["--scopes", "infer"], 2, "--api NAME"),
        (["--expires", "1d"], 2, "--api NAME"),
        (["--api", "a", "--scopes", "infr"], 2, "Did you mean 'infer'"),
        (["--api", "a", "--expires", "soon"], 2, "--expires"),
        (["--api", "a b"], 2, "no name for a key"),
        (["--api", "a", "-o", "no/keys.toml"], 4, "cannot be written"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    line: list[str], code: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["keys", *line]) == code
    out, err = capsys.readouterr()
    assert (out, text in err) == ("", True)
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "--api", "a"]) == 0
    assert run(["keys", "--api", "a"]) == 9
    assert len(read_keyring(Path("keys.toml")).keys) == 1
