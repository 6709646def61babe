"""What OpenAI's answers say of themselves: usage, ids, how a stream ended. Reads bytes, changes none.

Chat completions and responses, streamed or not: the SDK's types (openai 3.54.0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from observability.catalog import Outcome
from service.record import Answered, Variant
from service.upstream.openai_usage import Said, Tools, ToolUsage, tools, total
from service.upstream.reading import BodyReader, EventReader

OVERLOADED = frozenset((503,))
"""OpenAI's status for "The engine is currently overloaded" and "Slow down"."""
SPEND = frozenset(
    (
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
    )
)
"""Codes of a 429 that no waiting helps against."""
_OUTCOMES = {
    **dict.fromkeys(SPEND | {"rate_limit_exceeded"}, Outcome.UPSTREAM_429),
    **dict.fromkeys(
        ("server_is_overloaded", "server_overloaded", "slow_down", "service_unavailable"), Outcome.UPSTREAM_OVERLOADED
    ),
    **dict.fromkeys(("context_length_exceeded", "invalid_prompt", "invalid_request_error"), Outcome.CLIENT_INVALID),
}
"""Of an error inside a 200, by its code; any other is the provider's."""
_LAST = frozenset(("response.completed", "response.incomplete", "response.failed"))
_CONTENT = frozenset(
    f"response.{kind}.delta"
    for kind in (
        "output_text", "refusal", "reasoning_text", "reasoning_summary_text", "function_call_arguments",
        "custom_tool_call_input", "mcp_call_arguments", "code_interpreter_call_code", "audio", "audio.transcript",
    )
)  # fmt: skip


class _Error(msgspec.Struct):
    type: str | None = None
    code: str | int | None = None
    message: str | None = None

    @property
    def kind(self) -> str:
        """The code, which says more, else the type."""
        return str(self.code or self.type or "error")

    @property
    def names(self) -> tuple[str, str]:
        """Code and type; empty where it has none."""
        return str(self.code or ""), self.type or ""


class _Function(msgspec.Struct):
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _Delta(msgspec.Struct):
    """What a chunk adds, or (`message`) the whole."""

    content: str | list[Any] | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    audio: dict[str, Any] | None = None
    annotations: list[Any] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Item(msgspec.Struct):
    """One of many kinds; a message's content is a list of parts, others may have anything under that name."""

    type: str = ""
    content: Any = None
    action: Any = None

    @property
    def refuses(self) -> bool:
        """Whether the model says that it will not answer."""
        parts = self.content if isinstance(self.content, list) else []
        return any(isinstance(part, dict) and part.get("type") == "refusal" for part in parts)


class _Response(msgspec.Struct, kw_only=True):
    """A response object, or a chat completion, or a chunk of one: only what is read of them."""

    id: str | None = None
    object: str = ""
    model: str | None = None
    status: str | None = None
    choices: list[_Choice] | None = None
    output: list[_Item] | None = None
    incomplete_details: _Incomplete | None = None
    usage: Said | None = None
    tool_usage: ToolUsage | None = None
    service_tier: str | None = None
    error: _Error | None = None


class _Event(_Response, kw_only=True):
    """A chunk of a chat completion, or an event of a response."""

    type: str = ""
    delta: Any = None
    response: _Response | None = None
    code: str | int | None = None


