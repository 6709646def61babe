"""What is said in Claude's messages, for content capture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from service.upstream.content import (
    Content,
    Message,
    Part,
    Pieces,
    answer,
    flat,
    objects,
    other,
    reasoning,
    text,
    tool_call,
    tool_result,
)


class _Request(msgspec.Struct):
    system: Any = None
    messages: list[msgspec.Raw] = []


class _Answer(msgspec.Struct):
    content: list[Any]
    stop_reason: str | None = None


class _Delta(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str = ""
    index: int = 0
    content_block: Any = None
    delta: _Delta | None = None


_request, _answer = msgspec.json.Decoder(_Request), msgspec.json.Decoder(_Answer)
_event = msgspec.json.Decoder(_Event)


class ClaudeContent(Content):
    """Claude's."""

    def asked(self, body: bytes) -> tuple[Iterable[Part], Iterable[Message]]:
        """`system` and `messages`."""
        asked = _request.decode(body)
        return _parts(asked.system), map(_message, reversed(asked.messages))

    def said(self, body: bytes) -> Iterable[Message]:
        """One message."""
        said = _answer.decode(body)
        yield answer(_parts(said.content), said.stop_reason)

    def stream(self) -> Pieces:
        """By content block."""
        return _Blocks()


class _Blocks(Pieces):
    def _take(self, data: bytes) -> None:
        event = _event.decode(data)
        delta = event.delta
        if event.type == "content_block_start" and isinstance(event.content_block, dict):
            self._add(0, event.index, _part(event.content_block))
        elif event.type == "content_block_delta" and delta is not None:
            what = reasoning("") if delta.thinking else tool_call(None, None, None) if delta.partial_json else text("")
            self._add(0, event.index, what, delta.text or delta.thinking or delta.partial_json)
        elif event.type == "message_delta" and delta is not None:
            self._finish(0, delta.stop_reason)


def _message(raw: msgspec.Raw) -> Message:
    said = msgspec.json.decode(raw, type=dict[str, Any])
    return {"role": said.get("role"), "parts": _parts(said.get("content"))}


def _parts(content: object) -> Iterator[Part]:
    return iter((text(content),)) if isinstance(content, str) else map(_part, objects(content))


def _part(block: dict[str, Any]) -> Part:
    match block.get("type"):
        case "text":
            return text(block.get("text"))
        case "thinking":
            return reasoning(block.get("thinking"))
        case "tool_use":
            return tool_call(block.get("id"), block.get("name"), block.get("input"))
        case "tool_result":
            return tool_result(block.get("tool_use_id"), flat(_parts(block.get("content"))))
    return other(block.get("type"))
