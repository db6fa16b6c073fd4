"""What benchmarks of servers share: load over sockets, and what a server's processes cost.

Requests are made once and sent again and again, so that the load costs little beside the server; nothing here depends
on how Salver reads them. Linux only.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networks
import numpy as np

from salver.wire.http2 import encode_block, frames
from salver.wire.http2.frames import PREFACE, frame
from salver.wire.protos import ProtoSet

IN_FLIGHT = 32
PATIENCE_S = 10.0
ROW = np.arange(networks.MLP_SIZES[0], dtype=np.float32)[None] / 7
"""What every request holds."""

_TICKS = os.sysconf("SC_CLK_TCK")
_LEAST_TICKS = 10  # what /proc counts in: fewer say nothing, and a busy machine may give none at all
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD_LENGTH = re.compile(rb"\r\ninference-header-content-length: *(\d+)", re.IGNORECASE)
_WINDOW = 1 << 30


class NoAnswer(Exception):
    """The server answered, but not with what was asked for."""


def _stat(process: int | str) -> list[str]:
    """Fields of `/proc/PID/stat` from the state on; none where the process has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def family(process: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(entry.name)):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [process]
    for each in found:
        found += children.get(each, [])
    return found


def cpu_s(process: int) -> float:
    """User and system time so far of a process and all that descend from it, those that have ended among them."""
    stats = [_stat(each) for each in family(process)]
    return sum(int(field) for fields in stats for field in fields[11:15]) / _TICKS


def pss_mib(process: int) -> float:
    """Proportional set size of the same processes."""
    texts = [Path(f"/proc/{each}/smaps_rollup").read_text() for each in family(process)]
    return sum(int(found[1]) for text in texts if (found := re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE))) / 1024


class HttpLoad:
    """REST of the Open Inference Protocol: one request in flight on each of several connections.

    Args:
        port: of this machine.
        binary: tensors as bytes, the extension for binary data; else as JSON.
    """

    def __init__(self, port: int, binary: bool) -> None:
        given: dict[str, Any] = {"name": "x", "shape": list(ROW.shape), "datatype": "FP32"}
        fields = "Content-Type: application/json\r\n"
        if binary:
            given["parameters"] = {"binary_data_size": ROW.nbytes}
            head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
            body = head + ROW.tobytes()
            fields = f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(head)}\r\n"
        else:
            body = json.dumps({"inputs": [given | {"data": ROW.ravel().tolist()}]}).encode()
        start = f"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
        self.request = start.encode() + body
        self.sockets: list[socket.socket] = []
        self.rests: dict[int, bytes] = {}
        try:
            for _ in range(IN_FLIGHT):
                self.sockets.append(_connect(port))
        except OSError:
            self.close()
            raise

    def ask(self) -> np.ndarray:
        """One request's `y`."""
        connected = self.sockets[0]
        connected.sendall(self.request)
        while not (answer := self._read(connected)):
            pass
        head, _, body = answer.partition(b"\r\n\r\n")
        found = _HEAD_LENGTH.search(head)
        if found:
            return np.frombuffer(body[int(found[1]) :], np.float32)
        return np.array(json.loads(body)["outputs"][0]["data"], np.float32).ravel()

    def run(self, seconds: float) -> int:
        """Keep all connections busy; the number of answers."""
        by_number = {connected.fileno(): connected for connected in self.sockets}
        with select.epoll() as poll:
            for number, connected in by_number.items():
                poll.register(number, select.EPOLLIN)
                connected.sendall(self.request)
            done, end, waiting = 0, time.monotonic() + seconds, IN_FLIGHT
            while waiting:
                events = poll.poll(PATIENCE_S)
                assert events, "the server does not answer"
                for number, _ in events:
                    if not self._read(by_number[number]):
                        continue
                    done += 1
                    if time.monotonic() < end:
                        by_number[number].sendall(self.request)
                    else:
                        waiting -= 1
        return done

    def _read(self, connected: socket.socket) -> bytes:
        """An answer that has come whole, or nothing yet."""
        data = connected.recv(65536)
        if not data:
            raise NoAnswer("the server closed a connection")
        data = self.rests.pop(connected.fileno(), b"") + data
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            if not data.startswith(b"HTTP/1.1 200"):
                raise NoAnswer(data[:1000].decode(errors="replace"))
            length = _LENGTH.search(data, 0, end)
            if not length:
                raise NoAnswer(f"an answer without its length: {data[:1000]!r}")
            if len(data) >= end + 4 + int(length[1]):
                return data
        self.rests[connected.fileno()] = data
        return b""

    def close(self) -> None:
        """Let go of the connections."""
        for connected in self.sockets:
            connected.close()


