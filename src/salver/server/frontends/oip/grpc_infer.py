"""``ModelInfer`` and ``ModelStreamInfer``."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Final, TypeVar

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, SalverError
from salver.server.engine.base import ServedModel, Tensors
from salver.server.frontends.access import Peer
from salver.server.frontends.base import Method, Services
from salver.server.frontends.dataplane import Reply
from salver.server.frontends.grpc.call import Call
from salver.server.frontends.grpc.codes import MAX_MESSAGE_BYTES
from salver.server.frontends.oip.grpc_codec import GrpcCodec, GrpcPlan
from salver.server.frontends.oip.grpc_shortcut import Templates
from salver.server.frontends.oip.messages import CodecLimits
from salver.server.frontends.oip.protos import OIP, PREFIX, parser
from salver.wire.protobuf import delimited

_EMPTY_FINAL: Final = "triton_enable_empty_final_response"
_INFER_RESPONSE: Final = 2
_StreamResponse: Final = OIP.message("inference.ModelStreamInferResponse")
_InferResponse: Final = OIP.message("inference.ModelInferResponse")
_FINAL: Final = {"triton_final_response": {"bool_param": True}}
_FINAL_BYTES: Final = _InferResponse(parameters=_FINAL).SerializeToString()
_UNTOLD: Final = object()
"""The revision of an engine that tells none: it equals no other, so that a model is found anew each time."""

Argument = TypeVar("Argument")
Send = Callable[[bytes], None]
_Read = tuple[ServedModel, GrpcCodec, Tensors, GrpcPlan, str]


class InferMethods:
    """Inference: one request and one answer, or any number of each on one stream."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine
        self._dataplane = services.dataplane
        self._memory = services.shared_memory
        self._limits = CodecLimits(max_string_bytes=services.settings.max_string_bytes)
        self.parse = parser("ModelInferRequest")
        self._templates = Templates()
        self._codecs: weakref.WeakKeyDictionary[ServedModel, GrpcCodec] = weakref.WeakKeyDictionary()

    def methods(self) -> Sequence[Method]:
        """All of them."""
        return (
            Method(f"{PREFIX}ModelInfer", self._infer, "infer"),
            Method(f"{PREFIX}ModelStreamInfer", self._stream, "infer", streaming=True),
        )

    def _infer(self, call: Call) -> None:
        self.submit(call, call.message, call, call.respond, call.started_s)

    def _stream(self, call: Call) -> None:
        stream = _Stream(self, call)
        call.on_message = stream.take
        call.on_end = stream.end
        call.cancel = stream.cancel

    def submit(self, reply: Reply, message: bytes, call: Call, send: Send, started_s: float) -> None:
        """Decode a request and run it.

        Args:
            reply: takes its error.
            message: a ``ModelInferRequest``.
            call: what it came with.
            send: takes the ``ModelInferResponse``.

        Raises:
            SalverError: it was refused; the caller answers.
        """
        model, codec, inputs, plan, id = self._read(message, call, started_s)
        peer = call.peer

        def encode(outputs: dict[str, Array]) -> None:
            send(codec.encode(plan, id, outputs, peer))

        self._dataplane.infer(
            reply, model, inputs, plan.rows, encode, started_s, plan.outputs, plan.parameters, call.deadline_s
        )

    def _read(self, message: bytes, call: Call, started_s: float) -> _Read:
        match = self._templates.match(message)
        if match is not None:
            template, id, shift = match
            model = template.model()
            revision = self._engine.revision
            if template.revision is not revision:
                found = self._engine.find(template.name, template.version)
                if found is not model:
                    return self._read_slowly(message, call, started_s)
                template.revision = revision or _UNTOLD
            if model is not None:
                try:
                    inputs = template.fill(message, shift)
                except SalverError as error:
                    self._dataplane.refuse(model, error, started_s)
                    raise
                if inputs is not None:
                    return model, template.codec, inputs, template.plan, id
        return self._read_slowly(message, call, started_s)

    def _read_slowly(self, message: bytes, call: Call, started_s: float) -> _Read:
        request = self.parse(message)
        names = request.model_name, request.model_version
        model = self._engine.find(*names)
        codec = self._codecs.get(model) or self._add_codec(model)
        try:
            inputs, plan = codec.decode(request, call.peer)
            if plan.parameters is not None:
                _check_parameters(plan.parameters)
        except SalverError as error:
            self._dataplane.refuse(model, error, started_s)
            raise
        self._templates.learn(message, names, inputs, plan, codec, model)
        return model, codec, inputs, plan, request.id

    def _add_codec(self, model: ServedModel) -> GrpcCodec:
        codec = self._codecs[model] = GrpcCodec(model.name, model.version, model.signature, self._memory, self._limits)
        return codec


