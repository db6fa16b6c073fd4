"""Servers of several processes with a model that misbehaves."""

from __future__ import annotations

import contextlib

import pytest

from tests.server.processes import rogue
from tests.server.processes.served import Served


@pytest.fixture(scope="session")
def plugin(tmp_path_factory):
    """A folder with the rogue backend, to be on a server's path."""
    return rogue.install(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="session")
def rogue_bundle(tmp_path_factory):
    return rogue.make_bundle(tmp_path_factory.mktemp("bundles") / "rogue.salver")


@pytest.fixture
def serve(plugin):
    """Starts servers, which end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **how: stack.enter_context(contextlib.closing(Served(plugin, *arguments, **how)))


@pytest.fixture
def served(serve, rogue_bundle):
    """Two workers."""
    return serve(rogue_bundle, "--workers", 2)
