"""Containment for libraries that print, log to the root logger and scatter temporary files."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_LIBRARIES: Final = ("onnxruntime", "onnxslim")


def _not_from_a_library(record: logging.LogRecord) -> bool:
    return not any(name in Path(record.pathname).parts for name in _LIBRARIES)


@contextlib.contextmanager
def contained(workdir: Path) -> Iterator[Path]:
    """Run a library without its prints, log lines, warnings and stray files.

    ONNX Runtime's quantizer logs through the root logger, which installs a handler on stderr when there is none; both
    are kept off, only for its own files, and everything is as before afterwards.

    Args:
        workdir: where the temporary folder is made.

    Yields:
        A folder that is removed at the end; `tempfile` uses it meanwhile.
    """
    root = logging.getLogger()
    guard = logging.NullHandler()
    named = [logging.getLogger(name) for name in _LIBRARIES]
    propagate = [logger.propagate for logger in named]
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="pass-", dir=workdir) as folder:
        root.addFilter(_not_from_a_library)
        root.addHandler(guard)
        for logger in named:
            logger.addHandler(guard)
            logger.propagate = False
        tempfile.tempdir = folder
        try:
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                warnings.simplefilter("ignore")
                yield Path(folder)
        finally:
            tempfile.tempdir = before
            for logger, value in zip(named, propagate, strict=True):
                logger.propagate = value
                logger.removeHandler(guard)
            root.removeHandler(guard)
            root.removeFilter(_not_from_a_library)
