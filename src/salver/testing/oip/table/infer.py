"""Inference through real clients: every datatype in every encoding, then what is easily spoiled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from salver.testing.oip.case import Call, Case, Tensor
from salver.testing.oip.checks import Check, elements, gives, need, refused, value
from salver.testing.oip.samples import DATATYPES, extremes, plain, tensor

# What a client can do for each encoding. FP16 and BF16 have a form neither in JSON nor in typed contents.
ENCODINGS: Final = {
    "json": ("http", "core", "OIP inference_rest.md, Inference Request JSON Object"),
    "binary": ("http", "binary", "Triton extension_binary_data.md; tritonclient.http's default"),
    "json-binary": ("http", "binary", "Triton extension_binary_data.md, binary_data_output"),
    "binary-json": ("http", "binary", "Triton extension_binary_data.md, binary_data"),
    "typed": ("grpc", "core", "OIP inference_grpc.md, InferTensorContents"),
    "raw": ("grpc", "core", "OIP inference_grpc.md, raw_input_contents; tritonclient.grpc's only form"),
    "stream": ("grpc", "streaming", "Triton grpc_service.proto, ModelStreamInfer"),
}
_WITHOUT_FORM: Final = {"FP16", "BF16"}
_LOSSY: Final = {"json", "json-binary", "binary-json", "typed"}
FOUR: Final = tensor("x", "FP32", [0.5, -1.0, 2.0, 0.25])


def infer(model: str, *inputs: Tensor, encoding: str, **more: Any) -> Call:
    """A call of a client's `infer`."""
    return Call("infer", {"model": model, "inputs": [t.to_data() for t in inputs], "encoding": encoding, **more})


def identity(datatype: str) -> str:
    """The model that gives its input back."""
    return f"identity_{datatype.lower()}"


def back(given: Tensor) -> Check:
    """The input comes back as output `y`."""
    return gives(msgspec.structs.replace(given, name="y"))


def wants(encoding: str, *more: str) -> frozenset[str]:
    """What a client must be able to do to infer in an encoding."""
    return frozenset({"infer", encoding, *more})


def cases() -> Iterator[Case]:
    """All of this module."""
    for encoding, (_, group, source) in ENCODINGS.items():
        for datatype in DATATYPES:
            if datatype in _WITHOUT_FORM and encoding in _LOSSY:
                continue
            yield Case(
                f"infer/{encoding}/{datatype.lower()}",
                f"{datatype} comes back as it was sent, {_words(encoding)}",
                source,
                group,
                wants(encoding, datatype),
                (infer(identity(datatype), plain(datatype), encoding=encoding),),
                back(plain(datatype)),
            )
    yield from _numbers()
    for encoding, group in (("json", "core"), ("raw", "core")):
        yield from _requests(encoding, group)
    yield from _classification()
    yield from _compression()
    yield from _large()


def _numbers() -> Iterator[Case]:
    for encoding in ("binary", "raw"):
        for datatype in DATATYPES:
            if datatype == "BYTES":
                says = "empty, non-ASCII, NUL-holding and 70 kB strings come back as they were sent"
            else:
                says = f"the extremes of {datatype} (for floats also subnormals, -0, infinities, NaN) keep their bits"
            yield Case(
                f"extremes/{encoding}/{datatype.lower()}",
                says,
                "OIP tensor data types; raw contents are the bytes of the values",
                "numbers",
                wants(encoding, datatype),
                (infer(identity(datatype), extremes(datatype), encoding=encoding),),
                back(extremes(datatype)),
            )
    for encoding in ("json", "typed"):
        for name, given, says in SPOILED:
            yield Case(
                f"numbers/{encoding}/{name}",
                says,
                "RFC 8259 section 6 sets no limit on precision; OIP carries the datatype's values",
                "numbers",
                wants(encoding, given.datatype),
                (infer(identity(given.datatype), given, encoding=encoding),),
                back(given),
            )


