"""Logging as one line of ``key=value`` pairs per event, to stderr, with the standard library."""

from __future__ import annotations

import logging
import time


class LineFormatter(logging.Formatter):
    """``time=2026-01-02T03:04:05.678Z level=info logger=... msg="..."``; a traceback follows on lines of its own.

    Args:
        more: further pairs, such as ``worker=0``.
    """

    def __init__(self, more: str = "") -> None:
        super().__init__()
        self._more = more and more + " "

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        message = record.getMessage().replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        line = (
            f"time={moment}.{int(record.msecs):03d}Z level={record.levelname.lower()} "
            f'{self._more}logger={record.name} msg="{message}"'
        )
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure_logging(level: str, more: str = "") -> None:
    """Log Salver's events to stderr from ``level`` on. Loggers of other packages are left alone.

    Args:
        more: as `LineFormatter` takes it.
    """
    logger = logging.getLogger("salver")
    logger.setLevel(level.upper())
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(LineFormatter(more))
        logger.addHandler(handler)
        logger.propagate = False
