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
