"""The command line: `salver VERB ...`.

A process starts here whatever it is going to do, a server above all, so nothing heavy is imported: the verb's own file
is loaded when it runs, and typer only to explain (`--help`, completion, a command line that cannot be read).
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from salver.cli._exit_codes import INTERRUPTED, exit_code
from salver.cli._parse import parse
from salver.cli._verbs import EXPLAIN, Invocation
from salver.core.errors import Internal, SalverError
from salver.core.registry import load
from salver.core.settings import resolve

__all__ = ["main", "run"]


def main() -> NoReturn:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Carry out one command line.

    Returns:
        The exit code; see `salver.cli._exit_codes`. Errors are written to standard error, as one sentence.
    """
    debug = "--debug" in argv
    try:
        invocation = parse(argv) or load(EXPLAIN)(argv)
        if isinstance(invocation, int):
            return invocation
        return _carry_out(invocation)
    except SalverError as error:
        return _tell(error, debug)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Who was reading has read enough (`salver inspect x | head`): no more output, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001  # the boundary between Salver and the person at the terminal
        internal = Internal(f"{type(error).__name__}: {error}; this is a defect of Salver. See more with --debug")
        internal.__cause__ = error
        return _tell(internal, debug)


def _carry_out(invocation: Invocation) -> int:
    verb = invocation.verb
    reread = partial(resolve, verb.name, invocation.flags, os.environ, Path.cwd())
    if verb.rereads:
        values: dict[str, Any] = {"reread": reread}
    else:
        values = reread().values
        values.pop("debug", None)
    code: int | None = load(verb.run)(**invocation.arguments, **values)
    sys.stdout.flush()
    return code or 0


def _tell(error: SalverError, debug: bool) -> int:
    if debug or os.environ.get("SALVER_DEBUG", "").lower() in {"1", "true", "yes", "on"}:
        traceback.print_exception(error)
    print(f"error: {error.message}", file=sys.stderr)
    return exit_code(error)
