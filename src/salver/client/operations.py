"""What can be asked of a server, as flows without I/O; both clients drive them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from salver.client.endpoint import Endpoint
from salver.client.flow import Flow, Retry, run_call
from salver.client.messages import Answer, Value, make_call
from salver.client.protocol import Operation, Protocol
from salver.client.rest import RestProtocol
from salver.core.registry import load

_ONCE: Final = Retry(attempts=1)
_BINARY: Final = frozenset({"binary_tensor_data", "binary_data"})
_GRPC: Final = "salver.client.grpc:GrpcProtocol"  # on demand: protobuf costs 20 ms and 8 MB


def make_protocol(endpoint: Endpoint) -> Protocol | None:
    """The protocol of an endpoint; None for REST, see `Operations`."""
    if not endpoint.is_grpc:
        return None
    protocol: Protocol = load(_GRPC)()
    return protocol


class Operations:
    """Flows of one protocol.

    Args:
        protocol: None for REST whose tensors travel in the form that the server announces, asked before the first
            inference.
        retry: of inference and of questions.
    """

    def __init__(self, protocol: Protocol | None, retry: Retry) -> None:
        self._known = protocol
        self._plain: Protocol = protocol or RestProtocol(binary=False)
        self._retry = retry

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Value],
        version: str,
        outputs: Sequence[str],
        parameters: Mapping[str, Any] | None,
        id: str,
        timeout_s: float | None,
        *,
        told: bool,
    ) -> Flow[Answer]:
        """One inference.

        Args:
            told: whether the server is told how long the caller waits.
        """
        call = make_call(model, inputs, version, outputs, parameters, id)
        if self._known is None:
            described = yield from self.ask("server", {}, timeout_s)
            announced = described.get("extensions") if isinstance(described, dict) else None
            self._known = RestProtocol(binary=bool(_BINARY.intersection(announced or ())))
        protocol = self._known
        retry = _ONCE if call.is_step else self._retry
        answer = yield from run_call(
            lambda left_s: protocol.infer(call, left_s if told else None), protocol.read_infer, retry, timeout_s
        )
        return answer

    def ask(self, operation: Operation, arguments: Mapping[str, Any], timeout_s: float | None) -> Flow[Any]:
        """Another operation. What changes the server is not tried again."""
        protocol = self._plain
        retry = _ONCE if operation in ("load", "unload", "live", "ready", "model_ready") else self._retry
        request = protocol.ask(operation, arguments)
        found = yield from run_call(
            lambda _: request, lambda incoming: protocol.read(operation, incoming), retry, timeout_s
        )
        return found
