"""TensorFlow Serving's REST API and KServe's protocol v1: routes, states, versions, labels and errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from salver.core.errors import ResourceExhausted
from salver.testing.frontends import FrontendConformance, body_of, call

PREDICT = "/v1/models/linear:predict"
X = np.array([[1, 2, 3, 4]], np.float32)


def encode(value):
    return json.dumps(value).encode()


def scores(models, version, x=X):
    model = next(m for m in models if m.name == "linear" and m.version == version)
    return model.session.run({"x": np.asarray(x, np.float32)})["scores"].tolist()


@pytest.fixture
def linear(models):
    """Both versions of ``linear``, put right after the test."""
    versions = [m for m in models if m.name == "linear"]
    yield versions
    for model in versions:
        model.state, model.reason = "READY", ""


class TestTfservingRest(FrontendConformance):
    member = "tfserving-rest"

    def test_status_says_what_both_protocols_say(self, frontend):
        answer = call(frontend, "GET", "/v1/models/linear")
        assert answer.status == 200
        available = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        assert body_of(answer) == {
            "model_version_status": [{"version": "1", **available}, {"version": "2", **available}],
            "name": "linear",
            "ready": True,
        }
        one = body_of(call(frontend, "GET", "/v1/models/linear/versions/1"))
        assert [s["version"] for s in one["model_version_status"]] == ["1"]
        default = body_of(call(frontend, "GET", "/v1/models/linear/versions/0"))
        assert [s["version"] for s in default["model_version_status"]] == ["1", "2"]

    @pytest.mark.parametrize(
        ("state", "seen"),
        [("LOADING", "LOADING"), ("UNLOADING", "UNLOADING"), ("UNAVAILABLE", "END")],
    )
    def test_status_of_a_model_that_is_not_ready(self, frontend, linear, state, seen):
        for model in linear:
            model.state, model.reason = state, "/secret/model.onnx is damaged"
        answer = call(frontend, "GET", "/v1/models/linear")
        body = body_of(answer)
        assert (answer.status, body["ready"]) == (503, False)
        first = body["model_version_status"][0]
        code = "UNAVAILABLE" if state == "UNAVAILABLE" else "OK"
        status = first.pop("status")
        assert first == {"version": "1", "state": seen}
        assert status["error_code"] == code
        assert ("the repository index says why" in status["error_message"]) == (state == "UNAVAILABLE")
        assert "secret" not in status["error_message"]
        assert call(frontend, "POST", PREDICT, encode({"instances": X.tolist()})).status == 503
        linear[1].state = "READY"
        answer = call(frontend, "GET", "/v1/models/linear")
        assert (answer.status, body_of(answer)["ready"]) == (200, True)
        assert call(frontend, "GET", "/v1/models/linear/versions/1").status == 503

    def test_a_model_that_is_known_but_not_loaded_is_not_ready(self, frontend, services, monkeypatch):
        entries = [*services.engine.repository.index()]
        entry = type(entries[0])("half", "", "UNAVAILABLE")
        monkeypatch.setattr(services.engine.repository, "index", lambda: [*entries, entry])
        answer = call(frontend, "GET", "/v1/models/half")
        assert (answer.status, body_of(answer)) == (503, {"model_version_status": [], "name": "half", "ready": False})

    def test_models_are_listed(self, frontend):
        names = body_of(call(frontend, "GET", "/v1/models"))["models"]
        assert {"linear", "pair"} <= set(names)
        assert names == sorted(set(names))

    def test_metadata(self, frontend):
        described = body_of(call(frontend, "GET", "/v1/models/linear/versions/1/metadata"))
        assert described["model_spec"] == {"name": "linear", "signature_name": "", "version": "1"}
        signature = described["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert signature["method_name"] == "tensorflow/serving/predict"
        shape = {"dim": [{"size": "-1", "name": ""}, {"size": "4", "name": ""}], "unknown_rank": False}
        assert signature["inputs"] == {"x": {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "x:0"}}

    def test_versions_and_labels_answer_for_themselves(self, frontend, services, models):
        body = encode({"instances": X.tolist()})
        services.engine.repository.move_label("linear", "canary", "1")
        for path, version in (
            (PREDICT, "2"),
            ("/v1/models/linear/versions/1:predict", "1"),
            ("/v1/models/linear/versions/0:predict", "2"),
            ("/v1/models/linear/labels/canary:predict", "1"),
        ):
            assert body_of(call(frontend, "POST", path, body)) == {"predictions": scores(models, version)}
        services.engine.repository.move_label("linear", "canary", "2")
        moved = call(frontend, "POST", "/v1/models/linear/labels/canary:predict", body)
        assert body_of(moved) == {"predictions": scores(models, "2")}
        status = body_of(call(frontend, "GET", "/v1/models/linear/labels/canary"))
        assert [s["version"] for s in status["model_version_status"]] == ["2"]
        metadata = body_of(call(frontend, "GET", "/v1/models/linear/labels/canary/metadata"))
        assert metadata["model_spec"]["version"] == "2"

    @pytest.mark.parametrize(
        "place", ["versions/9", "versions/stable", "versions/-1", "labels/none", "labels/1", "versions/1.0"]
    )
    def test_versions_and_labels_that_do_not_exist(self, frontend, place):
        for method, verb in (("POST", ":predict"), ("POST", ":classify"), ("GET", ""), ("GET", "/metadata")):
            assert call(frontend, method, f"/v1/models/linear/{place}{verb}", b"{}").status == 404, verb

    def test_columns(self, frontend, models):
        for inputs in (X.tolist(), {"x": X.tolist()}):
            answer = call(frontend, "POST", PREDICT, encode({"signature_name": "serving_default", "inputs": inputs}))
            assert body_of(answer) == {"outputs": scores(models, "2")}

    def test_several_inputs_and_outputs(self, frontend):
        rows = {"instances": [{"a": [1, 2], "b": [3, 4]}, {"a": [5, 6], "b": [7, 8]}]}
        assert body_of(call(frontend, "POST", "/v1/models/pair:predict", encode(rows))) == {
            "predictions": [{"total": [4.0, 6.0], "whole": [1, 2]}, {"total": [12.0, 14.0], "whole": [5, 6]}]
        }
        columns = {"inputs": {"a": [[1, 2]], "b": [[3, 4]]}}
        assert body_of(call(frontend, "POST", "/v1/models/pair:predict", encode(columns))) == {
            "outputs": {"total": [[4.0, 6.0]], "whole": [[1, 2]]}
        }

    def test_rows_agree_with_open_inference(self, frontend, services):
        from salver.server.frontends import FRONTENDS

        oip = FRONTENDS.get("oip-rest")(services)
        tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.1, 2, 3, 4]}
        other = body_of(call(oip, "POST", "/v2/models/linear/infer", encode({"inputs": [tensor]})))
        own = body_of(call(frontend, "POST", PREDICT, encode({"instances": [[0.1, 2, 3, 4]]})))
        assert own["predictions"][0] == other["outputs"][0]["data"]

    def test_classify(self, frontend, models):
        examples = {"context": {"x": [1, 2, 3, 4]}, "examples": [{}, {"x": [4, 3, 2, 1.5], "more": "left out"}]}
        answer = body_of(call(frontend, "POST", "/v1/models/linear:classify", encode(examples)))
        expected = scores(models, "2", [[1, 2, 3, 4], [4, 3, 2, 1.5]])
        names = ("cat", "dog", "bird")
        assert answer == {"results": [[[n, s] for n, s in zip(names, row, strict=True)] for row in expected]}

    def test_regress(self, frontend):
        body = encode({"examples": [{"x": 2.5}, {"x": [3]}]})
        assert body_of(call(frontend, "POST", "/v1/models/id-fp32:regress", body)) == {"results": [2.5, 3]}
        answer = call(frontend, "POST", "/v1/models/linear:regress", encode({"examples": [{"x": [1, 2, 3, 4]}]}))
        assert answer.status == 400
        assert "cannot regress" in body_of(answer)["error"]

    def test_examples_of_strings_may_be_base64(self, frontend):
        body = encode({"examples": [{"x": {"b64": "YQ=="}}]})
        answer = call(frontend, "POST", "/v1/models/id-bytes:classify", body)
        assert (answer.status, "its outputs are 'y' (BYTES)" in body_of(answer)["error"]) == (400, True)

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({}, "examples"),
            ({"examples": []}, "'examples' is empty"),
            ({"examples": [{}]}, "example 0: feature 'x' is missing"),
            ({"examples": [5]}, "Expected `object`"),
            ({"examples": [{"x": "text"}]}, "instance 0, input 'x'"),
            ({"examples": [{"x": [1, 2, 3, 4]}], "signature_name": "other"}, "not found in signature def"),
        ],
    )
    def test_examples_that_do_not_fit(self, frontend, body, message):
        answer = call(frontend, "POST", "/v1/models/linear:classify", encode(body))
        assert answer.status == 400
        assert message in body_of(answer)["error"]

    def test_there_are_no_explanations(self, frontend):
        answer = call(frontend, "POST", "/v1/models/linear:explain", encode({"instances": X.tolist()}))
        assert answer.status == 501
        assert "no explainer" in body_of(answer)["error"]

    def test_refusals_are_counted_and_answered(self, frontend, services, linear):
        services.engine.refuse_with = ResourceExhausted("queue full", retry_after_s=2.2)
        answer = call(frontend, "POST", PREDICT, encode({"instances": X.tolist()}))
        assert (answer.status, body_of(answer)) == (429, {"error": "queue full"})
        services.engine.refuse_with = None
        for path in (PREDICT, "/v1/models/linear:classify"):
            assert call(frontend, "POST", path, b"{").status == 400
        statistics = services.metrics.statistics(linear[1])
        assert statistics["inference_stats"]["fail"]["count"] == 3

    def test_a_request_may_be_cancelled(self, frontend, services):
        services.engine.held = []
        exchange = call(frontend, "POST", PREDICT, encode({"instances": X.tolist()}))
        assert exchange.answer is None
        exchange.cancel()
        assert len(services.engine.cancelled) == 1
        assert services.engine.held == []

    def test_a_path_follows_the_model_that_answers(self, frontend, services, models, linear):
        from salver.server.frontends.http.exchange import Exchange
        from salver.server.frontends.http.router import Router
        from salver.testing.frontends import Catcher

        router = Router()
        for route in frontend.routes():
            router.add(route.method, route.path, route.handle, route.scope)
        match = router.find(PREDICT.encode())

        def ask():
            body = encode({"instances": X.tolist()})
            exchange = Exchange(Catcher(), b"POST", PREDICT.encode(), match, {}, body, 0.0)
            exchange.attempt(match.handlers[b"POST"], exchange)
            return body_of(exchange)["predictions"]

        assert ask() == ask() == scores(models, "2")
        services.engine.find = lambda *_: linear[0]
        assert ask() == scores(models, "1")


def test_over_http(server, models):
    answer = server.ask("POST", PREDICT, encode({"instances": X.tolist()}))
    assert (answer.status, answer.json()) == (200, {"predictions": scores(models, "2")})
    assert answer.fields["content-type"] == "application/json"
    assert server.ask("GET", "/v1/models/linear/").json()["ready"] is True
    assert server.ask("GET", "/v1/models/none").status == 404
