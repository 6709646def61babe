"""What Claude's answers say of themselves: usage, ids, how a stream ended. Reads bytes, changes none.

Sources: the SDK's types (anthropic 2.12.0), the API's pages on streaming and errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from observability.catalog import Outcome
from service.record import Answered, Usage, Variant
from service.upstream.outcomes import outcome_of_error
from service.upstream.reading import BodyReader, Count, EventReader


class _CacheCreation(msgspec.Struct):
    ephemeral_5m_input_tokens: Count | None = None
    ephemeral_1h_input_tokens: Count | None = None


class _ServerTools(msgspec.Struct):
    web_search_requests: Count | None = None


class _OutputDetails(msgspec.Struct):
    thinking_tokens: Count | None = None


class _Usage(msgspec.Struct):
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation: _CacheCreation | None = None
    output_tokens_details: _OutputDetails | None = None
    server_tool_use: _ServerTools | None = None
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None


class _Details(msgspec.Struct):
    error_code: str | None = None


class Error(msgspec.Struct):
    """What went wrong, in the API's words."""

    type: str = "api_error"
    message: str = ""
    details: _Details | None = None


class Message(msgspec.Struct):
    """An answer to an inference: what is read of it."""

    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None


class _Delta(msgspec.Struct):
    stop_reason: str | None = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class _Event(msgspec.Struct):
    """Any stream event or whole answer: only what is read of it; the rest is checked to be JSON and skipped."""

    type: str = ""
    message: Message | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None
    error: Error | None = None
    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None


_decoder = msgspec.json.Decoder(_Event)


class StreamReader(EventReader[_Event]):
    """Reads an SSE answer; complete with `message_stop`."""

    _decoder = _decoder

    def __init__(self, clock: Callable[[], float], on_first_chunk: Callable[[], None], encoding: str = "") -> None:
        super().__init__(clock, on_first_chunk, encoding)
        self._usage: dict[str, int] = {}
        self._variant = Variant()
        self._message = Message()
        self._stop_reason: str | None = None

    def _see(self, event: _Event) -> None:
        match event.type:
            case "content_block_delta":
                delta = event.delta
                self._pacer.saw((delta and (delta.text or delta.thinking or delta.partial_json)) or "")
            case "message_start" if event.message is not None:
                self._message = event.message
                self._variant = _variant(event.message.usage)
                self._merge(event.message.usage)
            case "message_delta":
                # Usage here is cumulative and may restate input and cache tokens: what is present replaces.
                self._merge(event.usage, final=True)
                self._stop_reason = (event.delta and event.delta.stop_reason) or self._stop_reason
                self._refused = self._stop_reason == "refusal"
            case "message_stop":
                self.complete = True
            case "error":
                kind = event.error.type if event.error is not None else Error().type
                self._error = outcome_of_error(kind), kind

    def _merge(self, usage: _Usage | None, *, final: bool = False) -> None:
        if usage is None:
            return
        said = _said(usage)
        if not final:
            # message_start's output_tokens is a placeholder of 1 or 2; without a message_delta the count is unknown.
            said.pop("output_tokens", None)
        self._usage.update(said)

    @property
    def answered(self) -> Answered:
        """What the stream has said so far; tokens it never said are None."""
        return Answered(
            streamed=True,
            response_id=self._message.id,
            model=self._message.model,
            finish_reason=self._stop_reason,
            usage=_total(self._usage) if self._usage else None,
            variant=self._variant,
            content_bytes=self._pacer.content_bytes,
            first_chunk=self._pacer.first_chunk,
            pace=self._pacer.pace,
        )


class WholeReader(BodyReader[_Event]):
    """Reads a JSON answer that comes in one piece: a message, an error, a count, a list."""

    _decoder = _decoder

    def _kind(self, event: _Event) -> str | None:
        return event.error.type if event.error is not None else None

    def _verdict(self, event: _Event) -> tuple[Outcome, str | None]:
        return (Outcome.REFUSED if event.stop_reason == "refusal" else Outcome.OK), None

    @property
    def error_code(self) -> str:
        """The provider's `error.details.error_code`; empty when it gave none."""
        event = self._event()
        details = event.error.details if event is not None and event.error is not None else None
        return (details and details.error_code) or ""

    def _told(self, event: _Event) -> Answered | None:
        return told(event) if event.type == "message" else None


def told(message: Message | _Event) -> Answered:
    """What a whole message says of itself."""
    said = _said(message.usage) if message.usage is not None else {}
    return Answered(
        response_id=message.id,
        model=message.model,
        finish_reason=message.stop_reason,
        usage=_total(said) if said else None,
        variant=_variant(message.usage),
    )


_COUNTS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def _said(usage: _Usage) -> dict[str, int]:
    """The counts that are there, by the API's names."""
    said = {name: getattr(usage, name) for name in _COUNTS}
    if usage.output_tokens_details is not None:
        said["thinking_tokens"] = usage.output_tokens_details.thinking_tokens
    if usage.cache_creation is not None:
        said["ephemeral_1h_input_tokens"] = usage.cache_creation.ephemeral_1h_input_tokens
    if usage.server_tool_use is not None:
        said["web_search_requests"] = usage.server_tool_use.web_search_requests
    return {name: value for name, value in said.items() if value is not None}


def _variant(usage: _Usage | None) -> Variant:
    return Variant() if usage is None else Variant(usage.service_tier, usage.speed, usage.inference_geo)


def _total(said: Mapping[str, int]) -> Usage:
    """The GenAI conventions' usage: their input tokens include what Anthropic counts beside them as cache tokens."""
    read, written = said.get("cache_read_input_tokens"), said.get("cache_creation_input_tokens")
    fresh = said.get("input_tokens")
    return Usage(
        input_tokens=None if fresh is None else fresh + (read or 0) + (written or 0),
        output_tokens=said.get("output_tokens"),
        cache_read_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=said.get("thinking_tokens"),
        cache_write_1h_tokens=said.get("ephemeral_1h_input_tokens"),
        web_searches=said.get("web_search_requests"),
    )
