"""The table of options says what the functions behind the verbs do."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import salver
from salver.core.options import Option, options_of
from salver.core.settings import convert
from salver.server.settings import ModelSettings, ServeSettings

CLI_ONLY = {"config", "json", "debug"}
BUILD = inspect.signature(salver.build).parameters


def check_default(option: Option, default: Any) -> None:
    if not option.default.startswith("("):
        assert convert(option, option.default, option.name) == default


@pytest.mark.parametrize("option", options_of("build"), ids=lambda o: o.name)
def test_build_takes_what_the_table_says(option: Option) -> None:
    if option.name not in CLI_ONLY:
        check_default(option, BUILD[option.key].default)


@pytest.mark.parametrize("option", options_of("serve"), ids=lambda o: o.name)
def test_serve_takes_what_the_table_says(option: Option) -> None:
    if option.name not in CLI_ONLY:
        check_default(option, getattr(ServeSettings(), option.key))
    if option.per_model:
        assert option.key in ModelSettings.__struct_fields__


def test_every_setting_of_the_server_has_an_option() -> None:
    keys = {option.key for option in options_of("serve")}
    assert set(ServeSettings.__struct_fields__) - keys == {"sources", "models", "origins"}
    per_model = {option.key for option in options_of("serve") if option.per_model}
    assert set(ModelSettings.__struct_fields__) - per_model == {"source"}
