"""Settings: types, ranges, and who wins."""

from __future__ import annotations

from typing import Any

import pytest

from salver.core.errors import InvalidArgument, UnknownName
from salver.server.settings import ModelSettings, ServeSettings


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"max_batch": -1}, "max_batch: got -1, expected 0 or more"),
        ({"drain_s": float("nan")}, "drain_s"),
        ({"max_queue": "many"}, "max_queue"),
        ({"models": {"m": {"lanes": -2}}}, "models.m.lanes: got -2"),
        ({"models": {"m": {"lane": 2}}}, "lane"),
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
