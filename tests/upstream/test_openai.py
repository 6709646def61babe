"""What OpenAI's answers say: usage as its API defines it, both of its streams, what its limits and errors ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from observability.catalog import LIMITS_429, QUOTA_DIMENSIONS, Outcome
from service.errors import InvalidAnswer
from service.record import Answered, Quota, Usage, Variant
from service.upstream.openai import OpenAI, Request, duration
from service.upstream.openai_answers import StreamReader, WholeReader
from service.upstream.provider import Hint, Prompt, Said

OPENAI = OpenAI()
MODEL = "gpt-6.1-sol"
CHAT_USAGE = {
    "prompt_tokens": 40,
    "completion_tokens": 30,
    "total_tokens": 70,
    "prompt_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 20},
}
RESPONSE_USAGE = {
    "input_tokens": 40,
    "output_tokens": 30,
    "total_tokens": 70,
    "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 5},
    "output_tokens_details": {"reasoning_tokens": 20},
}
TOTAL = Usage(input_tokens=40, output_tokens=30, cache_read_tokens=10, cache_write_tokens=5, reasoning_tokens=20)
DONE = b"data: [DONE]\n\n"


def sse(*bodies: dict[str, Any], named: bool = False) -> bytes:
    """Events; the responses API names them."""
    name = "event: {type}\n" if named else ""
    return b"".join(f"{name.format_map(body)}data: {json.dumps(body)}\n\n".encode() for body in bodies)


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One event of a chat stream."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": MODEL, "service_tier": "default"}
    return head | {"choices": choices, "usage": None} | more


CHAT = sse(
    chunk({"role": "assistant", "content": "", "refusal": None}),
    chunk({"content": "Hel"}),
    chunk({"content": "lo"}),
    chunk({}, "stop"),
    chunk(usage=CHAT_USAGE),
)


def response(status: str, **more: Any) -> dict[str, Any]:
    """A response object."""
    return {"id": "resp_1", "object": "response", "model": MODEL, "status": status, "error": None, "output": []} | more


def event(kind: str, **more: Any) -> dict[str, Any]:
    """One event of a response's stream."""
    return {"type": f"response.{kind}", "sequence_number": 0} | more


RESPONSE = sse(
    event("created", response=response("in_progress")),
    event("output_item.added", item={"type": "message", "content": []}, output_index=0),
    event("output_text.delta", delta="Hel"),
    event("output_text.delta", delta="lo"),
    event("output_text.done", text="Hello"),
    event("completed", response=response("completed", usage=RESPONSE_USAGE, service_tier="flex")),
    named=True,
)


def read(*pieces: bytes, times: tuple[float, ...] = ()) -> StreamReader:
    clock: Iterator[float] = iter(times)
    reader = OPENAI.stream_reader(lambda: next(clock, 0.0), lambda: None, "text/event-stream", "")
    for piece in pieces:
        reader.feed(piece)
    return reader


@pytest.mark.parametrize(
    ("stream", "identity", "finish", "tier"),
    [(CHAT + DONE, "chatcmpl-1", "stop", "default"), (RESPONSE, "resp_1", "completed", "flex")],
    ids=["chat", "responses"],
)
def test_a_whole_stream_tells_ids_usage_reason_and_pace(stream: bytes, identity: str, finish: str, tier: str) -> None:
    reader = read(stream, times=(0.5, 0.75))
    assert reader.ended() == (Outcome.OK, None)
    answered = reader.answered
    assert answered.pace is not None
    assert (answered.pace.total, sum(answered.pace.counts)) == (0.25, 1)
    assert answered == Answered(
        streamed=True,
        response_id=identity,
        model=MODEL,
        finish_reason=finish,
        usage=TOTAL,
        variant=Variant(tier=tier),
        content_bytes=5,
        first_chunk=0.5,
        pace=answered.pace,
    )


@pytest.mark.parametrize("stream", [CHAT + DONE, RESPONSE], ids=["chat", "responses"])
def test_cut_at_any_byte_a_stream_tells_the_same(stream: bytes) -> None:
    told = read(stream)
    for cut in range(len(stream)):
        reader = read(stream[:cut], stream[cut:])
        assert (reader.answered, reader.ended()) == (told.answered, told.ended()), cut


def test_a_chat_stream_whose_client_did_not_ask_for_usage_has_none() -> None:
    reader = read(sse(chunk({"content": "Hi"}), chunk({}, "stop")), DONE)
    assert reader.ended() == (Outcome.OK, None)
    assert reader.answered.usage is None


def test_a_chat_stream_is_over_with_done_and_not_before() -> None:
    reader = read(CHAT)
    assert (reader.over, reader.ended()) == (False, (Outcome.CUT_OFF, "cut_off"))
    reader.feed(DONE)
    assert reader.over


def test_a_response_without_its_last_event_was_cut_off() -> None:
    reader = read(RESPONSE[: RESPONSE.rindex(b"event: ")])
    assert (reader.over, reader.ended()) == (False, (Outcome.CUT_OFF, "cut_off"))


