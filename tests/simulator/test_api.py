"""The API over HTTP, without streams: validation, ids, headers, lists, faults."""

import gzip
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.simulator.config import Config, Limits
from tests.simulator.conftest import HEADERS, KEY, Simulation, body

WEATHER = {"name": "weather", "input_schema": {"type": "object", "properties": {}}}


def test_a_message_has_everything_that_clients_look_for(sim: Simulation) -> None:
    response = sim.ask("output_tokens=7")
    message = response.json()
    assert message["id"].startswith("msg_01")
    assert message["content"][0]["type"] == "text"
    assert (message["type"], message["role"], message["stop_reason"]) == ("message", "assistant", "end_turn")
    assert message["usage"]["input_tokens"] == 3
    assert message["usage"]["output_tokens"] == 7
    assert response.headers["request-id"].startswith("req_011C")
    assert "anthropic-organization-id" in response.headers
    assert response.headers["anthropic-ratelimit-requests-limit"] == "1000"


def test_an_alias_is_answered_with_the_full_name_of_the_model(sim: Simulation) -> None:
    assert sim.ask(model="claude-haiku-4-5").json()["model"] == "claude-haiku-4-5-20251001"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens: "),
        ({"max_tokens": -1}, "max_tokens: "),
        ({"max_tokens": 10**6}, "max_tokens: 1000000 > 128000"),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "bot", "content": "a"}]}, "messages.1.role: "),
        ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages: "),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.type: "),
        ({"model": "claude-opus-5-5", "thinking": {"type": "disabled"}}, "thinking.type: "),
        ({"model": "claude-opus-5-5", "tools": [WEATHER], "tool_choice": {"type": "any"}}, "tool_choice: "),
        ({"model": "claude-haiku-4-5", "thinking": {"type": "enabled", "budget_tokens": 9}}, "budget_tokens: "),
        ({"temperature": 0.5}, "temperature: "),
    ],
)
def test_a_bad_request_is_a_400_that_names_the_field(sim: Simulation, fields: dict[str, Any], named: str) -> None:
    response = sim.ask(**fields)
    error = response.json()
    assert response.status_code == 400
    assert error["type"] == "error"
    assert error["error"]["type"] == "invalid_request_error"
    assert named in error["error"]["message"]
    assert error["request_id"] == response.headers["request-id"]


@pytest.mark.parametrize("field", ["model", "messages", "max_tokens"])
def test_a_missing_field_is_named(sim: Simulation, field: str) -> None:
    request = {name: value for name, value in body().items() if name != field}
    message = sim.client.post("/v1/messages", json=request).json()["error"]["message"]
    assert message == f"{field}: Field required"


def test_older_models_allow_what_newer_ones_do_not(sim: Simulation) -> None:
    old: dict[str, Any] = {"model": "claude-sonnet-4-5", "temperature": 0.5, "max_tokens": 3000}
    prefill = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert sim.ask(**old, messages=prefill).status_code == 200
    assert sim.ask(**old, thinking={"type": "enabled", "budget_tokens": 1024}).status_code == 200


def test_the_new_version_takes_sampling_away(sim: Simulation) -> None:
    request = body(model="claude-sonnet-4-5", temperature=0.5)
    response = sim.client.post("/v1/messages", json=request, headers={"anthropic-version": "2026-10-21"})
    assert "temperature" in response.json()["error"]["message"]


