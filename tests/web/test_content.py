"""Content capture through the whole application: which spans tell what was said, and when nothing is read at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from observability.catalog import Attr
from service import capturing
from tests.support import claude
from tests.support.upstream import json_answer
from tests.web.conftest import Open, Stage
from tests.web.test_aggregate import ONE_SENTENCE, TASKS, echo

CONTENT = {Attr.INPUT_MESSAGES, Attr.OUTPUT_MESSAGES, Attr.SYSTEM_INSTRUCTIONS, Attr.CONTENT_CUT}
CHAT = f"chat {claude.MODEL}"


@pytest.fixture
def stage(open_stage: Open) -> Stage:
    """With content capture, and a key for every provider."""
    capture = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
    return open_stage(**{capture: "SPAN_ONLY", "GEMINI_API_KEY": "g", "OPENAI_API_KEY": "o"})


def told(stage: Stage, name: str = CHAT) -> dict[str, Any]:
    """What one span tells of what was said."""
    attributes = dict(stage.told.spans[name].attributes or {})
    return {key: json.loads(str(attributes[key])) for key in CONTENT & attributes.keys()}


def spoken(role: str, words: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": role, **more, "parts": [{"type": "text", "content": words}]}]


ASKED = spoken("user", "Say something")


def test_by_default_no_span_tells_anything_of_it(open_stage: Open) -> None:
    stage = open_stage()
    stage.post("/v1/messages", claude.ASKED)
    assert [key for span in stage.told.spans.values() for key in CONTENT & dict(span.attributes or {}).keys()] == []


def test_only_the_calls_own_span_tells_question_and_answer(stage: Stage) -> None:
    stage.post("/v1/messages", claude.ASKED | {"system": "Be brief"}).close()
    assert told(stage) == {
        Attr.SYSTEM_INSTRUCTIONS: [{"type": "text", "content": "Be brief"}],
        Attr.INPUT_MESSAGES: ASKED,
        Attr.OUTPUT_MESSAGES: spoken("assistant", "Hello", finish_reason="end_turn"),
    }
    others = [span for name, span in stage.told.spans.items() if name != CHAT]
    assert len(others) == 2
    assert "Say something" not in repr([span.attributes for span in others])


def test_a_stream_is_told_put_together(stage: Stage) -> None:
    stage.upstream.script = lambda c, seen: c.sendall(claude.SSE_HEAD + claude.chunk(claude.STREAM) + claude.LAST_CHUNK)
    assert stage.post("/v1/messages", claude.ASKED | {"stream": True}).data == claude.STREAM
    assert told(stage)[Attr.OUTPUT_MESSAGES] == spoken("assistant", "Hello", finish_reason="end_turn")


def test_a_call_that_failed_tells_what_it_was_asked(stage: Stage) -> None:
    stage.upstream.script = json_answer(claude.error("api_error", "Say something"), "500 Oh")
    stage.post("/v1/messages", claude.ASKED)
    assert told(stage) == {Attr.INPUT_MESSAGES: ASKED}


def test_each_call_of_a_fan_out_tells_its_own(stage: Stage) -> None:
    stage.upstream.script = echo
    assert stage.post("/aggregate", {"tasks": TASKS, "combine": ONE_SENTENCE}).status_code == 200
    asked = {name: told(stage, name) for name in stage.told.spans if name.startswith(("chat ", "generate_content "))}
    words = sorted(said[Attr.INPUT_MESSAGES][0]["parts"][0]["content"] for said in asked.values())
    assert words[0].startswith("Combine claude: Summarise and gemini: Judge")
    assert words[1:] == ["Judge", "Summarise"]
    answers = {name: said[Attr.OUTPUT_MESSAGES][0]["parts"][0]["content"] for name, said in asked.items()}
    assert answers["generate_content gemini-2.5-flash"] == "gemini: Judge"
    assert answers[CHAT] == "claude: Summarise"


@pytest.mark.parametrize(("flags", "read"), [("00", 0), ("01", 3)])
def test_of_a_trace_that_is_not_kept_nothing_is_read(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, flags: str, read: int
) -> None:
    sheets: list[capturing.Sheet] = []

    class Counted(capturing.Sheet):
        def __init__(self, clean: Any) -> None:
            super().__init__(clean)
            sheets.append(self)

    monkeypatch.setattr(capturing, "Sheet", Counted)
    assert stage.post("/v1/messages", claude.ASKED, traceparent=f"00-{'ab' * 16}-{'cd' * 8}-{flags}").status_code == 200
    assert len(sheets) == read


def test_a_failure_to_tell_it_costs_the_span_nothing_else_and_the_log_no_words(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_clean: Any) -> Any:
        raise RuntimeError(claude.ASKED["messages"])

    monkeypatch.setattr(capturing, "Sheet", fails)
    assert stage.post("/v1/messages", claude.ASKED).status_code == 200
    assert told(stage) == {}
    assert dict(stage.told.spans[CHAT].attributes or {})[Attr.OUTPUT_TOKENS] == 7
    lines = stage.told.lines()
    assert "Say something" not in repr(lines)
    assert [line["message"] for line in lines if line["level"] == "error"] == ["closing failed"]
