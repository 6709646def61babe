"""What Gemini's answers say: usage as its API defines it, both forms of its stream, what its errors ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from observability.catalog import LIMITS_429, Outcome
from service.errors import InvalidAnswer
from service.record import Answered, Usage
from service.upstream.gemini import Gemini, Request
from service.upstream.gemini_answers import StreamReader, WholeReader
from service.upstream.provider import Hint, Prompt, Said

GEMINI = Gemini()
MODEL = "gemini-3.8-flash"


def chunk(text: str | None = None, finish: str | None = None, usage: dict[str, int] | None = None) -> dict[str, Any]:
    """One event of a stream."""
    candidate: dict[str, Any] = {"index": 0}
    if text is not None:
        candidate["content"] = {"role": "model", "parts": [{"text": text}]}
    if finish is not None:
        candidate["finishReason"] = finish
    found: dict[str, Any] = {"candidates": [candidate], "modelVersion": MODEL, "responseId": "r1"}
    return found | ({"usageMetadata": usage} if usage is not None else {})


USAGE = {
    "promptTokenCount": 40,
    "cachedContentTokenCount": 10,
    "toolUsePromptTokenCount": 5,
    "candidatesTokenCount": 7,
    "thoughtsTokenCount": 20,
    "totalTokenCount": 72,
}
TOTAL = Usage(input_tokens=45, output_tokens=27, cache_read_tokens=10, reasoning_tokens=20, summed=True)
CHUNKS = [
    chunk("Hel", usage={"promptTokenCount": 40, "candidatesTokenCount": 1, "totalTokenCount": 41}),
    chunk("lo ☀ [{", usage={"promptTokenCount": 40, "candidatesTokenCount": 3}),
    chunk("", "STOP", USAGE),
]


def sse(*chunks: Any) -> bytes:
    """As with `alt=sse`."""
    return b"".join(b"data: " + json.dumps(each).encode() + b"\r\n\r\n" for each in chunks)


def array(*chunks: Any) -> bytes:
    """As without it."""
    return b"[" + b"\n,\r\n".join(json.dumps(each, indent=2).encode() for each in chunks) + b"\n]\n"


def read(*pieces: bytes, form: str = "text/event-stream", times: tuple[float, ...] = ()) -> StreamReader:
    clock: Iterator[float] = iter(times)
    reader = GEMINI.stream_reader(lambda: next(clock, 0.0), lambda: None, form, "")
    for piece in pieces:
        reader.feed(piece)
    return reader


FORMS = [("text/event-stream", sse), ("application/json; charset=UTF-8", array)]


@pytest.mark.parametrize(("form", "write"), FORMS)
def test_a_stream_in_either_form_tells_the_last_usage_ids_and_pace(form: str, write: Any) -> None:
    reader = read(write(*CHUNKS), form=form, times=(0.5, 0.75))
    assert reader.ended() == (Outcome.OK, None)
    answered = reader.answered
    assert answered.pace is not None
    assert (answered.pace.total, answered.pace.longest, sum(answered.pace.counts)) == (0.25, 0.25, 1)
    assert answered == Answered(
        streamed=True,
        response_id="r1",
        model=MODEL,
        finish_reason="STOP",
        unmarked=True,
        usage=TOTAL,
        content_bytes=3 + 9,
        first_chunk=0.5,
        pace=answered.pace,
    )


@pytest.mark.parametrize(("form", "write"), FORMS)
def test_cut_at_any_byte_a_stream_tells_the_same(form: str, write: Any) -> None:
    data = write(*CHUNKS)
    whole = read(data, form=form)
    for cut in range(len(data)):
        reader = read(data[:cut], data[cut:], form=form)
        assert (reader.answered, reader.ended()) == (whole.answered, whole.ended()), cut


def test_byte_by_byte_an_array_with_escapes_in_its_strings_tells_the_same() -> None:
    odd = chunk('\\" }}} ] "{ \\\\', "STOP", USAGE)
    data = array(CHUNKS[0], odd)
    reader = read(*(data[i : i + 1] for i in range(len(data))), form="application/json")
    assert (reader.ended(), reader.answered.usage) == ((Outcome.OK, None), TOTAL)


def test_only_the_sse_form_takes_an_event_of_ours() -> None:
    assert read().readable
    assert not read(form="application/json").readable


def test_a_json_array_is_a_stream_only_where_one_was_asked_for() -> None:
    assert GEMINI.is_stream("text/event-stream")
    assert GEMINI.is_stream("application/json; charset=UTF-8", asked=True)
    assert not GEMINI.is_stream("application/json; charset=UTF-8")


@pytest.mark.parametrize("until", range(3))
def test_a_stream_without_a_finish_reason_was_cut_off(until: int) -> None:
    reader = read(sse(*CHUNKS[:until]))
    assert reader.ended() == (Outcome.CUT_OFF, "cut_off")
    assert not reader.over


def test_a_stream_of_two_candidates_is_over_when_both_are() -> None:
    first, second = chunk("a", "STOP"), chunk("b")
    second["candidates"][0]["index"] = 1
    reader = read(sse(second, first))
    assert not reader.over
    last = chunk("c", "STOP")
    last["candidates"][0]["index"] = 1
    reader.feed(sse(last))
    assert reader.over


@pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "PROHIBITED_CONTENT", "MODEL_ARMOR"])
def test_a_filtered_answer_is_a_refusal(reason: str) -> None:
    assert read(sse(chunk("x", reason))).ended() == (Outcome.REFUSED, None)
    assert whole(200, chunk("x", reason)).ended() == (Outcome.REFUSED, None)


def test_a_blocked_prompt_is_a_refusal_with_its_reason() -> None:
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 4}}
    for reader in (read(sse(blocked)), whole(200, blocked)):
        assert reader.ended() == (Outcome.REFUSED, None)
        assert (reader.answered.finish_reason, reader.answered.usage) == ("SAFETY", Usage(input_tokens=4))


@pytest.mark.parametrize(("form", "write"), FORMS)
def test_an_error_in_a_stream_is_a_failure_of_its_status(form: str, write: Any) -> None:
    error = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
    reader = read(write(error), form=form)
    assert (reader.opened_with, reader.ended()) == ("error", (Outcome.UPSTREAM_OVERLOADED, "UNAVAILABLE"))
    later = read(write(CHUNKS[0], error), form=form)
    assert (later.opened_with, later.over) == ("content", True)


@pytest.mark.parametrize("bad", [b"data: {\n\n", b"data: [1]\n\n", b'data: {"candidates": 3}\n\n', b"data: \xff\n\n"])
def test_an_event_that_makes_no_sense_makes_a_complete_stream_an_invalid_response(bad: bytes) -> None:
    assert read(bad, sse(*CHUNKS)).ended() == (Outcome.UPSTREAM_ERROR, "invalid_response")


def test_a_function_call_is_content_too() -> None:
    call = {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": {}}}]}}]}
    reader = read(sse(call), times=(1.5,))
    assert (reader.first_chunk, reader.answered.content_bytes) == (1.5, len('{"name": "f", "args": {}}'))


def whole(status: int, body: Any, *, inference: bool = True) -> WholeReader:
    reader = GEMINI.whole_reader(status, inference=inference, encoding="")
    reader.feed(body if isinstance(body, bytes) else json.dumps(body).encode())
    return reader


def test_a_whole_answer_tells_ids_usage_and_reason() -> None:
    reader = whole(200, chunk("Hello", "STOP", USAGE))
    told = Answered(response_id="r1", model=MODEL, finish_reason="STOP", usage=TOTAL)
    assert (reader.ended(), reader.answered) == ((Outcome.OK, None), told)


def test_thoughts_without_candidates_are_all_of_the_output() -> None:
    usage = {"promptTokenCount": 4, "thoughtsTokenCount": 60}
    assert whole(200, chunk(None, "MAX_TOKENS", usage)).answered.usage == Usage(4, 60, reasoning_tokens=60)


def test_what_is_not_said_is_not_known() -> None:
    assert whole(200, chunk("x", "STOP")).answered.usage is None
    assert whole(200, chunk("x", "STOP", {"promptTokenCount": 4})).answered.usage == Usage(input_tokens=4)


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"[]", b'{"models":[]}', b"\xff", b"[" * 100_000])
def test_a_200_that_is_no_answer_is_an_invalid_response(body: bytes) -> None:
    reader = whole(200, body)
    assert (reader.ended(), reader.answered) == ((Outcome.UPSTREAM_ERROR, "invalid_response"), Answered())
    assert whole(200, body, inference=False).ended() == (Outcome.OK, None)


def failed(status: int, kind: str, *details: dict[str, Any], listed: bool = False) -> WholeReader:
    body: Any = {"error": {"code": status, "message": "no", "status": kind, "details": list(details)}}
    return whole(status, [body] if listed else body)


def quota(quota_id: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": quota_id}]}


def retry(delay: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(
    ("details", "hint"),
    [
        ((quota("GenerateRequestsPerMinutePerProjectPerModel"), retry("19s")), Hint("requests", 19.0)),
        ((quota("GenerateContentInputTokensPerModelPerMinute"), retry("3.700s")), Hint("input_tokens", 3.7)),
        ((quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier"), retry("52758s")), Hint("requests", 52758.0, False)),
        ((retry("45.25s"),), Hint("unknown", 45.25)),
        ((retry("soon"),), Hint("unknown")),
        ((), Hint("unknown")),
    ],
)  # fmt: skip
def test_a_429_says_which_quota_and_when(details: tuple[dict[str, Any], ...], hint: Hint, listed: bool) -> None:
    reader = failed(429, "RESOURCE_EXHAUSTED", *details, listed=listed)
    assert reader.ended() == (Outcome.UPSTREAM_429, "RESOURCE_EXHAUSTED")
    assert GEMINI.hint(429, {}, reader) == hint
    assert hint.limit in LIMITS_429
    error = {"code": 429, "message": "no", "status": "RESOURCE_EXHAUSTED", "details": list(details)}
    stream = read(sse({"error": error}))
    assert (stream.ended(), stream.opened_with) == ((Outcome.UPSTREAM_429, "RESOURCE_EXHAUSTED"), "error")
    assert GEMINI.hint(429, {}, stream) == hint


@pytest.mark.parametrize(
    ("status", "kind", "outcome"),
    [
        (400, "INVALID_ARGUMENT", Outcome.CLIENT_INVALID),
        (403, "PERMISSION_DENIED", Outcome.CLIENT_AUTH),
        (404, "NOT_FOUND", Outcome.CLIENT_INVALID),
        (500, "INTERNAL", Outcome.UPSTREAM_ERROR),
        (503, "UNAVAILABLE", Outcome.UPSTREAM_OVERLOADED),
        (504, "DEADLINE_EXCEEDED", Outcome.UPSTREAM_TIMEOUT),
    ],
)
def test_an_error_is_told_by_its_status(status: int, kind: str, outcome: Outcome) -> None:
    assert failed(status, kind).ended() == (outcome, kind)


def test_a_key_that_is_not_valid_is_a_400_and_still_a_matter_of_credentials() -> None:
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
    assert failed(400, "INVALID_ARGUMENT", info).ended() == (Outcome.CLIENT_AUTH, "INVALID_ARGUMENT")


def test_an_error_of_ours_looks_like_googles() -> None:
    body = GEMINI.error_body(
        Said(429, "rate_limit_error", "later", {"trace_id": "t", "limit": "requests"}, "cp_1", 7.0)
    )
    assert body["error"] | {"details": None} == {
        "code": 429, "message": "later", "status": "RESOURCE_EXHAUSTED", "details": None,
    }  # fmt: skip
    info, after = body["error"]["details"]
    assert info["metadata"] == {"request_id": "cp_1", "trace_id": "t", "limit": "requests"}
    assert after["retryDelay"] == "7s"
    again = read(GEMINI.error_event(Said(503, "overloaded_error", "x", {}, None)))
    assert again.ended() == (Outcome.UPSTREAM_OVERLOADED, "UNAVAILABLE")


def test_a_stand_in_changes_the_path_and_nothing_else() -> None:
    target = "/v1beta/models/gemini-4-argon:streamGenerateContent?alt=sse"
    changed = GEMINI.with_model(target, b"{}", "gemini-3.8-flash")
    assert changed == ("/v1beta/models/gemini-3.8-flash:streamGenerateContent?alt=sse", b"{}")


def test_the_only_thing_read_of_a_request_is_its_bound_and_anything_may_stand_there() -> None:
    assert Request({"maxOutputTokens": 9}).max_tokens == 9
    assert [Request(odd).max_tokens for odd in (None, 3, {"maxOutputTokens": "9"}, {"maxOutputTokens": True})] == [
        None
    ] * 4


def test_a_prompt_becomes_a_generate_content_call() -> None:
    post = GEMINI.post(Prompt("Hi", "models/gemini-3.8-flash", 9, "Be brief"))
    assert post.target == "/v1/models/gemini-3.8-flash:generateContent"
    assert post.body == {
        "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
        "generationConfig": {"maxOutputTokens": 9},
        "systemInstruction": {"parts": [{"text": "Be brief"}]},
    }
    assert GEMINI.post(Prompt("Hi", "../../x?y", 9)).target == "/v1/models/..%2F..%2Fx%3Fy:generateContent"


def test_an_answer_is_read_back_without_its_thoughts() -> None:
    answer = chunk("Hello", "STOP")
    answer["candidates"][0]["content"]["parts"].insert(0, {"text": "hm", "thought": True})
    said = GEMINI.generated(json.dumps(answer).encode())
    assert (said.id, said.model, said.texts, said.stop_reason) == ("r1", MODEL, ("Hello",), "STOP")
    with pytest.raises(InvalidAnswer):
        GEMINI.generated(b"[1]")


def test_an_error_answers_message_is_found_in_both_its_forms() -> None:
    for body in (b'{"error":{"message":"no"}}', b'[{"error":{"message":"no"}}]'):
        assert GEMINI.error_message(body) == "no"
    assert [GEMINI.error_message(odd) for odd in (b"", b"[]", b"<html>", b'{"error":"x"}')] == [""] * 4
