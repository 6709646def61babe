"""The Gemini face: answers, streams of both kinds, errors, limits, truth."""

from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from service.simulator.config import Config, Limits
from tests.simulator.conftest import Simulation

MODEL = "gemini-3.8-flash"
KEY = {"x-goog-api-key": "goog-test"}
WEATHER = {
    "name": "weather",
    "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}, "required": ["city"]},
}


def ask(
    sim: Simulation, scenario: str = "", verb: str = "generateContent", base: str = "/gemini/v1", **fields: Any
) -> httpx.Response:
    """Send a small request; the key goes as Google's SDK sends it, and Claude's headers do not go."""
    headers = KEY | ({"x-simulator-scenario": scenario} if scenario else {})
    body = {"contents": [{"role": "user", "parts": [{"text": "hello there"}]}], **fields}
    return sim.stranger.post(f"{base}/models/{MODEL}:{verb}", json=body, headers=headers)


def stream(sim: Simulation, scenario: str = "", **fields: Any) -> list[dict[str, Any]]:
    """The responses of a stream of server-sent events."""
    return parse(ask(sim, scenario, "streamGenerateContent?alt=sse", **fields).text)


def parse(text: str) -> list[dict[str, Any]]:
    assert text.endswith("\r\n\r\n")
    return [msgspec.json.decode(event.removeprefix("data: ")) for event in text.split("\r\n\r\n") if event]


def words(responses: list[dict[str, Any]]) -> str:
    return "".join(part["text"] for each in responses for part in each["candidates"][0]["content"]["parts"])


