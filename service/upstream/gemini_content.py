"""What is said in Gemini's contents, for content capture. The API takes its fields in snake_case too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from service.upstream.content import (
    KEY,
    LIMIT,
    Content,
    Message,
    Part,
    Pieces,
    objects,
    other,
    reasoning,
    text,
    tool_call,
    tool_result,
)


class _Request(msgspec.Struct):
    contents: list[msgspec.Raw] = []
    camel: Any = msgspec.field(name="systemInstruction", default=None)
    system_instruction: Any = None


class _Candidate(msgspec.Struct):
    index: int = 0
    content: Any = None
    finish_reason: Any = msgspec.field(name="finishReason", default=None)


class _Answer(msgspec.Struct):
    """A whole answer, or one event of a stream."""

    candidates: list[_Candidate] | None = None


_request = msgspec.json.Decoder(_Request)
_event, _answer = msgspec.json.Decoder(_Answer), msgspec.json.Decoder(_Answer | list[_Answer])
_BESIDE = frozenset(("thought", "thoughtSignature", "videoMetadata", "mediaResolution", "partMetadata"))
"""Fields of a part that say nothing by themselves."""


class GeminiContent(Content):
    """Gemini's."""

    def asked(self, body: bytes) -> tuple[Iterable[Part], Iterable[Message]]:
        """`systemInstruction` and `contents`."""
        asked = _request.decode(body)
        return _parts(asked.camel or asked.system_instruction), map(_message, reversed(asked.contents))

    def said(self, body: bytes) -> Iterable[Message]:
        """A message for each candidate; a list is a stream that was read whole."""
        said, found = _answer.decode(body), _Candidates(len(body))
        for each in said if isinstance(said, list) else [said]:
            found.add(each)
        return found.messages(str)

    def stream(self) -> Pieces:
        """By candidate."""
        return _Candidates()


class _Candidates(Pieces):
    def __init__(self, room: int = LIMIT + KEY) -> None:
        super().__init__(room)
        self._last: dict[int, tuple[int, str]] = {}
        """The part of each candidate that was added to last: its number and type."""

    def _take(self, data: bytes) -> None:
        self.add(_event.decode(data))

    def add(self, said: _Answer) -> None:
        """Neighbouring words, and neighbouring thoughts, are one part."""
        for candidate in said.candidates or ():
            for part in _parts(candidate.content):
                number, kind = self._last.get(candidate.index, (0, ""))
                more = part.pop("content", "")
                number += part["type"] != kind or kind not in ("text", "reasoning")
                self._last[candidate.index] = number, part["type"]
                begun = text("") | part if part["type"] in ("text", "reasoning") else part
                self._add(candidate.index, number, begun, more)
            self._finish(candidate.index, candidate.finish_reason)


def _message(raw: msgspec.Raw) -> Message:
    said = msgspec.json.decode(raw, type=dict[str, Any])
    role = said.get("role") or "user"
    return {"role": "assistant" if role == "model" else role, "parts": _parts(said)}


def _parts(content: object) -> Iterator[Part]:
    return map(_part, objects(content.get("parts"))) if isinstance(content, dict) else iter(())


def _part(part: dict[str, Any]) -> Part:
    if "text" in part:
        return reasoning(part["text"]) if part.get("thought") else text(part["text"])
    called, given = (part.get(f"function{a}") or part.get(f"function_{b}") for a, b in _FUNCTION)
    if isinstance(called, dict):
        return tool_call(called.get("id"), called.get("name"), called.get("args"))
    if isinstance(given, dict):
        return tool_result(given.get("id"), given.get("response"), given.get("name"))
    return other(next((name for name in part if name not in _BESIDE), None))


_FUNCTION = (("Call", "call"), ("Response", "response"))
