"""What is said in OpenAI's chat completions and responses, for content capture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
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
    """Of both APIs: chat has `messages`, the responses have the others."""

    messages: list[msgspec.Raw] | None = None
    instructions: Any = None
    input: str | list[msgspec.Raw] | None = None


class _Why(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    output: list[Any] | None = None
    choices: list[Any] | None = None
    status: str | None = None
    incomplete_details: _Why | None = None

    @property
    def reason(self) -> str | None:
        """Why a response ended."""
        return (self.incomplete_details and self.incomplete_details.reason) or self.status


class _Event(msgspec.Struct):
    """A chunk of a chat completion, or an event of a response."""

    type: str = ""
    choices: list[Any] | None = None
    output_index: int = 0
    content_index: int = 0
    summary_index: int = 0
    item: Any = None
    delta: Any = None
    response: msgspec.Raw = msgspec.Raw()


_request, _response = msgspec.json.Decoder(_Request), msgspec.json.Decoder(_Response)
_event = msgspec.json.Decoder(_Event)
_WORDS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Kinds of content that are words, and where those stand."""
_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
_LAST = frozenset(("response.completed", "response.incomplete", "response.failed"))
_DELTAS = {
    "response.output_text.delta": text(""),
    "response.refusal.delta": text(""),
    "response.reasoning_text.delta": reasoning(""),
    "response.reasoning_summary_text.delta": reasoning(""),
    "response.function_call_arguments.delta": tool_call(None, None, None),
    "response.custom_tool_call_input.delta": tool_call(None, None, None),
}
"""What a delta adds to."""


class OpenAIContent(Content):
    """OpenAI's: what a body is, its fields tell."""

    def asked(self, body: bytes) -> tuple[Iterable[Part], Iterable[Message]]:
        """`messages`; or `instructions` and `input`. A chat's system messages are part of its history."""
        asked = _request.decode(body)
        if asked.messages is not None:
            return (), (_chat_message(_decoded(raw)) for raw in reversed(asked.messages))
        if isinstance(asked.input, str):
            return _parts(asked.instructions), ({"role": "user", "parts": _parts(asked.input)},)
        items = (_decoded(raw) for raw in reversed(asked.input or []))
        return _parts(asked.instructions), ({"role": _role(item), "parts": _item(item)} for item in items)

    def said(self, body: bytes) -> Iterable[Message]:
        """A message for each choice, or one of all output."""
        said = _response.decode(body)
        for choice in objects(said.choices):
            yield answer(_chat_parts(choice.get("message")), choice.get("finish_reason"))
        if said.output is not None:
            yield answer(chain.from_iterable(map(_item, objects(said.output))), said.reason)

    def stream(self) -> Pieces:
        """By choice and kind, or by output item."""
        return _Deltas()


class _Deltas(Pieces):
    def _take(self, data: bytes) -> None:
        event = _event.decode(data)
        for choice in objects(event.choices):
            self._chunk(choice.get("index") or 0, choice.get("delta") or {})
            self._finish(choice.get("index") or 0, choice.get("finish_reason"))
        if event.type in _LAST:
            self._finish(0, _response.decode(event.response).reason)
        elif event.type == "response.output_item.added" and isinstance(event.item, dict):
            for part in _item(event.item):
                self._add(0, (event.output_index, 0, 0), part)
        elif event.type in _DELTAS:
            key = event.output_index, event.content_index, event.summary_index
            self._add(0, key, _DELTAS[event.type], event.delta)

    def _chunk(self, choice: int, delta: dict[str, Any]) -> None:
        for kind in ("content", "refusal"):
            if delta.get(kind):
                self._add(choice, kind, text(""), delta[kind])
        for call in objects(delta.get("tool_calls")):
            function = call.get("function") or {}
            begun = tool_call(call.get("id"), function.get("name"), None)
            self._add(choice, ("call", call.get("index")), begun, function.get("arguments"))


def _decoded(raw: msgspec.Raw) -> dict[str, Any]:
    return msgspec.json.decode(raw, type=dict[str, Any])


def _chat_message(said: dict[str, Any]) -> Message:
    if said.get("role") == "tool":
        given = flat(_parts(said.get("content")))
        return {"role": "tool", "parts": (tool_result(said.get("tool_call_id"), given),)}
    return {"role": said.get("role"), "parts": _chat_parts(said)}


def _chat_parts(said: object) -> Iterator[Part]:
    if not isinstance(said, dict):
        return
    yield from _parts(said.get("content"))
    yield from _parts(said.get("refusal"))
    for call in objects(said.get("tool_calls")):
        function = call.get("function") or call.get("custom") or {}
        yield tool_call(call.get("id"), function.get("name"), function.get("arguments") or function.get("input"))


def _parts(content: object) -> Iterator[Part]:
    if isinstance(content, str):
        yield text(content)
    for each in objects(content):
        kind = each.get("type")
        yield text(each.get(_WORDS[kind])) if kind in _WORDS else other(kind)


def _role(item: dict[str, Any]) -> str:
    kind = str(item.get("type"))
    return item.get("role") or ("tool" if kind.endswith("_output") else "assistant")


def _item(item: dict[str, Any]) -> Iterator[Part]:
    """One item of a response's input or output."""
    kind = item.get("type") or "message"
    if kind == "message":
        yield from _parts(item.get("content"))
    elif kind == "reasoning":
        for each in chain(objects(item.get("summary")), objects(item.get("content"))):
            yield reasoning(each.get("text"))
    elif kind in _CALLS:
        yield tool_call(item.get("call_id"), item.get("name"), item.get(_CALLS[kind]))
    elif kind in ("function_call_output", "custom_tool_call_output"):
        given = item.get("output")
        yield tool_result(item.get("call_id"), flat(_parts(given)) if isinstance(given, str | list) else given)
    else:
        yield other(kind)
