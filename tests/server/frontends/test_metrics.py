"""The metrics frontend."""

from __future__ import annotations

from salver.testing.frontends import FrontendConformance, call


class TestMetrics(FrontendConformance):
    member = "metrics"

    def test_renders_the_prometheus_text_format(self, frontend, services):
        services.metrics.limit_hit("max_body_bytes")
        answer = call(frontend, "GET", "/metrics")
        fields, body = answer.answer
        assert fields == b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"
        assert b'salver_limit_hits_total{limit="max_body_bytes"} 1.0' in body


def test_counts_what_went_over_the_wire(server):
    good = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}'
    assert server.ask("POST", "/v2/models/linear/infer", good).status == 200
    assert server.ask("POST", "/v2/models/linear/infer", b"{}").status == 400
    text = server.ask("GET", "/metrics").body.decode()
    assert 'salver_request_total{code="OK",model="linear",version="2"} 1.0' in text
    assert 'salver_request_total{code="INVALID_ARGUMENT",model="linear",version="2"} 1.0' in text
