"""The quick reader and typer must understand the same command lines in the same way."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salver.cli._explain import explain
from salver.cli._parse import parse
from salver.cli._verbs import VERBS, Verb
from salver.core.errors import InvalidArgument
from salver.core.options import OPTIONS

WORDS = st.sampled_from(
    [option.flag for option in OPTIONS]
    + [f"{option.flag}={option.example}" for option in OPTIONS if option.example]
    + [
        "-o",
        "-ofile",
        "-o=file",
        "--",
        "-",
        "",
        "a",
        "b.salver",
        "--help",
        "--no-json",
        "-x",
        "--thread",
        "2",
        "=",
        "--data=",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(VERBS)), st.lists(WORDS, max_size=6))
def test_what_is_read_quickly_is_read_by_typer_too(verb: str, words: list[str]) -> None:
    quick = parse([verb, *words])
    if quick is not None:
        assert explain([verb, *words]) == quick


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda v: v.name)
def test_every_example_is_read_quickly(verb: Verb) -> None:
    for line in verb.examples:
        invocation = parse(line.split()[1:])
        assert invocation is not None
        assert invocation.verb is verb


def test_a_command_line_is_arguments_and_flags() -> None:
    invocation = parse(["build", "m.onnx", "--data", "v.npz", "--max-drop=1pp", "-o", "out.salver", "--json"])
    assert invocation is not None
    assert invocation.arguments == {"source": "m.onnx"}
    assert invocation.flags == {"data": "v.npz", "max_drop": "1pp", "output": "out.salver", "json": True}
    many = parse(["serve", "a.salver", "--lanes", "2", "b.salver"])
    assert many is not None
    assert many.arguments == {"sources": ("a.salver", "b.salver")}


@pytest.mark.parametrize(
    "line",
    ["", "bake", "build", "build a b", "serve --help", "serve --lanes", "serve --lane 2", "serve -h", "--version"],
)
def test_the_rest_is_left_to_typer(line: str) -> None:
    assert parse(line.split()) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bake", "No such command 'bake'; see 'salver --help'"),
        ("buidl", "No such command 'buidl'. Did you mean 'build'?; see 'salver --help'"),
        ("serve --lane 2", "No such option: --lane"),
        ("serve --lanes", "Option '--lanes' requires an argument; see 'salver serve --help'"),
        ("build", "Missing argument"),
    ],
)
def test_typer_explains_in_one_sentence(line: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        explain(line.split())
    assert message in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda v: v.name)
def test_help_names_every_option_and_example(verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert explain([verb.name, "--help"]) == 0
    text = " ".join(out.getvalue().split())
    for option in verb.options:
        assert option.flag in text
    for line in verb.examples:
        assert line in text