def _check_parameters(parameters: dict[str, object]) -> None:
    value = parameters.get(_EMPTY_FINAL, False)
    if not isinstance(value, bool):
        raise InvalidArgument(f"parameter '{_EMPTY_FINAL}' is {value!r}, expected true or false")


class _Stream:
    """One ``ModelStreamInfer`` call. Answers come in the order of the requests, as Triton gives them for models that
    answer each request once: a client without ids counts on it. A request that fails is answered by its error, and the
    stream goes on."""

    def __init__(self, methods: InferMethods, call: Call) -> None:
        self.methods = methods
        self.call = call
        self._open: deque[_StreamReply] = deque()
        self._ended = False

    def take(self, message: bytes) -> None:
        """A request of the client. The connection gives no more while many are unanswered."""
        if self.call.code:
            return
        reply = _StreamReply(self, message)
        self._open.append(reply)
        reply.attempt(self._submit, reply)

    def _submit(self, reply: _StreamReply) -> None:
        self.methods.submit(reply, reply.message, self.call, reply.send, perf_counter())

    def end(self) -> None:
        """The client will send no more."""
        self._ended = True
        self.flush()

    def cancel(self) -> None:
        """The client went away."""
        waiting = list(self._open)
        self._open.clear()
        for reply in waiting:
            reply.drop()

    def flush(self) -> None:
        """Send what is ready and first in line."""
        while self._open:
            response = self._open[0].response
            if response is None:
                return
            self._open.popleft()
            self.call.send(response)
        if self._ended:
            self.call.finish()


class _StreamReply:
    """The answer to one request of a stream."""

    __slots__ = ("_stream", "cancel", "code", "message", "response")

    def __init__(self, stream: _Stream, message: bytes) -> None:
        self._stream = stream
        self.message = message
        self.cancel: Callable[[], None] | None = None
        self.code = ""
        self.response: bytes | None = None
        """A ``ModelStreamInferResponse``, once there is one."""

    @property
    def peer(self) -> Peer:
        """Who opened the stream."""
        return self._stream.call.peer

    def send(self, response: bytes) -> None:
        """Give a ``ModelInferResponse``."""
        self._finish("OK", delimited(_INFER_RESPONSE, response + _FINAL_BYTES))

    def fail(self, error: SalverError) -> None:
        """Give an error, and which request it is for as far as that could be read."""
        if self.code:
            return
        named = {}
        try:
            request = self._stream.methods.parse(self.message)
        except InvalidArgument:
            pass
        else:
            named = {"id": request.id, "model_name": request.model_name, "model_version": request.model_version}
        message = error.message[:MAX_MESSAGE_BYTES].encode("utf-8", "replace").decode()
        answer = _StreamResponse(error_message=message, infer_response={**named, "parameters": _FINAL})
        self._finish(error.code.value, answer.SerializeToString())

    def attempt(self, step: Callable[[Argument], None], argument: Argument) -> None:
        """Run a step of answering; an error it raises becomes the answer, and a defect ends the stream."""
        call = self._stream.call
        call.attempt(partial(self._try, step), argument)
        if call.code:
            self._stream.cancel()

    def _try(self, step: Callable[[Argument], None], argument: Argument) -> None:
        try:
            step(argument)
        except SalverError as error:
            self.fail(error)

    def drop(self) -> None:
        """Nobody waits for it any more."""
        if not self.code:
            self.code = "CANCELLED"
            self.message = b""
            cancel, self.cancel = self.cancel, None
            if cancel is not None:
                cancel()

    def _finish(self, code: str, response: bytes) -> None:
        if not self.code:
            self.code = code
            self.cancel = None
            self.message = b""
            self.response = response
            self._stream.flush()