def test_what_is_not_json_is_a_400(sim: Simulation) -> None:
    response = sim.client.post("/v1/messages", content=b'{"model": ')
    assert "not valid JSON" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "message"), [("/v1/models/claude-9", "model: claude-9"), ("/v1/nothing", "Not found: GET /v1/nothing")]
)
def test_what_is_not_there_is_a_404(sim: Simulation, path: str, message: str) -> None:
    response = sim.client.get(path)
    assert (response.status_code, response.json()["error"]["message"]) == (404, message)


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({"anthropic-version": "2023-06-01"}, 401, "authentication_error"),
        ({"x-api-key": KEY}, 400, "invalid_request_error"),
        ({"x-api-key": KEY, "anthropic-version": "1999-01-01"}, 400, "invalid_request_error"),
        ({"authorization": f"Bearer {KEY}", "anthropic-version": "2026-10-21"}, 200, None),
    ],
)
def test_key_and_version_are_required(sim: Simulation, headers: dict[str, str], status: int, kind: str | None) -> None:
    response = httpx.get(f"{sim.url}/v1/models", headers=headers)
    assert response.status_code == status
    assert response.json().get("error", {}).get("type") == kind


def test_only_the_configured_keys_are_good(start: Callable[..., Simulation]) -> None:
    sim = start(Config(api_keys=frozenset({"another"})))
    assert sim.ask().status_code == 401


def test_tokens_can_be_counted_without_a_message(sim: Simulation) -> None:
    request = {name: value for name, value in body().items() if name != "max_tokens"}
    assert sim.client.post("/v1/messages/count_tokens", json=request).json() == {"input_tokens": 3}


def test_models_come_in_pages_both_ways(sim: Simulation) -> None:
    first = sim.client.get("/v1/models?limit=5").json()
    assert (len(first["data"]), first["has_more"]) == (5, True)
    second = sim.client.get(f"/v1/models?limit=1000&after_id={first['last_id']}").json()
    assert second["has_more"] is False
    back = sim.client.get(f"/v1/models?limit=5&before_id={second['first_id']}").json()
    assert back["data"] == first["data"]
    assert sim.client.get("/v1/models?limit=0").status_code == 400


def test_every_listed_model_answers(sim: Simulation) -> None:
    for model in sim.client.get("/v1/models?limit=1000").json()["data"]:
        assert sim.client.get(f"/v1/models/{model['id']}").json() == model
        assert sim.ask(model=model["id"]).json()["model"] == model["id"]


def test_a_tool_call_is_a_block_with_input(sim: Simulation) -> None:
    block = sim.ask(tools=[WEATHER], tool_choice={"type": "any"}).json()["content"][0]
    assert (block["type"], block["name"], block["input"]) == ("tool_use", "weather", {})
    assert block["id"].startswith("toolu_01")


