"""What is said, read from each provider's requests and answers into the conventions' messages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from service.upstream.anthropic import Anthropic
from service.upstream.content import CUT, LIMIT, Content
from service.upstream.gemini import Gemini
from service.upstream.openai import OpenAI
from tests.support import claude

CLAUDE, GEMINI, OPENAI = (provider.content for provider in (Anthropic, Gemini, OpenAI))


def plain(messages: Iterable[dict[str, Any]]) -> list[Any]:
    """Messages with their parts as lists."""
    return [message | {"parts": list(message["parts"])} for message in messages]


def asked(content: Content | None, **body: Any) -> tuple[list[Any], list[Any]]:
    """Instructions, and messages in their own order."""
    assert content is not None
    instructions, messages = content.asked(json.dumps(body).encode())
    return list(instructions), plain(messages)[::-1]


def said(content: Content | None, body: Any) -> list[Any]:
    assert content is not None
    return plain(content.said(json.dumps(body).encode()))


def streamed(content: Content | None, *events: Any) -> list[Any]:
    assert content is not None
    pieces = content.stream()
    for event in events:
        pieces.see(event if isinstance(event, bytes) else json.dumps(event).encode())
    return plain(pieces.messages(str))


def text(content: str) -> dict[str, str]:
    return {"type": "text", "content": content}


def answer(reason: str, *parts: Any) -> dict[str, Any]:
    return {"role": "assistant", "finish_reason": reason, "parts": list(parts)}


CALL = {"type": "tool_call", "id": "t1", "name": "weather", "arguments": {"city": "Ulm"}}
THOUGHT = {"type": "reasoning", "content": "Let me see"}


def test_a_request_to_claude() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "AAAA"}}
    used = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Ulm"}}
    gave = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "Rain"}]}
    drew = {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "This"}, image]}
    instructions, messages = asked(
        CLAUDE,
        system=[{"type": "text", "text": "Be brief", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "Let me see", "signature": "x"}, used]},
            {"role": "user", "content": [gave, drew, image, {"type": "text", "text": "So?"}]},
        ],
    )
    assert instructions == [text("Be brief")]
    assert messages == [
        {"role": "user", "parts": [text("Hello")]},
        {"role": "assistant", "parts": [THOUGHT, CALL]},
        {
            "role": "user",
            "parts": [
                {"type": "tool_call_response", "id": "t1", "response": "Rain"},
                {"type": "tool_call_response", "id": "t2", "response": [text("This"), {"type": "image"}]},
                {"type": "image"},
                text("So?"),
            ],
        },
    ]
    assert asked(CLAUDE, system="Be brief", messages=[])[0] == [text("Be brief")]


def test_an_answer_of_claude() -> None:
    assert said(CLAUDE, json.loads(claude.MESSAGE)) == [answer("end_turn", text("Hello"))]


def _events(stream: bytes) -> list[bytes]:
    return [block.partition(b"data: ")[2] for block in stream.split(b"\n\n") if block]


def test_a_stream_of_claude_is_put_together_by_block() -> None:
    stream = (
        claude.start()
        + claude.event("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""})
        + claude.event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "Let me "})
        + claude.event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "see"})
        + claude.event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "x"})
        + claude.event("content_block_start", index=1, content_block={"type": "text", "text": ""})
        + claude.event("content_block_delta", index=1, delta={"type": "text_delta", "text": "Hel"})
        + claude.event("content_block_delta", index=1, delta={"type": "text_delta", "text": "lo"})
        + claude.event(
            "content_block_start",
            index=2,
            content_block={"type": "tool_use", "id": "t1", "name": "weather", "input": {}},
        )
        + claude.event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '{"city":'})
        + claude.event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '"Ulm"}'})
        + claude.event("content_block_start", index=3, content_block={"type": "web_search_tool_result", "content": []})
    )
    parts = (THOUGHT, text("Hello"), CALL, {"type": "web_search_tool_result"})
    assert streamed(CLAUDE, *_events(stream)) == [answer("error", *parts)]
    assert streamed(CLAUDE, *_events(stream + claude.last())) == [answer("end_turn", *parts)]
    assert streamed(CLAUDE, *_events(claude.STREAM)) == [answer("end_turn", text("Hello"))]


def test_a_tool_that_takes_nothing_is_called_with_nothing() -> None:
    block = {"type": "tool_use", "id": "t1", "name": "now", "input": {}}
    events = _events(claude.event("content_block_start", index=0, content_block=block) + claude.last())
    call = {"type": "tool_call", "id": "t1", "name": "now", "arguments": {}}
    assert streamed(CLAUDE, *events) == [answer("end_turn", call)]


@pytest.mark.parametrize("name", ["systemInstruction", "system_instruction"])
def test_a_request_to_gemini(name: str) -> None:
    instructions, messages = asked(
        GEMINI,
        **{name: {"parts": [{"text": "Be brief"}]}},
        contents=[
            {"parts": [{"text": "Hello"}, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]},
            {
                "role": "model",
                "parts": [
                    {"text": "Let me see", "thought": True},
                    {
                        "thoughtSignature": "x",
                        "functionCall": {"id": "t1", "name": "weather", "args": {"city": "Ulm"}},
                    },
                ],
            },
            {"role": "user", "parts": [{"function_response": {"name": "weather", "response": {"sky": "grey"}}}]},
        ],
    )
    assert instructions == [text("Be brief")]
    assert messages == [
        {"role": "user", "parts": [text("Hello"), {"type": "inlineData"}]},
        {"role": "assistant", "parts": [THOUGHT, CALL]},
        {"role": "user", "parts": [{"type": "tool_call_response", "name": "weather", "response": {"sky": "grey"}}]},
    ]


def gemini(*parts: Any, index: int = 0, finish: str | None = None) -> dict[str, Any]:
    candidate = {"index": index, "content": {"role": "model", "parts": parts}, "finishReason": finish}
    return {"candidates": [candidate]}


def test_answers_of_gemini_whole_and_streamed_join_neighbouring_words_and_thoughts() -> None:
    called = {"functionCall": {"id": "t1", "name": "weather", "args": {"city": "Ulm"}}}
    events = [
        gemini({"text": "Let me ", "thought": True}),
        gemini({"text": "see", "thought": True}, {"text": "Hel"}),
        gemini({"text": "Other"}, index=1, finish="STOP"),
        gemini({"text": "lo"}, called, called),
        gemini({"text": ""}, finish="STOP"),
    ]
    expected = [answer("STOP", THOUGHT, text("Hello"), CALL, CALL, text("")), answer("STOP", text("Other"))]
    assert streamed(GEMINI, *events) == expected
    assert said(GEMINI, events) == expected
    assert said(GEMINI, gemini({"text": "Hello"}, finish="MAX_TOKENS")) == [answer("MAX_TOKENS", text("Hello"))]
    assert said(GEMINI, {"promptFeedback": {"blockReason": "SAFETY"}}) == []


FUNCTION = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}


def test_a_chat_with_openai() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    instructions, messages = asked(
        OPENAI,
        messages=[
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}, image]},
            {"role": "assistant", "content": None, "tool_calls": [FUNCTION]},
            {"role": "tool", "tool_call_id": "t1", "content": "Rain"},
        ],
    )
    assert instructions == []
    assert messages == [
        {"role": "system", "parts": [text("Be brief")]},
        {"role": "user", "parts": [text("Hello"), {"type": "image_url"}]},
        {"role": "assistant", "parts": [CALL]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "t1", "response": "Rain"}]},
    ]
    choices = [
        {"index": 0, "finish_reason": "tool_calls", "message": {"content": "Hello", "tool_calls": [FUNCTION]}},
        {"index": 1, "finish_reason": "stop", "message": {"content": None, "refusal": "No"}},
    ]
    assert said(OPENAI, {"object": "chat.completion", "choices": choices}) == [
        answer("tool_calls", text("Hello"), CALL),
        answer("stop", text("No")),
    ]


def test_a_stream_of_a_chat_with_openai() -> None:
    def delta(index: int = 0, finish: str | None = None, **given: Any) -> dict[str, Any]:
        return {"choices": [{"index": index, "delta": given, "finish_reason": finish}]}

    begun = FUNCTION | {"index": 0, "function": {"name": "weather", "arguments": ""}}
    events = [
        delta(role="assistant", content=""),
        delta(content="Hel"),
        delta(1, content="Other"),
        delta(content="lo"),
        delta(tool_calls=[begun]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"city":'}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '"Ulm"}'}}]),
        delta(finish="tool_calls"),
        {"choices": [], "usage": {"prompt_tokens": 1}},
    ]
    assert streamed(OPENAI, *events) == [answer("tool_calls", text("Hello"), CALL), answer("error", text("Other"))]


CALL_ITEM = {"type": "function_call", "call_id": "t1", "name": "weather", "arguments": '{"city": "Ulm"}'}


def test_a_response_of_openai() -> None:
    instructions, messages = asked(
        OPENAI,
        instructions="Be brief",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Hello"}, {"type": "input_image"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Let me see"}]},
            CALL_ITEM,
            {"type": "function_call_output", "call_id": "t1", "output": "Rain"},
            {"type": "item_reference", "id": "x"},
        ],
    )
    assert instructions == [text("Be brief")]
    assert messages == [
        {"role": "user", "parts": [text("Hello"), {"type": "input_image"}]},
        {"role": "assistant", "parts": [THOUGHT]},
        {"role": "assistant", "parts": [CALL]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "t1", "response": "Rain"}]},
        {"role": "assistant", "parts": [{"type": "item_reference"}]},
    ]
    assert asked(OPENAI, input="Hello")[1] == [{"role": "user", "parts": [text("Hello")]}]
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Let me see"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]},
        CALL_ITEM,
    ]
    body = {"object": "response", "status": "completed", "output": output}
    assert said(OPENAI, body) == [answer("completed", THOUGHT, text("Hello"), CALL)]


def test_a_stream_of_a_response_of_openai() -> None:
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"status": "in_progress", "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": {"type": "reasoning", "summary": []}},
        {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 0, "delta": "Let me "},
        {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 0, "delta": "see"},
        {"type": "response.output_item.added", "output_index": 1, "item": {"type": "message", "content": []}},
        {"type": "response.output_text.delta", "output_index": 1, "content_index": 0, "delta": "Hel"},
        {"type": "response.output_text.delta", "output_index": 1, "content_index": 0, "delta": "lo"},
        {"type": "response.output_item.added", "output_index": 2, "item": CALL_ITEM | {"arguments": ""}},
        {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": '{"city":"Ulm"}'},
    ]
    last = {
        "type": "response.incomplete",
        "response": {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
    }
    parts = (THOUGHT, text("Hello"), CALL)
    assert streamed(OPENAI, *events) == [answer("error", *parts)]
    assert streamed(OPENAI, *events, last) == [answer("max_output_tokens", *parts)]


def test_of_a_long_stream_little_more_is_held_than_is_told() -> None:
    assert CLAUDE is not None
    pieces = CLAUDE.stream()
    for event in _events(claude.BLOCK + claude.delta("word " * 100) * 1000):
        pieces.see(event)
    (message,) = pieces.messages(str)
    (part,) = message["parts"]
    assert pieces.is_cut
    assert LIMIT - 600 < len(part["content"]) <= LIMIT + len(CUT)
    assert part["content"].startswith("word word")
    assert part["content"].endswith(CUT)


def test_a_cut_stream_keeps_no_half_of_a_key() -> None:
    assert CLAUDE is not None
    for shift in range(40):
        pieces = CLAUDE.stream()
        long = "x " * (LIMIT // 2 - 40) + "y" * shift + " "
        for event in _events(claude.BLOCK + claude.delta(long + "HUNTERSECRET" * 2) + claude.delta(" z" * 9000)):
            pieces.see(event)
        (message,) = pieces.messages(lambda said: said.replace("HUNTERSECRET" * 2, "GONE"))
        assert "HUNTER" not in message["parts"][0]["content"]


@pytest.mark.parametrize("content", [CLAUDE, GEMINI, OPENAI])
@pytest.mark.parametrize("event", [b"{", b"[]", b"1", b'{"type": 1}', b'{"candidates": [{"content": {"parts": [1]}}]}'])
def test_an_event_that_cannot_be_read_adds_nothing(content: Content, event: bytes) -> None:
    pieces = content.stream()
    pieces.see(event)
    assert [part for message in pieces.messages(str) for part in message["parts"]] == []
