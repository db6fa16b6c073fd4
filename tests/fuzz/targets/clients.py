"""The client's readers: a server that answers anything can make a call fail, and nothing else."""

from __future__ import annotations

import asyncio
import zlib
from random import Random
from typing import Any, Final, get_args

import numpy as np

from salver.client.endpoint import parse_endpoint
from salver.client.grpc import GrpcProtocol
from salver.client.http1 import ResponseReader
from salver.client.http2 import _Channel
from salver.client.protocol import Incoming, Operation, Outgoing
from salver.client.rest import RestProtocol
from salver.core.errors import SalverError
from tests.fuzz.grammar import fields, http2, tree
from tests.fuzz.grammar.raw import number, pieces, spoil
from tests.fuzz.targets.base import Target
from tests.fuzz.world import Turns, Wire, World, load_models, require

_OPERATIONS: Final = get_args(Operation)
_ODD_LINES: Final = ("Retry-After: 1", "Retry-After: " + "9" * 30, "Connection: close", "Retry-After: x",
                     "Content-Encoding: gzip", "Retry-After: \xb2", "X: " + "a" * 5000,
                     "Connection: upgrade\r\nUpgrade: h2c")  # fmt: skip


def _answers() -> list[tuple[bytes, dict[str, str]]]:
    """Bodies of answers that are right, and their fields."""
    world = World()
    found: list[tuple[bytes, dict[str, str]]] = []
    for model in load_models()[:20]:
        spec = model.signature.outputs[0]
        shape = [1, *(d if isinstance(d, int) else 2 for d in spec.shape[1:])]
        count = int(np.prod(shape))
        values = ["a"] * count if spec.datatype == "BYTES" else [spec.datatype == "BOOL" or 1] * count
        head = {"model_name": model.name, "model_version": "1", "id": "5"}
        output: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": shape}
        found.append((tree.write({**head, "outputs": [{**output, "data": values}]}, Random(0)), {}))
        size = count * (spec.dtype.itemsize if spec.datatype != "BYTES" else 5)
        blob = b"\x01\0\0\0a" * count if spec.datatype == "BYTES" else bytes([1]) + bytes(size - 1)
        described = {**output, "parameters": {"binary_data_size": size}}
        text = tree.write({**head, "outputs": [described]}, Random(0))
        found.append((text + blob, {"inference-header-content-length": str(len(text))}))
    found += [(b'{"error":"no"}', {}), (b"", {}), (b"[]", {}), (b"{}", {})]
    found += [(b'[{"name":"linear","version":"1","state":"READY","reason":""}]', {}), (world.metrics.render(), {})]
    return found


class ClientRest(Target):
    """HTTP/1.1 and OIP REST as the client reads them. Input: operation, response."""

    name = "client-rest"

    def __init__(self) -> None:
        self._protocol = RestProtocol()
        self._answers = _answers()

    def make(self, random: Random) -> bytes:
        body, named = random.choice(self._answers)
        kind = random.randrange(len(_OPERATIONS) + 1) if random.random() < 0.4 else len(_OPERATIONS)
        length = named.get("inference-header-content-length")
        if length is not None:
            head = tree.make(body[: int(length)], random)
            blob = body[int(length) :]
            body = head + (spoil(blob, random) if random.random() < 0.3 else blob)
            shown = str(len(head)) if random.random() > 0.05 else str(number(random))
            named = {"inference-header-content-length": shown}
        elif body[:1] in (b"{", b"["):
            body = tree.make(body, random)
        status = random.choice((200, 200, 200, 200, 400, 404, 413, 429, 500, 503, 204, 304, 302, 100, 999, 101))
        lines = [f"{name}: {value}" for name, value in named.items()]
        if random.random() < 0.1:
            lines.append(random.choice(_ODD_LINES))
        if random.random() < 0.1:
            cut = random.randrange(len(body) + 1)
            lines.append("Transfer-Encoding: chunked")
            body = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[:cut], body[cut:]) if p) + b"0\r\n\r\n"
        elif random.random() < 0.97:
            lines.append(f"Content-Length: {len(body) if random.random() < 0.97 else number(random)}")
        head_ = f"HTTP/1.1 {status} OK\r\n" + "".join(f"{line}\r\n" for line in lines) + "\r\n"
        data = head_.encode("latin-1") + body
        return bytes((kind,)) + (spoil(data, random) if random.random() < 0.1 else data)

    def mutate(self, data: bytes, random: Random) -> bytes:
        head, blank, body = data.partition(b"\r\n\r\n")
        if not blank or random.random() < 0.3:
            return spoil(data, random)
        body = tree.mutate(body, random)
        head = b"\r\n".join(b"Content-Length: %d" % len(body) if line.lower().startswith(b"content-length") else line
                            for line in head.split(b"\r\n"))  # fmt: skip
        return head + blank + body

    def run(self, data: bytes) -> bool:
        if not data:
            return False
        reader = ResponseReader()
        try:
            incoming = None
            for piece in pieces(data[1:], Random(zlib.crc32(data))):
                incoming = reader.feed(piece)
                if incoming is not None:
                    break
            incoming = incoming or reader.end()
        except SalverError:
            return False
        if incoming is None:
            return False
        kind = data[0] % (len(_OPERATIONS) + 1)
        try:
            if kind == len(_OPERATIONS):
                answer = self._protocol.read_infer(incoming)
                require(set(answer.outputs) == set(answer.datatypes), "outputs without datatypes")
            else:
                self._protocol.read(_OPERATIONS[kind], incoming)
        except SalverError:
            pass
        return True


