"""`salver toolchain`."""

from __future__ import annotations

from typing import Any

from salver.builder.toolchains import TOOLCHAINS, find, install, remove
from salver.cli._output import print_json, print_rich
from salver.core.errors import InvalidArgument, UnknownName

_ACTIONS = ("list", "install", "remove")


def run(*, words: tuple[str, ...] = (), json: bool = False) -> None:
    """Install or remove toolchains, or list them."""
    action, *names = words or ("list",)
    if action not in _ACTIONS:
        raise UnknownName("action of 'salver toolchain'", action, _ACTIONS)
    if action == "list":
        _show(_list(), json)
        return
    if not names:
        raise InvalidArgument(f"salver toolchain {action}: name one or more of {', '.join(TOOLCHAINS)}")
    for name in names:
        if action == "install":
            made = install(name)
            print_rich(f"toolchain '{name}' stands in {made.folder}: {len(made.versions)} packages")
        else:
            remove(name)
            print_rich(f"removed toolchain '{name}'")


def _list() -> list[dict[str, Any]]:
    rows = []
    for name, toolchain in TOOLCHAINS.items():
        installed = find(name)
        rows.append(
            {
                "name": name,
                "converts": toolchain.summary,
                "requirements": list(toolchain.requirements),
                "installed": installed is not None,
                "versions": installed.versions if installed else {},
            }
        )
    return rows


def _show(rows: list[dict[str, Any]], json: bool) -> None:
    if json:
        print_json(rows)
        return
    for row in rows:
        how = "installed" if row["installed"] else f"salver toolchain install {row['name']}"
        print_rich(f"{row['name']}: {row['converts']} ({how})")
