"""The fake that frontends are tested with keeps to what the real repository does."""

from __future__ import annotations

import asyncio

import pytest

from salver.backends import open_session
from salver.core.model import Model
from salver.testing.frontends import InlineEngine, SessionModel
from salver.testing.repository import Play, RepositoryConformance


class TestInlineRepository(RepositoryConformance):
    @pytest.fixture
    def play(self, digits: Model) -> Play:
        session = open_session(digits)
        engine = InlineEngine([SessionModel("m", session, "1"), SessionModel("m", session, "2")])
        return lambda scenario: asyncio.run(scenario(engine))  # type: ignore[arg-type]  # a scenario is a coroutine function
