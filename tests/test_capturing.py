"""Content capture: what stands in a span, how much of it at most, and that nothing breaks it."""

from __future__ import annotations

import gzip
import json
import random
from typing import Any

import msgspec
import pytest

from observability.catalog import Attr
from observability.scrub import without_keys
from service.account.call import Call
from service.capturing import MOST, Capturing, Sheet, is_small
from service.upstream.anthropic_answers import StreamReader, WholeReader
from service.upstream.client import Prepared
from service.upstream.content import CUT, KEY, LIMIT, Content
from service.upstream.providers import PROVIDERS
from tests.support import claude

SECRET = "hunter2-is-no-key-by-its-looks"
KEYS = ("sk-ant-api03-abcDEF", "cpk-0123456789", "AIzaSyA-1234567_x", SECRET)
CLEAN = without_keys([SECRET, "", "desk"])
CONTENTS = {provider.name: provider.content for provider in PROVIDERS if provider.content is not None}


class _Body:
    """Answers as their readers have them."""

    def __init__(self, body: bytes) -> None:
        self.body = body


def captured(asked: Any, answer: bytes | None = None, *, content: Content | None = None) -> dict[str, Any]:
    """The attributes of a call to Claude, decoded."""
    call = Call(lambda: 0.0, "anthropic", "chat", "m", False, {})
    capturing = Capturing(content or CONTENTS["anthropic"], CLEAN)
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    capturing.sending(call, Prepared("POST", "/v1/messages", [], body, 1.0))
    if answer is not None:
        capturing.whole(call, _Body(answer))  # type: ignore[arg-type]  # no more is asked of a reader
    assert call.content is not None
    told = dict(call.content())
    assert all(len(value.encode()) <= LIMIT for value in told.values() if isinstance(value, str))
    return {key: json.loads(value) if isinstance(value, str) else value for key, value in told.items()}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_what_was_asked_and_answered_is_told_as_json() -> None:
    assert captured({"system": "Be brief", "messages": [user("Hello")]}, claude.MESSAGE) == {
        Attr.SYSTEM_INSTRUCTIONS: [{"type": "text", "content": "Be brief"}],
        Attr.INPUT_MESSAGES: [{"role": "user", "parts": [{"type": "text", "content": "Hello"}]}],
        Attr.OUTPUT_MESSAGES: [
            {
                "role": "assistant",
                "finish_reason": "end_turn",
                "parts": [{"type": "text", "content": "Hello"}],
            }
        ],
    }


@pytest.mark.parametrize("body", [b"", b"\x1f\x8b\x08", b"[1]", b'{"messages": 1}', b'{"messages": [1]}'])
def test_what_cannot_be_read_is_absent(body: bytes) -> None:
    assert captured(body, body) == {}


def test_an_answer_that_is_an_error_and_none_at_all_are_absent_and_the_question_stands() -> None:
    asked = {"messages": [user("Hello")]}
    assert captured(asked, claude.error("overloaded_error")).keys() == {Attr.INPUT_MESSAGES}
    assert captured(asked).keys() == {Attr.INPUT_MESSAGES}


def test_of_a_long_history_the_newest_messages_stay_and_the_oldest_of_them_is_cut() -> None:
    told = captured({"messages": [user(f"{n} " + "word " * 1000) for n in range(100)]})
    texts = [message["parts"][0]["content"] for message in told[Attr.INPUT_MESSAGES]]
    assert [text.split()[0] for text in texts] == [str(n) for n in range(100 - len(texts), 100)]
    assert 5 < len(texts) < 8
    assert [text.endswith(CUT) for text in texts] == [True] + [False] * (len(texts) - 1)
    assert told[Attr.CONTENT_CUT] == [Attr.INPUT_MESSAGES]


@pytest.mark.parametrize("letter", ["a", '"', "\n", "\u00fc", "\U0001f600", "\x01"])
def test_a_long_text_fills_its_attribute_whatever_its_letters_need(letter: str) -> None:
    long = letter * 100_000
    told = captured(
        {"system": long, "messages": [user(long)]}, json.dumps({"content": [{"type": "text", "text": long}]}).encode()
    )
    assert told[Attr.CONTENT_CUT] == [Attr.SYSTEM_INSTRUCTIONS, Attr.INPUT_MESSAGES, Attr.OUTPUT_MESSAGES]
    parts = [told[Attr.SYSTEM_INSTRUCTIONS][0], told[Attr.INPUT_MESSAGES][0]["parts"][0]]
    for part in [*parts, told[Attr.OUTPUT_MESSAGES][0]["parts"][0]]:
        assert part["content"].lstrip(letter) == CUT
        assert len(msgspec.json.encode(part)) > LIMIT - 200


