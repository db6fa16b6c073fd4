"""Whole connections of the server: bytes in, in pieces, with answers that are held back, clients that stop reading and
hang up; bytes out, read by parsers that know nothing of ours."""

from __future__ import annotations

import functools
import json
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Final

import hpack
import msgspec

from salver.core.errors import SalverError
from salver.server.frontends.base import Frontend, Method
from salver.server.frontends.codes import STATUS_LINES
from salver.server.frontends.http._connection import Connection
from salver.server.frontends.http.exchange import Exchange
from salver.server.frontends.http2.connection import Http2Connection
from salver.testing.frontends import Catcher, invoke
from tests.fuzz.grammar import fields, http1, http2, tree
from tests.fuzz.grammar.raw import number, pieces, spoil
from tests.fuzz.grammar.requests import all_messages, http_request
from tests.fuzz.targets.base import Target
from tests.fuzz.world import SETTINGS, Finding, Wire, World, check_error, no_defects, require

MAX_KEPT_BYTES: Final = 4 * SETTINGS.max_body_bytes + (1 << 20)
_STATUS: Final = re.compile(rb"HTTP/1\.1 ([2-5]\d\d) [A-Za-z -]+\r\n")
_FIELD: Final = re.compile(rb"[a-z0-9-]+: [\x20-\x7e]*")
_OURS: Final = ("salver.server.frontends", "salver.wire")
_GRPC_INTERNAL: Final = (b"is marked as compressed",)


class _ConnectionTarget(Target):
    """Feeds a connection."""

    protocol: Callable[[Any], Any]

    def renew(self) -> None:
        self._world = World()

    def _feed(self, data: bytes) -> tuple[Wire, Any]:
        """Play the client, to the end; what depends on chance depends on the input alone."""
        if not hasattr(self, "_world"):
            self.renew()
        world, random = self._world, Random(zlib.crc32(data))
        world.restore()
        if random.random() < 0.3:
            world.engine.held = []
        with world.turns.running():
            connection = self.protocol(world.listener)
            wire = Wire(world.turns, connection, random.choice((0, 0, 0, 0, 0, 1, 500, 5000)))
            connection.connection_made(wire)
            for piece in pieces(data, random):
                if wire.is_paused:
                    self._settle(wire, random)
                if wire.is_lost or wire.is_closing():
                    break
                wire.protocol.data_received(piece)
                if random.random() < 0.5:
                    world.turns.step()
                if world.engine.held and random.random() < 0.3:
                    world.engine.release(random.randrange(len(world.engine.held)))
            hangs_up = random.random() < 0.15
            if not hangs_up:
                self._settle(wire, random)
                self._judge(data, wire)
                wire.is_judged = True
                is_cut = wire.is_aborted or getattr(getattr(wire.protocol, "machine", None), "fault", None) is not None
                require(not is_cut or world.metrics.limits, "a connection was cut off, and no metric tells")
            self._leave(wire, random, hangs_up)
        return wire, wire.protocol

    def _settle(self, wire: Wire, random: Random) -> None:
        """Run all that can run: answers held back, reads and writes that were paused."""
        engine, turns = self._world.engine, self._world.turns
        for _ in range(2000):
            wire.read_on()
            turns.step()
            if not engine.held:
                break
            engine.release(random.randrange(len(engine.held)))
        wire.read_on()
        turns.step()
        require(not engine.held, "requests without end")

    def _judge(self, data: bytes, wire: Wire) -> None:
        """Look at what came back, after everything has run."""

    def _weigh(self, data: bytes, wire: Wire) -> None:
        """Look at what a connection keeps, now and then: it is much to look through."""
        if zlib.crc32(data) % 32 == 0:
            world = self._world
            shared = (world, wire, world.listener, world.router, world.methods, world.listener.guard, world.services)
            kept = weigh(wire.protocol, {id(thing) for thing in shared})
            require(kept <= MAX_KEPT_BYTES, f"{kept} bytes are kept")

    def _leave(self, wire: Wire, random: Random, hangs_up: bool) -> None:
        """Hang up, or be silent until the server does."""
        world = self._world
        connection = wire.protocol
        if not wire.is_lost and not hangs_up and random.random() < 0.3:
            for _ in range(40):  # more than idle_timeout_s and the time to linger, in seconds
                world.turns.step(1.0)
                if wire.is_lost:
                    break
                connection.check(world.turns.now_s)
            world.turns.step()
            require(wire.is_lost, "a silent client is kept for ever")
        if not wire.is_lost:
            connection.eof_received()
            world.turns.step()
            wire.close()
            world.turns.step()
        require(not world.open, "a connection is counted that is gone")
        require(world.intake.held_bytes == 0, f"{world.intake.held_bytes} bytes are counted that are gone")
        held = world.engine.held or []
        gone = {id(request) for request in world.engine.cancelled}
        require(all(id(request) in gone for _, request in held), "a request of a client that is gone was not cancelled")


