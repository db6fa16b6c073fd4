"""Settings of the whole suite."""

from __future__ import annotations

import inspect
import logging
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Hypothesis must not fail a test because the machine was busy, and must give the same result twice.
settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


# A shell starts what it runs in the background with SIGINT ignored, and children inherit that; tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of whoever runs the suite must not reach the tests."""
    for name in list(os.environ):
        if name.startswith("SALVER_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def the_log_as_it_was() -> Iterator[None]:
    """What a client or a start of the server changes of the log must not reach the next test."""
    logger = logging.getLogger("salver")
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers[:]
    yield
    logger.setLevel(level)
    logger.propagate = propagate
    logger.handlers[:] = handlers


def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> None:
    """Refuse a test class that is abstract: pytest leaves it out without a word."""
    if name.startswith("Test") and inspect.isclass(obj) and inspect.isabstract(obj):
        raise collector.CollectError(f"{name} lacks {', '.join(sorted(obj.__abstractmethods__))} and would not run")