class StreamReader(EventReader[_Event]):
    """Reads a stream of chat chunks (complete with `[DONE]`) or of a response's events (with the response's own end)."""

    _decoder = msgspec.json.Decoder(_Event)

    def __init__(self, clock: Callable[[], float], on_first_chunk: Callable[[], None], encoding: str = "") -> None:
        super().__init__(clock, on_first_chunk, encoding)
        self._seen = _Response()
        self._finish: str | None = None
        self._tools = Tools()
        self.error = "", ""
        """Code and type of an error; empty where it has none."""

    def _cut(self, chunk: bytes) -> Iterable[bytes]:
        for data in super()._cut(chunk):
            if data.startswith(b"[DONE]"):
                self.complete = True
            else:
                yield data

    def _see(self, event: _Event) -> None:
        if event.type == "error" or event.error is not None:
            self._fail(event.error or _Error(code=event.code))
        elif event.response is not None:
            self._merge(event.response)
            if event.type in _LAST:
                self.complete = True
                self._finish = _finish(event.response)
                self._tools = _tools(event.response)
                self._refused = self._refused or _refused(event.response)
                if event.type == "response.failed":
                    self._fail(event.response.error or _Error())
        elif event.type in _CONTENT:
            self._pacer.saw(event.delta if isinstance(event.delta, str) else "")
        elif not event.type:
            self._chunk(event)

    def _chunk(self, chunk: _Event) -> None:
        self._merge(chunk)
        self._finish = _finish(chunk) or self._finish
        if not self._tools.used:
            self._tools = _tools(chunk)
        self._refused = self._refused or _refused(chunk)
        deltas = [choice.delta for choice in chunk.choices or () if choice.delta is not None]
        content = "".join(map(_content, deltas))
        if content or any(delta.audio is not None for delta in deltas):
            self._pacer.saw(content)

    def _merge(self, said: _Response) -> None:
        seen = self._seen
        seen.id, seen.model = said.id or seen.id, said.model or seen.model
        seen.usage, seen.service_tier = said.usage or seen.usage, said.service_tier or seen.service_tier

    def _fail(self, error: _Error) -> None:
        self._error = _outcome(error), error.kind
        self.error = error.names

    @property
    def answered(self) -> Answered:
        """What the stream has said so far; a chat's usage only if the client asked for it."""
        pacer, seen = self._pacer, self._seen
        return Answered(
            streamed=True,
            unread=self.unread,
            response_id=seen.id,
            model=seen.model,
            finish_reason=self._finish,
            usage=total(seen.usage, self._tools),
            variant=Variant(tier=seen.service_tier),
            content_bytes=pacer.content_bytes,
            first_chunk=pacer.first_chunk,
            pace=pacer.pace,
        )


class WholeReader(BodyReader[_Response]):
    """Reads a JSON answer that comes in one piece: a chat completion, a response, a list of models, an error."""

    _decoder = msgspec.json.Decoder(_Response)
    overloaded = OVERLOADED

    def _kind(self, event: _Response) -> str | None:
        return event.error.kind if event.error is not None else None

    def _told(self, event: _Response) -> Answered | None:
        if event.object not in ("chat.completion", "response"):
            return None
        return Answered(
            response_id=event.id,
            model=event.model,
            finish_reason=_finish(event),
            usage=total(event.usage, _tools(event)),
            variant=Variant(tier=event.service_tier),
        )

    def _verdict(self, event: _Response) -> tuple[Outcome, str | None]:
        if event.status == "failed" or event.error is not None:
            error = event.error or _Error()
            return _outcome(error), error.kind
        return (Outcome.REFUSED if _refused(event) else Outcome.OK), None

    @property
    def error(self) -> tuple[str, str]:
        """Code and type of an error; empty where it has none."""
        event = self._event()
        return event.error.names if event is not None and event.error is not None else ("", "")


def _outcome(error: _Error) -> Outcome:
    return _OUTCOMES.get(error.kind, Outcome.UPSTREAM_ERROR)


def _finish(said: _Response) -> str | None:
    """Chat: its finish reason; a response: why it is incomplete, else its status."""
    if said.choices is not None:
        return next((choice.finish_reason for choice in said.choices if choice.finish_reason), None)
    return (said.incomplete_details and said.incomplete_details.reason) or said.status


def _refused(said: _Response) -> bool:
    """Whether a filter stopped the answer, or the model says that it will not answer."""
    for choice in said.choices or ():
        words = choice.delta or choice.message
        if choice.finish_reason == "content_filter" or (words is not None and words.refusal):
            return True
    return _finish(said) == "content_filter" or any(item.refuses for item in said.output or ())


def _tools(said: _Response) -> Tools:
    """Of a response by its output; of a chat by the sources that it names, or the model that always searches."""
    if said.choices is None:
        return tools(((item.type, item.action) for item in said.output or ()), said.tool_usage)
    words = [choice.delta or choice.message for choice in said.choices]
    searched = any(one is not None and one.annotations for one in words) or "-search-" in (said.model or "")
    return Tools(used=searched)


def _content(delta: _Delta) -> str:
    calls = [call.function.arguments or "" for call in delta.tool_calls or () if call.function is not None]
    return (delta.content if isinstance(delta.content, str) else "") + (delta.refusal or "") + "".join(calls)
