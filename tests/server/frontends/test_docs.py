"""OpenAPI and the try-it page."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from salver.server.frontends import FRONTENDS
from salver.testing.frontends import FrontendConformance, body_of, call


class TestDocs(FrontendConformance):
    member = "docs"

    def test_describes_the_models_of_all_frontends(self, frontend, services):
        services.frontends = tuple(FRONTENDS.get(name)(services) for name in FRONTENDS.names())
        described = body_of(call(frontend, "GET", "/openapi.json"))
        assert described["openapi"] == "3.1.0"
        infer = described["paths"]["/v2/models/linear/infer"]["post"]
        content = infer["requestBody"]["content"]["application/json"]
        tensor = content["schema"]["properties"]["inputs"]["items"]
        assert tensor["properties"]["name"] == {"const": "x"}
        assert tensor["description"] == "shape [batch, 4]"
        assert content["example"] == {
            "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.5, 0.5, 0.5, 0.5]}]
        }
        assert "/predict/pair" in described["paths"]
        assert "untested" in described["info"]["description"]

    def test_root_leads_browsers_to_the_page_and_programs_to_the_api(self, frontend):
        browser = call(frontend, "GET", "/", accept=b"text/html,application/xhtml+xml")
        assert (browser.status, browser.answer[0]) == (307, b"location: /docs\r\n")
        program = body_of(call(frontend, "GET", "/", accept=b"*/*"))
        assert (program["name"], program["status"]) == ("salver", "alive")
        assert program["api"] == "/openapi.json"

    def test_the_page_needs_nothing_from_elsewhere(self, frontend):
        fields, page = call(frontend, "GET", "/docs").answer
        assert not re.search(rb"(src|href)=\"(https?:)?//", page)
        assert not re.search(rb"@import|\burl\(", page)
        policy = fields.decode()
        for tag, kind in ((b"script", "script-src"), (b"style", "style-src")):
            text = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
            assert len(text) == 1
            digest = base64.b64encode(hashlib.sha256(text[0]).digest()).decode()
            assert f"{kind} 'sha256-{digest}'" in policy
        assert "default-src 'none'" in policy
        assert b" on" not in re.sub(rb"<script>.*?</script>", b"", page, flags=re.DOTALL).split(b"<body>")[1].replace(
            b" on this", b""
        ), "an inline handler would be blocked by the policy"


@pytest.mark.parametrize("name", ["oip-rest", "predict"])
def test_every_example_is_answered(services, name):
    """What the page offers to send works as it is."""
    frontend = FRONTENDS.get(name)(services)
    sent = 0
    for path, methods in frontend.openapi(services.engine.models()).items():
        example = methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        if "example" in example:
            import msgspec

            answer = call(frontend, "POST", path, msgspec.json.encode(example["example"]))
            assert answer.status == 200, (path, answer.answer)
            sent += 1
    assert sent >= 16