def details(error: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The details of an error by the last word of their type."""
    return {detail["@type"].rpartition(".")[2]: detail for detail in error["details"]}


def test_an_answer_has_everything_that_clients_look_for_and_is_billed_as_it_says(sim: Simulation) -> None:
    answer = ask(sim, "output_tokens=7").json()
    (candidate,) = answer["candidates"]
    assert len(candidate["content"]["parts"][0]["text"]) == 28
    assert (candidate["content"]["role"], candidate["finishReason"], candidate["index"]) == ("model", "STOP", 0)
    assert answer["modelVersion"] == MODEL
    assert answer["usageMetadata"] == {
        "promptTokenCount": 3,
        "candidatesTokenCount": 7,
        "totalTokenCount": 10,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 3}],
    }
    call = sim.last_call()
    assert (call["provider"], call["kind"], call["model"]) == ("gemini", "message", MODEL)
    assert call["message_id"] == answer["responseId"]
    assert (call["billed"]["requests"], call["billed"]["input_tokens"], call["billed"]["output_tokens"]) == (1, 3, 7)


@pytest.mark.parametrize("base", ["/gemini/v1", "/gemini/v1beta", "/v1", "/v1beta"])
def test_it_answers_under_its_prefix_and_without(sim: Simulation, base: str) -> None:
    assert ask(sim, base=base).json()["modelVersion"] == MODEL


def test_claudes_models_stay_where_they_are(sim: Simulation) -> None:
    assert sim.client.get("/v1/models").json()["data"][0]["type"] == "model"
    assert sim.client.post(f"/v1/models/{MODEL}").json()["type"] == "error"


def test_the_key_may_stand_in_the_query_and_is_never_shown(sim: Simulation) -> None:
    response = sim.stranger.post(
        f"/gemini/v1/models/{MODEL}:countTokens?key=goog-secret",
        json={"contents": [{"parts": [{"text": "four"}]}]},
    )
    assert response.json()["totalTokens"] == 1
    ask(sim, verb="countTokens")
    shown = sim.client.get("/_simulator/counts").text + sim.client.get("/_simulator/requests").text
    assert "goog-secret" not in shown
    assert KEY["x-goog-api-key"] not in shown


def test_a_missing_or_a_wrong_key_is_refused_as_google_does(start: Callable[..., Simulation]) -> None:
    sim = start(Config(api_keys=frozenset({"another"})))
    missing = sim.stranger.post(f"/gemini/v1/models/{MODEL}:generateContent", json={})
    assert (missing.status_code, missing.json()["error"]["status"]) == (403, "PERMISSION_DENIED")
    wrong = ask(sim)
    assert (wrong.status_code, details(wrong.json()["error"])["ErrorInfo"]["reason"]) == (400, "API_KEY_INVALID")


def test_a_stream_says_the_same_as_an_answer_and_its_usage_grows(sim: Simulation) -> None:
    whole = ask(sim, "output_tokens=50").json()
    responses = stream(sim, "output_tokens=50;chunks=5")
    assert words(responses) == words([whole])
    assert [each["usageMetadata"]["candidatesTokenCount"] for each in responses] == [10, 20, 30, 40, 50, 50]
    assert [each["candidates"][0].get("finishReason") for each in responses] == [None] * 5 + ["STOP"]
    assert len({each["responseId"] for each in responses}) == 1
    call = sim.last_call()
    assert (call["kind"], call["ending"], call["billed"]["output_tokens"]) == ("stream", "completed", 50)


def test_without_alt_sse_the_stream_is_one_json_array(sim: Simulation) -> None:
    response = ask(sim, "output_tokens=50", "streamGenerateContent")
    assert response.headers["content-type"].startswith("application/json")
    assert words(response.json()) == words(stream(sim, "output_tokens=50"))


def test_thoughts_are_counted_beside_the_candidates_and_hidden(sim: Simulation) -> None:
    scenario = "output_tokens=50;thinking_tokens=20"
    for responses in ([ask(sim, scenario).json()], stream(sim, scenario)):
        usage = responses[-1]["usageMetadata"]
        assert (usage["thoughtsTokenCount"], usage["candidatesTokenCount"], usage["totalTokenCount"]) == (20, 30, 53)
        assert len(words(responses)) == 120
        billed = sim.last_call()["billed"]
        assert (billed["output_tokens"], billed["reasoning_output_tokens"]) == (50, 20)


@pytest.mark.parametrize("name", ["includeThoughts", "include_thoughts"])
def test_thoughts_are_shown_to_who_asks_in_either_spelling(sim: Simulation, name: str) -> None:
    config = {"thinkingConfig": {name: True}}
    parts = [
        part
        for each in stream(sim, "output_tokens=50", generationConfig=config)
        for part in each["candidates"][0]["content"]["parts"]
    ]
    assert {bool(part.get("thought")) for part in parts} == {True, False}


def test_a_function_call_comes_in_one_piece(sim: Simulation) -> None:
    tools = [{"functionDeclarations": [WEATHER]}]
    for responses in ([ask(sim, "tool=auto", tools=tools).json()], stream(sim, "tool=auto", tools=tools)):
        call = responses[0]["candidates"][0]["content"]["parts"][0]["functionCall"]
        assert (call["name"], list(call["args"])) == ("weather", ["city"])
        assert isinstance(call["args"]["city"], str)


@pytest.mark.parametrize(("stop", "shown"), [("max_tokens", "MAX_TOKENS"), ("refusal", "SAFETY"), ("tool_use", "STOP")])
def test_reasons_to_end_are_translated(sim: Simulation, stop: str, shown: str) -> None:
    assert ask(sim, f"stop={stop}").json()["candidates"][0]["finishReason"] == shown


def test_the_length_is_limited_and_the_shape_kept(sim: Simulation) -> None:
    short = ask(sim, generationConfig={"maxOutputTokens": 3}).json()
    assert (short["candidates"][0]["finishReason"], short["usageMetadata"]["candidatesTokenCount"]) == ("MAX_TOKENS", 3)
    shape = {"responseMimeType": "application/json", "responseSchema": WEATHER["parameters"]}
    assert list(msgspec.json.decode(words([ask(sim, generationConfig=shape).json()]))) == ["city"]


def test_a_long_prompt_is_read_from_the_cache_the_second_time(sim: Simulation) -> None:
    contents = [{"parts": [{"text": "x" * 8000}]}]
    first, second = (ask(sim, contents=contents).json()["usageMetadata"] for _ in range(2))
    assert "cachedContentTokenCount" not in first
    assert (second["promptTokenCount"], second["cachedContentTokenCount"]) == (2000, 1920)
    billed = sim.last_call()["billed"]
    assert (billed["input_tokens"], billed["cache_read_input_tokens"], billed["cache_creation_input_tokens"]) == (
        80,
        1920,
        0,
    )


def test_tokens_are_counted_for_contents_and_for_a_whole_request(sim: Simulation) -> None:
    request = {
        "model": f"models/{MODEL}",
        "contents": [{"parts": [{"text": "hello there"}]}],
        "systemInstruction": {"parts": [{"text": "four"}]},
    }
    assert ask(sim, verb="countTokens").json()["totalTokens"] == 3
    assert ask(sim, verb="countTokens", contents=[], generateContentRequest=request).json()["totalTokens"] == 4
    assert sim.last_call()["billed"]["requests"] == 0


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [
        ("rate_limit_requests", 429, "RESOURCE_EXHAUSTED"),
        ("spend", 429, "RESOURCE_EXHAUSTED"),
        ("acceleration", 429, "RESOURCE_EXHAUSTED"),
        ("overloaded", 503, "UNAVAILABLE"),
        ("error_first", 503, "UNAVAILABLE"),
        ("error_after;error=api_error", 500, "INTERNAL"),
        ("api_error", 500, "INTERNAL"),
        ("timeout", 504, "DEADLINE_EXCEEDED"),
        ("permission", 403, "PERMISSION_DENIED"),
        ("authentication", 400, "INVALID_ARGUMENT"),
    ],
)
def test_a_fault_is_an_error_in_googles_shape(sim: Simulation, fault: str, code: int, status: str) -> None:
    response = ask(sim, f"fault={fault}")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["status"]) == (code, code, status)
    assert "retry-after" not in response.headers
    assert sim.last_call()["billed"]["requests"] == 0


@pytest.mark.parametrize(
    ("scenario", "quota", "delay"),
    [
        ("fault=rate_limit_requests", "GenerateRequestsPerMinutePerProjectPerModel", "5s"),
        (
            "fault=rate_limit_input_tokens;retry_after=3.7",
            "GenerateContentPaidTierInputTokensPerModelPerMinute",
            "3.700s",
        ),
        ("fault=daily_quota", "GenerateRequestsPerDayPerProjectPerModel", "52758s"),
    ],
)
def test_a_429_names_the_quota_and_says_when_to_come_back(
    sim: Simulation, scenario: str, quota: str, delay: str
) -> None:
    found = details(ask(sim, scenario).json()["error"])
    (violation,) = found["QuotaFailure"]["violations"]
    assert (violation["quotaId"], violation["quotaDimensions"]) == (quota, {"location": "global", "model": MODEL})
    assert found["RetryInfo"]["retryDelay"] == delay


def test_the_real_limit_keeps_its_word(start: Callable[..., Simulation]) -> None:
    sim = start(Config(limits=Limits(2, 10_000, 10), ttfb_ms=0, gap_ms=0))
    assert [ask(sim).status_code for _ in range(3)] == [200, 200, 429]
    assert details(ask(sim).json()["error"])["RetryInfo"]["retryDelay"] == "30s"
    sim.clock.now += 30  # type: ignore[attr-defined]
    assert ask(sim).status_code == 200


def test_the_error_of_an_array_stream_is_a_list_of_one(sim: Simulation) -> None:
    (only,) = ask(sim, "fault=overloaded", "streamGenerateContent").json()
    assert only["error"]["status"] == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("fault", "before"), [("error_first", 0), ("error_after;after=0", 0), ("error_after;after=2", 2)]
)
def test_a_stream_can_fail_with_an_error_object(sim: Simulation, fault: str, before: int) -> None:
    scenario = f"fault={fault};chunks=5;output_tokens=50"
    array = ask(sim, scenario, "streamGenerateContent").json()
    for responses in (array, stream(sim, scenario)):
        assert len(responses) == before + 1
        assert responses[-1] == {
            "error": {
                "code": 503,
                "message": "The model is overloaded. Please try again later.",
                "status": "UNAVAILABLE",
            }
        }
        call = sim.last_call()
        assert (call["status"], call["ending"], call["billed"]["output_tokens"]) == (200, "errored", before * 10)


def test_a_stream_can_be_cut_off_and_is_billed_for_what_was_written(sim: Simulation) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        stream(sim, "fault=cut;after=2;chunks=4;output_tokens=40;thinking_tokens=8")
    call = sim.last_call()
    assert (call["ending"], call["billed"]["output_tokens"], call["billed"]["reasoning_output_tokens"]) == (
        "cut",
        24,
        8,
    )


@pytest.mark.parametrize("verb", ["streamGenerateContent?alt=sse", "streamGenerateContent"])
def test_a_stream_can_be_malformed(sim: Simulation, verb: str) -> None:
    response = ask(sim, "fault=malformed;after=1;chunks=3", verb)
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(response.text) if "sse" not in verb else parse(response.text)
    assert '"finishReason":"STOP"' in response.text


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"contents": []}, "contents is not specified"),
        ({"contents": [{"role": "bot", "parts": [{"text": "a"}]}]}, "contents[0].role"),
        ({"contents": [{"parts": [{"text": 5}]}]}, "contents[0].parts[0].text"),
        ({"generationConfig": {"maxOutputTokens": 10**9}}, "maxOutputTokens"),
    ],
)
def test_a_bad_request_is_a_400_that_names_the_field(sim: Simulation, fields: dict[str, Any], named: str) -> None:
    response = ask(sim, **fields)
    assert (response.status_code, response.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert named in response.json()["error"]["message"]


@pytest.mark.parametrize("path", [f"models/{MODEL}:tune", "models/gemini-9:generateContent", "nothing"])
def test_what_is_not_there_is_a_404(sim: Simulation, path: str) -> None:
    response = sim.stranger.post(f"/gemini/v1beta/{path}", json={}, headers=KEY)
    assert (response.status_code, response.json()["error"]["status"]) == (404, "NOT_FOUND")


def test_models_come_in_pages(sim: Simulation) -> None:
    url = "/gemini/v1beta/models"
    first = sim.stranger.get(f"{url}?pageSize=3", headers=KEY).json()
    rest = sim.stranger.get(f"{url}?pageToken={first['nextPageToken']}", headers=KEY).json()
    assert (len(first["models"]), "nextPageToken" in rest) == (3, False)
    for model in first["models"] + rest["models"]:
        assert sim.stranger.get(f"{url}/{model['name'].removeprefix('models/')}", headers=KEY).json() == model
