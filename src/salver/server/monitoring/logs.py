"""Logging as one line of ``key=value`` pairs per event, to stderr, with the standard library."""

from __future__ import annotations

import logging
import time


class LineFormatter(logging.Formatter):
    """``time=2026-01-02T03:04:05.678Z level=info logger=... msg="..."``; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        message = record.getMessage().replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        line = (
            f"time={moment}.{int(record.msecs):03d}Z level={record.levelname.lower()} "
            f'logger={record.name} msg="{message}"'
        )
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure_logging(level: str) -> None:
    """Log Salver's events to stderr from ``level`` on. Loggers of other packages are left alone."""
    logger = logging.getLogger("salver")
    logger.setLevel(level.upper())
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(LineFormatter())
        logger.addHandler(handler)
        logger.propagate = False
