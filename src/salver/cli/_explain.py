"""Typer's part: help, shell completion, and what is wrong with a command line. The only file that imports typer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import typer

import salver
from salver.cli._exit_codes import MEANINGS
from salver.cli._verbs import VERBS, Invocation, Verb
from salver.core.errors import InvalidArgument
from salver.core.options import Option


def explain(argv: Sequence[str]) -> Invocation | int:
    """Let typer read a command line.

    Returns:
        What was understood, or the exit code when help or the version was asked for.

    Raises:
        InvalidArgument: a usage error, in typer's words.
    """
    app = make_app()
    try:
        result: Invocation | int | None = app(args=list(argv) or ["--help"], prog_name="salver", standalone_mode=False)
    except typer.TyperException as error:
        verb = f" {argv[0]}" if argv and argv[0] in VERBS else ""
        sentence = error.format_message().rstrip(".")
        raise InvalidArgument(f"{sentence}; see 'salver{verb} --help'") from None
    return 0 if result is None else result


def make_app() -> typer.Typer:
    """The typer application that the tables of verbs and options describe."""
    app = typer.Typer(
        help="Salver: a trained model in; a tasted, sealed and served endpoint out.",
        epilog="\n\n".join(["Exit codes:", *(f"[bold]{code}[/bold] {meaning}" for code, meaning in MEANINGS.items())]),
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback(invoke_without_command=True)(_root)
    for verb in VERBS.values():
        epilog = "\n\n".join(["Examples:", *(f"[bold]{_escape(line)}[/bold]" for line in verb.examples)])
        app.command(verb.name, help=_escape(verb.summary), epilog=epilog)(_command(verb))
    return app


def _root(version: bool = typer.Option(False, "--version", help="Show the version.")) -> None:
    if version:
        typer.echo(f"salver {salver.__version__}")
        raise typer.Exit


def _command(verb: Verb) -> Callable[..., Invocation]:
    """A function whose signature is the verb's arguments and options: typer reads commands from signatures."""

    def command(**given: Any) -> Invocation:
        arguments = {a.name: tuple(given[a.name] or ()) if a.many else given[a.name] for a in verb.arguments}
        said = {o: given[o.name] for o in verb.options if given[o.name] is not None}
        return Invocation(verb, arguments, {o.name: o.joined.join(v) if o.joined else v for o, v in said.items()})

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # functions have one, mypy does not know
        [*(_argument(a.name, a.help, a.many) for a in verb.arguments), *(_option(o) for o in verb.options)]
    )
    return command


def _argument(name: str, text: str, many: bool) -> inspect.Parameter:
    default = typer.Argument(None if many else ..., help=_escape(text), show_default=False)
    return _parameter(name, list[str] | None if many else str, default)


def _option(option: Option) -> inspect.Parameter:
    flags = [option.flag, option.short] if option.short else [option.flag]
    text = _escape(f"{option.help}.{_default(option)}")
    if option.kind == "boolean":
        return _parameter(option.name, bool | None, typer.Option(None, *flags, help=text, show_default=False))
    metavar = "|".join(option.choices) or option.kind.upper()
    default = typer.Option(None, *flags, help=text, metavar=metavar, show_default=False)
    return _parameter(option.name, list[str] | None if option.joined else str | None, default)


def _default(option: Option) -> str:
    if option.kind == "boolean" or option.default == "(none)":
        return ""
    if option.default == "(required)":
        return " Required."
    return f" Default: {option.default.strip('()')}."


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _escape(text: str) -> str:
    """Text that rich shows as it is."""
    return text.replace("[", r"\[")