def test_cached_prompts_show_in_usage(sim: Simulation) -> None:
    block = {"type": "text", "text": "x" * 400, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    messages = [{"role": "user", "content": [block, {"type": "text", "text": "four"}]}]
    written, read = (sim.ask(messages=messages).json()["usage"] for _ in range(2))
    assert (written["input_tokens"], written["cache_creation_input_tokens"]) == (1, 100)
    assert written["cache_creation"] == {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 100}
    assert (read["input_tokens"], read["cache_read_input_tokens"], read["cache_creation_input_tokens"]) == (1, 100, 0)


def test_the_real_limit_says_when_to_come_back_and_keeps_its_word(start: Callable[..., Simulation]) -> None:
    sim = start(Config(limits=Limits(2, 10_000, 10_000), ttfb_ms=0, gap_ms=0))
    assert [sim.ask().status_code for _ in range(3)] == [200, 200, 429]
    refused = sim.ask()
    assert (refused.headers["retry-after"], refused.json()["error"]["type"]) == ("30", "rate_limit_error")
    sim.clock.now += 30  # type: ignore[attr-defined]
    assert sim.ask().status_code == 200


@pytest.mark.parametrize(
    ("fault", "status", "kind", "code"),
    [
        ("rate_limit_requests", 429, "rate_limit_error", None),
        ("rate_limit_input_tokens", 429, "rate_limit_error", None),
        ("rate_limit_output_tokens", 429, "rate_limit_error", None),
        ("acceleration", 429, "rate_limit_error", "ramp_limit_exceeded"),
        ("spend", 429, "rate_limit_error", "enforced_spend_limit_reached"),
        ("overloaded", 529, "overloaded_error", None),
        ("error_first", 529, "overloaded_error", None),
        ("api_error", 500, "api_error", None),
        ("timeout", 504, "timeout_error", None),
        ("permission", 403, "permission_error", None),
        ("billing", 402, "billing_error", None),
    ],
)
def test_a_fault_is_an_error_of_its_kind(sim: Simulation, fault: str, status: int, kind: str, code: str | None) -> None:
    response = sim.ask(f"fault={fault};should_retry=false")
    error = response.json()["error"]
    assert (response.status_code, error["type"], error.get("details", {}).get("error_code")) == (status, kind, code)
    assert ("retry-after" in response.headers) == (status == 429 and fault != "spend")
    assert response.headers["x-should-retry"] == "false"
    call = sim.last_call()
    assert (call["status"], call["fault"], call["billed"]["requests"]) == (status, fault, 0)
    assert call["model"] == "claude-sonnet-5-5"


@pytest.mark.parametrize("limit", ["requests", "input_tokens", "output_tokens"])
def test_a_rate_limit_fault_shows_nothing_remaining(sim: Simulation, limit: str) -> None:
    headers = sim.ask(f"fault=rate_limit_{limit};retry_after=1.5").headers
    assert headers[f"anthropic-ratelimit-{limit.replace('_', '-')}-remaining"] == "0"
    assert headers["retry-after"] == "1.5"


def test_an_unknown_scenario_is_a_400_that_names_it(sim: Simulation) -> None:
    response = sim.ask("fualt=cut")
    assert response.status_code == 400
    assert "fualt" in response.json()["error"]["message"]


def test_latency_is_what_the_scenario_says(sim: Simulation) -> None:
    sim.ask("ttfb_ms=5000;gap_ms=100;chunks=10")
    call = sim.last_call()
    assert call["ended"] - call["started"] == pytest.approx(6)


def test_an_answer_can_be_compressed_and_carry_a_cookie(sim: Simulation) -> None:
    response = sim.ask("gzip;cookie")
    assert response.headers["content-encoding"] == "gzip"
    assert "__cf_bm=" in response.headers["set-cookie"]
    assert response.json()["type"] == "message"


def test_a_request_may_be_compressed(sim: Simulation) -> None:
    packed = gzip.compress(httpx.Request("POST", sim.url, json=body()).content)

    def post(data: bytes, encoding: str) -> httpx.Response:
        return sim.client.post("/v1/messages", content=data, headers={"content-encoding": encoding})

    assert post(packed, "gzip").status_code == 200
    assert post(packed, "br").json()["error"]["details"]["error_code"] == "request_body_encoding_unsupported"
    assert post(b"plain", "gzip").json()["error"]["details"]["error_code"] == "request_body_encoding_invalid"


def test_a_request_beyond_32_mb_is_refused(sim: Simulation) -> None:
    response = sim.client.post("/v1/messages", content=b" " * ((32 << 20) + 1), headers=HEADERS)
    assert (response.status_code, response.json()["error"]["type"]) == (413, "request_too_large")


@pytest.mark.parametrize("fault", ["malformed", "garbage"])
def test_a_body_can_be_something_else_than_json(sim: Simulation, fault: str) -> None:
    response = sim.ask(f"fault={fault}")
    assert response.status_code == 200
    with pytest.raises(ValueError):
        response.json()


@pytest.mark.parametrize("fault", ["cut", "reset_mid"])
def test_a_body_can_end_too_early(sim: Simulation, fault: str) -> None:
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        sim.ask(f"fault={fault}")
    assert sim.last_call()["ending"] == "cut"


def test_faults_strike_every_route(sim: Simulation) -> None:
    headers = {"x-simulator-scenario": "fault=overloaded"}
    for path in ("/v1/models", "/v1/files", "/v1/messages/batches"):
        assert sim.client.get(path, headers=headers).status_code == 529