# Any double may be the one that a reader rounds wrongly: a thousand of them, of all magnitudes.
_DIGITS: Final = [math.sin(i) * 10.0 ** (i % 601 - 300) for i in range(1, 1001)]
SPOILED: Final = (
    ("int64", tensor("x", "INT64", [-(2**63), 2**63 - 1, 2**53 + 1, -(2**53) - 1]), "INT64 beyond 2**53 stays exact"),
    ("uint64", tensor("x", "UINT64", [2**64 - 1, 2**63, 2**53 + 1, 0]), "UINT64 up to 2**64-1 stays exact"),
    (
        "fp64-digits",
        tensor("x", "FP64", [0.1 + 0.2, 1 / 3, 1.7976931348623157e308, *_DIGITS]),
        "FP64 needs up to 17 digits and keeps them all",
    ),
    (
        "fp32-digits",
        tensor("x", "FP32", [0.1, 1 / 3, 3.4028235e38, 1.17549435e-38, 16777217.0, 1.0000001]),
        "FP32 keeps the nine digits that tell its values apart",
    ),
    ("fp32-subnormal", tensor("x", "FP32", [1e-45, -1e-45, 1e-40, 5.877e-39]), "FP32 subnormals are not flushed"),
    ("fp64-subnormal", tensor("x", "FP64", [5e-324, -5e-324, 1e-310, 1e-320]), "FP64 subnormals are not flushed"),
    ("negative-zero", tensor("x", "FP32", [-0.0, 0.0, -0.0]), "-0.0 keeps its sign"),
    ("empty-strings", tensor("x", "BYTES", ["", "a", "", ""]), "empty strings stay where they are"),
    ("unicode", tensor("x", "BYTES", ["é ü", "漢字", "🎉", "\u2028\x7f"]), "non-ASCII strings are UTF-8 both ways"),
)


def _requests(encoding: str, group: str) -> Iterator[Case]:
    where = wants(encoding)
    rest = "OIP inference_rest.md" if encoding == "json" else "OIP inference_grpc.md"
    asked = {"options": {"request_id": "request-42"}}
    yield Case(
        f"infer/{encoding}/id",
        "the request's id comes back in the answer",
        f"{rest}, id",
        group,
        where,
        (infer(identity("FP32"), FOUR, encoding=encoding, **asked),),
        value(lambda got: need(got["id"] == "request-42", f"id {got['id']!r}, expected 'request-42'")),
    )
    yield Case(
        f"infer/{encoding}/model-name",
        "the answer names the model",
        f"{rest}, model_name",
        group,
        where,
        (infer("classifier", FOUR, encoding=encoding),),
        value(lambda got: need(got["model"] == "classifier", f"model {got['model']!r}, expected 'classifier'")),
    )
    yield Case(
        f"infer/{encoding}/outputs",
        "only the requested output is given",
        f"{rest}, outputs",
        group,
        where,
        (infer("sum_difference", *_two(), encoding=encoding, outputs=[{"name": "difference"}]),),
        gives(tensor("difference", "INT32", [-9, -18, -27])),
    )
    yield Case(
        f"infer/{encoding}/two-inputs",
        "inputs are told apart by name, in whatever order they come",
        f"{rest}, inputs",
        group,
        where,
        (infer("sum_difference", *reversed(_two()), encoding=encoding),),
        gives(tensor("sum", "INT32", [11, 22, 33]), tensor("difference", "INT32", [-9, -18, -27])),
    )
    codes = {"json": ("400", "404"), "raw": ("NOT_FOUND", "INVALID_ARGUMENT")}[encoding]
    bad = {"json": ("400",), "raw": ("INVALID_ARGUMENT",)}[encoding]
    wide = tensor("x", "FP32", [1, 2, 3, 4, 5])
    for name, says, call, statuses in (
        ("unknown-model", "an unknown model is refused", infer("no_such_model", FOUR, encoding=encoding), codes),
        ("wrong-shape", "a shape that does not fit is refused", infer("classifier", wide, encoding=encoding), bad),
        (
            "wrong-datatype",
            "a datatype that does not fit is refused",
            infer("classifier", tensor("x", "INT32", [1, 2, 3, 4]), encoding=encoding),
            bad,
        ),
        (
            "unknown-input",
            "an input that the model has not is refused",
            infer("classifier", msgspec.structs.replace(FOUR, name="nope"), encoding=encoding),
            bad,
        ),
        ("missing-input", "a missing input is refused", infer("sum_difference", _two()[0], encoding=encoding), bad),
        (
            "unknown-output",
            "an output that the model has not is refused",
            infer("classifier", FOUR, encoding=encoding, outputs=[{"name": "nope"}]),
            (*bad, *codes),
        ),
    ):
        yield Case(
            f"refuses/{encoding}/{name}",
            f"{says}, and the client can read why",
            f"{rest}, error response; any 4xx that says so"
            if encoding == "json"
            else "gRPC status codes (grpc.io/docs/guides/status-codes)",
            group,
            where,
            (call,),
            refused(*statuses),
        )
    yield Case(
        f"infer/{encoding}/version",
        "version 1 may be asked for by name",
        f"{rest}, model_version",
        group,
        wants(encoding, "version"),
        (infer("classifier", FOUR, encoding=encoding, version="1"),),
        value(lambda got: need(got["version"] == "1", f"version {got['version']!r}, expected '1'")),
    )
    yield Case(
        f"refuses/{encoding}/unknown-version",
        "a version that is not there is refused",
        f"{rest}, model_version",
        group,
        wants(encoding, "version"),
        (infer("classifier", FOUR, encoding=encoding, version="99"),),
        refused(*codes),
    )