def test_a_long_tool_result_is_cut_like_a_text_and_of_long_arguments_only_the_tool_stays() -> None:
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "word " * 10_000}
    (message,) = captured({"messages": [user([result])]})[Attr.INPUT_MESSAGES]
    assert message["parts"][0]["response"].endswith(CUT)
    called = {"type": "tool_use", "id": "t1", "name": "write", "input": {"file": "word " * 10_000}}
    told = captured({"messages": [user([called, {"type": "text", "text": "after"}])]})
    bare = {"type": "tool_call", "id": "t1", "name": "write", "arguments": CUT}
    assert told[Attr.INPUT_MESSAGES][0]["parts"] == [bare, {"type": "text", "content": "after"}]
    assert told[Attr.CONTENT_CUT] == [Attr.INPUT_MESSAGES]


def test_a_part_for_which_there_is_no_room_keeps_its_name_and_after_that_there_is_nothing() -> None:
    sheet = Sheet(CLEAN)
    text = {"type": "text", "content": "x" * (LIMIT - 90)}
    call = {"type": "tool_call", "id": "t1", "name": "y" * 10, "arguments": {"a": "b" * 20}}
    shown = json.loads(msgspec.json.encode(sheet.parts([text, call, call])))
    assert shown == [text, {"type": "tool_call", "id": "t1", "name": "y" * 10}]
    assert sheet.is_cut


def test_bodies_that_are_too_large_or_hold_too_many_values_are_not_read_and_said_to_be_cut() -> None:
    large = json.dumps({"messages": [user("x" * MOST)], "content": []}).encode()
    dense = b'{"messages": [' + b"{}," * 60_000 + b"{}]}"
    for body in (large, dense):
        assert not is_small(body)
        assert captured(body, body) == {Attr.CONTENT_CUT: [Attr.INPUT_MESSAGES, Attr.OUTPUT_MESSAGES]}


def test_an_image_of_megabytes_does_not_hide_the_question_about_it() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "QUJD" * 900_000}}
    told = captured({"messages": [user([image, {"type": "text", "text": "What is it?"}])]})
    assert told[Attr.INPUT_MESSAGES][0]["parts"] == [{"type": "image"}, {"type": "text", "content": "What is it?"}]


@pytest.mark.parametrize("key", [*KEYS, "Bearer ab.cd-ef_12345"])
@pytest.mark.parametrize("before", ["", "\n", "=", '"', "\u00fc "])
def test_a_key_is_taken_out_of_everything_that_is_told(key: str, before: str) -> None:
    words = f"one {before}{key} two"
    called = {"type": "tool_use", "id": words, "name": words, "input": {words: [words, {"deep": words}]}}
    escaped = json.dumps({"system": words, "messages": [user(words), user([called])]}).encode()
    told = captured(
        escaped.replace(b"sk-", b"\\u0073k-"), json.dumps({"content": [{"type": "text", "text": words}]}).encode()
    )
    shown = json.dumps(told)
    assert shown.count("REDACTED") == 8
    assert key.removeprefix("Bearer ") not in shown
    assert "one" in shown
    assert "two" in shown


def test_prose_is_not_taken_for_keys() -> None:
    words = "The bearer certificates of a risk-assessment and a task-oriented desk-research"
    assert CLEAN(words) == words


@pytest.mark.parametrize("secret", [*KEYS, "hunter2-" + "h" * 200])
def test_a_cut_leaves_no_half_of_a_key(secret: str) -> None:
    for at in range(LIMIT - 700, LIMIT + 40, 7):
        sheet = Sheet(without_keys([secret]))
        shown = msgspec.json.encode(sheet.parts([{"type": "text", "content": "x" * at + " " + secret + " y" * 9000}]))
        assert secret.encode()[:8] not in shown


def test_a_cut_leaves_no_half_of_a_key_where_others_were_taken_out_before_it() -> None:
    secret = "hunter2-" + "h" * 200
    gone = f"{secret} " * 9
    for at in range(LIMIT + 250, LIMIT + KEY, 13):
        sheet = Sheet(without_keys([secret]))
        text = gone + "x" * (at - len(gone) - 1) + " " + secret + " y" * 9000
        shown = msgspec.json.encode(sheet.parts([{"type": "text", "content": text}]))
        assert shown.count(b"REDACTED") == 9
        assert b"hunter2" not in shown


