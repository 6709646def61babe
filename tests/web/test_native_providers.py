"""Gemini and OpenAI native, like Claude: bytes untouched, their own keys, errors in their own shape, the same telemetry."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from service.upstream.providers import PROVIDERS
from tests.support import claude
from tests.support.fourth import Fourth
from tests.support.upstream import Seen, answer, json_answer
from tests.upstream import test_gemini as gemini
from tests.upstream import test_openai as openai
from tests.web.conftest import Open, Stage

KEYS = {"GEMINI_API_KEY": "g-key", "OPENAI_API_KEY": "o-key"}
GENERATE = "/gemini/v1/models/gemini-3.8-flash:generateContent"
STREAM = "/gemini/v1beta/models/gemini-3.8-flash:streamGenerateContent"
CHAT, RESPONSES = "/openai/v1/chat/completions", "/openai/v1/responses"
ASKED = b'{"contents":[{"parts":[{"text":"Hi"}]}],  "generationConfig":{"maxOutputTokens":9}, "new":[1.50]}'
ANSWER = json.dumps(gemini.chunk("Hello", "STOP", gemini.USAGE)).encode()
COMPLETION = json.dumps(openai.COMPLETION).encode()


@pytest.fixture
def stage(open_stage: Open) -> Stage:
    """With a key for every provider."""
    return open_stage(**KEYS)


def _streams(body: bytes, content_type: str = "text/event-stream", step: int = 50) -> Any:
    def script(connection: socket.socket, seen: Seen) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        for start in range(0, len(body), step):
            connection.sendall(claude.chunk(body[start : start + step]))
        connection.sendall(claude.LAST_CHUNK)

    return script


def _line(stage: Stage) -> dict[str, Any]:
    (line,) = stage.told.lines()
    return line


def _tokens(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line.get(f"{kind}_tokens") for kind in ("input", "output", "cache_read", "reasoning"))


def test_a_gemini_answer_passes_untouched_and_is_told_like_claudes(stage: Stage) -> None:
    stage.upstream.script = json_answer(ANSWER)
    response = stage.client.post(GENERATE, data=ASKED, headers={"x-goog-api-client": "c", "x-goog-api-key": "theirs"})
    assert (response.status_code, response.data) == (200, ANSWER)
    (seen,) = stage.upstream.seen
    assert (seen.line, seen.body) == ("POST /v1/models/gemini-3.8-flash:generateContent HTTP/1.1", ASKED)
    assert (seen.header("x-goog-api-key"), seen.header("x-goog-api-client")) == ("g-key", "c")
    assert seen.header("x-api-key") is None
    span = stage.told.spans["generate_content gemini-3.8-flash"]
    assert dict(span.attributes or {})["gen_ai.request.max_tokens"] == 9
    line = _line(stage)
    assert (line["provider"], line["model"], line["outcome"]) == ("gcp.gemini", "gemini-3.8-flash", "ok")
    assert line["route"] == "/gemini/v1/models/<model>:generateContent"
    assert (_tokens(line), line["stop_reason"]) == ((45, 27, 10, 20), "STOP")


@pytest.mark.parametrize(("form", "write"), gemini.FORMS)
def test_a_gemini_stream_in_either_form_passes_untouched(stage: Stage, form: str, write: Any) -> None:
    data = write(*gemini.CHUNKS)
    stage.upstream.script = _streams(data, form)
    response = stage.client.post(STREAM + ("?alt=sse" if write is gemini.sse else ""), data=ASKED)
    assert response.data == data
    line = _line(stage)
    assert (line["outcome"], line["stream"], line["chunks"], _tokens(line)) == ("ok", True, 2, (45, 27, 10, 20))


def test_a_gemini_array_comes_chunk_by_chunk_and_is_not_held_back(stage: Stage) -> None:
    first = gemini.array(gemini.CHUNKS[0])[:-2]

    def script(connection: socket.socket, seen: Seen) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head + claude.chunk(first))  # and no more

    stage.upstream.script = script
    response = stage.client.post(STREAM, data=ASKED, buffered=False)
    assert next(iter(response.iter_encoded())) == first
    response.close()


@pytest.mark.parametrize(("form", "write"), gemini.FORMS)
def test_a_gemini_stream_is_not_over_while_more_comes_whatever_finish_reason_it_has_given(
    stage: Stage, form: str, write: Any
) -> None:
    """Some of Gemini's models have said STOP in every chunk: the last one's usage counts."""
    data = write(*(gemini.chunk(f"{n}", "STOP", gemini.USAGE | {"candidatesTokenCount": n}) for n in (1, 2, 500)))
    stage.upstream.script = _streams(data, form)
    response = stage.client.post(STREAM + ("?alt=sse" if write is gemini.sse else ""), data=ASKED)
    assert response.data == data
    line = _line(stage)
    assert (line["outcome"], line["output_tokens"]) == ("ok", 500 + gemini.USAGE["thoughtsTokenCount"])


def test_a_gemini_stream_that_dies_is_cut_off_whatever_finish_reason_it_has_given(stage: Stage) -> None:
    data = gemini.sse(*(gemini.chunk(f"{n}", "STOP", gemini.USAGE | {"candidatesTokenCount": n}) for n in (1, 2)))

    def script(connection: socket.socket, seen: Seen) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head + claude.chunk(data))
        connection.shutdown(socket.SHUT_RDWR)

    stage.upstream.script = script
    body = stage.client.post(STREAM + "?alt=sse", data=ASKED).data
    assert body.startswith(data)
    assert json.loads(body.rpartition(b"data: ")[2])["error"]["status"] == "INTERNAL"
    line = _line(stage)
    assert (line["outcome"], line["cost_certainty"]) == ("cut_off", "estimated")


def test_geminis_own_error_is_its_last_word_however_the_stream_then_ends(stage: Stage) -> None:
    error = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
    data = gemini.sse(gemini.CHUNKS[0], error)

    def script(connection: socket.socket, seen: Seen) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head + claude.chunk(data))
        connection.shutdown(socket.SHUT_RDWR)

    stage.upstream.script = script
    assert stage.client.post(STREAM + "?alt=sse", data=ASKED).data == data
    assert _line(stage)["outcome"] == "upstream_overloaded"


def test_a_client_that_leaves_after_what_looks_like_geminis_last_word_has_it_all(stage: Stage) -> None:
    data = gemini.sse(*gemini.CHUNKS)

    def script(connection: socket.socket, seen: Seen) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head + claude.chunk(data))  # and no more

    stage.upstream.script = script
    response = stage.client.post(STREAM + "?alt=sse", data=ASKED, buffered=False)
    assert next(iter(response.iter_encoded())) == data
    response.close()
    line = _line(stage)
    assert (line["outcome"], _tokens(line)) == ("ok", (45, 27, 10, 20))


@pytest.mark.parametrize("form", ["gemini", "gemini array", "openai"])
def test_a_last_event_that_is_too_large_to_be_read_is_no_cut(stage: Stage, form: str) -> None:
    image = "A" * (9 * 1024 * 1024)
    said = gemini.chunk("x", "STOP", gemini.USAGE)
    said["candidates"][0]["content"]["parts"] += [{"inlineData": {"data": image}}]
    output = [{"type": "image_generation_call", "result": image}]
    response = {"object": "response", "status": "completed", "output": output}
    data, path, kind = {
        "gemini": (gemini.sse(gemini.CHUNKS[0], said), STREAM + "?alt=sse", "text/event-stream"),
        "gemini array": (gemini.array(gemini.CHUNKS[0], said), STREAM, "application/json"),
        "openai": (gemini.sse({"type": "response.completed", "response": response}), RESPONSES, "text/event-stream"),
    }[form]
    stage.upstream.script = _streams(data, kind, step=1 << 20)
    asked = ASKED if form != "openai" else b'{"model":"gpt-6.1-sol","stream":true,"input":"Hi"}'
    assert stage.client.post(path, data=asked).data == data
    line = _line(stage)
    assert (line["outcome"], line["cost_certainty"]) == ("ok", "estimated")


def test_a_gemini_stream_that_ends_too_early_says_so_in_googles_words(stage: Stage) -> None:
    stage.upstream.script = _streams(gemini.sse(*gemini.CHUNKS[:2]))
    body = stage.client.post(STREAM + "?alt=sse", data=ASKED).data
    reader = gemini.read(body)
    assert reader.over
    assert json.loads(body.rpartition(b"data: ")[2])["error"]["status"] == "INTERNAL"
    assert _line(stage)["outcome"] == "cut_off"


def test_a_key_in_the_address_is_the_clients_and_is_seen_by_nobody(open_stage: Open) -> None:
    stage = open_stage(ANTHROPIC_API_KEY="", CLAUDE_PROXY_CREDENTIALS="pass")
    stage.upstream.script = json_answer(ANSWER)
    assert stage.client.post(f"{GENERATE}?key=hunter2&x=1", data=ASKED).status_code == 200
    (seen,) = stage.upstream.seen
    assert seen.line == "POST /v1/models/gemini-3.8-flash:generateContent?x=1 HTTP/1.1"
    assert seen.header("x-goog-api-key") == "hunter2"
    assert "hunter2" not in "".join(span.to_json() for span in stage.told.spans.values())
    assert "hunter2" not in str(stage.told.lines())


def test_a_key_in_an_address_that_leads_nowhere_is_not_seen_either(stage: Stage) -> None:
    assert stage.client.post("/v1beta/models/x:generateContent?key=hunter2", data=ASKED).status_code == 404
    assert "hunter2" not in "".join(span.to_json() for span in stage.told.spans.values())


@pytest.mark.parametrize("path", ["/gemini/v1/models", "/gemini/v1beta/models/gemini-3.8-flash", "/openai/v1/models"])
def test_models_are_passed_through(stage: Stage, path: str) -> None:
    stage.upstream.script = json_answer(b'{"models": []}')
    response = stage.client.get(path + "?pageSize=5")
    assert (response.status_code, response.data) == (200, b'{"models": []}')
    assert stage.upstream.seen[0].line == f"GET /v{path.partition('/v')[2]}?pageSize=5 HTTP/1.1"


def test_counting_tokens_is_passed_through_and_is_no_inference(stage: Stage) -> None:
    stage.upstream.script = json_answer(b'{"totalTokens": 3}')
    path = GENERATE.replace("generateContent", "countTokens")
    assert stage.client.post(path, data=ASKED).data == b'{"totalTokens": 3}'
    assert not [name for name in stage.told.spans if name.startswith("generate_content")]


def test_an_openai_completion_passes_untouched_and_keeps_openais_request_id(stage: Stage) -> None:
    headers = ("content-type: application/json", "x-request-id: req_openai", "x-ratelimit-limit-requests: 500",
               "x-ratelimit-remaining-requests: 499", "x-ratelimit-reset-requests: 120ms")  # fmt: skip
    stage.upstream.script = lambda c, s: c.sendall(answer("200 OK", COMPLETION, *headers))
    asked = b'{"model":"gpt-6.1-sol", "messages":[],  "new":1.50}'
    response = stage.client.post(CHAT, data=asked, headers={"authorization": "Bearer theirs"})
    assert (response.data, response.headers["x-request-id"]) == (COMPLETION, "req_openai")
    (seen,) = stage.upstream.seen
    assert (seen.body, seen.header("authorization")) == (asked, "Bearer o-key")
    assert 'claude_proxy_upstream_quota_remaining{gen_ai_provider_name="openai"' in stage.client.get("/metrics").text
    line = _line(stage)
    assert (line["provider"], line["outcome"], line["upstream_request_id"]) == ("openai", "ok", "req_openai")
    assert _tokens(line) == (40, 30, 10, 20)


@pytest.mark.parametrize(
    ("path", "stream", "usage"),
    [
        (CHAT, openai.CHAT + openai.DONE, (40, 30, 10, 20)),
        (CHAT, openai.sse(openai.chunk({"content": "Hi"}, "stop")) + openai.DONE, (None, None, None, None)),
        (RESPONSES, openai.RESPONSE, (40, 30, 10, 20)),
    ],
    ids=["chat with usage", "chat without", "responses"],
)
def test_an_openai_stream_passes_untouched_and_only_said_tokens_are_told(
    stage: Stage, path: str, stream: bytes, usage: tuple[int | None, ...]
) -> None:
    stage.upstream.script = _streams(stream)
    response = stage.post(path, {"model": "gpt-6.1-sol", "stream": True})
    assert response.data == stream
    line = _line(stage)
    assert (line["outcome"], line["stream"], _tokens(line)) == ("ok", True, usage)


def test_an_openai_stream_that_ends_too_early_says_so_as_openai_would(stage: Stage) -> None:
    stage.upstream.script = _streams(openai.CHAT)
    body = stage.post(CHAT, {"model": "gpt-6.1-sol", "stream": True}).data
    assert body.startswith(openai.CHAT)
    assert openai.read(body).over
    assert _line(stage)["outcome"] == "cut_off"


def test_errors_of_ours_have_the_shape_of_the_provider_whose_path_it_is(stage: Stage) -> None:
    google = stage.client.post(GENERATE, data=b"{").get_json()["error"]
    assert (google["code"], google["status"]) == (400, "INVALID_ARGUMENT")
    assert google["details"][0]["metadata"]["field"] == "body"
    openais = stage.client.post(CHAT, data=b'{"model": 7}').get_json()["error"]
    assert (openais["type"], openais["param"]) == ("invalid_request_error", "model")
    nowhere = stage.client.get("/openai/v1/nowhere")
    assert (nowhere.status_code, nowhere.get_json()["error"]["code"]) == (404, "not_found")
    assert stage.client.get("/nowhere").get_json()["type"] == "error"
    assert stage.upstream.seen == []


def test_without_a_key_for_a_provider_its_routes_say_which_variable_is_missing(open_stage: Open) -> None:
    stage = open_stage(ANTHROPIC_API_KEY="", OPENAI_API_KEY="o-key")
    google = stage.client.post(GENERATE, data=ASKED)
    assert (google.status_code, google.get_json()["error"]["status"]) == (404, "NOT_FOUND")
    assert "GEMINI_API_KEY" in google.get_json()["error"]["message"]
    claudes = stage.post("/v1/messages", claude.ASKED)
    assert (claudes.status_code, claudes.get_json()["error"]["type"]) == (404, "not_found_error")
    assert stage.upstream.seen == []
    stage.upstream.script = json_answer(COMPLETION)
    assert stage.post(CHAT, {"model": "gpt-6.1-sol"}).status_code == 200


def test_a_gemini_429_is_told_by_its_quota_and_its_delay(stage: Stage) -> None:
    details = [gemini.quota("GenerateContentInputTokensPerModelPerMinute"), gemini.retry("19s")]
    body = json.dumps({"error": {"code": 429, "message": "no", "status": "RESOURCE_EXHAUSTED", "details": details}})
    stage.upstream.script = json_answer(body.encode(), "429 Too Many Requests")
    assert stage.client.post(GENERATE, data=ASKED).data == body.encode()
    line = _line(stage)
    assert (line["outcome"], line["limit"], line["retry_after_s"]) == ("upstream_429", "input_tokens", 19.0)


def test_a_refusal_of_our_key_is_not_the_clients_fault_even_as_a_400(stage: Stage) -> None:
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
    body = json.dumps({"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT", "details": [info]}})
    stage.upstream.script = json_answer(body.encode(), "400 Bad Request")
    stage.client.post(GENERATE, data=ASKED)
    assert _line(stage)["outcome"] == "upstream_error"


def _first_fails(error: bytes, status: str, then: bytes) -> Any:
    calls: list[Seen] = []

    def script(connection: socket.socket, seen: Seen) -> None:
        calls.append(seen)
        json_answer(error, status)(connection, seen) if len(calls) == 1 else json_answer(then)(connection, seen)

    return script


def test_an_overloaded_gemini_is_asked_again(open_stage: Open) -> None:
    stage = open_stage(**KEYS, CLAUDE_PROXY_MAX_RETRIES="1")
    error = json.dumps(
        {"error": {"code": 503, "message": "x", "status": "UNAVAILABLE", "details": [gemini.retry("0.01s")]}}
    )
    stage.upstream.script = _first_fails(error.encode(), "503 Service Unavailable", ANSWER)
    assert stage.client.post(GENERATE, data=ASKED).data == ANSWER
    line = _line(stage)
    assert (line["outcome"], line["attempts"]) == ("ok", 2)


def test_an_openai_spend_limit_is_not_asked_again(open_stage: Open) -> None:
    stage = open_stage(**KEYS, CLAUDE_PROXY_MAX_RETRIES="1")
    error = json.dumps({"error": {"message": "x", "type": "insufficient_quota", "code": "insufficient_quota"}})
    stage.upstream.script = _first_fails(error.encode(), "429 Too Many Requests", COMPLETION)
    assert stage.post(CHAT, {"model": "gpt-6.1-sol"}).status_code == 429
    line = _line(stage)
    assert (line["outcome"], line["limit"], line["attempts"]) == ("upstream_429", "spend", 1)


def _by_path(connection: socket.socket, seen: Seen) -> None:
    bodies = {":generateContent": ANSWER, "/v1/messages": claude.MESSAGE, "/v1/chat/completions": COMPLETION}
    json_answer(next(body for path, body in bodies.items() if path in seen.line))(connection, seen)


@pytest.mark.parametrize(
    ("name", "model", "target", "stop", "usage"),
    [
        ("anthropic", "claude-opus-5-5", "/v1/messages", "end_turn", (40, 7)),
        ("gemini", "gemini-3.8-flash", "/v1/models/gemini-3.8-flash:generateContent", "STOP", (45, 27)),
        ("openai", "gpt-6.1-sol", "/v1/chat/completions", "stop", (40, 30)),
    ],
)
def test_generate_answers_in_one_shape_whoever_is_asked(
    stage: Stage, name: str, model: str, target: str, stop: str, usage: tuple[int, int]
) -> None:
    stage.upstream.script = _by_path
    said = stage.post("/generate", {"prompt": "Hi", "provider": name, "max_tokens": 9}).get_json()
    assert (said["provider"], said["model"], said["stop_reason"]) == (name, model, stop)
    assert said["content"] == [{"type": "text", "text": "Hello"}]
    assert (said["usage"]["input_tokens"], said["usage"]["output_tokens"]) == usage
    (seen,) = stage.upstream.seen
    assert seen.line == f"POST {target} HTTP/1.1"
    assert seen.header("content-type") == "application/json"


def test_a_providers_error_comes_in_our_own_routes_shape(stage: Stage) -> None:
    error = [{"error": {"code": 429, "message": "too much", "status": "RESOURCE_EXHAUSTED"}}]
    stage.upstream.script = json_answer(json.dumps(error).encode(), "429 Too Many Requests")
    said = stage.post("/generate", {"prompt": "Hi", "provider": "gemini"})
    assert (said.status_code, said.get_json()["error"]["type"]) == (429, "rate_limit_error")
    assert said.get_json()["error"]["message"] == "too much"


def test_a_fourth_provider_is_one_module_and_one_row(open_stage: Open) -> None:
    stage = open_stage((*PROVIDERS, Fourth()), FOURTH_API_KEY="f-key")
    reply = b'{"id":"f1","text":"Hello","tokens_in":3,"tokens_out":2,"end":true}'
    stage.upstream.script = json_answer(reply)
    response = stage.post("/fourth/v9/replies", {"model": "fourth-1"})
    assert (response.status_code, response.data) == (200, reply)
    said = stage.post("/generate", {"prompt": "Hi", "provider": "fourth"}).get_json()
    assert (said["provider"], said["content"][0]["text"], said["usage"]["output_tokens"]) == ("fourth", "Hello", 2)
    assert stage.post("/fourth/v9/replies", {}).get_json()["error"].startswith("model:")
    assert {seen.header("x-fourth-key") for seen in stage.upstream.seen} == {"f-key"}
    stage.upstream.script = _streams(b"data: " + reply + b"\n\n")
    streamed = stage.post("/fourth/v9/replies", {"model": "fourth-1", "stream": True})
    assert streamed.data == b"data: " + reply + b"\n\n"
    lines = [line for line in stage.told.lines() if line["outcome"] == "ok"]
    assert [(line["provider"], line["output_tokens"]) for line in lines] == [("fourth", 2)] * 3
