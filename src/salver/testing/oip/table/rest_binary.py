"""The binary tensor data extension, byte by byte."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any, Final

from salver.testing.oip.case import Case, Failed
from salver.testing.oip.checks import Reply, http, json_error, need
from salver.testing.oip.table.rest import BODY, INFER, exchange, plain, scores

_SOURCE: Final = "Triton extension_binary_data.md"
_LENGTH: Final = "Inference-Header-Content-Length"
_FOUR: Final = struct.pack("<4f", 0.5, -1.0, 2.0, 0.25)


def binary(head: dict[str, Any], tail: bytes, length: str | None = None) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request with a binary part; another length than the right one where given."""
    text = json.dumps(head).encode()
    return text + tail, {_LENGTH: str(len(text)) if length is None else length}


def _head(size: int = 16, **more: Any) -> dict[str, Any]:
    x = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": size}}
    return {"inputs": [x], **more}


def cases() -> Iterator[Case]:
    """All of this module."""
    yield _case("in", "a binary input, the answer in JSON as nothing else was asked", binary(_head(), _FOUR), scores)
    yield _case(
        "out-parameter",
        "binary_data of one output gives that output in binary",
        (json.dumps({**BODY, "outputs": [_output(True)]}).encode(), {}),
        _binary_scores,
    )
    yield _case(
        "out-request",
        "binary_data_output of the request gives every output in binary",
        (json.dumps({**BODY, "parameters": {"binary_data_output": True}}).encode(), {}),
        _binary_scores,
    )
    both = {**BODY, "parameters": {"binary_data_output": True}, "outputs": [_output(False)]}
    yield _case(
        "out-override",
        "binary_data: false of an output wins over binary_data_output: true of the request",
        (json.dumps(both).encode(), {}),
        scores,
    )
    yield _mixed()
    for name, says, (body, headers) in _bad():
        yield plain(
            f"binary/{name}",
            f"{says} is a 4xx with an error text",
            _SOURCE,
            "binary",
            exchange("POST", INFER, body, headers),
            json_error(),
        )
    lying = struct.pack("<I", 2**31) + b"abc"
    head = {
        "inputs": [
            {"name": "x", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(lying)}},
        ]
    }
    body, headers = binary(head, lying)
    yield plain(
        "binary/lying-string",
        "a string whose length is beyond the body is a 4xx with an error text",
        _SOURCE,
        "binary",
        exchange("POST", "/v2/models/identity_bytes/infer", body, headers),
        json_error(),
    )


def _bad() -> Iterator[tuple[str, str, tuple[bytes, dict[str, str]]]]:
    yield "length-beyond-body", "a header length beyond the body", binary(_head(), _FOUR, "100000")
    yield "length-no-number", "a header length that is no number", binary(_head(), _FOUR, "many")
    yield "length-short", "a header length that cuts the JSON", binary(_head(), _FOUR, "20")
    yield "size-too-large", "a binary_data_size beyond the body", binary(_head(64), _FOUR)
    yield "size-not-of-shape", "a binary_data_size that does not fit the shape", binary(_head(12), _FOUR[:12])
    yield "left-over", "bytes that belong to no input", binary(_head(), _FOUR + b"\0\0\0\0")
    data_too = _head()
    data_too["inputs"][0]["parameters"]["binary_data_size"] = -16
    yield "size-negative", "a negative binary_data_size", binary(data_too, _FOUR)


def _case(name: str, says: str, sent: tuple[bytes, dict[str, str]], check: Any) -> Case:
    return plain(f"binary/{name}", says, _SOURCE, "binary", exchange("POST", INFER, *sent), http(check))


def _output(wanted: bool) -> dict[str, Any]:
    return {"name": "scores", "parameters": {"binary_data": wanted}}


def _binary_scores(reply: Reply) -> None:
    head, tail = reply.expect(200).split()
    try:
        [output] = head["outputs"]
        size = output["parameters"]["binary_data_size"]
    except (KeyError, ValueError, TypeError) as error:
        raise Failed(f"no binary output ({error!r}): {reply.body[:160]!r}") from None
    need("data" not in output, "the output has data beside its binary part")
    need(size == 16 and tail == _FOUR, f"binary_data_size {size}, tail {tail!r}, expected 16 and {_FOUR!r}")


def _mixed() -> Case:
    a, b = (
        {"name": name, "datatype": "INT32", "shape": [1, 2], "data": data}
        for name, data in (("a", [1, 2]), ("b", [5, 6]))
    )
    wanted = [{"name": "sum", "parameters": {"binary_data": True}}, {"name": "difference"}]
    return plain(
        "binary/mixed",
        "one output in binary and one in JSON, in one answer",
        _SOURCE,
        "binary",
        exchange("POST", "/v2/models/sum_difference/infer", {"inputs": [a, b], "outputs": wanted}),
        http(_check_mixed),
    )


def _check_mixed(reply: Reply) -> None:
    head, tail = reply.expect(200).split()
    outputs = {output["name"]: output for output in head["outputs"]}
    need(tail == struct.pack("<2i", 6, 8), f"binary part {tail!r}, expected the sum")
    got = outputs.get("difference", {}).get("data")
    need(got in ([-4, -4], [[-4, -4]]), f"difference {got!r}, expected [-4, -4]")
