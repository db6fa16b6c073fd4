"""TensorFlow Serving over REST and gRPC, KServe's protocol v1 and MLflow's scoring protocol."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from salver.testing.oip.case import Call, Case, Tensor
from salver.testing.oip.checks import Reply, gives, http, need, refused, value
from salver.testing.oip.samples import DTYPES, plain, tensor
from salver.testing.oip.table.infer import FOUR, identity
from salver.testing.oip.table.rest import exchange
from salver.testing.oip.table.rest import plain as rest

_REST: Final = "TensorFlow Serving api_rest.md"
_GRPC: Final = "tensorflow_serving/apis/prediction_service.proto"
_PREDICT: Final = "/v1/models/classifier:predict"
_ROW: Final = [0.5, -1.0, 2.0, 0.25]
# Datatypes whose JSON numbers ovmsclient turns back into the right array, and those TensorProto has.
_OVER_REST: Final = ("BOOL", "INT32", "INT64", "FP32", "FP64")


def cases() -> Iterator[Case]:
    """All of this module."""
    yield from _ovmsclient()
    yield from _rest()
    yield from _kserve_v1()
    yield from _mlflow()


def _predict(model: str, expected: dict[str, str], *inputs: Tensor, **more: Any) -> Call:
    arguments = {"model": model, "inputs": [t.to_data() for t in inputs], "expected": expected, **more}
    return Call("predict", arguments)


def _ovmsclient() -> Iterator[Case]:
    for wire, datatypes in (("tfs-http", _OVER_REST), ("tfs-grpc", (*DTYPES, "BYTES"))):
        source = _REST if wire == "tfs-http" else _GRPC
        can = frozenset({wire})
        for datatype in datatypes:
            given = plain(datatype)
            yield Case(
                f"{wire}/predict/{datatype.lower()}",
                f"{datatype} comes back as it was sent",
                source,
                "tf-serving",
                can,
                (_predict(identity(datatype), {"y": datatype}, given),),
                gives(Tensor("y", datatype, given.shape, given.data)),
            )
        a, b = tensor("a", "INT32", [1, 2]), tensor("b", "INT32", [5, 6])
        both = {"sum": "INT32", "difference": "INT32"}
        yield Case(
            f"{wire}/predict/two",
            "two inputs and two outputs by name",
            source,
            "tf-serving",
            can,
            (_predict("sum_difference", both, a, b),),
            gives(tensor("sum", "INT32", [6, 8]), tensor("difference", "INT32", [-4, -4])),
        )
        yield Case(
            f"{wire}/predict/version",
            "version 1 may be asked for",
            source,
            "tf-serving",
            can,
            (_predict("classifier", {"scores": "FP32"}, FOUR, version=1),),
            gives(Tensor("scores", "FP32", FOUR.shape, FOUR.data)),
        )
        for name, call in (
            ("unknown-model", _predict("no_such_model", {"y": "FP32"}, FOUR)),
            ("wrong-shape", _predict("classifier", {"y": "FP32"}, tensor("x", "FP32", [1.0]))),
        ):
            yield Case(
                f"{wire}/errors/{name}",
                f"{name.replace('-', ' ')} raises the client's exception",
                source,
                "tf-serving",
                can,
                (call,),
                refused(),
            )
        yield Case(
            f"{wire}/status",
            "version 1 is AVAILABLE",
            source,
            "tf-serving",
            can,
            (Call("status", {"model": "classifier"}),),
            value(lambda got: need(got.get("1", {}).get("state") == "AVAILABLE", f"got {got}")),
        )
        yield Case(
            f"{wire}/metadata",
            "the metadata names the inputs",
            source,
            "tf-serving",
            can,
            (Call("metadata", {"model": "sum_difference"}),),
            value(lambda got: need(all(name in str(got) for name in ("sum", "difference")), f"got {got}")),
        )


def _rest() -> Iterator[Case]:
    def made(name: str, says: str, request: dict[str, Any], check: Any) -> Case:
        return rest(f"tfs/{name}", says, _REST, "tf-serving", request, http(check))

    yield made("rows", "instances in rows give predictions", exchange("POST", _PREDICT, {"instances": [_ROW]}), _rows)
    yield made(
        "rows-named",
        "instances may name their inputs",
        exchange("POST", _PREDICT, {"instances": [{"x": _ROW}]}),
        _rows,
    )
    yield made(
        "columns",
        "inputs in columns give outputs",
        exchange("POST", _PREDICT, {"inputs": {"x": [_ROW]}}),
        lambda r: need(_only(r.expect(200).json()["outputs"]) == [_ROW], f"body {r.body[:160]!r}"),
    )
    yield made(
        "signature",
        "signature_name serving_default is the default",
        exchange("POST", _PREDICT, {"signature_name": "serving_default", "instances": [_ROW]}),
        _rows,
    )
    yield made(
        "version",
        "a version in the path",
        exchange("POST", "/v1/models/classifier/versions/1:predict", {"instances": [_ROW]}),
        _rows,
    )
    yield made(
        "b64",
        'bytes may come as {"b64": text}',
        exchange("POST", "/v1/models/identity_bytes:predict", {"instances": [[{"b64": "YWJj"}]]}),
        lambda r: need(b"YWJj" in r.expect(200).body or b"abc" in r.body, f"body {r.body[:160]!r}"),
    )
    for path in ("/v1/models/classifier", "/v1/models/classifier/versions/1"):
        yield made(
            "status" + ("-version" if "versions" in path else ""),
            "the status gives versions as texts and their states",
            exchange("GET", path),
            _status,
        )
    yield made(
        "metadata",
        "the metadata gives model_spec and signature_def",
        exchange("GET", "/v1/models/classifier/metadata"),
        lambda r: need({"model_spec", "metadata"} <= set(r.expect(200).json()), f"body {r.body[:160]!r}"),
    )
    for name, says, request, statuses in (
        ("unknown", "an unknown model", exchange("POST", "/v1/models/nope:predict", {"instances": [_ROW]}), (404,)),
        ("ragged", "rows of different lengths", exchange("POST", _PREDICT, {"instances": [_ROW, [1.0]]}), (400,)),
        ("broken", "broken JSON", exchange("POST", _PREDICT, b"{"), (400,)),
        (
            "both",
            "rows and columns at once",
            exchange("POST", _PREDICT, {"instances": [_ROW], "inputs": [_ROW]}),
            (400,),
        ),
    ):
        yield made(
            f"errors-{name}",
            f"{says} is {statuses[0]} with an error text",
            request,
            lambda r, statuses=statuses: need(
                isinstance(r.expect(*statuses).json().get("error"), str), f"body {r.body[:160]!r}"
            ),
        )


def _rows(reply: Reply) -> None:
    got = reply.expect(200).json()["predictions"]
    need(got in ([_ROW], [{"scores": _ROW}]), f"predictions {got}, expected {[_ROW]}")


def _only(outputs: Any) -> Any:
    return outputs["scores"] if isinstance(outputs, dict) else outputs


def _status(reply: Reply) -> None:
    [entry] = reply.expect(200).json()["model_version_status"]
    need((entry["version"], entry["state"]) == ("1", "AVAILABLE"), f"got {entry}")
    need(entry["status"]["error_code"] == "OK", f"got {entry}")


def _kserve_v1() -> Iterator[Case]:
    source = "KServe data plane, protocol v1"
    yield Case(
        "kserve-v1/predict",
        "instances give predictions",
        source,
        "kserve-v1",
        frozenset({"kserve-v1"}),
        (Call("predict_v1", {"model": "classifier", "instances": [_ROW]}),),
        value(lambda got: need(got["predictions"] in ([_ROW], [{"scores": _ROW}]), f"got {got}")),
    )
    yield Case(
        "kserve-v1/ready",
        "the model is ready",
        source,
        "kserve-v1",
        frozenset({"kserve-v1"}),
        (Call("model_ready_v1", {"model": "classifier"}),),
        value(lambda got: need(got is True, f"got {got!r}, expected True")),
    )


def _mlflow() -> Iterator[Case]:
    source = "MLflow, Local inference server specification"
    yield rest(
        "mlflow/ping", "GET /ping is 200", source, "mlflow", exchange("GET", "/ping"), http(lambda r: r.expect(200))
    )
    yield rest(
        "mlflow/version",
        "GET /version is 200",
        source,
        "mlflow",
        exchange("GET", "/version"),
        http(lambda r: need(bool(r.expect(200).body), "an empty body")),
    )
