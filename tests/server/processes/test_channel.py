"""Questions, answers and news between two processes' ends."""

from __future__ import annotations

import asyncio
import socket

import pytest

from salver.core.errors import Internal, NotFound, ResourceExhausted, Unavailable
from salver.server.processes.channel import MAX_FRAME_BYTES, Channel


def talk(conversation):
    """Run ``conversation(a, b)`` with the two ends of a channel."""

    async def run():
        left, right = socket.socketpair()
        a, b = await Channel.open(left), await Channel.open(right)
        try:
            return await asyncio.wait_for(conversation(a, b), 10)
        finally:
            a.close()
            b.close()
            await asyncio.sleep(0)

    return asyncio.run(run())


def test_answers_find_who_asked_whatever_their_order():
    async def conversation(a, b):
        gates = [asyncio.Event() for _ in range(3)]

        async def slow(number):
            await gates[number].wait()
            return number * 10

        b.on("slow", int, slow)
        asked = [asyncio.ensure_future(a.ask("slow", n, int)) for n in range(3)]
        for gate in reversed(gates):
            gate.set()
            await asyncio.sleep(0.01)
        return await asyncio.gather(*asked)

    assert talk(conversation) == [0, 10, 20]


def test_both_ends_ask_and_tell():
    async def conversation(a, b):
        heard = asyncio.get_running_loop().create_future()
        a.on("name", type(None), lambda _: "a")
        b.on("news", dict[str, int], heard.set_result)
        a.tell("news", {"x": 1})
        return await b.ask("name", gives=str), await heard

    assert talk(conversation) == ("a", {"x": 1})


@pytest.mark.parametrize("error", [NotFound("no model 'x'"), ResourceExhausted("full", retry_after_s=1.5)])
def test_an_error_travels_with_its_kind_and_words(error):
    async def conversation(a, b):
        def refuse(_):
            raise error

        b.on("load", str, refuse)
        with pytest.raises(type(error)) as caught:
            await a.ask("load", "x")
        return caught.value

    raised = talk(conversation)
    assert (raised.message, raised.retry_after_s) == (error.message, error.retry_after_s)


def test_a_handler_that_breaks_and_a_question_that_nobody_knows_are_answered(caplog):
    async def conversation(a, b):
        b.on("divide", int, lambda n: 1 // n)
        with pytest.raises(Internal, match="ZeroDivisionError"):
            await a.ask("divide", 0)
        with pytest.raises(Internal, match="KeyError"):
            await a.ask("unknown")
        with pytest.raises(Internal, match="ValidationError"):
            await a.ask("divide", "zero")
        return await a.ask("divide", 1, int)

    assert talk(conversation) == 1


def test_who_waits_for_a_process_that_dies_is_told():
    async def conversation(a, b):
        b.on("hang", type(None), lambda _: asyncio.sleep(60))
        asked = asyncio.ensure_future(a.ask("hang"))
        await asyncio.sleep(0.01)
        b.close()
        with pytest.raises(Unavailable):
            await asked
        with pytest.raises(Unavailable):
            await a.ask("hang")
        a.tell("lost")

    talk(conversation)


def test_large_messages_pass_and_an_absurd_length_breaks_the_channel(caplog):
    async def conversation(a, b):
        b.on("echo", bytes, lambda data: data)
        assert await a.ask("echo", bytes(5_000_000), bytes) == bytes(5_000_000)
        a._transport.write((MAX_FRAME_BYTES + 1).to_bytes(4))
        with pytest.raises(Unavailable):
            await a.ask("echo", b"", bytes)

    talk(conversation)
