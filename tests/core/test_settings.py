from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.errors import InvalidArgument, NotFound, UnknownName
from salver.core.options import OPTIONS, options_of
from salver.core.settings import convert, resolve


def write(folder: Path, text: str) -> Path:
    path = folder / "salver.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_said_leaves_the_function_its_defaults(tmp_path: Path) -> None:
    assert resolve("serve", {}, {}, tmp_path).values == {}


def test_flag_beats_environment_beats_file(tmp_path: Path) -> None:
    write(tmp_path, "threads = 1\nmax-queue = 1\nmax_body = '1KiB'")
    environ = {"SALVER_THREADS": "2", "SALVER_MAX_QUEUE": "2", "HOME": "x"}
    settings = resolve("serve", {"threads": "3", "http": None}, environ, tmp_path)
    assert settings.values == {"threads": 3, "max_queue": 2, "max_body_bytes": 1024}
    assert settings.origins == {
        "threads": "--threads",
        "max_queue": "SALVER_MAX_QUEUE",
        "max_body_bytes": "salver.toml: max_body",
    }


def test_options_of_other_verbs_are_checked_and_left_out(tmp_path: Path) -> None:
    write(tmp_path, 'http = "0.0.0.0:80"\nobjective = "size"')
    assert resolve("build", {}, {}, tmp_path).values == {"objective": "size"}
    write(tmp_path, 'objective = "speed"')
    with pytest.raises(InvalidArgument, match=r"salver.toml: objective: got 'speed', expected one of latency"):
        resolve("serve", {}, {}, tmp_path)


def test_model_tables(tmp_path: Path) -> None:
    write(
        tmp_path,
        '[models.digits]\nsource = "d.salver"\nthreads = 2\ndefault_timeout = "250ms"\n[models.other]\nlanes = 3',
    )
    assert resolve("serve", {}, {}, tmp_path).models == {
        "digits": {"source": tmp_path / "d.salver", "threads": 2, "default_timeout_s": 0.25},
        "other": {"lanes": 3},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("treads = 1", "unknown key in salver.toml 'treads'. Did you mean 'threads'?"),
        ("[models.x]\nthreads = 'two'", r"salver.toml:[models.x].threads: got 'two', expected an integer"),
        ("[models.x]\nthread = 2", "unknown key in salver.toml:[models.x] 'thread'. Did you mean 'threads'?"),
        ("[models.x]\nhttp = 'a'", "unknown key in salver.toml:[models.x] 'http'"),
        ("models = 3", "salver.toml: 'models' must hold tables: [models.NAME]"),
        ("[models]\nx = 3", "salver.toml: 'models' must hold tables: [models.NAME]"),
        ("threads = true", "salver.toml: threads: got 'True', expected an integer"),
        ("threads = 0", "salver.toml: threads: got '0', expected at least 1"),
        ("threads = 1.5", "salver.toml: threads: got '1.5', expected an integer"),
        ("cors_origins = [1]", "salver.toml: cors_origins: got '[1]', expected a list of texts"),
        ("drain = 'soon'", "salver.toml: drain: got 'soon', expected a duration such as"),
        ("max_body = []", "salver.toml: max_body: got '[]', expected a size such as 64MiB"),
        ("http = ''", "salver.toml: http: got '', expected a text"),
        ("debug = 'maybe'", "salver.toml: debug: got 'maybe', expected true or false"),
        ("output = 'x'", "unknown key in salver.toml 'output'"),
        ("threads = ", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_place(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, text)
    with pytest.raises(InvalidArgument) as caught:
        resolve("serve", {}, {}, tmp_path)
    assert message in caught.value.message


def test_an_unknown_variable_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"'SALVER_THREAD'. Did you mean 'SALVER_THREADS'\?"):
        resolve("serve", {}, {"SALVER_THREAD": "2"}, tmp_path)
    with pytest.raises(InvalidArgument, match=r"^SALVER_BUDGET: got 'x', expected a duration"):
        resolve("build", {}, {"SALVER_BUDGET": "x"}, tmp_path)


def test_an_empty_variable_is_unset(tmp_path: Path) -> None:
    assert resolve("serve", {}, {"SALVER_HTTP": ""}, tmp_path).values == {}


def test_a_named_file_must_exist_and_an_unnamed_one_need_not(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such configuration file"):
        resolve("serve", {"config": str(tmp_path / "no.toml")}, {}, tmp_path)
    named = tmp_path / "other.toml"
    named.write_text("lanes = 2", encoding="utf-8")
    assert resolve("serve", {}, {"SALVER_CONFIG": str(named)}, tmp_path).values == {"lanes": 2}
    with pytest.raises(InvalidArgument, match="cannot be read"):
        resolve("serve", {"config": str(tmp_path)}, {}, tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"http = '\xff'")
    with pytest.raises(InvalidArgument, match="not valid TOML"):
        resolve("serve", {"config": str(tmp_path / "latin.toml")}, {}, tmp_path)


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", 'sign_key = "key.pem"')
    settings = resolve("build", {"config": str(tmp_path / "sub" / "salver.toml")}, {}, tmp_path)
    assert settings.values == {"sign_key": tmp_path / "sub" / "key.pem"}


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.example], ids=lambda o: o.name)
def test_the_example_of_every_option_is_valid(option: Any) -> None:
    convert(option, option.example, "example")


@pytest.mark.parametrize("option", [o for o in OPTIONS if not o.default.startswith("(")], ids=lambda o: o.name)
def test_the_default_of_every_option_is_valid(option: Any) -> None:
    convert(option, option.default, "default")


def test_names_and_flags_are_unique() -> None:
    names = [option.name for option in OPTIONS]
    assert len(names) == len(set(names))
    for verb in {verb for option in OPTIONS for verb in option.verbs}:
        keys = [option.key for option in options_of(verb)]
        shorts = [option.short for option in options_of(verb) if option.short]
        assert len(keys) == len(set(keys))
        assert len(shorts) == len(set(shorts))


@given(st.sampled_from(OPTIONS), st.text(min_size=1, max_size=10))
def test_any_text_is_converted_or_refused_by_place(option: Any, text: str) -> None:
    try:
        convert(option, text, "here")
    except InvalidArgument as error:
        assert error.message.startswith("here: ")


@given(
    st.sampled_from(OPTIONS),
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats(), st.lists, max_leaves=3),
)
def test_any_toml_value_is_converted_or_refused_by_place(option: Any, value: object) -> None:
    try:
        convert(option, value, "here")
    except InvalidArgument as error:
        assert error.message.startswith("here: ")


@pytest.mark.parametrize(
    "variable",
    [
        "SALVER_SERVICE_HOST",
        "SALVER_PORT",
        "SALVER_PORT_8080_TCP_ADDR",
        "SALVER_CANARY_SERVICE_PORT_HTTP",
        "SALVER_BIN",
    ],
)
def test_variables_that_others_set_are_left_alone(variable: str, tmp_path: Path) -> None:
    assert resolve("serve", {}, {variable: "tcp://10.0.0.1:8080"}, tmp_path).values == {}
