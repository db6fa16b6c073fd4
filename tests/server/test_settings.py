"""Settings: types, ranges, and who wins."""

from __future__ import annotations

from typing import Any

import pytest

from salver.core.errors import InvalidArgument, UnknownName
from salver.server.engine.config import ModelConfig, VersionPolicy
from salver.server.settings import ModelSettings, ServeSettings


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"max_batch": -1}, "max_batch: got -1, expected 0 or more"),
        ({"drain_s": float("nan")}, "drain_s"),
        ({"max_queue": "many"}, "max_queue"),
        ({"models": {"m": {"lanes": -2}}}, "models.m.lanes: got -2"),
        ({"models": {"m": {"lane": 2}}}, "lane"),
        ({"versions": "newest"}, "got versions 'newest', expected latest, latest:N, all, or numbers"),
        ({"versions": "01"}, "got versions '01'"),
        ({"models": {"m": {"versions": "latest:0"}}}, "got versions 'latest:0'"),
        ({"log_level": "loud"}, "log level 'loud'"),
    ],
)
def test_wrong_values_are_refused_by_name(data: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        ServeSettings.from_data(data)


def test_an_unknown_setting_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'max_queue'"):
        ServeSettings.from_data({"max_qeue": 3})


def test_model_then_server_then_hint_then_default() -> None:
    settings = ServeSettings(threads=3, models={"m": ModelSettings(threads=4, max_queue=7)})
    hints = {"threads": 2, "batch": 8, "lanes": 0}
    own, other = settings.for_model("m", hints), settings.for_model("other", hints)
    assert (own.threads, own.max_batch, own.lanes, own.max_queue) == (4, 8, 1, 7)
    assert (other.threads, other.max_queue) == (3, 1024)
    assert ServeSettings().for_model("m", {}).max_batch == 32


def test_a_models_folder_stands_between_the_server_and_the_hints() -> None:
    config = ModelConfig(lanes=3, max_queue=5, default_timeout_s=0.0, versions=VersionPolicy(latest=0))
    hints = {"lanes": 2, "threads": 4}
    run = ServeSettings().for_model("m", hints, config)
    assert (run.lanes, run.threads, run.max_queue, run.default_timeout_s) == (3, 4, 5, 0.0)
    given = ServeSettings(lanes=7, max_queue=8, default_timeout_s=1.5, versions="2")
    run = given.for_model("m", hints, config)
    assert (run.lanes, run.max_queue, run.default_timeout_s) == (7, 8, 1.5)
    assert given.versions_of("m", config) == VersionPolicy(specific=("2",))
    assert ServeSettings().versions_of("m", config) == VersionPolicy(latest=0)
    assert ServeSettings().versions_of("m", ModelConfig()) == VersionPolicy(latest=1)
    own = ServeSettings(lanes=7, models={"m": ModelSettings(lanes=9, versions="latest:2", default_timeout_s=0.0)})
    assert own.for_model("m", hints, config).lanes == 9
    assert own.versions_of("m", config) == VersionPolicy(latest=2)
    asked = ModelConfig(lanes=11, versions=VersionPolicy(specific=("3",)), default_timeout_s=2.5)
    run = own.for_model("m", hints, config, asked)
    assert (run.lanes, run.max_queue, run.default_timeout_s) == (11, 5, 2.5)
    assert own.versions_of("m", config, asked) == VersionPolicy(specific=("3",))


@pytest.mark.parametrize("text", ["latest:1", "latest:12", "all", "1,3"])
def test_a_version_policy_is_written_as_it_is_read(text: str) -> None:
    assert str(VersionPolicy.parse(text)) == text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(lanes=100_000), "lanes: got 100000, expected 1024 or less"),
        (ModelConfig(threads=1 << 31), "threads: got 2147483648"),
        (ModelConfig(default_timeout_s=-1.0), "default_timeout_s: got -1.0, expected 0 or more"),
        (ModelConfig(default_timeout_s=float("nan")), "default_timeout_s: got nan"),
        (ModelConfig(response_cache_bytes=-5), "response_cache_bytes: got -5"),
    ],
)
def test_what_a_folder_says_is_checked_too(config: ModelConfig, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        ServeSettings(sources=("a.onnx",)).for_model("m", {}, config)
