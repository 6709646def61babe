"""The OpenAI face: chat completions and responses, their streams, errors, limits, truth."""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import httpx
import msgspec
import pytest

from service.simulator.config import Config, Limits
from service.simulator.openai.face import go_duration
from tests.simulator.conftest import Simulation, parse_events

KEY = {"authorization": "Bearer sk-openai-test"}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CHAT_TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]
TOOLS = [{"type": "function", "name": "weather", "parameters": CITY}]


def post(sim: Simulation, path: str, scenario: str, body: dict[str, Any], base: str = "/openai/v1") -> httpx.Response:
    headers = KEY | ({"x-simulator-scenario": scenario} if scenario else {})
    return sim.stranger.post(f"{base}/{path}", json=body, headers=headers)


def chat(sim: Simulation, scenario: str = "", **fields: Any) -> httpx.Response:
    """Send a small chat."""
    body = {"model": "gpt-5.5", "messages": [{"role": "user", "content": "hello there"}], **fields}
    return post(sim, "chat/completions", scenario, body)


def respond(sim: Simulation, scenario: str = "", **fields: Any) -> httpx.Response:
    """Ask for a small response."""
    return post(sim, "responses", scenario, {"model": "gpt-5.5", "input": "hello there", **fields})


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a streamed chat that ends as it should."""
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [msgspec.json.decode(event.removeprefix("data: ")) for event in events]


def said(found: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content", "") for chunk in found for choice in chunk["choices"])


def test_a_completion_has_everything_that_clients_look_for_and_is_billed_as_it_says(sim: Simulation) -> None:
    response = chat(sim, "output_tokens=20;thinking_tokens=8")
    completion = response.json()
    (choice,) = completion["choices"]
    assert (completion["object"], completion["model"]) == ("chat.completion", "gpt-5.5-2026-04-23")
    assert (choice["message"]["role"], len(choice["message"]["content"]), choice["finish_reason"]) == (
        "assistant",
        48,
        "stop",
    )
    usage = completion["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 20, 23)
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 8
    call = sim.last_call()
    assert (call["provider"], call["kind"], call["model"]) == ("openai", "message", "gpt-5.5-2026-04-23")
    assert (call["request_id"], call["message_id"]) == (response.headers["x-request-id"], completion["id"])
    billed = call["billed"]
    assert (billed["input_tokens"], billed["output_tokens"], billed["reasoning_output_tokens"]) == (3, 20, 8)


@pytest.mark.parametrize("base", ["/openai/v1", "/v1"])
def test_it_answers_under_its_prefix_and_without(sim: Simulation, base: str) -> None:
    body = {"model": "gpt-5.5", "messages": [{"role": "user", "content": "a"}], "input": "a"}
    assert post(sim, "chat/completions", "", body, base).json()["object"] == "chat.completion"
    assert post(sim, "responses", "", body, base).json()["object"] == "response"


def test_a_streamed_chat_says_the_same_and_its_usage_is_there_for_who_asks(sim: Simulation) -> None:
    whole = chat(sim, "output_tokens=50", stream=False).json()["choices"][0]["message"]["content"]
    plain = chunks(chat(sim, "output_tokens=50;seed=1;chunks=5", stream=True))
    assert len(said(plain)) == len(whole) == 200
    assert not any("usage" in chunk for chunk in plain)
    assert [chunk["choices"][0]["finish_reason"] for chunk in plain] == [None] * 6 + ["stop"]
    assert len({chunk["id"] for chunk in plain}) == 1
    *rest, last = chunks(chat(sim, "output_tokens=50", stream=True, stream_options={"include_usage": True}))
    assert {chunk["usage"] for chunk in rest} == {None}
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 53)
    call = sim.last_call()
    assert (call["kind"], call["ending"], call["billed"]["output_tokens"]) == ("stream", "completed", 50)


@pytest.mark.parametrize("asker", [chat, respond])
def test_reasoning_in_a_stream_is_billed_though_it_is_not_shown(
    sim: Simulation, asker: Callable[..., httpx.Response]
) -> None:
    asker(sim, "output_tokens=20;thinking_tokens=8", stream=True)
    billed = sim.last_call()["billed"]
    assert (billed["output_tokens"], billed["reasoning_output_tokens"]) == (20, 8)


def test_the_arguments_of_a_tool_call_arrive_in_pieces_that_make_json(sim: Simulation) -> None:
    found = chunks(chat(sim, "tool=auto;chunks=4", stream=True, tools=CHAT_TOOLS))
    calls = [call for chunk in found for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert (calls[0]["function"]["name"], calls[0]["type"], len(calls)) == ("weather", "function", 5)
    assert list(msgspec.json.decode("".join(call["function"]["arguments"] for call in calls))) == ["city"]
    assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"
    whole = chat(sim, tools=CHAT_TOOLS, tool_choice="required").json()["choices"][0]
    assert (whole["message"]["content"], whole["message"]["tool_calls"][0]["function"]["name"]) == (None, "weather")


def test_a_response_has_everything_that_clients_look_for_and_is_billed_as_it_says(sim: Simulation) -> None:
    response = respond(sim, "output_tokens=20;thinking_tokens=8", instructions="four").json()
    assert (response["object"], response["status"]) == ("response", "completed")
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
    assert len(response["output"][1]["content"][0]["text"]) == 48
    usage = response["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (4, 20, 24)
    assert usage["output_tokens_details"] == {"reasoning_tokens": 8}
    call = sim.last_call()
    assert (call["message_id"], call["billed"]["output_tokens"]) == (response["id"], 20)
    assert call["billed"]["reasoning_output_tokens"] == 8


def test_the_events_of_a_response_are_typed_numbered_and_in_order(sim: Simulation) -> None:
    events = parse_events(respond(sim, "output_tokens=20;thinking_tokens=8;chunks=3", stream=True).text)
    kinds = [kind.removeprefix("response.") for kind, _ in groupby(event["type"] for event in events)]
    item = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done"]
    reasoning = ["output_item.added", "output_item.done"]
    assert kinds == ["created", "in_progress", *reasoning, *item, "output_item.done", "completed"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    final = events[-1]["response"]
    assert final["output"][1]["content"][0]["text"] == text
    assert (events[0]["response"]["usage"], final["usage"]["total_tokens"]) == (None, 23)
    assert (events[0]["response"]["id"], final["status"]) == (final["id"], "completed")


def test_the_arguments_of_a_function_call_are_events_of_their_own(sim: Simulation) -> None:
    events = parse_events(respond(sim, "tool=auto;chunks=3", stream=True, tools=TOOLS).text)
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    (call,) = events[-1]["response"]["output"]
    assert len(deltas) == 3
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "weather", "".join(deltas))


def test_what_does_not_end_by_itself_is_incomplete(sim: Simulation) -> None:
    response = respond(sim, max_output_tokens=16).json()
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert parse_events(respond(sim, max_output_tokens=16, stream=True).text)[-1]["type"] == "response.incomplete"
    assert chat(sim, max_completion_tokens=16).json()["choices"][0]["finish_reason"] == "length"
    assert chat(sim, "stop=refusal").json()["choices"][0]["finish_reason"] == "content_filter"


@pytest.mark.parametrize("asker", [chat, respond])
@pytest.mark.parametrize(
    ("fault", "status", "kind", "code"),
    [
        ("rate_limit_requests", 429, "requests", "rate_limit_exceeded"),
        ("rate_limit_output_tokens", 429, "tokens", "rate_limit_exceeded"),
        ("daily_quota", 429, "requests", "rate_limit_exceeded"),
        ("spend", 429, "insufficient_quota", "insufficient_quota"),
        ("overloaded", 503, "service_unavailable_error", "server_is_overloaded"),
        ("error_first", 503, "service_unavailable_error", "server_is_overloaded"),
        ("acceleration", 503, "service_unavailable_error", "slow_down"),
        ("api_error", 500, "server_error", None),
        ("authentication", 401, "invalid_request_error", "invalid_api_key"),
        ("permission", 403, "invalid_request_error", None),
    ],
)
def test_a_fault_is_an_error_of_its_kind(
    sim: Simulation, asker: Callable[..., httpx.Response], fault: str, status: int, kind: str, code: str | None
) -> None:
    response = asker(sim, f"fault={fault};should_retry=false")
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"], error["param"]) == (status, kind, code, None)
    assert ("retry-after" in response.headers) == (code == "rate_limit_exceeded")
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["x-request-id"] == sim.last_call()["request_id"]
    assert sim.last_call()["billed"]["requests"] == 0


def test_a_retry_after_can_be_asked_for_but_not_for_a_quota_that_is_used_up(sim: Simulation) -> None:
    headers = chat(sim, "fault=overloaded;retry_after=1.5").headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("2", "1500")
    assert "retry-after" not in chat(sim, "fault=spend;retry_after=1.5").headers


def test_headers_tell_the_real_limits_and_a_429_keeps_its_word(start: Callable[..., Simulation]) -> None:
    sim = start(Config(limits=Limits(3, 6000, 10), ttfb_ms=0, gap_ms=0))
    first = chat(sim, "output_tokens=97")
    assert {name: value for name, value in first.headers.items() if name.startswith("x-ratelimit")} == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-remaining-tokens": "5900",
        "x-ratelimit-reset-requests": "20s",
        "x-ratelimit-reset-tokens": "1s",
    }
    assert [chat(sim).status_code for _ in range(3)] == [200, 200, 429]
    refused = chat(sim)
    assert (
        "requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in 20s"
        in refused.json()["error"]["message"]
    )
    assert (refused.headers["retry-after"], refused.headers["x-ratelimit-remaining-requests"]) == ("20", "0")
    sim.clock.now += 20  # type: ignore[attr-defined]
    assert chat(sim).status_code == 200


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0s"),
        (0.12, "120ms"),
        (0.0001, "1ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (360, "6m0s"),
        (61.5, "1m1.5s"),
        (7265, "2h1m5s"),
    ],
)
def test_a_reset_is_written_as_go_writes_a_duration(seconds: float, written: str) -> None:
    assert go_duration(seconds) == written


@pytest.mark.parametrize(
    ("fault", "before"), [("error_first", 0), ("error_after;after=0", 0), ("error_after;after=2", 2)]
)
def test_a_streamed_chat_can_fail_with_an_error_object(sim: Simulation, fault: str, before: int) -> None:
    response = chat(sim, f"fault={fault};chunks=5;output_tokens=50;error=api_error", stream=True)
    *_, last, rest = response.text.split("\n\n")
    assert (response.status_code, rest) == (200, "")
    assert msgspec.json.decode(last.removeprefix("data: "))["error"]["code"] == "server_error"
    call = sim.last_call()
    assert (call["ending"], call["billed"]["output_tokens"]) == ("errored", before * 10)


def test_a_streamed_response_can_fail_at_once_or_later(sim: Simulation) -> None:
    (only,) = parse_events(respond(sim, "fault=error_first", stream=True).text)
    assert (only["type"], only["error"]["code"]) == ("error", "server_is_overloaded")
    events = parse_events(respond(sim, "fault=error_after;after=1;chunks=5;output_tokens=50", stream=True).text)
    assert [event["type"] for event in events[-3:]] == ["response.output_text.delta", "error", "response.failed"]
    failed = events[-1]["response"]
    assert (failed["status"], failed["usage"], failed["error"]["code"]) == ("failed", None, "server_is_overloaded")
    assert sim.last_call()["billed"]["output_tokens"] == 10


@pytest.mark.parametrize("asker", [chat, respond])
def test_a_stream_can_break_in_every_way(sim: Simulation, asker: Callable[..., httpx.Response]) -> None:
    for fault in ("cut", "cut_boundary"):
        with pytest.raises(httpx.RemoteProtocolError):
            asker(sim, f"fault={fault};after=2;chunks=4;output_tokens=40", stream=True)
        assert (sim.last_call()["ending"], sim.last_call()["billed"]["output_tokens"]) == ("cut", 20)
    with pytest.raises(httpx.ReadError):
        asker(sim, "fault=reset_mid", stream=True)
    lines = asker(sim, "fault=malformed;after=1;chunks=3", stream=True).text.splitlines()
    assert len([line for line in lines if line.startswith("data: {") and not line.endswith("}")]) == 1
    assert b"data:" not in asker(sim, "fault=garbage", stream=True).content
    assert sim.last_call()["billed"]["requests"] == 0


def test_a_long_prompt_is_written_to_the_cache_and_read_the_second_time(sim: Simulation) -> None:
    messages = [{"role": "system", "content": "x" * 6000}]
    for model, written in (("gpt-6.1-sol", 1408), ("gpt-5.5", 0)):
        turns = [[*messages, {"role": "user", "content": words}] for words in ("four", "more")]
        first, second = (
            chat(sim, model=model, messages=each).json()["usage"]["prompt_tokens_details"] for each in turns
        )
        assert (first["cached_tokens"], first["cache_write_tokens"]) == (0, written)
        assert (second["cached_tokens"], second["cache_write_tokens"]) == (1408, 0)
        billed = sim.last_call()["billed"]
        assert (billed["input_tokens"], billed["cache_read_input_tokens"]) == (93, 1408)


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "a"}, {"authorization": "Basic a"}])
def test_the_key_must_be_a_bearers(sim: Simulation, headers: dict[str, str]) -> None:
    response = sim.stranger.get("/openai/v1/models", headers=headers)
    assert (response.status_code, response.json()["error"]["type"]) == (401, "invalid_request_error")


def test_models_are_listed_and_every_one_answers(sim: Simulation) -> None:
    for model in sim.stranger.get("/openai/v1/models", headers=KEY).json()["data"]:
        assert sim.stranger.get(f"/openai/v1/models/{model['id']}", headers=KEY).json() == model
        assert chat(sim, "output_tokens=1", model=model["id"]).json()["model"] == model["id"]


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("chat/completions", {"model": "gpt-5.5"}, "messages", "missing_required_parameter"),
        ("chat/completions", {"model": "gpt-5.5", "messages": []}, "messages", "invalid_value"),
        ("chat/completions", {"model": "gpt-5.5", "messages": [{"role": 1}]}, "messages[0].role", "invalid_type"),
        ("responses", {"input": "a"}, "model", "missing_required_parameter"),
        (
            "responses",
            {"model": "gpt-5.5", "input": "a", "max_output_tokens": -1},
            "max_output_tokens",
            "integer_below_min_value",
        ),
        (
            "responses",
            {"model": "gpt-5.5", "input": "a", "previous_response_id": "b"},
            "previous_response_id",
            "previous_response_not_found",
        ),
    ],
)
def test_a_bad_request_is_a_400_that_names_the_field(
    sim: Simulation, path: str, body: dict[str, Any], param: str, code: str
) -> None:
    response = post(sim, path, "", body)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"], error["code"]) == (
        400,
        "invalid_request_error",
        param,
        code,
    )


@pytest.mark.parametrize(("path", "code"), [("chat/completions", "model_not_found"), ("nothing", None)])
def test_what_is_not_there_is_a_404_in_its_own_shape(sim: Simulation, path: str, code: str | None) -> None:
    response = post(sim, path, "", {"model": "gpt-9", "messages": []})
    assert (response.status_code, response.json()["error"]["code"]) == (404, code)


def test_bills_are_kept_by_provider(sim: Simulation) -> None:
    chat(sim)
    sim.ask()
    bills = {(bill["provider"], bill["model"]) for bill in sim.counts()["billed"]}
    assert bills == {("openai", "gpt-5.5-2026-04-23"), ("anthropic", "claude-sonnet-5-5")}
