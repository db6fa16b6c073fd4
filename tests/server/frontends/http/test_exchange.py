"""An exchange has one answer, whatever a handler does after it."""

from __future__ import annotations

from salver.core.errors import InvalidArgument
from salver.server.frontends.http.exchange import NO_MATCH, Exchange
from salver.testing.frontends import Catcher


def make() -> tuple[Exchange, Catcher]:
    catcher = Catcher()
    return Exchange(catcher, b"POST", b"/", NO_MATCH, {}, b"", 0.0), catcher


def test_the_first_answer_counts():
    exchange, catcher = make()
    exchange.respond(b"1")
    exchange.respond(b"2", status=201)
    exchange.begin(b"")
    exchange.send(b"3")
    exchange.end()
    exchange.fail(InvalidArgument("late"))
    assert (exchange.status, exchange.answer[1], exchange.chunks) == (200, b"1", None)
    assert len(catcher.answers) == 1


def test_a_stream_is_not_answered_again():
    exchange, catcher = make()
    exchange.begin(b"")
    exchange.respond(b"1", status=201)
    exchange.begin(b"", status=202)
    exchange.send(b"")
    exchange.send(b"2")
    exchange.end()
    assert (exchange.status, exchange.chunks) == (200, [b"2", b""])
    exchange.fail(InvalidArgument("late"))
    assert catcher.cuts == [exchange]
