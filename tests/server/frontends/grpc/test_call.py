"""A call has one status, whatever a handler does after it."""

from __future__ import annotations

from salver.core.errors import InvalidArgument
from salver.server.frontends.grpc.call import Call
from salver.testing.frontends import CallCatcher


def test_what_comes_after_the_status_is_dropped():
    for end in (Call.finish, lambda call: call.respond(b"1"), lambda call: call.fail(InvalidArgument("no"))):
        catcher = CallCatcher()
        call = Call(catcher, b"/a.B/C", {}, None, 0.0, catcher.peer)
        end(call)
        code, error, messages = call.code, catcher.error, list(catcher.messages)
        call.send(b"2")
        call.respond(b"3")
        call.fail(InvalidArgument("late"))
        call.finish()
        assert (call.code, catcher.error, catcher.messages) == (code, error, messages)
        assert code in ("OK", "INVALID_ARGUMENT")