def test_an_incomplete_response_says_why() -> None:
    last = response("incomplete", incomplete_details={"reason": "max_output_tokens"}, usage=RESPONSE_USAGE)
    reader = read(sse(event("incomplete", response=last)))
    assert (reader.ended(), reader.answered.finish_reason) == ((Outcome.OK, None), "max_output_tokens")


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("server_error", Outcome.UPSTREAM_ERROR),
        ("rate_limit_exceeded", Outcome.UPSTREAM_429),
        ("server_overloaded", Outcome.UPSTREAM_OVERLOADED),
        ("context_length_exceeded", Outcome.CLIENT_INVALID),
    ],
)
def test_a_failed_response_is_a_failure_of_its_code(code: str, outcome: Outcome) -> None:
    failed = response("failed", error={"code": code, "message": "no"})
    assert read(sse(event("failed", response=failed))).ended() == (outcome, code)
    assert whole(200, failed).ended() == (outcome, code)


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "no", "type": "server_error", "code": None}},
        {"type": "error", "code": "server_error", "message": "no", "param": None, "sequence_number": 3},
        {"type": "error", "error": {"code": "server_error", "message": "no"}, "sequence_number": 3},
    ],
)
def test_an_error_in_a_stream_is_a_failure_whatever_its_form(error: dict[str, Any]) -> None:
    reader = read(sse(error))
    assert (reader.opened_with, reader.ended()) == ("error", (Outcome.UPSTREAM_ERROR, "server_error"))
    later = read(sse(chunk({"content": "x"}), error))
    assert (later.opened_with, later.over) == ("content", True)


def test_tool_arguments_reasoning_and_refusals_are_content() -> None:
    call = {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}
    assert read(sse(chunk(call))).answered.content_bytes == 4
    assert read(sse(event("function_call_arguments.delta", delta="{}☀"))).answered.content_bytes == 5
    assert read(sse(event("reasoning_summary_text.delta", delta="hm"))).first_chunk == 0.0
    shell = {"type": "response.shell_call_output_content.delta", "delta": {"stdout": "x"}}
    assert read(sse(shell)).ended() == (Outcome.CUT_OFF, "cut_off")


@pytest.mark.parametrize(
    "stream",
    [
        sse(chunk({"refusal": "I will not."}), chunk({}, "stop")) + DONE,
        sse(chunk({"content": "x"}), chunk({}, "content_filter")) + DONE,
        sse(event("incomplete", response=response("incomplete", incomplete_details={"reason": "content_filter"}))),
        sse(event("completed", response=response("completed", output=[{"content": [{"type": "refusal"}]}]))),
    ],
)
def test_a_refusal_is_an_outcome_of_its_own(stream: bytes) -> None:
    assert read(stream).ended() == (Outcome.REFUSED, None)


@pytest.mark.parametrize("bad", [b"data: {\n\n", b"data: [1]\n\n", b'data: {"usage": 3}\n\n', b"data: \xff\n\n"])
def test_an_event_that_makes_no_sense_makes_a_complete_stream_an_invalid_response(bad: bytes) -> None:
    assert read(bad, CHAT, DONE).ended() == (Outcome.UPSTREAM_ERROR, "invalid_response")


def whole(status: int, body: Any, *, inference: bool = True) -> WholeReader:
    reader = OPENAI.whole_reader(status, inference=inference, encoding="")
    reader.feed(body if isinstance(body, bytes) else json.dumps(body).encode())
    return reader


COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": MODEL,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": CHAT_USAGE,
}


def test_a_whole_answer_of_either_api_tells_ids_usage_and_reason() -> None:
    chat, responses = whole(200, COMPLETION), whole(200, response("completed", usage=RESPONSE_USAGE))
    assert chat.ended() == responses.ended() == (Outcome.OK, None)
    assert chat.answered == Answered(response_id="chatcmpl-1", model=MODEL, finish_reason="stop", usage=TOTAL)
    assert responses.answered == Answered(response_id="resp_1", model=MODEL, finish_reason="completed", usage=TOTAL)


def test_what_is_not_said_is_not_known() -> None:
    assert whole(200, COMPLETION | {"usage": None}).answered.usage is None
    assert whole(200, COMPLETION | {"usage": {"prompt_tokens": 4}}).answered.usage == Usage(input_tokens=4)


def test_output_items_of_any_kind_do_not_make_an_answer_invalid() -> None:
    items = [
        {"type": "x", "content": "text"},
        {"type": "y", "content": {"a": 1}},
        {"type": "message", "content": ["z"]},
    ]
    assert whole(200, response("completed", output=items)).ended() == (Outcome.OK, None)


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"object":"list"}', b"[]", b"\xff", b"[" * 100_000])
def test_a_200_that_is_no_answer_is_an_invalid_response(body: bytes) -> None:
    reader = whole(200, body)
    assert (reader.ended(), reader.answered) == ((Outcome.UPSTREAM_ERROR, "invalid_response"), Answered())
    assert whole(200, body, inference=False).ended() == (Outcome.OK, None)


def failed(status: int, code: str | None, kind: str) -> WholeReader:
    return whole(status, {"error": {"message": "no", "type": kind, "param": None, "code": code}})


