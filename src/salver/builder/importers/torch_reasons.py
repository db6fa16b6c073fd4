"""Why PyTorch could not export a model, in a sentence for its author, with the author's own line."""

from __future__ import annotations

import errno
import linecache
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch

from salver.core.errors import SalverError, Unimplemented

_OURS: Final = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]))
_FOREIGN: Final = ("importlib", "<frozen", "<string>", "<eval", "onnxscript", "onnx_ir", "site-packages/onnx")
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LINE: Final = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]+)')
_CONTROL: Final = (
    "data-dependent",
    "DynamicValueError",
    "GuardOnDataDependent",
    "Dynamic control flow",
    "dynamic control",
)
_MISSING: Final = re.compile(
    r"No ONNX function found for <OpOverload\(op='([\w.]+)'"
    r"|Exporting the operator '?([\w:.]+)'? to ONNX"
    r"|ONNX export of operator ([\w:.]+)"
    r"|Unsupported FX nodes?: \{?\[?'?([\w:.]+)"
)
_SPECIALIZED: Final = re.compile(r"You marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)")


@contextmanager
def explained() -> Iterator[None]:
    """Turn whatever an exporter raises into one sentence.

    Raises:
        Unimplemented: what it cannot do with the model; errors of our own and of a full disk pass.
    """
    try:
        yield
    except SalverError:
        raise
    except Exception as error:  # boundary: exporters raise whatever they like
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        raise Unimplemented(explain(error)) from error


def explain(error: BaseException) -> str:
    """One sentence: what the exporter cannot do with the model, and where in the user's code."""
    errors = list(_chain(error))
    text = "\n".join(str(e) for e in errors) + "".join(type(e).__name__ for e in errors)
    where = _where(errors)
    specialized = _SPECIALIZED.search(text)
    missing = _MISSING.search(text)
    if any(sign in text for sign in _CONTROL):
        return (
            f"which way the code goes depends on the values in a tensor{where or ''}, and a graph of one way is wrong"
        )
    if specialized:
        return f"the code fixes dimension '{specialized[1]}' at {specialized[2]}{where}"
    if missing:
        operator = next(group for group in missing.groups() if group)
        return f"ONNX has nothing for the operator '{operator.strip()}'{where}"
    last = errors[-1]
    return f"{type(last).__name__}: {_sentence(last)}{where}"


def place_of(error: BaseException) -> str:
    """An error of the user's code, with its line."""
    return f"{type(error).__name__}: {_sentence(error)}{_where([error])}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _where(errors: list[BaseException]) -> str:
    """The innermost line of the user's own code that an error passed through."""
    for error in reversed(errors):
        told = [m for m in _LINE.findall(str(error)) if _is_users(m[0])]
        if told:
            path, line, code = told[-1]
            return f" ({Path(path).name}, line {line}: '{code.strip()}')"
        frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f.filename)]
        if frames:
            return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}: '{frames[-1].line}')"
    return ""


def _is_users(filename: str) -> bool:
    return not filename.startswith(_OURS) and not any(word in filename for word in _FOREIGN) and filename[:1] != "<"


def _sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"\x1b\[[0-9;]*m", "", (lines or ["(no message)"])[0])[:300]


def frozen_line(filename: str, number: int) -> str:
    """The line at which tracing took one way for all ways, if it is the user's."""
    if not _is_users(filename):
        return ""
    return f"{Path(filename).name}, line {number}: '{linecache.getline(filename, number).strip()}'"
