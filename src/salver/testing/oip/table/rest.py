"""REST as bytes on the wire: paths, bodies and headers that clients hide."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from salver.testing.oip.case import Call, Case, Failed
from salver.testing.oip.checks import Check, Reply, client_error, http, need, replies

PLAIN: Final = frozenset({"bytes"})
_SPEC: Final = "OIP inference_rest.md"
_DATA: Final = [0.5, -1.0, 2.0, 0.25]
_X: Final[dict[str, Any]] = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": _DATA}
BODY: Final[dict[str, Any]] = {"inputs": [_X]}
INFER: Final = "/v2/models/classifier/infer"


def exchange(
    method: str, path: str, body: Any = b"", headers: Mapping[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """One HTTP request; a body that is not bytes is sent as JSON."""
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    text = base64.b64encode(given).decode("ascii")
    return {"method": method, "path": path, "body": text, "headers": dict(headers or {}), **more}


def ask(*requests: dict[str, Any]) -> tuple[Call, ...]:
    """The calls of a case: requests over one connection."""
    return (Call("exchange", {"requests": list(requests)}),)


def plain(name: str, says: str, source: str, group: str, request: dict[str, Any], check: Check) -> Case:
    """A case of one HTTP request."""
    return Case(f"rest/{name}", says, source, group, PLAIN, ask(request), check)


def scores(reply: Reply) -> None:
    """
    Raises:
        Failed: the answer is not that of the classifier to `BODY`, in JSON.
    """
    answer = reply.expect(200).json()
    try:
        [output] = answer["outputs"]
        values = _flat(output["data"])
        described = (output["name"], output["datatype"], list(output["shape"]))
    except (KeyError, ValueError, TypeError) as error:
        raise Failed(f"no answer of the inference protocol ({error!r}): {reply.body[:160]!r}") from None
    need(described == ("scores", "FP32", [1, 4]), f"output {described}, expected ('scores', 'FP32', [1, 4])")
    need(values == _DATA, f"values {values}, expected {_DATA}")


def cases() -> Iterator[Case]:
    """All of this module."""
    yield from _health()
    yield from _metadata()
    yield from _infer()
    yield from _transport()
    yield from _compression()
    yield from _repository()


def ok(reply: Reply) -> None:
    """
    Raises:
        Failed: the status is not 200.
    """
    reply.expect(200)


def _health() -> Iterator[Case]:
    source = f"{_SPEC}, health"
    for path, name in (
        ("/v2/health/live", "live"),
        ("/v2/health/ready", "ready"),
        ("/v2/models/classifier/ready", "model"),
        ("/v2/models/classifier/versions/1/ready", "version"),
    ):
        yield plain(f"health/{name}", f"GET {path} is 200", source, "core", exchange("GET", path), http(ok))


def _metadata() -> Iterator[Case]:
    source = f"{_SPEC} says v2, which clients use; open_inference_rest.yaml says /v2/, for clients made from it"
    for slash in ("", "/"):
        yield plain(
            f"metadata/server{'-slash' if slash else ''}",
            f"GET /v2{slash} gives name, version and extensions",
            source,
            "core",
            exchange("GET", f"/v2{slash}"),
            http(_server),
        )
    yield plain(
        "metadata/model",
        "name, versions, platform, inputs and outputs have the types of the specification; versions are texts",
        source,
        "core",
        exchange("GET", "/v2/models/classifier"),
        http(_model),
    )
    yield plain(
        "metadata/version",
        "the metadata of one version is there too",
        source,
        "core",
        exchange("GET", "/v2/models/classifier/versions/1"),
        http(_model),
    )
    yield plain(
        "metadata/escaped",
        "a percent-encoded name is the same name",
        "RFC 3986 section 2.3; tritonclient quotes names",
        "core",
        exchange("GET", "/v2/models/%63lassifier"),
        http(_model),
    )


def _server(reply: Reply) -> None:
    got = reply.expect(200).json()
    need({"name", "version", "extensions"} <= set(got), f"fields {sorted(got)}")
    need(isinstance(got["extensions"], list), f"extensions {got['extensions']!r}, expected a list")


def _model(reply: Reply) -> None:
    got = reply.expect(200).json()
    need(got.get("name") == "classifier", f"name {got.get('name')!r}")
    need("platform" in got, "no platform")
    versions = got.get("versions", [])
    need(all(isinstance(v, str) for v in versions), f"versions {versions!r}, expected texts")
    for side, name in (("inputs", "x"), ("outputs", "scores")):
        [tensor] = got[side]
        need(tensor["name"] == name and tensor["datatype"] == "FP32", f"{side} {tensor!r}")
        need(tensor["shape"] == [-1, 4], f"{name}: shape {tensor['shape']!r}, expected [-1, 4]")


def _infer() -> Iterator[Case]:
    yield plain("infer/flat", "flat data", f"{_SPEC}, tensor data", "core", exchange("POST", INFER, BODY), http(scores))
    nested = {"inputs": [{**_X, "data": [_DATA]}]}
    yield plain(
        "infer/nested",
        "data nested as the shape says",
        f"{_SPEC}, tensor data: flattened or multi-dimensional",
        "core",
        exchange("POST", INFER, nested),
        http(scores),
    )
    yield plain(
        "infer/version",
        "the path may name the version, and the answer does",
        f"{_SPEC}, inference",
        "core",
        exchange("POST", "/v2/models/classifier/versions/1/infer", BODY),
        http(lambda r: need(r.expect(200).json().get("model_version") == "1", f"body {r.body[:160]!r}")),
    )
    yield plain(
        "infer/id",
        "the id comes back",
        f"{_SPEC}, id",
        "core",
        exchange("POST", INFER, {**BODY, "id": "é-1"}),
        http(lambda r: need(r.expect(200).json().get("id") == "é-1", f"body {r.body[:160]!r}")),
    )
    yield plain(
        "infer/foreign-fields",
        "fields the protocol does not know are ignored",
        "kserve InferRequest.to_rest() sends model_name in the body",
        "core",
        exchange("POST", INFER, {**BODY, "model_name": "classifier"}),
        http(scores),
    )
    yield plain(
        "infer/empty-outputs",
        "an empty list of outputs, as no list, means all",
        f"{_SPEC}, outputs: optional",
        "core",
        exchange("POST", INFER, {**BODY, "outputs": []}),
        http(scores),
    )
    for name, parameters, source in (
        ("timeout", {"timeout": 20_000_000}, "Triton extension_parameters.md and Triton's dynamic batcher"),
        ("priority", {"priority": 1}, "Triton extension_parameters.md"),
        ("sequence", {"sequence_id": 7, "sequence_start": True, "sequence_end": True}, "Triton extension_sequence.md"),
    ):
        yield plain(
            f"infer/parameter-{name}",
            f"the reserved parameters {', '.join(parameters)} are accepted",
            source,
            "core",
            exchange("POST", INFER, {**BODY, "parameters": parameters}),
            http(scores),
        )
    yield plain(
        "infer/zero-rows",
        "no rows: an empty answer or a 4xx, nothing else (the specification is silent)",
        f"{_SPEC}, shape",
        "core",
        exchange("POST", INFER, {"inputs": [{**_X, "shape": [0, 4], "data": []}]}),
        http(_zero_rows),
    )
    yield plain(
        "infer/fp16",
        "FP16 in JSON: the right numbers or a 4xx, never others (Triton gives it no JSON form, the specification one)",
        f"{_SPEC}, tensor data types; Triton extension_binary_data.md",
        "core",
        exchange("POST", "/v2/models/identity_fp16/infer", _body("FP16", [0.5, -1.0, 2.0, 0.25])),
        http(_right_or_refused([0.5, -1.0, 2.0, 0.25])),
    )
    yield plain(
        "infer/not-finite",
        "NaN and Infinity as tokens: back as tokens, null or texts, or a 4xx; never as numbers, never a broken body",
        "RFC 8259 has no form for them; tritonclient.http sends Python's tokens",
        "numbers",
        exchange("POST", "/v2/models/identity_fp32/infer", _body("FP32", [float("nan"), float("inf"), 1.0, 2.0])),
        http(_not_finite),
    )


def _body(datatype: str, values: list[Any]) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": datatype, "shape": [1, len(values)], "data": values}]}


def _zero_rows(reply: Reply) -> None:
    if 400 <= reply.status < 500:
        return
    [output] = reply.expect(200).json()["outputs"]
    need(list(output["shape"]) == [0, 4] and output["data"] == [], f"output {output!r}")


def _right_or_refused(expected: list[float]) -> Any:
    def check(reply: Reply) -> None:
        if 400 <= reply.status < 500:
            return
        head, tail = reply.expect(200).split()
        if tail:
            return
        got = _flat(head["outputs"][0]["data"])
        need(got == expected, f"values {got}, expected {expected}")

    return check


def _not_finite(reply: Reply) -> None:
    if 400 <= reply.status < 500:
        return
    got = _flat(reply.expect(200).json()["outputs"][0]["data"])
    need(len(got) == 4 and got[2:] == [1.0, 2.0], f"values {got}")
    for value in got[:2]:
        kept = value is None or isinstance(value, str) or value != value or value in (float("inf"), float("-inf"))
        need(kept, f"values {got}: a number stands where none was sent")


def _transport() -> Iterator[Case]:
    text = json.dumps(BODY).encode()
    half = len(text) // 2
    pieces = [base64.b64encode(part).decode("ascii") for part in (text[:half], text[half:])]
    chunked = {"method": "POST", "path": INFER, "headers": {"Transfer-Encoding": "chunked"}, "chunks": pieces}
    yield plain(
        "transport/chunked",
        "a request body may come in chunks",
        "RFC 9112 section 7.1: a server must decode chunked",
        "core",
        chunked,
        http(scores),
    )
    for name, headers in (
        ("without", {}),
        ("octet-stream", {"Content-Type": "application/octet-stream"}),
        ("charset", {"Content-Type": "application/json; charset=utf-8"}),
    ):
        yield plain(
            f"transport/content-type-{name}",
            f"a JSON request is read {'without a' if name == 'without' else 'under this'} Content-Type",
            "tritonclient.http sends none, tritonclient.http.aio application/octet-stream, others a charset",
            "core",
            exchange("POST", INFER, BODY, headers),
            http(scores),
        )
    yield Case(
        "rest/transport/keep-alive",
        "one connection carries several requests, also after a refusal",
        "RFC 9112 section 9.3",
        "core",
        PLAIN,
        ask(exchange("POST", INFER, BODY), exchange("POST", INFER, b"{"), exchange("POST", INFER, BODY)),
        _three,
    )
    yield plain(
        "transport/json-content-type",
        "answers in JSON say so",
        "kserve reads errors only under application/json",
        "core",
        exchange("POST", INFER, BODY),
        http(
            lambda r: need("json" in r.headers.get("content-type", ""), f"content-type {r.headers.get('content-type')}")
        ),
    )


def _three(answers: Any) -> None:
    first, second, third = replies(answers)
    scores(first)
    need(second.status >= 400, f"status {second.status} of a broken body, expected a refusal")
    scores(third)


def _compression() -> Iterator[Case]:
    text = json.dumps(BODY).encode()
    for coding, data in (("gzip", gzip.compress(text)), ("deflate", zlib.compress(text))):
        yield plain(
            f"compression/request-{coding}",
            f"a request with Content-Encoding: {coding} is read",
            "tritonclient.http, request_compression_algorithm; RFC 9110 section 8.4.1",
            "compression",
            exchange("POST", INFER, data, {"Content-Encoding": coding}),
            http(scores),
        )
    big = {"inputs": [{**_X, "shape": [200, 4], "data": _DATA * 200}]}
    for coding in ("gzip", "deflate"):
        yield plain(
            f"compression/response-{coding}",
            f"an answer is {coding} or plain where the request accepts {coding}, and says which",
            "RFC 9110 section 12.5.3",
            "compression",
            exchange("POST", INFER, big, {"Accept-Encoding": coding}),
            http(_decoded(coding)),
        )
    yield plain(
        "compression/none-unasked",
        "an answer that nobody asked to compress is plain",
        "RFC 9110 section 12.5.3: identity is always acceptable, and plain clients know nothing else",
        "compression",
        exchange("POST", INFER, big, {"Accept-Encoding": "identity"}),
        http(lambda r: need(r.headers.get("content-encoding", "identity") == "identity", "a Content-Encoding")),
    )
    yield plain(
        "compression/broken",
        "a body that is not what Content-Encoding says is a 4xx",
        "RFC 9110 section 15.5",
        "compression",
        exchange("POST", INFER, b"\x1f\x8b\x08 this is no gzip", {"Content-Encoding": "gzip"}),
        http(client_error),
    )


def _decoded(coding: str) -> Any:
    def check(reply: Reply) -> None:
        reply.expect(200)
        used = reply.headers.get("content-encoding", "identity")
        need(used in (coding, "identity"), f"Content-Encoding {used!r}, expected {coding!r} or none")
        body = reply.body
        if used == "gzip":
            body = gzip.decompress(body)
        elif used == "deflate":
            body = zlib.decompress(body)
        data = reply.json_of(body)["outputs"][0]["data"]
        need(len(_flat(data)) == 800, f"{len(data)} values, expected 800")

    return check


def _repository() -> Iterator[Case]:
    for name, body in (("empty", b""), ("object", {}), ("ready", {"ready": True})):
        yield plain(
            f"repository/index-{name}",
            f"the index is a list of name, version and state, asked for with {name} body",
            "Triton extension_model_repository.md, index; tritonclient.http sends an empty body",
            "repository",
            exchange("POST", "/v2/repository/index", body),
            http(_index),
        )


def _index(reply: Reply) -> None:
    entries = reply.expect(200).json()
    need(isinstance(entries, list), f"body {reply.body[:160]!r}, expected a list")
    states = {entry.get("name"): entry.get("state") for entry in entries}
    need(states.get("classifier") == "READY", f"classifier is {states.get('classifier')!r}, expected 'READY'")


def _flat(data: Any) -> list[Any]:
    if not isinstance(data, list):
        return [data]
    return [value for item in data for value in _flat(item)]
