"""What an answer's headers add to its body: the tier that Gemini served it by, the limit behind an error inside a 200."""

from __future__ import annotations

import json

import pytest

from tests.support.upstream import Script, answer
from tests.upstream import test_gemini as gemini
from tests.upstream import test_openai as openai
from tests.web.conftest import Open, Stage
from tests.web.test_native_providers import ASKED, GENERATE, KEYS, RESPONSES, STREAM


@pytest.fixture
def stage(open_stage: Open) -> Stage:
    return open_stage(**KEYS)


def says(body: bytes, *headers: str) -> Script:
    return lambda connection, seen: connection.sendall(answer("200 OK", body, *headers))


@pytest.mark.parametrize(("tier", "dollars"), [("flex", 0.000225), ("standard", 0.00045), ("priority", 0.00081)])
@pytest.mark.parametrize("stream", [False, True])
def test_a_gemini_call_costs_by_the_tier_that_its_headers_name(
    stage: Stage, stream: bool, tier: str, dollars: float
) -> None:
    # A hundred tokens each at $0.75 and $3.75 per million; flex costs half, priority eight tenths more.
    chunk = gemini.chunk("Hello", "STOP", {"promptTokenCount": 100, "candidatesTokenCount": 100})
    kind = "text/event-stream" if stream else "application/json"
    body = gemini.sse(chunk) if stream else json.dumps(chunk).encode()
    stage.upstream.script = says(body, f"content-type: {kind}", f"x-gemini-service-tier: {tier}")
    response = stage.client.post(f"{STREAM}?alt=sse" if stream else GENERATE, data=ASKED)
    assert (response.status_code, response.data) == (200, body)
    (line,) = stage.told.lines()
    assert line["cost_usd"] == pytest.approx(dollars, rel=1e-9)


def test_a_response_that_failed_for_a_rate_limit_is_a_429_though_its_status_is_200(stage: Stage) -> None:
    failed = openai.response("failed", error={"code": "rate_limit_exceeded", "message": "no"})
    headers = "content-type: application/json", "x-ratelimit-remaining-tokens: 0", "retry-after: 3"
    stage.upstream.script = says(json.dumps(failed).encode(), *headers)
    assert stage.client.post(RESPONSES, data=b'{"model":"gpt-6.1-sol"}').status_code == 200
    (counted,) = stage.told.sample("claude_proxy_upstream_429_total{")
    assert 'limit="tokens"' in counted
    (line,) = stage.told.lines()
    assert (line["outcome"], line["limit"], line["retry_after_s"]) == ("upstream_429", "tokens", 3)