def _two() -> tuple[Tensor, Tensor]:
    return tensor("a", "INT32", [1, 2, 3]), tensor("b", "INT32", [10, 20, 30])


def _classification() -> Iterator[Case]:
    for encoding in ("json", "binary", "raw"):
        yield Case(
            f"classification/{encoding}",
            'the top two of each row come as "value:index" or "value:index:label", best first',
            "Triton extension_classification.md; InferRequestedOutput(class_count=2)",
            "classification",
            wants(encoding, "classes"),
            (
                infer(
                    "classifier",
                    tensor("x", "FP32", [0.5, -1.0, 2.0, 0.25, 9.0, 8.0, 7.0, 6.0], (2, 4)),
                    encoding=encoding,
                    outputs=[{"name": "scores", "class_count": 2}],
                ),
            ),
            value(_check_classes),
        )


def _check_classes(got: Any) -> None:
    output = Tensor.from_data(got["outputs"][0])
    need(output.datatype == "BYTES", f"datatype {output.datatype}, expected BYTES")
    need(output.shape == (2, 2), f"shape {list(output.shape)}, expected [2, 2]")
    texts = [t.decode() for t in elements(output)]
    parts = [t.split(":") for t in texts]
    found = [(float(part[0]), int(part[1])) for part in parts]
    need(found == [(2.0, 2), (0.5, 0), (9.0, 0), (8.0, 1)], f"got {texts}, expected classes 2, 0 and 0, 1")
    labels = [part[2] for part in parts if len(part) == 3]
    need(labels in ([], ["bird", "cat", "cat", "dog"]), f"got {texts}, expected the labels of these classes or none")


def _compression() -> Iterator[Case]:
    big = tensor("x", "FP32", [i % 17 for i in range(4096)], (4, 1024))
    for coding in ("gzip", "deflate"):
        for direction in ("request", "response"):
            yield Case(
                f"compression/{direction}/{coding}",
                f"a {direction} may be compressed with {coding}",
                f"tritonclient.http, {direction}_compression_algorithm",
                "compression",
                wants("json", "compression"),
                (
                    infer(
                        identity("FP32"),
                        big,
                        encoding="json",
                        options={f"{direction}_compression_algorithm": coding},
                    ),
                ),
                back(big),
            )
        yield Case(
            f"compression/grpc/{coding}",
            f"gRPC messages may be compressed with {coding}",
            "gRPC over HTTP/2, Message-Encoding; tritonclient.grpc, compression_algorithm",
            "compression",
            wants("raw", "compression"),
            (infer(identity("FP32"), big, encoding="raw", options={"compression_algorithm": coding}),),
            back(big),
        )


def _large() -> Iterator[Case]:
    big = tensor("x", "FP32", range(1_500_000), (1, 1_500_000))
    for encoding, source in (
        ("binary", "tritonclient.http sends bodies of any size"),
        ("raw", "tritonclient.grpc sets its own message limits to 2**31-1"),
    ):
        yield Case(
            f"infer/{encoding}/6MB",
            "six megabytes go there and back",
            source,
            "core" if encoding == "raw" else "binary",
            wants(encoding, "large"),
            (infer(identity("FP32"), big, encoding=encoding),),
            back(big),
        )
    yield Case(
        "infer/parameters",
        "timeout, priority and sequence_id are accepted by a model that has no use for them",
        "Triton extension_parameters.md, reserved parameters; tritonclient's infer()",
        "core",
        wants("json", "reserved"),
        (infer(identity("FP32"), FOUR, encoding="json", options={"timeout": 20_000_000, "priority": 1}),),
        back(FOUR),
    )


def _words(encoding: str) -> str:
    return {
        "json": "in JSON both ways",
        "binary": "in binary both ways",
        "json-binary": "in JSON, back in binary",
        "binary-json": "in binary, back in JSON",
        "typed": "in typed contents",
        "raw": "in raw contents",
        "stream": "over a stream",
    }[encoding]
