"""The tuned file beside a bundle: who obeys it, and when it is left alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from salver.bundle import Bundle, seal
from salver.core.errors import InvalidArgument
from salver.core.host import describe_cpu, usable_cores
from salver.server.app import Server
from salver.server.launch import _take_workers, settings_of
from salver.server.settings import ServeSettings
from salver.server.tuned import Tuned, TunedSettings, format_tuned, read_tuned, tuned_path
from salver.testing.bundles import tiny_contents


def tuned_here(digest: str = "sha256:1", **changes: Any) -> Tuned:
    tuned = Tuned(
        bundle=digest,
        fingerprint=describe_cpu().fingerprint,
        cpu='a "CPU" with a\ttab and ü',
        cores=usable_cores(),
        settings=TunedSettings(workers=2, threads=3, lanes=4, max_batch=5, slo_s=0.25),
        why=("it was best",),
        measured=({"name": "2 lanes", "rate_per_s": 812.5, "holds": True},),
    )
    return msgspec.structs.replace(tuned, **changes)


def write(bundle: Path, tuned: Tuned) -> None:
    tuned_path(bundle).write_text(format_tuned(tuned, "salver tune b.salver"), encoding="utf-8")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    bundle = tmp_path / "b.salver"
    assert read_tuned(bundle) is None
    write(bundle, tuned_here())
    assert read_tuned(bundle, "sha256:1") == tuned_here(origin="b.salver.tuned.toml")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fingerprint": "sha256:other"}, "measured on another CPU"),
        ({"cores": usable_cores() + 1}, f"this process may use {usable_cores()}"),
        ({"bundle": "sha256:2"}, "for another bundle"),
    ],
)
def test_what_was_measured_elsewhere_is_left_alone(
    changes: dict[str, Any], why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "b.salver", tuned_here(**changes))
    assert read_tuned(tmp_path / "b.salver", "sha256:1") is None
    assert why in caplog.text


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    tuned_path(tmp_path / "b.salver").write_text("threads = 2")
    with pytest.raises(InvalidArgument, match="write it again with 'salver tune"):
        read_tuned(tmp_path / "b.salver")


def test_the_order_of_those_who_say() -> None:
    tuned = tuned_here(origin="b.salver.tuned.toml")
    hints = {"threads": 7, "lanes": 7, "batch": 7}
    settings = ServeSettings.from_data(
        {"lanes": 9, "origins": {"lanes": "SALVER_LANES"}, "models": {"m": {"max_batch": 11}}}
    )
    found = settings.for_model("m", hints, tuned=tuned)
    assert (found.threads, found.lanes, found.max_batch, found.slo_s) == (3, 9, 11, 0.25)
    assert found.explained == (
        "threads=3 (b.salver.tuned.toml), lanes=9 (SALVER_LANES), max_batch=11 ([models.m]), "
        "slo_s=0.25 (b.salver.tuned.toml)"
    )
    found = settings.for_model("m", hints)
    assert found.explained == (
        "threads=7 (the bundle's hint), lanes=9 (SALVER_LANES), max_batch=11 ([models.m]), slo_s=0 (default)"
    )
    assert ServeSettings().for_model("m", {}).origins == {}


def test_a_server_obeys_it_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tiny.salver"
    seal(path, tiny_contents(tmp_path))
    write(path, tuned_here(Bundle.open(path).digest))
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.INFO, "salver")  # which another test may have set
    with Server(ServeSettings(sources=(str(path),), http="127.0.0.1:0")) as server:
        [model] = server.engine.models()
        assert (model.metadata["threads"], model.metadata["lanes"]) == (3, 4)
    assert "threads=3 (tiny.salver.tuned.toml), lanes=4 (tiny.salver.tuned.toml)" in caplog.text


def test_workers_are_the_servers_and_taken_for_the_only_bundle(tmp_path: Path) -> None:
    path = tmp_path / "b.salver"
    write(path, tuned_here())
    assert _take_workers(settings_of([path], {}, {})).workers == 2
    assert _take_workers(settings_of([path], {}, {"workers": 1})).workers == 1
    assert _take_workers(settings_of([path], {}, {"workers": 0}, {"workers": "--workers"})).workers == 0
    assert _take_workers(settings_of([path, path], {}, {})).workers == 0
    assert _take_workers(settings_of([path], {"m": {"source": "c.salver"}}, {})).workers == 0
    assert _take_workers(settings_of([tmp_path / "other"], {}, {})).workers == 0