class Http1(_ConnectionTarget):
    """HTTP/1.1: the answers can be read, there is one for each request, and none is missing when all has run."""

    name = "http1"
    protocol = Connection

    def make(self, random: Random) -> bytes:
        return http1.make(random)

    def mutate(self, data: bytes, random: Random) -> bytes:
        return http1.mutate(data, random)

    def run(self, data: bytes) -> bool:
        with no_defects():
            wire, connection = self._feed(data)
        if isinstance(connection, Http2Connection):
            return True
        return any(not _is_malformed(status, body) for status, body in parse_answers(bytes(wire.out), strict=False))

    def _judge(self, data: bytes, wire: Wire) -> None:
        connection = wire.protocol
        if isinstance(connection, Http2Connection):
            return
        answers = parse_answers(bytes(wire.out))
        require(all(status != 500 for status, _ in answers), "status 500")
        require(not connection._pending or wire.is_lost, "a request without an answer")
        plain = count_plain(data)
        if plain is not None and not wire.is_aborted:
            is_cut = len(answers) < plain and b"\r\nconnection: close\r\n" in wire.out
            require(len(answers) == plain or is_cut, f"{len(answers)} answers to {plain} requests")
        self._weigh(data, wire)
        require(len(self._world.listener.heads) <= 512, "heads without bound")


def _is_malformed(status: int, body: bytes) -> bool:
    return status in (414, 431, 501, 505) or (status == 400 and b"malformed HTTP" in body)


def weigh(thing: Any, seen: set[int]) -> int:
    """Bytes of all text and bytes that an object of ours keeps alive."""
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, bytes | bytearray | str):
        return len(thing)
    if isinstance(thing, memoryview):
        return weigh(thing.obj, seen)
    if isinstance(thing, dict):
        return sum(weigh(key, seen) + weigh(value, seen) for key, value in thing.items())
    if isinstance(thing, list | tuple | deque | set):
        return sum(weigh(item, seen) for item in thing)
    if not type(thing).__module__.startswith(_OURS) or isinstance(thing, Frontend | Method):
        return 0
    named = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    own = [getattr(thing, name, None) for name in named]
    return sum(weigh(item, seen) for item in (*own, *getattr(thing, "__dict__", {}).values()))


def parse_answers(data: bytes, strict: bool = True) -> list[tuple[int, bytes]]:
    """Status and body of every answer; the final ones.

    Args:
        strict: whether all must be whole; else as many as are.
    """
    answers: list[tuple[int, bytes]] = []
    try:
        for answer in _each_answer(data):
            answers.append(answer)  # noqa: PERF402  # those before a broken one count
    except Finding:
        if strict:
            raise
    return answers


