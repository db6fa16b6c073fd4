"""What a bad REST request gets: a 4xx and ``{"error": text}``, never a 5xx, never a wrong answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from salver.testing.oip.case import Case
from salver.testing.oip.checks import client_error, http, json_error
from salver.testing.oip.table.rest import BODY, INFER, exchange, plain

_SOURCE: Final = "OIP inference_rest.md: an error is a status, typically 400, and {error}; 5xx would ask for a retry"
_X: Final = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0.5, -1.0, 2.0, 0.25]}


def cases() -> Iterator[Case]:
    """All of this module."""
    for name, says, request in _NOT_FOUND:
        yield plain(f"errors/{name}", f"{says} is a 4xx with an error text", _SOURCE, "core", request, _missing)
    for name, says, model, body in _BAD:
        request = exchange("POST", f"/v2/models/{model}/infer", body)
        yield plain(f"errors/{name}", f"{says} is a 4xx with an error text", _SOURCE, "core", request, json_error())
    yield plain(
        "errors/unknown-route",
        "a path that is none is a 4xx",
        "RFC 9110 section 15.5.5",
        "core",
        exchange("GET", "/v2/no/such/path"),
        http(client_error),
    )
    yield plain(
        "errors/method",
        "GET where POST belongs is a 4xx",
        "RFC 9110 section 15.5.6",
        "core",
        exchange("GET", INFER),
        http(client_error),
    )


def _with(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{**_X, **changes}]}


_missing: Final = json_error()
_NOT_FOUND: Final = (
    (
        "unknown-model-infer",
        "inference with an unknown model",
        exchange("POST", "/v2/models/no_such_model/infer", BODY),
    ),
    ("unknown-model-metadata", "the metadata of an unknown model", exchange("GET", "/v2/models/no_such_model")),
    (
        "unknown-version-infer",
        "inference with an unknown version",
        exchange("POST", "/v2/models/classifier/versions/99/infer", BODY),
    ),
    ("unknown-version-metadata", "an unknown version's metadata", exchange("GET", "/v2/models/classifier/versions/99")),
    (
        "odd-version",
        "a version that is no number",
        exchange("POST", "/v2/models/classifier/versions/none/infer", BODY),
    ),
)
# A name, what is wrong, the model and the body.
_BAD: Final[tuple[tuple[str, str, str, Any], ...]] = (
    ("empty-body", "an empty body", "classifier", b""),
    ("broken-json", "broken JSON", "classifier", b'{"inputs": ['),
    ("not-an-object", "JSON that is no object", "classifier", [1, 2]),
    ("no-inputs", "a request without inputs", "classifier", {}),
    ("inputs-not-a-list", "inputs that are no list", "classifier", {"inputs": {"x": 1}}),
    ("no-shape", "an input without shape", "classifier", {"inputs": [{k: v for k, v in _X.items() if k != "shape"}]}),
    (
        "no-datatype",
        "an input without datatype",
        "classifier",
        {"inputs": [{k: v for k, v in _X.items() if k != "datatype"}]},
    ),
    ("no-data", "an input without data", "classifier", {"inputs": [{k: v for k, v in _X.items() if k != "data"}]}),
    ("wrong-shape", "a shape that the model does not take", "classifier", _with(shape=[1, 3], data=[1.0, 2.0, 3.0])),
    ("wrong-rank", "a shape of another rank", "classifier", _with(shape=[4])),
    ("too-few", "fewer values than the shape says", "classifier", _with(data=[1.0, 2.0, 3.0])),
    ("too-many", "more values than the shape says", "classifier", _with(data=[1.0, 2.0, 3.0, 4.0, 5.0])),
    ("negative-shape", "a negative dimension", "classifier", _with(shape=[-1, 4])),
    ("shape-overflow", "a shape whose product overflows 64 bits", "identity_fp32", _with(shape=[2**32, 2**32])),
    ("unknown-datatype", "a datatype that is none", "classifier", _with(datatype="FP31")),
    ("wrong-datatype", "another datatype than the model's", "classifier", _with(datatype="INT32", data=[1, 2, 3, 4])),
    ("string-in-floats", "a text among floats", "classifier", _with(data=[0.5, "one", 2.0, 0.25])),
    ("null-in-floats", "null among floats", "classifier", _with(data=[0.5, None, 2.0, 0.25])),
    (
        "out-of-range",
        "300 for INT8 (wrapping it would be a wrong answer)",
        "identity_int8",
        _with(datatype="INT8", shape=[1, 2], data=[1, 300]),
    ),
    (
        "negative-unsigned",
        "-1 for UINT32",
        "identity_uint32",
        _with(datatype="UINT32", shape=[1, 2], data=[1, -1]),
    ),
    (
        "beyond-int64",
        "2**63 for INT64",
        "identity_int64",
        _with(datatype="INT64", shape=[1, 2], data=[1, 2**63]),
    ),
    (
        "fraction-for-integer",
        "1.5 for INT32",
        "identity_int32",
        _with(datatype="INT32", shape=[1, 2], data=[1, 1.5]),
    ),
    (
        "number-for-string",
        "a number among strings",
        "identity_bytes",
        _with(datatype="BYTES", shape=[1, 2], data=["a", 1]),
    ),
    ("unknown-input", "an input the model has not", "classifier", _with(name="nope")),
    (
        "missing-input",
        "a missing input",
        "sum_difference",
        {"inputs": [{"name": "a", "datatype": "INT32", "shape": [1, 1], "data": [1]}]},
    ),
    ("twice-the-input", "the same input twice", "classifier", {"inputs": [_X, _X]}),
    ("unknown-output", "an output the model has not", "classifier", {**BODY, "outputs": [{"name": "nope"}]}),
)
