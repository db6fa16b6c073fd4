"""Requests that are nearly right, for every protocol in JSON and CSV: each gets an answer that blames the caller, or
the numbers of the model; none an internal error."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from salver.server.frontends import FRONTENDS, Services
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import ServeSettings
from salver.testing.frontends import InlineEngine, call

NAMES = ("x", "y", "a", "b", "total", "scores")
KEYS = (*NAMES, "id", "name", "shape", "datatype", "data", "parameters", "inputs", "outputs", "instances", "params",
        "dataframe_split", "dataframe_records", "columns", "index", "binary_data_size", "binary_data", "timeout",
        "classification", "priority", "sequence_id", "sequence_start", "shared_memory_region", "b64",
        "shared_memory_byte_size", "signature_name", "binary_data_output")  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 5), st.integers(), st.floats(), st.sampled_from(NAMES),
    st.sampled_from(["FP32", "BYTES", "INT8", "BF16", "BOOL", "", "é", "YQ=="]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
ROWS = st.lists(st.lists(st.integers(-9, 9) | st.floats(width=32), min_size=3, max_size=4), min_size=1, max_size=3)


@st.composite
def nearly(draw):
    """A request that is right, but for one place that may be anything."""
    rows = draw(ROWS)
    tensor = {"name": "x", "shape": [len(rows), 4], "datatype": "FP32", "data": rows}
    request = draw(
        st.sampled_from(
            [
                {"inputs": [tensor], "outputs": [{"name": "scores", "parameters": {}}], "parameters": {}, "id": "1"},
                {"inputs": [tensor, dict(tensor)]},
                {"x": rows, "parameters": {}},
                {"instances": rows},
                {"instances": [{"x": row} for row in rows], "signature_name": "serving_default"},
                {"inputs": {"x": rows}, "params": {}},
                {"dataframe_split": {"columns": ["a", "b", "c", "d"], "data": rows, "index": [0]}},
                {"dataframe_records": [dict(zip("abcd", row, strict=False)) for row in rows]},
            ]
        )
    )
    request = json.loads(json.dumps(request))
    node, path = request, []
    while isinstance(node, dict | list) and node:
        path.append((node, draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))))
        node = node[path[-1][1]]
    where, key = draw(st.sampled_from(path))
    where[key] = draw(VALUES)
    return request


MODELS = ("linear", "pair", "id-fp32", "id-bytes", "id-int64", "id-bf16")
PATHS = [
    ("oip-rest", "/v2/models/{}/infer"),
    ("oip-rest", "/v2/models/{}/generate"),
    ("oip-rest", "/v2/models/{}/generate_stream"),
    ("predict", "/predict/{}"),
    ("mlflow", "/invocations/{}"),
    ("tfserving-rest", "/v1/models/{}:predict"),
]


@pytest.fixture(scope="module")
def frontends(models):
    engine = InlineEngine(models)
    services = Services(engine, Metrics(engine.models), ServeSettings())
    return {member: FRONTENDS.get(member)(services) for member in {member for member, _ in PATHS}}


def check(exchange):
    """An answer that any client can read."""
    body = exchange.answer[1] if exchange.chunks is None else b"".join(exchange.chunks).removeprefix(b"data: ")
    whole = body if isinstance(body, bytes) else b"".join(body)
    if exchange.status == 200:
        if b"inference-header-content-length" not in exchange.answer[0]:
            json.loads(whole)
        return
    assert exchange.status in (400, 404, 413, 415), whole
    assert set(msgspec.json.decode(whole)) == {"error"}


ANY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(("member", "path"), PATHS)
@ANY
@given(request=nearly() | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), model=st.sampled_from(MODELS))
def test_nearly_right_json(frontends, member, path, request, model):
    check(call(frontends[member], "POST", path.format(model), json.dumps(request).encode()))


@ANY
@given(data=st.data())
def test_binary_lengths_that_lie(frontends, data):
    values = np.arange(4, dtype=np.float32)
    sizes = st.sampled_from([16, 0, 8, 17, 1 << 40]) | st.integers(-5, 40)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": data.draw(st.just([1, 4]) | st.lists(st.integers(-1, 1 << 40), max_size=3)),
                    "datatype": data.draw(st.sampled_from(["FP32", "BYTES", "INT64"])),
                    "parameters": {"binary_data_size": data.draw(sizes)},
                }
            ]
        }
    ).encode()
    length = data.draw(st.just(len(head)) | st.integers(0, len(head) + 40))
    body = head + data.draw(st.just(values.tobytes()) | st.binary(max_size=40))
    model = data.draw(st.sampled_from(MODELS))
    path = f"/v2/models/{model}/infer"
    check(call(frontends["oip-rest"], "POST", path, body, inference_header_content_length=b"%d" % length))


@ANY
@given(body=st.binary(max_size=60) | st.text('ab,"\n1.e-', max_size=60).map(str.encode), model=st.sampled_from(MODELS))
def test_any_csv(frontends, body, model):
    check(call(frontends["mlflow"], "POST", f"/invocations/{model}", body, content_type=b"text/csv"))