@pytest.mark.parametrize(
    ("code", "kind", "headers", "hint"),
    [
        ("rate_limit_exceeded", "tokens", {"retry-after-ms": "1500"}, Hint("tokens", 1.5)),
        ("rate_limit_exceeded", "requests", {"retry-after": "20"}, Hint("requests", 20.0)),
        ("rate_limit_exceeded", "rate_limit_error", {"x-ratelimit-remaining-tokens": "0"}, Hint("tokens")),
        ("rate_limit_exceeded", "rate_limit_error", {}, Hint("unknown")),
        ("insufficient_quota", "insufficient_quota", {}, Hint("spend", None, False)),
        ("project_spend_limit_exceeded", "requests", {"x-should-retry": "true"}, Hint("spend", None, False)),
        (None, "requests", {"x-should-retry": "false"}, Hint("requests", None, False)),
    ],
)
def test_a_429_says_which_limit_and_when(code: str | None, kind: str, headers: dict[str, str], hint: Hint) -> None:
    stream = read(sse({"error": {"message": "no", "type": kind, "code": code}}))
    assert (stream.opened_with, OPENAI.hint(429, headers, stream)) == ("error", hint)
    reader = failed(429, code, kind)
    assert reader.ended() == (Outcome.UPSTREAM_429, code or kind)
    assert OPENAI.hint(429, headers, reader) == hint
    assert hint.limit in LIMITS_429


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, Outcome.CLIENT_INVALID),
        (401, Outcome.CLIENT_AUTH),
        (500, Outcome.UPSTREAM_ERROR),
        (503, Outcome.UPSTREAM_OVERLOADED),
    ],
)
def test_an_error_goes_by_its_status(status: int, outcome: Outcome) -> None:
    assert failed(status, None, "some_error").ended() == (outcome, "some_error")
    assert whole(status, b"<html>").ended() == (outcome, str(status))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1.0), ("6m0s", 360.0), ("120ms", 0.12), ("1h2m3.5s", 3723.5), ("0s", 0.0), ("20.5ms", 0.0205)],
)
def test_a_go_duration_is_read(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "s", "-1s", "1 s", "1d", "2026-11-22T00:00:00Z", "9" * 400 + "s"])
def test_nonsense_is_no_duration(text: str) -> None:
    assert duration(text) is None


def headroom(name: str, limit: str, remaining: str, reset: str) -> dict[str, str]:
    """One limit's headers."""
    values = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"x-ratelimit-{what}-{name}": value for what, value in values.items()}


def test_headroom_is_read_from_the_headers_with_resets_from_now() -> None:
    headers = headroom("requests", "500", "499", "120ms") | headroom("tokens", "30000", "29000", "2s")
    assert OPENAI.quotas(headers, 100.0) == (
        Quota("requests", 500, 499, 100.12, 100.0),
        Quota("tokens", 30000, 29000, 102.0, 100.0),
    )
    assert {quota.dimension for quota in OPENAI.quotas(headers, 1.0)} <= set(QUOTA_DIMENSIONS)


@pytest.mark.parametrize("absurd", ["1" + "0" * 400, "-1", "many", ""])
def test_absurd_headroom_is_left_out(absurd: str) -> None:
    assert OPENAI.quotas(headroom("requests", "500", absurd, "1s"), 1.0) == ()
    assert OPENAI.quotas(headroom("requests", "500", "1", absurd), 1.0) == ()


def test_a_dated_snapshot_shares_its_models_limits() -> None:
    assert OPENAI.limit_class("gpt-5-2025-08-07") == OPENAI.limit_class("gpt-5") == "gpt-5"


def test_an_error_of_ours_looks_like_openais_and_reads_as_one_in_a_stream() -> None:
    said = Said(400, "invalid_request_error", "model: missing", {"trace_id": "t", "field": "model"}, "cp_1")
    assert OPENAI.error_body(said) == {
        "error": {
            "message": "model: missing",
            "type": "invalid_request_error",
            "param": "model",
            "code": None,
            "details": {"request_id": "cp_1", "trace_id": "t", "field": "model"},
        }
    }
    again = read(OPENAI.error_event(Said(503, "overloaded_error", "x", {}, None)))
    assert again.ended() == (Outcome.UPSTREAM_OVERLOADED, "server_overloaded")


def test_of_a_request_model_stream_and_bound_are_read_by_any_name() -> None:
    assert Request(wants_stream=None).stream is False
    assert [Request(max_output_tokens=9).max_tokens, Request(chat_max_tokens=8).max_tokens] == [9, 8]


def test_a_prompt_becomes_a_chat_completion() -> None:
    post = OPENAI.post(Prompt("Hi", MODEL, 9, "Be brief"))
    assert post.target == "/v1/chat/completions"
    assert post.body == {
        "model": MODEL,
        "max_completion_tokens": 9,
        "messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}],
    }


def test_an_answer_is_read_back() -> None:
    said = OPENAI.generated(json.dumps(COMPLETION).encode())
    assert (said.id, said.model, said.texts, said.stop_reason) == ("chatcmpl-1", MODEL, ("Hello",), "stop")
    with pytest.raises(InvalidAnswer):
        OPENAI.generated(b"{}")