def test_a_stream_is_told_as_far_as_it_came_and_a_retry_begins_anew() -> None:
    call = Call(lambda: 0.0, "anthropic", "chat", "m", True, {})
    capturing, prepared = Capturing(CONTENTS["anthropic"], CLEAN), Prepared("POST", "/", [], b"{}", 1.0)
    for words in ("first", "second"):
        capturing.sending(call, prepared)
        reader = StreamReader(lambda: 0.0, lambda: None)
        capturing.stream(call, reader)
        reader.feed(claude.start() + claude.BLOCK + claude.delta(words))
    assert call.content is not None
    (message,) = json.loads(str(call.content()[Attr.OUTPUT_MESSAGES]))
    assert (message["finish_reason"], message["parts"]) == ("error", [{"type": "text", "content": "second"}])
    capturing.sending(call, prepared)
    assert dict(call.content()) == {}


def test_a_compressed_answer_is_read_as_its_reader_reads_it() -> None:
    reader = WholeReader(200, inference=True, encoding="gzip")
    reader.feed(gzip.compress(claude.MESSAGE))
    assert json.loads(reader.body) == json.loads(claude.MESSAGE)


def test_what_is_no_inference_is_not_captured() -> None:
    for operation, body in ((None, b"{}"), ("chat", iter(()))):
        call = Call(lambda: 0.0, "anthropic", operation, "m", False, {})
        capturing = Capturing(CONTENTS["anthropic"], CLEAN)
        capturing.sending(call, Prepared("POST", "/v1/messages", [], body, 1.0))  # type: ignore[arg-type]
        capturing.whole(call, WholeReader(200, inference=False))
        assert call.content is None


_CLAUDE_BLOCKS = [
    {"type": "thinking", "thinking": "x"},
    {"type": "tool_use", "id": "x", "name": "x", "input": {"a": [1]}},
    {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "text", "text": "x"}, {"type": "image"}]},
]
_GEMINI_PARTS = {
    "parts": [{"text": "x"}, {"text": "x", "thought": True}, {"functionCall": {"name": "x", "args": {}}}, {"file": {}}]
}
_CHAT = {
    "role": "assistant",
    "content": [{"type": "text", "text": "x"}],
    "refusal": "x",
    "tool_calls": [{"index": 0, "id": "x", "function": {"name": "x", "arguments": "{}"}}],
}
_ITEMS = [
    _CHAT,
    {"type": "reasoning", "summary": [{"text": "x"}], "content": None},
    {"type": "function_call", "call_id": "x", "name": "x", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "x", "output": "x"},
]
BODIES: dict[str, list[dict[str, Any]]] = {
    "anthropic": [
        {"system": "x", "messages": [user(_CLAUDE_BLOCKS)], "content": _CLAUDE_BLOCKS, "stop_reason": "x"},
        {"type": "content_block_start", "index": 0, "content_block": _CLAUDE_BLOCKS[1]},
        {"type": "content_block_delta", "index": 0, "delta": {"partial_json": "{}"}},
    ],
    "gcp.gemini": [
        {
            "systemInstruction": _GEMINI_PARTS,
            "contents": [{"role": "model"} | _GEMINI_PARTS],
            "candidates": [{"index": 0, "content": _GEMINI_PARTS, "finishReason": "STOP"}],
        }
    ],
    "openai": [
        {"messages": [_CHAT], "choices": [{"index": 0, "message": _CHAT, "delta": _CHAT, "finish_reason": "x"}]},
        {"instructions": "x", "input": _ITEMS, "output": _ITEMS, "status": "completed"},
        {"type": "response.output_item.added", "output_index": 0, "item": _ITEMS[2]},
        {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "x"},
        {"type": "response.completed", "response": {"status": "x", "incomplete_details": {"reason": "x"}}},
    ],
}
"""What a body may hold, requests, answers and events in one."""
ODD: list[Any] = [None, True, 1.5, -(2**70), 2**64, "", "x" * 50_000, [], {}, [1], [[]], {"x": [1]}, [{"type": []}]]


def _bent(dice: random.Random, value: Any) -> Any:
    """The value with something odd in one place."""
    if isinstance(value, dict | list) and value and dice.random() < 0.9:
        key = dice.choice(list(value)) if isinstance(value, dict) else dice.randrange(len(value))
        bent: Any = value.copy()
        bent[key] = _bent(dice, value[key])
        return bent
    return dice.choice(ODD)


@pytest.mark.parametrize("name", CONTENTS)
def test_whatever_the_bodies_hold_the_attributes_are_valid_and_bounded(name: str) -> None:
    dice, filled = random.Random(7), 0
    for _ in range(600):
        body = json.dumps(_bent(dice, dice.choice(BODIES[name]))).encode()
        told = captured(body, body, content=CONTENTS[name])
        filled += len(told)
        pieces = CONTENTS[name].stream()
        for _ in range(2):
            pieces.see(body)
        msgspec.json.encode(Sheet(CLEAN).messages(pieces.messages(CLEAN)))
    assert filled > 200
