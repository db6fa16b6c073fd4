"""gRPC by a plain stub: codes, limits, deadlines, health and reflection; and the bidirectional stream."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from salver.testing.oip.case import Call, Case, Tensor
from salver.testing.oip.checks import Check, need, refused, same, value
from salver.testing.oip.samples import tensor
from salver.testing.oip.table.infer import FOUR, identity, infer

STUB: Final = frozenset({"stub"})
_CODES: Final = "gRPC status codes (grpc.io/docs/guides/status-codes)"
_SPEC: Final = "OIP inference_grpc.md"
_MALFORMED: Final = ("INTERNAL", "INVALID_ARGUMENT", "UNKNOWN")
_SERVICE: Final = "inference.GRPCInferenceService"


def cases() -> Iterator[Case]:
    """All of this module."""
    yield from _methods()
    yield from _inference()
    yield from _errors()
    yield from _standard_services()
    yield from _streaming()


def _stub(name: str, says: str, source: str, group: str, check: Check, *calls: Call) -> Case:
    return Case(f"grpc/{name}", says, source, group, STUB, calls, check)


def _call(method: str, **request: Any) -> Call:
    return Call("call", {"method": method, "request": request})


def _says(field: str) -> Check:
    return value(lambda got: need(got.get(field) is True, f"got {got}, expected {field}: true"))


def _methods() -> Iterator[Case]:
    for name, field, call in (
        ("ServerLive", "live", _call("ServerLive")),
        ("ServerReady", "ready", _call("ServerReady")),
        ("ModelReady", "ready", _call("ModelReady", name="classifier")),
        ("ModelReady-version", "ready", _call("ModelReady", name="classifier", version="1")),
    ):
        yield _stub(name, f"{name.replace('-', ' of a ')} says {field}", _SPEC, "core", _says(field), call)
    yield _stub(
        "ServerMetadata",
        "ServerMetadata gives name and version",
        _SPEC,
        "core",
        value(lambda got: need(bool(got.get("name") and got.get("version")), f"got {got}")),
        _call("ServerMetadata"),
    )
    yield _stub(
        "ModelMetadata",
        "ModelMetadata gives inputs and outputs",
        _SPEC,
        "core",
        value(_check_metadata),
        _call("ModelMetadata", name="classifier"),
    )
    yield _stub(
        "ModelConfig",
        "ModelConfig names the model",
        "Triton grpc_service.proto, ModelConfig",
        "configuration",
        value(lambda got: need(got["config"].get("name") == "classifier", f"got {str(got)[:160]}")),
        _call("ModelConfig", name="classifier"),
    )
    yield _stub(
        "ModelStatistics",
        "ModelStatistics of one model gives that model",
        "Triton grpc_service.proto, ModelStatistics",
        "statistics",
        value(lambda got: need([m["name"] for m in got["model_stats"]] == ["classifier"], f"got {str(got)[:160]}")),
        _call("ModelStatistics", name="classifier"),
    )
    yield _stub(
        "RepositoryIndex",
        "RepositoryIndex lists the models",
        "Triton grpc_service.proto, RepositoryIndex",
        "repository",
        value(lambda got: need("classifier" in [m["name"] for m in got["models"]], f"got {str(got)[:160]}")),
        _call("RepositoryIndex"),
    )


def _check_metadata(got: Any) -> None:
    found = [(t["name"], t["datatype"], [int(n) for n in t["shape"]]) for t in (*got["inputs"], *got["outputs"])]
    expected = [("x", "FP32", [-1, 4]), ("scores", "FP32", [-1, 4])]
    need(found == expected, f"got {found}, expected {expected}")


def _inference() -> Iterator[Case]:
    yield _stub(
        "raw-for-raw",
        "a raw request gets a raw answer",
        "tritonclient.grpc reads numbers from raw_output_contents alone",
        "core",
        value(lambda got: need(got["raw"], "the answer has typed contents")),
        infer(identity("FP32"), FOUR, encoding="raw"),
    )
    yield _stub(
        "compressed",
        "a gzip-compressed message is read",
        "gRPC over HTTP/2, Message-Encoding",
        "compression",
        value(_is(FOUR)),
        infer(identity("FP32"), FOUR, encoding="raw", options={"compression": "Gzip"}),
    )
    yield _stub(
        "parameters",
        "parameters of the request that the server has no use for are accepted",
        f"{_SPEC}, parameters",
        "core",
        value(_is(FOUR)),
        infer(identity("FP32"), FOUR, encoding="raw", options={"parameters": {"priority": 1, "note": "hello"}}),
    )
    many = [tensor("x", "FP32", [i, i + 0.5, -i], (1, 3)) for i in range(64)]
    yield _stub(
        "together",
        "64 requests at once on one connection each get their own answer",
        "RFC 9113: streams are independent",
        "grpc",
        value(lambda got: [_is(given)(answer) for given, answer in zip(many, got, strict=True)]),
        Call("together", {"requests": [{"model": identity("FP32"), "inputs": [t.to_data()]} for t in many]}),
    )


def _is(given: Tensor) -> Any:
    def check(answer: Any) -> None:
        [output] = answer["outputs"]
        same(Tensor.from_data(output), msgspec.structs.replace(given, name="y"))

    return check


def _errors() -> Iterator[Case]:
    unknown = ("NOT_FOUND",)
    for name, says, call, statuses in (
        ("unknown-model", "an unknown model", infer("no_such_model", FOUR, encoding="raw"), unknown),
        (
            "unknown-version",
            "an unknown version",
            infer("classifier", FOUR, encoding="raw", version="99"),
            (*unknown, "INVALID_ARGUMENT"),
        ),
        ("unknown-metadata", "the metadata of an unknown model", _call("ModelMetadata", name="no_such_model"), unknown),
        ("raw-too-short", "raw contents shorter than the shape", _short(), ("INVALID_ARGUMENT",)),
        ("raw-lying-string", "a string longer than its contents", _lying(), ("INVALID_ARGUMENT",)),
        ("raw-too-many", "more raw contents than inputs", _message(_RAW_TWICE), ("INVALID_ARGUMENT",)),
        ("no-inputs", "a request without inputs", _message({"model_name": "classifier"}), ("INVALID_ARGUMENT",)),
        (
            "typed-too-few",
            "fewer typed values than the shape says",
            _typed({"fp32_contents": [1.0]}),
            ("INVALID_ARGUMENT",),
        ),
        (
            "typed-wrong-field",
            "values in the field of another type",
            _typed({"int_contents": [1, 2, 3, 4]}),
            ("INVALID_ARGUMENT",),
        ),
        ("typed-and-raw", "raw and typed contents in one request", _message(_BOTH), ("INVALID_ARGUMENT",)),
        (
            "typed-out-of-range",
            "300 for INT8 in typed contents (wrapping it would be a wrong answer)",
            _typed({"int_contents": [1, 300]}, "INT8", [1, 2], identity("INT8")),
            ("INVALID_ARGUMENT",),
        ),
        (
            "negative-shape",
            "a negative dimension",
            _typed({"fp32_contents": [1.0] * 4}, shape=[-1, 4]),
            ("INVALID_ARGUMENT",),
        ),
    ):
        yield _stub(f"errors/{name}", f"{says} is {' or '.join(statuses)}", _CODES, "grpc", refused(*statuses), call)
    yield _stub(
        "errors/malformed",
        "a message that is no protobuf is INTERNAL, INVALID_ARGUMENT or UNKNOWN (gRPC libraries differ)",
        _CODES,
        "grpc",
        refused(*_MALFORMED),
        Call("bytes_call", {"path": f"/{_SERVICE}/ModelInfer", "data": _text(b"\xff\xff\xff\xff\xff")}),
    )
    for name, path in (("method", f"/{_SERVICE}/NoSuchMethod"), ("service", "/no.such.Service/Method")):
        yield _stub(
            f"errors/unknown-{name}",
            f"an unknown {name} is UNIMPLEMENTED",
            "gRPC over HTTP/2, Responses",
            "grpc",
            refused("UNIMPLEMENTED"),
            Call("bytes_call", {"path": path, "data": ""}),
        )
    slow = tensor("x", "FP32", [1.0])
    yield _stub(
        "deadline",
        "a call with a deadline of 20 ms on a slow model is DEADLINE_EXCEEDED",
        "grpc.io/docs/guides/deadlines",
        "grpc",
        refused("DEADLINE_EXCEEDED"),
        infer("slow", slow, encoding="raw", options={"timeout_s": 0.02}),
    )
    yield _stub(
        "slow",
        "the slow model answers where there is time (also after a deadline was missed)",
        _SPEC,
        "grpc",
        value(_is(slow)),
        infer("slow", slow, encoding="raw"),
    )
    yield _stub(
        "cancel",
        "a call may be cancelled under way, and the server goes on",
        "grpc.io/docs/guides/cancellation",
        "grpc",
        value(lambda got: need(got == {"cancelled": True, "live": True}, f"got {got}")),
        Call("cancelled", {"request": {"model": "slow", "inputs": [slow.to_data()]}}),
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _message(request: dict[str, Any]) -> Call:
    return Call("call", {"method": "ModelInfer", "request": request})


_INPUT: Final = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
_RAW_TWICE: Final = {
    "model_name": "classifier",
    "inputs": [_INPUT],
    "raw_input_contents": [_text(FOUR.data), _text(FOUR.data)],
}
_BOTH: Final = {
    "model_name": "classifier",
    "inputs": [{**_INPUT, "contents": {"fp32_contents": [1.0, 2.0, 3.0, 4.0]}}],
    "raw_input_contents": [_text(FOUR.data)],
}


def _short() -> Call:
    return infer("classifier", msgspec.structs.replace(FOUR, data=FOUR.data[:-4]), encoding="raw")


def _lying() -> Call:
    return infer(identity("BYTES"), Tensor("x", "BYTES", (1, 1), b"\xff\x00\x00\x00ab"), encoding="raw")


def _typed(
    contents: dict[str, Any], datatype: str = "FP32", shape: Sequence[int] = (1, 4), model: str = "classifier"
) -> Call:
    given = {"name": "x", "datatype": datatype, "shape": list(shape), "contents": contents}
    return _message({"model_name": model, "inputs": [given]})


def _standard_services() -> Iterator[Case]:
    source = "grpc.health.v1 (grpc/doc/health-checking.md)"
    serving = value(lambda got: need(got == "SERVING", f"got {got}, expected SERVING"))
    yield _stub(
        "health/server", "the health service says SERVING of the server", source, "grpc", serving, Call("health")
    )
    yield _stub(
        "health/service",
        "the health service says SERVING of the inference service",
        source,
        "grpc",
        serving,
        Call("health", {"service": _SERVICE}),
    )
    yield _stub(
        "health/unknown",
        "the health service answers NOT_FOUND for a service it does not know",
        source,
        "grpc",
        refused("NOT_FOUND"),
        Call("health", {"service": "no.such.Service"}),
    )
    yield _stub("health/watch", "Watch sends the status at once", source, "grpc", serving, Call("watch"))
    yield _stub(
        "reflection",
        "reflection names the inference service (grpcurl and grpcui ask it)",
        "grpc.reflection.v1alpha",
        "grpc",
        value(lambda got: need(_SERVICE in got, f"got {got}")),
        Call("services"),
    )


def _streaming() -> Iterator[Case]:
    given = [tensor("x", "FP32", [float(i)] * 3) for i in range(8)]
    requests = [
        {"model": identity("FP32"), "inputs": [t.to_data()], "options": {"request_id": f"r{i}"}}
        for i, t in enumerate(given)
    ]
    source = "Triton grpc_service.proto, ModelStreamInfer"
    can = frozenset({"stream"})
    many = Call("stream", {"requests": requests})

    def each(answers: Any) -> None:
        found = {answer.get("id"): answer for answer in answers}
        need(set(found) == {f"r{i}" for i in range(8)}, f"ids {sorted(map(str, found))}, expected r0 to r7")
        for i, tensor_ in enumerate(given):
            _is(tensor_)(found[f"r{i}"])

    yield Case(
        "stream/many",
        "each request of a stream gets its answer, told by its id",
        source,
        "streaming",
        can,
        (many,),
        value(each),
    )
    bad = {"model": "no_such_model", "inputs": [FOUR.to_data()]}

    def survives(answers: Any) -> None:
        errors = [a for a in answers if a.get("error")]
        need(len(answers) == 2 and len(errors) == 1, f"{len(answers)} answers, {len(errors)} errors; expected 2 and 1")

    yield Case(
        "stream/error",
        "a request that fails gives error_message, and the stream goes on",
        source + ": error_message",
        "streaming",
        can,
        (Call("stream", {"requests": [bad, requests[0]]}),),
        value(survives),
    )
    final = {"model": identity("FP32"), "inputs": [FOUR.to_data()], "options": {"enable_empty_final_response": True}}

    def ends(answers: Sequence[Any]) -> None:
        need(answers[-1]["final"] is True, f"triton_final_response is {answers[-1]['final']!r} in the last answer")

    yield Case(
        "stream/final",
        "the last answer of a request that asks for it carries triton_final_response",
        "Triton decoupled models; tritonclient.grpc, enable_empty_final_response",
        "streaming",
        frozenset({"stream", "final"}),
        (Call("stream", {"requests": [final]}),),
        value(ends),
    )
