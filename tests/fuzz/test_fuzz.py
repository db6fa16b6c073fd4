"""The plain engine: a minute of all targets with a fixed seed, and what it does with a finding."""

from __future__ import annotations

import os

import pytest

from tests.fuzz import __main__ as command
from tests.fuzz import corpus, driver
from tests.fuzz.targets import TARGETS
from tests.fuzz.targets.base import Target

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))


@pytest.mark.slow
def test_nothing_is_found_in_a_minute(tmp_path, monkeypatch, capsys):
    arguments = ["fuzz", "--seconds", f"{SECONDS:g}", "--seed", f"{SEED}", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    status = command.main()
    said = capsys.readouterr().out
    with capsys.disabled():
        print(f"\n{said.partition('target  ')[2]}seed {SEED}")
    assert status == 0, said


class Fragile(Target):
    """Breaks on a third ``b``, spins on ``x``, and exits on ``q``."""

    name = "fragile"

    def __init__(self):
        self.seen = 0

    def renew(self):
        self.seen = 0

    def make(self, random):
        return bytes([random.choice(b"aaab")])

    def mutate(self, data, random):
        return data + self.make(random)

    def run(self, data):
        if data == b"q":
            raise SystemExit
        while data == b"x":
            pass
        self.seen += data.count(b"b")
        if self.seen > 2:
            raise ValueError(f"{self.seen} times b in {data!r}")
        return True


@pytest.fixture
def fragile(monkeypatch):
    monkeypatch.setitem(TARGETS, "fragile", Fragile)
    return Fragile()


def test_a_finding_is_shortened_saved_and_replayed(fragile, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fuzz", "--inputs", "1000", "--target", "fragile", "--out", str(tmp_path)])
    assert command.main() == 1
    said = capsys.readouterr().out
    assert said.count("FOUND") == 1
    (saved,) = tmp_path.glob("*.gz")
    assert f"--replay {saved}" in said
    inputs = corpus.unpack(saved.read_bytes())
    assert sum(data.count(b"b") for data in inputs) >= 3
    assert len(inputs) < 100
    monkeypatch.setattr("sys.argv", ["fuzz", "--replay", str(saved)])
    assert command.main() == 1
    assert "ValueError" in capsys.readouterr().out


def test_a_campaign_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    for inputs in (2000, 3000):
        monkeypatch.setattr(
            "sys.argv", ["fuzz", "--inputs", f"{inputs}", "--target", "elements", "--out", str(tmp_path)]
        )
        assert command.main() == 0
    said = capsys.readouterr().out
    assert "going on from 2,000 inputs" in said
    assert said.splitlines()[-1].split()[1] == "3,000"


@pytest.mark.parametrize(("data", "trace"), [(b"x", "s of CPU time"), (b"q", "SystemExit")])
def test_an_input_that_never_ends_or_ends_everything_is_found(fragile, monkeypatch, data, trace):
    monkeypatch.setattr(driver, "HANG_S", 0.2)
    assert trace in (driver.replay(fragile, [b"a", data]) or "")


def test_processes_share_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv",
        [
            "fuzz",
            "--inputs",
            "2000",
            "--target",
            "elements",
            "--target",
            "hpack",
            "--processes",
            "2",
            "--out",
            str(tmp_path),
        ],
    )
    assert command.main() == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("all")
