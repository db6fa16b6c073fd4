"""Reads the command lines that leave no doubt; the others are left to typer, which explains them."""

from __future__ import annotations

from collections.abc import Sequence

from salver.cli._verbs import VERBS, Invocation, Verb
from salver.core.option import Option


def parse(argv: Sequence[str]) -> Invocation | None:
    """Understand a command line without importing a parser (typer costs a server 70 ms and 7 MB at its start).

    Returns:
        None for whatever is not plain: help, an unknown verb or flag, a missing value or argument.
    """
    if not argv or argv[0] not in VERBS:
        return None
    verb = VERBS[argv[0]]
    switches, takes_value = _flags(verb)
    flags: dict[str, str | bool | None] = {}
    words: list[str] = []
    rest = iter(argv[1:])
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag in takes_value and (flag.startswith("--") or not equals):
            text = value if equals else next(rest, "-")
            if text.startswith("-"):
                return None
            option = takes_value[flag]
            before = flags.get(option.name)
            flags[option.name] = f"{before}{option.joined}{text}" if before and option.joined else text
        elif word in switches:
            name, on = switches[word]
            flags[name] = on
        elif word.startswith("-"):
            return None
        else:
            words.append(word)
    arguments = _arguments(verb, words)
    return None if arguments is None else Invocation(verb, arguments, flags)


def _flags(verb: Verb) -> tuple[dict[str, tuple[str, bool]], dict[str, Option]]:
    switches: dict[str, tuple[str, bool]] = {}
    takes_value: dict[str, Option] = {}
    for option in verb.options:
        if option.kind == "boolean":
            switches[option.flag] = (option.name, True)
        else:
            takes_value[option.flag] = option
            if option.short:
                takes_value[option.short] = option
    return switches, takes_value


def _arguments(verb: Verb, words: list[str]) -> dict[str, str | tuple[str, ...]] | None:
    if any(argument.many for argument in verb.arguments):
        return {verb.arguments[0].name: tuple(words)}
    if len(words) != len(verb.arguments):
        return None
    return {argument.name: word for argument, word in zip(verb.arguments, words, strict=True)}