class GrpcLoad:
    """gRPC of the Open Inference Protocol: requests in flight on one connection, as a channel of grpcio has them.

    Speaks as much HTTP/2 as a client of short messages must: settings and pings are acknowledged, both windows of the
    connection are kept, and an answer may come in any number of frames.
    """

    def __init__(self, port: int) -> None:
        protos = ProtoSet("oip")
        message = protos.message("inference.ModelInferRequest")(model_name="mlp")
        message.inputs.add(name="x", datatype="FP32", shape=list(ROW.shape))
        message.raw_input_contents.append(ROW.tobytes())
        data = message.SerializeToString()
        self.answer = protos.message("inference.ModelInferResponse")
        self.body = b"\0" + len(data).to_bytes(4) + data
        self.block = encode_block(
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
                (b":authority", b"localhost"),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"user-agent", b"load"),
            ]
        )
        self.next_id = 1
        self.rest = b""
        self.window = frames.DEFAULT_WINDOW
        self.taken = 0
        self.open: dict[int, bytes] = {}
        self.last = b""
        self.socket = _connect(port)
        settings = b"\x00\x04" + _WINDOW.to_bytes(4)
        self.socket.sendall(PREFACE + frame(frames.SETTINGS, 0, 0, settings) + self._more(_WINDOW))

    def ask(self) -> np.ndarray:
        """One request's `y`."""
        self._send(1)
        while not self._read():
            pass
        answer = self.answer.FromString(self.last[5:])
        if answer.raw_output_contents:
            return np.frombuffer(answer.raw_output_contents[0], np.float32)
        return np.array(answer.outputs[0].contents.fp32_contents, np.float32)

    def run(self, seconds: float) -> int:
        """Keep so many requests in flight; the number of answers."""
        done, end, idle = 0, time.monotonic() + seconds, IN_FLIGHT
        while self.open or time.monotonic() < end:
            if time.monotonic() < end:
                idle -= self._send(idle)
            ended = self._read()
            done += ended
            idle += ended
        return done

    def _send(self, wanted: int) -> int:
        """Requests of which the connection's window holds the whole; the number sent."""
        count = min(wanted, self.window // len(self.body))
        parts = []
        for _ in range(count):
            parts.append(frame(frames.HEADERS, frames.END_HEADERS, self.next_id, self.block))
            parts.append(frame(frames.DATA, frames.END_STREAM, self.next_id, self.body))
            self.open[self.next_id] = b""
            self.next_id += 2
        self.window -= count * len(self.body)
        if parts:
            self.socket.sendall(b"".join(parts))
        return count

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of each frame that has come whole."""
        got = self.socket.recv(1 << 18)
        if not got:
            raise NoAnswer("the server closed the connection")
        data, at = self.rest + got, 0
        while len(data) - at >= 9 and len(data) - at >= (size := 9 + int.from_bytes(data[at : at + 3])):
            stream = int.from_bytes(data[at + 5 : at + 9]) & 0x7FFFFFFF
            yield data[at + 3], data[at + 4], stream, data[at + 9 : at + size]
            at += size
        self.rest = data[at:]

    def _read(self) -> int:
        """Take what has come; the number of requests that are answered."""
        ended = 0
        for kind, flags, stream, payload in self._frames():
            if kind == frames.DATA:
                assert not flags & (frames.PADDED | frames.END_STREAM), "padding, or an answer without trailers"
                self.open[stream] += payload
                self.taken += len(payload)
            elif kind == frames.HEADERS and flags & frames.END_STREAM:
                self.last = self.open.pop(stream)
                if not self.last:
                    raise NoAnswer("an error where a message was expected")
                ended += 1
            elif kind not in (frames.HEADERS, frames.CONTINUATION):
                self._control(kind, flags, stream, payload)
        if self.taken > _WINDOW // 2:
            self.socket.sendall(self._more(self.taken))
            self.taken = 0
        return ended

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.SETTINGS and not flags & frames.ACK:
            values = dict(struct.iter_unpack(">HI", payload))
            assert values.get(3, IN_FLIGHT) >= IN_FLIGHT, "the server takes fewer requests at a time"
            assert values.get(4, len(self.body)) >= len(self.body), "a stream's window is smaller than a request"
            self.socket.sendall(frame(frames.SETTINGS, frames.ACK, 0, b""))
        elif kind == frames.PING and not flags & frames.ACK:
            self.socket.sendall(frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.WINDOW_UPDATE and not stream:
            self.window += int.from_bytes(payload)
        elif kind == frames.GOAWAY or (kind == frames.RST_STREAM and stream in self.open):
            raise NoAnswer("the server reset a stream or went away")

    def _more(self, size: int) -> bytes:
        return frame(frames.WINDOW_UPDATE, 0, 0, size.to_bytes(4))

    def close(self) -> None:
        """Let go of the connection."""
        self.socket.close()


Load = HttpLoad | GrpcLoad
WIRES = {
    "JSON": lambda http, _: HttpLoad(http, False),
    "binary": lambda http, _: HttpLoad(http, True),
    "gRPC": lambda _, grpc: GrpcLoad(grpc),
}
"""How to load each wire of a server with these two ports."""


def cost_us(load: Load, process: int, seconds: float, warm_s: float = 0.2) -> float:
    """Microseconds of the server's CPU per request; a server that hardly ran in that time is loaded on."""
    load.run(warm_s)
    began = cpu_s(process)
    done, spent = 0, 0.0
    while spent < _LEAST_TICKS / _TICKS:
        done += load.run(seconds)
        spent = cpu_s(process) - began
    return spent / done * 1e6


def _connect(port: int) -> socket.socket:
    connected = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected
