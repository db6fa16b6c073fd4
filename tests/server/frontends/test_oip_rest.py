"""Open Inference Protocol over REST: routes, metadata, parameters and errors. The codec has tests of its own."""

from __future__ import annotations

import json
import time

import msgspec
import numpy as np
import pytest

from salver.core.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from salver.testing.frontends import FrontendConformance, body_of, call

INFER = "/v2/models/linear/infer"
GOOD = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


def encode(value):
    return json.dumps(value).encode()


class TestOipRest(FrontendConformance):
    member = "oip-rest"

    def test_health(self, frontend, services):
        assert body_of(call(frontend, "GET", "/v2/health/live")) == {"live": True}
        assert body_of(call(frontend, "GET", "/v2/health/ready")) == {"ready": True}
        services.engine.is_ready = False
        not_ready = call(frontend, "GET", "/v2/health/ready")
        assert not_ready.status == 503
        assert b"retry-after: 1\r\n" in not_ready.answer[0]
        assert "not ready" in body_of(not_ready)["error"]

    def test_what_is_open_names_no_other_models_and_no_reasons(self, frontend, services):
        model = services.engine.models()[0]
        for version in services.engine.models()[:2]:
            version.state, version.reason = "UNAVAILABLE", "/secret/model.onnx is damaged"
        for path, status in (
            ("/v2/health/ready", 503),
            ("/v2/models/none/ready", 404),
            (f"/v2/models/{model.name}/ready", 503),
            (f"/v2/models/{model.name}/versions/1/ready", 503),
            (f"/v2/models/{model.name}/versions/9/ready", 404),
        ):
            answer = call(frontend, "GET", path)
            error = body_of(answer)["error"]
            assert answer.status == status
            assert "secret" not in error
            assert "pair" not in error
        assert "models UNAVAILABLE: 2" in body_of(call(frontend, "GET", "/v2/health/ready"))["error"]

    def test_server_metadata_lists_both_names_of_the_repository_extension(self, frontend):
        described = body_of(call(frontend, "GET", "/v2"))
        assert described["name"] == "salver"
        assert {"binary_tensor_data", "model_repository", "model_repository_extension"} <= set(described["extensions"])

    def test_model_metadata(self, frontend):
        described = body_of(call(frontend, "GET", "/v2/models/linear"))
        assert described["versions"] == ["1", "2"]
        assert described["platform"] == "onnx_onnxv1"
        assert described["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert described["outputs"][0]["parameters"] == {"labels": ["cat", "dog", "bird"]}
        assert described["parameters"]["tested"] is False
        assert body_of(call(frontend, "GET", "/v2/models/linear/ready")) == {"name": "linear", "ready": True}
        assert call(frontend, "GET", "/v2/models/linear/versions/9").status == 404

    def test_versions_answer_for_themselves(self, frontend, models):
        x = np.array([[1, 2, 3, 4]], np.float32)
        for version in ("1", "2"):
            answer = body_of(call(frontend, "POST", f"/v2/models/linear/versions/{version}/infer", encode(GOOD)))
            model = next(m for m in models if m.name == "linear" and m.version == version)
            assert answer["model_version"] == version
            assert answer["outputs"][0]["data"] == model.session.run({"x": x})["scores"].ravel().tolist()
        assert body_of(call(frontend, "POST", INFER, encode(GOOD)))["model_version"] == "2"

    def test_index_lists_and_filters(self, frontend, services):
        everything = body_of(call(frontend, "POST", "/v2/repository/index"))
        assert {"name": "linear", "version": "1", "state": "READY", "reason": ""} in everything
        model = services.engine.models()[0]
        model.state, model.reason = "UNAVAILABLE", "golden requests failed"
        try:
            ready = body_of(call(frontend, "POST", "/v2/repository/index", b'{"ready":true}'))
            assert len(ready) == len(everything) - 1
            answer = call(frontend, "POST", "/v2/models/linear/versions/1/infer", encode(GOOD))
            assert (answer.status, "golden requests failed" in body_of(answer)["error"]) == (503, True)
            assert (
                body_of(call(frontend, "GET", "/v2/models/linear/versions/1"))["parameters"]["state"] == "UNAVAILABLE"
            )
        finally:
            model.state, model.reason = "READY", ""

    def test_statistics(self, frontend):
        call(frontend, "POST", INFER, encode(GOOD))
        stats = body_of(call(frontend, "GET", "/v2/models/linear/stats"))["model_stats"]
        assert [s["version"] for s in stats] == ["1", "2"]
        assert stats[1]["inference_stats"]["success"]["count"] == 1
        assert len(body_of(call(frontend, "GET", "/v2/models/stats"))["model_stats"]) > 2

    def test_id_is_echoed_and_unknown_parameters_are_accepted(self, frontend):
        answer = call(frontend, "POST", INFER, encode({**GOOD, "id": "ä7", "parameters": {"x-anything": [1]}}))
        assert body_of(answer)["id"] == "ä7"

    def test_timeout_and_priority_reach_the_engine(self, frontend, services):
        services.engine.held = []
        call(frontend, "POST", INFER, encode({**GOOD, "parameters": {"timeout": 2_000_000, "priority": 3}}))
        call(frontend, "POST", INFER, encode({**GOOD, "parameters": {"timeout": 0}}))
        call(frontend, "POST", INFER, encode(GOOD))
        first, second, third = (request for _, request in services.engine.held)
        assert 1 < first.deadline_s - time.monotonic() <= 2
        assert first.priority == 3
        assert (second.deadline_s, third.deadline_s, third.priority) == (None, None, 0)

    @pytest.mark.parametrize(("timeout_us", "code"), [(0, "CANCELLED"), (1, "DEADLINE_EXCEEDED")])
    def test_a_request_that_nobody_waits_for_is_cancelled_and_counted(self, frontend, services, timeout_us, code):
        services.engine.held = []
        exchange = call(frontend, "POST", INFER, encode({**GOOD, "parameters": {"timeout": timeout_us}}))
        [(model, request)] = services.engine.held
        exchange.cancel()
        assert services.engine.cancelled == [request]
        assert services.metrics.of(model).codes == {code: 1}

    def test_a_request_that_was_answered_is_not_cancelled_any_more(self, frontend, services):
        exchange = call(frontend, "POST", INFER, encode(GOOD))
        assert exchange.cancel is None
        assert services.metrics.of(services.engine.find("linear")).codes == {"OK": 1}

    @pytest.mark.parametrize(
        "parameters",
        [{"timeout": -1}, {"timeout": "1"}, {"timeout": 10**400}, {"priority": 1.5}, {"priority": True}],
    )
    def test_parameters_of_the_wrong_type_are_refused(self, frontend, parameters):
        answer = call(frontend, "POST", INFER, encode({**GOOD, "parameters": parameters}))
        assert answer.status == 400
        assert next(iter(parameters)) in body_of(answer)["error"]

    @pytest.mark.parametrize(
        ("error", "status", "retry"),
        [
            (ResourceExhausted("queue full", retry_after_s=2.2), 429, b"retry-after: 3\r\n"),
            (Unavailable("draining"), 503, b"retry-after: 1\r\n"),
            (DeadlineExceeded("too late"), 504, b""),
        ],
    )
    def test_refusals_of_the_engine(self, frontend, services, error, status, retry):
        services.engine.refuse_with = error
        answer = call(frontend, "POST", INFER, encode(GOOD))
        assert answer.status == status
        assert answer.answer[0] == b"content-type: application/json\r\n" + retry
        assert body_of(answer) == {"error": error.message}
        services.engine.refuse_with = None

    def test_requests_for_all_outputs_share_a_key_and_others_do_not(self, frontend, services):
        services.engine.held = []
        one = {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
        wide = {"name": "a", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
        pair = "/v2/models/pair/infer"
        for a, outputs in ((one, None), (one, ["total", "whole"]), (one, ["whole"]), (wide, None)):
            body = {"inputs": [a, {**a, "name": "b"}]}
            if outputs:
                body["outputs"] = [{"name": n} for n in outputs]
            call(frontend, "POST", pair, encode(body))
        all_of_it, said, one_output, wider = (request.key for _, request in services.engine.held)
        assert all_of_it == said
        assert len({all_of_it, one_output, wider}) == 3

    def test_a_defect_is_500_without_its_text(self, frontend, services, caplog):
        class Broken:
            def find(self, *args):
                raise ZeroDivisionError("secret")

        frontend._engine = Broken()
        answer = call(frontend, "POST", INFER, encode(GOOD))
        assert answer.status == 500
        assert "secret" not in body_of(answer)["error"]
        assert "secret" in caplog.text

    def test_a_new_version_takes_over_a_path_that_was_used_before(self, services, models):
        from salver.server.frontends import FRONTENDS
        from salver.server.frontends.http.exchange import Exchange
        from salver.server.frontends.http.router import Router
        from salver.testing.frontends import Catcher, InlineEngine

        older, newer = [m for m in models if m.name == "linear"]
        engine = InlineEngine([older])
        services.engine = engine
        frontend = FRONTENDS.get("oip-rest")(services)
        router = Router()
        for route in frontend.routes():
            router.add(route.method, route.path, route.handle, route.scope)

        def ask():
            exchange = Exchange(Catcher(), b"POST", b"/", router.find(INFER.encode()), {}, encode(GOOD), 0.0)
            exchange.attempt(exchange.match.handlers[b"POST"], exchange)
            return msgspec.json.decode(exchange.answer[1])["model_version"]

        assert ask() == "1"
        engine._models.append(newer)
        assert ask() == "2"


def limited(services, **settings):
    from salver.server.frontends import FRONTENDS, Services
    from salver.server.settings import ServeSettings

    tight = Services(services.engine, services.metrics, ServeSettings(**settings))
    return {name: FRONTENDS.get(name)(tight) for name in ("oip-rest", "predict", "mlflow")}


def test_deep_json_is_refused_and_counted_once_on_every_path(services):
    frontends = limited(services, max_json_depth=8)
    deep = [1]
    for _ in range(8):
        deep = [deep]
    tensor = GOOD["inputs"][0]
    asked = [
        ("oip-rest", INFER, {**GOOD, "parameters": {"a": deep}}),
        ("oip-rest", INFER, {"inputs": [{**tensor, "data": deep}]}),
        ("oip-rest", "/v2/models/linear/generate", {"x": deep}),
        ("oip-rest", "/v2/repository/index", {"a": deep}),
        ("oip-rest", "/v2/repository/models/linear/load", {"parameters": {"config": json.dumps({"a": deep})}}),
        ("predict", "/predict/linear", {"instances": deep}),
        ("mlflow", "/invocations/linear", {"inputs": deep}),
    ]
    for count, (member, path, value) in enumerate(asked, 1):
        answer = call(frontends[member], "POST", path, encode(value))
        assert (answer.status, "max_json_depth" in body_of(answer)["error"]) == (413, True), path
        assert services.metrics.limits == {"max_json_depth": count}, path
    assert call(frontends["oip-rest"], "POST", INFER, encode(GOOD)).status == 200


def test_long_strings_are_refused_and_counted_once_on_every_path(services):
    frontends = limited(services, max_string_bytes=8)
    texts = ["é" * 4, "a" * 9]
    tensor = {"name": "x", "shape": [1, 2], "datatype": "BYTES"}
    raw = b"".join(len(t.encode()).to_bytes(4, "little") + t.encode() for t in texts)
    head = encode({"inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}]})
    infer = "/v2/models/id-bytes/infer"
    asked = [
        ("oip-rest", infer, encode({"inputs": [{**tensor, "data": texts}]}), {}),
        ("oip-rest", infer, head + raw, {"inference_header_content_length": b"%d" % len(head)}),
        ("oip-rest", infer, b"a" * 9, {"inference_header_content_length": b"0"}),
        ("oip-rest", "/v2/models/id-bytes/generate", encode({"x": texts}), {}),
        ("predict", "/predict/id-bytes", encode({"instances": [texts]}), {}),
        ("mlflow", "/invocations/id-bytes", encode({"inputs": [texts]}), {}),
        ("mlflow", "/invocations/id-bytes", "\n".join(["x", *texts]).encode(), {"content_type": b"text/csv"}),
    ]
    refused = 0
    for member, path, body, fields in asked:
        answer = call(frontends[member], "POST", path, body, **fields)
        if answer.status != 400:  # a raw request needs a model whose string stands alone
            refused += 1
            assert (answer.status, "max_string_bytes" in body_of(answer)["error"]) == (413, True), path
            assert services.metrics.limits == {"max_string_bytes": refused}, path
    assert refused >= 6


def test_a_sequence_is_repeated_in_the_answer(rest):
    request = {**GOOD, "parameters": {"sequence_id": 42, "sequence_start": True}}
    assert body_of(call(rest, "POST", INFER, encode(request)))["parameters"] == {
        "sequence_id": 42,
        "sequence_start": True,
        "sequence_end": False,
    }
    assert "parameters" not in body_of(call(rest, "POST", INFER, encode(GOOD)))


@pytest.fixture
def rest(services):
    from salver.server.frontends import FRONTENDS

    return FRONTENDS.get("oip-rest")(services)


@pytest.mark.parametrize("length", [b"x", b"-1", b"", b"1" * 19])
def test_header_lengths_that_are_none(rest, length):
    answer = call(rest, "POST", INFER, encode(GOOD), inference_header_content_length=length)
    assert (answer.status, "expected a number of bytes" in body_of(answer)["error"]) == (400, True)


def test_sequences_have_ids_that_are_numbers_or_texts(rest, services):
    services.engine.held = []
    for id in (7, "a", 0):
        call(rest, "POST", INFER, encode({**GOOD, "parameters": {"sequence_id": id, "sequence_end": True}}))
    assert [r.sequence and (r.sequence.id, r.sequence.end) for _, r in services.engine.held] == [
        (7, True),
        ("a", True),
        None,
    ]
    for wrong in ({"sequence_id": -1}, {"sequence_id": [1]}, {"sequence_id": 1, "sequence_start": 1}):
        assert call(rest, "POST", INFER, encode({**GOOD, "parameters": wrong})).status == 400
