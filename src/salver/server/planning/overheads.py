"""What a worker spends besides running the model: a real server with a model that does nothing, asked over sockets."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from statistics import median
from typing import Final

import msgspec
import numpy as np

from salver.backends.base import Session
from salver.core.arrays import Array
from salver.core.tensors import Signature
from salver.server._loop import new_event_loop
from salver.server.engine.base import batchable
from salver.server.engine.cost import CostModel
from salver.server.engine.engine import RealTimeEngine
from salver.server.frontends.http.server import HttpServer
from salver.server.monitoring.metrics import Metrics
from salver.server.planning.scenario import Overheads
from salver.server.settings import RunSettings, ServeSettings
from salver.wire.elements import to_bytes

_MANY: Final = 32
_ROUNDS: Final = 40
_WARM_ROUNDS: Final = 10
_GATHER_S: Final = 0.002
_PATIENCE_S: Final = 10.0
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LEAST_S: Final = 1e-6


class _Nothing(Session):
    """A model that has its answer already."""

    def __init__(self, signature: Signature, outputs: Mapping[str, Array]) -> None:
        self._signature = signature
        self._batched = batchable(signature)
        self._outputs = {n: np.repeat(a, _MANY, axis=0) if self._batched else a for n, a in outputs.items()}

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        rows = len(next(iter(inputs.values())))
        return {name: array[:rows] if self._batched else array for name, array in self._outputs.items()}

    def close(self) -> None:
        """Nothing to free."""


class _Loop(threading.Thread):
    """A server on an event loop and thread of its own, with the model twice: `inline` and on a `lane`."""

    def __init__(self, signature: Signature, outputs: Mapping[str, Array]) -> None:
        super().__init__(name="salver-overheads", daemon=True)
        self.loop = new_event_loop()
        self.address: Future[str] = Future()
        self._session = _Nothing(signature, outputs)
        self._stopping = asyncio.Event()

    def run(self) -> None:
        """The thread's."""
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._serve())
        except BaseException as error:
            if self.address.done():
                raise
            self.address.set_exception(error)
            raise
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    async def _serve(self) -> None:
        engine, http, settings = RealTimeEngine(Metrics()), HttpServer(), ServeSettings(http="127.0.0.1:0")
        for name, inline in (("inline", True), ("lane", False)):
            cost = CostModel()
            for rows in (1, _MANY):
                cost.learn(rows, _LEAST_S, _LEAST_S)
            run = RunSettings(max_batch=_MANY)
            engine.add(name, "1").open(self._session, run, merge=True, cost=cost, inline=inline)
        await http.start(engine, engine.metrics, settings)
        self.address.set_result(http.addresses[0])
        await self._stopping.wait()
        http.close_listeners()
        await http.drain(0.0)
        engine.close()

    def stop(self) -> None:
        """End the server and the thread."""
        self.loop.call_soon_threadsafe(self._stopping.set)
        self.join()


def measure_overheads(signature: Signature, row: Mapping[str, Array], outputs: Mapping[str, Array]) -> Overheads:
    """Time requests over REST with binary tensors: alone and many in one turn of the event loop, inline and on a lane.
    Takes about half a second.

    Args:
        signature: of the model.
        row: a request's inputs.
        outputs: what it gives for them.
    """
    server = _Loop(signature, outputs)
    server.start()
    host, _, port = server.address.result().rpartition(":")
    clients: list[socket.socket] = []
    try:
        for _ in range(_MANY):
            clients.append(socket.create_connection((host, int(port)), _PATIENCE_S))
            clients[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _measure(server, clients, {name: _request(name, signature, row) for name in ("inline", "lane")})
    finally:
        for client in clients:
            client.close()
        server.stop()


def _measure(server: _Loop, clients: list[socket.socket], requests: Mapping[str, bytes]) -> Overheads:
    clock = time.pthread_getcpuclockid(server.ident or 0)

    def rounds(name: str, count: int) -> tuple[float, float]:
        """CPU time of the event loop's thread, the median, and wall time, the lower quartile: others on this machine
        only lengthen it; of so many requests at once."""
        found = [_round(server.loop, clock, clients[:count], requests[name]) for _ in range(_ROUNDS + _WARM_ROUNDS)]
        cpu, wall = zip(*found[_WARM_ROUNDS:], strict=True)
        return median(cpu), sorted(wall)[len(wall) // 4]

    alone_s, alone_wall_s = rounds("inline", 1)
    many_s, _ = rounds("inline", _MANY)
    lane_s, lane_wall_s = rounds("lane", 1)
    each_s = max(_LEAST_S, (many_s - alone_s) / (_MANY - 1))
    turn_s = max(_LEAST_S, alone_s - each_s)
    network_s = max(0.0, alone_wall_s - alone_s)
    return Overheads(
        turn_s=turn_s,
        decode_s=each_s / 2,
        encode_s=each_s / 2,
        handoff_s=max(_LEAST_S, (lane_s - 2 * turn_s - each_s) / 2),
        merge_s=max(0.0, lane_wall_s - lane_s - network_s),
        merge_row_s=0.0,
        network_s=network_s,
    )


def _round(
    loop: asyncio.AbstractEventLoop, clock: int, clients: list[socket.socket], request: bytes
) -> tuple[float, float]:
    if len(clients) > 1:
        loop.call_soon_threadsafe(time.sleep, _GATHER_S)  # so that all are there when the loop looks
    began, cpu_began = time.perf_counter(), time.clock_gettime(clock)
    for client in clients:
        client.sendall(request)
    for client in clients:
        _read(client)
    return time.clock_gettime(clock) - cpu_began, time.perf_counter() - began


def _read(client: socket.socket) -> None:
    """One answer.

    Raises:
        ConnectionError: it is an error, or none.
    """
    data = client.recv(65536)
    while (end := data.find(b"\r\n\r\n")) < 0 and (more := client.recv(65536)):
        data += more
    found = _LENGTH.search(data, 0, end)
    if not data.startswith(b"HTTP/1.1 200") or found is None:
        raise ConnectionError(f"the server under measurement answered {data[:200]!r}")
    left = end + 4 + int(found[1]) - len(data)
    while left > 0 and (more := client.recv(min(left, 1 << 20))):
        left -= len(more)


def _request(name: str, signature: Signature, row: Mapping[str, Array]) -> bytes:
    """A request of the Open Inference Protocol with binary tensors."""
    tensors, parts = [], []
    for spec in signature.inputs:
        part = bytes(to_bytes(row[spec.name], spec.datatype))
        parts.append(part)
        tensors.append(
            {
                "name": spec.name,
                "shape": list(row[spec.name].shape),
                "datatype": spec.datatype,
                "parameters": {"binary_data_size": len(part)},
            }
        )
    head = msgspec.json.encode({"inputs": tensors, "parameters": {"binary_data_output": True}})
    body = head + b"".join(parts)
    fields = (
        f"POST /v2/models/{name}/infer HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/octet-stream",
        f"Inference-Header-Content-Length: {len(head)}",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join(fields).encode() + b"\r\n\r\n" + body
