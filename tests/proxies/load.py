"""Steady load on proxies: callers that ask one request after the other, each with a value of its own."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import grpc
import numpy as np

from tests.proxies.calls import TIMEOUT_S, channel, infer_json, request, stub
from tests.proxies.proxies import Front

Call = Callable[[int], str]
"""Asks with a number, gives what went wrong, or nothing."""

REST = "rest"
PAUSE_S = 0.005
RETRY = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


class Load:
    """Callers of every proxy, and what came of their calls.

    Args:
        fronts: proxies by name.
        callers: of each proxy: `REST` over a connection of its own, or a model asked over the one gRPC channel.
        repeating: proxies whose callers ask again where they get no answer.
    """

    def __init__(self, fronts: Mapping[str, Front], callers: Sequence[str], repeating: Collection[str] = ()) -> None:
        self.failures: dict[str, list[str]] = {name: [] for name in fronts}
        self.counts = dict.fromkeys(fronts, 0)
        self._fronts = fronts
        self._callers = callers
        self._repeating = repeating

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Until the block ends, all call."""
        stop = threading.Event()
        with contextlib.ExitStack() as stack:
            threads = []
            for name, front in self._fronts.items():
                repeat = name in self._repeating
                one = stack.enter_context(channel(front.http2, *([("grpc.service_config", RETRY)] if repeat else ())))
                for kind in self._callers:
                    call = stack.enter_context(rest_caller(front, repeat)) if kind == REST else grpc_caller(one, kind)
                    threads.append(threading.Thread(target=self._repeat, args=(name, call, stop)))
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                stop.set()
                for thread in threads:
                    thread.join()

    def _repeat(self, name: str, call: Call, stop: threading.Event) -> None:
        for number in itertools.count():
            failure = call(number)
            self.counts[name] += 1
            if failure:
                self.failures[name].append(failure)
            if stop.is_set():
                return
            time.sleep(PAUSE_S)


def grpc_caller(one: grpc.Channel, model: str) -> Call:
    """Asks over that channel."""
    infer: Any = stub(one).ModelInfer

    def call(number: int) -> str:
        try:
            answer = infer(request(model, np.array([[number]], np.float32)), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return f"{model}: {error.code()} {error.details()}"
        got = np.frombuffer(answer.raw_output_contents[0], np.float32).tolist()
        return "" if got == [number] else f"{model}: got {got} for {number}"

    return call


@contextlib.contextmanager
def rest_caller(front: Front, repeat: bool = False) -> Iterator[Call]:
    """Asks over one connection of HTTP/1.1.

    Args:
        repeat: whether it asks once more where the connection is closed in answer's stead (RFC 9112, 9.3.1).
    """
    host, _, port = front.http1.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)

    def ask(number: int) -> http.client.HTTPResponse:
        connection.request("POST", "/v2/models/identity_fp32/infer", infer_json([number]))
        return connection.getresponse()

    def call(number: int) -> str:
        try:
            try:
                answer = ask(number)
            except http.client.RemoteDisconnected:
                if not repeat:
                    raise
                answer = ask(number)
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return f"REST: {error!r}"
        if answer.status != 200:
            return f"REST: {answer.status} {body!r}"
        got = json.loads(body)["outputs"][0]["data"]
        return "" if got == [number] else f"REST: got {got} for {number}"

    with contextlib.closing(connection):
        yield call
