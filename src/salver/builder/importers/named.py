"""``module:name`` sources: what the user's own code makes, found by its name."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any, Final

from salver.core.errors import FailedPrecondition, NotFound, SalverError

_NAMED: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_named(source: object) -> bool:
    """Whether a source reads as ``module:name`` and is no file."""
    return isinstance(source, str) and _NAMED.fullmatch(source) is not None and not Path(source).exists()


def find_named(named: str) -> Any:
    """What stands behind ``module:name``: an object as it is; what a function gives that needs no arguments, a factory;
    otherwise the function or class itself. The module is looked for in the current folder, too.

    Raises:
        NotFound: no such module or name.
        FailedPrecondition: the user's code raised.
    """
    module_name, _, attribute = named.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # console scripts do not search the current folder; users expect it
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise NotFound(f"'{named}': no module named '{error.name}', neither installed nor in '{here}'") from None
    except Exception as error:  # boundary: the user's own code
        raise _failed(module_name, "while it was imported", error) from error
    finally:
        sys.path.remove(here)
    if not hasattr(module, attribute):
        raise NotFound(f"'{named}': module '{module_name}' has no '{attribute}'")
    found = getattr(module, attribute)
    if not inspect.isfunction(found) or _needs_arguments(found):
        return found
    try:
        return found()
    except SalverError:
        raise
    except Exception as error:  # boundary: the user's own code
        raise _failed(named, "", error) from error


def _needs_arguments(function: Any) -> bool:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return any(p.default is inspect.Parameter.empty and p.kind not in kinds for p in parameters)


def _failed(named: str, when: str, error: Exception) -> FailedPrecondition:
    return FailedPrecondition(f"'{named}' raised {type(error).__name__}{' ' * bool(when)}{when}: {error}")
