"""Write the pages that follow from tables in the code, and the index: `docs/cli.md`, `configuration.md`, `index.md`.

`make docs` runs it; `--check` only says which pages are out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from salver.cli._exit_codes import MEANINGS
from salver.cli._verbs import VERBS, Verb
from salver.core.options import OPTIONS, Option

HERE = Path(__file__).parent
MARK = "<!-- Written by docs/generate.py from the tables in the code; `make docs` writes it again. -->"

FOLDERS = {"adr": "Decisions"}
INDEX = """\
# Salver's documentation

{mark}

- [Command line](cli.md): every verb, option and exit code
- [Configuration](configuration.md): flags, environment, `salver.toml`
- [How it works](../ARCHITECTURE.md): one model's life and one request's life
- [Contributing](../CONTRIBUTING.md): how to add a member to a family
- [Changes](../CHANGELOG.md)
"""

CONFIGURATION = """\
# Configuration

{mark}

A value comes from the first of these that gives one:

1. a flag, `--max-body 8MiB`;
2. the environment, `SALVER_MAX_BODY=8MiB`;
3. `salver.toml` in the current folder, or the file that `--config` names: `max_body = "8MiB"`;
4. the tuned file beside the bundle, `digits.salver.tuned.toml`, which [`salver tune`](tune.md) writes for this CPU;
5. what the bundle advises, where the table says so;
6. the default.

Durations are numbers of seconds or carry units (`250ms`, `30s`, `5m`, `1h30m`). Sizes are bytes or carry units
(`512KiB`, `64MiB`, `1.5GB`). Lists are separated by commas or are TOML arrays. A key in `salver.toml` may be written
with dashes or underscores, and a path there is relative to that file. An unknown key, or an unknown variable that
begins with `SALVER_`, is refused, and the nearest valid one is offered. An empty variable is no value.

## One model of many

A `[models.NAME]` table overrides the server's settings for the model of that name, and may say where it lies:

```toml
http = "127.0.0.1:8080"
max_queue = 500

[models.digits]
source = "digits.salver"
threads = 2
default_timeout = "250ms"
```

It takes {per_model} and `source`.

## All options

"""


def cli_page() -> str:
    """Every verb with its arguments, options and examples, then the exit codes."""
    lines = [
        "# Command line",
        "",
        MARK,
        "",
        "Every option can also come from the environment or from `salver.toml`: see [configuration](configuration.md).",
        "Results go to standard output, progress and errors to standard error. An error is one sentence;",
        "`--debug` adds the traceback.",
        "",
    ]
    for verb in VERBS.values():
        lines += verb_section(verb)
    lines += ["## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in MEANINGS.items()]
    return "\n".join(lines) + "\n"


def verb_section(verb: Verb) -> list[str]:
    """One verb."""
    words = [f"[{a.name.upper()} ...]" if a.many else a.name.upper() for a in verb.arguments]
    lines = [f"## salver {verb.name}", "", verb.summary, "", "```"]
    lines += [" ".join(["salver", verb.name, *words, "[options]"]), "```", ""]
    lines += [f"- `{a.name.upper()}`: {cell(a.help)}" for a in verb.arguments]
    lines += [""] * bool(verb.arguments)
    lines += ["| option | value | default | |", "|---|---|---|---|"]
    for option in verb.options:
        flags = f"`{option.flag}`" + (f", `{option.short}`" if option.short else "")
        lines.append(f"| {flags} | {value_of(option)} | {default_of(option)} | {cell(option.help)} |")
    return [*lines, "", "```", *verb.examples, "```", ""]


def configuration_page() -> str:
    """Where values come from, then every option with its key and variable."""
    per_model = ", ".join(f"`{option.name}`" for option in OPTIONS if option.per_model)
    lines = [
        *CONFIGURATION.format(mark=MARK, per_model=per_model).splitlines(),
        "| key | variable | verbs | value | default | |",
        "|---|---|---|---|---|---|",
    ]
    for option in OPTIONS:
        key = f"`{option.flag}` only" if option.flag_only else f"`{option.name}`"
        variable = "" if option.flag_only else f"`{option.variable}`"
        verbs = "all" if len(option.verbs) == len(VERBS) else ", ".join(option.verbs)
        lines.append(
            f"| {key} | {variable} | {verbs} | {value_of(option)} | {default_of(option)} | {cell(option.help)} |"
        )
    return "\n".join(lines) + "\n"


def index_page() -> str:
    """The way to every page: those about the whole by hand, those in folders by their titles."""
    lines = INDEX.format(mark=MARK).splitlines()
    others = [page for page in sorted(HERE.glob("*.md")) if page.name not in PAGES]
    lines += [f"- [{title_of(page)}]({page.name})" for page in others]
    for folder in sorted(path for path in HERE.iterdir() if path.is_dir()):
        pages = sorted(folder.glob("*.md"))
        if pages:
            lines += ["", f"## {FOLDERS.get(folder.name, folder.name.capitalize())}", ""]
            lines += [f"- [{title_of(page)}]({folder.name}/{page.name})" for page in pages]
    return "\n".join(lines) + "\n"


def title_of(page: Path) -> str:
    """The text of a page's first heading."""
    return page.read_text(encoding="utf-8").lstrip().partition("\n")[0].lstrip("# ")


def value_of(option: Option) -> str:
    """What a value looks like."""
    if option.choices:
        return " or ".join(f"`{choice}`" for choice in option.choices)
    return f"{option.kind}, `{option.example}`" if option.example else option.kind


def default_of(option: Option) -> str:
    """The default: a value as code, a rule as words."""
    return option.default.strip("()") if option.default.startswith("(") else f"`{option.default}`"


def cell(text: str) -> str:
    """Text for a table cell: what looks like HTML or a column is shown as it is."""
    return text.replace("|", "\\|").replace("<", "&lt;")


PAGES = {"index.md": index_page, "cli.md": cli_page, "configuration.md": configuration_page}


def main() -> int:
    """Write the pages, or check them."""
    old = [name for name, page in PAGES.items() if not _is(HERE / name, page())]
    if "--check" in sys.argv[1:]:
        print("\n".join(f"docs/{name} is out of date: run `make docs`" for name in old))
        return len(old)
    for name in old:
        (HERE / name).write_text(PAGES[name](), encoding="utf-8")
        print(f"wrote docs/{name}")
    return 0


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