class ClientGrpc(Target):
    """HTTP/2 and OIP gRPC as the client reads them. Input: operation, what the server sends."""

    name = "client-grpc"

    def __init__(self) -> None:
        self._protocol = GrpcProtocol()
        message = self._protocol._response
        self._bases = [b""]
        for model in load_models()[:24]:
            spec = model.signature.outputs[0]
            answer = message(model_name=model.name, model_version="1", id="5")
            answer.outputs.add(name=spec.name, datatype=spec.datatype, shape=[1, 2])
            size = 2 * spec.dtype.itemsize if spec.datatype != "BYTES" else 0
            answer.raw_output_contents.append(b"\x01\0\0\0a" * 2 if not size else bytes(size))
            answer.parameters["own"].int64_param = 1
            self._bases.append(answer.SerializeToString())
        typed = message(model_name="m")
        typed.outputs.add(name="y", datatype="FP32", shape=[2]).contents.fp32_contents.extend([1, 2])
        typed.outputs.add(name="z", datatype="INT8", shape=[1]).contents.int_contents.append(5)
        typed.outputs.add(name="t", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"a")
        self._bases += [typed.SerializeToString()] * 8
        self._endpoint = parse_endpoint("grpc://127.0.0.1:1")

    def make(self, random: Random) -> bytes:
        odd = random.choice((0.0, 0.02, 0.08))
        kind = random.randrange(len(_OPERATIONS) + 1) if random.random() < 0.3 else len(_OPERATIONS)
        frames = [http2.settings(random, odd / 2), (http2.SETTINGS, 1, 0, b"")]
        message = fields.make(random.choice(self._bases), random)
        body = (b"\0" if random.random() >= odd else b"\1") + len(message).to_bytes(4) + message
        status = b"0" if random.random() < 0.7 else random.choice((b"3", b"5", b"8", b"14", b"99", b"-1", b"", b"\xb2"))
        pairs = [(b":status", random.choice((b"200", b"200", b"200", b"404", b"x"))),
                 (b"content-type", b"application/grpc")]  # fmt: skip
        trailers = [(b"grpc-status", status), (b"grpc-message", random.choice((b"no", b"%zz%ff", b"\xff", b"")))]
        if random.random() < 0.1:
            trailers.append((b"grpc-retry-pushback-ms", random.choice((b"5", b"-1", b"\xb2", b"9" * 40, b"9" * 5000))))
        if random.random() < 0.2:
            head = http2.block(pairs + trailers, random, odd)
            frames.append((http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, 1, head))
        else:
            frames.append((http2.HEADERS, http2.END_HEADERS, 1, http2.block(pairs, random, odd)))
            while body:
                size = len(body) if random.random() < 0.7 else random.randrange(1, len(body) + 1)
                frames.append((http2.DATA, 0, 1, body[:size]))
                body = body[size:]
            end = http2.END_HEADERS | http2.END_STREAM
            frames.append((http2.HEADERS, end, 1, http2.block(trailers, random, odd)))
        if random.random() < 0.2:
            at = random.randrange(1, len(frames))
            frames[at:at] = http2._other(random, odd, [1])
        if odd and random.random() < 0.3:
            frames = http2.change(frames, random)
        data = b"".join(http2.frame(*made) for made in frames)
        return bytes((kind,)) + (spoil(data, random) if odd and random.random() < 0.1 else data)

    def mutate(self, data: bytes, random: Random) -> bytes:
        if random.random() < 0.2:
            return spoil(data, random)
        return data[:1] + b"".join(http2.frame(*made) for made in http2.change(http2.split(data[1:]), random))

    def run(self, data: bytes) -> bool:
        if not data:
            return False
        turns = Turns()
        request = Outgoing(path="/inference.GRPCInferenceService/ModelInfer", body=b"x" * 100)
        found: list[Incoming | SalverError] = []
        with turns.running():
            channel = _Channel(self._endpoint)
            wire = Wire(turns, channel)
            channel.connection_made(wire)
            call = channel.exchange(request)
            waits: Any = call.send(None)
            for piece in pieces(data[1:], Random(zlib.crc32(data))):
                if wire.is_lost:
                    break
                channel.data_received(piece)
                turns.step()
            if not wire.is_lost:
                channel.connection_lost(None)
            turns.step()
            require(isinstance(waits, asyncio.Future) and waits.done(), "a call that never ends")
            try:
                call.send(None)
            except StopIteration as stop:
                found.append(stop.value)
            except SalverError as error:
                found.append(error)
        require(len(channel.connection.streams) == 0, "streams of a connection that is gone")
        answer = found[0]
        if isinstance(answer, SalverError):
            return channel.connection.fault is None
        kind = data[0] % (len(_OPERATIONS) + 1)
        try:
            if kind == len(_OPERATIONS):
                self._protocol.read_infer(answer)
            else:
                self._protocol.read(_OPERATIONS[kind], answer)
        except SalverError:
            pass
        return True