def _each_answer(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        if data.startswith(b"HTTP/1.1 100 Continue\r\n\r\n", at):
            at += 25
            continue
        line = _STATUS.match(data, at)
        require(line is not None, f"no status line: {data[at : at + 60]!r}")
        end = data.find(b"\r\n\r\n", at)
        require(end > 0, "a head without end")
        status = int(line[1])  # type: ignore[index]
        found = {}
        for raw in data[line.end() : end].split(b"\r\n"):  # type: ignore[union-attr]
            require(_FIELD.fullmatch(raw), f"no header field: {raw!r}")
            name, _, value = raw.partition(b": ")
            require(name not in found or name == b"vary", f"two fields {name!r}")
            found[name] = value
        at = end + 4
        body = b""
        if b"transfer-encoding" in found:
            body, at = _read_chunks(data, at)
        elif status != 204:
            if b"content-length" not in found:  # HTTP/1.0, streamed: to the end
                yield status, data[at:]
                return
            size = int(found[b"content-length"])
            is_head = data.startswith(b"HTTP/1.1 ", at) or at == len(data)
            if size and not is_head:
                body = data[at : at + size]
                require(len(body) == size, "an answer that is cut off")
                at += size
        if status >= 400 and body:
            require(set(msgspec.json.decode(body)) == {"error"} or status == 503, f"no error: {body!r}")
        yield status, body


def _read_chunks(data: bytes, at: int) -> tuple[bytes, int]:
    body = b""
    if at == len(data) or data.startswith(b"HTTP/1.1 ", at):
        return body, at  # of HEAD
    while True:
        end = data.find(b"\r\n", at)
        require(end > 0, "a chunk without size")
        size = int(data[at:end], 16)
        body += data[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
        require(data[at - 2 : at] == b"\r\n", "a chunk without end")
        if not size:
            return body, at


_PLAIN_HEAD: Final = re.compile(
    rb"(GET|POST) /[\x21-\x7e]{0,200} HTTP/1\.1\r\n"
    rb"((?:[A-Za-z-]{1,40}: [\x21-\x7e](?:[\x20-\x7e]{0,100}[\x21-\x7e])?\r\n)+)\r\n"
)
_NO_PLAIN: Final = re.compile(rb"(?i)^(transfer-encoding|connection|expect|upgrade):", re.MULTILINE)
_LENGTHS: Final = re.compile(rb"(?i)^content-length: (.*)\r$", re.MULTILINE)
_HOSTS: Final = re.compile(rb"(?i)^host: (.*)\r$", re.MULTILINE)


def count_plain(data: bytes) -> int | None:
    """How many requests there are, where nobody can doubt it; None where somebody could."""
    count = at = 0
    while at < len(data):
        head = _PLAIN_HEAD.match(data, at)
        if head is None or _NO_PLAIN.search(head[2]) or _HOSTS.findall(head[2]) != [b"localhost:8080"]:
            return None
        if len(re.findall(rb"(?i)inference-header-content-length", head[2])) > 1 or len(head[0]) > 2000:
            return None
        lengths = _LENGTHS.findall(head[2])
        if len(lengths) > 1 or any(not re.fullmatch(rb"\d{1,4}", size) for size in lengths):
            return None
        at = head.end() + int(lengths[0] if lengths else 0)
        if at > len(data):
            return None
        count += 1
    return count


class Http2(_ConnectionTarget):
    """HTTP/2: frames that can be read, windows that are kept, and no stream without its end when all has run."""

    name = "http2"
    protocol = Http2Connection

    def make(self, random: Random) -> bytes:
        return http2.make(random)

    def mutate(self, data: bytes, random: Random) -> bytes:
        return http2.mutate(data, random)

    def run(self, data: bytes) -> bool:
        with no_defects():
            wire, connection = self._feed(data)
        if wire.is_ended or not wire.is_judged:
            read_frames(bytes(wire.out), data)
        return connection.machine._last_id > 0

    def _judge(self, data: bytes, wire: Wire) -> None:
        machine = wire.protocol.machine
        streams, is_ended = read_frames(bytes(wire.out), data)
        if is_ended or wire.is_lost or machine.fault is not None:
            return
        for stream in machine.streams.values():
            waits = stream.is_remote_open or stream.queue is not None or _is_watch(stream)
            require(waits, f"stream {stream.id} has no answer")
            require(streams.get(stream.id) != "ended", f"stream {stream.id} is kept after its end")
        self._weigh(data, wire)
        require(len(machine.streams) <= SETTINGS.max_streams, "streams without bound")
        if data.startswith(http2.PREFACE) and not machine.is_partial:
            for stream in opened(http2.split(data)):
                require(stream in machine.streams or streams.get(stream), f"stream {stream} was forgotten")


def opened(frames: list[http2.Frame]) -> Iterator[int]:
    """The streams that a client opened and did not reset."""
    reset = {stream for kind, _, stream, _ in frames if kind == http2.RST}
    last = 0
    for kind, _, stream, _ in frames:
        number = stream & 0x7FFFFFFF
        if kind == http2.HEADERS and number > last:
            last = number
            if stream not in reset:
                yield number


def _is_watch(stream: Any) -> bool:
    return bytes(getattr(stream.receiver, "path", b"")).endswith(b"/Watch")


@functools.lru_cache(maxsize=4096)
def _decode(block: bytes) -> dict[bytes, bytes]:
    """A header block of the server's: it never refers to others."""
    return dict(hpack.Decoder().decode(block, raw=True))


def read_frames(out: bytes, data: bytes) -> tuple[dict[int, str], bool]:
    """Check what a server wrote; what became of each stream, and whether GOAWAY said that all is over."""
    sent = http2.split(data)
    initial = max([65_535, *(int.from_bytes(p[i + 2 : i + 6]) for k, _, _, p in sent if k == 4
                             for i in range(0, len(p) - 5, 6) if p[i : i + 2] == b"\0\x04")])  # fmt: skip
    wider: dict[int, int] = {}
    for kind, _, stream, payload in sent:
        if kind == http2.WINDOW:
            at = stream & 0x7FFFFFFF
            wider[at] = wider.get(at, 0) + (int.from_bytes(payload[:4]) & 0x7FFFFFFF)
    is_whole = data.startswith(http2.PREFACE) and all(len(p) <= 16_384 for _, _, _, p in sent)
    streams: dict[int, str] = {}
    spent: dict[int, int] = {}
    is_ended = False
    total = 0
    frames = http2.split(out)
    require(sum(9 + len(payload) for *_, payload in frames) == len(out), "frames that are cut off")
    for kind, flags, stream, payload in frames:
        require(kind in (0, 1, 3, 4, 6, 7, 8), f"a frame of type {kind}")
        state = streams.get(stream, "")
        if kind == http2.HEADERS:
            require(state not in ("ended", "reset"), f"HEADERS on stream {stream} after its end")
            pairs = _decode(payload)
            if state != "begun":
                status = pairs[b":status"]
                require(status != b"500", "status 500")
                state = "" if status == b"100" else "begun"
            code = pairs.get(b"grpc-status")
            if code in (b"13", b"2"):
                require(any(sign in pairs[b"grpc-message"] for sign in _GRPC_INTERNAL), f"gRPC status {pairs}")
            streams[stream] = "ended" if flags & 1 else state
        elif kind == http2.DATA:
            require(state == "begun", f"DATA on stream {stream} that is {state or 'not open'}")
            total += len(payload)
            spent[stream] = spent.get(stream, 0) + len(payload)
            if is_whole:
                require(total <= 65_535 + wider.get(0, 0), "more than the connection's window")
                require(spent[stream] <= initial + wider.get(stream, 0), "more than the stream's window")
            if flags & 1:
                streams[stream] = "ended"
        elif kind == http2.RST:
            require(state != "reset", f"stream {stream} is reset twice")
            streams[stream] = "reset"
        elif kind == http2.GOAWAY:
            is_ended = is_ended or int.from_bytes(payload[4:8]) != 0
    return streams, is_ended


class Methods(Target):
    """Every gRPC method, past the connection. Input: method, message."""

    name = "grpc-methods"

    def renew(self) -> None:
        self._world = World()
        self._owners = {
            method.path: frontend for frontend in self._world.services.frontends for method in frontend.methods()
        }
        self._paths = sorted(self._owners)

    def make(self, random: Random) -> bytes:
        self._prepare()
        path, message = random.choice(all_messages())
        return bytes((self._paths.index(path),)) + fields.make(message, random)

    def mutate(self, data: bytes, random: Random) -> bytes:
        return data[:1] + fields.mutate(data[1:], random) if random.random() < 0.95 else spoil(data, random)

    def _prepare(self) -> None:
        if not hasattr(self, "_world"):
            self.renew()

    def run(self, data: bytes) -> bool:
        self._prepare()
        if not data:
            return False
        path = self._paths[data[0] % len(self._paths)]
        world = self._world
        world.restore()
        with world.turns.running(), no_defects():
            call, catcher = invoke(self._owners[path], path, data[1:])
            world.turns.step(0.5)
        if not path.endswith("/Watch"):
            require(catcher.ended, f"{path} has no answer")
        require(call.code not in ("INTERNAL", "UNKNOWN"), f"{path}: {catcher.error}")
        require(all(fields.split(message) is not None for message in catcher.messages), "an answer that is no message")
        if call.cancel is not None:
            call.cancel()
        return catcher.error is None or "not a valid" not in catcher.error.message


class Routes(Target):
    """Every HTTP route, past the connection. Input: size of the head (2 bytes), a head of lines, body."""

    name = "http-routes"

    def renew(self) -> None:
        self._world = World()

    def make(self, random: Random) -> bytes:
        method, path, body, named = http_request(random)
        if body[:1] == b"{":
            at = int(named.get("inference-header-content-length", len(body)))
            head = tree.make(body[:at], random)
            body = head + body[at:]
            if at < len(body) and "inference-header-content-length" in named:
                named = {
                    "inference-header-content-length": str(len(head) if random.random() > 0.05 else number(random))
                }
        elif random.random() < 0.5:
            body = spoil(body, random)
        lines = "\n".join((f"{method} {path}", *(f"{name}: {value}" for name, value in named.items()))).encode()
        return len(lines).to_bytes(2) + lines + body

    def mutate(self, data: bytes, random: Random) -> bytes:
        size = 2 + int.from_bytes(data[:2])
        if random.random() < 0.1:
            return spoil(data, random)
        return data[:size] + tree.mutate(data[size:], random)

    def run(self, data: bytes) -> bool:
        if not hasattr(self, "_world"):
            self.renew()
        size = 2 + int.from_bytes(data[:2])
        start, *lines = data[2:size].split(b"\n")
        method, _, target = start.partition(b" ")
        named = dict(line.partition(b": ")[::2] for line in lines)
        world = self._world
        world.restore()
        try:
            match = world.router.find(target)
        except SalverError as error:
            check_error(error)
            return False
        handler = match.handlers.get(method)
        if handler is None:
            return False
        exchange = Exchange(Catcher(), method, target, match, named, data[size:], 0.0)
        with world.turns.running(), no_defects():
            exchange.attempt(handler, exchange)
            world.turns.step()
        require(exchange.answer is not None, "no answer")
        require(exchange.status in STATUS_LINES and exchange.status != 500, f"status {exchange.status}")
        pieces_ = exchange.chunks if exchange.chunks is not None else exchange.answer[1]  # type: ignore[index]
        body = pieces_ if isinstance(pieces_, bytes) else b"".join(pieces_)
        if exchange.status >= 400 and exchange.status != 503:
            require(set(msgspec.json.decode(body)) == {"error"}, f"no error: {body!r}")
            return not any(sign in body for sign in _NO_JSON)
        is_json = b"application/json" in exchange.answer[0] and body.strip()  # type: ignore[index]  # /ping has none
        if is_json and b"content-length" not in exchange.answer[0]:  # type: ignore[index]
            json.loads(body)
        return True


_NO_JSON: Final = (b"not valid JSON", b"not UTF-8", b"nested too deeply", b"nested more than")
